"""Check whether a text tower distinguishes captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clapcur.models.clap import Clap

PROMPTS = tuple(
    f"this is a sound of {name}"
    for name in (
        "a dog barking",
        "rain",
        "church bells",
        "a chainsaw",
        "a crying baby",
        "typing",
        "a helicopter",
        "wind",
    )
)
"""Eight sounds that no useful model takes for each other."""

COLLAPSED = 0.99
"""Mean cosine between the embeddings of `PROMPTS` above which a text tower tells nothing apart; see `text_collapse`."""


@dataclass(frozen=True)
class TextSpread:
    """Mean and minimum cosine between the embeddings of captions, over all pairs of different captions."""

    mean: float
    least: float


def text_collapse(model: Clap, prompts: Sequence[str] = PROMPTS) -> TextSpread:
    """Return how similar the embeddings of captions with different meanings are.

    One released ClapModel has a text tower whose embeddings are almost identical and scores 2 % on the 50 classes of
    ESC-50, which is chance (embeddings-benchmark/mteb#5069). `load_checkpoint` rejects a mean above 0.99, an angle of
    8 degrees. A trained text encoder is far below (all-MiniLM-L6-v2: 0.49), and even an untrained one with mean pooling
    is below (0.98, because the words differ). An untrained one with [CLS] pooling is above (0.9999), as is any encoder
    whose embeddings no longer depend on the caption.

    Parameters
    ----------
    model : Clap
    prompts : sequence of str
        At least two different captions.
    """
    if len(set(prompts)) < 2:
        raise ValueError(f"expected at least two different prompts, got {list(prompts)}")
    rows_MD = torch.from_numpy(model.embed_text(list(prompts))).double()
    cosines = (rows_MD @ rows_MD.T)[~torch.eye(len(rows_MD), dtype=torch.bool)]
    return TextSpread(float(cosines.mean()), float(cosines.min()))
