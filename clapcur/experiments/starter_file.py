"""The file that ``clapcur init`` writes: a short experiment, with the descriptions of its fields as comments."""

import textwrap

from clapcur.config import describe
from clapcur.experiments.captioning import Captioning
from clapcur.experiments.config import Experiment
from clapcur.stages.curate import Curation
from clapcur.stages.train import TrainConfig

WIDTH = 110  # of a comment, in columns
HEAD = """\
# An experiment for `clapcur improve` and `clapcur compare`. Paths are relative to this file. docs/config.md lists every
# field and its default."""
FORMS = {  # forms that a source may have, added to the description of its field
    "pairs": "A table (CSV, TSV, JSONL, Parquet) with the columns path and caption.",
    "pool": "A folder, or a table with the column path.",
    "evaluation": "A table with the columns path and label.",
    "class_names": "Labels of the evaluation clips are among them.",
    "captions": "A table with the column caption.",
    "checkpoint": "A file, a folder or a name on the Hub.",
}
SHOWN = (  # (class, field, example, whether the line is commented out)
    (Experiment, "name", "my-sounds", False),
    (Experiment, "pairs", "pairs.csv", False),
    (Experiment, "pool", "recordings/", False),
    (Experiment, "evaluation", "labelled.csv", False),
    (Experiment, "class_names", "classes.txt", False),
    (Experiment, "captions", "captions.csv", True),
    (Experiment, "checkpoint", "laion/clap-htsat-unfused", True),
    (Captioning, "tagger", "yamnet.safetensors", True),
    (Curation, "audio_threshold", "{count: 2000}", False),
    (Curation, "caption_threshold", "{count: 1000}", False),
    (Curation, "even_classes", "true", False),
    (Curation, "max_per_clip", "3", False),
    (Curation, "distinct_clips", "0.98", True),
    (Curation, "distinct_captions", "0.98", True),
    (Curation, "hubness", "{method: csls}", True),
    (Experiment, "seeds", "[0]", False),
    (TrainConfig, "num_examples", "25600", True),
    (Experiment, "soft_labels", "{form: cross_modal, beta: 0.7}", True),
)
BLOCKS: dict[type, str] = {Curation: "curation", Captioning: "captioning", TrainConfig: "teacher"}
# class whose fields are in a nested block -> name of the block, which is a field of the experiment


def text() -> str:
    """Return the text of the file."""
    lines, block, is_block_optional = [HEAD], "", False
    for cls, field, example, is_optional in SHOWN:
        name = BLOCKS.get(cls, "")
        if name != block or not name:
            lines.append("")
        if name and name != block:
            is_block_optional = is_optional
            lines += [*_comment(describe(Experiment)[name], ""), f"{'# ' if is_optional else ''}{name}:"]
        block, before = name, "" if not name else "#   " if is_block_optional else "  "
        lines += _comment(" ".join((describe(cls)[field], FORMS.get(field, ""))), before)
        lines.append(f"{before}{'# ' if is_optional and before != '#   ' else ''}{field}: {example}")
    return "\n".join(lines) + "\n"


def _comment(said: str, before: str) -> list[str]:
    """Return a text as comment lines, with ``null`` for None as in YAML."""
    said = said.replace("`", "").replace("None:", "null:")
    return textwrap.wrap(
        said, WIDTH, initial_indent=f"{before}# ", subsequent_indent=f"{before}# ", break_on_hyphens=False
    )
