"""Experiments as full configs: what is ingested, how teacher and students are trained, what is curated and compared.

An `Experiment` is all that a flow needs. It is read from a YAML file (`experiment_from_file`), built from a few paths
(`starter`), or returned by a recipe that reproduces a paper. By default, every row of a comparison sees the same number
of examples, and ``continued`` (the teacher, trained further with the same budget) is one of the rows.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clapcur.audio.addresses import absolute, is_url
from clapcur.config import added, check_seed, from_dict, frozen, read_mapping
from clapcur.data.class_names import (
    PROMPT,
    check_class_names,
    check_prompt,
    find_class_names,
    prompts,
    read_class_names,
)
from clapcur.data.marks import marks_from_file
from clapcur.data.rows import FROM_POOL, PAPER_ROWS, TAGGED, ImprovementSetName, PoolSetName, Row
from clapcur.data.tables import whole_number
from clapcur.experiments.captioning import Captioning, captioning_values, tower_of
from clapcur.experiments.order import OrderEvaluation, PostTraining
from clapcur.methods.thresholds import Threshold
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.curate import CurateConfig, Curation
from clapcur.stages.evaluate import EvaluateConfig
from clapcur.stages.ingest import POOL, IngestConfig
from clapcur.stages.pseudo_label import PseudoLabelConfig
from clapcur.stages.tagger import TaggerConfig
from clapcur.stages.train import SoftLabels, TrainConfig

if TYPE_CHECKING:  # it imports scipy's filters, which only the demo needs
    from clapcur.corpora.synthetic.procedural import Corpus

CURATION_FIELDS = frozenset(field.name for field in dataclasses.fields(Curation))


@frozen
class LandingRules:
    """When sounds that landed in a pool make a new student, and which one."""

    min_new_clips: int = 100
    """Number of new clips that starts the next curation."""
    max_wait_hours: float = 168.0
    """Maximum wait in hours, after which fewer new clips also start a curation."""
    min_changed: float = 0.02
    """Minimum fraction of changed pairs in the Improvement-Set; below it no student is trained."""
    strategy: PoolSetName = "ads"
    """Strategy of the new student's Improvement-Set; tagcap and tagcap-classes need `captioning`."""
    soft_labels: bool = True
    """Whether the new student is trained with soft labels."""
    min_change: float = 0.0
    """The student becomes champion if the lower end of the interval of its change in accuracy exceeds this value."""

    def __post_init__(self) -> None:
        """Reject numbers that make no sense."""
        if self.min_new_clips < 1:
            raise ValueError(f"min_new_clips must be at least 1, got {self.min_new_clips}")
        if not self.max_wait_hours >= 0:
            raise ValueError(f"max_wait_hours must be 0 or more, got {self.max_wait_hours:g}")
        if not 0 <= self.min_changed <= 1:
            raise ValueError(f"min_changed must be a fraction in [0, 1], got {self.min_changed:g}; a percentage?")

    @property
    def row(self) -> Row:
        """The new student as a row of a comparison."""
        return Row(strategy=self.strategy, soft_labels=self.soft_labels)


@frozen
class Experiment:
    """A dataset, a teacher, the curation and the rows that are compared."""

    name: str
    """Name of the dataset, and of the MLflow experiment."""
    pairs: IngestConfig | None
    """Captioned clips to train the teacher on. null: the pool, with generated captions, so that no captions need to be
    written."""
    more_pairs: tuple[IngestConfig, ...] = ()
    """Further tables and corpora of captioned clips."""
    share_of_pairs: float = 1.0
    """Fraction of the pairs' source recordings to train the teacher on; less than 1 gives a weaker teacher."""
    evaluation: IngestConfig | None = None
    """Labelled clips, used for evaluation only; null: nothing is measured (`clapcur label` makes such a table)."""
    class_names: tuple[str, ...]
    """Class names: a list, a file with one name per line, or a built-in list such as esc50."""
    pool: IngestConfig | None = None
    """Unpaired audio, in which DU and ADS find new pairs."""
    captions: IngestConfig | None = None
    """Unpaired captions; None: the captions of the pairs."""
    prompt: str = PROMPT
    """Class prompt; {} is replaced by the class name."""
    checkpoint: AdoptConfig | None = None
    """A pretrained model: the teacher itself, or the starting point for training the teacher."""
    teacher: TrainConfig | None
    """Training of the teacher; None: use the checkpoint as the teacher, unchanged."""
    student: TrainConfig
    """Training of every student; `soft_labels` is added for rows with soft labels."""
    soft_labels: SoftLabels = SoftLabels()
    """Soft targets, for rows with soft labels."""
    curation: Curation = Curation()
    """How the pairs of every Improvement-Set are chosen."""
    du_threshold: Threshold | None = None
    """Audio threshold of DU; None: that of the curation."""
    ads_replay: Literal["ds", "teacher_pairs"] = "teacher_pairs"
    """Pairs that an ADS student replays: the DS set (as in the paper) or the teacher's pairs."""
    ds_replays: bool = True
    """Whether a DS student replays the teacher's pairs; in the paper it is trained on DS only."""
    num_crops: int = 1
    """Number of crops per clip in every embedding, spread over the clip and averaged."""
    rows: tuple[Row, ...] = PAPER_ROWS
    """Rows to compare."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each gives one teacher and one set of students."""
    post_training: PostTraining = PostTraining()
    """Post-training on the order of sounds, for rows with TeminAL; uses the seed of the row."""
    single_sounds: IngestConfig | None = None
    """Labelled clips of single sounds to compose in post-training; None: clips of the row's Improvement-Set, or of DS
    if that has no classes; these need no labels."""
    captioning: Captioning | None = added(None)
    """How captions are generated for the pool, for rows with tagcap or if there are no pairs; null: no captions are
    generated."""
    pseudo_labels: PseudoLabelConfig = added(PseudoLabelConfig())
    """How rows with pl find the class of each pool clip; class names and prompt are those of the experiment."""
    order: OrderEvaluation | None = None
    """How the recognition of the order of sounds is scored for each row; None: not scored."""
    note: str = ""
    """A note for readers of the report."""
    on_landing: LandingRules = LandingRules()
    """When new clips in a pool (`pool: pool:NAME`) trigger a new student."""

    def __post_init__(self) -> None:
        """Reject an experiment that cannot run."""
        check_class_names(self.class_names)
        check_prompt(self.prompt)
        for seed in self.seeds:
            check_seed(seed, "a seed")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more distinct numbers, got {list(self.seeds)}")
        if self.pool is None and (needs := sorted({row.strategy for row in self.rows} & {*FROM_POOL})):
            raise ValueError(f"the rows {', '.join(needs)} need unpaired audio: give `pool`")
        if self.captioning is None and (needs := sorted({row.strategy for row in self.rows} & {*TAGGED})):
            raise ValueError(f"the rows {', '.join(needs)} need generated captions: give `captioning`")
        if self.captioning is None and self.on_landing.strategy in TAGGED:
            raise ValueError(
                f"on_landing: the strategy {self.on_landing.strategy} needs generated captions: give `captioning`"
            )
        if self.pairs is None:
            self._check_without_pairs()
        if self.evaluation is None:
            self._check_without_evaluation()
        if self.teacher is None and self.checkpoint is None:
            raise ValueError("no teacher: give `checkpoint`, or `teacher` to train one")
        if self.teacher is not None and self.teacher.adapt == "lora" and self.checkpoint is None:
            raise ValueError(
                "a teacher with adapt: lora needs a `checkpoint` to start from; a new model has to learn every weight"
            )
        if self.teacher is not None and self.teacher.held_out != self.student.held_out:
            raise ValueError(
                "teacher and student must have the same held_out, or a student trains on pairs that select its weights"
            )

    def _check_without_evaluation(self) -> None:
        if self.order is not None:
            raise ValueError(
                "order is scored next to accuracy: give `evaluation`; without it, `clapcur zste` scores one checkpoint"
            )
        trainings = [training for training in (self.teacher, self.student) if training is not None]
        if any(training.selection == "reference" for training in trainings):
            raise ValueError("selection: reference selects weights on the evaluation set: give `evaluation`")

    def _check_without_pairs(self) -> None:
        if self.pool is None or self.captioning is None:
            raise ValueError("no captioned clips: give `pairs`, or `pool` and `captioning` to generate captions")
        if self.captioning.captions.way == "captioner":
            raise ValueError("a captioner learns from captioned clips: give `pairs`, or choose another way of captions")
        if self.captioning.needs_teacher and self.teacher is not None:
            raise ValueError(
                "a teacher trained on generated captions cannot tag the clips for them: give `captioning: {tagger: "
                "FILE}`, or a table of tags"
            )

    @property
    def improvement_sets(self) -> list[ImprovementSetName]:
        """The Improvement-Sets that the rows need, in alphabetical order."""
        wanted = {row.improvement_set for row in self.rows if row.improvement_set}
        if "ads" in wanted and self.ads_replay == "ds":
            wanted.add("ds")
        wanted |= {self.composed_from(row) for row in self.rows if row.teminal and self.single_sounds is None}
        return sorted(wanted)

    def composed_from(self, row: Row) -> ImprovementSetName:
        """Return the set whose clips a row's post-training composes: its own if its clips have classes, else DS."""
        return row.strategy if row.strategy in ("ds", "ads", "tagcap-classes", "pl") else "ds"

    def curate(self, strategy: ImprovementSetName) -> CurateConfig:
        """Return the curation of one strategy."""
        curation = self.curation
        if strategy == "du" and self.du_threshold:
            curation = dataclasses.replace(curation, audio_threshold=self.du_threshold)
        return curation.of(strategy, self.class_names, self.prompt, self.student.held_out)

    def softens(self, strategy: ImprovementSetName) -> bool:
        """Return whether a strategy's student is trained with soft labels by default.

        The exception is pseudo-labels that a tagger contributes to: the teacher's similarities would work against the
        tagger, which cost half of the gain (docs/results/us8k.md).
        """
        return strategy != "pl" or self.captioning is None or self.captioning.needs_teacher

    def pseudo_labelling(self) -> PseudoLabelConfig:
        """Return the config of the pseudo-labels."""
        return dataclasses.replace(self.pseudo_labels, class_names=self.class_names, prompt=self.prompt)

    def adopt(self, seed: int) -> AdoptConfig | None:
        """Return the checkpoint that is the teacher or that its training starts from; None if there is none."""
        if self.checkpoint is None:
            return None
        return dataclasses.replace(self.checkpoint, partial=self.teacher is not None, seed=seed)

    def train_teacher(self, seed: int) -> TrainConfig | None:
        """Return the training of the teacher; None if the checkpoint is the teacher."""
        return dataclasses.replace(self._selected(self.teacher), seed=seed) if self.teacher else None

    def train_student(self, row: Row, seed: int) -> TrainConfig:
        """Return the training of one row's student."""
        labels = self.soft_labels if row.soft_labels else None
        training = dataclasses.replace(self._selected(self.student), seed=seed, soft_labels=labels)
        if row.strategy == "ds" and not self.ds_replays:
            training = dataclasses.replace(training, replay_probability=0.0)
        return training

    def _selected(self, training: TrainConfig) -> TrainConfig:
        """Return a training, with the classes and prompts of the test set if that set selects its weights."""
        if training.selection != "reference":
            return training
        texts = prompts(self.class_names, self.prompt)
        return dataclasses.replace(training, test_classes=self.class_names, test_prompts=texts)

    def evaluate(self) -> EvaluateConfig:
        """Return the zero-shot evaluation of every row."""
        return EvaluateConfig(class_names=self.class_names, prompt=self.prompt)


def experiment_from_file(path: Path | str) -> Experiment:
    """Read an experiment from a YAML file.

    Relative paths are relative to the file. ``class_names`` is a list, the path of a class-name file or the name of a
    built-in list (``esc50``); an ingest is a path or a mapping with fields of `IngestConfig`. Fields left out of
    ``teacher``, ``student`` and so on are taken from `defaults`.

    Raises
    ------
    DataError
        The file is missing or is no YAML mapping.
    ValueError
        A required key is missing, a key is unknown, or a value makes no sense.
    """
    path = Path(path)
    values = read_mapping(path)
    folder = path.absolute().parent
    needed = ("class_names",) if values.get("captioning") else ("pairs", "class_names")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    for name in SOURCES:
        if values.get(name) is not None:
            values[name] = _ingest_values(values[name], folder)
    values["more_pairs"] = [_ingest_values(value, folder) for value in _listed(values.get("more_pairs"))]
    if isinstance(values["class_names"], str):
        values["class_names"] = find_class_names(values["class_names"], folder)
    values = _with_curation(values, folder, path)
    if isinstance(values.get("rows"), list):
        values["rows"] = [vars(Row.parse(row)) if isinstance(row, str) else row for row in values["rows"]]
    values.setdefault("name", path.stem)
    start = defaults()
    if isinstance(values.get("order"), Mapping) and values["order"].get("clips") is not None:
        values["order"] = values["order"] | {"clips": _ingest_values(values["order"]["clips"], folder)}
    if isinstance(values.get("captioning"), Mapping):
        values["captioning"] = captioning_values(values["captioning"], folder)
    values.setdefault("pairs", None)
    if values.get("checkpoint") is not None:
        values["checkpoint"] = _checkpoint_values(values["checkpoint"], folder)
        start = _beside_a_checkpoint(start)
        values.setdefault("teacher", None)
    return from_dict(Experiment, _merge(dataclasses.asdict(start) | {"pool": None}, values), where=str(path))


def starter(
    *,
    name: str,
    pairs: Path | None = None,
    evaluation: Path | None = None,
    class_names: Path | str,
    pool: Path | str | None = None,
    captions: Path | None = None,
    checkpoint: str | None = None,
    tagger: str | None = None,
    rows: Sequence[Row] = PAPER_ROWS,
    seeds: Sequence[int] = (0,),
) -> Experiment:
    """Return the experiment of the common case: a few paths, and our defaults for everything else.

    The teacher is trained unless a checkpoint is given. With a tagger and no checkpoint, its audio tower is that of the
    tagger. Without pairs, captions are generated for the pool; if there is no tagger, the checkpoint tags the pool
    zero-shot over the class names.

    Parameters
    ----------
    name : str
        Name of the dataset, and of the MLflow experiment.
    pairs : Path, optional
        Table or folder of captioned clips; None: generate captions for the pool.
    evaluation : Path, optional
        Table of labelled clips, used for evaluation only; None: nothing is measured.
    class_names : Path or str
        File with one class name per line, or the name of a built-in list such as ``esc50``.
    pool : Path or str, optional
        Unpaired audio: a folder, a table, a URL, or ``pool:NAME``.
    captions : Path, optional
        Table of unpaired captions; None: the captions of the pairs.
    checkpoint : str, optional
        Teacher: a file, a folder or a name on the Hub; None: train a teacher.
    tagger : str, optional
        File with the weights of YAMNet or PANNs. If given, captions are generated for the pool.
    rows : sequence of Row
        Rows to compare.
    seeds : sequence of int
        Seeds; each gives one teacher and one set of students.

    Raises
    ------
    ValueError
        The values contradict each other or make no sense.
    """
    experiment = defaults()
    captioning = Captioning() if pairs is None else None
    if tagger is not None:
        captioning = Captioning(tagger=TaggerConfig(source=_place(tagger, Path.cwd())))
        if checkpoint is None:
            experiment = _with_tower_of(experiment, captioning)
    if checkpoint is not None:
        adopted = AdoptConfig(source=_place(checkpoint, Path.cwd()))
        experiment = dataclasses.replace(_beside_a_checkpoint(experiment), checkpoint=adopted, teacher=None)
    return dataclasses.replace(
        experiment,
        name=name,
        pairs=IngestConfig(source=str(Path(pairs).absolute())) if pairs else None,
        captioning=captioning,
        evaluation=IngestConfig(source=str(Path(evaluation).absolute())) if evaluation else None,
        pool=IngestConfig(source=absolute(os.getcwd(), str(pool))) if pool else None,
        captions=IngestConfig(source=str(Path(captions).absolute())) if captions else None,
        class_names=find_class_names(str(class_names), Path.cwd()),
        rows=tuple(rows),
        seeds=tuple(seeds),
    )


def demo_experiment(corpus: "Corpus", seed: int = 0) -> Experiment:
    """Return the comparison of the demo: a corpus of synthetic sounds, and towers that a laptop trains in minutes.

    The teacher is trained on few, clean pairs; the pool and the evaluation clips are harder and noisier. All models
    keep their last weights: the held-out pairs are as clean as the teacher's, so selection would always favour it.
    """
    front_end = FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=320, num_mels=40, f_max=7800.0)
    model = ClapConfig(
        audio=AudioConfig(front_end=front_end, width="tiny", block_dropout=0.0, dropout=0.1),
        text=TextConfig(pooling="mean", hidden_size=64, num_layers=1, vocab_size=800),
        embedding_dim=128, window_s=2.0, projection_dropout=0.1,
    )  # fmt: skip
    training = TrainConfig(num_examples=64 * 80, learning_rate=4e-3, hard_target="identical", precision="auto")
    return Experiment(
        name="demo-synthetic-sounds",
        note="The audio is synthetic: the table shows that the pipeline works, not how well it will do on your "
        "recordings.",
        pairs=IngestConfig(source=str(corpus.pairs)),
        pool=IngestConfig(
            source=str(corpus.pool), metadata=str(corpus.pool_table), audio_folder=str(corpus.pool.parent)
        ),
        captions=IngestConfig(source=str(corpus.captions)),
        evaluation=IngestConfig(source=str(corpus.evaluation)),
        class_names=read_class_names(corpus.class_names),
        teacher=dataclasses.replace(training, model=model, num_examples=64 * 120, selection="last"),
        student=dataclasses.replace(training, learning_rate=2e-3, num_examples=64 * 100, selection="last"),
        curation=Curation(audio_threshold=Threshold(count=600), caption_threshold=Threshold(count=150)),
        seeds=(seed,),
    )


def defaults() -> Experiment:
    """Return the default experiment: towers that train on a CPU, and thresholds that fit any teacher.

    Dropout is low, because the published dropout (0.2 after every block, 0.5 at the end) keeps a tower trained on a few
    hundred pairs near chance. Thresholds are counts with an even share for each class, because a cosine of 0.7 means
    something different for every teacher, and one threshold for all leaves classes without a pair (docs/demo.md).
    Trainings keep their last weights, because the loss on a few held-out pairs can rise while accuracy rises too, which
    selects weights from the middle of the schedule (docs/results/us8k-weak-teacher.md).
    """
    front_end = FrontEndConfig(hop_samples=640)
    model = ClapConfig(
        audio=AudioConfig(front_end=front_end, width="tiny", block_dropout=0.0, dropout=0.1),
        text=TextConfig(source="bert-tiny", pooling="mean"),
        embedding_dim=256, window_s=5.0, projection_dropout=0.1,
    )  # fmt: skip
    training = TrainConfig(num_examples=64 * 200, learning_rate=1e-3, hard_target="identical", precision="auto")
    placeholder = IngestConfig(source="")
    return Experiment(
        name="my-sounds",
        pairs=placeholder,
        pool=placeholder,
        class_names=("one", "other"),
        teacher=dataclasses.replace(training, model=model, num_examples=64 * 400, selection="last"),
        student=dataclasses.replace(training, learning_rate=5e-4, selection="last"),
        soft_labels=SoftLabels(form="cross_modal", beta=0.7, temperature=0.07),
    )


def _beside_a_checkpoint(experiment: Experiment) -> Experiment:
    """Return the defaults for a pretrained model: its own towers, and a lower learning rate.

    1e-4 is the learning rate of the reference's students (clap_curation's README), at a batch size of 128.
    """
    assert experiment.teacher is not None
    return dataclasses.replace(
        experiment,
        teacher=dataclasses.replace(experiment.teacher, model=None, learning_rate=1e-4),
        student=dataclasses.replace(experiment.student, learning_rate=1e-4),
    )


def _with_tower_of(experiment: Experiment, captioning: Captioning) -> Experiment:
    """Return the experiment with models whose audio tower is that of a tagger, and frozen."""
    assert experiment.teacher is not None and experiment.teacher.model is not None and captioning.tagger is not None
    model = tower_of(captioning.tagger, experiment.teacher.model)
    return dataclasses.replace(
        experiment,
        checkpoint=AdoptConfig(source=captioning.tagger.source, model=model),
        teacher=dataclasses.replace(experiment.teacher, frozen_towers=("audio",), model=None),
        student=dataclasses.replace(experiment.student, frozen_towers=("audio",), model=None),
    )


def _checkpoint_values(value: Any, folder: Path) -> dict[str, Any]:
    given = _mapping(value, "checkpoint")
    return given | {
        name: _place(given[name], folder) for name in ("source", "text_source", "adapter") if given.get(name)
    }


def _place(source: str, folder: Path) -> str:
    """Return the absolute path of a source in `folder` if it exists, else the source unchanged: a name on the Hub."""
    path = folder / Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _listed(value: Any) -> list[Any]:
    """Return a list: a list or tuple as it is, None as an empty list, any other value as its only item."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _mapping(value: Any, what: str) -> dict[str, Any]:
    """Return a copy of a mapping; a string becomes a mapping with the key `source`."""
    if isinstance(value, str):
        return {"source": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a path or a mapping with the key `source`, got {value!r}")
    return dict(value)


def _ingest_values(value: Any, folder: Path) -> dict[str, Any]:
    given = _mapping(value, "a source of clips or captions")
    for field in ("source", "audio_folder", "metadata"):
        if given.get(field) and not str(given[field]).startswith(POOL) and not is_url(str(given[field])):
            given[field] = str(folder / given[field])
    if given.get("folds") is not None:  # the folds 1 and "1" are the same
        given["folds"] = [whole_number(str(fold)) for fold in _listed(given["folds"])]
    if given.get("exclude"):
        given["exclude"] = [str(folder / str(item)) for item in _listed(given["exclude"])]
    return given


def curation_values(given: Any, folder: Path, where: Path) -> dict[str, Any]:
    """Return the fields of a `Curation` from a file's values; marks are read from the table that the values name.

    Parameters
    ----------
    given : mapping
        Fields of a `Curation` as read from YAML.
    folder : Path
        Folder that relative paths start from.
    where : Path
        The file, for error messages.

    Raises
    ------
    ValueError
        `given` is no mapping.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where}: curation must be a mapping such as {{audio_threshold: {{count: 2000}}}}, got {given!r}"
        )
    values = dict(given)
    if isinstance(values.get("marks"), str):
        values["marks"] = marks_from_file(folder / values["marks"])
    return values


def _with_curation(values: dict[str, Any], folder: Path, where: Path) -> dict[str, Any]:
    """Return the values with all curation fields under ``curation``; older files have them at the top level."""
    top = {name: value for name, value in values.items() if name in CURATION_FIELDS}
    given = values.get("curation")
    if twice := sorted(top.keys() & (given.keys() if isinstance(given, Mapping) else ())):
        raise ValueError(f"{where}: {', '.join(twice)} is given twice, at the top level and in curation; remove one")
    others = {name: value for name, value in values.items() if name not in CURATION_FIELDS}
    for name in others.keys() - {field.name for field in dataclasses.fields(Experiment)}:
        if near := difflib.get_close_matches(str(name), CURATION_FIELDS, n=1, cutoff=0.8):
            raise ValueError(f"{where}: unknown key {name!r}; did you mean 'curation.{near[0]}'?")
    both = curation_values({} if given is None else given, folder, where) | curation_values(top, folder, where)
    return {**others, "curation": both} if both else others


SOURCES = ("pairs", "pool", "captions", "evaluation", "single_sounds")  # fields that are ingested: a path, or a mapping
WHOLE = {*SOURCES, "audio_threshold", "caption_threshold", "du_threshold"}


def _merge(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Merge `values` into `defaults` key by key; ingests and thresholds are replaced as a whole."""
    merged = dict(defaults)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(defaults.get(name), dict) and name not in WHOLE
        merged[name] = _merge(defaults[name], value) if both else value
    return merged
