"""The maximum number of bytes of a container or an object that are held in memory at once, whatever the input states.

Memory is a property of the machine, not of the experiment, so the environment sets these limits:

============================  ===========  ==========================================================
``CLAPCUR_MAX_CLIP_BYTES``    1 GiB        of one clip that is not a separate file: a member, a cell, an object;
                                       a row group of a Parquet file may have twice as many
``CLAPCUR_MAX_TEXT_BYTES``    1 MiB        of one description: a ``.txt``, ``.json`` or ``.cls``, or a text cell
============================  ===========  ==========================================================
"""

import os

from clapcur.errors import DataError

CLIP, TEXT = "CLAPCUR_MAX_CLIP_BYTES", "CLAPCUR_MAX_TEXT_BYTES"
DEFAULTS = {CLIP: 2**30, TEXT: 2**20}  # ours


class TooLarge(ValueError):
    """An input would take more memory than is allowed."""


def limit(name: str) -> int:
    """Return the limit that the environment sets, in bytes.

    Raises
    ------
    DataError
        It is set to something other than a positive whole number.
    """
    given = os.environ.get(name, "").strip() or str(DEFAULTS[name])
    if not given.isascii() or not given.isdigit() or not int(given):
        raise DataError(f"{name} must be a positive number of bytes, such as {DEFAULTS[name]}, got {given!r}")
    return int(given)


def too_large(size: int, name: str = CLIP) -> str:
    """Return an error message for a size above the limit `name`; "" if it is within the limit."""
    allowed = limit(name)
    return f"{size:,} bytes, more than the {allowed:,} that {name} allows" if size > allowed else ""


def check_size(size: int, name: str = CLIP) -> None:
    """Raise TooLarge for a size above the limit `name`."""
    if said := too_large(size, name):
        raise TooLarge(said)
