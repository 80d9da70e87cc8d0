// Draw the map from the rows of the table, colour it, and play what is clicked.
(() => {
const byId = (id) => document.getElementById(id);
const box = byId("map"), svg = box.querySelector("svg"), tip = byId("tip"), NEAR = 18;  // px
const make = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const hues = [...document.querySelectorAll(".by-class button")].map((button) => button.style.getPropertyValue("--hue"));
const points = [...document.querySelectorAll("#list tbody tr")].map((row) => ({ row, clip: row.dataset.clip,
  x: Number(row.dataset.x), y: Number(row.dataset.y), code: Number(row.dataset.code),
  similarity: row.dataset.similarity === undefined ? null : Number(row.dataset.similarity),
  cells: [...row.cells].map((cell) => cell.textContent.trim()) }));
const prompts = JSON.parse(byId("prompts").textContent);
const known = points.map((point) => point.similarity).filter((value) => value !== null);
const lowest = Math.min(...known), highest = Math.max(...known);

const isChosen = (point) => point.code >= 0;
points.sort((one, two) => isChosen(one) - isChosen(two));  // the chosen ones on top
for (const point of points) {
  point.dot = svg.appendChild(make("circle", { r: 4.2, "data-clip": point.clip, class: isChosen(point) ? "" : "no" }));
  if (!isChosen(point)) continue;
  point.dot.style.setProperty("--hue", hues[point.code]);
  const share = highest > lowest ? (point.similarity - lowest) / (highest - lowest) : 1;
  point.dot.style.setProperty("--share", share);
}
for (const [code, prompt] of prompts.entries()) {
  prompt.mark = svg.appendChild(make("g", { class: "mark" }));
  prompt.mark.style.setProperty("--hue", hues[code]);
  prompt.mark.append(make("path", { d: "M0-6 6 0 0 6-6 0z" }), make("text", { x: 9, y: 4 }));
  prompt.mark.lastChild.textContent = prompt.class;
}

// -- place everything: both axes have one scale; of labels that would overlap, the first stays

let chosenClass = -1;
function place() {
  const width = box.clientWidth, height = Math.round(Math.max(340, Math.min(640, 0.62 * width)));
  const all = [...points, ...prompts], xs = all.map((one) => one.x), ys = all.map((one) => one.y), pad = 26;
  const left = Math.min(...xs), right = Math.max(...xs), low = Math.min(...ys), high = Math.max(...ys);
  const scale = Math.min((width - 2 * pad) / (right - left || 1), (height - 2 * pad) / (high - low || 1));
  for (const one of all) {
    one.left = width / 2 + scale * (one.x - (left + right) / 2);
    one.top = height / 2 - scale * (one.y - (low + high) / 2);
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = height + "px";
  for (const point of points) { point.dot.setAttribute("cx", point.left); point.dot.setAttribute("cy", point.top); }
  for (const prompt of prompts) {
    const isRight = prompt.left > width / 2;
    prompt.mark.setAttribute("transform", `translate(${prompt.left} ${prompt.top})`);
    prompt.mark.lastChild.setAttribute("text-anchor", isRight ? "end" : "start");
    prompt.mark.lastChild.setAttribute("x", isRight ? -9 : 9);
  }
  label();
}
function label() {
  const taken = [];
  const order = prompts.map((prompt, code) => ({ prompt, code })).sort((one) => one.code === chosenClass ? -1 : 0);
  for (const { prompt, code } of order) {
    prompt.mark.classList.remove("crowded");
    const is = prompt.mark.lastChild.getBoundingClientRect();
    const isFree = taken.every((was) => is.right < was.left || is.left > was.right || is.bottom < was.top
      || is.top > was.bottom);
    if (isFree || code === chosenClass) taken.push(is); else prompt.mark.classList.add("crowded");
  }
}

// -- colours and classes

function colour() { document.body.dataset.by = byId("by").value; choose(-1); }
function choose(code) {
  chosenClass = code === chosenClass ? -1 : code;
  for (const button of document.querySelectorAll(".by-class button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.code) === chosenClass));
  for (const point of points) {
    const isOut = chosenClass >= 0 && point.code !== chosenClass;
    point.dot.classList.toggle("dim", isOut);
    point.row.hidden = isOut;
  }
  prompts.forEach((prompt, index) => prompt.mark.classList.toggle("dim", chosenClass >= 0 && index !== chosenClass));
  label();
}
byId("by").addEventListener("input", colour);
for (const button of document.querySelectorAll(".by-class button"))
  button.addEventListener("click", () => choose(Number(button.dataset.code)));

// -- the point under the pointer

let near = null;
function nearest(event) {
  const frame = svg.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
  let found = null, least = NEAR;
  for (const point of points) {
    if (point.row.hidden) continue;
    const distance = Math.hypot(point.left - x, point.top - y);
    if (distance <= least) { least = distance; found = point; }
  }
  return found;
}
const describe = (point) => {
  const [name, note, ofClass, similarity, , caption, prompt] = point.cells;
  const isSilent = !sounds[point.clip];
  return [isChosen(point) ? caption : name,
    isChosen(point) ? `${ofClass}, similarity ${similarity}` : `not chosen; nearest prompt: ${prompt}`,
    (isChosen(point) ? name + "; " : "") + (isSilent ? note : "click to play")];
};
function showTip(point) {
  if (near) near.dot.classList.remove("near");
  near = point;
  tip.hidden = !point;
  if (!point) return;
  point.dot.classList.add("near");
  const [first, ...rest] = describe(point);
  tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: first }),
    ...rest.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  const isRight = point.left > box.clientWidth / 2, isLow = point.top > box.clientHeight / 2;
  tip.style.left = isRight ? "auto" : point.left + 12 + "px";
  tip.style.right = isRight ? box.clientWidth - point.left + 12 + "px" : "auto";
  tip.style.top = isLow ? "auto" : point.top + 12 + "px";
  tip.style.bottom = isLow ? box.clientHeight - point.top + 12 + "px" : "auto";
}
svg.addEventListener("pointermove", (event) => showTip(nearest(event)));
svg.addEventListener("pointerleave", () => showTip(null));
svg.addEventListener("click", (event) => {
  const point = nearest(event);
  showTip(point);
  if (point) toggleClip(point.clip);
});
player.addEventListener("play", () => {
  const point = points.find((one) => one.clip === playing);
  if (point) byId("now").textContent = "playing: " + describe(point).slice(0, 2).join(", ");
});
for (const name of ["pause", "ended"]) player.addEventListener(name, () => { byId("now").textContent = "\u00a0"; });
addEventListener("resize", place);
document.body.dataset.by = "class";
place();
})();
