"""A dry run: find out what a flow would compute by running it without the work.

The id of an artifact follows from its key, before it is computed. A flow can therefore run to its end with ids alone:
a finished artifact is reused, and any other is replaced by a `Planned` artifact, whose id the next stages use. Stages
that only read, such as an ingest, do run, because the plan depends on what they find; their artifacts are in a folder
that is deleted at the end.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clapcur.store.artifacts import PLANNED, Artifact, Key, Stage, Store
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

    until_end: ExitStack
    asked: dict[str, Artifact] = field(default_factory=dict)
    known: dict[str, Artifact] = field(default_factory=dict)
    """The artifacts asked for, and those that were read."""

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
            self.known[key.id] = self.asked[key.id]
        return self.asked[key.id]

    def read(
        self, store: Store, stage: Stage, config: Any, inputs: Mapping[str, Artifact], tags: Mapping[str, Any]
    ) -> Artifact:
        """Return the artifact of a stage that only reads; if the store lacks it, one that lasts until the end.

        Parameters
        ----------
        store : Store
        stage : Stage
        config : object
            Config of the stage.
        inputs : mapping of str to Artifact
            By role.
        tags : mapping
            Tags of the artifact.
        """
        key = stage.key(config, inputs)
        if key.id not in self.known:
            self.known[key.id] = store.get(key, discard=False) or self._computed(store, stage, config, inputs, tags)
        return self.known[key.id]

    def _computed(
        self, store: Store, stage: Stage, config: Any, inputs: Mapping[str, Artifact], tags: Mapping[str, Any]
    ) -> Artifact:
        store.root.parent.mkdir(parents=True, exist_ok=True)
        folder = self.until_end.enter_context(tempfile.TemporaryDirectory(prefix="plan-", dir=store.root.parent))
        passing, started = Store(Path(folder)), time.time()
        work = passing.open(stage.key(config, inputs))
        return passing.commit(work, stage.compute(inputs, config, work), started, tags=dict(tags))


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the current dry run; None if stages do their work."""
    return _current.get()


@contextmanager
def dry_run() -> Iterator[DryRun]:
    """Run a block in which stages compute nothing; `Store.find` also returns planned artifacts."""
    with ExitStack() as until_end:
        run = DryRun(until_end)
        token, known = _current.set(run), PLANNED.set(run.known)
        try:
            yield run
        finally:
            _current.reset(token)
            PLANNED.reset(known)
