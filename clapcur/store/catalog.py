"""The catalog: an index over the store that answers questions about many artifacts at once.

The store is the truth and never needs the catalog; `Catalog.rebuild` makes it again from the
records. One transaction enters an artifact, its edges and a line of the outbox to MLflow, so that
nothing is known here and forgotten there. The same code runs on SQLite (one machine) and on
PostgreSQL. Times are Unix seconds, ids are the 12 digits of the store.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Store
from clapcur.store.database import ARTIFACT, EDGE, OUTBOX, connect, insert
from clapcur.store.home import Home
from clapcur.store.leases import Lease, hold, is_held
from clapcur.store.record import Record

OUTBOX_TRIES = 5  # a line that failed so often waits for `clapcur sync`


@dataclass(frozen=True)
class Campaign:
    """One experiment as people see it: all runs of one resolved experiment config.

    Attributes
    ----------
    experiment : str
        Name of the MLflow experiment: the dataset.
    name : str
        Title of the parent run.
    key : str
        Signature of the resolved experiment config.
    """

    experiment: str
    name: str
    key: str


class Edge(NamedTuple):
    """An artifact was made from another, which played this role."""

    artifact_id: str
    role: str
    input_id: str


class Message(NamedTuple):
    """A line of the outbox: something that MLflow has not been told yet."""

    id: int
    artifact_id: str
    topic: str
    payload: dict[str, Any]


class Catalog:
    """The tables behind one database address; they are made where they are missing."""

    def __init__(self, url: str) -> None:
        self._engine, self._writer = connect(url)
        self._is_copy = self._engine.dialect.name == "sqlite" and not self._engine.url.database

    @classmethod
    def open(cls, home: Home) -> "Catalog":
        """Return the catalog of a home; where that is read-only, a copy that knows all the store has."""
        catalog = cls(home.database_url)
        if catalog._is_copy:
            catalog.catch_up(home.store)
        return catalog

    def index(self, record: Record, payload: Mapping[str, Any]) -> None:
        """Enter a finished artifact, its edges and a line of the outbox, all or nothing.

        Entering the same record again does nothing; a recomputed artifact replaces its entry and
        is sent to MLflow again.

        Parameters
        ----------
        record : mapping
            The content of ``record.json``.
        payload : mapping
            What MLflow must be told beside the record.
        """
        with self._writer.begin() as db:
            known = sa.select(ARTIFACT.c.finished).where(ARTIFACT.c.id == record.id)
            if db.scalar(known) != record.finished:
                _enter(db, record)
                _post(db, record.id, "record", payload, again=True)

    def note(self, artifact_id: str, topic: str, payload: Mapping[str, Any]) -> None:
        """Add a line to the outbox about an artifact, unless there was one of this topic.

        Parameters
        ----------
        artifact_id : str
        topic : str
            What the line is about.
        payload : mapping
            What MLflow must be told.
        """
        known = sa.select(OUTBOX.c.id).where(OUTBOX.c.artifact_id == artifact_id, OUTBOX.c.topic == topic)
        with self._engine.begin() as db:
            if db.scalar(known) is not None:
                return
        with self._writer.begin() as db:
            _post(db, artifact_id, topic, payload, again=False)

    def knows(self, artifact_id: str, finished: float) -> bool:
        """Return whether this artifact, as finished at this time, has been entered."""
        with self._engine.begin() as db:
            return bool(db.scalar(_column(ARTIFACT.c.finished, artifact_id)) == finished)

    def rebuild(self, store: Store) -> int:
        """Make the index equal to the store and return the number of artifacts.

        What the store lacks is dropped; an artifact whose record is damaged is not, for what it was made from is known
        nowhere else. Every artifact that never had a line of the outbox gets
        one, with what its record says of campaign and tags.

        Raises
        ------
        ArtifactError
            The catalog is read-only.
        """
        if self._is_copy:
            raise ArtifactError(f"cannot rebuild the catalog of {store.root.parent}: it is read-only here")
        with self._writer.begin() as db:  # nobody enters anything while the store is read
            damaged = [folder.name for folder in store.damaged_records()]
            records = [artifact.record for artifact in store]
            runs = dict(db.execute(sa.select(ARTIFACT.c.id, ARTIFACT.c.mlflow_run_id)).tuples().all())
            db.execute(sa.delete(ARTIFACT).where(ARTIFACT.c.id.not_in(damaged)))
            db.execute(sa.delete(EDGE).where(EDGE.c.artifact_id.not_in(damaged)))
            for record in records:
                _enter(db, record, runs.get(record.id))
                _post(db, record.id, "record", payload_of(record), again=False)
            lost = sa.select(ARTIFACT.c.id)
            db.execute(sa.delete(OUTBOX).where(OUTBOX.c.artifact_id.not_in(lost)))
        return len(records)

    def catch_up(self, store: Store) -> int:
        """Enter what a crash kept out of the catalog and return how many artifacts that were."""
        with self._engine.begin() as db:
            known = dict(db.execute(sa.select(ARTIFACT.c.id, ARTIFACT.c.finished)).tuples().all())
        records = [artifact.record for artifact in store]
        missing = [record for record in records if known.get(record.id) != record.finished]
        for record in missing:
            self.index(record, payload_of(record))
        return len(missing)

    def remove(self, artifact_id: str) -> None:
        """Drop an artifact that has left the store: its entry, its edges and what MLflow was not told of it yet."""
        with self._writer.begin() as db:
            db.execute(sa.delete(ARTIFACT).where(ARTIFACT.c.id == artifact_id))
            db.execute(sa.delete(EDGE).where(EDGE.c.artifact_id == artifact_id))
            db.execute(sa.delete(OUTBOX).where(OUTBOX.c.artifact_id == artifact_id))

    def lease(self, name: str, what: str = "") -> AbstractContextManager[Lease]:
        """Hold the sole right to make something; whoever comes second waits here.

        Parameters
        ----------
        name : str
            An artifact's id.
        what : str
            What is being made, for the line that says what is waited for.
        """
        return hold(self._writer, name, what)

    def is_being_made(self, name: str) -> bool:
        """Return whether somebody holds the lease of an artifact."""
        return is_held(self._engine, name)

    def resolve(self, name: str) -> str:
        """Return the artifact id that an id, the start of one (4 digits) or an MLflow run means.

        Raises
        ------
        ArtifactError
            None, or more than one.
        """
        if len(name) < 4:
            raise ArtifactError(f"expected at least 4 digits of an id, got {name!r}")
        starts = ARTIFACT.c.id.startswith(name, autoescape=True)
        query = sa.select(ARTIFACT.c.id, ARTIFACT.c.kind).where(sa.or_(starts, ARTIFACT.c.mlflow_run_id == name))
        with self._engine.begin() as db:
            found = db.execute(query.order_by(ARTIFACT.c.id)).all()
        if not found:
            raise ArtifactError(
                f"no artifact and no MLflow run has the id {name!r}; if it exists, run `clapcur catalog rebuild` to "
                "index the store again, or `clapcur sync` to update the runs"
            )
        if len(found) > 1:
            names = ", ".join(f"{row.kind} {row.id}" for row in found[:5])
            raise ArtifactError(f"{name!r} matches {len(found)} ids, give more digits: {names}")
        return str(found[0].id)

    def of_kind(self, kind: str) -> list[str]:
        """Return the ids of all artifacts of a kind, in the order in which they were made."""
        query = sa.select(ARTIFACT.c.id).where(ARTIFACT.c.kind == kind)
        with self._engine.begin() as db:
            return list(db.scalars(query.order_by(ARTIFACT.c.finished, ARTIFACT.c.id)))

    def kinds(self, artifact_ids: Iterable[str]) -> dict[str, str]:
        """Return the kind of each of these artifacts that the catalog knows."""
        wanted = ARTIFACT.c.id.in_(list(artifact_ids))
        with self._engine.begin() as db:
            return dict(db.execute(sa.select(ARTIFACT.c.id, ARTIFACT.c.kind).where(wanted)).tuples().all())

    def stage_of(self, artifact_id: str) -> str | None:
        """Return the stage that made an artifact; None for one that the catalog does not know."""
        with self._engine.begin() as db:
            found: str | None = db.scalar(_column(ARTIFACT.c.stage, artifact_id))
        return found

    def upstream(self, artifact_id: str) -> list[Edge]:
        """Return every edge on the way down from an artifact to what it was made from."""
        return self._reach(EDGE.c.artifact_id, EDGE.c.input_id, [artifact_id])

    def downstream(self, *artifact_ids: str, roles: Iterable[str] | None = None) -> list[Edge]:
        """Return every edge on the way up from some artifacts to what was made from them.

        Parameters
        ----------
        *artifact_ids : str
        roles : iterable of str, optional
            Follow only inputs that played one of these roles.
        """
        return self._reach(EDGE.c.input_id, EDGE.c.artifact_id, artifact_ids, roles)

    def _reach(
        self,
        near: sa.Column[str],
        far: sa.Column[str],
        starts: Iterable[str],
        roles: Iterable[str] | None = None,
    ) -> list[Edge]:
        allowed = sa.true() if roles is None else EDGE.c.role.in_(list(roles))
        first = sa.select(EDGE).where(near.in_(list(starts)), allowed)
        reached = first.cte("reached", recursive=True)
        step = sa.select(EDGE).where(allowed).join(reached, near == reached.c[far.name])
        query = sa.select(reached.union(step))
        with self._engine.begin() as db:
            return sorted(Edge(*row) for row in db.execute(query))

    def run_of(self, artifact_id: str) -> str | None:
        """Return the MLflow run that shows this artifact, where there is one."""
        with self._engine.begin() as db:
            found: str | None = db.scalar(_column(ARTIFACT.c.mlflow_run_id, artifact_id))
        return found

    def set_run(self, artifact_id: str, run_id: str) -> None:
        """Remember the MLflow run that shows this artifact."""
        change = sa.update(ARTIFACT).where(ARTIFACT.c.id == artifact_id)
        with self._writer.begin() as db:
            db.execute(change.values(mlflow_run_id=run_id))

    def waiting(self, after: int = 0) -> list[Message]:
        """Return what MLflow must be told yet, oldest first, from the line behind `after` on."""
        query = sa.select(*OUTBOX.c["id", "artifact_id", "topic", "payload"]).where(
            OUTBOX.c.delivered.is_(None), OUTBOX.c.tries < OUTBOX_TRIES, OUTBOX.c.id > after
        )
        with self._engine.begin() as db:
            return [Message(*row) for row in db.execute(query.order_by(OUTBOX.c.id).limit(100))]

    def num_waiting(self) -> int:
        """Return how many lines of the outbox were not delivered, given-up ones included."""
        query = sa.select(sa.func.count()).where(OUTBOX.c.delivered.is_(None))
        with self._engine.begin() as db:
            return db.scalar(query) or 0

    def mark(self, message: Message, delivered: bool) -> None:
        """Note that a message arrived, or that another try failed."""
        change = sa.update(OUTBOX).where(OUTBOX.c.id == message.id)
        done = {"delivered": time.time()} if delivered else {"tries": OUTBOX.c.tries + 1}
        with self._writer.begin() as db:
            db.execute(change.values(done))

    def requeue(self, everything: bool = False) -> None:
        """Try given-up lines of the outbox again, or `everything` that was ever sent."""
        renewed = {"tries": 0, "delivered": None} if everything else {"tries": 0}
        with self._writer.begin() as db:
            db.execute(sa.update(OUTBOX).values(renewed))


def payload_of(record: Record) -> dict[str, Any]:
    """Return what the outbox says of an artifact beside its record: campaign and tags."""
    return {"campaign": record.campaign, "tags": record.tags}


def _enter(db: sa.Connection, record: Record, run_id: str | None = None) -> None:
    row = {
        "id": record.id,
        "kind": record.kind,
        "stage": record.stage,
        "finished": record.finished,
        "seconds": record.seconds,
        "bytes": sum(entry["bytes"] for entry in record.files.values()),
        "tags": record.tags,
    } | ({"mlflow_run_id": run_id} if run_id else {})
    edges = [{"artifact_id": record.id, "role": role, "input_id": name} for role, name in record.inputs.items()]
    db.execute(insert(db, ARTIFACT, row).on_conflict_do_update(index_elements=["id"], set_=row))
    db.execute(sa.delete(EDGE).where(EDGE.c.artifact_id == record.id))
    if edges:
        db.execute(sa.insert(EDGE), edges)


def _post(db: sa.Connection, artifact_id: str, topic: str, payload: Mapping[str, Any], again: bool) -> None:
    row = {"artifact_id": artifact_id, "topic": topic, "payload": dict(payload), "tries": 0}
    line = insert(db, OUTBOX, row)
    unique = ["artifact_id", "topic"]
    if again:
        renewed = row | {"delivered": None}
        db.execute(line.on_conflict_do_update(index_elements=unique, set_=renewed))
    else:
        db.execute(line.on_conflict_do_nothing(index_elements=unique))


def _column(column: sa.Column[Any], artifact_id: str) -> sa.Select[Any]:
    return sa.select(column).where(ARTIFACT.c.id == artifact_id)
