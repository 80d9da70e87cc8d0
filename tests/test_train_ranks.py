"""Micro-batches and processes: ways to compute the same step, so each is compared with the plain one."""

import dataclasses
import subprocess
import sys

import numpy as np
import torch
import torch.distributed as dist
from test_train import MODEL, TEACHER
from torch import nn

from clapcur.mixing import Batch
from clapcur.models.clap import Clap
from clapcur.train import SoftLabels, TrainConfig
from clapcur.train.ranks import HOST, PATIENCE, Ranks, joined
from clapcur.train.step import ContrastiveStep, Loaded, Teacher, TextFeatures

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
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    labels = config.soft_labels
    return ContrastiveStep(
        model, None if labels is None else Teacher(teacher, CAPTIONS, labels), TextFeatures(model, CAPTIONS, False),
        optimiser, config, ranks,
    )  # fmt: skip


def make_batch(step: ContrastiveStep, number: int) -> tuple[Batch, Loaded]:
    """Return eight pairs, with repeats among clips and captions, and what is this rank's of them."""
    rng = np.random.default_rng(number)
    clips, captions = [f"clip{i}" for i in rng.integers(6, size=8)], [f"c{i}" for i in rng.integers(5, size=8)]
    waveform = torch.from_numpy(rng.standard_normal((8, CALM.num_samples)).astype(np.float32))
    own = step.ranks.share(8)
    batch = Batch(number, "pairs", clips, captions, np.zeros(8))
    return batch, Loaded(waveform[own], step.text.prepare(captions[own]))


def outcome(step: ContrastiveStep) -> dict[str, torch.Tensor]:
    """Take two steps; return their figures, the gradient of the first, and all weights and statistics afterwards."""
    found = {}
    for number in range(2):
        metrics = step(*make_batch(step, number))
        found |= {f"{name} of {number}": torch.tensor(value) for name, value in metrics.items()}
        if number == 0:
            found |= {f"gradient of {name}": p.grad.clone() for name, p in step.model.named_parameters()}
    return found | {name: value.clone() for name, value in step.model.state_dict().items()}


def outcomes_as(ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    """Return the outcome for each kind of target, and with micro-batches."""
    found = {name: outcome(make_step(config, ranks)) for name, config in TARGETS.items()}
    by_two = dataclasses.replace(TARGETS["cross_modal"], micro_batch=2)
    return found | {"micro-batches": outcome(make_step(by_two, ranks, fixed=True))}


def second_rank(port: int) -> None:
    """Be the other process of the test below."""
    store = dist.TCPStore(HOST, port, 2, is_master=False, timeout=PATIENCE)
    with joined(1, 2, store, torch.device("cpu"), 1) as ranks:
        outcomes_as(ranks)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare tensor by tensor, as a share of the norm: what a sum in another order may move."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        moved = (found[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-3)
        if moved>1e-5: print(name, moved)
        assert moved < tolerance, f"{name} moved by {moved:.1e} of its norm"


def test_two_processes_give_the_loss_gradient_and_weights_of_one():
    """A gather that scales the gradient, or targets of half a batch, trains another model on two GPUs than on one."""
    store = dist.TCPStore(HOST, 0, 2, is_master=True, timeout=PATIENCE, wait_for_workers=False)
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_train_ranks as t; t.second_rank({store.port})"
    other = subprocess.Popen([sys.executable, "-c", script])
    try:
        with joined(0, 2, store, torch.device("cpu"), 1) as ranks:
            found = outcomes_as(ranks)
        assert other.wait(20) == 0
    finally:
        other.kill()
        other.wait()
    for name, config in TARGETS.items():
        assert_same(found[name], outcome(make_step(config)), tolerance=1e-3)
    assert_same(found["micro-batches"], outcome(make_step(TARGETS["cross_modal"], fixed=True)), tolerance=1e-3)
    assert len({outcome["loss of 0"].item() for outcome in found.values()}) == len(TARGETS)
