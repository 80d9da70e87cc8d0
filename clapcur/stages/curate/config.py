"""The settings of a curation."""

import dataclasses

from clapcur.config import frozen, machine
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt
from clapcur.data.marks import Mark
from clapcur.data.rows import GENERATED, SEARCHED, ImprovementSetName
from clapcur.methods.contamination import NearDuplicate, check_near_duplicate
from clapcur.methods.hubness import Hubness
from clapcur.methods.thresholds import Threshold


@frozen
class Approximate:
    """Clusters of captions, and how many of them a clip looks into; the card says what was missed."""

    num_clusters: int
    """Number of caption clusters (k-means); a common choice is the square root of the number of captions."""
    num_probes: int
    """Number of nearest clusters to search per clip."""
    num_checked: int = 1000
    """Number of clips that are also searched exactly, to measure the recall reported in the card."""

    def __post_init__(self) -> None:
        """Reject numbers that make no sense."""
        if not 1 <= self.num_probes <= self.num_clusters or self.num_checked < 1:
            raise ValueError(
                "expected 1 <= num_probes <= num_clusters and num_checked > 0, got "
                f"{self.num_probes}, {self.num_clusters} and {self.num_checked}"
            )


@frozen
class Curation:
    """How the pairs of an Improvement-Set are chosen, whatever the strategy. The only place of these defaults.

    Thresholds are counts, because a cosine of 0.7 means something different for every teacher. Every class gets an even
    share of a count, because one threshold for all leaves out classes of which a teacher is less certain
    (docs/demo.md). The paper uses a similarity, even_classes false and no cap.
    """

    audio_threshold: Threshold = Threshold(count=2000)
    """Minimum similarity of clip and caption (DU, ADS, TagCap): a cosine, a count or, for DU and ADS, a precision."""
    caption_threshold: Threshold = Threshold(count=1000)
    """Minimum similarity of caption and class prompt (DS, ADS, TagCap ∩ classes): a cosine or a count."""
    even_classes: bool = True
    """Split a threshold by count evenly over the classes. Thresholds by similarity or precision are not changed."""
    max_per_clip: int | None = 3
    """Maximum number of captions per clip, best first; null: no limit."""
    max_per_caption: int | None = None
    """Maximum number of clips per caption, best first, so that hubs do not fill the set; null: no limit."""
    near_duplicate: NearDuplicate = 0.9999
    """Audio similarity (a cosine) at or above which a clip counts as a duplicate of an evaluation clip and is left out.
    "calibrated": measured on the teacher's clips of different recordings. null: no check."""
    distinct_clips: float | None = None
    """Audio similarity (a cosine) at or above which two pool clips count as duplicates, and only one is kept
    (SemDeDup); null: keep all."""
    distinct_captions: float | None = None
    """The same for captions; null: keep all."""
    hubness: Hubness | None = None
    """Correct similarities for hubs: clips and captions that are similar to everything."""
    approximate: Approximate | None = None
    """Compare a clip only with the nearest clusters of captions; for pools too large to compare every pair."""
    marks: tuple[Mark, ...] = ()
    """Marks from audition pages: pairs marked wrong are excluded, and a precision is calibrated on all marks. In a
    config file, the path of the table that the page exports."""

    def __post_init__(self) -> None:
        """Raise ValueError for values without a meaning."""
        check_near_duplicate(self.near_duplicate)
        if self.caption_threshold.precision is not None:
            raise ValueError(
                "caption_threshold must be given by similarity or count; only audio_threshold can be given by precision"
            )
        for name in ("distinct_clips", "distinct_captions"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name} must be a cosine in [-1, 1] or null, got {value:g}; a percentage?")
        for name in ("max_per_clip", "max_per_caption"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or null for no limit, got {value}")

    def of(
        self, strategy: ImprovementSetName, class_names: tuple[str, ...], prompt: str, held_out: float
    ) -> "CurateConfig":
        """Return the curation of one strategy; DS drops the options that apply only to searching a pool.

        Parameters
        ----------
        strategy : {"du", "ds", "ads", "tagcap", "tagcap-classes", "pl"}
        class_names : tuple of str
        prompt : str
            Class prompt; {} is replaced by the class name.
        held_out : float
            As in `CurateConfig`.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(Curation)}
        if strategy == "pl":  # the pairs were already selected when labels were assigned
            options |= {"audio_threshold": Threshold(similarity=-1.0), "max_per_clip": None}
        if strategy not in SEARCHED:
            options |= {"distinct_clips": None, "hubness": None, "approximate": None}
        return CurateConfig(strategy=strategy, class_names=class_names, prompt=prompt, held_out=held_out, **options)


@frozen
class CurateConfig(Curation):
    """Which pairs become the Improvement-Set of one strategy."""

    strategy: ImprovementSetName
    """Strategy: du, ds or ads; for captions generated for the pool, tagcap or tagcap-classes; pl for pseudo-labels."""
    class_names: tuple[str, ...]
    """Names of the classes of the domain."""
    prompt: str = PROMPT
    """Class prompt; {} is replaced by the class name."""
    held_out: float = 0.1
    """Fraction of the source recordings of the teacher's pairs that is never trained on and calibrates precision."""

    device: str = machine("auto")
    """Device of the search; auto: the first GPU, or the CPU if there is none."""

    def __post_init__(self) -> None:
        """Raise ValueError for values without a meaning."""
        super().__post_init__()
        check_class_names(self.class_names)
        check_prompt(self.prompt)
        if self.strategy in GENERATED and self.audio_threshold.precision is not None:
            raise ValueError(
                "for generated captions, give audio_threshold by similarity or count: a precision is calibrated only "
                "for a search in a pool"
            )
        if self.strategy not in SEARCHED and (self.hubness or self.approximate or self.distinct_clips is not None):
            raise ValueError(
                "hubness, approximate and distinct_clips apply to a search in a pool, which "
                f"{self.strategy.upper()} does not do; set them to null"
            )
