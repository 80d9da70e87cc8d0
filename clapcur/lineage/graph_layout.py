"""Layout of an acyclic graph: columns from left to right, few crossings, short straight edges.

Sugiyama's method: columns by the longest path; dummy nodes where an edge passes a column (one for all edges that leave
the same node, which share their route as far as possible); an order within columns by the mean position of the
neighbours; and positions as close to the neighbours as order and gaps allow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 24  # alternately to the right and to the left; the order with the fewest crossings is kept

Edge = tuple[str, str]  # (from, to); the first node is further left


@dataclass(frozen=True)
class Layout:
    """Positions of the nodes and edges.

    Attributes
    ----------
    column : dict of str to int
        Column of each node; 0 is leftmost.
    y : dict of str to float
        Vertical centre of each node, in the unit of the heights; 0 is the top of the graph.
    height : float
        Height of the whole graph.
    bends : dict of Edge to list of float
        Vertical positions at which an edge passes the columns between its ends, from left to right.
    """

    column: dict[str, int]
    y: dict[str, float]
    height: float
    bends: dict[Edge, list[float]]


def layout(nodes: Sequence[str], edges: Iterable[Edge], *, node_height: float, edge_height: float) -> Layout:
    """Lay out a graph.

    Parameters
    ----------
    nodes : sequence of str
    edges : iterable of (str, str)
        Edges without cycles and duplicates.
    node_height, edge_height : float
        Height of a node, and of an edge that passes a column, including the gap.
    """
    edges = list(edges)
    column = columns(nodes, edges)
    chains = {edge: _stand_ins(edge, column) for edge in edges}
    near: dict[str, list[str]] = {name: [] for name in nodes}
    rows: list[list[str]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    for name in nodes:
        rows[column[name]].append(name)
    for (start, end), between in chains.items():
        for place, name in enumerate(between, start=column[start] + 1):
            if name not in near:
                rows[place].append(name)
                near[name] = []
        way = [start, *between, end]
        for one, other in zip(way, way[1:], strict=False):
            if other not in near[one]:
                near[one].append(other)
                near[other].append(one)
    rows = _with_few_crossings(rows, near)
    heights = {name: node_height if name in column else edge_height for row in rows for name in row}
    y = _places(rows, near, heights)
    top = min((y[name] - heights[name] / 2 for name in y), default=0.0)
    bottom = max((y[name] + heights[name] / 2 for name in y), default=0.0)
    bends = {edge: [y[name] - top for name in between] for edge, between in chains.items()}
    return Layout(column, {name: y[name] - top for name in nodes}, bottom - top, bends)


def columns(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return the column of each node: right of its predecessors, and as close as possible to its successors."""
    before: dict[str, list[str]] = {name: [] for name in nodes}
    after: dict[str, list[str]] = {name: [] for name in nodes}
    for start, end in edges:
        before[end].append(start)
        after[start].append(end)
    column: dict[str, int] = {}
    for name in _sorted(nodes, before):
        column[name] = max((column[other] + 1 for other in before[name]), default=0)
    for name in _sorted(nodes, after):
        if after[name]:
            column[name] = min(column[other] for other in after[name]) - 1
    return column


def _sorted(nodes: Sequence[str], before: Mapping[str, Sequence[str]]) -> list[str]:
    from graphlib import TopologicalSorter

    return list(TopologicalSorter({name: before[name] for name in nodes}).static_order())


def _stand_ins(edge: Edge, column: Mapping[str, int]) -> list[str]:
    start, end = edge
    return [f"{start} > {place}" for place in range(column[start] + 1, column[end])]


def _with_few_crossings(rows: list[list[str]], near: Mapping[str, Sequence[str]]) -> list[list[str]]:
    best, fewest = rows, crossings(rows, near)
    for sweep in range(SWEEPS):
        rows = [list(row) for row in rows]
        order = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for index in order:
            beside = {name: place for place, name in enumerate(rows[index - 1 if sweep % 2 == 0 else index + 1])}
            here = {name: float(place) for place, name in enumerate(rows[index])}

            def mean(name: str, beside: Mapping[str, int] = beside, here: Mapping[str, float] = here) -> float:
                places = [beside[other] for other in near[name] if other in beside]
                return sum(places) / len(places) if places else here[name]

            rows[index].sort(key=mean)
        if (count := crossings(rows, near)) < fewest:
            best, fewest = rows, count
    return best


def crossings(rows: Sequence[Sequence[str]], near: Mapping[str, Sequence[str]]) -> int:
    """Count the pairs of edges between neighbouring columns that cross."""
    count = 0
    for left, right in zip(rows, rows[1:], strict=False):
        place = {name: index for index, name in enumerate(right)}
        ends = [sorted(place[other] for other in near[name] if other in place) for name in left]
        seen: list[int] = []
        for of_one in ends:
            count += sum(1 for end in of_one for other in seen if other > end)
            seen += of_one
    return count


def _places(
    rows: Sequence[Sequence[str]], near: Mapping[str, Sequence[str]], heights: Mapping[str, float]
) -> dict[str, float]:
    y: dict[str, float] = {}
    for row in rows:
        bottom = 0.0
        for name in row:
            y[name] = bottom + heights[name] / 2
            bottom += heights[name]
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wished = [
                sum(y[other] for other in near[name]) / len(near[name]) if near[name] else y[name] for name in row
            ]
            y |= zip(row, spread(wished, [heights[name] for name in row]), strict=True)
    return y


def spread(wished: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return positions in the given order that do not overlap and are closest to the wished ones (least squares).

    This is isotonic regression of the wished positions minus the space that the items above need.
    """
    offsets, bottom = [], 0.0
    for height in heights:
        offsets.append(bottom + height / 2)
        bottom += height
    blocks: list[tuple[float, int]] = []  # sum and number of adjacent items that touch
    for wish, offset in zip(wished, offsets, strict=True):
        total, count = wish - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            above, more = blocks.pop()
            total, count = total + above, count + more
        blocks.append((total, count))
    moved = [total / count for total, count in blocks for _ in range(count)]
    return [move + offset for move, offset in zip(moved, offsets, strict=True)]
