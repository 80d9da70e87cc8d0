"""What can be said about a curation."""

from typing import Literal

from clapcur.config import frozen, machine
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt
from clapcur.data.marks import Mark
from clapcur.methods.contamination import NearDuplicate, check_near_duplicate
from clapcur.methods.hubness import Hubness
from clapcur.methods.thresholds import Threshold


@frozen
class Approximate:
    """Clusters of captions, and how many of them a clip looks into; the card says what was missed."""

    num_clusters: int
    """Clusters of captions (k-means); the square root of the number of captions is usual."""
    num_probes: int
    """Nearest clusters of a clip that are searched."""
    num_checked: int = 1000
    """Clips that are also searched exactly, to measure the recall in the card."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if not 1 <= self.num_probes <= self.num_clusters or self.num_checked < 1:
            raise ValueError(
                "expected 1 <= num_probes <= num_clusters and num_checked > 0, got "
                f"{self.num_probes}, {self.num_clusters} and {self.num_checked}"
            )


@frozen
class CurateConfig:
    """Which pairs become the Improvement-Set."""

    strategy: Literal["du", "ds", "ads"]
    """Which pairs are searched: du, ds or ads."""
    class_names: tuple[str, ...]
    """Names of the classes of the domain."""
    prompt: str = PROMPT
    """Class prompt; {} is replaced by the class name."""
    audio_threshold: Threshold = Threshold(similarity=0.7)
    """Least similarity of clip and caption (DU and ADS)."""
    caption_threshold: Threshold = Threshold(similarity=0.7)
    """Least similarity of caption and class prompt (DS and ADS)."""
    even_classes: bool = False
    """Split a threshold by count evenly over the classes: one threshold for all leaves out the classes on which a weak
    teacher is less sure. Thresholds by similarity or precision are not changed."""
    max_per_clip: int | None = None
    """Most captions per clip, the best ones; None: no limit."""
    max_per_caption: int | None = None
    """Most clips per caption, the best ones, which keeps hubs from filling the set; None: no limit."""
    held_out: float = 0.1
    """Share of the source recordings of the teacher's pairs that is never trained on and calibrates precision."""
    near_duplicate: NearDuplicate = 0.9999
    """A clip with this audio similarity to an evaluation clip counts as the same sound and is kept out. "calibrated":
    the value is measured on the teacher's clips of different recordings. None: no such check."""
    distinct_clips: float | None = None
    """Audio similarity (a cosine) at which two pool clips count as one sound, of which one may enter (SemDeDup); None:
    no such rule."""
    distinct_captions: float | None = None
    """Similarity at which two captions count as one, of which one may enter; None: no such rule."""
    hubness: Hubness | None = None
    """Correct similarities for clips and captions that are near to everything (hubs)."""
    approximate: Approximate | None = None
    """Compare a clip only with the nearest clusters of captions; for pools where comparing with all takes too long."""
    marks: tuple[Mark, ...] = ()
    """Marks from audition pages (`clapcur.data.marks`): wrong pairs do not enter, and a precision is calibrated on all
    marks."""

    device: str = machine("auto")
    """Device of the search; auto takes the first GPU if there is one."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_class_names(self.class_names)
        check_prompt(self.prompt)
        check_near_duplicate(self.near_duplicate)
        if self.caption_threshold.precision is not None:
            raise ValueError(
                "only the audio threshold can be given by precision; give caption_threshold by similarity or count"
            )
        for name in ("distinct_clips", "distinct_captions"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name} must be a cosine in [-1, 1], or left out, got {value:g}; a percentage?")
        if self.strategy == "ds" and (self.hubness or self.approximate or self.distinct_clips is not None):
            raise ValueError("hubness, approximate and distinct_clips are of a search in a pool, which DS does not do")
        for name in ("max_per_clip", "max_per_caption"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or left out for no cap, got {value}")
