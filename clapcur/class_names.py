"""Class names and the prompts made of them: one place for the rules that move zero-shot scores by points.

A prompt template alone has moved UrbanSound8K by 20 points in public experiments, so names, template and the hash of
both are part of every score's protocol.
"""

from collections.abc import Sequence
from pathlib import Path

from clapcur.config import signature
from clapcur.errors import DataError

PROMPT = "this is a sound of {}"  # Wang et al. 2023, section 3.2
LISTS = Path(__file__).with_name("class_lists")
# The signature of each list that is shipped: the ``class_names_sha256`` of a score's protocol. Order and spelling are
# those of the reference code (dataset/label_encoder_*.txt of zhepeiw/clap_curation @70f5d30).
CLASS_LISTS = {
    "esc50": "70c42b8d58c1622acb04c068bc7055663a6b136aa67f2863d3f2f4ab654758a1",
    "tau2019": "5fd8a62ed0c970a0413cea6a060ef6a8d512f91bc7dd7d174c63b6231ed7e97d",
    "tut2017": "aef834a64dddf62b787508254757a137ecb5e2f51b7c3af52d13a4e7f3f9231b",
    "urbansound8k": "03cab2a8098b63ff06caa64fedc9f1fd4ae2783991232fd03980aac4da897c3f",
    "vggsound": "6f70ce92181b63dba0fa6d1006ef782d36c86f9d203fda564a6872d5320e6fa6",
}


def readable(name: str) -> str:
    """Return a class name as people write it: `_` and `/` become spaces, as in the reference code."""
    return " ".join(name.replace("_", " ").replace("/", " ").split())


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """Read a class-name file: one name a line, blank lines and lines that start with # ignored.

    Raises
    ------
    DataError
        No such file, no name in it, or a name that stands there twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"the class-name file {path} does not exist; give a text file with one class name a line"
        ) from None
    return check_class_names([line for line in map(str.strip, lines) if line and not line.startswith("#")], str(path))


def class_list(name: str) -> tuple[str, ...]:
    """Return the class names that the paper uses for a dataset, one of `CLASS_LISTS`.

    Raises
    ------
    DataError
        There is no such list, or its file is not what it was.
    """
    if name not in CLASS_LISTS:
        raise DataError(f"there is no list of class names {name!r}; there are {', '.join(CLASS_LISTS)}")
    names = read_class_names(LISTS / f"{name}.txt")
    if signature(list(names)) != CLASS_LISTS[name]:
        raise DataError(f"the class names in {LISTS / name}.txt were changed; scores would go by a wrong name")
    return names


def find_class_names(given: str, folder: Path) -> tuple[str, ...]:
    """Return the class names of a list in `CLASS_LISTS`, or of a file, relative to `folder`."""
    if given in CLASS_LISTS:
        return class_list(given)
    path = folder / given
    if not path.is_file() and path.suffix == "":
        raise DataError(
            f"class_names: {given!r} is neither a file ({path}) nor a list that is shipped: {', '.join(CLASS_LISTS)}"
        )
    return read_class_names(path)


def check_class_names(names: Sequence[str], where: str = "class names") -> tuple[str, ...]:
    """Return the readable names; DataError where there are fewer than two or one stands there twice."""
    clean = tuple(readable(name) for name in names)
    if len(clean) < 2:
        raise DataError(f"{where}: expected at least two class names, one a line, got {len(clean)}")
    if repeated := sorted({name for name in clean if clean.count(name) > 1}):
        raise DataError(f"{where}: each class name must stand there once, repeated: {', '.join(repeated)}")
    return clean


def prompts(names: Sequence[str], template: str = PROMPT) -> tuple[str, ...]:
    """Return one prompt per class; `template` holds the place of the name as ``{}``."""
    if template.count("{}") != 1:
        raise ValueError(f"the prompt must hold {{}} once, in the place of the class name, got {template!r}")
    return tuple(template.format(readable(name)) for name in names)
