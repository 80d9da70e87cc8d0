"""The page of a trace: what an artifact was made from, as a graph in one self-contained HTML file.

Sources are on the left, the artifact is on the right. Every node opens to show its numbers. The page works from disk
and without its script, which only highlights the path that led to a node.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapcur.lineage.graph_layout import Edge, Layout, layout
from clapcur.pages import render
from clapcur.store import readable
from clapcur.store.artifacts import write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home

NODE = (200, 74)  # px, width and height of a closed node
GAP = (60, 16)  # px, between columns and between nodes
EDGE_HEIGHT = 16  # px, height of an edge that passes a column
MARGIN = 12  # px, around the graph
COLOURS = {  # on a light and on a dark background
    "manifest": ("#2f7d4f", "#6fc492"),
    "checkpoint": ("#1f6a96", "#6bb6e0"),
    "embeddings": ("#6c757d", "#9aa8b1"),
    "improvement_set": ("#a8620d", "#e3a556"),
    "tagger": ("#1f6a96", "#6bb6e0"),
    "captioner": ("#1f6a96", "#6bb6e0"),
    "tags": ("#3d7a8c", "#7fc3d4"),
    "compositions": ("#8a6d1a", "#d6b95c"),
    "scores": ("#7a4aa0", "#bd93e0"),
    "order_scores": ("#7a4aa0", "#bd93e0"),
    "report": ("#a83262", "#ec8bb2"),
    "decision": ("#b3402a", "#f08a74"),
}
OTHER = ("#5a6872", "#9aa8b1")


@dataclass(frozen=True)
class Graph:
    """The tree of a trace as a graph, with every artifact once.

    Attributes
    ----------
    nodes : dict of str to mapping
        Nodes of the tree by id; the first is the traced artifact.
    roles : dict of Edge to list of str
        Roles of an input in an artifact that was made from it.
    """

    nodes: dict[str, Mapping[str, Any]]
    roles: dict[Edge, list[str]]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Graph":
        """Return the graph of a tree as returned by `clapcur.lineage.queries.trace`."""
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
    """Write the page of a trace.

    Parameters
    ----------
    home : Home
    tree : mapping
        Tree as returned by `clapcur.lineage.queries.trace`.
    path : Path
    """
    catalog = Catalog.open(home)
    graph = Graph.of(tree)
    runs = {name: run for name in graph.nodes if (run := catalog.run_of(name))}
    write_atomic(path.absolute(), as_html(graph, runs))


def as_html(graph: Graph, runs: Mapping[str, str]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    graph : Graph
    runs : mapping of str to str
        Ids of MLflow runs by artifact, for artifacts that have one.
    """
    width, height = NODE
    placed = layout(
        list(graph.nodes), graph.roles, node_height=height + GAP[1], edge_height=EDGE_HEIGHT
    )  # fmt: skip
    root = next(iter(graph.nodes.values()))
    count = max(placed.column.values()) + 1
    kinds = Counter(node["kind"] for node in graph.nodes.values())
    return render(
        "lineage.html",
        root=root,
        title=f"What made this {_spoken(root['kind'])}: {_name(root)}",
        legend=[(_class(kind), f"{number} {_spoken(kind, number)}") for kind, number in kinds.most_common()],
        colours={f"k-{kind}": colours for kind, colours in COLOURS.items()} | {"k-other": OTHER},
        size=(2 * MARGIN + count * width + (count - 1) * GAP[0], round(2 * MARGIN + placed.height)),
        edges=list(_edges(graph, placed)),
        nodes=[_node(graph, name, placed, runs.get(name), name == root["id"]) for name in graph.nodes],
        labels=list(_labels(graph, placed)),
    )


def _node(graph: Graph, name: str, placed: Layout, run: str | None, is_root: bool) -> dict[str, Any]:
    node = graph.nodes[name]
    left, top = _corner(name, placed)
    is_lost = bool(node.get("lost"))
    uri = node.get("uri")
    return {
        "id": name,
        "classes": " ".join(
            ["node", _class(node["kind"]), *(["root"] if is_root else []), *(["lost"] if is_lost else [])]
        ),
        "left": left,
        "top": round(top),
        "kind": _spoken(node["kind"]),
        "name": _name(node),
        "summary": node["summary"],
        "is_lost": is_lost,
        "figures": _figures(node),
        "made_from": [
            (role.replace("_", " "), start)
            for (start, end), roles in graph.roles.items()
            if end == name
            for role in roles
        ],
        "run": run,
        "folder": (Path(uri).as_uri(), uri) if uri else None,
    }


def _name(node: Mapping[str, Any]) -> str:
    """Return the label of a node without repeated words."""
    return " ".join(dict.fromkeys(str(node.get("label") or _spoken(node["kind"])).replace("_", " ").split()))


def _figures(node: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the numbers of a node by heading, as texts; thresholds are not repeated as metrics."""
    thresholds = node.get("thresholds", {})
    metrics = readable.flat(node.get("metrics", {}))
    figures = {
        "thresholds": thresholds,
        "metrics": {name: value for name, value in metrics.items() if name not in thresholds},
        "counts": readable.flat(node.get("counts", {})),
    }
    return {
        title: {name: _number(value) for name, value in values.items()} for title, values in figures.items() if values
    }


def _edges(graph: Graph, placed: Layout) -> Iterator[dict[str, str]]:
    """Yield the edges, from the right side of an input to the left side of its result, spread over its height."""
    into: dict[str, list[Edge]] = {}
    for edge in graph.roles:
        into.setdefault(edge[1], []).append(edge)
    for end, edges in into.items():
        edges.sort(key=lambda edge: placed.bends[edge][-1] if placed.bends[edge] else placed.y[edge[0]])
        for index, edge in enumerate(edges):
            port = placed.y[end] + (index - (len(edges) - 1) / 2) * min(10, (NODE[1] - 20) / len(edges))
            heights = [placed.y[edge[0]], *placed.bends[edge], port]
            curve = _curve(placed.column[edge[0]], heights)
            yield {"start": edge[0], "end": end, "curve": curve, "roles": ", ".join(graph.roles[edge])}


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


def _labels(graph: Graph, placed: Layout) -> Iterator[dict[str, str]]:
    """Yield the roles as labels next to the inputs; a label is visible while the pointer is on the result."""
    for (start, end), roles in graph.roles.items():
        left, _ = _corner(start, placed)
        text = ", ".join(role.replace("_", " ") for role in roles)
        yield {"end": end, "x": f"{left + NODE[0] + 6}", "y": f"{MARGIN + placed.y[start] - 5:.1f}", "text": text}


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
