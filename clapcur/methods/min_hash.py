"""Near duplicates in a stream of texts: MinHash proposes candidates, the Jaccard index of their words decides.

Source: Broder 1997, On the resemblance and containment of documents; bands as in Leskovec et al., Mining of Massive
Datasets, section 3.4.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

BANDS, ROWS = 16, 3  # a pair with Jaccard index 0.8 is proposed with probability 1 - (1 - 0.8^3)^16 > 0.9999; ours
PRIME = 2**31 - 1


class NearDuplicates:
    """The sets seen so far; finds whether another set is a near duplicate of one of them.

    Parameters
    ----------
    least : float
        Minimum Jaccard index of near duplicates.
    """

    def __init__(self, least: float) -> None:
        if not 0 < least <= 1:
            raise ValueError(f"the Jaccard index of near duplicates must be in (0, 1], got {least:g}; a percentage?")
        self.least = least
        rng = np.random.default_rng(0)
        self._factor = rng.integers(1, PRIME, BANDS * ROWS, dtype=np.int64)
        self._term = rng.integers(0, PRIME, BANDS * ROWS, dtype=np.int64)
        self._seen: list[frozenset[str]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = {}

    def add(self, features: Iterable[str]) -> bool:
        """Return whether the set is a near duplicate of an added one; add it if it is not."""
        found = frozenset(features)
        keys = self._keys(found)
        for index in dict.fromkeys(index for key in keys for index in self._buckets.get(key, ())):
            other = self._seen[index]
            if len(found & other) >= self.least * len(found | other):
                return True
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._seen))
        self._seen.append(found)
        return False

    def _keys(self, features: frozenset[str]) -> list[tuple[int, bytes]]:
        digests = [hashlib.blake2b(name.encode(), digest_size=4).digest() for name in features] or [b"\0\0\0\0"]
        values = np.frombuffer(b"".join(digests), "<u4").astype(np.int64) % PRIME
        least = ((values[:, None] * self._factor + self._term) % PRIME).min(axis=0)
        return [(band, least[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]
