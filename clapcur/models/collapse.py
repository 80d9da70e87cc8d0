"""Whether a text tower tells captions apart."""

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
    """Cosines between the embeddings of captions, over all pairs of different ones."""

    mean: float
    least: float


def text_collapse(model: Clap, prompts: Sequence[str] = PROMPTS) -> TextSpread:
    """Return how alike the embeddings of captions are that mean different things.

    One released ClapModel has a text tower whose embeddings are all but the same and scores 2 % on the 50 classes of
    ESC-50, as a guess does (embeddings-benchmark/mteb#5069). `load_checkpoint` refuses a mean above 0.99, an angle of
    8 degrees. A trained text encoder is far below it (all-MiniLM-L6-v2: 0.49), and so is even an untrained one that
    takes the mean over its tokens (0.98, for the words differ); an untrained one that is read at [CLS] is above
    (0.9999), as is any whose captions no longer reach their embedding.

    Parameters
    ----------
    model : Clap
    prompts : sequence of str
        At least two.
    """
    if len(set(prompts)) < 2:
        raise ValueError(f"expected at least two different prompts, got {list(prompts)}")
    rows_MD = torch.from_numpy(model.embed_text(list(prompts))).double()
    cosines = (rows_MD @ rows_MD.T)[~torch.eye(len(rows_MD), dtype=torch.bool)]
    return TextSpread(float(cosines.mean()), float(cosines.min()))
