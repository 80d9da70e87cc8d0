"""A dry run: what a flow would make, found by taking its own steps.

What an artifact is called follows from what it would be made from, before it is made. So a flow can be run to its end
with names alone: a stage that was run is reused, one that was not gives a `Planned`, whose name the next stages take.
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
    """An artifact that is not there yet: its record says what it would be made from."""

    key: Key
    tags: Mapping[str, Any]

    @property
    def is_made(self) -> bool:
        """Whether the artifact is in the store."""
        return False

    @property
    def record(self) -> Record:
        """What is known of the record before the work."""
        return Record.planned(self.key, tags=self.tags)


@dataclass
class DryRun:
    """The artifacts that a flow asks for, each once, in its order."""

    asked: dict[str, Artifact] = field(default_factory=dict)

    def ask(self, store: Store, key: Key, tags: Mapping[str, Any]) -> Artifact:
        """Return the artifact of this key, or what stands for it until it is made.

        Parameters
        ----------
        store : Store
        key : Key
        tags : mapping
            Of the planned artifact, where there is none yet.
        """
        if key.id not in self.asked:
            made = store.get(key, discard=False)
            self.asked[key.id] = made or Planned(key.kind, key.id, str(store.folder(key.kind, key.id)), key, tags)
        return self.asked[key.id]


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the dry run that this code is part of; None where stages do their work."""
    return _current.get()


@contextmanager
def dry_run() -> Iterator[DryRun]:
    """Within it no stage trains, embeds or scores; the store finds what is planned beside what it has."""
    run = DryRun()
    token, known = _current.set(run), PLANNED.set(run.asked)
    try:
        yield run
    finally:
        _current.reset(token)
        PLANNED.reset(known)
