"""The two questions: what made this model, and what did this clip touch."""

import json
import shutil
import subprocess
import sys

import chain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain import clip

from clapcur.errors import ArtifactError, DataError
from clapcur.lineage.queries import clips_of_recording, impact, trace, trace_pairs
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.testing import clips_table
from clapcur.testing import manifest as store_manifest


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Make the experiment once; a home may be copied to any place."""
    home = Home.open(tmp_path_factory.mktemp("template") / "home")
    return home, chain.experiment(home)


@pytest.fixture
def made(home, template):
    """Give the artifacts of an experiment in the home of the test."""
    shutil.copytree(template[0].root, home.root, dirs_exist_ok=True)
    return {name: home.store.find(artifact.id) for name, artifact in template[1].items()}


def walk(node):
    yield node
    for below in node["inputs"]:
        yield from walk(below)


def test_a_student_is_traced_to_everything_that_made_it(home, made):
    """A branch that is missing from the tree is a source that nobody will be asked about."""
    tree = trace(home, made["student"].id)
    assert (tree["id"], tree["kind"], tree["role"], tree["label"]) == (
        made["student"].id,
        "checkpoint",
        "",
        "train ads+sl",
    )
    above = {made[name].id for name in ("student", "set", "teacher", "teacher_pairs", "pool", "evaluation")}
    assert {node["id"] for node in walk(tree)} == above | set(made["set"].record.inputs.values())
    assert {below["role"]: below["id"] for below in tree["inputs"]} == made["student"].record.inputs
    shown = next(node for node in walk(tree) if node["id"] == made["set"].id)
    assert shown["thresholds"] == {"caption_threshold": 0.7, "threshold.audio": 0.41}
    assert shown["counts"] == {"pairs": 3}
    assert shown["summary"] == "3 pairs, caption_threshold 0.7, threshold.audio 0.41"
    assert shown["uri"] == made["set"].uri


def test_what_stands_in_several_places_is_opened_once(home, made):
    """A student of a student of a student would print its teacher a hundred times."""
    nodes = list(walk(trace(home, made["student"].id)))
    opened = [node["id"] for node in nodes if not node.get("repeated")]
    assert len(opened) == len(set(opened))
    assert {node["id"] for node in nodes} == set(opened)
    assert all(node["inputs"] == [] for node in nodes if node.get("repeated"))
    teachers = [node for node in nodes if node["id"] == made["teacher"].id]
    assert {node["role"] for node in teachers} == {"init", "teacher", "checkpoint"}


def test_a_run_id_and_the_start_of_an_id_trace_alike(home, made):
    """People copy the id from MLflow's page, where it is a run's."""
    Catalog.open(home).set_run(made["student"].id, "f" * 32)
    assert trace(home, "f" * 32) == trace(home, made["student"].id[:8]) == trace(home, made["student"].id)


def test_an_unknown_name_is_an_error_that_says_what_was_looked_for(home, made):
    """An empty answer would read as "made from nothing"."""
    with pytest.raises(ArtifactError, match="no artifact and no MLflow run has the id 'abcdef123456'"):
        trace(home, "abcdef123456")


def test_an_artifact_that_the_catalog_never_met_is_traced_all_the_same(home, made):
    """A crash between record and catalog must not hide what is finished."""
    tree = trace(home, made["student"].id)
    for file in home.root.glob("catalog.db*"):
        file.unlink()
    assert trace(home, made["student"].id) == tree
    assert impact(home, clip("pool-1"))["checkpoints"] != []


def test_an_input_that_is_gone_is_shown_as_lost(home, made):
    """The tree must not end where somebody freed disk space."""
    shutil.rmtree(made["set"].path)
    (node,) = [node for node in walk(trace(home, made["student"].id)) if node["id"] == made["set"].id]
    assert (node["kind"], node["role"], node["lost"], node["inputs"]) == (
        "improvement_set",
        "improvement_set",
        True,
        [],
    )


def test_pairs_of_an_improvement_set_come_with_caption_path_and_similarity(home, made):
    """Ids alone cannot be listened to."""
    pairs = list(trace_pairs(home, made["set"].id))
    said = {
        (pair["path"], pair["caption"], pair["similarity"], pair["class"], pair["class_similarity"]) for pair in pairs
    }
    assert said == {
        ("/audio/pool-1.wav", "a dog barks", 0.5, "dog", 0.75),
        ("/audio/pool-2.wav", "a dog barks", 0.625, "dog", 0.75),
        ("/audio/pool-2.wav", "rain falls", 0.4375, "dog", 0.75),
    }
    assert {(pair["source"], pair["role"]) for pair in pairs} == {(made["set"].id, "improvement_set")}
    assert [pair["clip_id"] for pair in pairs] == sorted(pair["clip_id"] for pair in pairs)


def test_pairs_of_a_student_are_those_that_it_saw_the_replayed_ones_included(home, made):
    """The teacher's pairs are mixed in again and again: a take-down must find them in the student."""
    pairs = list(trace_pairs(home, made["student"].id))
    assert [pair["role"] for pair in pairs] == ["improvement_set"] * 3 + ["teacher_pairs"] * 2
    given = {(pair["path"], pair["caption"], pair["similarity"], pair["class"]) for pair in pairs[3:]}
    assert given == {("/audio/dog-1.wav", "a dog barks", None, None), ("/audio/rain-1.wav", "rain falls", None, None)}


def test_a_source_that_was_given_and_never_seen_has_no_pairs_in_the_model(home, made):
    """Pairs that only served to select a checkpoint are not what it learned from."""
    inputs = {"teacher_pairs": made["teacher_pairs"], "improvement_set": made["set"], "replay": made["set"]}
    hard = chain.checkpoint(home, inputs, "ads", ["improvement_set", "replay"])
    assert [pair["role"] for pair in trace_pairs(home, hard.id)] == ["improvement_set"] * 3 + ["replay"] * 3


def test_pairs_of_held_out_recordings_are_not_called_trained_on(home):
    """Held-out pairs choose the checkpoint and never enter its loss."""
    from clapcur.data.manifest import Manifest

    names = [f"clip-{number}" for number in range(40)]
    given = chain.manifest(home, "pairs", pairs=[(name, f"sound {name}") for name in names])
    teacher = chain.make(
        home, "checkpoint", "t", lambda work: None, {"teacher_pairs": given}, {"held_out": 0.25}, {"role": "teacher"}
    )
    held_out = Manifest.open(given).held_out(0.25)
    assert 0 < len(held_out) < 40
    assert {pair["clip_id"] for pair in trace_pairs(home, teacher.id)} == {clip(name) for name in names} - held_out


def test_scores_have_no_pairs(home, made):
    """An empty list would read as "trained on nothing"."""
    with pytest.raises(ArtifactError, match="expected a checkpoint, an Improvement-Set or a manifest, got the scores"):
        trace_pairs(home, made["student_scores"].id)


def ids(answer):
    return {
        kind: sorted(entry["id"] for entry in found)
        for kind, found in answer.items()
        if kind not in ("clip_id", "unread")
    }


def test_a_pool_clip_touches_its_set_the_student_and_the_students_scores(home, made):
    """The teacher never met the clip: naming it would retrain everything, leaving out the student nothing."""
    embedded = made["set"].record.inputs["pool_embeddings"]
    answer = impact(home, clip("pool-1"))
    assert ids(answer) == {
        "manifests": [made["pool"].id],
        "embeddings": [embedded],
        "tags": [],
        "improvement_sets": [made["set"].id],
        "compositions": [],
        "captioners": [],
        "checkpoints": [made["student"].id],
        "scores": [made["student_scores"].id],
        "models": [],
    }
    assert answer["checkpoints"][0]["because"] == f"trained on improvement_set {made['set'].id}"
    assert answer["checkpoints"][0]["label"] == "train ads+sl"
    assert answer["clip_id"] == clip("pool-1")


def test_impact_names_the_registered_models_that_stand_on_a_clip(home, made):
    """Whoever is asked to take a sound out must know what is in use, not only what was ever made."""
    teacher, student = made["teacher"], made["student"]
    assert impact(home, clip("pool-1"))["models"] == []
    chain.decision(home, teacher, teacher, student, promoted=True)
    told = impact(home, clip("pool-1"))["models"]
    found = [(model["id"], model["because"]) for model in told]
    assert found == [(f"clapcur-esc50@{alias}", f"is {student.id}") for alias in ("champion", "challenger")]
    aliases = [model["id"].partition("@")[2] for model in impact(home, clip("dog-1"))["models"]]
    assert aliases == ["teacher", "champion", "challenger"], "the student started from the teacher"


def test_a_pool_clip_that_was_not_chosen_touches_no_model(home, made):
    """Being looked at is not being learned."""
    answer = ids(impact(home, clip("pool-3")))
    assert (answer["manifests"], answer["improvement_sets"], answer["checkpoints"]) == ([made["pool"].id], [], [])


def test_a_clip_of_the_teachers_pairs_touches_the_teacher_and_all_that_came_of_it(home, made):
    """Weights and soft labels carry a clip on into models that never saw it."""
    grandchild = chain.checkpoint(
        home, {"teacher": made["student"], "teacher_pairs": chain.manifest(home, "x")}, "du+sl", []
    )
    answer = impact(home, clip("dog-1"))
    assert ids(answer)["checkpoints"] == sorted([made["teacher"].id, made["student"].id, grandchild.id])
    assert ids(answer)["scores"] == sorted([made["teacher_scores"].id, made["student_scores"].id])
    because = {entry["id"]: entry["because"] for entry in answer["checkpoints"]}
    assert because[made["teacher"].id] == f"trained on teacher_pairs {made['teacher_pairs'].id}"
    assert because[grandchild.id] == f"teacher is {made['student'].id}"


def test_an_evaluation_clip_touches_the_scores_measured_on_it_and_no_model(home, made):
    """Scores are wrong when one of their clips goes; the models are not."""
    answer = impact(home, clip("test-1"))
    assert ids(answer)["checkpoints"] == []
    assert ids(answer)["scores"] == sorted([made["teacher_scores"].id, made["student_scores"].id])
    assert {entry["because"] for entry in answer["scores"]} == {f"measured on {made['evaluation'].id}"}


def test_a_clip_is_named_by_its_file_or_by_the_start_of_its_id(home, made, tmp_path):
    """Who asks for a take-down has the sound, not its hash."""
    expected = impact(home, clip("pool-2"))
    (tmp_path / "any name.wav").write_text("pool-2")
    assert impact(home, str(tmp_path / "any name.wav")) == expected
    assert impact(home, clip("pool-2")[:6]) == expected


def test_a_clip_id_in_capitals_is_that_clip(home, made):
    """Spreadsheets and people write hexadecimal digits either way."""
    assert impact(home, f" {clip('pool-1').upper()} ") == impact(home, clip("pool-1"))


def test_a_clip_that_cannot_be_told_is_an_error(home, made):
    """An empty answer is a legal statement: "it touched nothing". It must never answer a typing error."""
    with pytest.raises(DataError, match="no manifest and no Improvement-Set has a clip whose id starts with 000000"):
        impact(home, "000000")
    for name in ("missing.wav", "abc", clip("pool-1")[:5]):
        with pytest.raises(DataError, match="expected an audio file, a clip id"):
            impact(home, name)


def test_the_start_of_several_clip_ids_is_refused(home, monkeypatch):
    """The first match would answer for another clip."""
    chain.manifest(home, "pool", clips=[f"clip-{number}" for number in range(200)])
    starts = sorted(clip(f"clip-{number}")[:2] for number in range(200))
    double = next(one for one, other in zip(starts, starts[1:], strict=False) if one == other)
    monkeypatch.setattr("clapcur.lineage.queries.MIN_CLIP_DIGITS", 2)
    with pytest.raises(ArtifactError, match=f"'{double}' matches . clip ids, give more digits: {double}"):
        impact(home, double)


def test_a_set_that_cannot_be_read_is_named(home, made):
    """To a lawyer, "not in it" and "cannot look" are different answers."""
    (made["set"].path / "pairs.parquet").unlink()
    answer = impact(home, clip("pool-1"))
    assert answer["unread"] == [made["set"].id]
    assert impact(home, clip("dog-1"))["unread"] == [made["set"].id]


def test_impact_agrees_with_reading_every_pair_of_random_sets(home, rng):
    """Pruning by row groups that is off by one clip shows only at the edge of a group."""
    names = [f"clip-{number}" for number in range(30)]
    pool = chain.manifest(home, "pool", clips=names)
    members = {}
    for number in range(6):
        chosen = rng.choice(names, size=8, replace=False)
        made = chain.improvement_set(home, [(name, f"caption {number}", 0.5) for name in chosen], {"pool": pool}, "du")
        table = pq.read_table(made.path / "pairs.parquet")
        pq.write_table(table, made.path / "pairs.parquet", row_group_size=3)
        members[made.id] = set(chosen)
    for name in names:
        expected = sorted(made for made, chosen in members.items() if name in chosen)
        assert ids(impact(home, clip(name)))["improvement_sets"] == expected


def test_row_groups_without_the_clip_are_never_read(home):
    """With millions of pairs, reading all of them for one clip takes minutes instead of milliseconds."""
    names = [f"clip-{number}" for number in range(64)]
    pool = chain.manifest(home, "pool", clips=names)
    made = chain.improvement_set(home, [(name, "a dog barks", 0.5) for name in names], {"pool": pool})
    path = made.path / "pairs.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=16, compression="zstd")
    groups = pq.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    for index in (0, 1, 3):  # what is read from these is garbage
        column = groups.row_group(index).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    ordered = sorted(clip(name) for name in names)
    assert ids(impact(home, ordered[40]))["improvement_sets"] == [made.id]
    with pytest.raises((OSError, pa.ArrowInvalid)):
        impact(home, ordered[0])


def test_both_answers_come_within_two_seconds_of_work_and_without_torch_or_mlflow(home, made):
    """Two seconds of imports before an answer of milliseconds, at every question."""
    names = [f"clip-{number}" for number in range(500)]
    rng = np.random.default_rng(1)
    for number in range(10):
        pairs = [(str(name), "a dog barks", 0.5) for name in rng.choice(names, 100, replace=False)]
        chain.improvement_set(home, pairs, {"pool": made["pool"]}, f"du{number}")
    script = (
        "import json, sys, time\n"
        "from clapcur.store.home import Home\n"
        "from clapcur.lineage.queries import impact, trace\n"
        f"answers = trace(Home.open(), {made['student'].id!r}), impact(Home.open(), {clip('pool-1')!r})\n"
        "heavy = sorted(sys.modules.keys() & {'torch', 'mlflow', 'prefect', 'pandas'})\n"
        "print(json.dumps([time.process_time(), heavy, answers[0]['id']]))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    seconds, heavy, answered = json.loads(out)
    assert (heavy, answered) == ([], made["student"].id)
    assert seconds < 2


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("freesound:100032", {"a", "b", "c"}),
        ("Freesound: 100032.0", {"a", "b", "c"}),
        ("100032", {"a", "b", "c", "d"}),
        ("tut:100032", {"b", "c", "d"}),
        ("freesound:1000320", set()),
        ("nan", set()),
    ],
)
def test_a_recording_is_found_in_every_spelling(home, asked, found):
    """A take-down request names `100032`, the manifest says `freesound:100032`, and one of before `100032.0`."""
    ids = ["freesound:100032", "100032", "100032.0", "tut:100032", "7100032", "nan"]
    store_manifest(home.store, "recordings", clips_table(list("abcdef"), recording_id=ids))
    assert set(clips_of_recording(home, asked)) == found
