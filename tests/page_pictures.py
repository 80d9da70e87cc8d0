"""Pictures of the pages that people look at, for docs/pages.md: wide and narrow, in light and in dark surroundings.

They show the pages of a demo, drawn with the templates of this checkout::

    clapcur demo --home /tmp/demo
    PYTHONPATH=. python tests/page_pictures.py /tmp/demo
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from browser import chromium
from PIL import Image
from source_tree import ROOT

FOLDER = ROOT / "docs/images/pages"
SIZES = {1280: 900, 390: 844}  # px, width: height
SCHEMES = ("light", "dark")
MOST_BYTES, COLOURS = 100_000, (256, 128, 64, 32)
NAMES = ("report", "trace", "audition", "hits", "map")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="a home in which `clapcur demo` has run")
    parser.add_argument("names", nargs="*", default=NAMES, help="pages; default: all of them")
    given = parser.parse_args()
    os.environ["CLAPCUR_HOME"] = str(given.home.absolute())
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium("--hide-scrollbars") as browser:
        for name, page in pages(Path(folder), given.names):
            for width, height in SIZES.items():
                for scheme in SCHEMES:
                    browser.open(page.as_uri())
                    browser.size(width, height, scheme)
                    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                    if name == "map" and width > 1000:
                        browser.run("document.getElementById('map').scrollIntoView({block: 'end'})")
                    taken = browser.call("Page.captureScreenshot", format="png")["data"]
                    small = as_small_png(base64.b64decode(taken))
                    (FOLDER / f"{name}-{width}-{scheme}.png").write_bytes(small)
                    print(f"{name}-{width}-{scheme}.png: {len(small):,} bytes")


def pages(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Make the pages of a demo's home, and yield name and file of each."""
    from clapcur.data.report_table import ReportTable
    from clapcur.stages.report.html import as_html
    from clapcur.store.home import Home

    (newest,) = clapcur("ls", "report", "--limit", 1)
    made = Home.open().store.find(newest["id"])
    table = ReportTable.open(made)
    best = table.best or table.rows[-1]
    student = best.by_seed[0].checkpoint
    chosen = next(row.by_seed[0].improvement_set for row in table.rows if row.name == "ADS")
    page = {name: folder / f"{name}.html" for name in NAMES}
    for name in names:
        if name == "report":
            page[name].write_text(as_html(table, made.path), encoding="utf-8")
        elif name == "trace":
            clapcur("trace", student, "--html", page[name])
        elif name == "audition":
            page[name] = Path(clapcur("audition", chosen)["page"].removeprefix("file://"))
        elif name == "hits":
            pool = Home.open().store.find(chosen).record.inputs["pool"]
            clapcur("search", "a dog barks", pool, "--model", student, "--limit", 20, "--page", page[name])
        else:
            clapcur("map", chosen, page[name])
        yield name, page[name]


def clapcur(*arguments: object) -> Any:
    """Run a command and return the first line of its result."""
    program = [sys.executable, "-c", "from clapcur.cli import main; main()"]
    done = subprocess.run([*program, *map(str, arguments), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[0])


def as_small_png(content: bytes) -> bytes:
    """Return a picture as PNG with a palette: as many of `COLOURS` as fit into `MOST_BYTES`."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for number in COLOURS:
        file = io.BytesIO()
        picture.quantize(number, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    return file.getvalue()


if __name__ == "__main__":
    main()
