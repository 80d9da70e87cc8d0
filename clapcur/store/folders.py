"""A folder that is there as a whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clapcur.errors import DataError


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that gets its name at the end of the block, unless an error ends it.

    A process that is killed leaves a hidden folder beside the path, and nothing under its name.

    Raises
    ------
    DataError
        Something has this name already.
    """
    if os.path.lexists(path):
        raise DataError(f"{path} already exists; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    work.mkdir()
    try:
        yield work
        work.rename(path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
