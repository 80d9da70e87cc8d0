"""ZSTE: checkpoint x held-out compositions -> zero-shot scores for recognising the order of sounds.

Tasks, chance levels and the treatment of ties are those of `clapcur.methods.zste`; each interval is a bootstrap over
source recordings. If the checkpoint was post-trained, order is scored separately for couples of classes that it was
trained on and for unseen couples. As in `clapcur.stages.evaluate`, the scores report contamination.

Inputs by role: ``checkpoint``; ``compositions``, with the manifests ``clips``, ``pool`` or ``teacher_pairs`` that they
were composed from, to find the clips; and the artifacts that the checkpoint was made from, by the roles of
`clapcur.methods.contamination.ancestors`. Payload: ``scores.json``, ``items.parquet`` (the score of each item in each
task) and ``order.png``.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.audio import WaveformCache
from clapcur.config import check_seed, frozen, machine
from clapcur.data.class_names import PROMPT, check_prompt
from clapcur.data.compositions import KINDS, Compositions, Renderer, item_id
from clapcur.data.manifest import Manifest, union
from clapcur.data.order_scores import ITEMS, OrderProtocol, OrderScores, TaskScore
from clapcur.errors import CheckpointError, EmptySetError
from clapcur.methods.contamination import couples_trained_on, known_to
from clapcur.methods.plots import order_figure
from clapcur.methods.zste import RELATIONS, TASKS, OrderTest, pigeonhole_interval, score_items
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

LEVEL = 0.95
CLIPS = ("clips", "pool", "teacher_pairs")  # roles of the manifests that locate the sources
CACHE_BYTES = 2**28  # of decoded sources; an item needs two at a time
AHEAD = 4  # batches rendered while one is embedded


@frozen
class ZsteConfig:
    """How order is scored."""

    prompt: str = PROMPT
    """Caption prompt; {} is replaced by the described sounds."""
    seed: int = 0
    """Seed of the distractors and of the bootstrap over source recordings."""
    num_resamples: int = 2000
    """Number of bootstrap resamples."""
    batch_size: int = machine(32)
    """Items per batch."""
    device: str = machine("auto")
    """Device; auto: the first GPU, or the CPU if there is none."""
    num_workers: int = machine(2)
    """Number of threads that render items."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        check_seed(self.seed)
        check_prompt(self.prompt)
        if self.num_resamples < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_resamples and batch_size must be at least 1, got {self.num_resamples} and {self.batch_size}"
            )


def zste(inputs: Mapping[str, Artifact], config: ZsteConfig, work: Workspace) -> Outcome:
    """Write the scores of a checkpoint on held-out compositions.

    Inputs by role: see `clapcur.stages.zste`.

    Raises
    ------
    CheckpointError
        The items are longer than the model's window.
    EmptySetError
        No group is held out.
    """
    from clapcur.models.clap import load_model

    composed = Compositions.open(inputs["compositions"])
    manifest = union([Manifest.open(inputs[role]) for role in CLIPS if role in inputs])
    groups = composed.of_split("held_out")
    if groups.empty:
        raise EmptySetError(
            f"the compositions {inputs['compositions'].id} have no held-out group; compose with held_out above 0"
        )
    model = load_model(inputs["checkpoint"].path, config.device).eval()
    check_window(model, composed.duration_s, inputs["checkpoint"].id)
    renderer = Renderer(composed, manifest.paths, WaveformCache(CACHE_BYTES))
    audio_GKD = embed_items(model, groups, renderer, config)
    items = score_items(
        OrderTest(groups, audio_GKD, composed.class_names, model.embed_text, config.prompt, config.seed)
    )
    items = _with_recordings(items, groups, composed)
    known = {artifact.id: artifact for artifact in inputs.values()}
    items["couple"] = _couples(items, groups, couples_trained_on(inputs["checkpoint"], known))
    scores = {name: _score(rows, config) for name, rows in _parts(items)}
    sources = manifest.clips[manifest.clips.clip_id.isin({*groups.clip_a, *groups.clip_b})].reset_index(drop=True)
    said, _ = known_to(inputs["checkpoint"], known, inputs["compositions"].id, sources)
    protocol = OrderProtocol(
        task="order, zero-shot", num_groups=len(groups), num_classes=len(composed.class_names),
        num_recordings=len(np.unique(items[["recording_a", "recording_b"]])), duration_s=composed.duration_s,
        window_s=model.config.window_s, prompt=config.prompt, interval=f"bootstrap over recordings, {LEVEL:.0%}",
        seed=config.seed,
    )  # fmt: skip
    average, relations = (float(np.mean([scores[task].score for task in tasks])) for tasks in (TASKS, RELATIONS))
    table = OrderScores(tasks=scores, average=average, relations=relations, contamination=said, protocol=protocol)
    table.write(work.path)
    items.to_parquet(work.path / ITEMS, index=False)
    order_figure(scores, work.path / "order.png")
    metrics = {f"zste.{name}": found.score for name, found in scores.items()}
    metrics |= {"zste.average": average, "zste.relations": relations}
    return Outcome(counts={"groups": len(groups), "contaminated": said.num_clips}, metrics=metrics)


def check_window(model: "Clap", duration_s: float, checkpoint: str) -> None:
    """Reject items that are longer than the window of a model, because cutting a sequence may remove a sound.

    Parameters
    ----------
    model : Clap
    duration_s : float
        Duration of an item, in s.
    checkpoint : str
        Id of the model's checkpoint, for the message.

    Raises
    ------
    CheckpointError
        The items are longer than the window.
    """
    if round(duration_s * model.config.audio.front_end.sample_rate) > model.config.num_samples:
        raise CheckpointError(
            f"the composed items are {duration_s:g} s long, but the window of the checkpoint {checkpoint} is "
            f"{model.config.window_s:g} s; compose them with duration_s of at most {model.config.window_s:g}"
        )


def embed_items(model: "Clap", groups: pd.DataFrame, renderer: Renderer, config: ZsteConfig) -> NDArray[np.float32]:
    """Embed the items of all groups.

    Parameters
    ----------
    model : Clap
    groups : DataFrame
        G rows of `Compositions.groups`.
    renderer : Renderer
        Renderer of these compositions.
    config : ZsteConfig

    Returns
    -------
    NDArray, shape (G, 5, D), float32
        Unit rows; the items of each group are in the order of `KINDS`.
    """
    import torch

    names = [item_id(group, kind) for group in groups.group_id for kind in KINDS]
    front_end, device = model.config.audio.front_end, model.logit_scale.device
    rows = []

    def render(name: str) -> NDArray[np.float32]:
        return renderer.window(name, front_end.sample_rate, model.config.num_samples)

    step = config.batch_size * AHEAD
    with (
        ThreadPoolExecutor(max(1, config.num_workers)) as pool,
        progress("listen", len(names), "items") as advance,
        torch.inference_mode(),
    ):
        for start in range(0, len(names), step):
            waveforms = np.stack(list(pool.map(render, names[start : start + step])))
            for part_BT in torch.from_numpy(waveforms).split(config.batch_size):
                rows.append(model.encode_audio(part_BT.to(device)).cpu().numpy())
                advance(len(part_BT))
    return np.concatenate(rows).reshape(len(groups), len(KINDS), -1)


def _with_recordings(items: pd.DataFrame, groups: pd.DataFrame, composed: Compositions) -> pd.DataFrame:
    """Add the two recordings of each item; for a single sound both are the same."""
    recording = dict(zip(composed.sources.clip_id, composed.sources.recording, strict=True))
    of_group = groups.set_index("group_id")
    named = items.item_id.str.partition(":")
    group, kind = named[0], named[2]
    a, b = (group.map(of_group[column]).map(recording) for column in ("clip_a", "clip_b"))
    return items.assign(recording_a=a.where(kind != "second", b), recording_b=b.where(kind != "first", a))


def _couples(items: pd.DataFrame, groups: pd.DataFrame, trained: set[tuple[str, str]] | None) -> list[str]:
    """Return whether each item's couple of classes was trained on: seen, unseen, or "" without post-training."""
    if trained is None:
        return [""] * len(items)
    couples = zip(groups.class_a, groups.class_b, strict=True)
    seen = {
        name: "seen" if couple in trained else "unseen" for name, couple in zip(groups.group_id, couples, strict=True)
    }
    return [seen[name.partition(":")[0]] for name in items.item_id]


def _parts(items: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the items of each score: every task, and order separately for seen and unseen couples."""
    parts = [(str(task), rows) for task, rows in items.groupby("task", sort=False)]
    order = items[(items.task == "order") & (items.couple != "")]
    return parts + [(f"order.{couple}", rows) for couple, rows in order.groupby("couple")]


def _score(items: pd.DataFrame, config: ZsteConfig) -> TaskScore:
    low, high = pigeonhole_interval(
        items.score.to_numpy(), items[["recording_a", "recording_b"]].to_numpy(str), level=LEVEL,
        num_resamples=config.num_resamples, seed=config.seed,
    )  # fmt: skip
    return TaskScore(
        score=float(items.score.mean()), interval=(low, high), chance=float(items.chance.mean()), num_items=len(items)
    )


STAGE = Stage("zste", "1", "order_scores", zste)
