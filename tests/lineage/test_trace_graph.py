"""The page of a trace: every artifact once, laid out so that people can read it, with nothing from elsewhere."""

import re
from html.parser import HTMLParser

import chain
import pytest
from browser import chromium
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.lineage.graph_layout import columns, crossings, layout, spread
from clapcur.lineage.graph_page import Graph, as_html, write_page
from clapcur.lineage.queries import trace
from clapcur.store.catalog import Catalog

RUN = "5eed" * 8


def node(name, *inputs, role="", **more):
    return {
        "id": name, "kind": "manifest", "role": role, "label": f"ingest {name}", "uri": f"/store/{name}",
        "summary": "", "counts": {}, "metrics": {}, "thresholds": {}, "inputs": list(inputs),
    } | more  # fmt: skip


# -- the layout


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 14))
    names = [f"n{number}" for number in range(count)]
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    return names, draw(st.lists(st.sampled_from(pairs), unique=True, max_size=30)) if pairs else []


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_inputs_stand_left_and_nothing_overlaps(graph):
    """Boxes on top of each other hide the very artifact that is looked for."""
    names, edges = graph
    placed = layout(names, edges, node_height=80, edge_height=16)
    assert all(placed.column[start] < placed.column[end] for start, end in edges)
    assert placed.column.keys() == placed.y.keys() == set(names)
    for column in set(placed.column.values()):
        boxes = {name: (placed.y[name], 80) for name in names if placed.column[name] == column}
        for (start, end), bends in placed.bends.items():
            if placed.column[start] < column < placed.column[end]:  # edges of one node run together
                boxes[f"from {start}"] = (bends[column - placed.column[start] - 1], 16)
        places = sorted(boxes.values())
        for (one, high), (other, low) in zip(places, places[1:], strict=False):
            assert other - one >= (high + low) / 2 - 1e-6
        assert min(y - high / 2 for y, high in places) >= -1e-6
        assert max(y + high / 2 for y, high in places) <= placed.height + 1e-6
    for (start, end), bends in placed.bends.items():
        assert len(bends) == placed.column[end] - placed.column[start] - 1


def test_an_input_stands_just_before_what_was_made_from_it_first():
    """A manifest that only the last training reads would send its edge across the whole page."""
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("late", "d"), ("a", "d")]
    assert columns(["d", "c", "b", "a", "late"], edges) == {"a": 0, "b": 1, "c": 2, "late": 2, "d": 3}


def test_crossings_that_need_not_be_are_taken_out():
    near = {"a": ["y"], "b": ["x"], "x": ["b"], "y": ["a"]}
    assert crossings([["a", "b"], ["x", "y"]], near) == 1
    assert crossings([["a", "b"], ["y", "x"]], near) == 0
    names = [f"{side}{number}" for side in "lr" for number in range(6)]
    edges = [(f"l{number}", f"r{5 - number}") for number in range(6)]
    placed = layout(names, edges, node_height=10, edge_height=2)
    assert all(placed.y[start] == pytest.approx(placed.y[end]) for start, end in edges)


@pytest.mark.parametrize(
    ("wished", "places"),
    [([0, 100], [0, 100]), ([50, 50], [45, 55]), ([3, 2, 1], [-8, 2, 12]), ([0, 4, 100], [-3, 7, 100]), ([], [])],
)
def test_places_lie_as_near_to_the_wishes_as_the_room_allows(wished, places):
    assert spread(wished, [10] * len(wished)) == pytest.approx(places)


# -- the graph


def test_an_artifact_that_stands_twice_in_the_tree_is_one_node_with_both_ways():
    """The tree prints a teacher four times; drawn so, the page says that there were four."""
    shared = node("t", node("p", role="teacher_pairs"), role="checkpoint")
    again = {**node("t", role="init"), "repeated": True}
    twice = {**node("t", role="teacher"), "repeated": True}
    graph = Graph.of(node("s", again, twice, node("e", shared, role="pool_embeddings")))
    assert list(graph.nodes) == ["s", "t", "e", "p"]
    assert not graph.nodes["t"].get("repeated")
    assert graph.roles == {
        ("t", "s"): ["init", "teacher"], ("e", "s"): ["pool_embeddings"], ("t", "e"): ["checkpoint"],
        ("p", "t"): ["teacher_pairs"],
    }  # fmt: skip


# -- the page


@pytest.fixture
def made(home):
    made = chain.experiment(home)
    Catalog.open(home).set_run(made["student"].id, RUN)
    return made


@pytest.fixture
def page(home, made, tmp_path):
    path = tmp_path / "trace.html"
    write_page(home, trace(home, made["student_scores"].id), path)
    return path


def test_every_artifact_of_the_tree_is_on_the_page_once_with_its_figures(home, made, page):
    text = page.read_text()
    tree = trace(home, made["student_scores"].id)
    expected = set(Graph.of(tree).nodes)
    drawn = re.findall(r'<details [^>]*data-id="(\w+)"', text)
    assert sorted(drawn) == sorted(expected) and len(expected) > 8
    edges = re.findall(r'<path data-from="(\w+)" data-to="(\w+)"', text)
    inputs = {(below, name) for name in expected for below in home.store.find(name).record.inputs.values()}
    assert sorted(edges) == sorted(inputs)
    of_set = text.partition(f'id="a{made["set"].id}"')[2].partition("</details>")[0]
    assert "<th scope=row>threshold.audio<td>0.41" in of_set and "<th scope=row>pairs<td>3" in of_set
    assert of_set.count("threshold.audio<td>") == 1  # a threshold is not told again as a metric
    assert f'href="{made["set"].path.as_uri()}"' in of_set
    assert f"<code>{RUN}</code>" in text.partition(f'id="a{made["student"].id}"')[2].partition("</details>")[0]


def test_the_page_needs_nothing_from_elsewhere(page):
    """A page that was sent to somebody is opened years later, without a network."""
    asked = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            asked.extend(
                (tag, value) for name, value in attributes if name in ("src", "href", "data", "action", "poster")
            )
            if tag in ("link", "iframe", "img", "object"):
                asked.append((tag, ""))

    Reader().feed(page.read_text())
    assert asked and all(tag == "a" and value.startswith(("#a", "file://")) for tag, value in asked)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_names_from_people_are_text_and_no_markup():
    """A class or a folder called <script> must not run."""
    evil = "<script>alert(1)</script>"
    tree = node("a", node("b", role=evil), label=evil, summary=evil, counts={evil: 1}, metrics={evil: 0.5}, kind=evil)
    text = as_html(Graph.of(tree), {"a": evil})
    assert text.count("<script>") == 1 and "alert(1)</" not in text


def test_a_lost_input_is_drawn_as_lost():
    lost = {"id": "gone", "kind": "unknown", "role": "init", "lost": True, "summary": "not there", "inputs": []}
    text = as_html(Graph.of(node("a", lost)), {})
    assert re.search(r'class="node k-other lost" id="agone"', text)
    assert "Its record is not in the store" in text


def test_people_open_a_node_and_see_what_made_it(page, made):
    """Looked at in a browser: the script, the style and the security policy of the page must agree."""
    with chromium() as browser:
        browser.open(page.as_uri())
        student, chosen = made["student"].id, made["set"].id
        opened = f"document.getElementById('a{student}').open"
        assert browser.run(opened) is False
        browser.run(f"document.querySelector('#a{student} summary').click()")
        browser.wait(opened)
        lit = "[...document.querySelectorAll('.node.on')].map(node => node.dataset.id)"
        browser.wait(f"{lit}.length > 1")
        inside = set(browser.run(lit))
        assert {student, chosen, made["teacher"].id} <= inside and made["student_scores"].id not in inside
        shown = browser.run("[...document.querySelectorAll('text.on')].map(text => text.textContent)")
        assert {"improvement set", "init, teacher", "pool", "teacher pairs"} == set(shown)
        browser.run(f"document.querySelector('#a{student} a[href=\"#a{chosen}\"]').click()")
        browser.wait(f"document.getElementById('a{chosen}').open && !{opened}")
        browser.press("Escape")
        browser.wait("!document.querySelector('.node[open]')")
        assert [url for url in browser.requested() if not url.startswith("file:")] == []
        assert browser.complaints() == []
        overlaps = browser.run(
            "(() => { const boxes = [...document.querySelectorAll('.node')].map(n => n.getBoundingClientRect());"
            "return boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right"
            " && a.top < b.bottom && b.top < a.bottom)); })()"
        )
        assert overlaps is False
        browser.size(390)
        browser.run("dispatchEvent(new Event('resize'))")
        assert browser.cut_off() == []
        lefts = browser.run("[...document.querySelectorAll('.node')].map(node => node.getBoundingClientRect().left)")
        assert len(set(lefts)) == 1  # on a phone a list
        assert [role for role, name in browser.controls() if not name] == []
