"""Lists at the door: what is called with a sequence may get an array, a Series, a generator or a tuple.

A pandas Series is indexed by its labels and not by its places, and a generator can be read once: both give wrong rows
silently. So public functions make a list of what they are given before anything else.
"""

from collections.abc import Iterable, Mapping, Set
from os import PathLike
from typing import Any


def list_of(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the values in their order.

    Raises
    ------
    TypeError
        A lone text or path, something without an order (a set, a mapping), a table, or nothing that can be iterated.
    """
    if isinstance(values, (str, bytes, PathLike)):
        raise TypeError(f"{name} must be a list, got a single {type(values).__name__}, {values!r}: wrap it in a list")
    if isinstance(values, (Mapping, Set)) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a list, got a {type(values).__name__} that is not one-dimensional")
    to_python = getattr(values, "to_pylist", None)  # pyarrow's arrays hold scalars of their own
    try:
        return list(to_python() if to_python else values)
    except TypeError:
        raise TypeError(f"{name} must be a list, got {type(values).__name__}") from None


def list_of_texts(name: str, values: Iterable[str]) -> list[str]:
    """Return the texts in their order; TypeError as `list_of`, or for a value that is no text (NaN, in a gap)."""
    found = list_of(name, values)
    for index, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(
                f"{name} must be strings, but item {index} is {value!r} ({type(value).__name__}); a table with "
                "missing values?"
            )
    return [str(value) for value in found]


def list_of_paths(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the paths in their order; TypeError as `list_of`, or for a value that is neither a text nor a path."""
    found = list_of(name, values)
    for index, value in enumerate(found):
        if not isinstance(value, (str, PathLike)):
            raise TypeError(
                f"{name} must be paths, but item {index} is {value!r} ({type(value).__name__}); a table with missing "
                "values?"
            )
    return found
