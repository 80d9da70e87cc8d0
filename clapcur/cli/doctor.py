"""The command that checks the installation, the machine, the home and the servers."""

from dataclasses import asdict

from clapcur.cli.console import HomeOption, JsonOption, columns_table, print_json, show
from clapcur.cli.logs import chosen_home


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> int:
    """Find out why something does not work.

    Checks versions, GPU, CPU, the home and its disk, the catalog, the servers and environment variables. Each line is
    ok, a warning or a problem, with what to do. Writes nothing, and never waits long. Exits with code 1 if there is a
    problem.
    """
    from clapcur.cli.health import examine
    from clapcur.store.home import Home

    lines = examine(Home(chosen_home(home).absolute()))  # not opened: that would create it
    counts = {status: sum(line.status == status for line in lines) for status in ("problem", "warning", "ok")}
    if as_json:
        print_json(
            {"problems": counts["problem"], "warnings": counts["warning"], "lines": [asdict(one) for one in lines]}
        )
    else:
        rows = [(line.status, line.topic, line.found, line.advice) for line in lines]
        show(columns_table(("", "", "found", "what to do"), rows))
        show(f"problems: {counts['problem']}, warnings: {counts['warning']}")
    return 1 if counts["problem"] else 0
