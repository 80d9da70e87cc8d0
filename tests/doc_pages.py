"""The pages of the documentation."""

from source_tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


TEXT = {path: path.read_text() for path in PAGES}
