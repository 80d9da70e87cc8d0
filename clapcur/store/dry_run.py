"""A dry run: find out what a flow would compute by running it without the work.

The id of an artifact follows from its key, before it is computed. A flow can therefore run to its end with ids alone:
a finished artifact is reused, and any other is replaced by a `Planned` artifact, whose id the next stages use.

Stages that only read, such as an ingest, do run, because the plan depends on what they find. Their artifacts are in a
temporary store that is deleted at the end: a dry run writes nothing to the home.
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

    temporary: Store
    # for the results of stages that only read
    asked: dict[str, Artifact] = field(default_factory=dict)
    known: dict[str, Artifact] = field(default_factory=dict)
    # the artifacts asked for and those that were read, by id

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
        """Return the artifact of a stage that only reads; run the stage in the temporary store if it does not exist.

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
            made = store.get(key, discard=False)
            if made is None:
                started, work = time.time(), self.temporary.open(key)
                made = self.temporary.commit(work, stage.compute(inputs, config, work), started, tags=dict(tags))
            self.known[key.id] = made
        return self.known[key.id]

    def copy(self, file: Path) -> Path:
        """Return a copy of a file that may be changed, or a path without a file if there is none."""
        copied = self.temporary.root / file.name
        if file.exists() and not copied.exists():
            shutil.copyfile(file, copied)
        return copied


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the current dry run; None if stages do their work."""
    return _current.get()


@contextmanager
def dry_run() -> Iterator[DryRun]:
    """Run a block in which stages compute nothing; `Store.find` also returns planned artifacts.

    A dry run inside another one knows what the outer one has read.
    """
    outer = current()
    with ExitStack() as stack:
        if outer is None:
            run = DryRun(Store(Path(stack.enter_context(TemporaryDirectory(prefix="clapcur-dry-run-")))))
        else:
            run = DryRun(outer.temporary, known=outer.known)
        stack.callback(_current.reset, _current.set(run))
        stack.callback(PLANNED.reset, PLANNED.set(run.known))
        yield run
