"""Text files that people wrote: UTF-8 or UTF-16 by their byte order mark, else UTF-8; any other encoding is refused.

Another encoding would be a guess, and a wrong guess changes names silently.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from clapcur.errors import DataError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def encoding_of(path: Path, otherwise: str = "utf-8") -> str:
    """Return the encoding that the byte order mark of a file says, `otherwise` where it has none."""
    with open(path, "rb") as file:
        start = file.read(3)
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), otherwise)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    DataError
        It is neither UTF-8 nor marked as UTF-16; the message has the line.
    FileNotFoundError
        There is no such file.
    """
    return "".join(f"{line}\n" for _, line in numbered_lines(path))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end); errors are those of `read_text`, and come while it is read."""
    encoding = encoding_of(path)
    try:
        with open(path, encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except UnicodeError as error:
        raise DataError(not_decodable(path, encoding, error)) from None


def not_decodable(path: Path, encoding: str, error: UnicodeError) -> str:
    """Return what is wrong with a file that is not in its encoding, with the first line that is not.

    Parameters
    ----------
    path : Path
    encoding : str
        That it was read with.
    error : UnicodeError
        That was raised then.
    """
    reason = getattr(error, "reason", str(error))
    if encoding == "utf-16":
        return f"{path} is marked as UTF-16 but is not valid UTF-16 ({reason}); save it as UTF-8"
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as there:
                bad = line[there.start : there.start + 1]
                return f"{path}, line {number}, is not UTF-8 (byte 0x{bad.hex()}: {there.reason}); save it as UTF-8"
    return f"{path} is not UTF-8 ({reason}); save it as UTF-8"
