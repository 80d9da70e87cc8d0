"""Several processes on one home: the same command, different ones, a home that is new, whole commands.

Whatever they do at once, each artifact is made by one of them, the others wait and reuse it, and afterwards the home is
that of a chain which ran alone.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from stress.chain import STEPS, Step, timed_chain
from stress.commands import Command, Ended, run
from stress.comparing import catalog_differences, mlflow_differences, store_differences
from stress.harness import Run

ROUNDS = 6
WHOLE = 1000  # a step from here on is two programs that `improve` at once
IMPROVE = ("improve", "experiment.yaml", "--json")


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    reference = context.folder / "alone"
    ids, _ = timed_chain(reference, corpus)
    run(["sync"], reference, corpus)

    def chain(step: int) -> None:
        home = context.folder / f"home-{step}" / "home"
        home.parent.mkdir()
        rng = context.random(step)
        for level in _levels():
            num = rng.randint(2, 4)
            # as many as there are, each at least once, or one of them by all
            chosen = [rng.choice(level)] * num if rng.random() < 0.5 else (level * num)[: max(num, len(level))]
            rest = [one for one in level if one not in chosen]
            _at_once(context, step, [*chosen, *rest], ids, home, corpus)
        _compare(context, step, home, reference, corpus)
        context.drop(home.parent, step)

    context.jobs, jobs = 1, context.jobs  # the processes of a step are enough for the machine
    context.steps(range(ROUNDS), chain)
    if context.has_time() and (context.only_step is None or context.only_step >= WHOLE):
        whole = context.folder / "improved-alone"
        ended = run(IMPROVE, whole, corpus, is_program=True)
        if ended.code:
            context.fail(WHOLE, str(ended), whole)
        run(["sync"], whole, corpus)
        context.steps([WHOLE], lambda step: _improve_twice(context, step, whole, corpus))
    context.jobs = jobs


def _levels() -> list[list[Step]]:
    """Return the steps of the chain in groups whose members need nothing of each other."""
    by_name = {step.name: step for step in STEPS}
    groups = (
        ("pairs", "pool", "captions", "evaluation"), ("teacher",), ("pool_rows", "caption_rows", "teacher_scores"),
        ("set",), ("student",), ("scores",), ("report",),
    )  # fmt: skip
    return [[by_name[name] for name in group] for group in groups]


def _at_once(context: Run, number: int, steps: list[Step], ids: Mapping[str, str], home: Path, corpus: Path) -> None:
    """Start commands at the same moment and look at what became of each."""
    commands = [(step, Command(step.arguments(ids), home, corpus)) for step in steps]
    made: Counter[str] = Counter()
    for step, command in commands:
        ended = command.wait()
        context.count("commands")
        if ended.code:
            context.fail(number, f"beside {len(steps) - 1} others: {ended}\n{ended.err[-2000:]}", home)
            continue
        said = str(ended.answer.get("id") or ended.answer["report"])
        if said != ids[step.name]:
            context.fail(number, f"{step.name} is {said}, alone it was {ids[step.name]}", home)
        made.update(_made(ended))
    for name, count in made.items():
        if count > 1:
            context.fail(number, f"{name} was made {count} times", home)
    context.count("groups of commands at once")


def _made(ended: Ended) -> list[str]:
    """Return the artifacts that a command says it has made, and not found."""
    lines = [line for line in ended.err.splitlines() if " -> " in line and "(reused" not in line]
    return [line.partition(" -> ")[2].partition(" (")[0] for line in lines]


def _compare(context: Run, step: int, home: Path, reference: Path, corpus: Path) -> None:
    ended = run(["sync"], home, corpus)
    if ended.code:
        context.fail(step, str(ended), home)
    for line in [*store_differences(reference, home), *catalog_differences(home), *mlflow_differences(reference, home)]:
        context.fail(step, line, home)
    context.count("homes compared")


def _improve_twice(context: Run, step: int, reference: Path, corpus: Path) -> None:
    """Let two programs improve in one new home at once."""
    home = context.folder / "improved-twice" / "home"
    home.parent.mkdir()
    commands = [Command(IMPROVE, home, corpus, is_program=True) for _ in range(2)]
    made: Counter[str] = Counter()
    for command in commands:
        ended = command.wait(300)
        for line in command.left_behind():
            context.fail(step, f"improve left behind: {line}", home)
        if ended.code:
            context.fail(step, f"{ended}\n{ended.err[-2000:]}", home)
        made.update(_made(ended))
        context.count("commands")
    for name, count in made.items():
        if count > 1:
            context.fail(step, f"{name} was made {count} times", home)
    context.count("whole commands at once", 2)
    _compare(context, step, home, reference, corpus)
    shutil.rmtree(home.parent) if not context.failures else None
