"""Conversion of sequence arguments to lists: a caller may pass an array, a Series, a generator or a tuple.

A pandas Series is indexed by its labels, not by position, and a generator can be read only once: both silently return
wrong rows. Public functions therefore convert such arguments to lists first.
"""

from collections.abc import Iterable, Mapping, Set
from os import PathLike
from typing import Any


def list_of(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the values in their order.

    Raises
    ------
    TypeError
        The argument is a single string or path, is unordered (a set, a mapping), is a table, or cannot be iterated.
    """
    if isinstance(values, (str, bytes, PathLike)):
        raise TypeError(f"{name} must be a list, got a single {type(values).__name__}, {values!r}: wrap it in a list")
    if isinstance(values, (Mapping, Set)) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a list, got a {type(values).__name__} that is not one-dimensional")
    to_python = getattr(values, "to_pylist", None)  # pyarrow's arrays contain pyarrow scalars
    try:
        return list(to_python() if to_python else values)
    except TypeError:
        raise TypeError(f"{name} must be a list, got {type(values).__name__}") from None


def list_of_texts(name: str, values: Iterable[str]) -> list[str]:
    """Return the strings in order; raise TypeError as `list_of` does, or if a value is not a string (such as NaN)."""
    found = list_of(name, values)
    for index, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(
                f"{name} must be strings, but item {index} is {value!r} ({type(value).__name__}); a table with "
                "missing values?"
            )
    return [str(value) for value in found]


def list_of_paths(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the paths in order; raise TypeError as `list_of` does, or if a value is neither a string nor a path."""
    found = list_of(name, values)
    for index, value in enumerate(found):
        if not isinstance(value, (str, PathLike)):
            raise TypeError(
                f"{name} must be paths, but item {index} is {value!r} ({type(value).__name__}); a table with missing "
                "values?"
            )
    return found
