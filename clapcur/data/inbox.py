"""Which files in a folder are complete: those that have not grown or changed for a while."""

from dataclasses import dataclass, field
from pathlib import Path

from clapcur.errors import DataError

Seen = tuple[int, int]  # bytes, time of the last change in ns


@dataclass
class Watch:
    """Looks at a folder again and again; a file counts when two looks `settle_s` apart or more saw it the same.

    A copy that is still being written grows, so that it is left alone until it is whole. Files whose name begins with
    a dot, as those of a copy that is renamed when it is done, never count.
    """

    folder: Path
    settle_s: float
    _seen: dict[Path, tuple[Seen, float]] = field(default_factory=dict)

    def look(self, now_s: float) -> set[Path]:
        """Return the files that are complete at this time (seconds, of any clock that does not run back).

        Raises
        ------
        DataError
            The folder is gone.
        """
        if not self.folder.is_dir():
            raise DataError(f"cannot watch {self.folder}: it is not a folder")
        seen = {}
        for path in self.folder.rglob("*"):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # it went away while we looked
                continue
            state = (stat.st_size, stat.st_mtime_ns)
            known = self._seen.get(path)
            seen[path] = known if known is not None and known[0] == state else (state, now_s)
        self._seen = seen
        return {path for path, (_, since) in seen.items() if now_s - since >= self.settle_s}
