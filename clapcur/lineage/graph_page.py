"""The page of a trace: what made an artifact, as a graph in one HTML file that needs nothing else.

Sources stand on the left, the artifact on the right. Every node opens to its figures; the page works from the disk and
without its script, which only lights up the way that led to a node.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from clapcur.lineage.graph_layout import Edge, Layout, layout
from clapcur.store import records
from clapcur.store.artifacts import write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home

NODE = (214, 70)  # px, width and height of a closed node
GAP = (92, 18)  # px, between columns and between nodes
EDGE_HEIGHT = 16  # px, room of an edge that passes a column
MARGIN = 12  # px, around the graph
COLOURS = {  # on light and on dark ground
    "manifest": ("#2f7d4f", "#6fc492"),
    "checkpoint": ("#1f6a96", "#6bb6e0"),
    "embeddings": ("#6c757d", "#9aa8b1"),
    "improvement_set": ("#a8620d", "#e3a556"),
    "scores": ("#7a4aa0", "#bd93e0"),
    "report": ("#a83262", "#ec8bb2"),
    "decision": ("#b3402a", "#f08a74"),
}
OTHER = ("#5a6872", "#9aa8b1")


@dataclass(frozen=True)
class Graph:
    """The tree of a trace with every artifact once.

    Attributes
    ----------
    nodes : dict of str to mapping
        By id; the first one is what was asked for.
    roles : dict of Edge to list of str
        From an input to what was made from it: the roles that it played.
    """

    nodes: dict[str, Mapping[str, Any]]
    roles: dict[Edge, list[str]]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Graph":
        """Return the graph of what `clapcur.lineage.queries.trace` returned."""
        nodes: dict[str, Mapping[str, Any]] = {}
        roles: dict[Edge, list[str]] = {}
        waiting = [tree]
        while waiting:
            node = waiting.pop(0)
            if node["id"] not in nodes or nodes[node["id"]].get("repeated"):
                nodes[node["id"]] = node
            for below in node["inputs"]:
                roles.setdefault((below["id"], node["id"]), []).append(below["role"])
                waiting.append(below)
        return cls(nodes, roles)


def write_page(home: Home, tree: Mapping[str, Any], path: Path) -> None:
    """Write the page of a trace."""
    catalog = Catalog.open(home)
    graph = Graph.of(tree)
    runs = {name: run for name in graph.nodes if (run := catalog.run_of(name))}
    write_atomic(path.absolute(), as_html(graph, runs))


def as_html(graph: Graph, runs: Mapping[str, str]) -> str:
    """Return the page.

    Parameters
    ----------
    graph : Graph
    runs : mapping of str to str
        MLflow runs by artifact, where there are any.
    """
    width, height = NODE
    placed = layout(
        list(graph.nodes), graph.roles, node_height=height + GAP[1], edge_height=EDGE_HEIGHT
    )  # fmt: skip
    root = next(iter(graph.nodes.values()))
    count = max(placed.column.values()) + 1
    size = 2 * MARGIN + count * width + (count - 1) * GAP[0], 2 * MARGIN + placed.height
    nodes = "\n".join(_node(graph, name, placed, runs.get(name), name == root["id"]) for name in graph.nodes)
    title = f"What made this {_spoken(root['kind'])}: {_name(root)}"
    kinds = Counter(node["kind"] for node in graph.nodes.values())
    legend = "".join(
        f'<li class="{_class(kind)}"><i></i>{number} {escape(_spoken(kind, number))}</li>'
        for kind, number in kinds.most_common()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)} {root["id"]}</title>
<style>{STYLE}{_colours()}</style>
<header>
<h1>{escape(title)} <code>{root["id"]}</code></h1>
<p>{escape(root["summary"])}</p>
<ul class="legend">{legend}<li class="hint">open a node for its figures; point at one to see what made it</li></ul>
</header>
<main><div class="graph" style="width:{size[0]}px;height:{size[1]:.0f}px">
<svg width="{size[0]}" height="{size[1]:.0f}" aria-hidden="true">{"".join(_paths(graph, placed))}</svg>
{nodes}
<svg class="above" width="{size[0]}" height="{size[1]:.0f}" aria-hidden="true">{"".join(_labels(graph, placed))}</svg>
</div></main>
<script>{SCRIPT}</script>
</html>
"""


def _node(graph: Graph, name: str, placed: Layout, run: str | None, is_root: bool) -> str:
    node = graph.nodes[name]
    left, top = _corner(name, placed)
    classes = ["node", _class(node["kind"]), *(["root"] if is_root else []), *(["lost"] if node.get("lost") else [])]
    summary = node["summary"]
    return f"""<details class="{" ".join(classes)}" id="a{name}" data-id="{name}" style="left:{left}px;top:{top:.0f}px">
<summary title="{escape(summary)}"><span class="kind">{escape(_spoken(node["kind"]))} <code>{name}</code></span>
<b>{escape(_name(node))}</b><small>{escape(summary) or "&nbsp;"}</small></summary>
<div class="more">{"".join(_details(graph, node, run))}</div></details>"""


def _name(node: Mapping[str, Any]) -> str:
    """Return what made a node, no word twice."""
    return " ".join(dict.fromkeys(str(node.get("label") or _spoken(node["kind"])).split()))


def _details(graph: Graph, node: Mapping[str, Any], run: str | None) -> Iterator[str]:
    if node.get("lost"):
        yield "<p>Its record is not in the store; run what made it again.</p>"
    thresholds = node.get("thresholds", {})
    metrics = records.flat(node.get("metrics", {}))
    figures = {
        "thresholds": thresholds,
        "metrics": {name: value for name, value in metrics.items() if name not in thresholds},
        "counts": records.flat(node.get("counts", {})),
    }
    for title, values in figures.items():
        if values:
            shown = "".join(f"<tr><th>{escape(name)}<td>{escape(_number(value))}" for name, value in values.items())
            yield f"<h2>{title}</h2><table>{shown}</table>"
    made_from = [(role, start) for (start, end), roles in graph.roles.items() if end == node["id"] for role in roles]
    if made_from:
        shown = "".join(
            f'<tr><th>{escape(role.replace("_", " "))}<td><a href="#a{start}"><code>{start}</code></a>'
            for role, start in made_from
        )
        yield f"<h2>made from</h2><table>{shown}</table>"
    if run:
        yield f"<h2>MLflow run</h2><p><code>{escape(run)}</code></p>"
    if uri := node.get("uri"):
        yield f'<h2>folder</h2><p><a href="{escape(Path(uri).as_uri())}">{escape(uri)}</a></p>'


def _paths(graph: Graph, placed: Layout) -> Iterator[str]:
    """Yield the edges: from the right of an input to the left of what was made from it, spread over its height."""
    into: dict[str, list[Edge]] = {}
    for edge in graph.roles:
        into.setdefault(edge[1], []).append(edge)
    for end, edges in into.items():
        edges.sort(key=lambda edge: placed.bends[edge][-1] if placed.bends[edge] else placed.y[edge[0]])
        for index, edge in enumerate(edges):
            port = placed.y[end] + (index - (len(edges) - 1) / 2) * min(10, (NODE[1] - 20) / len(edges))
            heights = [placed.y[edge[0]], *placed.bends[edge], port]
            yield (
                f'<path data-from="{edge[0]}" data-to="{end}" d="{_curve(placed.column[edge[0]], heights)}">'
                f"<title>{escape(', '.join(graph.roles[edge]))}</title></path>"
            )


def _curve(column: int, heights: list[float]) -> str:
    width, gap = NODE[0], GAP[0]
    x, y = MARGIN + column * (width + gap) + width, MARGIN + heights[0]
    parts = [f"M{x} {y:.1f}"]
    for index, height in enumerate(heights[1:], start=1):
        end = MARGIN + height
        parts.append(f"C{x + gap / 2:g} {y:.1f} {x + gap / 2:g} {end:.1f} {x + gap} {end:.1f}")
        x, y = x + gap, end
        if index < len(heights) - 1:
            x += width
            parts.append(f"H{x}")
    return "".join(parts)


def _labels(graph: Graph, placed: Layout) -> Iterator[str]:
    """Yield the roles; each stands beside the input, and is seen when what was made from it is pointed at."""
    for (start, end), roles in graph.roles.items():
        left, _ = _corner(start, placed)
        said = escape(", ".join(role.replace("_", " ") for role in roles))
        y = MARGIN + placed.y[start] - 5
        yield f'<text data-to="{end}" x="{left + NODE[0] + 6}" y="{y:.1f}">{said}</text>'


def _corner(name: str, placed: Layout) -> tuple[int, float]:
    return MARGIN + placed.column[name] * (NODE[0] + GAP[0]), MARGIN + placed.y[name] - NODE[1] / 2


def _class(kind: str) -> str:
    return f"k-{kind}" if kind in COLOURS else "k-other"


def _spoken(kind: str, number: int = 1) -> str:
    said = "Improvement-Set" if kind == "improvement_set" else kind.replace("_", " ")
    return said if number == 1 or said.endswith("s") else f"{said}s"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _colours() -> str:
    named = {f"k-{kind}": colours for kind, colours in COLOURS.items()} | {"k-other": OTHER}
    light = "".join(f".{name}{{--kind:{colours[0]}}}" for name, colours in named.items())
    dark = "".join(f".{name}{{--kind:{colours[1]}}}" for name, colours in named.items())
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}"


STYLE = """
:root { color-scheme: light dark; --paper: #f4f6f8; --card: #fff; --ink: #1b2329; --soft: #5a6872; --line: #b9c4cc;
  --accent: #1f6a96; --shadow: 0 1px 2px rgb(20 40 60 / .1); --lift: 0 8px 28px rgb(20 40 60 / .25); }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12171b; --card: #1a2126; --ink: #e6ebee; --soft: #9aa8b1; --line: #46535c; --accent: #6bb6e0;
    --shadow: none; --lift: 0 8px 28px rgb(0 0 0 / .6); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 14px/1.4 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { padding: 1.3rem 1.5rem .3rem; }
h1 { font-size: 1.4rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.012em; }
h1 code { font-size: .7em; font-weight: 400; color: var(--soft); padding-left: .3rem; }
header p { margin: 0; color: var(--soft); }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .7rem 0 0;
  font-size: .86rem; }
.legend i { display: inline-block; width: .65rem; height: .65rem; border-radius: 3px; background: var(--kind);
  margin-right: .4rem; }
.legend .hint { color: var(--soft); }
main { overflow: auto; padding: .4rem .8rem 2rem; }
.graph { position: relative; margin: 0 auto; }
svg { position: absolute; inset: 0; }
svg.above { z-index: 4; pointer-events: none; }
path { fill: none; stroke: var(--line); stroke-width: 1.5; }
path.on { stroke: var(--accent); stroke-width: 2.2; }
.lit path:not(.on) { opacity: .35; }
text { display: none; font-size: 11.5px; fill: var(--accent); paint-order: stroke; stroke: var(--paper);
  stroke-width: 5px; stroke-linejoin: round; }
text.on { display: block; }
.node { position: absolute; width: 214px; background: var(--card); border: 1px solid var(--line);
  border-left: 5px solid var(--kind); border-radius: 8px; box-shadow: var(--shadow); z-index: 2; }
.node.root { border-color: var(--kind); box-shadow: 0 0 0 2px var(--kind); }
.node.lost { border-style: dashed; }
.lit .node:not(.on) { opacity: .5; }
.node[open] { z-index: 5; width: 330px; box-shadow: var(--lift); opacity: 1 !important; }
.node[open].left { transform: translateX(-116px); }
summary { list-style: none; cursor: pointer; height: 68px; padding: .42rem .65rem; border-radius: 8px;
  overflow: hidden; }
summary::-webkit-details-marker { display: none; }
summary > * { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.kind { color: var(--kind); font-size: .76rem; }
.kind code { color: var(--soft); float: right; }
summary b { font-weight: 600; line-height: 1.35; }
summary small { color: var(--soft); font-size: .78rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.more { border-top: 1px solid var(--line); padding: .2rem .75rem .7rem; max-height: 24rem; overflow: auto; }
.more h2 { font-size: .74rem; font-weight: 600; color: var(--soft); margin: .6rem 0 .1rem; }
.more p { margin: 0; overflow-wrap: anywhere; font-size: .82rem; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; padding: .08rem .8rem .08rem 0; overflow-wrap: anywhere; }
td { text-align: right; padding: .08rem 0; vertical-align: top; }
a { color: var(--accent); }
"""
SCRIPT = """
const graph = document.querySelector('.graph'), nodes = [...graph.querySelectorAll('.node')];
const paths = [...graph.querySelectorAll('path')], labels = [...graph.querySelectorAll('text')];
const light = id => {
  const made = new Set(id ? [id] : []);
  for (const one of made) for (const path of paths) if (path.dataset.to === one) made.add(path.dataset.from);
  graph.classList.toggle('lit', Boolean(id));
  for (const node of nodes) node.classList.toggle('on', made.has(node.dataset.id));
  for (const path of paths) path.classList.toggle('on', made.has(path.dataset.to));
  for (const label of labels) label.classList.toggle('on', label.dataset.to === id);
};
const rest = () => light(graph.querySelector('.node[open]')?.dataset.id);
for (const node of nodes) {
  node.addEventListener('mouseenter', () => graph.querySelector('.node[open]') || light(node.dataset.id));
  node.addEventListener('mouseleave', rest);
  node.addEventListener('focusin', () => light(node.dataset.id));
  node.addEventListener('focusout', rest);
  node.addEventListener('toggle', () => {
    if (node.open) {
      for (const other of nodes) if (other !== node) other.open = false;
      node.classList.toggle('left', node.offsetLeft + 330 > graph.offsetWidth);
      graph.style.minHeight = `${node.offsetTop + node.offsetHeight + 12}px`;
      node.scrollIntoView({block: 'nearest', inline: 'nearest'});
    }
    if (!graph.querySelector('.node[open]')) graph.style.minHeight = '';
    rest();
  });
}
const show = () => { const node = document.getElementById(location.hash.slice(1)); if (node) node.open = true; };
addEventListener('hashchange', show);
addEventListener('keydown', event => { if (event.key === 'Escape') for (const node of nodes) node.open = false; });
const fit = () => {
  const room = document.querySelector('main').clientWidth - 26;
  graph.style.zoom = Math.max(.55, Math.min(1, room / graph.offsetWidth));
};
fit();
addEventListener('resize', () => { graph.style.zoom = 1; fit(); });
show();
"""
