"""Generate docs/config.md from the config classes: ``python -m clapcur.experiments.reference > docs/config.md``."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from clapcur.config import describe
from clapcur.experiments.config import Experiment, defaults
from clapcur.experiments.order import PostTraining
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.train import TrainConfig

GIVEN = ("pairs", "class_names")  # fields without a meaningful default

HEAD = """# Every field of an experiment's config

This page is generated from the config classes (`python -m clapcur.experiments.reference`). To start, write a short file
with `clapcur init my-sounds.yaml`; you can add any field below to it. The last tables, starting with PostTraining,
describe the file that `--config` of `clapcur post-train` takes. Paths are relative to the file. The defaults are those
of such a file. Fields marked *machine* affect how a result is computed, not what it is: changing one never creates
a new artifact.
"""


def page() -> str:
    """Return the page as Markdown: one table per class, in the order in which fields refer to the classes."""
    start = defaults()
    teacher = start.teacher
    assert teacher is not None and teacher.model is not None
    model = teacher.model
    known: dict[type, dict[str, Any]] = {
        type(value): {"default": value}
        for value in (start, start.soft_labels, model, model.audio, model.text, model.audio.front_end)
    }
    known[TrainConfig] = {"teacher": teacher, "student": start.student}
    shown = classes_of(Experiment)
    order = PostTraining()
    known |= {type(value): {"default": value} for value in (order, order.compose)}
    further = [cls for cls in classes_of(PostTraining) if cls not in shown]
    tables = [_table(cls, known.get(cls, {"default": cls})) for cls in (*shown, *further)]
    return "\n".join([HEAD, *tables])


def classes_of(root: type) -> list[type]:
    """Return `root` and the config classes that its fields refer to, directly or indirectly."""
    found, waiting = [root], [root]
    while waiting:
        for kind in typing.get_type_hints(waiting.pop(0)).values():
            for cls in _classes_in(kind):
                if cls not in found:
                    found.append(cls)
                    waiting.append(cls)
    return found


def _classes_in(kind: Any) -> list[type]:
    if dataclasses.is_dataclass(kind):
        return [typing.cast(type, kind)]
    return [cls for part in typing.get_args(kind) for cls in _classes_in(part)]


def _table(cls: type, examples: Mapping[str, Any]) -> str:
    """Return the table of a class, with a column of defaults for each example (an instance or the class itself)."""
    texts, hints = describe(cls), typing.get_type_hints(cls)
    head = ["field", "type", *examples, ""]
    lines = [f"## {cls.__name__}", "", (cls.__doc__ or "").split("\n")[0], "", _row(head), "|" + "---|" * len(head)]
    for field in dataclasses.fields(cls):
        text = texts[field.name] + (" *machine*" if field.metadata.get("machine") else "")
        values = [_default_text(field, example) for example in examples.values()]
        lines.append(_row([f"`{field.name}`", _type_text(hints[field.name]), *values, text]))
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_text(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        return f"[{name}](#{name.lower()})"
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in parts)
    if origin is tuple:
        return f"list of {_type_text(parts[0])}"
    return {type(None): "null", str: "text", float: "number", int: "whole number", bool: "true or false"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _default_text(field: "dataclasses.Field[Any]", example: Any) -> str:
    if field.default is dataclasses.MISSING and (field.name in GIVEN or isinstance(example, type)):
        return "required"
    return _value_text(field.default if isinstance(example, type) else getattr(example, field.name))


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, IngestConfig):  # the pool, which is optional
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value):
        short = {f.name: said for f in dataclasses.fields(value) if (said := getattr(value, f.name)) is not None}
        is_short = len(short) == 1 and not any(map(dataclasses.is_dataclass, short.values()))
        return "`{" + ", ".join(f"{name}: {said}" for name, said in short.items()) + "}`" if is_short else "see below"
    if isinstance(value, tuple):
        return f"`[{', '.join(getattr(item, 'name', str(item)) for item in value)}]`"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    print(page(), end="")
