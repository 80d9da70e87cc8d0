"""Text files that people wrote: UTF-8 or UTF-16 by byte order mark, otherwise UTF-8; any other encoding is rejected.

Any other encoding would be a guess, and a wrong guess silently changes names.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from clapcur.errors import DataError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def encoding_of(path: Path, otherwise: str = "utf-8") -> str:
    """Return the encoding given by the byte order mark of a file; `otherwise` if it has none."""
    with open(path, "rb") as file:
        start = file.read(3)
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), otherwise)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    DataError
        The file is neither UTF-8 nor marked as UTF-16; the message gives the line.
    FileNotFoundError
        The file does not exist.
    """
    return "".join(f"{line}\n" for _, line in numbered_lines(path))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end); raises the errors of `read_text` during iteration."""
    encoding = encoding_of(path)
    try:
        with open(path, encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except UnicodeError as error:
        raise DataError(not_decodable(path, encoding, error)) from None


def not_decodable(path: Path, encoding: str, error: UnicodeError) -> str:
    """Return an error message for a file that is not valid in its encoding, with the first invalid line.

    Parameters
    ----------
    path : Path
    encoding : str
        The encoding with which the file was read.
    error : UnicodeError
        The error raised while reading it.
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
