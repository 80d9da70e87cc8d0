"""A dry run: find out what a flow would compute by running it without the work.

The id of an artifact follows from its key, before it is computed. A flow can therefore run to its end with ids alone:
a finished artifact is reused, and any other is replaced by a `Planned` artifact, whose id the next stages use.

Stages that only read, such as an ingest, run for real. Their results are kept for the next run or, if the dry run must
write nothing, are in a temporary store that is deleted with it.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
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

    asked: dict[str, Artifact] = field(default_factory=dict)
    known: dict[str, Artifact] = field(default_factory=dict)
    # these and the results of stages that ran, by id
    temporary: Store | None = None
    # where these results are, if the dry run writes nothing to the home

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

    def read(self, store: Store, stage: Stage, config: Any, inputs: Mapping[str, Artifact]) -> Artifact:
        """Return the artifact of a stage that only reads; run the stage in the temporary store if it does not exist.

        Parameters
        ----------
        store : Store
        stage : Stage
        config : object
        inputs : mapping
            Artifacts by role.
        """
        assert self.temporary is not None
        key = stage.key(config, inputs)
        if key.id not in self.known:
            made = store.get(key, discard=False)
            if made is None:
                started, work = time.time(), self.temporary.open(key)
                made = self.temporary.commit(work, stage.compute(inputs, config, work), started)
            self.known[key.id] = made
        return self.known[key.id]

    def copy(self, file: Path) -> Path:
        """Return a copy of a file that may be changed, or a path without a file if there is none."""
        assert self.temporary is not None
        copied = self.temporary.root / file.name
        if file.exists() and not copied.exists():
            shutil.copyfile(file, copied)
        return copied


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the current dry run; None if stages do their work."""
    return _current.get()


def is_read_only() -> bool:
    """Return whether nothing may be written to the home, because the current dry run promises that."""
    run = current()
    return run is not None and run.temporary is not None


@contextmanager
def dry_run(writes: bool = True) -> Iterator[DryRun]:
    """Run a block in which stages compute nothing; `Store.find` also returns planned artifacts.

    Parameters
    ----------
    writes : bool
        Whether results of stages that only read may be added to the home. Inside a dry run that writes nothing, nothing
        is written either.
    """
    outer = current()
    run = DryRun() if outer is None else DryRun(known=outer.known, temporary=outer.temporary)
    with ExitStack() as stack:
        if not writes and run.temporary is None:
            run.temporary = Store(Path(stack.enter_context(TemporaryDirectory(prefix="clapcur-dry-run-"))))
        stack.callback(_current.reset, _current.set(run))
        stack.callback(PLANNED.reset, PLANNED.set(run.known))
        yield run
