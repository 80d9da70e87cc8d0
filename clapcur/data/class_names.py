"""Class names and class prompts: one place for the rules that change zero-shot scores by points.

The prompt template alone changed the accuracy on UrbanSound8K by 20 points in public experiments, so the names, the
template and the hash of both are part of every score's protocol.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from clapcur.config import signature
from clapcur.errors import DataError
from clapcur.sequences import list_of_texts
from clapcur.textfiles import read_text

PROMPT = "this is a sound of {}"  # Wang et al. 2023, section 3.2
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
NUMBERED = re.compile(r'"?\d+"?\s*[,;]')  # an index before the name
LISTS = Path(__file__).with_name("class_lists")
# The signature of each built-in list: the ``class_names_sha256`` of a score's protocol. Order and spelling follow the
# reference code (dataset/label_encoder_*.txt of zhepeiw/clap_curation @70f5d30).
CLASS_LISTS = {
    "esc50": "70c42b8d58c1622acb04c068bc7055663a6b136aa67f2863d3f2f4ab654758a1",
    "tau2019": "5fd8a62ed0c970a0413cea6a060ef6a8d512f91bc7dd7d174c63b6231ed7e97d",
    "tut2017": "aef834a64dddf62b787508254757a137ecb5e2f51b7c3af52d13a4e7f3f9231b",
    "urbansound8k": "03cab2a8098b63ff06caa64fedc9f1fd4ae2783991232fd03980aac4da897c3f",
    "vggsound": "6f70ce92181b63dba0fa6d1006ef782d36c86f9d203fda564a6872d5320e6fa6",
}


def readable(name: str) -> str:
    """Return a class name in plain words: Unicode NFC, with `_` and `/` replaced by spaces as in the reference code."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").replace("/", " ").split())


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """Read a class-name file: one name per line; blank lines and lines that start with # are ignored.

    Raises
    ------
    DataError
        The file does not exist, is not text or is a table; there are fewer than two names, or a name is repeated.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the class-name file {path} {found}; give a text file with one class name per line")
    lines = [line for line in map(str.strip, read_text(path).splitlines()) if line and not line.startswith("#")]
    if path.suffix.lower() in TABLES or _looks_like_a_table(lines):
        raise DataError(
            f"{path} looks like a table: its first line is {lines[0][:80] if lines else ''!r}; give a text file with "
            "one class name per line and no header"
        )
    return check_class_names(lines, str(path))


def _looks_like_a_table(lines: Sequence[str]) -> bool:
    """Return whether the lines look like a table or JSON: tabs, numbers before a comma, or brackets."""
    numbered = [NUMBERED.match(line) is not None for line in lines]
    return any("\t" in line for line in lines) or all(numbered[1:] or [False]) or _is_json(lines)


def _is_json(lines: Sequence[str]) -> bool:
    return bool(lines) and lines[0].startswith(("[", "{")) and lines[-1].endswith(("]", "}"))


def class_list(name: str) -> tuple[str, ...]:
    """Return the built-in class names of a dataset, a key of `CLASS_LISTS`, as in the paper's code.

    Raises
    ------
    DataError
        There is no such list, or its file was modified.
    """
    if name not in CLASS_LISTS:
        raise DataError(f"unknown class list {name!r}; the built-in lists are {', '.join(CLASS_LISTS)}")
    names = read_class_names(LISTS / f"{name}.txt")
    if signature(list(names)) != CLASS_LISTS[name]:
        raise DataError(
            f"the class names in {LISTS / name}.txt were modified; restore the file, or scores would use wrong names"
        )
    return names


def find_class_names(given: str, folder: Path) -> tuple[str, ...]:
    """Return the class names of a list in `CLASS_LISTS`, or of a file whose path is relative to `folder`."""
    if given in CLASS_LISTS:
        return class_list(given)
    path = folder / given
    if not path.is_file() and path.suffix == "":
        raise DataError(
            f"class_names: {given!r} is neither a file ({path}) nor a built-in list: {', '.join(CLASS_LISTS)}"
        )
    return read_class_names(path)


def check_class_names(names: Iterable[str], where: str = "class names") -> tuple[str, ...]:
    """Return the readable names.

    Raises
    ------
    TypeError
        `names` is a single string instead of a list, or a name is not a string.
    DataError
        There are fewer than two names, or two names are equal or differ only in case.
    """
    clean = tuple(readable(name) for name in list_of_texts(where, names))
    if len(clean) < 2:
        raise DataError(f"{where}: expected at least two class names, one per line, got {len(clean)}")
    if repeated := alike(clean):
        raise DataError(f"{where}: each class name must occur once; repeated: {'; '.join(map(' and '.join, repeated))}")
    return clean


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of names that a model cannot distinguish: equal ones, and those that differ only in case."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(readable(name).casefold(), []).append(name)
    return [tuple(map(repr, group)) for group in groups.values() if len(group) > 1]


def prompts(names: Iterable[str], template: str = PROMPT) -> tuple[str, ...]:
    """Return one prompt per class; ``{}`` in `template` is replaced by the name, other braces are kept as text."""
    check_prompt(template)
    return tuple(template.replace("{}", readable(name)) for name in list_of_texts("class names", names))


def check_prompt(template: str) -> None:
    """Raise ValueError unless the prompt template contains ``{}`` exactly once."""
    if template.count("{}") != 1:
        raise ValueError(f"the prompt must contain {{}} once, which is replaced by the class name, got {template!r}")
