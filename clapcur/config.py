"""Configs are frozen dataclasses; this module reads, writes and signs them.

The signature covers the *resolved* values, never a difference from defaults: a changed default must not return an old
artifact under a new meaning. Fields declared with `machine` (workers, device, inference batch size) control how a
result is computed, not what it is; they are not part of the signature.

The string below a field describes it, in this one place: docs/config.md and the file that `clapcur init` writes are
generated from it.
"""

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args

from clapcur.errors import DataError
from clapcur.textfiles import read_text

T = TypeVar("T")
LARGEST_SEED = 2**63 - 1  # the maximum that torch's and numpy's generators accept and that JSON and SQL can store
LARGEST_FILE = 2**20  # bytes; enough for a config with thousands of class names


@dataclass_transform(frozen_default=True, kw_only_default=True)
def frozen(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass that rejects unknown keys wherever it is read."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]  # read by pydantic and Prefect's forms
    return made


def machine(default: Any) -> Any:
    """Declare a field that controls how the work is done but not the result; the signature leaves it out."""
    return dataclasses.field(default=default, metadata={"machine": True})


def added(neutral: Any) -> Any:
    """Declare a field that was added when artifacts already existed, with the value that they were computed with.

    A field with that value is not part of the signature, so that existing artifacts keep their ids. `neutral` must not
    change, even if the default does.
    """
    return dataclasses.field(default=neutral, metadata={"neutral": neutral})


def describe(cls: type) -> dict[str, str]:
    """Return the text below each field of a config class, by field name; inherited fields are included."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            texts |= _texts_below(owner)
    return texts


def _texts_below(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


def canonical(value: Any) -> Any:
    """Convert a config, or any value inside one, to plain JSON types, without machine fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: canonical(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.metadata.get("machine") and not _is_neutral(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a config value must be finite, got {value}")
        return int(value) if value.is_integer() else value  # 1 and 1.0 are one setting
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot sign a value of type {type(value).__name__}: {value!r}")


def _is_neutral(field: dataclasses.Field[Any], value: Any) -> bool:
    return "neutral" in field.metadata and value == field.metadata["neutral"]


def canonical_json(value: Any) -> str:
    """Return `value` as JSON that is identical on every machine: sorted keys, no spaces."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def signature(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build a config from plain values, such as those parsed from YAML or JSON.

    Raises
    ------
    ValueError
        There is an unknown key, a missing key or a value of the wrong type; the message gives the path of each.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ValueError(f"{where}: " + "; ".join(_explain(cls, item) for item in error.errors())) from None


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise ValueError if a seed is outside the range that every random generator in use accepts."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{name} must be a whole number from 0 to {LARGEST_SEED}, got {seed}")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises
    ------
    DataError
        The file is missing, is not valid YAML, repeats a key, does not contain a mapping, or is larger than any config.
    """
    import yaml

    from clapcur.strict_yaml import load_yaml

    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the config {path} {found}; create one with `clapcur init`")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise DataError(f"{path} has {size:,} bytes, but a config has at most {LARGEST_FILE:,}; is it the right file?")
    try:
        values = load_yaml(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as February 31
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a mapping, got {type(values).__name__}")
    return values


def _explain(cls: type, item: Mapping[str, Any]) -> str:
    path = ".".join(str(step) for step in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        import difflib

        owner: Any = cls
        for step in item["loc"][:-1]:
            fields = (
                {field.name: field.type for field in dataclasses.fields(owner)}
                if dataclasses.is_dataclass(owner)
                else {}
            )
            owner = fields.get(str(step))
            owner = next(filter(dataclasses.is_dataclass, get_args(owner)), owner)  # a config that may be None
        known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if item["type"] == "missing_argument":
        return f"{path!r} is required"
    message = item["msg"].removeprefix("Value error, ")
    return (
        f"{path}: {message}, got {item['input']!r}"
        if path and "got" not in message
        else f"{path}: {message}".lstrip(": ")
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Return all fields of a config as plain values, machine fields included, for a file that people edit."""
    return dataclasses.asdict(config)
