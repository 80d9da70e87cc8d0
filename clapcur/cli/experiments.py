"""The commands that do the whole job: demo, init, improve and compare. They start the flows."""

from collections.abc import Callable, Sequence
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
from clapcur.data.rows import ImprovementSetName, Row
from clapcur.errors import DataError
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

if TYPE_CHECKING:
    from clapcur.experiments.config import Experiment

T = TypeVar("T")
ConfigFile = Annotated[
    Path | None, typer.Argument(help="An experiment as YAML; `clapcur init` writes one.", show_default=False)
]

RecipeOption = Annotated[
    str | None,
    typer.Option(help="wang2023/table2 (the strategies) or wang2023/table3 (a teacher of 10 % of the pairs)."),
]
DatasetOption = Annotated[Literal["esc50", "us8k", "tut17"] | None, typer.Option(help="With --recipe: what is scored.")]
DataOption = Annotated[Path | None, typer.Option(help="With --recipe: the folder of your copies of the corpora.")]
SelectionOption = Annotated[
    Literal["held_out", "reference"],
    typer.Option(help="With --recipe: held-out pairs choose the weights, or, as in the reference, the test set."),
]


def demo(
    seed: Annotated[int, typer.Option(help="Of the sounds and of the trainings.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on synthetic sounds.

    Generates a small corpus of procedural everyday sounds with captions, trains a teacher on few pairs, curates DU, DS
    and ADS, trains a student for each with and without soft labels, and compares all of them with the teacher and with
    the teacher trained on. A few minutes on two cores; run again, it is all there already.
    """
    where = open_home(home)
    with working():
        from clapcur.flows.demo import demo as flow

        report = run_flow(flow, seed=seed)
    if show_report(report, where, as_json):
        show(
            "These sounds are synthetic, made by formulas: the table shows that the machinery works,"
            " not what it does for yours.\n"
        )
        show_where_to_look(report, where)


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("clapcur.yaml"),
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    data: DataOption = None,
    selection: SelectionOption = "held_out",
) -> None:
    """Write a commented experiment file to start from, or one of the paper's in full."""
    if path.exists():
        raise DataError(f"{path} exists already; name another file, or edit this one")
    if recipe is None:
        from clapcur.experiments.starter_file import text

        path.write_text(text(), encoding="utf-8")
    else:
        import yaml

        from clapcur.config import to_dict

        values = to_dict(paper_experiment(recipe, dataset, data, selection))
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    show(f"wrote {path}: put your paths into it, then run `clapcur improve {path}`")


def improve(
    config: ConfigFile = None,
    pairs: Annotated[Path | None, typer.Option(help="Clips with captions: a table with path and caption.")] = None,
    pool: Annotated[
        str | None, typer.Option(help="Sounds without captions: a folder, a shard, a URL, or a table with path.")
    ] = None,
    classes: ClassFile = None,
    evaluation: Annotated[Path | None, typer.Option(help="Clips with labels: a table with path and label.")] = None,
    captions: Annotated[Path | None, typer.Option(help="More captions without sounds: a table with caption.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="A CLAP that is the teacher, as `adopt` takes it; default: one is trained on the pairs."),
    ] = None,
    tagger: Annotated[
        Path | None,
        typer.Option(help="YAMNet or PANNs: captions are generated for the pool, and no --pairs are needed."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the experiment, with paths.")] = "my-sounds",
    strategy: Annotated[ImprovementSetName, typer.Option(help="What the student learns from.")] = "pl",
    soft_labels: Annotated[
        bool | None,
        typer.Option(
            "--soft-labels/--hard-labels",
            help="Soften the student's targets; default: unless a tagger has a say in its pseudo-labels.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2; default: those of the config, or 0.")] = "",
    dry_run: DryRunOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a better student from your sounds.

    The student is beside its teacher and the control, which is the teacher trained on for the same budget.
    Give an experiment file, or the four paths --pairs, --pool, --classes and --evaluation. With --tagger, or with a
    --checkpoint that tags, --pairs may be left out: captions are generated for the pool.
    """
    given = {
        "--pairs": pairs, "--pool": pool, "--evaluation": evaluation, "--captions": captions, "--tagger": tagger
    }  # fmt: skip
    if config is not None and (any(given.values()) or checkpoint or classes):
        raise typer.BadParameter("give an experiment file or the paths, not both; the file names the paths")
    generated = pairs is None and (tagger is not None or checkpoint is not None)
    first = {"--pool": pool} if generated else {"--pairs": pairs}
    needed = {**first, "--classes": classes, "--evaluation": evaluation}
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
        assert classes and evaluation
        experiment = recipes.starter(
            name=name, pairs=pairs, pool=pool, class_names=classes, evaluation=evaluation, captions=captions,
            checkpoint=checkpoint, tagger=str(tagger) if tagger else None, rows=(Row.parse(strategy),),
        )  # fmt: skip
    experiment = with_seeds(experiment, seeds)
    where = open_home(home)
    if dry_run:
        return show_dry_run("improve", experiment, as_json, strategy=strategy, soft_labels=soft_labels)
    with working():
        from clapcur.flows.improve import improve as flow

        report = run_flow(flow, experiment, strategy=strategy, soft_labels=soft_labels)
    if show_report(report, where, as_json):
        show_where_to_look(report, where)


def compare(
    config: ConfigFile = None,
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    data: DataOption = None,
    selection: SelectionOption = "held_out",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2; default: those of the config.")] = "",
    strategies: Annotated[
        str,
        typer.Option(help="Such as du,ads (with and without soft labels) or ads+sl; default: all rows of the config."),
    ] = "",
    dry_run: DryRunOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the strategies over seeds.

    Every strategy with and without soft labels, at one sample budget.
    The teacher and the control (the teacher trained on for the same budget) are always among the rows.
    Give an experiment file, or a --recipe: a table of the paper, whose figures are shown beside.
    """
    from dataclasses import replace

    from clapcur.experiments import config as recipes
    from clapcur.experiments import wang2023

    if (config is None) == (recipe is None):
        raise typer.BadParameter("give an experiment file or --recipe; one of the two")
    if config is not None:
        experiment = recipes.experiment_from_file(config)
    else:
        assert recipe is not None
        experiment = paper_experiment(recipe, dataset, data, selection)
    experiment = with_seeds(experiment, seeds)
    if strategies:
        experiment = replace(experiment, rows=chosen_rows(experiment.rows, strategies))
    where = open_home(home)
    if dry_run:
        return show_dry_run("compare", experiment, as_json)
    with working():
        from clapcur.flows.compare import compare as flow

        report = run_flow(flow, experiment)
    if show_report(report, where, as_json):
        from clapcur.data.report_table import ReportTable

        found = {line.row.name: (line.accuracy, line.sd) for line in ReportTable.open(report).rows}
        if lines := wang2023.beside(experiment.name, found):
            show(columns_table(("", "here", "Wang et al. 2023"), lines, right=("here", "Wang et al. 2023")), "")
        show_where_to_look(report, where)


def paper_experiment(recipe: str, dataset: str | None, data: Path | None, selection: str) -> "Experiment":
    """Return a table of the paper on these data."""
    from clapcur.experiments import wang2023

    if dataset is None or data is None:
        raise typer.BadParameter("a recipe needs --dataset and --data, the folder of the corpora")
    return wang2023.experiment(recipe, dataset, data, selection)  # type: ignore[arg-type]  # it refuses others


def with_seeds(experiment: "Experiment", text: str) -> "Experiment":
    """Return the experiment with these seeds, or as it is where none are given."""
    from dataclasses import replace

    if not text:
        return experiment
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"seeds are whole numbers with commas between, such as 0,1,2, got {text!r}") from None
    return replace(experiment, seeds=seeds)


def chosen_rows(rows: Sequence["Row"], text: str) -> tuple["Row", ...]:
    """Return the rows of these strategies, and teacher and control; a row that the config lacks is added."""
    wanted = {"teacher", "continued"} | {name.strip().lower() for name in text.split(",")}
    there = {row.strategy for row in rows}
    added = (row for name in sorted(wanted) if (row := _row(name)) is not None and row not in rows)
    rows = (*rows, *(row for row in added if row.teminal or row.soft_labels or row.strategy not in there))
    known = {row.strategy for row in rows} | {row.name for row in rows} | {"teacher", "continued"}
    if unknown := sorted(wanted - known):
        raise typer.BadParameter(
            f"no row is called {', '.join(unknown)}; the rows are {', '.join(row.name for row in rows)}"
        )
    return tuple(row for row in rows if row.name in wanted or (row.strategy in wanted and not row.teminal))


def _row(name: str) -> "Row | None":
    """Return the row that a name means, whether or not the config has it; None where there is no such row."""
    try:
        return Row.parse(name)
    except ValueError:
        return None


def run_flow(flow: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Run a flow in this process, with a server that ends with it where no other is there."""
    from clapcur.servers.flow_server import flows_allowed

    with flows_allowed(Home.open()):
        return flow(*arguments, **options)


def scored_rows(report: Artifact, home: Home) -> list[dict[str, Any]]:
    """Return what programs rely on: one entry per row and seed of a report."""
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
    """Print the table and the verdict, or one line of JSON; return whether people are reading."""
    from clapcur.data.report_table import ReportTable
    from clapcur.stages.report import render

    table = ReportTable.open(report)
    if as_json:
        print_json({"home": str(home.root), "rows": scored_rows(report, home)})
        return False
    show(render(table.rows))
    if table.verdict is not None:
        show(f"{table.verdict.text}\n")
    show(f"Changes in points with their paired 95 % interval. The whole story: {report.path / 'report.html'}\n")
    return True


def show_where_to_look(report: Artifact, home: Home) -> None:
    """Print the next commands, with ids that exist."""
    from clapcur.data.improvement_set import ImprovementSet
    from clapcur.data.report_table import ReportTable

    clapcur, verdict = command_line("clapcur", home), ReportTable.open(report).verdict
    if verdict is not None:
        place = home.store.folder("checkpoint", verdict.checkpoint)
        show(f"The model to use ({verdict.line.name}), for clapcur.load_model: {place}")
    students = [row for row in scored_rows(report, home) if row["improvement_set"]]
    if students:
        best = max(students, key=lambda row: row["accuracy"])
        chosen = ImprovementSet(home.store.folder("improvement_set", best["improvement_set"]))
        clip = next(chosen.blocks(["clip_id"]))["clip_id"][0].as_py()
        show(
            f"  {clapcur} trace {best['checkpoint']}    what made it, down to every pair",
            f"  {clapcur} pairs {best['improvement_set']}    the pairs that it learned from",
            f"  {clapcur} impact {clip[:12]}   what one of its clips has touched",
            f"  {clapcur} audition {best['improvement_set']}    a page on which its pairs are heard",
        )
    show("Curves, sets and models in MLflow's page, flows in Prefect's:", f"  {clapcur} up")
