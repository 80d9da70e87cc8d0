"""Exact cosine similarity of audio and text at any size: pairs over a threshold, top k, counts.

Shapes: N audio clips, M texts, Q queries, P pairs, D embedding, R rows of one block, T texts of one
tile. Rows are unit vectors, so a cosine is a dot product. Inputs are numpy arrays (memory maps
too) or tensors of any float type; results are numpy arrays.

A large product is computed in tiles, and a tile's sums depend, in the last bits, on its shape, the
device and the number of threads: equal rows get unequal similarities, and a pair at the threshold
comes and goes with the machine. So the tiles only propose, in whatever precision is fastest.
Whatever they find within their proven error of the bound is scored again, alone, in float64,
rounded to float32, and then compared with ``>=`` (as the paper's code does; faiss compares with
``>``). A similarity is thus a function of its two rows and of nothing else::

    rows         tables on a device, their checks, the exact cosine
    screening    low-precision products and the bound of their error
    join         pairs over a threshold, caps, floors
    nearest      top k, the class of a caption, the floor under a caption's clips
    clusters     a join of what is near alone, where an exact one is out of reach
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
