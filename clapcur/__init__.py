"""Clapcur: a better audio-text model for your sounds, without labels, and every pair traceable.

One stage per line; each stage turns artifacts into one new artifact whose name is the hash of everything that produced
it, so that caching, resuming and lineage share one mechanism::

    ingest    folder or table        -> manifest           clips, captions, pairs; bad files quarantined
    train     manifest               -> checkpoint         the teacher: contrastive loss (Eq. 1)
    embed     checkpoint x manifest  -> embeddings         unit rows for clips, captions and class prompts
    curate    embeddings             -> improvement_set    DU, DS or ADS pairs with their similarities
    train     improvement_set        -> checkpoint         the student: soft labels (Eqs. 2-5) and replay
    evaluate  embeddings x prompts   -> scores             zero-shot accuracy with its interval

Source of the method: Wang et al. 2023, "Unsupervised Improvement of Audio-Text Cross-Modal Representations",
arXiv 2305.01864. From Python, ``clapcur.load(name)`` returns a model with ``embed_audio``, ``embed_text`` and
``classify``, and ``clapcur.improve(...)`` trains a better one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clapcur.api import improve as improve
    from clapcur.api import load as load
    from clapcur.models.clap import load_model as load_model

__version__ = "0.1.0"
__all__ = ["__version__", "improve", "load", "load_model"]


def __getattr__(name: str) -> Any:
    """Import torch only when a model is requested: the command line must respond at once."""
    if name in ("improve", "load"):
        from clapcur import api

        return getattr(api, name)
    if name == "load_model":
        from clapcur.models.clap import load_model

        return load_model
    raise AttributeError(f"module 'clapcur' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names in the module, with those that are imported at their first use."""
    return sorted({*globals(), *__all__})
