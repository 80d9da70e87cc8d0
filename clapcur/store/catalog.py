"""The catalog: an index of the store that answers queries about many artifacts at once.

The store is authoritative and never needs the catalog; `Catalog.rebuild` recreates it from the records. One transaction
adds an artifact, its edges and an outbox message for MLflow, so that the two cannot diverge. The same code runs on
SQLite (one machine) and on PostgreSQL. Times are Unix seconds, ids are the 12 digits of the store.
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
from clapcur.store.leases import Lease, hold, is_held, stale
from clapcur.store.record import Record

OUTBOX_TRIES = 5  # after so many failures a message waits for `clapcur sync`


@dataclass(frozen=True)
class Campaign:
    """One run of an experiment: everything that one resolved experiment config asks for.

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
    """A link from an artifact to one of its inputs, which has this role."""

    artifact_id: str
    role: str
    input_id: str


class Message(NamedTuple):
    """A message in the outbox, which MLflow has not received yet."""

    id: int
    artifact_id: str
    topic: str
    payload: dict[str, Any]


class Catalog:
    """The tables of one database; missing tables are created."""

    def __init__(self, url: str, peek: bool = False) -> None:
        self._engine, self._writer = connect(url, peek)
        self._is_copy = self._engine.dialect.name == "sqlite" and not self._engine.url.database

    @classmethod
    def open(cls, home: Home) -> "Catalog":
        """Return the catalog of a home; if it is read-only, an in-memory copy that is up to date with the store."""
        catalog = cls(home.database_url)
        if catalog._is_copy:
            catalog.catch_up(home.store)
        return catalog

    @classmethod
    def peek(cls, home: Home) -> "Catalog":
        """Return the catalog of a home as it is, without writing anything or completing it from the store.

        Raises
        ------
        ArtifactError
            The tables are missing or of another version, and cannot be migrated in memory.
        """
        return cls(home.database_url, peek=True)

    def index(self, record: Record, payload: Mapping[str, Any]) -> None:
        """Add a finished artifact, its edges and an outbox message in one transaction.

        Adding the same record again does nothing; a recomputed artifact replaces its entry and is sent to MLflow again.

        Parameters
        ----------
        record : mapping
            The content of ``record.json``.
        payload : mapping
            What is sent to MLflow in addition to the record.
        """
        with self._writer.begin() as db:
            known = sa.select(ARTIFACT.c.finished).where(ARTIFACT.c.id == record.id)
            if db.scalar(known) != record.finished:
                _enter(db, record)
                _post(db, record.id, "record", payload, again=True)

    def note(self, artifact_id: str, topic: str, payload: Mapping[str, Any]) -> None:
        """Add an outbox message about an artifact, unless there already was one with this topic.

        Parameters
        ----------
        artifact_id : str
        topic : str
            What the message is about.
        payload : mapping
            The content of the message.
        """
        known = sa.select(OUTBOX.c.id).where(OUTBOX.c.artifact_id == artifact_id, OUTBOX.c.topic == topic)
        with self._engine.begin() as db:
            if db.scalar(known) is not None:
                return
        with self._writer.begin() as db:
            _post(db, artifact_id, topic, payload, again=False)

    def knows(self, artifact_id: str, finished: float) -> bool:
        """Return whether the catalog has this artifact with this finishing time."""
        with self._engine.begin() as db:
            return bool(db.scalar(_column(ARTIFACT.c.finished, artifact_id)) == finished)

    def rebuild(self, store: Store) -> int:
        """Rebuild the index from the store and return the number of artifacts.

        Entries of artifacts that are not in the store are dropped, except those whose record is damaged: their inputs
        are recorded nowhere else. Every artifact that never had an outbox message gets one, with the campaign and tags
        of its record.

        Raises
        ------
        ArtifactError
            The catalog is read-only.
        """
        if self._is_copy:
            raise ArtifactError(f"cannot rebuild the catalog of {store.root.parent}: it is read-only here")
        with self._writer.begin() as db:  # no other process can add anything while the store is read
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
        """Add the artifacts that a crash kept out of the catalog and return their number."""
        known = self.finished()
        records = [artifact.record for artifact in store]
        missing = [record for record in records if known.get(record.id) != record.finished]
        for record in missing:
            self.index(record, payload_of(record))
        return len(missing)

    def remove(self, artifact_id: str) -> None:
        """Delete the entry, the edges and the outbox messages of an artifact that was removed from the store."""
        with self._writer.begin() as db:
            db.execute(sa.delete(ARTIFACT).where(ARTIFACT.c.id == artifact_id))
            db.execute(sa.delete(EDGE).where(EDGE.c.artifact_id == artifact_id))
            db.execute(sa.delete(OUTBOX).where(OUTBOX.c.artifact_id == artifact_id))

    def lease(self, name: str, what: str = "") -> AbstractContextManager[Lease]:
        """Hold the exclusive right to compute an artifact; other processes wait here.

        Parameters
        ----------
        name : str
            An artifact's id.
        what : str
            What is being computed, for the log message of a process that waits.
        """
        return hold(self._writer, name, what)

    def is_being_made(self, name: str) -> bool:
        """Return whether a process holds the lease of an artifact."""
        return is_held(self._engine, name)

    def resolve(self, name: str) -> str:
        """Return the artifact id for an id, the beginning of one (at least 4 digits) or an MLflow run.

        Raises
        ------
        ArtifactError
            Nothing matches, or more than one artifact does.
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

    def finished(self) -> dict[str, float]:
        """Return when each artifact was finished, by id."""
        with self._engine.begin() as db:
            return dict(db.execute(sa.select(ARTIFACT.c.id, ARTIFACT.c.finished)).tuples().all())

    def stale_leases(self) -> list[str]:
        """Return the names of leases whose owners ended without releasing them; the next owner takes them over."""
        return stale(self._engine)

    def of_kind(self, kind: str) -> list[str]:
        """Return the ids of all artifacts of a kind, in the order in which they were finished."""
        query = sa.select(ARTIFACT.c.id).where(ARTIFACT.c.kind == kind)
        with self._engine.begin() as db:
            return list(db.scalars(query.order_by(ARTIFACT.c.finished, ARTIFACT.c.id)))

    def kinds(self, artifact_ids: Iterable[str]) -> dict[str, str]:
        """Return the kinds of those of these artifacts that are in the catalog."""
        wanted = ARTIFACT.c.id.in_(list(artifact_ids))
        with self._engine.begin() as db:
            return dict(db.execute(sa.select(ARTIFACT.c.id, ARTIFACT.c.kind).where(wanted)).tuples().all())

    def stage_of(self, artifact_id: str) -> str | None:
        """Return the stage that computed an artifact; None if it is not in the catalog."""
        with self._engine.begin() as db:
            found: str | None = db.scalar(_column(ARTIFACT.c.stage, artifact_id))
        return found

    def upstream(self, artifact_id: str) -> list[Edge]:
        """Return every edge from an artifact down to all its direct and indirect inputs."""
        return self._reach(EDGE.c.artifact_id, EDGE.c.input_id, [artifact_id])

    def downstream(self, *artifact_ids: str, roles: Iterable[str] | None = None) -> list[Edge]:
        """Return every edge from some artifacts up to all artifacts computed from them.

        Parameters
        ----------
        *artifact_ids : str
        roles : iterable of str, optional
            Follow only inputs that have one of these roles.
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
        """Return the MLflow run that shows this artifact; None if there is none."""
        with self._engine.begin() as db:
            found: str | None = db.scalar(_column(ARTIFACT.c.mlflow_run_id, artifact_id))
        return found

    def set_run(self, artifact_id: str, run_id: str) -> None:
        """Store the MLflow run that shows this artifact."""
        change = sa.update(ARTIFACT).where(ARTIFACT.c.id == artifact_id)
        with self._writer.begin() as db:
            db.execute(change.values(mlflow_run_id=run_id))

    def waiting(self, after: int = 0) -> list[Message]:
        """Return up to 100 undelivered messages with an id above `after`, oldest first."""
        query = sa.select(*OUTBOX.c["id", "artifact_id", "topic", "payload"]).where(
            OUTBOX.c.delivered.is_(None), OUTBOX.c.tries < OUTBOX_TRIES, OUTBOX.c.id > after
        )
        with self._engine.begin() as db:
            return [Message(*row) for row in db.execute(query.order_by(OUTBOX.c.id).limit(100))]

    def num_waiting(self) -> int:
        """Return the number of undelivered messages, including those that failed too often."""
        query = sa.select(sa.func.count()).where(OUTBOX.c.delivered.is_(None))
        with self._engine.begin() as db:
            return db.scalar(query) or 0

    def mark(self, message: Message, delivered: bool) -> None:
        """Record that a message was delivered, or that another attempt failed."""
        change = sa.update(OUTBOX).where(OUTBOX.c.id == message.id)
        done = {"delivered": time.time()} if delivered else {"tries": OUTBOX.c.tries + 1}
        with self._writer.begin() as db:
            db.execute(change.values(done))

    def requeue(self, everything: bool = False) -> None:
        """Retry messages that failed too often, or resend `everything`."""
        renewed = {"tries": 0, "delivered": None} if everything else {"tries": 0}
        with self._writer.begin() as db:
            db.execute(sa.update(OUTBOX).values(renewed))


def payload_of(record: Record) -> dict[str, Any]:
    """Return what an outbox message adds to the record of an artifact: campaign and tags."""
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
