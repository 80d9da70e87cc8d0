"""Generated captions: which tagger tags the pool, when a tag is assigned, and how captions are made from tags."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from clapcur.config import added, frozen
from clapcur.models.config import YAMNET_FRONT_END, AudioConfig, ClapConfig, YamnetConfig
from clapcur.stages.caption import CaptionConfig
from clapcur.stages.captioner import CaptionerTraining
from clapcur.stages.tag import TagConfig
from clapcur.stages.tagger import TaggerConfig


@frozen
class Captioning:
    """Captions for clips that have none, guided by their tags (BLAT, arXiv 2303.07902)."""

    tagger: TaggerConfig | None = None
    """Tagger: YAMNet or PANNs. null: the table given in `tags` or, without one, the teacher, zero-shot over the
    experiment's class names."""
    tags: TagConfig = TagConfig()
    """When a tag is assigned."""
    captions: CaptionConfig = CaptionConfig()
    """How captions are generated, and which are kept."""
    captioner: CaptionerTraining = added(CaptionerTraining())
    """Training of the captioner on the experiment's pairs, with the teacher's audio tower; only with
    `captions: {way: captioner}`."""

    @property
    def needs_teacher(self) -> bool:
        """Whether only the teacher can tag: there is neither a tagger nor a table of tags."""
        return self.tagger is None and self.tags.table is None

    def tagging(self, class_names: tuple[str, ...], prompt: str) -> TagConfig:
        """Return the config of the tagging; if the teacher tags, over these class names."""
        if not self.needs_teacher:
            return self.tags
        return dataclasses.replace(self.tags, class_names=class_names, prompt=prompt)

    def captioner_training(self, held_out: float) -> CaptionerTraining:
        """Return the training of the captioner, which leaves out at least the pairs that students are selected with.

        Parameters
        ----------
        held_out : float
            Fraction of the recordings that the students hold out; a smaller one is a part of a larger one.
        """
        return dataclasses.replace(self.captioner, held_out=max(held_out, self.captioner.held_out))

    def without_model(self) -> CaptionConfig:
        """Return how the first captions are generated, before any model can score them against clips."""
        return dataclasses.replace(self.captions, way="template", least_similarity=None)


def captioning_values(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the captioning values of a config file with paths made absolute; `folder` is the folder of the file."""

    def placed(values: Any, *names: str) -> Any:
        if not isinstance(values, Mapping):
            return values
        paths = {name: str(folder / Path(values[name]).expanduser()) for name in names if values.get(name)}
        return {**values, **paths}

    tagger = given.get("tagger")
    values = dict(given)
    if tagger is not None:
        values["tagger"] = placed({"source": tagger} if isinstance(tagger, str) else tagger, "source", "classes")
    if "tags" in given:
        values["tags"] = placed(given["tags"], "table", "classes")
    if "captions" in given:
        values["captions"] = placed(given["captions"], "ontology")
    return values


def tower_of(tagger: TaggerConfig, model: ClapConfig) -> ClapConfig:
    """Return the config of a model whose audio tower is that of a tagger.

    Raises
    ------
    CheckpointError
        The file is no known tagger.
    """
    from clapcur.models.taggers import Cnn14Tagger, read_tagger

    read = read_tagger(Path(tagger.source), tagger.pickled)
    if isinstance(read, Cnn14Tagger):
        audio = dataclasses.replace(
            model.audio, front_end=read.front_end.config, width=cast(Any, read.width), yamnet=None, htsat=None
        )
    else:
        channels = read.description()["channels"]
        audio = AudioConfig(front_end=YAMNET_FRONT_END, yamnet=YamnetConfig(channels=channels))
    return dataclasses.replace(model, audio=audio)
