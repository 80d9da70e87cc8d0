// Play, seek, choose a class, export. Like the audition page it must run from disk and inside a sandboxed frame.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const ids = Object.keys(data.clips), player = byId("player"), STORE = "clapcur-labels-" + data.id;
const NONE = -1, UNSURE = -2;  // instead of the number of a class

// -- labels: clip id -> number of the class, NONE or UNSURE

let canStore = true;
function stored() {
  try { return JSON.parse(localStorage.getItem(STORE)) || {}; } catch { canStore = false; return {}; }
}
let labels = stored(), current = 0;
function choose(answer) {
  if (canStore) labels = stored();  // another tab may have added some
  const isTakenBack = labels[ids[current]] === answer;
  if (isTakenBack) delete labels[ids[current]]; else labels[ids[current]] = answer;
  try { localStorage.setItem(STORE, JSON.stringify(labels)); } catch { canStore = false; }
  byId("search").value = "";
  filter();
  const later = [...ids.keys()].map((step) => (current + step) % ids.length);
  const open = isTakenBack ? undefined : later.find((index) => !(ids[index] in labels));
  if (open === undefined) show(); else goTo(open);
}
const cell = (value) => /[",\r\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : String(value);
function asCsv() {
  const lines = ids.filter((id) => labels[id] >= 0).map((id) => {
    const clip = data.clips[id];
    return [clip.path, data.classes[labels[id]], clip.recording_id].map(cell).join(",");
  });
  return ["path,label,recording_id", ...lines].join("\n") + "\n";
}

// -- the classes

const buttons = data.classes.map((name, index) => {
  const button = byId("classes").appendChild(document.createElement("button"));
  button.type = "button";
  button.dataset.answer = index;
  if (index < 9) button.appendChild(document.createElement("kbd")).textContent = index + 1;
  button.append((index < 9 ? " " : "") + name);
  return button;
});
const answers = [...document.querySelectorAll("[data-answer]")];
for (const button of answers) button.onclick = () => choose(Number(button.dataset.answer));
function filter() {
  const words = byId("search").value.trim().toLowerCase().split(/\s+/);
  buttons.forEach((button, index) => {
    button.hidden = !words.every((word) => data.classes[index].toLowerCase().includes(word));
  });
}
byId("search").oninput = filter;
byId("search").onkeydown = (event) => {
  const found = buttons.findIndex((button) => !button.hidden);
  if (event.key === "Enter" && byId("search").value.trim() && found >= 0) { choose(found); byId("search").blur(); }
  if (event.key === "Escape") { byId("search").value = ""; filter(); byId("search").blur(); }
};

// -- the current clip, and its sound

function show() {
  const clip = data.clips[ids[current]], answer = labels[ids[current]];
  byId("place").textContent = "clip " + (current + 1) + " of " + ids.length;
  const given = ids.map((id) => labels[id]).filter((one) => one !== undefined);
  byId("count").textContent = given.filter((one) => one >= 0).length + " with a class, "
    + given.filter((one) => one === NONE).length + " none of these, "
    + given.filter((one) => one === UNSURE).length + " unsure";
  for (const button of answers) button.setAttribute("aria-pressed", String(Number(button.dataset.answer) === answer));
  byId("excerpt").textContent = clip.excerpt;
  byId("file").textContent = clip.path;
  byId("previous").disabled = current === 0;
  byId("next").disabled = current === ids.length - 1;
  byId("unsaved").hidden = canStore;
}
function load() {
  const clip = data.clips[ids[current]], scope = byId("scope");
  player.pause();
  scope.replaceChildren();
  byId("clip").className = "clip" + (clip.audio ? "" : " silent");
  byId("play").disabled = !clip.audio;
  if (!clip.audio) {
    const why = scope.appendChild(document.createElement("span"));
    why.className = "why";
    why.textContent = clip.note;
    player.removeAttribute("src");
    return;
  }
  const image = scope.appendChild(document.createElement("img"));
  image.src = "data:image/png;base64," + clip.image;
  image.alt = "spectrogram";
  scope.appendChild(document.createElement("i"));
  player.src = "data:audio/mpeg;base64," + clip.audio;
}
function goTo(index) {
  current = Math.min(ids.length - 1, Math.max(0, index));
  load();
  show();
  if (byId("follow").checked) start(0);
}
function start(share) {
  if (!data.clips[ids[current]].audio) return;
  const go = () => { player.currentTime = share * player.duration; };
  if (player.readyState) go(); else player.addEventListener("loadedmetadata", go, { once: true });
  player.play().catch(() => {});  // a clip that is left before its sound begins
}
function toggle() {
  if (!player.paused) player.pause();
  else if (player.currentTime && !player.ended) player.play().catch(() => {});
  else start(0);
}
function follow() {
  const share = player.duration ? player.currentTime / player.duration : 0;
  byId("clip").style.setProperty("--at", Math.min(share, 0.992));
  if (!player.paused) requestAnimationFrame(follow);
}
function showPlaying() {
  byId("clip").classList.toggle("playing", !player.paused);
  if (!player.paused) byId("clip").classList.add("begun");
  byId("play").setAttribute("aria-label", player.paused ? "play" : "pause");
  follow();
}
for (const name of ["play", "pause", "ended"]) player.addEventListener(name, showPlaying);
player.addEventListener("seeked", follow);
byId("play").onclick = toggle;
byId("scope").onclick = (event) => {
  const box = byId("scope").getBoundingClientRect();
  start((event.clientX - box.left) / box.width);
};
byId("previous").onclick = () => goTo(current - 1);
byId("next").onclick = () => goTo(current + 1);

// -- keys: not while somebody types, and a focused button keeps its space bar

const KEYS = {
  " ": toggle, j: () => goTo(current + 1), k: () => goTo(current - 1), 0: () => choose(NONE), u: () => choose(UNSURE),
  "/": () => byId("search").focus(),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("text").open) return;
  const inside = event.target instanceof Element ? event.target : document.body;
  if (inside.matches("input[type=search], textarea")) return;
  if (event.key === " " && inside.matches("button, summary, input")) return;
  const number = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : NONE;
  if (number >= 0 && number < data.classes.length) choose(number);
  else if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
});

// -- export

function showText(why) {
  byId("why").textContent = why;
  byId("csv").value = asCsv();
  byId("copied").textContent = "";
  byId("text").showModal();
  byId("csv").select();
}
byId("export").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  if (!canStore && window !== window.parent)
    showText("If no file arrives, this frame allows no downloads: copy this into labels.csv.");
};
byId("as-text").onclick = () => showText("Save this as labels.csv.");
byId("copy").onclick = () => {
  byId("csv").select();
  const isCopied = document.execCommand("copy");  // the clipboard interface is closed to sandboxed frames, this is not
  byId("copied").textContent = isCopied ? "copied" : "press Ctrl+C or ⌘C";
};
byId("close").onclick = () => byId("text").close();
byId("text").addEventListener("close", () => byId("csv").blur());  // keys label again
addEventListener("storage", () => { labels = stored(); show(); });
current = Math.max(0, ids.findIndex((id) => !(id in labels)));
load();
show();
})();
