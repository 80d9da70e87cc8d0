// One sound at a time. A row is any element with data-clip; its .play buttons play it, a click on its .scope seeks.
"use strict";
const sounds = JSON.parse(document.getElementById("sounds").textContent);
const player = document.getElementById("player");
const rowsOf = (clip) => document.querySelectorAll(`[data-clip="${CSS.escape(clip)}"]`);
let playing = "";
function playClip(clip, share = 0) {
  if (!sounds[clip]) return;
  if (playing !== clip) {
    for (const row of rowsOf(playing)) row.classList.remove("begun");
    playing = clip;
    player.src = "data:audio/mpeg;base64," + sounds[clip];
  }
  const go = () => { if (playing === clip) player.currentTime = share * player.duration; };
  if (player.readyState) go(); else player.addEventListener("loadedmetadata", go, { once: true });
  player.play().catch(() => {});  // a sound that is left before it begins
}
function toggleClip(clip) {
  if (playing !== clip || player.ended) playClip(clip);
  else if (player.paused) player.play().catch(() => {});
  else player.pause();
}
function followSound() {
  const share = player.duration ? player.currentTime / player.duration : 0;
  for (const row of rowsOf(playing)) row.style.setProperty("--at", Math.min(share, 0.992));
  if (!player.paused) requestAnimationFrame(followSound);
}
function showPlaying() {
  for (const row of document.querySelectorAll("[data-clip]")) {
    const isPlaying = row.dataset.clip === playing && !player.paused;
    if (isPlaying) row.classList.add("begun");
    if (row.classList.contains("playing") === isPlaying) continue;
    row.classList.toggle("playing", isPlaying);
    const button = row.querySelector(".play");
    if (button) button.setAttribute("aria-label", (isPlaying ? "pause " : "play ") + button.dataset.name);
  }
  followSound();
}
for (const name of ["play", "pause", "ended"]) player.addEventListener(name, showPlaying);
player.addEventListener("seeked", followSound);
addEventListener("click", (event) => {
  const row = event.target.closest("[data-clip]"), scope = event.target.closest(".scope");
  if (!row) return;
  if (event.target.closest(".play")) toggleClip(row.dataset.clip);
  else if (scope) {
    const box = scope.getBoundingClientRect();
    playClip(row.dataset.clip, (event.clientX - box.left) / box.width);
  }
});
