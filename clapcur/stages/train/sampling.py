"""Which pairs make up the batch of a step: an order that is a pure function of the seed.

Nothing here has a state that moves: the examples of step 1,000 are the same whether or not the steps before were run
in this process. That is what makes a resumed training equal to an unbroken one.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.errors import EmptySetError


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
    """

    step: int
    source: str
    clip_ids: list[str]
    caption_ids: list[str]
    offsets_B: NDArray[np.float64]


class Mixture:
    """Batches from a main source and, with a probability per step, from a replay source.

    Parameters
    ----------
    main : PairSource
    replay : PairSource or None
    replay_probability : float in [0, 1]
        Probability that a whole batch is replayed (Wang et al. 2023, section 2.4; their code draws per step as well,
        with `curation_prob` = 1 - replay_probability).
    batch_size : int
    num_steps : int
    seed : int
    """

    def __init__(
        self, main: PairSource, replay: PairSource | None, *, replay_probability: float, batch_size: int,
        num_steps: int, seed: int,
    ):  # fmt: skip
        self.main, self.replay = main, replay
        self.batch_size, self.seed = batch_size, seed
        draws = np.random.default_rng([seed, zlib.crc32(b"mixture")]).random(num_steps)
        self._is_replay = draws < (replay_probability if replay is not None else 0.0)
        self._replayed_before = np.concatenate([[0], np.cumsum(self._is_replay)])

    def batch(self, step: int) -> Batch:
        """Return the batch of this step."""
        is_replay = bool(self._is_replay[step])
        source = self.replay if is_replay and self.replay is not None else self.main
        drawn_before = int(self._replayed_before[step]) if is_replay else step - int(self._replayed_before[step])
        rows = source.rows(drawn_before * self.batch_size, self.batch_size)
        chosen = source.pairs.iloc[rows]
        offsets = np.random.default_rng([self.seed, zlib.crc32(b"crops"), step]).random(self.batch_size)
        return Batch(step, source.name, chosen.clip_id.tolist(), chosen.caption_id.tolist(), offsets)

    def examples_seen(self, num_steps: int) -> dict[str, int]:
        """Return how many examples each source gives in the first `num_steps` steps."""
        replayed = int(self._replayed_before[num_steps])
        seen = {self.main.name: (num_steps - replayed) * self.batch_size}
        if self.replay is not None:
            seen[self.replay.name] = seen.get(self.replay.name, 0) + replayed * self.batch_size
        return seen
