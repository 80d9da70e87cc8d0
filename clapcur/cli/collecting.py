"""The commands that maintain the store: gc frees space, verify finds damage."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clapcur.cli.completion import artifacts
from clapcur.cli.console import HomeOption, JsonOption, columns_table, open_home, print_json, show

if TYPE_CHECKING:
    from clapcur.lineage.collection import Item, Plan

SHOWN = 10  # number of the largest artifacts in the table
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the artifacts; without this option, only list them.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Also keep this artifact and its inputs: an id, MLflow run or model; repeatable."
        ),
    ] = None,
    reports: Annotated[
        int | None, typer.Option(min=0, help="Keep only the newest N reports and their inputs; default: all reports.")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Keep everything newer than this many hours.")] = 24.0,
    forgotten: Annotated[
        bool,
        typer.Option(
            "--forgotten",
            help="Also delete embeddings, tags, sets and compositions that hold a forgotten clip, unless a kept model"
            " needs them.",
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete artifacts that no kept model needs.

    Keeps models with an alias, the newest version of each pool, reports, decisions, and everything these were made
    from. Lists what it would delete; --delete deletes it. Deleted artifacts are recomputed when needed.
    """
    where = open_home(home, must_exist=True)
    from clapcur.lineage import collection
    from clapcur.lineage.queries import find

    named = [find(where, name).id for name in keep or ()]
    chosen = collection.plan(where, named=named, reports=reports, grace_hours=grace, with_forgotten=forgotten)
    gone = collection.collect(where, chosen) if delete else []
    if as_json:
        print_json(_for_programs(chosen, gone, delete))
    else:
        _show(chosen, gone, delete, forgotten)


def verify(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Artifacts: ids or their first digits.",
            show_default=False,
            autocompletion=artifacts(),
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Check the whole store; the default if no ID is given.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check artifacts for damage.

    Hashes every file and compares it with the record. Lists how each damaged artifact can be recomputed, and which of
    them need their original sources. Changes nothing. Exits with code 1 if anything is damaged.
    """
    if ids and everything:
        raise typer.BadParameter("give ids or --all, not both")
    where = open_home(home, must_exist=True)
    from clapcur.lineage import verification

    count, damages = verification.verify(where, ids or ())
    if as_json:
        print_json(
            {
                "verified": count,
                "damaged": [
                    {
                        "id": one.id, "kind": one.kind, "label": one.label, "folder": str(one.folder),
                        "files": list(one.files), "why": one.why, "again": one.again, "by_whom": one.by_whom,
                    }
                    for one in damages
                ],
            }
        )  # fmt: skip
    else:
        rows = [(one.kind.replace("_", " "), one.id, one.label, one.why, one.again) for one in damages]
        if rows:
            show(columns_table(("", "id", "made by", "damage", "how to recompute it"), rows))
        show(f"{count:,} artifacts checked, {len(damages)} damaged.")
    return 1 if damages else 0


def _for_programs(chosen: "Plan", gone: "list[Item]", delete: bool) -> dict[str, Any]:
    def listed(items: "list[Item]") -> list[dict[str, Any]]:
        return [{"id": one.id, "kind": one.kind, "bytes": one.bytes, "why": one.why} for one in items]

    removed = gone if delete else chosen.removed
    return {
        "deleted": delete,
        "bytes": sum(item.bytes for item in removed),
        "removed": listed(removed),
        "kept": listed(chosen.kept),
        "being_made": chosen.making,
        "damaged": chosen.damaged,
        "kept_with_forgotten_clips": [item.id for item in chosen.tainted],
    }


def _show(chosen: "Plan", gone: "list[Item]", delete: bool, forgotten: bool) -> None:
    from clapcur.lineage.collection import by_kind

    removed = gone if delete else chosen.removed
    going, staying = by_kind(removed), by_kind(chosen.kept)
    rows = [
        (kind.replace("_", " "), f"{going.get(kind, (0, 0))[0]:,}", _size(going.get(kind, (0, 0))[1]),
         f"{staying.get(kind, (0, 0))[0]:,}", _size(staying.get(kind, (0, 0))[1]))
        for kind in sorted({*going, *staying}, key=lambda kind: -going.get(kind, (0, 0))[1])
    ]  # fmt: skip
    columns = ("", "removed" if delete else "to delete", "size", "kept", "size kept")
    show(columns_table(columns, rows, right=columns[1:]))
    if removed:
        largest = sorted(removed, key=lambda item: -item.bytes)[:SHOWN]
        shown = [(item.kind.replace("_", " "), item.id, item.label, _size(item.bytes), item.why) for item in largest]
        show("The largest:" if len(removed) > SHOWN else "All of them:")
        show(columns_table(("", "id", "made by", "size", "why"), shown, right=("size",)))
    if chosen.tainted:
        names = ", ".join(item.id for item in chosen.tainted[:5]) + (", ..." if len(chosen.tainted) > 5 else "")
        hint = "a kept model was made from them" if forgotten else "--forgotten removes those that no kept model needs"
        show(f"{len(chosen.tainted)} kept artifacts hold a clip that was taken down ({names}); {hint}.")
    if chosen.making and not delete and removed:
        show(f"{chosen.making} artifacts are being computed and may need some of these: wait until they are done.")
    if chosen.damaged:
        show(
            f"The record of {', '.join(chosen.damaged)} is damaged; all its inputs are kept. "
            "`clapcur verify --all` shows how to recompute it."
        )
    total = _size(sum(item.bytes for item in removed))
    if not delete:
        show(f"Nothing was deleted; --delete would free {total}." if removed else "Nothing to delete.")
        return
    left = len(chosen.removed) - len(gone)
    changed = f"; {left} changed in the meantime and were kept" if left else ""
    show(f"{len(gone)} deleted, {total} freed{changed}.")


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:,.0f} {UNITS[unit]}" if unit == 0 or size >= 10 else f"{size:,.1f} {UNITS[unit]}"
