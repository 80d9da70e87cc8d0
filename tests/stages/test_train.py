"""One loop for teacher and student: what it learns from, what it never sees, and that it resumes exactly."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from source_tree import ROOT
from training_corpus import MODEL, STUDENT, TEACHER, TONES, Corpus, history, weights

from clapcur.config import canonical
from clapcur.data.manifest import Manifest
from clapcur.errors import CheckpointError, EmptySetError, Interrupted
from clapcur.models.clap import Clap, load_model
from clapcur.models.training_state import TrainingState
from clapcur.stages.train import STAGE, SoftLabels, gather_data, mask, train
from clapcur.stages.train.crops import Waveforms
from clapcur.stages.train.loop import Meter
from clapcur.stages.train.sampling import Mixture
from clapcur.store.artifacts import Store
from clapcur.testing import clips_table, commit, manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def test_the_test_set_chooses_the_weights_only_where_it_is_asked_to(corpus):
    """The reference's figures are those of the best epoch on the test set; ours must never be by accident."""
    from clapcur import load_model

    clips = [f"clip{index:02d}" for index in range(18, 24)]
    table = clips_table(clips, label=[list(TONES)[index % 3] for index in range(18, 24)])
    labelled = manifest(corpus.store, "labelled", table, paths=Manifest.open(corpus.pool).paths)
    prompts = tuple(f"a {name} sounds" for name in TONES)
    config = dataclasses.replace(
        TEACHER, num_examples=8 * 40, learning_rate=4e-3, selection="reference", test_classes=tuple(TONES),
        test_prompts=prompts, num_evaluations=8,
    )  # fmt: skip
    artifact = corpus.run(config, {"teacher_pairs": corpus.pairs, "evaluation": labelled})
    seen = [row["test_accuracy"] for row in history(artifact) if "test_accuracy" in row]
    assert len(seen) == 8 and len(set(seen)) > 1
    test = Manifest.open(labelled)
    files = [test.paths[clip] for clip in test.clips.clip_id]
    answers = load_model(artifact.path, device="cpu").classify(files, list(TONES), prompt="a {} sounds")
    assert (answers["class"].to_numpy() == test.clips.label.to_numpy()).mean() == pytest.approx(max(seen))
    with pytest.raises(ValueError, match="needs the input `evaluation`, and test_classes"):
        corpus.run(config, {"teacher_pairs": corpus.pairs})
    with pytest.raises(ValueError, match="expected one prompt for each of 3 test_classes, got 0"):
        dataclasses.replace(config, test_prompts=())


def test_a_teacher_learns_to_tell_tones_apart(corpus):
    """A loop whose loss falls by shrinking the scale, or not at all, would go unnoticed without a score."""
    from clapcur import load_model

    config = dataclasses.replace(
        TEACHER, num_examples=8 * 100, learning_rate=4e-3, selection="last", hard_target="identical"
    )
    artifact = corpus.run(config, {"teacher_pairs": corpus.pairs})
    model = load_model(artifact.path, device="cpu")
    pool = Manifest.open(corpus.pool)
    answers = model.classify([pool.paths[c] for c in pool.clips.clip_id], list(TONES), prompt="a {} sounds")
    expected = [corpus.texts[clip].removeprefix("a ").removesuffix(" sounds") for clip in pool.clips.clip_id]
    assert (answers["class"].to_numpy() == np.array(expected)).mean() >= 5 / 6
    losses = [row["loss"] for row in history(artifact) if "loss" in row]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(corpus):
    """Randomness that does not come from the seed makes every comparison of rows a comparison of luck."""
    once = weights(corpus.teacher())
    again = Corpus(corpus.store.root.parent / "again")
    other = weights(again.teacher())
    assert all(torch.equal(once[name], other[name]) for name in once)
    changed = weights(corpus.teacher(seed=1))
    assert not torch.equal(once["audio.fc1.weight"], changed["audio.fc1.weight"])
    assert corpus.teacher().record.files == again.teacher().record.files, "times are no part of the result"


def spoil(monkeypatch, clip, value):
    """Let a clip come out of its file with other samples; 1e20 is finite, but its power is not."""
    crop = Waveforms._crop

    def spoilt(self, clip_id, offset):
        samples = crop(self, clip_id, offset)
        return np.full_like(samples, value) if clip_id == clip else samples

    monkeypatch.setattr(Waveforms, "_crop", spoilt)


@pytest.mark.parametrize("value", [1e20, np.nan, np.inf])
def test_a_training_stops_at_the_first_loss_that_is_not_finite_and_names_the_clips(corpus, value, monkeypatch):
    """Three NaN losses in a row were passed over, and batch norms had taken the NaN in for good."""
    config = dataclasses.replace(TEACHER, selection="last", num_evaluations=0, save_every_s=0.0, seed=11)
    inputs = {"teacher_pairs": corpus.pairs}
    data = gather_data(inputs, config)
    batches = Mixture(
        data.main, None, replay_probability=0.0, batch_size=8, num_steps=config.num_steps, seed=config.seed
    )
    seen_first = set(batches.batch(0).clip_ids)
    clip = next(name for step in range(1, 12) for name in batches.batch(step).clip_ids if name not in seen_first)
    spoil(monkeypatch, clip, value)
    work = corpus.store.open(dataclasses.replace(STAGE, version=str(value)).key(config, inputs))
    steps = []
    work.on_step = lambda step, metrics: steps.append(step)
    with pytest.raises(CheckpointError, match=r"loss of step \d+ is not finite") as told:
        train(inputs, config, work)
    (stopped,) = map(int, re.findall(r"loss of step (\d+)", str(told.value)))
    assert len(steps) == stopped >= 1
    assert f"not finite in the model's input: {data.paths[clip]};" in str(told.value)
    assert all(data.paths[name] in str(told.value) for name in batches.batch(stopped).clip_ids)
    assert not (work.path / "model.safetensors").exists()
    saved = load_file(work.scratch / f"state-{stopped}.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_held_out_clip_that_is_not_finite_is_named_too(corpus, monkeypatch):
    """No weights were ever chosen by a loss that is NaN, and the last ones went out as the best."""
    manifest = Manifest.open(corpus.pairs)
    clip = sorted(manifest.held_out(0.3))[0]
    spoil(monkeypatch, clip, 1e20)
    with pytest.raises(
        CheckpointError, match=f"held-out pairs is not finite; .*the model's input: {manifest.paths[clip]}"
    ):
        corpus.teacher(seed=12)


def test_weights_that_are_not_finite_are_neither_saved_nor_finished(corpus, tmp_path):
    """A state that was saved with them is met again by every later run."""
    model = load_model(corpus.teacher().path, "cpu")
    with torch.no_grad():
        model.audio.fc1.weight[0, 0] = float("nan")
    state = TrainingState(model, torch.optim.Adam(model.parameters()), tmp_path / "state")
    with pytest.raises(CheckpointError, match="these weights are not finite after step 0: audio.fc1.weight"):
        state.save()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        CheckpointError, match="the model was not saved: these weights are not finite: audio.fc1.weight"
    ):
        model.save(tmp_path / "model")


def test_speed_and_memory_stand_in_the_history_now_and_then(corpus):
    """Figures that nobody sees while a training crawls are of no use; at every step they would drown the curves."""
    made = corpus.teacher()
    rows = [json.loads(line) for line in (made.path / "times.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in history(made)]
    measured = [row for row in rows if "samples_per_s" in row]
    assert [row["step"] for row in measured] == [10, 12]
    assert all(row["samples_per_s"] > 0 and 100 < row["memory_mib"] < 100_000 for row in measured)


def test_an_evaluation_between_two_steps_is_no_part_of_the_speed(monkeypatch):
    """Counted in, it makes a training look as slow as its evaluations are long."""
    now = [0.0]
    monkeypatch.setattr("clapcur.stages.train.loop.time.monotonic", lambda: now[0])
    meter = Meter(8, torch.device("cpu"))
    for step in range(1, 11):
        now[0] += 0.5
        figures = meter.read(step, 12)
    assert figures["samples_per_s"] == 16
    now[0] += 100  # an evaluation
    meter.restart()
    now[0] += 0.25
    assert meter.read(11, 12) == {}
    now[0] += 0.25
    assert meter.read(12, 12)["samples_per_s"] == 32


@pytest.mark.parametrize("soft", [False, True])
def test_an_interrupted_training_ends_with_the_weights_of_an_unbroken_one(corpus, soft):
    """A state without moments, generator or best weights resumes into another model, and nobody sees it."""
    labels = SoftLabels(form="softmax", beta=0.5) if soft else None
    config = dataclasses.replace(STUDENT, soft_labels=labels, save_every_s=0.0, seed=5, time_masks=1)
    inputs = corpus.student_inputs()
    unbroken = weights(corpus.run(config, inputs))
    key = dataclasses.replace(STAGE, version="resumed").key(config, inputs)
    work = corpus.store.open(key)

    def fail(step, metrics):
        if step == 4 and "loss" in metrics:
            raise KeyboardInterrupt

    work.on_step = fail
    with pytest.raises(KeyboardInterrupt):
        train(inputs, config, work)
    assert not (work.path / "model.safetensors").exists()
    again = corpus.store.open(key)
    steps = []
    again.on_step = lambda step, metrics: steps.append(step)
    resumed = corpus.store.commit(again, train(inputs, config, again), 0.0)
    assert min(steps) == 4, "the run must continue from the saved state and not from the start"
    assert all(torch.equal(unbroken[name], tensor) for name, tensor in weights(resumed).items())
    assert [row["step"] for row in history(resumed)] == sorted(row["step"] for row in history(resumed))


@pytest.mark.parametrize("frozen", [(), ("text",)], ids=["teacher", "frozen text"])
def test_a_resumed_training_embeds_captions_in_the_groups_of_an_unbroken_one(corpus, monkeypatch, frozen):
    """The last bits of a row depend on the rows computed with it: a resumed training would end with other weights."""
    clips = [f"clip{index:02d}" for index in range(18)]
    pairs = [(clip, f"tone number {index} of {clip}") for index, clip in enumerate(clips)]
    paths = Manifest.open(corpus.pairs).paths
    many = manifest(corpus.store, "a caption a clip", clips_table(clips), pairs, paths=paths)
    inputs = {"init": corpus.teacher(), "teacher_pairs": many}
    labels = None if frozen else SoftLabels(form="softmax", beta=0.5)
    config = dataclasses.replace(STUDENT, soft_labels=labels, frozen_towers=frozen, save_every_s=0.0, seed=6)
    groups: list[str] = []
    features = Clap.text_features

    def note(self, captions):
        if not torch.is_grad_enabled():
            groups.append(str(captions if isinstance(captions, list) else captions["input_ids"].tolist()))
        return features(self, captions)

    monkeypatch.setattr(Clap, "text_features", note)
    unbroken = corpus.run(config, inputs)
    wanted = list(groups)
    assert len(set(wanted)) > 2, "captions must be met in several groups"
    work = corpus.store.open(dataclasses.replace(STAGE, version="resumed in groups").key(config, inputs))
    work.on_step = lambda step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Interrupted):
        train(inputs, config, work)
    groups.clear()
    work.on_step = lambda step, metrics: None
    resumed = corpus.store.commit(work, train(inputs, config, work), 0.0)
    assert set(groups) == set(wanted)
    assert all(torch.equal(weights(unbroken)[name], tensor) for name, tensor in weights(resumed).items())


def test_sigterm_saves_the_state_and_leaves(corpus):
    """A worker that is told to stop must lose at most the step it is in."""
    config = dataclasses.replace(STUDENT, seed=9)
    inputs = corpus.student_inputs()
    work = corpus.store.open(STAGE.key(config, inputs))
    work.on_step = lambda step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Interrupted, match="step 2 of 6"):
        train(inputs, config, work)
    assert json.loads((work.scratch / "state.json").read_text())["step"] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_held_out_recordings_are_in_no_source(corpus):
    """A held-out clip in a batch would choose the checkpoint that remembers it."""
    inputs = corpus.student_inputs()
    data = gather_data(inputs, STUDENT)
    held_out = Manifest.open(corpus.pairs).held_out(STUDENT.held_out)
    assert set(data.held_out.clip_id) == held_out
    assert not held_out & (set(data.main.pairs.clip_id) | set(data.replay.pairs.clip_id))
    assert data.main.name == "improvement_set" and data.replay.name == "teacher_pairs"


def test_a_student_that_gets_worse_keeps_its_teachers_weights(corpus):
    """Selection that ignores the start would hand out a student that is worse than what it came from."""
    config = dataclasses.replace(STUDENT, learning_rate=3.0, gradient_clip=1e9)
    inputs = corpus.student_inputs()
    student, teacher = weights(corpus.run(config, inputs)), weights(inputs["init"])
    assert all(torch.equal(student[name], teacher[name]) for name in teacher)


def test_soft_labels_with_beta_zero_are_the_hard_loss(corpus):
    """A form that leaks into the target at beta 0 would make SL and the control differ by construction."""
    inputs = corpus.student_inputs()
    hard = corpus.run(dataclasses.replace(STUDENT, selection="last"), inputs)
    soft = corpus.run(
        dataclasses.replace(STUDENT, selection="last", soft_labels=SoftLabels(form="row", beta=0.0)), inputs
    )
    assert all(torch.allclose(weights(hard)[name], tensor, atol=1e-6) for name, tensor in weights(soft).items())


def test_a_frozen_text_tower_keeps_its_weights_and_its_projection_learns(corpus):
    """A frozen tower that drifts (weights, or running statistics) breaks the cache of its features."""
    inputs = corpus.student_inputs()
    teacher = weights(inputs["init"])
    student = weights(corpus.run(dataclasses.replace(STUDENT, frozen_towers=("text",), selection="last"), inputs))
    for name, tensor in student.items():
        if name.startswith("text."):
            assert torch.equal(tensor, teacher[name]), name
    assert not torch.equal(student["text_projection.linear1.weight"], teacher["text_projection.linear1.weight"])


def test_cached_text_features_give_the_gradients_of_the_tower(corpus):
    """The table of features must be what the frozen tower would give at this step."""
    from clapcur import load_model
    from clapcur.stages.train import TextFeatures

    model = load_model(corpus.teacher().path, device="cpu")
    captions = {"x": "a low tone sounds", "y": "a high tone sounds"}
    through = TextFeatures(model, captions, is_frozen=False).encode(["x", "y", "x"])
    table = TextFeatures(model, captions, is_frozen=True).encode(["x", "y", "x"])
    assert torch.allclose(through, table, atol=1e-6) and table.requires_grad


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    """A schedule off by one spends the first step at zero or ends above the final rate."""
    config = dataclasses.replace(TEACHER, num_examples=8 * 100, learning_rate=1.0, final_learning_rate=0.1, warmup=0.1)
    rates = [config.learning_rate_at(step) for step in range(config.num_steps)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55) and 0.1 < rates[-1] < 0.102
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_masks_hide_stretches_and_nothing_else():
    """SpecAugment that blanks whole clips, or shares one mask over the batch, would harm silently."""
    torch.manual_seed(0)
    clips = torch.randn(50, 64, 32)
    hidden = mask(clips, 1, 1) != clips
    share = hidden.float().mean(dim=(1, 2))
    assert 0.01 < share.mean() < 0.2 and share.max() < 0.3
    assert len({tuple(row) for row in hidden.all(dim=2).int().tolist()}) > 10
    assert torch.equal(mask(clips, 0, 0), clips)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_examples": 3}, "at least one batch"),
        ({"batch_size": 1}, "at least 2 pairs"),
        ({"replay_probability": 1.5}, "replay_probability"),
        ({"held_out": 0.0}, "selection='last'"),
    ],
)
def test_configs_without_a_meaning_are_refused(changes, message):
    """A budget below one batch would train nothing and call it a student."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TEACHER, **changes)


def test_a_model_config_that_contradicts_the_checkpoint_is_refused(corpus):
    """Training on with another architecture than asked for, silently."""
    other = dataclasses.replace(MODEL, embedding_dim=16)
    with pytest.raises(CheckpointError, match="differs from the checkpoint .* omit `model`"):
        corpus.run(dataclasses.replace(STUDENT, model=other), corpus.student_inputs())


def test_no_held_out_pair_is_an_error_that_says_what_to_do(corpus):
    """Selecting on nothing would keep the first weights."""
    with pytest.raises(EmptySetError, match="raise held_out"):
        gather_data({"teacher_pairs": corpus.pairs}, dataclasses.replace(TEACHER, held_out=1e-9))


def test_machine_fields_do_not_name_the_checkpoint():
    """Another number of threads must find the same artifact."""
    other = dataclasses.replace(TEACHER, num_workers=7, cache_mib=1, save_every_s=1.0, device="auto")
    assert canonical(other) == canonical(TEACHER)


@pytest.mark.slow
def test_a_killed_training_goes_on_in_a_new_process(corpus, tmp_path):
    """Kill -9 at any moment: no half-written checkpoint may count as done."""
    script = f"""
import dataclasses, os, signal, sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
import torch; torch.set_num_threads(1)
from pathlib import Path
from training_corpus import Corpus, STUDENT, STAGE, train
corpus = Corpus(Path({str(tmp_path)!r}))
inputs = corpus.student_inputs()
config = dataclasses.replace(STUDENT, save_every_s=0.0)
work = corpus.store.open(STAGE.key(config, inputs))
def on_step(step, metrics):
    print("step", step, flush=True)
    if sys.argv[1] == "kill" and step == 3 and "loss" in metrics:
        os.kill(os.getpid(), signal.SIGKILL)
work.on_step = on_step
print(corpus.store.commit(work, train(inputs, config, work), 0.0).id)
"""
    killed = subprocess.run([sys.executable, "-c", script, "kill"], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store(tmp_path / "store")
    assert [a.kind for a in store].count("checkpoint") == 1, "only the teacher is finished"
    finished = subprocess.run([sys.executable, "-c", script, "continue"], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split()[:2] == ["step", "3"]
    assert [a.kind for a in store].count("checkpoint") == 2


def test_a_clapmodel_becomes_teacher_and_its_student_a_clapmodel_again(corpus, tmp_path):
    """A tower that only loads, and does not run in the loop, is of no use to those who have such a model."""
    from hugging_face_models import embedded, write_hugging_face
    from tiny_checkpoints import CAPTIONS, write_clip
    from transformers import ClapModel

    from clapcur.models.checkpoints import load_checkpoint, save_checkpoint

    write_hugging_face(tmp_path / "theirs")
    teacher, _ = load_checkpoint(tmp_path / "theirs")
    init = commit(corpus.store, "checkpoint", "a ClapModel", lambda work: teacher.save(work.path))
    config = dataclasses.replace(
        STUDENT,
        num_examples=8 * 2,
        learning_rate=1e-3,
        soft_labels=SoftLabels(beta=0.5),
        time_masks=1,
        warmup=0.0,
        precision="bfloat16",
    )
    made = corpus.run(config, corpus.student_inputs() | {"init": init})
    assert made.record.environment["precision"] == "bfloat16"
    before, after = weights(init), weights(made)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("audio.") for name in changed) and any(name.startswith("text.") for name in changed)

    student = load_model(made.path, device="cpu")
    save_checkpoint(student, tmp_path / "student", "hf")
    wave = write_clip(tmp_path / "clip.wav", 2.5, 48000)
    audio, text = embedded(ClapModel.from_pretrained(tmp_path / "student").eval(), tmp_path / "student", [wave])
    np.testing.assert_allclose(student.embed_audio([tmp_path / "clip.wav"]), audio, atol=1e-5)
    np.testing.assert_allclose(student.embed_text(CAPTIONS), text, atol=1e-5)
