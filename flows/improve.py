"""The common case: one student, compared with its teacher and the control."""

import dataclasses

from prefect import flow

from clapcur.data.rows import ImprovementSetName, Row
from clapcur.experiments.config import Experiment
from clapcur.flows.compare import compare
from clapcur.store.artifacts import Artifact


@flow(name="improve", flow_run_name="improve-{experiment.name}")
def improve(experiment: Experiment, strategy: ImprovementSetName = "pl", soft_labels: bool | None = None) -> Artifact:
    """Train one student, and compare it with the teacher and with the control.

    Parameters
    ----------
    experiment : Experiment
    strategy : str
        Strategy of the student's training pairs.
    soft_labels : bool, optional
        Whether the student is trained with soft labels; None: the default of the strategy (`Experiment.softens`).

    Returns
    -------
    Artifact
        The report, with the rows teacher, continued and the student, and with those rows of the experiment that
        post-train the teacher or this student.
    """
    soft = experiment.softens(strategy) if soft_labels is None else soft_labels
    rows = (Row(strategy="teacher"), Row(strategy="continued"), Row(strategy=strategy, soft_labels=soft))
    post_trained = tuple(row for row in experiment.rows if row.teminal and row.before in (rows[0], rows[2]))
    return compare.fn(dataclasses.replace(experiment, rows=rows + post_trained))
