"""What a training reads: sources of pairs without the held-out recordings, texts, and where the clips lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from clapcur.data.compositions import Compositions
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.manifest import Manifest
from clapcur.errors import DataError, EmptySetError
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.sampling import GroupSource, PairSource, Source
from clapcur.store.artifacts import Artifact


@dataclass
class TrainingData:
    """Everything a step reads: sources of pairs, texts, and where the clips lie."""

    main: Source
    replay: Source | None
    held_out: pd.DataFrame  # clip_id, caption_id
    test: pd.DataFrame  # clip_id, label; empty unless the test set chooses
    captions: dict[str, str]  # caption_id -> text
    paths: dict[str, str]  # clip_id -> address
    counts: dict[str, int] = field(default_factory=dict)
    compositions: Compositions | None = None


def gather_data(inputs: Mapping[str, Artifact], config: TrainConfig) -> TrainingData:
    """Open the manifests and Improvement-Sets, and keep the held-out recordings out of all of them."""
    if config.order is not None:
        return _gather_compositions(inputs, config)
    roles = ("teacher_pairs", "pool", "captions", "evaluation")
    manifests = [Manifest.open(inputs[role]) for role in roles if role in inputs]
    teacher_pairs = manifests[0]
    held_out_clips = teacher_pairs.held_out(config.held_out)
    held_out_captions = teacher_pairs.pairs[teacher_pairs.pairs.clip_id.isin(held_out_clips)]

    def source(role: str) -> PairSource:
        pairs = teacher_pairs.pairs if role == "teacher_pairs" else ImprovementSet.open(inputs[role]).pairs()
        kept = pairs[~pairs.clip_id.isin(held_out_clips)]
        balance = config.balance if role == "improvement_set" else None
        return PairSource(kept, name=role, seed=config.seed, balance=balance)

    main = source("improvement_set" if "improvement_set" in inputs else "teacher_pairs")
    replay = None
    if "improvement_set" in inputs and config.replay_probability > 0:
        replay = source("replay" if "replay" in inputs else "teacher_pairs")
    if config.selection == "held_out" and len(held_out_captions) < 2:
        raise EmptySetError(
            f"only {len(held_out_captions)} held-out pairs to select a checkpoint with; raise held_out (now "
            f"{config.held_out}), or use selection='last'"
        )
    data = TrainingData(
        main,
        replay,
        held_out_captions.reset_index(drop=True),
        _test_clips(inputs, config),
        {key: text for m in manifests for key, text in zip(m.captions.caption_id, m.captions.caption, strict=True)},
        {clip: path for m in manifests for clip, path in m.paths.items()},
        {f"{s.name}_pairs": len(s.pairs) for s in (main, replay) if s} | {"held_out_pairs": len(held_out_captions)},
    )
    for used in (main, replay):
        if used is not None:
            _check_known(used, data)
    return data


def _gather_compositions(inputs: Mapping[str, Artifact], config: TrainConfig) -> TrainingData:
    """Open compositions, and what is replayed: an Improvement-Set, given pairs, or the single sounds by their names."""
    if "compositions" not in inputs or "init" not in inputs:
        raise ValueError("a training on composed groups needs the inputs `compositions` and `init`")
    assert config.order is not None
    composed = Compositions.open(inputs["compositions"])
    manifests = [
        Manifest.open(inputs[role]) for role in ("clips", "teacher_pairs", "pool", "captions") if role in inputs
    ]
    if config.selection == "order" and composed.of_split("held_out").empty:
        raise EmptySetError(
            "the compositions have no held-out group to select a checkpoint with; compose with held_out above 0, or "
            "use selection='last'"
        )
    num_forward = round(config.order.forward_first * (1 - config.replay_probability) * config.num_examples)
    main = GroupSource(composed, stages=config.order.stages, seed=config.seed, num_forward=num_forward)
    replay = None
    if config.replay_probability > 0:
        sources = composed.sources
        held_out = set(sources.clip_id[sources.split == "held_out"])
        if "replay" in inputs:
            name, pairs = "replay", ImprovementSet.open(inputs["replay"]).pairs()
        elif "teacher_pairs" in inputs:
            given = Manifest.open(inputs["teacher_pairs"])
            name, pairs = "teacher_pairs", given.pairs
            held_out |= given.held_out(config.held_out)
        else:
            name, pairs = "single_sounds", _single_sounds(composed)
        replay = PairSource(pairs[~pairs.clip_id.isin(held_out)], name=name, seed=config.seed)
    captions = dict(zip(composed.captions.caption_id, composed.captions.caption, strict=True))
    for manifest in manifests:
        captions |= zip(manifest.captions.caption_id, manifest.captions.caption, strict=True)
    data = TrainingData(
        main, replay, pd.DataFrame(columns=["clip_id", "caption_id"]), pd.DataFrame(), captions,
        {clip: path for manifest in manifests for clip, path in manifest.paths.items()},
        {"training_groups": len(composed.of_split("train")), "held_out_groups": len(composed.of_split("held_out"))},
        composed,
    )  # fmt: skip
    if replay is not None:
        data.counts[f"{replay.name}_pairs"] = replay.num_examples
        _check_known(replay, data)
    return data


def _single_sounds(composed: Compositions) -> pd.DataFrame:
    """Return the training sources with the phrase that names them alone."""
    sources = composed.sources[composed.sources.split == "train"]
    named = composed.captions[composed.captions.connector == "sound"].set_index("one").caption_id
    return pd.DataFrame({"clip_id": sources.clip_id, "caption_id": sources["class"].map(named)})


def _check_known(used: PairSource, data: TrainingData) -> None:
    if missing := set(used.pairs.clip_id) - set(data.paths) | set(used.pairs.caption_id) - set(data.captions):
        raise DataError(
            f"{len(missing)} clips or captions of {used.name!r} are in none of the given manifests; the first is "
            f"{min(missing)}; give the pool and the captions that the set was curated from"
        )


def _test_clips(inputs: Mapping[str, Artifact], config: TrainConfig) -> pd.DataFrame:
    """Return the labelled clips that choose the weights; none unless the test set does."""
    if config.selection != "reference":
        return pd.DataFrame()
    if "evaluation" not in inputs or not config.test_classes:
        raise ValueError("selection='reference' needs the input `evaluation`, and test_classes with test_prompts")
    return Manifest.open(inputs["evaluation"]).clips[["clip_id", "label"]]
