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
    # by k-means; the root of the number of captions is usual
    num_probes: int
    # nearest clusters of a clip that are looked into
    num_checked: int = 1000
    # clips that are also searched exactly, for the recall in the card

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
    class_names: tuple[str, ...]
    # the classes of the domain
    prompt: str = PROMPT
    # {} is the place of the class name
    audio_threshold: Threshold = Threshold(similarity=0.7)
    # clip against caption: DU and ADS
    caption_threshold: Threshold = Threshold(similarity=0.7)
    # caption against class prompts: DS and ADS
    even_classes: bool = False
    # thresholds by count hold for each class apart, with an even share of the count: one threshold for all leaves out
    # the classes on which a weak teacher is less sure; thresholds by similarity or precision are not touched
    max_per_clip: int | None = None
    # best captions of a clip
    max_per_caption: int | None = None
    # best clips of a caption: keeps hubs from filling the set
    held_out: float = 0.1
    # share of the source recordings of the teacher pairs that never trains and that calibrates precision
    near_duplicate: NearDuplicate = 0.9999
    # audio similarity to an evaluation clip from which on a clip counts as the same sound; "calibrated": found on the
    # teacher's clips of different recordings; None: do not look
    distinct_clips: float | None = None
    # audio similarity from which on two clips of the pool count as one sound, of which one may enter (SemDeDup)
    distinct_captions: float | None = None
    # the same of two captions
    hubness: Hubness | None = None
    # correct similarities for clips and captions that are near to everything
    approximate: Approximate | None = None
    # compare a clip with the nearest clusters of captions alone, where comparing with all takes too long
    marks: tuple[Mark, ...] = ()
    # what people heard (`clapcur.data.marks`): wrong pairs do not enter, and a precision is calibrated on all judged

    device: str = machine("auto")
    # of the search; auto takes the first GPU if there is one

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
