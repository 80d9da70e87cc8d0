"""Bit flips and cuts in every file of a finished chain: noticed and mended with equal digests, or named; never used.

A step damages one file in each of about half the artifacts, and removes some that are made from damaged ones, so that
what is damaged would be read if nobody noticed. In a step with an even number the chain is run again from the start; in
an odd one a single command is run that reads the damaged artifacts. Over all steps every file is damaged in both ways.
"""

import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clapcur.store.artifacts import LOCATIONS, TIMES
from clapcur.store.record import RECORD
from stress.chain import STEPS, ChainError, records_of, run_chain
from stress.commands import Ended, run
from stress.comparing import store_differences
from stress.harness import Run

REMOVED = 0.3  # share of the artifacts that are taken away with a step
DAMAGES = ("bit flipped", "cut")


@dataclass(frozen=True)
class Damage:
    """One file that is damaged, and how."""

    artifact: str
    path: str
    # in the store
    how: str

    def __str__(self) -> str:
        """One phrase for a report."""
        return f"{self.how} in {self.path}"


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    whole = context.folder / "whole"
    ids = run_chain(whole, corpus)
    ended = run(["verify", "--all"], whole, corpus)
    if ended.code:
        context.fail(0, f"verify of an undamaged store: {ended}", whole)
    rounds = _rounds(context, whole)
    homes = [_copy(context, whole, f"worker-{worker}") for worker in range(context.jobs)]

    def damaged(step: int) -> None:
        home = homes.pop()
        try:
            _damage_and_mend(context, step, home, whole, corpus, rounds[step], ids)
        finally:
            if any(failure.step == step for failure in context.failures):
                shutil.move(home / "store", context.folder / f"step-{step}-store")
            _restore(whole, home)
            homes.append(home)

    context.steps(range(len(rounds)), damaged)


def _rounds(context: Run, whole: Path) -> list[list[Damage]]:
    """Share out every file and every damage, at most one to an artifact and a round."""
    rng = context.random(-1)
    waiting: dict[str, list[Damage]] = {}
    for path in sorted((whole / "store").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(whole / "store"))
            waiting.setdefault(path.relative_to(whole / "store").parts[1], []).extend(
                Damage(path.relative_to(whole / "store").parts[1], name, how) for how in DAMAGES
            )
    for some in waiting.values():
        rng.shuffle(some)
    rounds = []
    while any(waiting.values()):
        chosen = [some.pop() for some in waiting.values() if some and rng.random() < 0.5]
        if chosen:
            rounds.append(chosen)
    return rounds


def _copy(context: Run, whole: Path, name: str) -> Path:
    """Return a home with the same store; catalog and MLflow are made again by `clapcur sync`."""
    home = context.folder / name / "home"
    shutil.copytree(whole / "store", home / "store")
    return home


def _restore(whole: Path, home: Path) -> None:
    shutil.rmtree(home / "store", ignore_errors=True)
    shutil.copytree(whole / "store", home / "store")


def _damage_and_mend(
    context: Run, step: int, home: Path, whole: Path, corpus: Path, damages: list[Damage], ids: Mapping[str, str]
) -> None:
    rng = context.random(step)
    for damage in damages:
        _do(home / "store" / damage.path, damage.how, rng)
        context.count(f"files: {damage.how}")
    hurt = {damage.artifact for damage in damages}
    told = "; ".join(map(str, damages))
    _check_verify(context, step, home, corpus, damages, told)
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    if step % 2:
        one = rng.choice([one for one in STEPS if _reads(whole, ids[one.name], hurt)] or list(STEPS))
        _remove(home, {ids[one.name]})
        ended = run(one.arguments(ids), home, corpus, more=away)
        for line in _used(ended, home, whole, hurt, {ids[one.name]}):
            context.fail(step, f"{line}, after: {told}; and {one.name} was removed: {ended}\n{ended.err}", home)
        context.count("commands on damaged artifacts")
        return
    _remove(home, {one for one in _above(whole, hurt) if rng.random() < REMOVED} - hurt)
    try:
        run_chain(home, corpus, more=away)
    except ChainError as error:
        if not _names(error.ended, hurt):
            context.fail(step, f"the chain was run again after: {told}: {error}\n{error.ended.err}", home)
        context.count("chains that named the damage")
        return
    set_aside = {damage.artifact for damage in damages if damage.path.endswith(RECORD)}
    if differences := store_differences(whole, home, set_aside=set_aside):
        context.fail(step, "\n  ".join([f"the chain was run again after: {told}:", *differences]), home)
    context.count("chains that were mended")


def _remove(home: Path, artifacts: set[str]) -> None:
    for folder in (home / "store").glob("*/*"):
        if folder.name in artifacts:
            shutil.rmtree(folder)


def _do(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))] if data else b"")
        return
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


def _check_verify(context: Run, step: int, home: Path, corpus: Path, damages: list[Damage], told: str) -> None:
    """Let `clapcur verify --all` find the damage, but not in files that no record has the digest of."""
    ended = run(["verify", "--all"], home, corpus)
    found = [damage for damage in damages if not damage.path.endswith((LOCATIONS, TIMES))]
    missed = [str(damage) for damage in found if damage.artifact not in ended.out + ended.err]
    if missed:
        context.fail(step, f"`clapcur verify --all` does not name {', '.join(missed)}: {ended}", home)
    elif found and ended.code != 1:
        context.fail(step, f"`clapcur verify --all` ended with {ended.code} after: {told}", home)
    if "Traceback" in ended.err:
        context.fail(step, f"`clapcur verify --all` showed a traceback after: {told}\n{ended.err}", home)


def _above(home: Path, hurt: set[str]) -> set[str]:
    """Return what was made from damaged artifacts, directly or by way of others."""
    found: set[str] = set()
    for record in records_of(home):  # inputs come before what is made from them
        if set(record.inputs.values()) & (hurt | found):
            found.add(record.id)
    return found


def _reads(home: Path, artifact: str, hurt: set[str]) -> bool:
    return any(record.id == artifact and set(record.inputs.values()) & hurt for record in records_of(home))


def _names(ended: Ended, hurt: set[str]) -> bool:
    """Return whether a command failed in one line that names a damaged artifact."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
    return ended.code == 1 and len(lines) == 1 and any(name in lines[0] for name in hurt)


def _used(ended: Ended, home: Path, whole: Path, hurt: set[str], gone: set[str]) -> Iterator[str]:
    """Say what is wrong after a command over damaged artifacts: it must name one, or all that it made must be equal."""
    if ended.code:
        if not _names(ended, hurt):
            yield "a command neither named the damage nor mended it"
        return
    finished = {path.parent.name for path in (home / "store").glob(f"*/*/{RECORD}")}
    for line in store_differences(whole, home, ids=gone & finished):
        yield f"damaged bytes were used: {line}"
