"""Order from the command line down: scores of any checkpoint, and where each composed sound came from."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from checkpoint_families import written  # noqa: F401  (a fixture)
from command_runs import run
from composing import SMALL, sounds
from hugging_face_models import write_hugging_face

from clapcur.data.compositions import Compositions
from clapcur.data.manifest import Manifest
from clapcur.data.order_scores import OrderScores
from clapcur.data.rows import Row
from clapcur.data.takedowns import why_tainted
from clapcur.errors import CheckpointError, OutdatedError
from clapcur.experiments.order import PostTraining, post_training_from_file, warn_of_deaf_tower
from clapcur.lineage import queries
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, OrderHeadConfig
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.compose import ComposeConfig
from clapcur.stages.tombstone import Tombstone
from clapcur.stages.zste import ZsteConfig
from clapcur.store.catalog import Catalog
from clapcur.tasks.adopt import adopt
from clapcur.tasks.compose import compose
from clapcur.tasks.tombstone import bury
from clapcur.tasks.zste import zste


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "tiny-clap"
    write_hugging_face(folder)
    return folder


def labelled(home, folder, **options):
    """Make labelled clips, known to the catalog of the home."""
    made = sounds(home.store, folder, recordings=3, takes=1, **options)
    Catalog.open(home).catch_up(home.store)
    return made


def test_zste_runs_on_a_clap_model_folder_and_prints_every_task_with_its_chance(answer, home, tmp_path, published):
    """A model that nobody adopted by hand, and the table that people read."""
    clips = labelled(home, tmp_path)
    code, out, err = answer("zste", published, "--clips", clips.id, "--num-groups", 4, "--json")
    assert code == 0, err
    made = json.loads(out)
    tasks = made["tasks"]
    assert {"single", "both.sequence", "both.overlap", "relation", "relation_distractors", "position"} < set(tasks)
    assert tasks["single"]["chance"] == 1 / 4 and tasks["relation"]["chance"] == pytest.approx(1 / 3)
    for name, found in tasks.items():
        assert 0 <= found["interval"][0] <= found["score"] + 1e-9 <= found["interval"][1] + 2e-9 <= 1 + 4e-9, name
        assert made["metrics"][f"zste.{name}"] == found["score"]
    assert made["protocol"]["num_groups"] == 4 and made["contamination"]["status"] == "unknown"
    record = home.store.find(made["id"])
    assert (record.path / "order.png").read_bytes().startswith(b"\x89PNG")
    items = pd.read_parquet(record.path / "items.parquet")
    assert set(items[items.task == "order"].item_id.str.split(":").str[1]) == {"forward", "reversed"}
    code, out, err = answer("zste", published, "--clips", clips.id, "--num-groups", 4)
    assert code == 0 and "winoground.group" in out and "95 % interval" in out
    # the checkpoint's run in MLflow has the scores
    from clapcur.tracking.runs import connect

    run = connect(home).get_run(Catalog.open(home).run_of(record.record.inputs["checkpoint"]))
    assert run.data.metrics["zste.relation"] == pytest.approx(tasks["relation"]["score"])


def test_zste_runs_on_a_file_of_ms_clap(home, tmp_path, written):
    """The model of the paper."""
    path, _ = written("msclap-2022")
    checkpoint = adopt(AdoptConfig(source=str(path), text_source=str(path.parent / "text")), {})
    clips = labelled(home, tmp_path)
    composed = compose(ComposeConfig(held_out=1.0, num_held_out_groups=2), {"clips": clips}, "evaluation")
    inputs = {"checkpoint": checkpoint, "compositions": composed, "clips": clips}
    made = zste(ZsteConfig(num_resamples=50), inputs, Row(strategy="teacher"), 0)
    scores = OrderScores.open(made)
    assert scores.protocol.window_s == 5 and np.isfinite(scores.average)
    again = zste(ZsteConfig(num_resamples=50), inputs, Row(strategy="teacher"), 0)
    assert again.id == made.id


def test_items_longer_than_the_window_are_refused(home, tmp_path, published):
    """Cut to the window, a sequence has lost its second sound, and its caption says that it has one."""
    checkpoint = adopt(AdoptConfig(source=str(published)), {})
    clips = labelled(home, tmp_path)
    composed = compose(ComposeConfig(held_out=1.0, num_held_out_groups=2, duration_s=29.0), {"clips": clips}, "e")
    with pytest.raises(
        CheckpointError, match=r"composed items are 29 s long, but the window of the checkpoint .* is 10 s"
    ):
        zste(
            ZsteConfig(),
            {"checkpoint": checkpoint, "compositions": composed, "clips": clips},
            Row(strategy="teacher"),
            0,
        )


def test_a_clip_leads_to_the_compositions_that_are_made_of_it_and_to_their_scores(answer, home, tmp_path, published):
    """Who was asked to delete a recording must find every place where it is heard."""
    clips = labelled(home, tmp_path)
    code, out, err = answer("zste", published, "--clips", clips.id, "--num-groups", 3, "--json")
    assert code == 0, err
    (composed,) = home.store.of_kind("compositions")
    group, places = Compositions.open(composed).groups.iloc[0], Manifest.open(clips).paths
    for clip in (group.clip_a, group.clip_b):
        found = queries.impact(home, places[clip])
        assert [entry["id"] for entry in found["compositions"]] == [composed.id]
        assert [entry["id"] for entry in found["scores"]] == [json.loads(out)["id"]]
        assert answer("impact", places[clip])[1].count(composed.id)
    assert [(node["role"], node["id"]) for node in queries.trace(home, composed.id)["inputs"]] == [("clips", clips.id)]


def test_compositions_with_a_clip_that_was_taken_down_are_stopped_and_others_are_not(home, tmp_path):
    """A recipe that still names a forgotten clip would render it again."""
    clips, others = labelled(home, tmp_path), labelled(home, tmp_path, name="others")
    made = compose(SMALL, {"clips": clips}, "training")
    gone = Compositions.open(made).groups.iloc[0].clip_a
    bury(Tombstone(clip_id=gone, pcm_sha256="", recording_id="", reason="asked"))
    assert "holds the clip" in why_tainted(home.store, made)
    assert compose(SMALL, {"clips": others}, "training").kind == "compositions"
    with pytest.raises(OutdatedError, match="the recipe of the compositions .* holds the clip"):
        compose(dataclasses.replace(SMALL, seed=1), {"clips": clips}, "training")


@pytest.fixture
def quick(tmp_path):
    """Write a post-training of two steps a stage."""
    path = tmp_path / "quick.yaml"
    path.write_text(
        """
        compose: {num_groups: 6, num_held_out_groups: 3, held_out: 0.4, min_clip_s: 0.2, num_workers: 1}
        order_head: {hidden_size: 4}
        train:
          num_examples: 12
          batch_size: 6
          order: {max_single_loss: 1.0}
          selection: last
          num_evaluations: 1
          learns: [audio_projection, text_projection]
          soft_labels: {}
          hard_target: identical
          num_workers: 1
        """
    )
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_post_trained_student_leads_through_its_compositions_to_both_clips_of_each_pair(
    answer, home, tmp_path, published, quick
):
    """The whole way, by the command: two stages, and back to the recordings from the last one."""
    clips = sounds(home.store, tmp_path, takes=1)
    Catalog.open(home).catch_up(home.store)
    done = run("post-train", published, "--clips", clips.id, "--stages", "a,b", "--config", quick, "--json")
    assert done.returncode == 0, done.stderr
    student = home.store.find(json.loads(done.stdout)["id"])
    record = student.record
    assert record.tags["row"] == "teminal" and record.config["order"]["stages"] == ["b"]
    first = home.store.find(record.inputs["init"])
    assert first.record.tags["row"] == "teminal" and first.record.config["order"]["stages"] == ["a"]
    assert first.record.inputs["init"] == record.inputs["teacher"]

    tree = queries.trace(home, student.id)
    (node,) = [node for node in tree["inputs"] if node["role"] == "compositions"]
    assert [below["id"] for below in node["inputs"]] == [clips.id]
    pairs = [pair for pair in queries.trace_pairs(home, student.id) if pair["role"] == "compositions"]
    groups = Compositions.open(home.store.find(node["id"])).of_split("train")
    assert [pair["clip_id"] for pair in pairs] == [
        clip for group in groups.itertuples() for clip in (group.clip_a, group.clip_b)
    ]
    places = Manifest.open(clips).paths
    assert all(pair["path"] == places[pair["clip_id"]] and " before " in pair["caption"] for pair in pairs)
    found = queries.impact(home, places[groups.iloc[0].clip_b])
    assert {entry["id"] for entry in found["checkpoints"]} == {student.id, first.id}
    assert [entry["id"] for entry in found["compositions"]] == [node["id"]]

    # its scores know which couples it was trained on, and that it has heard these recordings
    code, out, err = answer("zste", student.id, "--clips", clips.id, "--num-groups", 12, "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert {"order.seen", "order.unseen"} & set(scores["tasks"])
    assert scores["contamination"]["status"] == "contaminated"


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"stages": ("c",)}, "stages must be among a, b, a[+]b, got c"), ({"stages": ()}, "got none")],
)
def test_stages_that_there_are_none_of_are_refused(fields, message):
    """Found when the config is read."""
    with pytest.raises(ValueError, match=message):
        PostTraining(**fields)


def test_a_tower_that_cannot_hear_order_is_warned_of_before_it_is_trained(caplog):
    """49 % after a whole training: the toy check of a tower that pools by the mean."""
    deaf = ClapConfig(audio=AudioConfig(front_end=FrontEndConfig(sample_rate=44_100)))
    settings = PostTraining(order_head=None)
    warn_of_deaf_tower(settings, deaf)
    assert "order sounds only within 2.06 s, but the composed items are 5.00 s long" in caplog.text
    caplog.clear()
    warn_of_deaf_tower(PostTraining(), deaf)
    warn_of_deaf_tower(settings, dataclasses.replace(deaf, window_s=2.0))
    head = dataclasses.replace(deaf.audio, order_head=OrderHeadConfig())
    warn_of_deaf_tower(settings, dataclasses.replace(deaf, audio=head))
    assert not caplog.text


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    """A file that sets the budget alone must not let everything learn, without soft labels."""
    path = tmp_path / "mine.yaml"
    path.write_text("stages: [b]\ntrain: {num_examples: 960, order: {alpha_cross: 0.0}}\norder_head: null\n")
    found, built_in = post_training_from_file(path), PostTraining()
    order = dataclasses.replace(built_in.train.order, alpha_cross=0.0)
    assert found == dataclasses.replace(
        built_in,
        stages=("b",),
        order_head=None,
        train=dataclasses.replace(built_in.train, num_examples=960, order=order),
    )
    path.write_text("train: {steps: 3}")
    with pytest.raises(ValueError, match="unknown key 'train.steps'"):
        post_training_from_file(path)


def test_each_stage_is_a_training_of_its_own_and_only_a_head_that_is_there_learns():
    """A stage that adds a second head, or names a part that is not there, fails after the first one is paid for."""
    plain = ClapConfig()
    made = list(PostTraining().changed("a,b", order_head=True, seed=7).trainings(plain))
    assert [config.order.stages for config in made] == [("a",), ("b",)]
    for config in made:
        assert config.seed == 7 and "order_head" in config.learns and config.order.add_head == OrderHeadConfig()
    (config,) = PostTraining().changed("a+b", order_head=False, seed=None).trainings(plain)
    assert config.order.stages == ("a", "b")
    assert "order_head" not in config.learns and config.order.add_head is None
    head = dataclasses.replace(plain, audio=AudioConfig(order_head=OrderHeadConfig(hidden_size=4)))
    (config,) = PostTraining().changed("b", order_head=True, seed=None).trainings(head)
    assert "order_head" in config.learns and config.order.add_head is None
    assert PostTraining().composing(dataclasses.replace(plain, window_s=2.0)).duration_s == 2.0
    assert PostTraining().composing(dataclasses.replace(plain, window_s=10.0)).duration_s == 5.0
