"""Write artifacts to MLflow as runs; mlflow is imported inside functions only.

An artifact is one run, found by its tag, below the parent run of its campaign. A checkpoint is also a logged model;
manifests, Improvement-Sets and compositions are datasets; checkpoints that a gate has compared are registered, with
aliases, and so is the student that won a comparison. The parent run of a comparison has its verdict, table and report.
Sending the same message again changes nothing.
"""

import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clapcur.data import champions
from clapcur.data.report_table import ReportTable
from clapcur.errors import ArtifactError
from clapcur.store import readable
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign, Catalog, Message
from clapcur.store.home import Home
from clapcur.store.record import Record
from clapcur.tracking import fields, results, views
from clapcur.tracking.database import prepared
from clapcur.tracking.dataset_source import ArtifactSource
from clapcur.tracking.models import write_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "clapcur"  # for artifacts that were made outside any campaign
CAMPAIGN = {views.KIND_TAG: "campaign", views.DETAIL_TAG: "false"}  # tags of parent runs
DATASETS = ("manifest", "improvement_set", "compositions")
UPLOADED = (".png", ".html", ".csv", ".md")
UPLOADED_NAMES = ("card.json", "scores.json", "config.json", "decision.json")
MAX_UPLOAD = 20 * 2**20  # bytes; larger tables stay in the store, and MLflow gets a sample
SAMPLE_ROWS = 10_000

log = logging.getLogger("clapcur")


class MlflowPage:
    """Writes artifacts to one MLflow; repeating a call does no harm.

    Methods that search for a run and create it if it is missing must be called under the lease of `clapcur.tracking`.
    """

    def __init__(self, home: Home, catalog: Catalog) -> None:
        self._home, self._catalog, self._store = home, catalog, home.store
        self.client = connect(home)
        self._known: dict[tuple[str, str], set[tuple[int, float]]] = {}
        self._parents: dict[Campaign, Run] = {}
        self._ends: dict[str, int] = {}

    def tell(self, message: Message) -> bool:
        """Send one message, and return whether MLflow accepted it; raise only if MLflow is down."""
        try:
            artifact = self._store.find(message.artifact_id)
            if message.topic == "record":
                self._tell_record(artifact)
            else:
                self._tell_use(artifact, Campaign(**message.payload["campaign"]))
        except Exception as error:  # one message that MLflow rejects must not delay the others
            self.client.search_experiments(max_results=1)  # raises if MLflow is down
            log.warning("MLflow rejected %s: %s", message.artifact_id, one_line(error))
            return False
        return True

    def open_run(self, record: Record) -> "Run":
        """Return the run of an artifact; create it below the run of its campaign if it is missing."""
        known = self._catalog.run_of(record.id)
        if known and (run := self._live_run(known)):
            return run
        run = self._find(fields.ARTIFACT_TAG, record.id)
        if run is None:
            parent = self._parent(Campaign(**record.campaign), record.started) if record.campaign else None
            run = self.client.create_run(
                parent.info.experiment_id if parent else self._experiment(EXPERIMENT),
                start_time=_ms(record.started),
                run_name=fields.run_name(record),
                tags={fields.ARTIFACT_TAG: record.id} | ({"mlflow.parentRunId": parent.info.run_id} if parent else {}),
            )
        self._catalog.set_run(record.id, run.info.run_id)
        return run

    def describe(self, run: "Run", record: Record) -> None:
        """Write the params and tags of a record."""
        from mlflow.entities import Param, RunTag

        uri = str(self._store.folder(record.kind, record.id))
        new = [Param(*item) for item in fields.params(record).items() if item[0] not in run.data.params]
        tags = [RunTag(*item) for item in fields.tags(record, uri).items()]
        for start in range(0, max(len(new), len(tags)), 100):
            part = slice(start, start + 100)
            self.client.log_batch(run.info.run_id, params=new[part], tags=tags[part])

    def mend_statuses(self) -> None:
        """End the runs of finished artifacts, and of artifacts that no process is making any more."""
        where = [experiment.experiment_id for experiment in self.client.search_experiments()]
        for run in self._search(where, "attributes.status != 'FINISHED'"):
            name = run.data.tags.get(fields.ARTIFACT_TAG)
            if name is None or self._catalog.run_of(name) not in (None, run.info.run_id):
                continue
            is_left = run.info.status == "RUNNING" and not self._catalog.is_being_made(name)
            self.set_status(run.info.run_id, name, "KILLED" if is_left else None)

    def set_status(self, run_id: str, artifact_id: str, status: str | None) -> "Run":
        """Set the status of an artifact's run unless it is None, and return the run.

        If the artifact is in the store, its run becomes FINISHED, whatever the status. The store is checked before and
        after, because another process may finish the artifact and its run in between.

        Parameters
        ----------
        run_id : str
        artifact_id : str
        status : str or None
            Status in MLflow, such as RUNNING, FAILED or KILLED.
        """
        if status and self._record_of(artifact_id) is None:
            change = self.client.update_run if status == "RUNNING" else self.client.set_terminated
            change(run_id, status)
        run = self.client.get_run(run_id)
        if record := self._record_of(artifact_id):
            self._end(run, _ms(record.finished))
            run = self.client.get_run(run_id)
        return run

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments with our views by name, the newest first."""
        found = self.client.search_experiments(order_by=["creation_time DESC"])
        ours = f"{views.VIEW_TAG}{views.VIEWS[0].key}"
        return {experiment.name: str(experiment.experiment_id) for experiment in found if ours in experiment.tags}

    def add_points(self, run: "Run", points: Iterable[tuple[int, int, Mapping[str, float]]], **of: str | None) -> None:
        """Add points (step, time in ms, metrics); values that a step already has are skipped.

        `of` may name the model and the dataset that the metrics describe (``model_id``, ``dataset_name``,
        ``dataset_digest``); then nothing is skipped.
        """
        from mlflow.entities import Metric

        new = []
        for step, time_ms, metrics in points:
            for name, value in metrics.items():
                known = self._points(run, name)
                if of or (step, value) not in known:
                    new.append(Metric(name, value, time_ms, step, **of))
                    known.add((step, value))
        for start in range(0, len(new), 1000):
            self.client.log_batch(run.info.run_id, metrics=new[start : start + 1000])

    def _tell_record(self, artifact: Artifact) -> None:
        record = artifact.record
        run = self.open_run(record)
        run_id = run.info.run_id
        self.describe(run, record)
        self.add_points(run, readable.history(artifact.path))
        finished = _ms(record.finished)
        last_step = readable.last_step(artifact.path)
        self.add_points(run, [(last_step, finished, readable.metrics(record))])
        if datasets := self._inputs(artifact):
            self.client.log_inputs(run_id, datasets)
        if artifact.kind == "checkpoint":
            self._model(artifact, run)
        if artifact.kind in ("scores", "order_scores"):
            self._tell_scores(record)
        if artifact.kind == "decision":
            self._tell_standing(record.config["dataset"])
        if verdict := record.facts.get("verdict"):
            self.client.set_tag(run_id, views.NOTE_TAG, verdict)
        if artifact.kind == "report" and record.campaign:
            self._tell_result(artifact, self._parent(Campaign(**record.campaign), record.started))
            self._tell_standing(record.experiment)
        if artifact.kind == "tombstone":
            self.tell_standings()
        self._upload(artifact, run_id)
        self._end(run, finished)
        if record.campaign:
            self._end(self._parent(Campaign(**record.campaign), record.started), finished)

    def _tell_use(self, artifact: Artifact, campaign: Campaign) -> None:
        """Tag an artifact that a later campaign reused; its run stays below the campaign that made it."""
        run, parent = self.open_run(artifact.record), self._parent(campaign, time.time())
        if artifact.kind == "report":
            self._tell_result(artifact, parent)
        self._end(parent, _ms(time.time()))
        self.client.set_tag(run.info.run_id, f"clapcur.used_by.{campaign.key[:12]}", campaign.name)

    def _tell_result(self, report: Artifact, parent: "Run") -> None:
        """Add the verdict, the accuracy of every row, the table and the report to the run of a comparison."""
        from mlflow.entities import RunTag

        table, record, run_id = ReportTable.open(report), report.record, parent.info.run_id
        self.add_points(parent, [(0, _ms(record.finished), results.metrics(table))])
        run_of = {name: self._catalog.run_of(name) for name in results.shown(table)}
        note = results.note(report, table, parent.info.experiment_id, run_id, run_of)
        tags = {views.NOTE_TAG: note, "clapcur.report": report.id, **CAMPAIGN, **results.prefect_tags(record)}
        self.client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
        self._upload(report, run_id)

    def _tell_scores(self, record: Record) -> None:
        """Add scores to the checkpoint's run and model, so that runs can be sorted by them."""
        if "checkpoint" not in record.inputs:
            return
        checkpoint = self._store.find(record.inputs["checkpoint"])
        run = self.open_run(checkpoint.record)
        about: dict[str, str | None] = {"model_id": self._model(checkpoint, run)}
        if measured := record.inputs.get("evaluation", record.inputs.get("compositions")):
            evaluation = self._store.find(measured).record
            about["dataset_name"] = readable.dataset_name(evaluation)
            about["dataset_digest"] = readable.digest(evaluation)
            self.client.log_inputs(run.info.run_id, [self._dataset(evaluation, "evaluation")])
        numbers = {name: value for name, value in readable.metrics(record).items() if not name.startswith("count.")}
        if dataset := record.tags.get("dataset"):
            numbers |= readable.flat({f"{dataset}/{name}": value for name, value in numbers.items()})
        step = readable.last_step(checkpoint.path)
        self.add_points(run, [(step, _ms(record.finished), numbers)], **about)

    def tell_standings(self) -> None:
        """Set all aliases to the checkpoints that have them now; a take-down moves aliases without a decision."""
        for dataset in champions.datasets(self._store):
            self._tell_standing(dataset)

    def _tell_standing(self, dataset: str) -> None:
        """Set the aliases of a dataset's registered model: teacher, champion and challenger, or the recommended one."""
        from mlflow.exceptions import MlflowException

        name, standing = readable.model_name(dataset), champions.standing(self._store, dataset)
        try:
            model = self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if not standing:
                return
            model = self.client.create_registered_model(name, {"clapcur.dataset": dataset})
        told = results.model_note(self._store, dataset, standing)
        written = model.description or ""
        if told != written and (not written or written.startswith(results.model_head(dataset))):
            self.client.update_registered_model(name, told)
        for alias in (*champions.ALIASES, champions.RECOMMENDED):
            if alias in model.aliases and alias not in standing:
                self.client.delete_registered_model_alias(name, alias)
        for alias, checkpoint in standing.items():
            version = self._version(name, dataset, checkpoint)
            if model.aliases.get(alias) != version:
                self.client.set_registered_model_alias(name, alias, version)

    def _version(self, name: str, dataset: str, checkpoint: Artifact) -> str:
        """Return the version under which a checkpoint is registered; register it if it is not."""
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(fields.ARTIFACT_TAG) == checkpoint.id:
                return str(version.version)
        run = self.open_run(checkpoint.record)
        model = self.client.get_logged_model(self._model(checkpoint, run))
        note, scores = results.version_note(self._store, dataset, checkpoint)
        tags = fields.tags(checkpoint.record, checkpoint.uri) | scores
        made = self.client.create_model_version(
            name, model.artifact_location, run.info.run_id, tags, description=note, model_id=model.model_id
        )
        return str(made.version)

    def _model(self, checkpoint: Artifact, run: "Run") -> str:
        """Return the id of the checkpoint's logged model; its weights stay in the store."""
        from mlflow.entities import LoggedModelOutput

        record, run_id = checkpoint.record, run.info.run_id
        ours = f"tags.`{fields.ARTIFACT_TAG}` = '{checkpoint.id}'"
        found = self.client.search_logged_models([run.info.experiment_id], ours, max_results=1)
        model = found[0] if found else self.client.create_logged_model(
            run.info.experiment_id,
            name=f"{fields.run_name(record)} {checkpoint.id}".translate(str.maketrans("/:.%\"'", "______")),
            source_run_id=run_id,
            params=fields.params(record),
            tags=fields.tags(record, checkpoint.uri),
            model_type="clap",
        )  # fmt: skip
        if str(model.status) != "READY":
            with tempfile.TemporaryDirectory() as folder:
                write_model(checkpoint, model, Path(folder, "model"))
                self.client.log_model_artifacts(model.model_id, f"{folder}/model")
            self.client.finalize_logged_model(model.model_id, "READY")
        outputs = self.client.get_run(run_id).outputs
        named = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if model.model_id not in named:
            step = readable.last_step(checkpoint.path)
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return str(model.model_id)

    def _inputs(self, artifact: Artifact) -> list["DatasetInput"]:
        """Return the datasets that are inputs of an artifact, and the artifact itself if it is a dataset."""
        record = artifact.record
        roles = defaultdict(list)
        for role, name in readable.shown_inputs(record).items():
            roles[name].append(role)
        datasets = [self._dataset(record, "output")] if artifact.kind in DATASETS else []
        for name, kind in self._catalog.kinds(roles).items():
            if kind in DATASETS:
                source = self._store.find(name).record
                datasets.append(self._dataset(source, ", ".join(sorted(roles[name]))))
        return datasets

    def _dataset(self, record: Record, context: str) -> "DatasetInput":
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        uri = str(self._store.folder(record.kind, record.id))
        dataset = Dataset(
            name=readable.dataset_name(record),
            digest=readable.digest(record),
            source_type=ArtifactSource.TYPE,
            source=ArtifactSource(uri, record.key_sha256).to_json(),
            profile=json.dumps(record.counts),
        )
        return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])

    def _upload(self, artifact: Artifact, run_id: str) -> None:
        """Upload figures, cards and small tables; files that MLflow has in the same size are skipped."""
        sizes = {name: entry["bytes"] for name, entry in artifact.record.files.items()}
        pairs = "pairs.parquet" if artifact.kind == "improvement_set" else ""
        if sizes.get(pairs, 0) > MAX_UPLOAD:
            self._upload_sample(artifact.path / pairs, run_id)
        shown = [name for name in sizes if Path(name).suffix in UPLOADED or name in (*UPLOADED_NAMES, pairs)]
        there = {file.path: file.file_size for file in self.client.list_artifacts(run_id)} if shown else {}
        for name in shown:
            if there.get(name) != sizes[name] <= MAX_UPLOAD:
                folder = str(Path(name).parent) if "/" in name else None
                self.client.log_artifact(run_id, str(artifact.path / name), folder)

    def _upload_sample(self, path: Path, run_id: str) -> None:
        """Upload the first pairs; ids are hashes, so the first clips are a random sample."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as pairs, tempfile.TemporaryDirectory() as folder:
            sample = pa.Table.from_batches([next(pairs.iter_batches(SAMPLE_ROWS))])
            pq.write_table(sample, f"{folder}/pairs_sample.parquet")
            self.client.log_artifact(run_id, f"{folder}/pairs_sample.parquet")
            told = f"{sample.num_rows:,} of {pairs.metadata.num_rows:,} pairs; all are in {path}"
        self.client.set_tag(run_id, "clapcur.pairs", told)

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            here = None  # a server knows where its files go; without one they are in the home
            if not self._home.mlflow_uri.startswith("http"):
                here = (self._home.mlflow_artifacts / readable.folder_name(name)).as_uri()
            kind = {"mlflow.experimentKind": "custom_model_development"}  # opens on runs, not on chat traces
            made = str(self.client.create_experiment(name, artifact_location=here, tags=kind))
            return self._described(made, {})
        if experiment.lifecycle_stage != "active":
            self.client.restore_experiment(experiment.experiment_id)
        return self._described(str(experiment.experiment_id), experiment.tags)

    def _described(self, experiment_id: str, tags: Mapping[str, str]) -> str:
        """Add the description and the views that an experiment lacks; those that people changed stay."""
        for name, value in views.experiment_tags(experiment_id).items():
            if name not in tags:
                self.client.set_experiment_tag(experiment_id, name, value)
        return experiment_id

    def _parent(self, campaign: Campaign, started: float) -> "Run":
        """Return the run of a campaign; it starts with the first of its artifacts."""
        if campaign not in self._parents:
            experiment = self._experiment(campaign.experiment)
            found = self._find(fields.CAMPAIGN_TAG, campaign.key, experiment)
            self._parents[campaign] = found or self.client.create_run(
                experiment,
                start_time=_ms(started),
                run_name=campaign.name,
                tags={fields.CAMPAIGN_TAG: campaign.key, **CAMPAIGN},
            )
        return self._parents[campaign]

    def _end(self, run: "Run", end_ms: int) -> None:
        """End a run; the run of a campaign ends with the last of its artifacts."""
        run_id = run.info.run_id
        self._ends[run_id] = max(self._ends.get(run_id, 0), run.info.end_time or 0, end_ms)
        if (run.info.status, run.info.end_time) != ("FINISHED", self._ends[run_id]):
            self.client.set_terminated(run_id, "FINISHED", self._ends[run_id])

    def _find(self, tag: str, value: str, experiment: str | None = None) -> "Run | None":
        everywhere = (e.experiment_id for e in self.client.search_experiments())
        where = [experiment] if experiment else list(everywhere)
        found = self.client.search_runs(where, f"tags.`{tag}` = '{value}'", max_results=1)
        return found[0] if found else None

    def _search(self, where: list[str], wanted: str) -> "Iterator[Run]":
        """Yield all runs of some experiments, page by page."""
        token = None
        while where:
            found = self.client.search_runs(where, wanted, page_token=token)
            yield from found
            if not (token := found.token):
                return

    def _record_of(self, name: str) -> Record | None:
        """Return the record of an artifact; None if it is not finished."""
        try:
            return self._store.find(name).record
        except ArtifactError:
            return None

    def _live_run(self, run_id: str) -> "Run | None":
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _points(self, run: "Run", name: str) -> set[tuple[int, float]]:
        """Return the points (step, value) of a metric in a run; they are read once and then updated here."""
        key = (run.info.run_id, name)
        if key not in self._known:
            has_some = name in run.data.metrics
            history = self.client.get_metric_history(*key) if has_some else []
            self._known[key] = {(point.step, point.value) for point in history}
        return self._known[key]


def connect(home: Home) -> "MlflowClient":
    """Return a quiet client of the home's MLflow, without telemetry, after preparing its database."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        **home.login_of_mlflow(),
    }.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    uri = home.mlflow_uri
    with prepared(home, uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def one_line(error: BaseException) -> str:
    """Return the message of a library's error, shortened to one line for a log."""
    return " ".join(str(error).split())[:300]
