"""The commands for the full pipeline: demo, init, improve and compare. They run the flows."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from clapcur.cli.arguments import ClassFile
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    columns_table,
    command_line,
    open_home,
    print_json,
    show,
    working,
)
from clapcur.cli.planning import DryRunOption, show_dry_run
from clapcur.data.rows import ImprovementSetName, Row, chosen_rows
from clapcur.errors import DataError
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

if TYPE_CHECKING:
    from clapcur.experiments.config import Experiment

T = TypeVar("T")
ConfigFile = Annotated[
    Path | None, typer.Argument(help="Experiment file (YAML); `clapcur init` writes one.", show_default=False)
]

RecipeOption = Annotated[
    str | None,
    typer.Option(help="wang2023/table2 (the strategies) or wang2023/table3 (a teacher trained on 10 % of the pairs)."),
]
DatasetOption = Annotated[
    Literal["esc50", "us8k", "tut17"] | None, typer.Option(help="With --recipe: evaluation dataset.")
]
DataOption = Annotated[Path | None, typer.Option(help="With --recipe: folder of your copies of the corpora.")]
SelectionOption = Annotated[
    Literal["held_out", "reference"],
    typer.Option(
        help="With --recipe: select weights on held-out pairs, or on the test set as the reference code does."
    ),
]


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the synthetic audio and of the training.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the full pipeline on synthetic audio.

    Generates a small corpus of everyday sounds with captions, trains a teacher on a few pairs, curates DU, DS and ADS,
    trains a student on each with and without soft labels, and compares the students with the teacher and with the
    continued teacher. Takes a few minutes on two cores; a second run reuses all results.
    """
    where = open_home(home)
    with working():
        from clapcur.flows.demo import demo as flow

        report = run_flow(flow, seed=seed)
    if show_report(report, where, as_json):
        show(
            "The audio is synthetic: the table shows that the pipeline works, not how well it will do on your"
            " recordings.\n"
        )
        show_where_to_look(report, where)


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("clapcur.yaml"),
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    data: DataOption = None,
    selection: SelectionOption = "held_out",
) -> None:
    """Write an experiment file to start from.

    The file has comments and needs your paths; with --recipe it is a complete experiment of the paper.
    """
    if path.exists():
        raise DataError(f"{path} already exists; choose another file, or edit this one")
    if recipe is None:
        from clapcur.experiments.starter_file import text

        path.write_text(text(), encoding="utf-8")
    else:
        import yaml

        from clapcur.config import to_dict

        values = to_dict(paper_experiment(recipe, dataset, data, selection))
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    show(f"wrote {path}: fill in your paths, then run `clapcur improve {path}`")


def improve(
    config: ConfigFile = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Clips with captions: a table with columns path and caption.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="Audio without captions: a folder, a shard, a URL, or a table with a path column."),
    ] = None,
    classes: ClassFile = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            help="Clips with labels: a table with columns path and label, which `clapcur label` makes; default: "
            "nothing is measured."
        ),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="More captions, without audio: a table with a caption column.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Teacher: a CLAP checkpoint that `adopt` can import; default: train one on the pairs."),
    ] = None,
    tagger: Annotated[
        Path | None,
        typer.Option(help="YAMNet or PANNs weights: generate captions for the pool, so that --pairs is not needed."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the experiment, if no experiment file is given.")] = "my-sounds",
    strategy: Annotated[ImprovementSetName, typer.Option(help="Strategy that curates the student's pairs.")] = "pl",
    soft_labels: Annotated[
        bool | None,
        typer.Option(
            "--soft-labels/--hard-labels",
            help="Train the student with soft labels from the teacher; default: yes, except with pseudo-labels of a "
            "tagger.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 0,1,2; default: from the config, or 0.")] = "",
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Choose the numbers of training examples so that the command takes about this long; prints them as "
            "lines for the config.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student on your recordings to improve a teacher.

    Compares the student with its teacher and with the control: the teacher, trained further for the same budget.
    Give an experiment file, or the paths --pairs, --pool, --classes and --evaluation. With --tagger, or with a
    --checkpoint that tags the pool, you can omit --pairs: captions are generated for the pool. Without --evaluation a
    student is trained, but nothing shows whether it is better: `clapcur label` makes such a table from the pool.
    """
    given = {
        "--pairs": pairs, "--pool": pool, "--evaluation": evaluation, "--captions": captions, "--tagger": tagger
    }  # fmt: skip
    if config is not None and (any(given.values()) or checkpoint or classes):
        raise typer.BadParameter("give an experiment file or the paths, not both; the file holds the paths")
    generated = pairs is None and (tagger is not None or checkpoint is not None)
    first = {"--pool": pool} if generated else {"--pairs": pairs}
    needed = {**first, "--classes": classes}
    if config is None and (missing := [flag for flag, value in needed.items() if not value]):
        raise typer.BadParameter(f"give an experiment file, or {', '.join(missing)} as well")
    from clapcur.audio.addresses import is_url

    for flag, path in given.items():
        if path is not None and not is_url(str(path)) and not Path(path).exists():
            raise DataError(f"{flag} {path} does not exist")
    from clapcur.experiments import config as recipes

    if config is not None:
        experiment = recipes.experiment_from_file(config)
    else:
        assert classes
        experiment = recipes.starter(
            name=name, pairs=pairs, pool=pool, class_names=classes, evaluation=evaluation, captions=captions,
            checkpoint=checkpoint, tagger=str(tagger) if tagger else None, rows=(Row.parse(strategy),),
        )  # fmt: skip
    experiment = with_seeds(experiment, seeds)
    where = open_home(home)
    if minutes is not None:
        experiment = within_minutes(experiment, minutes, strategy=strategy, soft_labels=soft_labels)
    if dry_run:
        return show_dry_run("improve", experiment, as_json, strategy=strategy, soft_labels=soft_labels)
    with working():
        from clapcur.flows.improve import improve as flow

        report = run_flow(flow, experiment, strategy=strategy, soft_labels=soft_labels)
    if show_report(report, where, as_json):
        show_where_to_look(report, where)


def within_minutes(experiment: "Experiment", minutes: float, **options: Any) -> "Experiment":
    """Return the experiment with trainings that fit a time limit, and log what was chosen.

    Parameters
    ----------
    experiment : Experiment
    minutes : float
    **options
        Further arguments of the flow.
    """
    with working():
        from clapcur.flows import budget
        from clapcur.flows.improve import improve as flow

        chosen = budget.within(experiment, partial(flow.fn, **options), minutes)
    by = "a short measurement" if chosen.is_measured else "earlier runs in this home"
    uncounted = f", not counting {', '.join(chosen.unknown)}" if chosen.unknown else ""
    logging.getLogger("clapcur").info(
        "--minutes %g chose the numbers of training examples, for about %.1f min going by %s%s; in a config:\n%s",
        minutes, chosen.seconds / 60, by, uncounted, chosen.lines,
    )  # fmt: skip
    return chosen.experiment


def compare(
    config: ConfigFile = None,
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    data: DataOption = None,
    selection: SelectionOption = "held_out",
    seeds: Annotated[str, typer.Option(help="Seeds such as 0,1,2; default: from the config.")] = "",
    strategies: Annotated[
        str,
        typer.Option(help="Such as du,ads (with and without soft labels) or ads+sl; default: all rows in the config."),
    ] = "",
    dry_run: DryRunOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the strategies over seeds.

    Trains every strategy with and without soft labels, at the same sample budget.
    The teacher and the control (the teacher, trained further for the same budget) are always included.
    Give an experiment file, or a --recipe: a table of the paper, whose results are shown for comparison.
    """
    from dataclasses import replace

    from clapcur.experiments import config as recipes
    from clapcur.experiments import wang2023

    if (config is None) == (recipe is None):
        raise typer.BadParameter("give either an experiment file or --recipe")
    if config is not None:
        experiment = recipes.experiment_from_file(config)
    else:
        assert recipe is not None
        experiment = paper_experiment(recipe, dataset, data, selection)
    experiment = with_seeds(experiment, seeds)
    if strategies:
        experiment = replace(experiment, rows=rows_named(experiment, strategies))
    where = open_home(home)
    if dry_run:
        return show_dry_run("compare", experiment, as_json)
    with working():
        from clapcur.flows.compare import compare as flow

        report = run_flow(flow, experiment)
    if show_report(report, where, as_json):
        from clapcur.data.report_table import ReportTable

        rows = ReportTable.open(report).rows
        found = {line.row.name: (line.accuracy, line.sd) for line in rows if line.accuracy is not None}
        if lines := wang2023.beside(experiment.name, found):
            show(columns_table(("", "here", "Wang et al. 2023"), lines, right=("here", "Wang et al. 2023")), "")
        show_where_to_look(report, where)


def paper_experiment(recipe: str, dataset: str | None, data: Path | None, selection: str) -> "Experiment":
    """Return the experiment for one dataset in a table of the paper.

    Parameters
    ----------
    recipe : str
        Table of the paper, such as ``wang2023/table2``.
    dataset : str or None
        Evaluation set: ``esc50``, ``us8k`` or ``tut17``.
    data : Path or None
        Folder of the corpora.
    selection : {"held_out", "reference"}
        How weights are selected; see `clapcur.experiments.wang2023.experiment`.

    Raises
    ------
    BadParameter
        `dataset` or `data` is missing.
    """
    from clapcur.experiments import wang2023

    if dataset is None or data is None:
        raise typer.BadParameter("--recipe needs --dataset and --data, the folder of the corpora")
    return wang2023.experiment(recipe, dataset, data, selection)  # type: ignore[arg-type]  # it rejects other values


def rows_named(experiment: "Experiment", text: str) -> tuple["Row", ...]:
    """Return the rows that a text with commas names, and teacher and control."""
    try:
        return chosen_rows(experiment.rows, text.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def with_seeds(experiment: "Experiment", text: str) -> "Experiment":
    """Return the experiment with these seeds; unchanged if none are given."""
    from dataclasses import replace

    if not text:
        return experiment
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"seeds must be whole numbers separated by commas, such as 0,1,2, got {text!r}"
        ) from None
    return replace(experiment, seeds=seeds)


def run_flow(flow: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Run a flow in this process, with a temporary server if no other one runs."""
    from clapcur.servers.flow_server import flows_allowed

    with flows_allowed(Home.open()):
        return flow(*arguments, **options)


def scored_rows(report: Artifact, home: Home) -> list[dict[str, Any]]:
    """Return one entry per row and seed of a report, in the form that programs rely on; null: not measured."""
    from clapcur.data.report_table import ReportTable
    from clapcur.store.catalog import Catalog

    catalog = Catalog.open(home)
    return [
        {
            "strategy": line.strategy,
            "soft_labels": line.soft_labels,
            "seed": seed.seed,
            "accuracy": seed.accuracy,
            "interval": seed.interval,
            "transductive": seed.transductive,
            "checkpoint": seed.checkpoint,
            "improvement_set": seed.improvement_set,
            "mlflow_run_id": catalog.run_of(seed.checkpoint),
        }
        for line, seed in ReportTable.open(report).seeds
    ]


def show_report(report: Artifact, home: Home, as_json: bool) -> bool:
    """Print the table and the verdict of a report, or one line of JSON.

    Parameters
    ----------
    report : Artifact
    home : Home
    as_json : bool
        Whether to print JSON for programs.

    Returns
    -------
    bool
        Whether the table was printed, so that more text for people may follow.
    """
    from clapcur.data.report_table import ReportTable
    from clapcur.stages.report import render

    table = ReportTable.open(report)
    if as_json:
        print_json({"home": str(home.root), "verdict": table.conclusion, "rows": scored_rows(report, home)})
        return False
    show(render(table.rows))
    if table.conclusion:
        show(f"{table.conclusion}\n")
    changes = "Changes are in points, with paired 95 % intervals. " if table.is_measured else ""
    show(f"{changes}Full report: {report.path / 'report.html'}\n")
    return True


def show_where_to_look(report: Artifact, home: Home) -> None:
    """Print commands to run next, with real ids."""
    from clapcur.data.improvement_set import ImprovementSet
    from clapcur.data.report_table import ReportTable
    from clapcur.tracking import result_pages

    clapcur, verdict = command_line("clapcur", home), ReportTable.open(report).verdict
    if verdict is not None:
        place = home.store.folder("checkpoint", verdict.checkpoint)
        show(f"Model to use ({verdict.line.name}), for clapcur.load_model: {place}")
        show(registered_as(verdict.checkpoint, report.record.experiment, home))
    students = [row for row in scored_rows(report, home) if row["improvement_set"]]
    if students and verdict is None:
        place = home.store.folder("checkpoint", students[0]["checkpoint"])
        show(f"Student, for clapcur.load_model: {place}")
    if students:
        best = max(students, key=lambda row: row["accuracy"] or 0.0)
        chosen = ImprovementSet(home.store.folder("improvement_set", best["improvement_set"]))
        clip = next(chosen.blocks(["clip_id"]))["clip_id"][0].as_py()
        show(
            f"  {clapcur} trace {best['checkpoint']}    how it was made, down to every pair",
            f"  {clapcur} pairs {best['improvement_set']}    the pairs it learned from",
            f"  {clapcur} impact {clip[:12]}   everything derived from one of its clips",
            f"  {clapcur} audition {best['improvement_set']}    a page for listening to its pairs",
        )
    if page := result_pages(home).get(report.record.experiment):
        show(f"All models in MLflow, best first: {page}")
    else:
        show("Curves, sets and models are in MLflow, flows in Prefect; this prints the links:", f"  {clapcur} up")


def registered_as(checkpoint: str, dataset: str, home: Home) -> str:
    """Return a sentence with the name under which a checkpoint is registered in MLflow, or that it is not.

    Parameters
    ----------
    checkpoint : str
        Its id.
    dataset : str
        Name of the experiment.
    home : Home
    """
    from clapcur.data import champions
    from clapcur.store.readable import model_name

    standing = champions.standing(home.store, dataset)
    aliases = [alias for alias, artifact in standing.items() if artifact.id == checkpoint]
    if aliases:
        return f"It is registered in MLflow as {model_name(dataset)}@{aliases[0]}."
    if "champion" in standing:
        return f"Registered in MLflow as {model_name(dataset)}@champion is {standing['champion'].id}, by a decision."
    return "Nothing is registered in MLflow: only a student that beats its teacher is."
