"""``python -m stress``: run campaigns, print what happened, exit with 1 where something was lost or wrong."""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stress.chain import make_corpus
from stress.harness import Run

SHARES = {"kills": 0.45, "files": 0.15, "tables": 0.1, "store": 0.12, "homes": 0.1, "database": 0.08}
# of the time; what a campaign leaves is the next one's


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    import conftest  # the environment of the tests: in memory, quiet, and each way out of this machine is written down

    root = Path(options.folder or tempfile.mkdtemp(prefix="clapcur-stress-"))
    root.mkdir(parents=True, exist_ok=True)
    corpus = make_corpus(root / "corpus")
    began = time.monotonic()
    runs = []
    left = sum(SHARES[name] for name in options.only)
    for name in options.only:
        remaining = began + 60 * options.minutes - time.monotonic()
        deadline = time.monotonic() + remaining * SHARES[name] / left
        left -= SHARES[name]
        runs.append(_run(name, options, root, corpus, deadline))
    minutes = (time.monotonic() - began) / 60
    left_machine = conftest.JOURNAL.read_text() if conftest.JOURNAL.exists() else ""
    if left_machine:
        runs[-1].fail(-1, f"commands tried to reach another machine:\n{left_machine}")
    print(summary(runs, options.seed, minutes))
    if options.json:
        told = [_for_programs(run) for run in runs]
        options.json.write_text(json.dumps({"seed": options.seed, "minutes": minutes, "campaigns": told}, indent=1))
    if any(run.failures for run in runs):
        print(f"everything is kept in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make stress", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=13, help="after which no further step begins")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SHARES), help="such as kills,files")
    parser.add_argument("--step", type=int, help="this step alone, as a failure names it")
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time")
    parser.add_argument("--folder", type=Path, help="where homes and sounds are made, instead of a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary for programs too")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(SHARES)):
        parser.error(f"no campaign is called {', '.join(unknown)}; they are {', '.join(SHARES)}")
    return options


def _run(name: str, options: argparse.Namespace, root: Path, corpus: Path, deadline: float) -> Run:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    context = Run(name, options.seed, folder, deadline, options.jobs, options.step)
    began = time.monotonic()
    context.say(f"begins, for {deadline - began:.0f} s")
    importlib.import_module(f"stress.{name}").campaign(context, corpus)
    context.seconds = time.monotonic() - began
    if not context.failures:
        shutil.rmtree(folder)
    return context


def _for_programs(run: Run) -> dict[str, Any]:
    return {
        "campaign": run.campaign, "seconds": run.seconds, "skipped": run.skipped, "counts": dict(run.counts),
        "failures": [dataclasses.asdict(failure) for failure in run.failures],
    }  # fmt: skip


def summary(runs: list[Run], seed: int, minutes: float) -> str:
    """Return the table that docs/reliability.md shows."""
    lines = [
        f"`make stress ARGS=\"--seed {seed}\"`, {minutes:.1f} minutes on {os.cpu_count()} cores of {_processor()}", "",
        "| campaign | what | number |", "|---|---|--:|",
    ]  # fmt: skip
    for run in runs:
        if run.skipped:
            lines.append(f"| {run.campaign} | skipped: {run.skipped} | |")
        for what, number in sorted(run.counts.items()):
            lines.append(f"| {run.campaign} | {what} | {number:,} |")
        lines.append(f"| {run.campaign} | **failures** | **{len(run.failures)}** |")
    for run in runs:
        for one in run.failures:
            lines.append(f"\nFAILED {one.campaign} step {one.step}: {one.what}\n  repeat: {one.repeat}")
    return "\n".join(lines)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return found[0] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
