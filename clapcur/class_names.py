"""Class names and the prompts made of them: one place for the rules that move zero-shot scores by points.

A prompt template alone has moved UrbanSound8K by 20 points in public experiments, so names, template and the hash of
both are part of every score's protocol.
"""

from collections.abc import Sequence
from pathlib import Path

from clapcur.errors import DataError

PROMPT = "this is a sound of {}"  # Wang et al. 2023, section 3.2


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
