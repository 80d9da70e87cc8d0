"""A dry run: find out what a flow would compute by running it without the work.

The id of an artifact follows from its key, before it is computed. A flow can therefore run to its end with ids alone:
a finished artifact is reused, and any other is replaced by a `Planned` artifact, whose id the next stages use.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from clapcur.store.artifacts import PLANNED, Artifact, Key, Store
from clapcur.store.record import Record


@dataclass(frozen=True)
class Planned(Artifact):
    """An artifact that does not exist yet: its record contains only its key and tags."""

    key: Key
    tags: Mapping[str, Any]

    @property
    def is_made(self) -> bool:
        """Whether the artifact is in the store."""
        return False

    @property
    def record(self) -> Record:
        """What is known of the record before the artifact is computed."""
        return Record.planned(self.key, tags=self.tags)


@dataclass
class DryRun:
    """The artifacts that a flow requests, each once, in the order of the requests."""

    asked: dict[str, Artifact] = field(default_factory=dict)

    def ask(self, store: Store, key: Key, tags: Mapping[str, Any]) -> Artifact:
        """Return the artifact of this key, or a `Planned` one if it does not exist.

        Parameters
        ----------
        store : Store
        key : Key
        tags : mapping
            Tags of the planned artifact.
        """
        if key.id not in self.asked:
            made = store.get(key, discard=False)
            self.asked[key.id] = made or Planned(key.kind, key.id, str(store.folder(key.kind, key.id)), key, tags)
        return self.asked[key.id]


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the current dry run; None if stages do their work."""
    return _current.get()


@contextmanager
def dry_run() -> Iterator[DryRun]:
    """Run a block in which stages compute nothing; `Store.find` also returns planned artifacts."""
    run = DryRun()
    token, known = _current.set(run), PLANNED.set(run.asked)
    try:
        yield run
    finally:
        _current.reset(token)
        PLANNED.reset(known)
