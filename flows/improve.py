"""The common case: one student, beside its teacher and the control."""

import dataclasses

from prefect import flow

from clapcur.data.rows import ImprovementSetName, Row
from clapcur.experiments.config import Experiment
from clapcur.flows.compare import compare
from clapcur.store.artifacts import Artifact


@flow(name="improve", flow_run_name="improve-{experiment.name}")
def improve(experiment: Experiment, strategy: ImprovementSetName = "ads", soft_labels: bool = True) -> Artifact:
    """Make one student and say whether it beats the teacher, and the teacher trained on for the same budget.

    Returns
    -------
    Artifact
        The report of three rows: teacher, continued and the student; and of those of the experiment that post-train the
        teacher or this student.
    """
    rows = (Row(strategy="teacher"), Row(strategy="continued"), Row(strategy=strategy, soft_labels=soft_labels))
    post_trained = tuple(row for row in experiment.rows if row.teminal and row.before in (rows[0], rows[2]))
    return compare.fn(dataclasses.replace(experiment, rows=rows + post_trained))
