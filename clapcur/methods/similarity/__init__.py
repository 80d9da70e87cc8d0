"""Exact cosine similarity of audio and text at any size: pairs at or above a threshold, top k, counts.

Shapes: N audio clips, M texts, Q queries, P pairs, D embedding, R rows of one block, T texts of one tile. Rows are unit
vectors, so a cosine is a dot product. Inputs are numpy arrays (including memory maps) or tensors of any float type;
results are numpy arrays.

A large product is computed in tiles, and the last bits of a tile's sums depend on its shape, the device and the number
of threads: equal rows get unequal similarities, and whether a pair at the threshold is found depends on the machine.
The tiles therefore only propose candidates, in whatever precision is fastest. Every pair within the proven error of the
bound is scored again in float64, rounded to float32, and compared with ``>=`` (as in the paper's code; faiss uses
``>``). A similarity thus depends on its two rows and on nothing else::

    rows         tables on a device, their checks, the exact cosine
    screening    low-precision products and a bound on their error
    join         pairs at or above a threshold, caps, floors
        nearest      top k, the class of a caption, the minimum similarity of a caption's clips
        clusters     a join of near rows only, where an exact one would take too long
    histogram    counts of all pairs by similarity
"""

from clapcur.methods.similarity.clusters import Clusters, spherical_k_means
from clapcur.methods.similarity.histogram import similarity_histogram, threshold_for_count
from clapcur.methods.similarity.join import PairBlock, similar_pairs
from clapcur.methods.similarity.nearest import best_class, caption_floor, top_k
from clapcur.methods.similarity.rows import Rows

__all__ = [
    "Clusters", "PairBlock", "Rows", "best_class", "caption_floor", "similar_pairs", "similarity_histogram",
    "spherical_k_means", "threshold_for_count", "top_k",
]  # fmt: skip
