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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from clapcur.data.tables import cell_text, read_table
from clapcur.errors import DataError

COLUMNS = ("clip_id", "caption_id", "mark", "similarity", "class")
TEXTS = ("caption", "path")  # columns for people, which need not be there
PAIR = ["clip_id", "caption_id"]
MARKS = ("wrong", "right")
Mark = tuple[str, str, Literal["wrong", "right"]]  # clip_id, caption_id, mark


def read_marks(path: Path | str, with_texts: bool = False) -> pd.DataFrame:
    """Read a table of marks, as the audition page exports it.

    Parameters
    ----------
    path : Path or str
    with_texts : bool
        Whether to read the columns `TEXTS` too; they are empty if the table does not have them.

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
    table = _read_text(Path(path), TEXTS if with_texts else ())
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
    table = table.sort_values([*PAIR, "mark"], kind="stable")
    pairs = table.drop_duplicates([*PAIR, "mark"])
    if len(torn := pairs[pairs.duplicated(PAIR, keep=False)]):
        first, second = sorted(torn.index[:2].tolist())
        one = torn.iloc[0]
        raise DataError(
            f"{path} marks {len(torn) // 2} pairs both wrong and right, such as clip {one['clip_id'][:12]} with "
            f"caption {one['caption_id'][:12]} (lines {first} and {second}); keep one "
            "line of each"
        )
    return pairs.reset_index(drop=True)


@dataclass(frozen=True)
class Merged:
    """The marks of several people.

    Attributes
    ----------
    votes : DataFrame
        One row per pair that somebody marked, indexed by clip_id and caption_id; one column per person with ``right``,
        ``wrong`` or None (not marked).
    about : DataFrame
        Similarity, class, caption and path of the same pairs, each from the first person whose table has it.
    """

    votes: pd.DataFrame
    about: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """`COLUMNS`, `TEXTS`, num_right and num_wrong of every pair with a majority, for `read_marks`."""
        counts = self.counts
        counts = counts[counts.num_right != counts.num_wrong]
        mark = (counts.num_right > counts.num_wrong).map({True: "right", False: "wrong"})
        table = self.about.loc[counts.index].assign(mark=mark).join(counts).reset_index()
        return table[[*COLUMNS, *TEXTS, "num_right", "num_wrong"]]

    @property
    def counts(self) -> pd.DataFrame:
        """How many people marked each pair right and wrong."""
        return pd.DataFrame({f"num_{mark}": (self.votes == mark).sum(axis=1) for mark in MARKS})

    @property
    def disagreements(self) -> pd.DataFrame:
        """The votes on the pairs that are right to some and wrong to others."""
        return self.votes[(self.counts > 0).all(axis=1)]

    @property
    def ties(self) -> pd.DataFrame:
        """The votes on the pairs that are right to as many as they are wrong to; `table` leaves them out."""
        counts = self.counts
        return self.votes[counts.num_right == counts.num_wrong]


def merge_marks(tables: Mapping[str, pd.DataFrame]) -> Merged:
    """Merge the marks of several people.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        The marks of each person by name, as `read_marks` returns them with texts.
    """
    votes = pd.DataFrame({name: table.set_index(PAIR)["mark"] for name, table in tables.items()}, dtype=object)
    votes = votes.sort_index()
    known = pd.concat(list(tables.values()))[[*PAIR, "similarity", "class", *TEXTS]]
    about = known.replace("", None).groupby(PAIR, sort=True).first().reindex(votes.index)
    texts = ["class", *TEXTS]
    return Merged(votes.where(votes.notna(), None), about.assign(**{name: about[name].fillna("") for name in texts}))


def marks_from_file(path: Path | str) -> tuple[Mark, ...]:
    """Return the marks of a file in the form used in configs: they are part of a set's identity."""
    table = read_marks(path)
    return tuple(zip(table.clip_id, table.caption_id, table["mark"], strict=True))


def _read_text(path: Path, texts: tuple[str, ...]) -> pd.DataFrame:
    """Read the known columns as stripped text, indexed by line number; those in `texts` may be missing."""
    if not path.is_file():
        raise DataError(f"the table of marks {path} does not exist; export it from the audition page")
    header, rows = read_table(path)
    if missing := [name for name in COLUMNS if name not in header]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; a table of marks has {', '.join(COLUMNS)}, "
            f"got {', '.join(header)}"
        )
    names = [*COLUMNS, *texts]
    cells = {
        line: [cell_text(row.get(name), f"{path}, line {line}, column {name!r}") for name in names]
        for line, row in rows
    }
    table = pd.DataFrame.from_dict(cells, orient="index", columns=names, dtype="str")
    ids = ["clip_id", "caption_id", "mark"]
    return table.assign(**{name: table[name].str.lower() for name in ids})  # ids are hexadecimal digits
