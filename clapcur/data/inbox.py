"""Find the complete files in a folder: those that have not changed for a while."""

from dataclasses import dataclass, field
from pathlib import Path

from clapcur.errors import DataError

Seen = tuple[int, int]  # bytes, time of the last change in ns


@dataclass
class Watch:
    """Polls a folder; a file is complete if its size and time of change have been the same for `settle_s` or more.

    A file that is still being copied grows and is left alone until it is complete. Files whose name begins with a dot,
    such as those that are renamed when a copy is done, are ignored.
    """

    folder: Path
    settle_s: float
    _seen: dict[Path, tuple[Seen, float]] = field(default_factory=dict)

    def look(self, now_s: float) -> set[Path]:
        """Return the files that are complete at `now_s` (seconds on any monotonic clock).

        Raises
        ------
        DataError
            The folder does not exist.
        """
        if not self.folder.is_dir():
            raise DataError(f"cannot watch {self.folder}: it is not a folder")
        seen = {}
        for path in self.folder.rglob("*"):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # deleted while the folder was being listed
                continue
            state = (stat.st_size, stat.st_mtime_ns)
            known = self._seen.get(path)
            seen[path] = known if known is not None and known[0] == state else (state, now_s)
        self._seen = seen
        return {path for path, (_, since) in seen.items() if now_s - since >= self.settle_s}
