"""TagCap: curation of generated captions, whole comparisons with and without pairs of one's own, and their lineage."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from curation_world import CLASSES, World
from tiny_yamnet import SMALL, write_tagger
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.data.generated import is_generated, read_generated
from clapcur.data.manifest import Manifest, caption_id
from clapcur.data.report_table import ReportTable
from clapcur.data.rows import GENERATED_ROWS, PAPER_ROWS, Row
from clapcur.errors import CheckpointError, DataError
from clapcur.experiments.config import experiment_from_file, starter
from clapcur.experiments.preflight import check_config
from clapcur.flows import deployed
from clapcur.flows.compare import compare
from clapcur.flows.plan import plan
from clapcur.lineage import queries
from clapcur.methods.thresholds import Threshold
from clapcur.models.clap import Clap
from clapcur.stages import curate as module
from clapcur.stages.curate import CurateConfig, curate
from clapcur.store.artifacts import Store
from clapcur.store.home import Home
from clapcur.testing import PAPER_RULE, embeddings, manifest, write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes


@pytest.fixture
def world(tmp_path) -> World:
    return World(Store(tmp_path / "store"))


def generated_inputs(world):
    """Give the inputs of a curation whose pool clips have one or two generated captions, near their clip or not."""
    rng = np.random.default_rng(1)
    texts, rows, pairs = [], [], []
    for index, clip in enumerate(world.pool_clips[:30]):
        for number in range(1 + index % 2):
            texts.append(f"generated {index} {number}")
            row = world.rows["pool"][index] + 0.4 * (1 + number) * rng.standard_normal(world.rows["pool"].shape[1])
            rows.append(row / np.linalg.norm(row))
            pairs.append((clip, texts[-1]))
    clips = Manifest.open(world.inputs()["pool"]).clips
    made = manifest(world.store, "generated", clips[clips.clip_id.isin(world.pool_clips[:30])], pairs)
    ids = [caption_id(text) for text in texts]
    inputs = world.inputs(with_evaluation=True) | {
        "generated": made, "generated_embeddings": embeddings(world.store, "g", ids, np.stack(rows))
    }  # fmt: skip
    where = {clip: index for index, clip in enumerate(world.pool_clips)}
    known = dict(zip(ids, np.stack(rows), strict=True))
    similarity = {
        (clip, caption_id(text)): float(world.rows["pool"][where[clip]] @ known[caption_id(text)])
        for clip, text in pairs
    }
    to_class = {name: world.rows["prompt"] @ row for name, row in known.items()}
    return inputs, similarity, to_class


def run(world, inputs, **settings):
    config = CurateConfig(**({"class_names": CLASSES, "held_out": 0.0} | PAPER_RULE | settings))
    work = world.store.open(module.STAGE.key(config, {}))
    curate(inputs, config, work)
    return pd.read_parquet(work.path / "pairs.parquet"), json.loads((work.path / "card.json").read_text())


def test_tagcap_is_every_generated_pair_at_or_above_the_threshold_but_evaluation_clips(world):
    inputs, similarity, _ = generated_inputs(world)
    excluded = {world.pool_clips[0], world.pool_clips[1], *world.pool_clips[10:12]}  # same clip, samples, recording
    pairs, card = run(world, inputs, strategy="tagcap", audio_threshold=Threshold(similarity=0.6), near_duplicate=None)
    expected = {pair for pair, value in similarity.items() if value >= 0.6 and pair[0] not in excluded}
    assert set(zip(pairs.clip_id, pairs.caption_id, strict=True)) == expected and len(expected) > 15
    for row in pairs.itertuples():
        assert row.similarity == pytest.approx(similarity[row.clip_id, row.caption_id], abs=1e-6)
    assert card["thresholds"] == {"audio": 0.6} and card["strategy"] == "tagcap"


def test_tagcap_of_the_classes_keeps_captions_near_a_prompt_in_even_shares(world):
    inputs, similarity, to_class = generated_inputs(world)
    pairs, card = run(
        world, inputs, strategy="tagcap-classes", audio_threshold=Threshold(count=9), even_classes=True,
        caption_threshold=Threshold(similarity=0.5), near_duplicate=None, max_per_clip=1,
    )  # fmt: skip
    excluded = {world.pool_clips[0], world.pool_clips[1], *world.pool_clips[10:12]}
    best = {}
    for (clip, name), value in similarity.items():
        if clip not in excluded and to_class[name].max() >= 0.5 and value > best.get(clip, ("", -2.0))[1]:
            best[clip] = (name, value)
    expected = set()
    for k in range(3):
        of_class = sorted(
            ((value, clip, name) for clip, (name, value) in best.items() if to_class[name].argmax() == k), reverse=True
        )
        expected |= {(clip, name) for _, clip, name in of_class[:3]}
    assert set(zip(pairs.clip_id, pairs.caption_id, strict=True)) == expected
    assert set(card["class_thresholds"]) == set(pairs["class"]) and len(pairs) >= 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audio_threshold": Threshold(precision=0.8)}, "by similarity or count"),
        ({"distinct_clips": 0.9}, "TAGCAP does not do"),
    ],
)
def test_what_only_a_search_has_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CurateConfig(strategy="tagcap", class_names=CLASSES, **settings)


@pytest.mark.parametrize("row", [*GENERATED_ROWS, *(row.post_trained for row in GENERATED_ROWS)], ids=lambda r: r.name)
def test_a_row_is_read_back_from_its_name_and_its_label(row):
    assert Row.parse(row.name) == row == Row.parse(row.label) and row not in PAPER_ROWS


@pytest.fixture
def tagger(tmp_path) -> Path:
    """Write a tagger of five classes."""
    return write_tagger(tmp_path / "tagger")


def with_captioning(path: Path, lines: list[str], without: tuple[str, ...] = ()) -> None:
    kept = [line for line in path.read_text().splitlines() if not line.strip().startswith(("rows:", *without))]
    path.write_text("\n".join([*kept, *(" " * 8 + line for line in lines)]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rows_of_generated_captions_stand_beside_the_papers_and_lead_to_their_tags(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(10):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    with_captioning(
        path,
        [
            "audio_threshold: {similarity: -1}", "pool: pool", "rows: [teacher, ads, tagcap, 'TagCap ∩ classes+SL']",
            "captioning:", "  tagger: tagger/yamnet.safetensors", "  tags: {factor: 0.5, window_s: 1}",
            "  captions: {above_tag: no}",
        ],
        without=("audio_threshold:",),
    )  # fmt: skip
    experiment = experiment_from_file(path)
    assert experiment.improvement_sets == ["ads", "tagcap", "tagcap-classes"]
    report = compare.fn(experiment)
    home = Home.open()
    lines = {line.name: line for line in ReportTable.open(report).rows}
    assert list(lines) == ["teacher", "ADS", "TagCap", "TagCap ∩ classes+SL"]
    student = home.store.find(lines["TagCap"].by_seed[0].checkpoint)
    chosen = home.store.find(student.record.inputs["improvement_set"])
    written = home.store.find(student.record.inputs["captions"])
    assert is_generated(written) and chosen.record.inputs["generated"] == written.id
    pairs = list(queries.trace_pairs(home, student.id))
    assert pairs and all(pair["tags"] and pair["verdict"] in ("kept", "best") for pair in pairs if "tags" in pair)
    of_set = [pair for pair in pairs if pair["role"] == "improvement_set"]
    assert of_set and all(pair["caption"] and pair["way"] == "template" for pair in of_set)
    shown = CliRunner().invoke(app, ["pairs", chosen.id, "--json"]).output.splitlines()
    assert {"way", "tags", "verdict", "tags_from"} <= json.loads(shown[-1]).keys()
    assert CliRunner().invoke(app, ["pairs", chosen.id, "--csv"]).output.splitlines()[0].endswith("verdict,tags_from")
    assert "tags" in CliRunner().invoke(app, ["pairs", chosen.id]).output
    heard = next(one for one in home.store.of_kind("audition") if chosen.id in one.record.inputs.values())
    table = pd.read_csv(heard.path / "pairs.csv")
    assert table.tags.str.len().min() > 0 and "tags of the clip: " in (heard.path / "audition.html").read_text()
    tree = json.dumps(queries.trace(home, student.id))
    assert '"tags"' in tree and '"tagger"' in tree
    clip = of_set[0]["clip_id"]
    touched = queries.impact(home, clip)
    assert chosen.id in {entry["id"] for entry in touched["improvement_sets"]}
    assert student.id in {entry["id"] for entry in touched["checkpoints"]}
    assert {entry["id"] for entry in touched["tags"]} == {written.record.inputs["tags"]}


CAPTIONER = [
    "audio_threshold: {similarity: -1}", "pool: pool", "rows: [teacher, tagcap]", "captioning:",
    "  tagger: tagger/yamnet.safetensors", "  tags: {factor: 0.5, window_s: 1}",
    "  captions: {way: captioner, mention_tag: no, least_words: 1}",
    "  captioner:", "    captioner: {hidden_size: 32, num_heads: 2, vocab_size: 200, max_tokens: 12, dropout: 0}",
    "    num_examples: 800", "    batch_size: 8", "    learning_rate: 4.0e-3", "    final_learning_rate: 4.0e-4",
    "    held_out: 0.3", "    num_evaluations: 2",
]  # fmt: skip


@pytest.fixture
def with_captioner(tagger, tmp_path, monkeypatch) -> Path:
    """Write an experiment whose captions a captioner generates."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(10):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    with_captioning(path, CAPTIONER, without=("audio_threshold:",))
    return path


def test_a_captioner_learns_from_the_pairs_before_it_captions_the_pool(with_captioner):
    """A plan that forgets the training of the captioner promises captions in no time."""
    steps = [step.what for step in plan(experiment_from_file(with_captioner), compare.fn).steps]
    order = ["train teacher", "tag pool", "tag pairs", "captioner", "caption generated", "curate tagcap"]
    assert sorted(order, key=steps.index) == order
    sizes = {step.what: (step.unit, step.new) for step in plan(experiment_from_file(with_captioner), compare.fn).steps}
    assert sizes["captioner"] == ("examples", 800)


def test_a_captioner_never_learns_from_pairs_that_select_a_student(with_captioner):
    """Its captions would tell the student of them."""
    experiment = experiment_from_file(with_captioner)
    captioning = experiment.captioning
    assert [captioning.captioner_training(share).held_out for share in (0.1, 0.4)] == [0.3, 0.4]
    with pytest.raises(ValueError, match="a captioner learns from captioned clips: give `pairs`"):
        dataclasses.replace(experiment, pairs=None)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_deployed_stages_make_what_the_next_one_takes(with_captioner, monkeypatch):
    """A stage that is started from its form under another config makes an artifact that no other stage finds."""
    monkeypatch.setattr("clapcur.flows.deployed.publish", lambda made: None)  # needs a flow run and its server
    home, made = Home.open(), {}
    for flow in (deployed.tag, deployed.train_captioner, deployed.caption):
        state = flow.fn(str(with_captioner))
        assert state.is_completed(), state.message
        made[flow.name] = home.store.find(state.message.split()[-1])
    assert [one.kind for one in made.values()] == ["tags", "captioner", "manifest"]
    inputs = made["caption"].record.inputs
    assert (inputs["tags"], inputs["captioner"]) == (made["tag"].id, made["train-captioner"].id)
    assert made["train-captioner"].record.inputs["checkpoint"] == inputs["checkpoint"]
    num_made = len(list(home.store))
    assert deployed.train_captioner.fn(str(with_captioner)).message.endswith(made["train-captioner"].id)
    assert len(list(home.store)) == num_made


def test_the_deployed_stages_say_what_an_experiment_lacks(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for flow in (deployed.tag, deployed.train_captioner, deployed.caption):
        state = flow.fn(str(path))
        assert state.is_failed() and "does not configure captioning: add `captioning:" in state.message
    with_captioning(path, ["captioning: {tagger: tagger/yamnet.safetensors}", "rows: [teacher]"])
    assert "has no pool; add `pool`" in deployed.tag.fn(str(path)).message
    (tmp_path / "pool").mkdir()
    with_captioning(path, ["pool: pool", "rows: [teacher]"], without=("pairs:",))
    assert (
        "no captioned clips for a captioner to learn from: add `pairs`"
        in deployed.train_captioner.fn(str(path)).message
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_student_learns_from_captions_that_a_captioner_generated(with_captioner):
    report = compare.fn(experiment_from_file(with_captioner))
    home = Home.open()
    lines = {line.name: line for line in ReportTable.open(report).rows}
    student = home.store.find(lines["TagCap"].by_seed[0].checkpoint)
    written = home.store.find(student.record.inputs["captions"])
    captioner = home.store.find(written.record.inputs["captioner"])
    assert captioner.record.inputs["checkpoint"] == student.record.inputs["init"]
    assert captioner.record.inputs["pairs"] == student.record.inputs["teacher_pairs"]
    words = {word for caption in read_generated(written).caption for word in caption.split()}
    assert words and words <= {"the", "sound", "of", "a", "low", "hum", "high", "whistle"}, "those of the pairs"
    of_set = [pair for pair in queries.trace_pairs(home, student.id) if pair["role"] == "improvement_set"]
    assert of_set and all(pair["way"] == "captioner" for pair in of_set)
    clip = Manifest.open(home.store.find(captioner.record.inputs["pairs"])).pairs.clip_id[0]
    touched = queries.impact(home, clip)
    assert {entry["id"] for entry in touched["captioners"]} == {captioner.id}
    assert student.id in {entry["id"] for entry in touched["checkpoints"]}
    assert '"captioner"' in json.dumps(queries.trace(home, student.id))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_and_a_tagger_are_enough(tagger, tmp_path, monkeypatch):
    """No caption and no pair of one's own: the teacher learns from generated captions, with the tower of the tagger."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    write_tones(tmp_path)
    for index in range(12):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    experiment = starter(
        name="none", evaluation=tmp_path / "labelled.csv", class_names=tmp_path / "classes.txt",
        pool=str(tmp_path / "pool"), tagger=str(tagger), rows=(Row(strategy="teacher"), Row.parse("tagcap+sl")),
    )  # fmt: skip
    assert experiment.pairs is None and experiment.checkpoint.source == str(tagger)
    assert experiment.teacher.frozen_towers == ("audio",) and experiment.checkpoint.model.audio.yamnet.channels == 4
    tiny = {"num_examples": 16, "batch_size": 8, "num_workers": 1}
    text = dataclasses.replace(experiment.checkpoint.model.text, hidden_size=16, num_layers=1, vocab_size=60)
    model = dataclasses.replace(experiment.checkpoint.model, text=text, embedding_dim=16, window_s=1.0)
    experiment = dataclasses.replace(
        experiment,
        checkpoint=dataclasses.replace(experiment.checkpoint, model=model),
        teacher=dataclasses.replace(experiment.teacher, **tiny),
        student=dataclasses.replace(experiment.student, **tiny),
    )
    report = compare.fn(experiment)
    home = Home.open()
    lines = {line.name: line for line in ReportTable.open(report).rows}
    assert list(lines) == ["teacher", "TagCap+SL"]
    teacher = home.store.find(lines["teacher"].by_seed[0].checkpoint)
    assert is_generated(home.store.find(teacher.record.inputs["teacher_pairs"]))
    assert home.store.find(teacher.record.inputs["init"]).record.facts["format"] == "yamnet"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_and_a_folder_are_enough(tmp_path, monkeypatch):
    """Somebody else's CLAP tags the pool over the class names, and learns from what it is surest of."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    write_tones(tmp_path)
    for index in range(12):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    texts = ["this is a sound of low hum", "this is a sound of high whistle"]
    (tmp_path / "clap").mkdir()
    Clap.create(SMALL, captions=texts, seed=0).save(tmp_path / "clap")
    experiment = starter(
        name="none", evaluation=tmp_path / "labelled.csv", class_names=tmp_path / "classes.txt",
        pool=str(tmp_path / "pool"), checkpoint=str(tmp_path / "clap"),
        rows=(Row(strategy="teacher"), Row.parse("tagcap+sl")),
    )  # fmt: skip
    brief = dataclasses.replace(experiment.student, num_examples=16, batch_size=8, num_workers=1)
    report = compare.fn(dataclasses.replace(experiment, student=brief))
    home = Home.open()
    student = home.store.find(ReportTable.open(report).rows[1].by_seed[0].checkpoint)
    teacher = home.store.find(student.record.inputs["init"])
    assert teacher.record.stage == "adopt"
    tags = [one for one in home.store.of_kind("tags")]
    assert [one.record.inputs["checkpoint"] for one in tags] == [teacher.id], "it tagged once, for both uses"
    given = read_generated(home.store.find(student.record.inputs["teacher_pairs"]))
    assert set(given.tags) <= {"low hum", "high whistle", "low hum; high whistle", "high whistle; low hum"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tagger: nowhere.safetensors", "tagger .*nowhere.safetensors not found"),
        ("tags: {table: nowhere.csv}", r"the table .*nowhere.csv does not exist \(`table` of the tags\)"),
        ("captions: {ontology: nowhere.json}", "the ontology .*nowhere.json does not exist"),
    ],
)
def test_files_that_are_not_there_are_told_before_a_teacher_is_trained(line, message, tmp_path):
    """Tags are given, and captions written, after the teacher's training only."""
    path = write_tones(tmp_path)
    with_captioning(path, ["pool: pool", f"captioning: {{{line}}}"])
    with pytest.raises((CheckpointError, DataError), match=message):
        check_config(experiment_from_file(path))


def test_a_tagger_whose_classes_do_not_fit_is_told_before_a_teacher_is_trained(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(3):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index)
    rows = (tagger.parent / "class_map.csv").read_text().splitlines()
    (tagger.parent / "class_map.csv").write_text("\n".join(rows[:-1]))
    with_captioning(path, ["pool: pool", "captioning: {tagger: tagger/yamnet.safetensors}", "rows: [teacher, tagcap]"])
    with pytest.raises(CheckpointError, match="has 5 outputs, but the list has 4 classes"):
        compare.fn(experiment_from_file(path))
    assert list(Home.open().store.of_kind("checkpoint")) == []


def test_without_pairs_somebody_else_must_tag(tmp_path):
    path = write_tones(tmp_path)
    (tmp_path / "pool").mkdir()
    with_captioning(path, ["pool: pool", "captioning: {captions: {num_captions: 1}}"], without=("pairs:",))
    with pytest.raises(ValueError, match=r"cannot tag the clips for them: give `captioning: \{tagger: FILE\}`"):
        experiment_from_file(path)
    path = write_tones(tmp_path)
    with_captioning(path, ["pool: pool", "rows: [teacher, tagcap]"])
    with pytest.raises(ValueError, match="the rows tagcap need generated captions: give `captioning`"):
        experiment_from_file(path)


@pytest.mark.slow
def test_the_commands_tag_and_caption_a_pool(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    for index in range(6):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    def made(*arguments):
        return json.loads(call(*arguments, "--json").splitlines()[-1])

    pool = made("ingest", tmp_path / "pool")["id"]
    tags = made("tag", pool, "--tagger", tagger, "--factor", 0.5)
    assert tags["kind"] == "tags" and tags["counts"]["clips"] == 6
    written = made("caption", tags["id"])
    assert written["kind"] == "manifest" and written["counts"]["pairs"] > 0
    write_tones(tmp_path)
    (tmp_path / "clap").mkdir()
    Clap.create(SMALL, captions=["this is a sound of low hum"], seed=0).save(tmp_path / "clap")
    teacher = made("adopt", tmp_path / "clap")["id"]
    asked = ("pseudo-label", pool, "--checkpoint", teacher, "--classes", tmp_path / "classes.txt", "--tags", tags["id"])
    labelled = made(*asked, "--min-probability", 0)
    assert labelled["counts"]["clips"] == 6 and labelled["counts"]["class.low hum"] <= 6
    shown = call(*asked, "--min-probability", 0)
    assert "classes by probability" in shown and "low hum" in shown
    shown = call("caption", tags["id"])
    assert "tags of the clip" in shown and "such as" in shown
    assert "give exactly one of --tagger, --checkpoint and --table" in call("tag", pool, code=2)
    assert "--way retrieve needs --captions" in call("caption", tags["id"], "--way", "retrieve", code=2)


@pytest.mark.slow
def test_the_commands_train_a_captioner_and_caption_with_it(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    write_tones(tmp_path)
    all_classes = "hum whistle noise speech wind"  # whatever the tagger hears, the caption mentions it
    table = pd.read_csv(tmp_path / "pairs.csv").assign(caption=all_classes)
    table.to_csv(tmp_path / "pairs.csv", index=False)
    for index in range(4):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 600 * index, seed=50 + index, duration_s=1.2)
    Clap.create(SMALL, captions=["this is a sound of low hum"], seed=0).save(tmp_path / "clap")

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    def made(*arguments):
        return json.loads(call(*arguments, "--json").splitlines()[-1])

    teacher = made("adopt", tmp_path / "clap")["id"]
    tags = {}
    for name, source in (("pairs", "pairs.csv"), ("pool", "pool")):
        clips = made("ingest", tmp_path / source)["id"]
        tags[name] = made("tag", clips, "--tagger", tagger, "--factor", 0.5)["id"]
    asked = ("train-captioner", tags["pairs"], "--checkpoint", teacher, "--num-examples", 1600, "--batch-size", 16)
    trained = made(*asked, "--held-out", 0.3)
    assert trained["kind"] == "captioner" and trained["counts"]["clips"] == 16
    shown = call(*asked, "--held-out", 0.3)
    assert "with tags" in shown and "CIDEr-D" in shown
    given = ("caption", tags["pool"], "--way", "captioner")
    written = made(*given, "--captioner", trained["id"])
    assert written["kind"] == "manifest" and written["counts"]["clips"] == 4
    assert "hum whistle noise speech wind" in call(*given, "--captioner", trained["id"])
    sampled = made(*given, "--captioner", trained["id"], "--decoding", "sample", "--temperature", 0.01, "--seed", 3)
    assert sampled["id"] != written["id"]
    assert "go together" in call(*given, code=2) and "go together" in call(
        "caption", tags["pool"], "--captioner", trained["id"], code=2
    )
    refused = CliRunner().invoke(app, [*given, "--captioner", teacher])
    assert "expected a captioner, got the checkpoint" in str(refused.exception)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_row_of_pseudo_labels_leads_from_the_student_to_tags_and_teacher(tagger, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(10):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    lines = ["pool: pool", "rows: [teacher, pl, 'PL+SL']", "captioning: {tagger: tagger/yamnet.safetensors}"]
    with_captioning(path, lines)
    report = compare.fn(experiment_from_file(path))
    home = Home.open()
    table = {line.name: line for line in ReportTable.open(report).rows}
    assert list(table) == ["teacher", "PL", "PL+SL"]
    student = home.store.find(table["PL"].by_seed[0].checkpoint)
    labelled = home.store.find(student.record.inputs["captions"])
    assert labelled.record.stage == "pseudo_label" and "tags" in labelled.record.inputs
    assert labelled.record.inputs["checkpoint"] == student.record.inputs["init"]
    chosen = home.store.find(student.record.inputs["improvement_set"])
    kept = Manifest.open(labelled)
    assert chosen.record.counts["pairs"] == len(kept.pairs) and set(kept.clips.clip_id) <= set(
        Manifest.open(home.store.find(labelled.record.inputs["pool"])).clips.clip_id
    )
    of_set = [pair for pair in queries.trace_pairs(home, student.id) if pair["role"] == "improvement_set"]
    assert of_set and all(pair["way"] == "pseudo-label" and pair["tags"] for pair in of_set)
    assert student.id in {entry["id"] for entry in queries.impact(home, of_set[0]["clip_id"])["checkpoints"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_tagger_the_teacher_alone_gives_pseudo_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(6):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index, duration_s=1.2)
    with_captioning(path, ["pool: pool", "rows: [teacher, pl]"])
    report = compare.fn(experiment_from_file(path))
    student = Home.open().store.find(ReportTable.open(report).rows[1].by_seed[0].checkpoint)
    labelled = Home.open().store.find(student.record.inputs["captions"])
    assert labelled.record.inputs.keys() == {"pool", "checkpoint", "pool_embeddings", "prompt_embeddings"}
