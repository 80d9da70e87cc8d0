"""Micro-batches and processes: ways to compute the same step, so each is compared with the plain one."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.nn import functional as F
from training_corpus import MODEL, STAGE, TEACHER, Corpus, history, weights

from clapcur.config import to_dict
from clapcur.errors import CheckpointError
from clapcur.methods.losses import soft_contrastive_loss
from clapcur.models import clap
from clapcur.models.clap import Clap
from clapcur.models.front_end import LogMel
from clapcur.stages.train import SoftLabels, TrainConfig, mask, train
from clapcur.stages.train.features import AudioFeatures, TextFeatures
from clapcur.stages.train.ranks import HOST, PATIENCE, Ranks, first_of, joined
from clapcur.stages.train.sampling import Batch
from clapcur.stages.train.step import ContrastiveStep, Loaded, Teacher, draws_of

CAPTIONS = {
    f"c{i}": text for i, text in enumerate(["a dog barks", "rain on a tin roof", "a siren", "wind", "a low hum"])
}
CALM = dataclasses.replace(  # without dropout, which micro-batches and processes draw each for themselves
    MODEL, audio=dataclasses.replace(MODEL.audio, block_dropout=0.0, dropout=0.0), projection_dropout=0.0
)
HARD = dataclasses.replace(TEACHER, model=None, num_examples=8 * 2, optimiser="adam", warmup=0.0)
TARGETS = {
    "diagonal": HARD,
    "identical": dataclasses.replace(HARD, hard_target="identical"),
    **{
        form: dataclasses.replace(HARD, soft_labels=SoftLabels(form=form, beta=0.4))
        for form in ("paper", "row", "softmax", "cross_modal")
    },
}
ALONE = Ranks(0, 1, torch.device("cpu"))


class FixedBatchNorm(nn.BatchNorm2d):
    """Normalises by its running statistics also in training."""

    def train(self, mode: bool = True):
        return super().train(False)


def make_step(config: TrainConfig, ranks: Ranks = ALONE, model_config=CALM, fixed: bool = False) -> ContrastiveStep:
    """Return a step on a model and a teacher that are the same whenever they are made."""
    model, teacher = (Clap.create(model_config, captions=sorted(CAPTIONS.values()), seed=seed) for seed in (0, 1))
    for encoder in (model.text.encoder, teacher.text.encoder):
        for part in encoder.modules():
            if isinstance(part, nn.Dropout) and model_config is CALM:
                part.p = 0.0
        for part in encoder.modules():
            if hasattr(part, "dropout_prob"):
                part.dropout_prob = 0.0
    for part in model.modules():
        if fixed and isinstance(part, nn.BatchNorm2d):
            part.__class__ = FixedBatchNorm
    for made in (model, teacher):
        made.double().front_end.float()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    labels = config.soft_labels
    return ContrastiveStep(
        model, None if labels is None else Teacher(teacher, CAPTIONS, labels), TextFeatures(model, CAPTIONS, False),
        AudioFeatures(model, False), optimiser, config, ranks,
    )  # fmt: skip


@contextmanager
def in_float64() -> Iterator[None]:
    """Let all that stands behind the front end compute in float64, where two orders of a sum agree to 1e-15."""
    front_end = LogMel.forward
    with (
        patch.object(LogMel, "forward", lambda self, waveform: front_end(self, waveform).double()),
        patch.object(clap, "_unit", lambda rows: F.normalize(rows, dim=-1)),
    ):
        yield


def make_batch(step: ContrastiveStep, number: int) -> tuple[Batch, Loaded]:
    """Return eight pairs, with repeats among clips and captions, and what is this rank's of them."""
    rng = np.random.default_rng(number)
    clips, captions = [f"clip{i}" for i in rng.integers(6, size=8)], [f"c{i}" for i in rng.integers(5, size=8)]
    waveform = torch.from_numpy(rng.standard_normal((8, CALM.num_samples)).astype(np.float32))
    own = step.ranks.share(8)
    batch = Batch(number, "pairs", clips, captions, np.zeros(8))
    return batch, Loaded(waveform[own], step.text.prepare(captions[own]))


def outcome(step: ContrastiveStep) -> dict[str, torch.Tensor]:
    """Take a step; return its figures, the gradient, and all weights and statistics afterwards."""
    found = {name: torch.tensor(value) for name, value in step(*make_batch(step, 0)).items()}
    found |= {f"gradient of {name}": weight.grad for name, weight in step.model.named_parameters()}
    return found | step.model.state_dict()


def outcomes_as(ranks: Ranks, micro_batch: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Return the outcome for each kind of target, and with micro-batches but no batch statistics."""
    by_parts = dataclasses.replace(TARGETS["cross_modal"], micro_batch=micro_batch)
    with in_float64():
        found = {name: outcome(make_step(config, ranks)) for name, config in TARGETS.items()}
        return found | {"micro-batches": outcome(make_step(by_parts, ranks, fixed=True))}


def second_rank(port: int) -> None:
    """Be the other process of the test below."""
    store = dist.TCPStore(HOST, port, 2, is_master=False, timeout=PATIENCE)
    with joined(1, 2, store, torch.device("cpu"), 1) as ranks:
        outcomes_as(ranks, micro_batch=2)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max()
        assert difference <= 1e-6 * value.abs().max() + 1e-9, f"{name} differs by {difference:.1e}"


@pytest.mark.slow
def test_two_processes_give_the_loss_gradient_and_weights_of_one():
    """A gather that scales the gradient, or targets of half a batch, trains another model on two GPUs than on one."""
    store = dist.TCPStore(HOST, 0, 2, is_master=True, timeout=PATIENCE, wait_for_workers=False)
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_train_ranks as t; t.second_rank({store.port})"
    other = subprocess.Popen([sys.executable, "-c", script])
    try:
        with joined(0, 2, store, torch.device("cpu"), 1) as ranks:
            found = outcomes_as(ranks, micro_batch=2)
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
    for name, expected in outcomes_as(ALONE).items():
        assert_same(found[name], expected)
    assert len({found[name]["loss"].item() for name in TARGETS}) == len(TARGETS)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    """A micro-batch that sees its own pairs alone as negatives has another loss, and a scale learned three times."""
    config = TARGETS["softmax"]
    with in_float64():
        whole = outcome(make_step(config, fixed=True))
        parts = outcome(make_step(dataclasses.replace(config, micro_batch=3), fixed=True))
    assert_same(parts, whole)


def test_both_passes_of_a_micro_batch_have_the_same_dropout_and_move_the_statistics_once():
    """With other masks in the second pass the gradient is that of no loss, and it still goes down a little."""
    config = dataclasses.replace(HARD, micro_batch=3, time_masks=1)
    with in_float64():
        step, plain = make_step(config, model_config=MODEL), make_step(config, model_config=MODEL)
        batch, loaded = make_batch(step, 0)
        found = step(batch, loaded)

        plain.model.train()
        rows = []
        for index, part in enumerate((slice(0, 3), slice(3, 6), slice(6, 8))):  # all graphs kept, one backward pass
            logmel = plain.model.front_end(loaded.waveform_BT[part])
            torch.manual_seed(draws_of(config.seed, 0, index))
            audio = plain.model.encode_logmel(mask(logmel, 1, 0))
            rows.append((audio, plain.model.encode_text(plain.text.inputs(batch.caption_ids, loaded.tokens, part))))
        audio, text = (torch.cat(side) for side in zip(*rows, strict=True))
        loss = soft_contrastive_loss(plain.model.scale() * audio @ text.T, torch.eye(8), torch.eye(8))
        loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.model.parameters(), config.gradient_clip)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    expected = {name: weight.grad for name, weight in plain.model.named_parameters()}
    assert_same({name: weight.grad for name, weight in step.model.named_parameters()}, expected)
    assert_same(dict(step.model.named_buffers()), dict(plain.model.named_buffers()))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def test_out_of_memory_halves_the_micro_batch_and_goes_on_and_says_it_once(corpus, monkeypatch, caplog):
    """A training of a day that ends in its second hour, because two captions were long."""
    room = {"pairs": 8}
    encode = Clap.encode_logmel

    def encode_what_fits(model, logmel):
        if model.training and len(logmel) > room["pairs"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, logmel)

    monkeypatch.setattr(Clap, "encode_logmel", encode_what_fits)
    config = dataclasses.replace(TEACHER, seed=11, save_every_s=0.0, num_examples=8 * 6)
    inputs = {"teacher_pairs": corpus.pairs}
    by_two = corpus.run(dataclasses.replace(config, micro_batch=2), inputs)
    caplog.clear()
    room["pairs"] = 3
    halved = corpus.run(config, inputs)
    said = [record.message for record in caplog.records if "out of memory" in record.message]
    assert [message.split("with ")[1].split(";")[0] for message in said] == [
        "micro-batches of 4 pairs", "micro-batches of 2 pairs"
    ]  # fmt: skip
    assert all(torch.equal(value, weights(by_two)[name]) for name, value in weights(halved).items())
    assert halved.record.environment["micro_batch"] == 2

    room["pairs"] = 0
    work = corpus.store.open(STAGE.key(dataclasses.replace(config, seed=12), inputs))
    with pytest.raises(CheckpointError, match="does not fit in the memory of cpu with micro-batches of 1 pairs"):
        train(inputs, dataclasses.replace(config, seed=12), work)


def test_a_halved_micro_batch_stays_halved_after_a_resume(corpus, monkeypatch):
    """Each resume would run out of memory again, and its steps would be other ones than the unbroken run's."""
    config = dataclasses.replace(TEACHER, seed=13, save_every_s=0.0, num_examples=8 * 6)
    inputs = {"teacher_pairs": corpus.pairs}
    encode = Clap.encode_logmel

    def run_out_in_step_two(model, logmel):
        if model.training and len(logmel) == 8 and moment["step"] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, logmel)

    def told(step, metrics):
        moment["step"] = step
        if step == 4 and moment["ends"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Clap, "encode_logmel", run_out_in_step_two)
    results = []
    for name, interruptions in (("unbroken", [False]), ("resumed", [True, False])):
        key = dataclasses.replace(STAGE, version=name).key(config, inputs)
        for ends in interruptions:
            moment = {"step": 0, "ends": ends}
            work = corpus.store.open(key)
            work.on_step = told
            try:
                results.append(corpus.store.commit(work, train(inputs, config, work), 0.0))
            except KeyboardInterrupt:
                assert json.loads((work.scratch / "state.json").read_text())["micro_batch"] == 4
    unbroken, resumed = map(weights, results)
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return how far all weights moved; a single one says little where Adam makes whole steps of gradients near 0."""
    return (
        sum((one[name].double() - other[name]).square().sum().item() for name in one if "num_batches" not in name)
        ** 0.5
    )


@contextmanager
def new_children() -> Iterator[Callable[[], set[psutil.Process]]]:
    """Give a function that returns the child processes, zombies too, that were started inside the block.

    Other tests in this process may have left some of their own: a resource tracker, for instance.
    """
    before = set(psutil.Process().children())
    yield lambda: set(psutil.Process().children()) - before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("not of a collective")], ids=repr)
@pytest.mark.slow
def test_the_other_processes_are_gone_however_a_training_ends(corpus, error):
    """A helper that is left keeps its GPU, and one that is not waited for stays in the process table."""
    config = dataclasses.replace(TEACHER, processes=3, batch_size=6, num_examples=6 * 3)
    inputs = {"teacher_pairs": corpus.pairs}
    work = corpus.store.open(dataclasses.replace(STAGE, version=repr(error)).key(config, inputs))
    seen = []

    def fail(step, metrics):
        seen.append(len(helpers()))
        raise error

    work.on_step = fail
    with new_children() as helpers:
        with pytest.raises(type(error)) as caught:
            train(inputs, config, work)
        assert helpers() == set()
    assert seen == [2]
    assert caught.value is error


def test_a_helper_that_does_not_end_is_killed_and_costs_the_training_nothing(corpus, monkeypatch):
    """On a busy machine the end of a process takes its time; a training of a day must not fail over it."""
    monkeypatch.setattr("clapcur.stages.train.ranks.LEAVE_S", 0.0)
    config = dataclasses.replace(TEACHER, processes=2, num_examples=8, selection="last", num_evaluations=0)
    with new_children() as helpers:
        made = corpus.run(config, {"teacher_pairs": corpus.pairs})
        assert helpers() == set()
    assert len([row for row in history(made) if "loss" in row]) == 1


@pytest.mark.slow
def test_a_training_in_two_processes_is_that_of_one_and_resumes_exactly(corpus):
    """What two processes make must be the model of one, also where one of them died in between."""
    alone = dataclasses.replace(
        TEACHER,
        model=CALM,
        frozen_towers=("text",),
        hard_target="identical",
        num_examples=8 * 4,
        save_every_s=0.0,
        selection="last",
        learning_rate=1e-4,
    )
    config, inputs = dataclasses.replace(alone, processes=2), {"teacher_pairs": corpus.pairs}
    one, two = corpus.run(alone, inputs), corpus.run(config, inputs)
    start = Clap.create(
        CALM, captions=sorted(corpus.texts[clip] for clip in list(corpus.texts)[:18]), seed=0
    ).state_dict()
    assert distance(weights(two), weights(one)) < 0.01 * distance(weights(one), start)
    curves = [[row["loss"] for row in history(made) if "loss" in row] for made in (one, two)]
    assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], rel=1e-3)

    # Where a process dies, the others would wait for it for half an hour.
    work = corpus.store.open(dataclasses.replace(STAGE, version="resumed").key(config, inputs))
    with new_children() as helpers:
        work.on_step = lambda step, metrics: [helper.kill() for helper in helpers() if step == 2]
        with pytest.raises(CheckpointError, match="training process 1 of 2 died"):
            train(inputs, config, work)
        assert helpers() == set()
    assert json.loads((work.scratch / "state.json").read_text())["step"] == 2
    work.on_step = lambda step, metrics: None
    resumed = corpus.store.commit(work, train(inputs, config, work), 0.0)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(two).items())


def test_two_processes_stop_at_the_same_loss_and_one_of_them_says_so(corpus, capfd):
    """A helper that continues alone waits for the first process for half an hour."""
    config = dataclasses.replace(
        TEACHER, processes=2, learning_rate=1e30, gradient_clip=1e30, selection="last", num_evaluations=0, warmup=0.0
    )
    with pytest.raises(CheckpointError, match=r"the (loss|gradient) of step \d is not finite.*clip\d\d.wav"):
        corpus.run(config, {"teacher_pairs": corpus.pairs})
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_torchrun_starts_the_same_training(tmp_path):
    """A cluster is used to torchrun; what it makes must not be another model, and must end with the command."""
    corpus = Corpus(tmp_path)
    config = dataclasses.replace(
        TEACHER, model=CALM, num_examples=8 * 3, save_every_s=0.0, selection="last", learning_rate=1e-4, processes=2
    )
    expected = corpus.run(config, {"teacher_pairs": corpus.pairs})
    before = weights(expected)
    shutil.rmtree(expected.path)
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(to_dict(config)))
    command = Path(sys.executable).with_name("clapcur")
    training = ["train-teacher", corpus.pairs.id, "--config", str(tmp_path / "training.yaml"), "--json"]
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", HOST]
        + ["--master-port", str(port), "--no-python", command, *training],
        capture_output=True, text=True, timeout=100, env=os.environ | {"CLAPCUR_HOME": str(tmp_path)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout.splitlines()[-1])["id"] == expected.id
    assert all(torch.equal(value, weights(expected)[name]) for name, value in before.items())


def test_a_number_of_processes_that_torchrun_did_not_start_is_refused(monkeypatch):
    """The others would wait for somebody who never comes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 4 processes, but the config has processes: 2"):
        with first_of(2, "cpu", {}):
            pass


def test_shares_that_would_not_be_even_are_refused():
    """A rank with a pair more would give it less weight."""
    with pytest.raises(
        ValueError, match="batch_size must be a multiple of processes, got batch_size 8 and processes 3"
    ):
        dataclasses.replace(TEACHER, processes=3)
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        dataclasses.replace(TEACHER, micro_batch=0)
