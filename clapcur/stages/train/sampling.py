"""Which pairs make up the batch of a step: an order that is a pure function of the seed.

Nothing here has a state that moves: the examples of step 1,000 are the same whether or not the steps before were run
in this process. That is what makes a resumed training equal to an unbroken one.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.data.composed_captions import FORWARD, Meaning
from clapcur.data.compositions import KINDS, Compositions, Kind, item_id, meaning_of
from clapcur.errors import EmptySetError

PAIRS_OF_GROUP = {"a": 2, "b": 3}  # of a group in a batch of each stage


class PairSource:
    """An endless stream of rows of a pair table.

    Parameters
    ----------
    pairs : DataFrame
        At least clip_id and caption_id; `balance` names one more column.
    name : str
        Such as ``improvement_set``; part of the seed, so that two sources never run in step.
    seed : int
    balance : str or None
        None: every pair once per epoch, in a new order each epoch. A column such as ``class`` or ``clip_id``: first
        a value of that column is drawn, all values alike, then one of its pairs; with replacement.
    """

    def __init__(self, pairs: pd.DataFrame, *, name: str, seed: int, balance: str | None = None):
        if pairs.empty:
            raise EmptySetError(f"the source {name!r} has no pair to train on")
        self.pairs = pairs.reset_index(drop=True)
        self.name = name
        self._seed = (seed, zlib.crc32(name.encode()))
        self._groups = list(self.pairs.groupby(balance, sort=True).indices.values()) if balance else None
        self._epochs: dict[int, NDArray[np.int64]] = {}

    @property
    def num_examples(self) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    def draw(self, start: int, count: int) -> "Drawn":
        """Return the examples `start` to `start + count` of the stream."""
        chosen = self.pairs.iloc[self.rows(start, count)]
        return Drawn(chosen.clip_id.tolist(), chosen.caption_id.tolist())

    def rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the row numbers of the examples `start` to `start + count` of the stream."""
        size = len(self.pairs)
        positions = np.arange(start, start + count)
        epochs = positions // size
        return np.array([self._epoch(int(e))[p % size] for e, p in zip(epochs, positions, strict=True)], np.int64)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            rng = np.random.default_rng([*self._seed, epoch])
            for old in [known for known in self._epochs if known < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = self._balanced(rng) if self._groups else rng.permutation(len(self.pairs))
        return self._epochs[epoch]

    def _balanced(self, rng: np.random.Generator) -> NDArray[np.int64]:
        assert self._groups is not None
        chosen = rng.integers(len(self._groups), size=len(self.pairs))
        places = rng.random(len(self.pairs))
        return np.array(
            [self._groups[g][int(u * len(self._groups[g]))] for g, u in zip(chosen, places, strict=True)], np.int64
        )


@dataclass(frozen=True)
class Groups:
    """What the pairs of a batch of composed groups are made of.

    Attributes
    ----------
    stage : {"a", "b"}
        Whose loss the batch is for.
    meanings : list of Meaning, length N
        What is heard in each pair; equal meanings are no enemies.
    group_codes_N, kind_codes_N : array of int
        The group of each pair, and how it is put together.
    """

    stage: str
    meanings: list[Meaning]
    group_codes_N: NDArray[np.int64]
    kind_codes_N: NDArray[np.int64]

    @property
    def events(self) -> list[frozenset[str]]:
        """The classes that are heard in each pair."""
        return [frozenset(name for name in meaning[1:] if name) for meaning in self.meanings]


@dataclass(frozen=True)
class Drawn:
    """Examples of a source; those of composed groups know how they belong together."""

    clip_ids: list[str]
    caption_ids: list[str]
    groups: Groups | None = None


class Source(Protocol):
    """An endless stream of examples, each a pure function of its place."""

    name: str

    @property
    def num_examples(self) -> int:
        """How many different ones there are."""

    def draw(self, start: int, count: int) -> Drawn:
        """Return the examples `start` to `start + count` of the stream."""


class GroupSource:
    """An endless stream of composed groups, spread out into their pairs.

    A batch for stage a has of each group a single sound and a sequence, one for stage b the two sequences and the
    overlap; the last group of a batch may be cut. Which phrasing of a meaning is the caption is drawn anew each time.

    Parameters
    ----------
    compositions : Compositions
        Its training groups are drawn from.
    stages : sequence of {"a", "b"}
        Each batch takes one of them, drawn at random.
    seed : int
    num_forward : int
        Pairs at the start of the stream whose sequences are described in the order in which they are heard.
    """

    name = "compositions"

    def __init__(self, compositions: Compositions, *, stages: Sequence[str], seed: int, num_forward: int = 0):
        self._groups = compositions.of_split("train")
        if self._groups.empty:
            raise EmptySetError("the compositions have no training group; compose with held_out below 1")
        self._stages, self._num_forward = tuple(stages), num_forward
        self._caption_ids = compositions.caption_ids
        self._forward_ids = {
            meaning: [said[connector] for connector in FORWARD if connector in said] or list(said.values())
            for meaning, said in compositions.phrasings.items()
        }
        self._seed = (seed, zlib.crc32(self.name.encode()))
        order = pd.DataFrame({"row": range(len(self._groups))})
        self._order = PairSource(order, name=f"{self.name}, groups", seed=seed)

    @property
    def num_examples(self) -> int:
        """Items of the groups."""
        return len(KINDS) * len(self._groups)

    def draw(self, start: int, count: int) -> Drawn:
        """Return the pairs of the batch that begins at `start`; batches must have one size."""
        rng = np.random.default_rng([*self._seed, start])
        stage = self._stages[rng.integers(len(self._stages))]
        most = -(-count // min(PAIRS_OF_GROUP[name] for name in self._stages))  # groups that a batch may take
        rows = self._order.rows(start // count * most, -(-count // PAIRS_OF_GROUP[stage]))
        drawn: list[tuple[str, Meaning, int, int]] = []
        for row in rows.tolist():
            group = self._groups.iloc[row]
            kinds: tuple[Kind, ...] = ("forward", "reversed", "overlap")
            if stage == "a":
                kinds = (("first", "second")[rng.integers(2)], ("forward", "reversed")[rng.integers(2)])
            for kind in kinds:
                meaning = meaning_of(group.class_a, group.class_b, kind)
                drawn.append((item_id(group.group_id, kind), meaning, row, KINDS.index(kind)))
        items, meanings, groups, kind_codes = zip(*drawn[:count], strict=True)
        caption_ids = self._forward_ids if start < self._num_forward else self._caption_ids
        captions = [caption_ids[meaning][rng.integers(len(caption_ids[meaning]))] for meaning in meanings]
        codes = Groups(stage, list(meanings), np.array(groups, np.int64), np.array(kind_codes, np.int64))
        return Drawn(list(items), captions, codes)


@dataclass(frozen=True)
class Batch:
    """The pairs of one step and where their clips are cut.

    Attributes
    ----------
    step : int
    source : str
        Name of the source that the step drew from.
    clip_ids, caption_ids : list of str, length B
    offsets_B : array in [0, 1)
        Position of the crop within the slack of each clip.
    groups : Groups or None
        How the pairs belong together, where they are composed.
    """

    step: int
    source: str
    clip_ids: list[str]
    caption_ids: list[str]
    offsets_B: NDArray[np.float64]
    groups: Groups | None = None


class Mixture:
    """Batches from a main source and, with a probability per step, from a replay source.

    Parameters
    ----------
    main : Source
    replay : Source or None
    replay_probability : float in [0, 1]
        Probability that a whole batch is replayed (Wang et al. 2023, section 2.4; their code draws per step as well,
        with `curation_prob` = 1 - replay_probability).
    batch_size : int
    num_steps : int
    seed : int
    num_crops : int, optional
        Places of a clip that crops are drawn from, evenly spread; any where not given.
    """

    def __init__(
        self, main: Source, replay: Source | None, *, replay_probability: float, batch_size: int,
        num_steps: int, seed: int, num_crops: int | None = None,
    ):  # fmt: skip
        self.main, self.replay, self.num_crops = main, replay, num_crops
        self.batch_size, self.seed = batch_size, seed
        draws = np.random.default_rng([seed, zlib.crc32(b"mixture")]).random(num_steps)
        self._is_replay = draws < (replay_probability if replay is not None else 0.0)
        self._replayed_before = np.concatenate([[0], np.cumsum(self._is_replay)])

    def batch(self, step: int) -> Batch:
        """Return the batch of this step."""
        is_replay = bool(self._is_replay[step])
        source = self.replay if is_replay and self.replay is not None else self.main
        drawn_before = int(self._replayed_before[step]) if is_replay else step - int(self._replayed_before[step])
        drawn = source.draw(drawn_before * self.batch_size, self.batch_size)
        offsets = np.random.default_rng([self.seed, zlib.crc32(b"crops"), step]).random(self.batch_size)
        if self.num_crops is not None:
            places = [0.5] if self.num_crops == 1 else np.linspace(0, 1, self.num_crops)
            offsets = np.asarray(places)[(offsets * self.num_crops).astype(int)]
        return Batch(step, source.name, drawn.clip_ids, drawn.caption_ids, offsets, drawn.groups)

    def examples_seen(self, num_steps: int) -> dict[str, int]:
        """Return how many examples each source gives in the first `num_steps` steps."""
        replayed = int(self._replayed_before[num_steps])
        seen = {self.main.name: (num_steps - replayed) * self.batch_size}
        if self.replay is not None:
            seen[self.replay.name] = seen.get(self.replay.name, 0) + replayed * self.batch_size
        return seen
