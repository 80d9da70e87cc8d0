"""The comparison: every strategy, with and without soft labels, at one sample budget, over seeds."""

from prefect import flow

from clapcur.config import signature
from clapcur.experiments import preflight
from clapcur.experiments.config import Experiment
from clapcur.flows.steps import checkpoint_of, improvement_sets, ingest_all, order_scores, score, teacher_of
from clapcur.stages.report import ReportConfig, ReportRow
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.report import report


@flow(name="compare", flow_run_name="compare-{experiment.name}")
def compare(experiment: Experiment) -> Artifact:
    """Train a teacher per seed and a student per row and seed, score all of them, and write the report.

    Returns
    -------
    Artifact
        The report; its inputs are the scores and checkpoints, from which every Improvement-Set and pair can be traced.
        Without an evaluation set there are no scores, and the report says that nothing was measured.
    """
    preflight.check_config(experiment)
    campaign = Campaign(experiment.name, f"compare {experiment.name}", signature(experiment))
    manifests = ingest_all(experiment, campaign)
    rows, inputs = [], {}
    for seed in experiment.seeds:
        teacher = teacher_of(experiment, seed, manifests, campaign)
        sets = improvement_sets(experiment, manifests, teacher, seed, campaign)
        for row in experiment.rows:
            checkpoint = checkpoint_of(experiment, row, seed, manifests, teacher, sets, campaign)
            line = ReportRow.of(row, seed)
            inputs[line.checkpoint] = checkpoint
            if experiment.evaluation is not None:
                inputs[line.scores] = score(experiment, row, seed, manifests, checkpoint, campaign)
            if experiment.order is not None:
                heard = order_scores(experiment.order, checkpoint, manifests["order"], row, seed, campaign)
                inputs[line.order_scores] = heard
            rows.append(line)
    return report(ReportConfig(title=experiment.name, rows=tuple(rows), note=experiment.note), inputs, campaign)
