"""SIGKILL and SIGTERM at random moments of the chain and of whole commands; then nothing may be lost or different.

Step n below `WHOLE` is a new home on which the chain is run: in front of each command it is started and killed once or
twice, at a moment that is chosen by what the undisturbed run did then: before its work, in the middle of one of its
artifacts, or behind one. From `WHOLE` on a step is a whole `improve`, killed again and again.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clapcur.store.record import RECORD
from stress.chain import STEPS, ChainError, Made, Timing, finish, timed_chain
from stress.commands import Command, Ended, run
from stress.comparing import catalog_differences, mlflow_differences, store_differences
from stress.harness import Run

ROUNDS = 4  # of the chain
WHOLE = 1000
WHOLE_ROUNDS, WHOLE_KILLS = 2, 5
WANTED = 5  # kills of each command and of each kind of artifact; more rounds are run where they are too few
MOMENTS = {"before": 1, "during": 5, "after": 2}  # weights
IMPROVE = ("improve", "experiment.yaml", "--json")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
STOPPED = (0, 143, -signal.SIGTERM, 130)  # what a command may say that was asked to stop


@dataclass(frozen=True)
class Blow:
    """A kill that is planned: which artifact is the victim, when, by which signal, and whether alone."""

    victim: Made
    moment: str
    share: float
    # of the time that the moment lasts
    number: signal.Signals
    whole_group: bool

    def __str__(self) -> str:
        """One phrase for a report."""
        whom = "the group" if self.whole_group else "the process"
        return (
            f"{self.number.name} to {whom} {self.moment} {self.victim.kind} {self.victim.id} ({100 * self.share:.0f} %)"
        )


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    reference = context.folder / "undisturbed"
    ids, timings = timed_chain(reference, corpus)
    for command in ("sync",):
        run([command], reference, corpus)
    context.say(f"undisturbed: {sum(map(len, (timing.made for timing in timings.values())))} artifacts")

    def chain_round(step: int) -> None:
        home = context.folder / f"chain-{step}" / "home"
        home.parent.mkdir()
        _disturbed_chain(context, step, home, corpus, ids, timings)
        _check(context, step, home, reference, corpus)
        context.drop(home.parent, step)

    numbers = iter(range(WHOLE))
    context.steps((next(numbers) for _ in range(ROUNDS)), chain_round)
    while context.only_step is None and context.has_time() and _too_few(context):
        context.steps((next(numbers) for _ in range(context.jobs)), chain_round)
    for what in _too_few(context) if context.only_step is None else ():
        context.say(f"fewer than {WANTED} kills of {what}: not enough time")

    whole = context.folder / "undisturbed-improve"
    if not context.has_time() or (context.only_step is not None and context.only_step < WHOLE):
        return
    undisturbed = run(IMPROVE, whole, corpus, is_program=True)
    if undisturbed.code:
        context.fail(WHOLE, str(undisturbed), whole)
        return
    run(["sync"], whole, corpus)

    def whole_round(step: int) -> None:
        home = context.folder / f"improve-{step}" / "home"
        home.parent.mkdir()
        _disturbed_improve(context, step, home, corpus, undisturbed.seconds)
        _check(context, step, home, whole, corpus)
        context.drop(home.parent, step)

    context.steps(range(WHOLE, WHOLE + WHOLE_ROUNDS), whole_round)


def _too_few(context: Run) -> list[str]:
    commands = {f"kills of {step.stage}" for step in STEPS}
    made = ("manifest", "checkpoint", "embeddings", "improvement_set", "scores", "report")
    kinds = {f"victims: {kind}" for kind in made}
    return sorted(what for what in commands | kinds if context.counts[what] < WANTED)


def _disturbed_chain(
    context: Run, number: int, home: Path, corpus: Path, wanted: Mapping[str, str], timings: Mapping[str, Timing]
) -> None:
    """Run the chain, killing each command once or twice before it is let through."""
    rng = context.random(number)
    ids: dict[str, str] = {}
    for step in STEPS:
        blows = [_plan(rng, timings[step.name]) for _ in range(rng.choice((1, 2)))]
        told = []
        for blow in blows:
            command = Command(step.arguments(ids), home, corpus)
            if not _strike(command, home, blow, timings[step.name]):
                command.wait()
                context.count("kills that came too late")
                break
            told.append(str(blow))
            for line in _faults(command, blow.number):
                context.fail(number, f"{step.name}: after {'; '.join(told)}: {line}", home)
            context.count("kills")
            context.count(f"kills by {blow.number.name}")
            context.count(f"kills {blow.moment} the work")
            context.count(f"kills of {step.stage}")
            context.count(f"victims: {blow.victim.kind}")
        try:
            ids[step.name] = finish(step, ids, home, corpus)
        except ChainError as error:
            context.fail(number, f"{step.name}: after {'; '.join(told) or 'no kill'}: {error}\n{error.ended.err}", home)
            raise
        if ids[step.name] != wanted[step.name]:
            context.fail(number, f"{step.name} is {ids[step.name]}, undisturbed it was {wanted[step.name]}", home)
    context.say(f"step {number}: the chain is through, {context.counts['kills']} kills so far")


def _plan(rng: random.Random, timing: Timing) -> Blow:
    moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    victim = rng.choice((timing.made[-1], rng.choice(timing.made)))  # half of them what the command is for
    return Blow(victim, moment, rng.random(), rng.choice(SIGNALS), rng.random() < 0.3)


def _strike(command: Command, home: Path, blow: Blow, timing: Timing) -> bool:
    """Kill a command at the planned moment; return False where it had ended already."""
    folder = home / "store" / blow.victim.kind / blow.victim.id
    if blow.moment == "before":
        reached, lasts_s = True, timing.before_s
    elif blow.moment == "during":
        reached, lasts_s = _until(command, folder.exists), blow.victim.seconds
    else:
        reached, lasts_s = _until(command, (folder / RECORD).exists), timing.after_s
    if not reached:
        return False
    time.sleep(blow.share * lasts_s)
    return command.signal(blow.number, blow.whole_group)


def _until(command: Command, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return False where the command ends before."""
    while not condition():
        if command.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def _faults(command: Command, number: signal.Signals) -> list[str]:
    """Wait for the end of a command that was struck, and say what is wrong with it."""
    ended = command.wait()
    said = [f"it left behind: {line}" for line in command.left_behind()]
    if ended.code is None:
        said.append("it did not end")
    elif number == signal.SIGTERM and ended.code not in STOPPED:
        said.append(f"it ended with {ended.code}: {ended.last_line}")
    if "Traceback" in ended.err:
        said.append(f"it showed a traceback:\n{ended.err}")
    return said


def _disturbed_improve(context: Run, number: int, home: Path, corpus: Path, lasts_s: float) -> None:
    """Run `improve` as a program, killing it several times before it is let through."""
    rng = context.random(number)
    for _ in range(WHOLE_KILLS):
        share, kind, whole_group = rng.random(), rng.choice(SIGNALS), rng.random() < 0.5
        command = Command(IMPROVE, home, corpus, is_program=True)
        time.sleep(share * lasts_s)
        if not command.signal(kind, whole_group):
            context.count("kills that came too late")
            break
        whom = "the group" if whole_group else "the process"
        for line in _faults(command, kind):
            context.fail(number, f"improve: after {kind.name} to {whom} at {share * lasts_s:.1f} s: {line}", home)
        context.count("kills")
        context.count(f"kills by {kind.name}")
        context.count("kills of improve")
    ended = run(IMPROVE, home, corpus, is_program=True)
    if ended.code:
        context.fail(number, f"{ended}\n{ended.err}", home)


def _check(context: Run, number: int, home: Path, reference: Path, corpus: Path) -> None:
    """Compare a home that went through kills with the undisturbed one."""
    for arguments in (["sync"], ["gc", "--grace", "0", "--json"]):
        ended = run(arguments, home, corpus)
        if ended.code:
            context.fail(number, str(ended), home)
        elif arguments[0] == "gc":
            wanted = run(arguments, reference, corpus)
            context.count("homes compared")
            if _gone(ended) != _gone(wanted):
                context.fail(number, f"gc would remove {_gone(ended)}, undisturbed {_gone(wanted)}", home)
    differences = store_differences(reference, home) + catalog_differences(home) + mlflow_differences(reference, home)
    for line in differences:
        context.fail(number, line, home)


def _gone(ended: Ended) -> list[str]:
    answer = ended.answer
    return sorted(one["id"] for one in answer["removed"]) + ["being made"] * int(answer["being_made"])
