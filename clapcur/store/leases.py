"""Leases: only one process computes an artifact at a time, on one machine or several.

A lease is a row with an owner and an expiry time. Its owner renews it while it works; when the owner dies, the lease
expires, or ends at once if the waiting process can see that the owner's process is gone.
"""

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from clapcur.errors import LeaseLostError
from clapcur.store.database import LEASE, insert

LEASE_S = 60.0  # an owner on another machine that does not renew counts as dead after this time
POLL_S = (0.05, 1.0)  # the first and the maximum pause between two attempts to take a lease

log = logging.getLogger("clapcur")


def _clock() -> float:
    """Return seconds of a clock that keeps running while the process or the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


@dataclass
class Lease:
    """The exclusive right to compute something, as long as `check` does not raise."""

    engine: sa.Engine
    name: str
    owner: str
    waited: bool
    what: str = ""
    lost: bool = False
    _renewed: float = field(default_factory=_clock)

    def renew(self) -> bool:
        """Extend the lease; return whether this process still holds it."""
        mine = sa.and_(LEASE.c.name == self.name, LEASE.c.owner == self.owner)
        asked = _clock()
        with self.engine.begin() as db:
            renewed = sa.update(LEASE).where(mine).values(until=_now(db) + LEASE_S)
            self.lost = self.lost or db.execute(renewed).rowcount == 0
        self._renewed = asked
        return not self.lost

    def check(self) -> None:
        """Raise LeaseLostError if another process took over, for example while this one was suspended.

        This queries the database only if the lease was not renewed in time, as after a suspension.
        """
        if not self.lost and _clock() - self._renewed > LEASE_S:
            self.renew()
        if self.lost:
            raise LeaseLostError(
                f"{self.what or self.name}: another process took over while this one was suspended for more than "
                f"{LEASE_S:.0f} s; run the command again to continue"
            )


@contextmanager
def hold(engine: sa.Engine, name: str, what: str = "") -> Iterator[Lease]:
    """Wait for the lease of this name, hold it inside the block and release it.

    Parameters
    ----------
    engine : Engine
        Its transactions must lock at their beginning (SQLite: BEGIN IMMEDIATE).
    name : str
        Name of the lease, such as an artifact id.
    what : str
        The same for people, for the log message while waiting.
    """
    owner = _this_owner()
    lease = Lease(engine, name, owner, _acquire(engine, name, owner, what or name), what)
    ended = threading.Event()
    heart = threading.Thread(target=_keep, args=(lease, ended), daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        ended.set()
        heart.join()
        mine = sa.and_(LEASE.c.name == name, LEASE.c.owner == owner)
        with engine.begin() as db:
            db.execute(sa.delete(LEASE).where(mine))


def _acquire(engine: sa.Engine, name: str, owner: str, what: str) -> bool:
    """Take the lease; return whether another process held it first."""
    waited, pause = False, POLL_S[0]
    while True:
        with engine.begin() as db:
            holder = _take(db, name, owner)
        if holder == owner:
            return waited
        if holder and not waited:
            log.info("waiting for %s, which is being computed by %s", what, _for_people(holder))
            waited = True
        time.sleep(pause)
        pause = min(2 * pause, POLL_S[1])


def _take(db: sa.Connection, name: str, owner: str) -> str | None:
    """Take the lease if it is free, expired or orphaned; return who holds it afterwards."""
    now = _now(db)
    row = {"name": name, "owner": owner, "until": now + LEASE_S}
    is_over = LEASE.c.until < now
    db.execute(insert(db, LEASE, row).on_conflict_do_update(index_elements=["name"], set_=row, where=is_over))
    holder = db.scalar(sa.select(LEASE.c.owner).where(LEASE.c.name == name))
    if holder is not None and _is_gone(holder):
        orphan = sa.and_(LEASE.c.name == name, LEASE.c.owner == holder)
        if db.execute(sa.update(LEASE).where(orphan).values(row)).rowcount:
            return owner
    return holder


def _keep(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(LEASE_S / 4):
        try:
            if not lease.renew():
                return
        except sa.exc.OperationalError as error:  # the database may be restarting: the next renewal may succeed
            log.warning("the lease of %s was not renewed: %s", lease.name, error.orig)


def is_held(engine: sa.Engine, name: str) -> bool:
    """Return whether a process holds the lease of this name, as far as this machine can tell."""
    with engine.begin() as db:
        held = sa.select(LEASE.c.owner).where(LEASE.c.name == name, LEASE.c.until >= _now(db))
        owner = db.scalar(held)
    return owner is not None and not _is_gone(owner)


def stale(engine: sa.Engine) -> list[str]:
    """Return the names of leases that have expired, or whose owner on this machine is dead."""
    with engine.begin() as db:
        now = _now(db)
        rows = db.execute(sa.select(LEASE.c.name, LEASE.c.owner, LEASE.c.until)).all()
    return sorted(name for name, owner, until in rows if until < now or _is_gone(owner))


def _now(db: sa.Connection) -> float:
    """Return the current time; with PostgreSQL that of the database, which several machines share."""
    if db.dialect.name == "postgresql":
        return float(db.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
    return time.time()


def _this_owner() -> str:
    return f"{_machine()} {os.getpid()} {_birth(os.getpid())} {uuid.uuid4().hex[:8]}"


def _for_people(owner: str) -> str:
    machine, pid, _, _ = owner.split()
    return f"process {pid} on {machine.split('/')[0]}"


def _machine() -> str:
    """Return the name of the machine with its PID namespace: containers may share a name, but not the namespace."""
    namespace = Path("/proc/self/ns/pid")
    numbers = os.readlink(namespace) if namespace.is_symlink() else ""
    return f"{platform.node() or 'localhost'}/{numbers}".replace(" ", "_")


def _is_gone(owner: str) -> bool:
    """Return whether an owner on this machine is dead; False if unknown."""
    machine, pid, birth, _ = owner.split()
    return machine == _machine() and _birth(int(pid)) != birth


def _birth(pid: int) -> str:
    """Return when a process started, in ticks since boot, because PIDs are reused; "" if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not _answers(pid) else "alive"
    state, ticks = fields[0], fields[19]
    return "" if state in "ZX" else ticks  # a zombie does no work


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
