"""The style of the audition page, for light and for dark surroundings."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #f4f6f8; --card: #ffffff; --ink: #1b2329; --soft: #5a6872; --line: #dde4e9; --accent: #1f6a96;
  --accent-soft: #e3eff6; --wrong: #b3402a; --wrong-soft: #fbe9e5; --right: #2c7a4b; --right-soft: #e4f3ea;
  --shadow: 0 1px 2px rgb(20 40 60 / .07); }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12171b; --card: #1a2126; --ink: #e6ebee; --soft: #9aa8b1; --line: #2c363d; --accent: #6bb6e0;
    --accent-soft: #1d3442; --wrong: #f08a74; --wrong-soft: #3a221d; --right: #74c795; --right-soft: #1c3226;
    --shadow: none; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.55rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.012em; }
h1 code { font-size: .72em; font-weight: 400; color: var(--soft); padding-left: .35rem; }
p { margin: 0 0 .5rem; max-width: 56rem; }
.lead { color: var(--soft); max-width: none; }
.note { border-left: 3px solid var(--wrong); padding-left: .75rem; }
code, kbd { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
kbd { border: 1px solid var(--line); border-bottom-width: 2px; border-radius: 4px; padding: 0 .3em;
  background: var(--card); color: var(--soft); }
dl.facts { display: flex; flex-wrap: wrap; gap: .5rem 1.9rem; margin: .9rem 0 .8rem; }
dl.facts div { display: flex; flex-direction: column; }
dl.facts dt { color: var(--soft); font-size: .78rem; }
dl.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
details { margin: .5rem 0; max-width: 56rem; }
summary { cursor: pointer; color: var(--accent); width: max-content; border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }

.tools { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  margin-top: .7rem; }
.tools form { max-width: 72rem; margin: 0 auto; padding: .6rem 1.25rem; display: flex; flex-wrap: wrap;
  gap: .5rem .7rem; align-items: end; }
.tools label { display: flex; flex-direction: column; font-size: .74rem; color: var(--soft); gap: .1rem; }
.tools .search { flex: 1 1 9rem; }
.tools .end { margin-left: auto; display: flex; gap: .5rem; }
select, input[type=search], button { font: inherit; font-size: .88rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .32rem .55rem; min-height: 2.1rem; }
select { max-width: 13rem; }
input[type=search] { width: 100%; }
input[type=checkbox] { accent-color: var(--accent); width: 1rem; height: 1rem; margin: 0; }
button { cursor: pointer; }
button:hover, select:hover { border-color: var(--accent); }
button.main { background: var(--accent); border-color: var(--accent); color: var(--card); font-weight: 600; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.state { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; justify-content: space-between; color: var(--soft);
  font-size: .85rem; margin: .8rem 0 .5rem; min-height: 1.3rem; }
.keys { display: flex; flex: 1 1 100%; flex-wrap: wrap; gap: .1rem .9rem; }
.keys label { display: inline-flex; align-items: center; gap: .35rem; }

ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .45rem; }
.pair { display: grid; grid-template-columns: 2.6rem 16rem minmax(0, 1fr) 8.6rem auto; gap: .3rem .95rem;
  align-items: center; background: var(--card); border: 1px solid var(--line); border-left: 4px solid transparent;
  border-radius: 8px; padding: .5rem .8rem .5rem .6rem; box-shadow: var(--shadow); scroll-margin: 9rem 0 2rem; }
.pair:focus { outline: none; }
.pair[aria-current=true] { border-color: var(--accent); border-left-color: var(--accent); }
.pair[data-mark=wrong] { background: var(--wrong-soft); }
.pair[data-mark=right] { background: var(--right-soft); }
.play { width: 2.5rem; height: 2.5rem; border-radius: 50%; padding: 0; display: grid; place-items: center;
  background: var(--accent-soft); border-color: transparent; color: var(--accent); }
.play svg { width: 1rem; height: 1rem; fill: currentColor; }
.play .pause, .playing .play .start { display: none; }
.playing .play .pause { display: block; }
.playing .play { background: var(--accent); color: var(--card); }
.scope { position: relative; height: 4rem; border-radius: 5px; overflow: hidden; background: #000004; cursor: pointer; }
.scope img { width: 100%; height: 100%; display: block; image-rendering: auto; }
.scope i { position: absolute; top: 0; bottom: 0; left: calc(var(--at, 0) * 100%); width: 2px; background: #fff;
  box-shadow: 0 0 0 1px rgb(0 0 0 / .45); opacity: 0; }
.begun .scope i { opacity: 1; }
.silent .scope { background: none; border: 1px dashed var(--line); cursor: default; }
.silent .why { display: grid; place-items: center; height: 100%; padding: 0 .6rem; text-align: center;
  font-size: .78rem; line-height: 1.25; color: var(--soft); overflow: hidden; }
.caption { margin: 0; font-size: 1.02rem; font-weight: 550; overflow-wrap: anywhere; }
.about { margin: .15rem 0 0; color: var(--soft); font-size: .82rem; display: flex; flex-wrap: wrap; gap: .1rem .7rem; }
.about .place { overflow-wrap: anywhere; }
.about b { color: var(--accent); font-weight: 600; }
.scores { font-variant-numeric: tabular-nums; line-height: 1.25; }
.scores strong { font-size: 1.12rem; }
.scores small { display: block; color: var(--soft); font-size: .77rem; }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--line); margin: .22rem 0; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.reason { font-size: .74rem; color: var(--soft); border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .5rem; margin-left: .4rem; font-weight: 400; vertical-align: 2px; background: var(--card); }
.marks { display: flex; gap: .35rem; }
.marks button { padding: .3rem .6rem; }
.marks [aria-pressed=true] { color: var(--card); }
.marks [aria-pressed=true][data-mark=wrong] { background: var(--wrong); border-color: var(--wrong); }
.marks [aria-pressed=true][data-mark=right] { background: var(--right); border-color: var(--right); }
.none { text-align: center; color: var(--soft); padding: 3rem 0; }
footer { color: var(--soft); font-size: .85rem; padding-top: 1.6rem; padding-bottom: 3rem; }

dialog { color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.2rem; width: min(46rem, 92vw); }
dialog::backdrop { background: rgb(0 0 0 / .45); }
dialog textarea { width: 100%; height: 14rem; font: .82rem/1.4 ui-monospace, Menlo, Consolas, monospace; color: inherit;
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; white-space: pre; }
dialog .end { display: flex; gap: .5rem; justify-content: end; align-items: center; margin-top: .7rem; }
dialog .end span { margin-right: auto; color: var(--soft); }

@media (max-width: 64rem) {
  .pair { grid-template-columns: 2.6rem 12rem minmax(0, 1fr) 7.6rem; }
  .marks { grid-column: 3 / -1; justify-content: end; } }
@media (max-width: 44rem) {
  .tools { position: static; }
  .pair { grid-template-columns: 2.6rem minmax(0, 1fr); scroll-margin: 1rem; }
  .said, .scores, .marks { grid-column: 1 / -1; }
  .marks { justify-content: start; } }
@media (prefers-reduced-motion: no-preference) {
  .pair, button { transition: background-color .12s, border-color .12s; } }
"""
