"""Marks: judgements of listeners. A table with one line per pair that was judged on an audition page, or by hand.

==========  ======================================================================================
clip_id     the clip
caption_id  the caption
mark        ``wrong``: the caption does not describe the clip. ``right``: it does
similarity  of clip and caption in the set; may be empty
class       of the caption in the set; may be empty
==========  ======================================================================================

The audition page adds the columns caption and path, for people. A pair without a line was not judged, which does not
mean that it is right.
"""

from pathlib import Path
from typing import Literal

import pandas as pd

from clapcur.data.tables import cell_text, read_table
from clapcur.errors import DataError

COLUMNS = ("clip_id", "caption_id", "mark", "similarity", "class")
MARKS = ("wrong", "right")
Mark = tuple[str, str, Literal["wrong", "right"]]  # clip_id, caption_id, mark


def read_marks(path: Path | str) -> pd.DataFrame:
    """Read a table of marks, as the audition page exports it.

    Returns
    -------
    DataFrame
        `COLUMNS` in this order, all text except ``similarity`` (float, NaN if the cell is empty), one row per pair,
        sorted by clip_id and caption_id. Other columns and repeated lines are dropped.

    Raises
    ------
    DataError
        The file does not exist or is not a table, a column is missing, a mark is unknown, an id is empty, a similarity
        is not in [-1, 1], or a pair is marked both wrong and right.
    """
    table = _read_text(Path(path))
    for name in ("clip_id", "caption_id"):
        if len(empty := table.index[table[name] == ""]):
            raise DataError(f"{path}, line {empty[0]}: {name} is empty; a mark needs a clip and a caption")
    if len(unknown := table.index[~table["mark"].isin(MARKS)]):
        raise DataError(
            f"{path}, line {unknown[0]}: mark must be {' or '.join(MARKS)}, got {table['mark'][unknown[0]]!r}"
        )
    similarity = pd.to_numeric(table["similarity"].replace("", None), errors="coerce")
    if len(bad := table.index[(table["similarity"] != "") & ~similarity.between(-1, 1)]):
        raise DataError(
            f"{path}, line {bad[0]}: similarity must be a cosine in [-1, 1] or empty, got "
            f"{table['similarity'][bad[0]]!r}"
        )
    table = table.assign(similarity=similarity.astype("float64"))
    table = table.sort_values(["clip_id", "caption_id", "mark"], ignore_index=True)
    pairs = table.drop_duplicates(["clip_id", "caption_id", "mark"], ignore_index=True)
    if len(torn := pairs.index[pairs.duplicated(["clip_id", "caption_id"])]):
        clip, caption = pairs["clip_id"][torn[0]], pairs["caption_id"][torn[0]]
        raise DataError(
            f"{path} marks {len(torn)} pairs both wrong and right, such as clip {clip[:12]} with "
            f"caption {caption[:12]}; keep one line of each"
        )
    return pairs


def marks_from_file(path: Path | str) -> tuple[Mark, ...]:
    """Return the marks of a file in the form used in configs: they are part of a set's identity."""
    table = read_marks(path)
    return tuple(zip(table.clip_id, table.caption_id, table["mark"], strict=True))


def _read_text(path: Path) -> pd.DataFrame:
    """Read the known columns as stripped text, indexed by line number."""
    if not path.is_file():
        raise DataError(f"the table of marks {path} does not exist; export it from the audition page")
    header, rows = read_table(path)
    if missing := [name for name in COLUMNS if name not in header]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; a table of marks has {', '.join(COLUMNS)}, "
            f"got {', '.join(header)}"
        )
    cells = {
        line: [cell_text(row.get(name), f"{path}, line {line}, column {name!r}") for name in COLUMNS]
        for line, row in rows
    }
    table = pd.DataFrame.from_dict(cells, orient="index", columns=list(COLUMNS), dtype="str")
    ids = ["clip_id", "caption_id", "mark"]
    return table.assign(**{name: table[name].str.lower() for name in ids})  # ids are hexadecimal digits
