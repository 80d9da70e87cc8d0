// Play, seek, filter, sort, mark, export.
//
// It must run inside MLflow's artifact view, an iframe that allows scripts and nothing else: there localStorage throws
// and downloads are dropped silently. Marks then live as long as the page, and the export is shown as text to
// copy.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const list = byId("pairs"), player = byId("player"), STORE = "clapcur-audition-" + data.set;

// -- marks: key of a pair -> "wrong" or "right"

let canStore = true;
const keyOf = (pair) => pair.clip_id + " " + pair.caption_id;
function storedMarks() {
  try { return JSON.parse(localStorage.getItem(STORE)) || {}; } catch { canStore = false; return {}; }
}
let marks = storedMarks();
function setMark(pair, mark) {
  if (canStore) marks = storedMarks();  // another tab, or another page of the same set, may have added some
  if (marks[keyOf(pair)] === mark) delete marks[keyOf(pair)]; else marks[keyOf(pair)] = mark;
  try { localStorage.setItem(STORE, JSON.stringify(marks)); } catch { canStore = false; }
  showMarks();
}
const cell = (value) => /[",\r\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : String(value);
function marksAsCsv() {
  const columns = ["clip_id", "caption_id", "mark", "similarity", "class", "caption", "path"];
  const lines = data.pairs.filter((pair) => marks[keyOf(pair)])
    .map((pair) => ({ ...pair, mark: marks[keyOf(pair)], path: data.clips[pair.clip_id].path }))
    .map((row) => columns.map((name) => cell(row[name])).join(","));
  return [columns.join(","), ...lines].join("\n") + "\n";
}

// -- rows

const PLAY = '<svg class="start" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1.5v13l11-6.5z"/></svg>'
  + '<svg class="pause" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 2h4v12H3zM9 2h4v12H9z"/></svg>';
const REASONS = { border: "among the lowest scores of its class", top: "among the highest scores of its class",
  random: "drawn at random from the rest of its class" };
const add = (parent, tag, kind, text) => {
  const made = parent.appendChild(document.createElement(tag));
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const lowest = Math.min(...data.pairs.map((pair) => pair.similarity));
const highest = Math.max(...data.pairs.map((pair) => pair.similarity));

function makeRow(pair) {
  const clip = data.clips[pair.clip_id], row = document.createElement("li");
  row.className = "pair" + (clip.audio ? "" : " silent");
  row.tabIndex = -1;
  const play = add(row, "button", "play");
  play.type = "button";
  play.innerHTML = PLAY;
  play.disabled = !clip.audio;
  play.onclick = () => { select(pair); toggle(); };
  const scope = add(row, "div", "scope");
  if (clip.audio) {
    const image = add(scope, "img");
    image.src = "data:image/png;base64," + clip.image;
    image.alt = "spectrogram of “" + pair.caption + "”";
    image.decoding = "async";
    add(scope, "i");
    scope.title = "click to play from here";
    scope.onclick = (event) => {
      const box = scope.getBoundingClientRect();
      select(pair);
      start((event.clientX - box.left) / box.width);
    };
  } else {
    add(scope, "span", "why", clip.note);
  }
  const said = add(row, "div", "said");
  add(said, "p", "caption", pair.caption);
  if (pair.tags) add(said, "p", "about", "tags of the clip: " + pair.tags);
  const about = add(said, "p", "about");
  add(about, "b", "", pair.class);
  const place = add(about, "span", "place", clip.audio ? clip.path.split(/[\\/]/).slice(-2).join("/") : clip.path);
  place.title = clip.path + "\nclip " + pair.clip_id;
  if (clip.recording_id) add(about, "span", "", "recording " + clip.recording_id);
  add(about, "span", "", clip.excerpt);
  const scores = add(row, "div", "scores");
  add(scores, "strong", "", pair.similarity.toFixed(3)).title = "similarity of clip and caption";
  add(scores, "span", "reason", pair.reason).title = REASONS[pair.reason];
  const share = highest > lowest ? (pair.similarity - lowest) / (highest - lowest) : 1;
  add(add(scores, "span", "bar"), "i").style.width = 100 * Math.max(0.02, share) + "%";
  const margin = add(scores, "small", "", pair.margin.toFixed(3) + " above " + pair.threshold.toFixed(3));
  margin.title = "margin above the threshold of its class";
  const toClass = add(scores, "small", "to-class", "to its class " + pair.class_similarity.toFixed(3));
  toClass.title = "similarity of caption and class";
  if (data.cut === "caption") margin.before(toClass);  // the threshold is that of the score above it
  const judge = add(row, "div", "marks");
  judge.setAttribute("role", "group");
  judge.setAttribute("aria-label", "does “" + pair.caption + "” describe the sound?");
  for (const mark of ["right", "wrong"]) {
    const button = add(judge, "button", "", mark);
    button.type = "button";
    button.dataset.mark = mark;
    button.setAttribute("aria-label", mark + ": “" + pair.caption + "”");
    button.onclick = () => { select(pair); setMark(pair, mark); };
  }
  row.addEventListener("focusin", () => select(pair));
  return row;
}
for (const pair of data.pairs) pair.row = makeRow(pair);

// -- filter and sort

const ORDERS = {
  chosen: () => 0,
  class: (one, two) => one.class.localeCompare(two.class) || two.similarity - one.similarity,
  "similarity-down": (one, two) => two.similarity - one.similarity,
  "similarity-up": (one, two) => one.similarity - two.similarity,
  "margin-up": (one, two) => one.margin - two.margin,
  "class_similarity-down": (one, two) => two.class_similarity - one.class_similarity,
  "class_similarity-up": (one, two) => one.class_similarity - two.class_similarity,
};
let shown = [];
function arrange() {
  const wanted = byId("search").value.trim().toLowerCase().split(/\s+/);
  const ofClass = byId("class").value, ofReason = byId("reason").value, ofMark = byId("mark").value;
  const fits = (pair) => {
    const clip = data.clips[pair.clip_id], mark = marks[keyOf(pair)] || "none";
    const words = [pair.caption, pair.tags || "", pair.class, clip.path, clip.recording_id, pair.clip_id].join(" ").toLowerCase();
    return (!ofClass || pair.class === ofClass) && (!ofReason || pair.reason === ofReason)
      && (!ofMark || mark === ofMark || (ofMark === "any" && mark !== "none"))
      && wanted.every((word) => words.includes(word));
  };
  shown = data.pairs.filter(fits).sort(ORDERS[byId("sort").value]);
  list.replaceChildren(...shown.map((pair) => pair.row));
  byId("none").hidden = shown.length > 0;
  byId("shown").textContent = shown.length + " of " + data.pairs.length + " pairs";
  if (current && !shown.includes(current)) { player.pause(); current = null; }
  if (!current && shown.length) makeCurrent(shown[0]);
}
function showMarks() {
  const counts = { wrong: 0, right: 0 }, drawn = { wrong: 0, right: 0 };
  for (const pair of data.pairs) {
    const mark = marks[keyOf(pair)];
    pair.row.dataset.mark = mark || "none";
    for (const button of pair.row.querySelectorAll(".marks button"))
      button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
    if (mark) { counts[mark] += 1; if (pair.reason === "random") drawn[mark] += 1; }
  }
  const judged = drawn.right + drawn.wrong;
  byId("judged").textContent = counts.right + " right, " + counts.wrong + " wrong"
    + (judged ? "; of those drawn at random " + drawn.right + " of " + judged + " right" : "");
  byId("unsaved").hidden = canStore;
}

// -- the current pair, and its sound

let current = null;
function makeCurrent(pair) {
  if (current) current.row.removeAttribute("aria-current");
  current = pair;
  pair.row.setAttribute("aria-current", "true");
}
function select(pair) {
  if (pair === current) return;
  player.pause();
  makeCurrent(pair);
}
function move(step) {
  if (!shown.length) return;
  const next = shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + step))];
  if (next === current) return;
  select(next);
  next.row.focus({ preventScroll: true });
  next.row.scrollIntoView({ block: "nearest" });
  if (byId("follow").checked) start(0);
}
let loaded = null;
function start(share) {
  const pair = current, clip = pair && data.clips[pair.clip_id];
  if (!clip || !clip.audio) return;
  if (loaded !== pair) {
    if (loaded) loaded.row.classList.remove("begun");
    loaded = pair;
    player.src = "data:audio/mpeg;base64," + clip.audio;
  }
  const go = () => { if (loaded === pair) player.currentTime = share * player.duration; };
  if (player.readyState) go(); else player.addEventListener("loadedmetadata", go, { once: true });
  player.play().catch(() => {});  // a pair that is left before its sound begins
}
function toggle() {
  if (!current) return;
  if (!player.paused) player.pause();
  else if (loaded === current && !player.ended) player.play().catch(() => {});
  else start(0);
}
function follow() {
  if (!loaded) return;
  const share = player.duration ? player.currentTime / player.duration : 0;
  loaded.row.style.setProperty("--at", Math.min(share, 0.992));
  if (!player.paused) requestAnimationFrame(follow);
}
function showPlaying() {
  for (const pair of data.pairs) {
    const isPlaying = pair === loaded && !player.paused;
    pair.row.classList.toggle("playing", isPlaying);
    pair.row.querySelector(".play").setAttribute("aria-label", (isPlaying ? "pause" : "play") + " “" + pair.caption + "”");
  }
  if (loaded) loaded.row.classList.add("begun");
  follow();
}
for (const name of ["play", "pause", "ended"]) player.addEventListener(name, showPlaying);
player.addEventListener("seeked", follow);

// -- keys: not while somebody types, and a focused button keeps its space bar

const KEYS = {
  " ": () => toggle(), j: () => move(1), k: () => move(-1), x: () => current && setMark(current, "wrong"),
  r: () => current && setMark(current, "right"), "/": () => byId("search").focus(),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("text").open) return;
  const inside = event.target instanceof Element ? event.target : document.body;
  if (inside.matches("input[type=search], select, textarea")) {
    if (event.key === "Escape") inside.blur();
    return;
  }
  if (event.key === " " && inside.matches("button, summary, input")) return;
  if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
});

// -- export

function showText(why) {
  byId("why").textContent = why;
  byId("csv").value = marksAsCsv();
  byId("copied").textContent = "";
  byId("text").showModal();
  byId("csv").select();
}
byId("export").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
  link.download = "marks-" + data.set + ".csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  if (!canStore && window !== window.parent)
    showText("If no file arrives, this frame allows no downloads: copy this into " + link.download + ".");
};
byId("as-text").onclick = () => showText("Save this as marks-" + data.set + ".csv.");
byId("copy").onclick = () => {
  byId("csv").select();
  const isCopied = document.execCommand("copy");  // the clipboard interface is closed to sandboxed frames, this is not
  byId("copied").textContent = isCopied ? "copied" : "press Ctrl+C or ⌘C";
};
byId("close").onclick = () => byId("text").close();

for (const name of [...new Set(data.pairs.map((pair) => pair.class))].sort())
  add(byId("class"), "option", "", name).value = name;
byId("filters").addEventListener("input", arrange);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("storage", () => { marks = storedMarks(); showMarks(); });
showMarks();
showPlaying();
arrange();
})();
