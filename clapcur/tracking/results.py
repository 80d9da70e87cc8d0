"""The result of a comparison in the words of MLflow's pages: metrics and descriptions in Markdown.

Links are relative to MLflow's page, so that they work under any address.
"""

import json
from collections.abc import Mapping
from urllib.parse import quote

from clapcur.data import champions
from clapcur.data.decision import Decision
from clapcur.data.report_table import ReportTable, Verdict, change_in_points
from clapcur.store.artifacts import Artifact, Store
from clapcur.store.readable import model_name, spelled
from clapcur.store.record import Record
from clapcur.tracking import views

MAX_NOTE = 8000  # characters of a tag


def metrics(table: ReportTable) -> dict[str, float]:
    """Return the accuracy of every row, if it was measured, and its change from the teacher, in sections."""
    found = {}
    for line in table.rows:
        name = spelled(line.row.name)
        if line.accuracy is not None:
            found[f"accuracy/{name}"] = line.accuracy
        if line.vs_teacher is not None:
            found[f"vs_teacher/{name}"] = line.vs_teacher.change
    return found


def shown(table: ReportTable) -> list[str]:
    """Return the ids of the checkpoints and Improvement-Sets of a table, each once."""
    names = [name for _, seed in table.seeds for name in (seed.checkpoint, seed.improvement_set)]
    return list(dict.fromkeys(filter(None, names)))


def note(
    report: Artifact, table: ReportTable, experiment_id: str, run_id: str, run_of: Mapping[str, str | None]
) -> str:
    """Return the description of a comparison: verdict, table, links to its runs, and the flow run that made it.

    Parameters
    ----------
    report : Artifact
    table : ReportTable
        Its content.
    experiment_id, run_id : str
        MLflow's experiment, and the run of the comparison.
    run_of : mapping
        MLflow runs by the ids of `shown`; None for one without a run.
    """
    models = list(dict.fromkeys(run for _, seed in table.seeds if (run := run_of[seed.checkpoint])))
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (models, [experiment_id]))
    lines = [
        f"- [all models by accuracy]({views.link(experiment_id, 'models')})",
        f"- [these models side by side](#/compare-runs?runs={runs}&experiments={experiments})" if models else "",
        f"- [full report](#/experiments/{experiment_id}/runs/{run_id}/artifacts/report.html)",
    ]
    if page := report.record.tags.get("prefect.flow_run_url"):
        lines.append(f"- [flow run in Prefect]({page})")
    if (verdict := table.verdict) is not None:
        lines.append(f"- how the model to use was made: `clapcur trace {verdict.checkpoint}`")
    head = "| row | seed | model | Improvement-Set |\n|---|--:|---|---|\n"

    def linked(name: str | None) -> str:
        run = run_of.get(name) if name else None
        return f"[{name}](#/experiments/{experiment_id}/runs/{run})" if run else name or ""

    rows = [
        f"| {line.name} | {seed.seed} | {linked(seed.checkpoint)} | {linked(seed.improvement_set)} |\n"
        for line, seed in table.seeds
    ]
    parts = [(report.path / "table.md").read_text(encoding="utf-8"), "\n".join(filter(None, lines)) + "\n"]
    text = "\n".join(parts)
    with_runs = "\n".join((text, head + "".join(rows)))
    return next((said for said in (with_runs, text) if len(said) <= MAX_NOTE), text[:MAX_NOTE])


def prefect_tags(record: Record) -> dict[str, str]:
    """Return the tags of a record that name the flow run that made it; empty if it was made without a server."""
    return {name: str(value) for name, value in record.tags.items() if name.startswith("prefect.")}


def model_head(dataset: str) -> str:
    """Return the first sentence of the description of a dataset's registered model."""
    return f"Students of {dataset}: audio-text models (CLAP) that were trained on its Improvement-Sets."


def model_note(store: Store, dataset: str, standing: Mapping[str, Artifact]) -> str:
    """Return the description of a dataset's registered model: what it is, which version to use, and why.

    Parameters
    ----------
    store : Store
    dataset : str
    standing : mapping
        Checkpoints by alias, as `clapcur.data.champions.standing` returns them.
    """
    parts, name = [model_head(dataset)], model_name(dataset)
    if made := champions.decisions(store, dataset):
        decided = made[-1][1]
        parts.append(f"Use `{name}@champion`. The last decision {_promoted(decided)}: {decided.why}.")
    elif compared := champions.newest_comparison(store, dataset):
        verdict = compared[1].verdict
        assert verdict is not None
        if champions.RECOMMENDED in standing:
            parts.append(f"Use `{name}@{champions.RECOMMENDED}`. {verdict.text}\n\n{_scores(verdict)}")
        elif verdict.is_better:
            why = "the winner of the last comparison is lost, or was made from a clip that was taken down"
            parts.append(f"No version is recommended: {why}.")
        else:
            parts.append(f"No version is recommended. {verdict.text}")
    parts.append(
        "`clapcur trace ID` shows how a model was made, down to every pair; the tag `clapcur.artifact` is its id."
    )
    return "\n\n".join(parts)


def version_note(store: Store, dataset: str, checkpoint: Artifact) -> tuple[str, dict[str, str]]:
    """Return the description of a version with its scores, and the same scores as tags; both empty without scores.

    Parameters
    ----------
    store : Store
    dataset : str
    checkpoint : Artifact
    """
    for _, decided in reversed(champions.decisions(store, dataset)):
        role = {decided.challenger: "challenger", decided.champion: "champion"}.get(checkpoint.id)
        if role is not None:
            text = f"{_percent(decided.accuracy[role])} accuracy on {decided.num_clips:,} clips. "
            return f"{text}As {role}: {decided.why}.", {"accuracy": f"{decided.accuracy[role]:.4f}"}
    if compared := champions.newest_comparison(store, dataset):
        for line, seed in compared[1].seeds:
            if seed.checkpoint == checkpoint.id and seed.accuracy is not None and seed.interval is not None:
                low, high = seed.interval
                verdict = compared[1].verdict
                told = f"{line.name}, seed {seed.seed}: {_percent(seed.accuracy)} [{_percent(low)}, {_percent(high)}]"
                scores = {"accuracy": f"{seed.accuracy:.4f}", "interval": f"{low:.4f} to {high:.4f}"}
                if line.vs_teacher is not None:
                    scores["vs_teacher"] = f"{change_in_points(line.vs_teacher)} points"
                return f"{told}. {verdict.text if verdict else ''}".rstrip(), scores | {
                    "clapcur.report": compared[0].id
                }
    return "", {}


def _promoted(decided: Decision) -> str:
    return "promoted the challenger" if decided.promoted else "kept the champion"


def _scores(verdict: Verdict) -> str:
    rows = {line.name: line for line in (verdict.best, verdict.teacher)}
    return "| | accuracy | 95 % interval |\n|---|--:|--:|\n" + "".join(
        f"| {name} | {_percent(line.accuracy)} | {' to '.join(map(_percent, line.interval))} |\n"
        for name, line in rows.items()
        if line.accuracy is not None and line.interval is not None
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
