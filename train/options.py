"""Options of a recipe's parts: a frozen dataclass whose fields are the options, and its checks.

A field's type says what is allowed: `float` and `int` are numbers of at least 0 unless `Range`
says otherwise, `bool` is true or false, `Literal` lists words, and a union allows either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Part = TypeVar("Part")


@dataclass(frozen=True)
class Range:
    """Allowed numbers, both ends included."""

    low: float = 0.0
    high: float = math.inf

    def __str__(self) -> str:
        """Say the range after "a number"."""
        if math.isinf(self.high):
            return f"of at least {self.low:g}"
        return f"in [{self.low:g}, {self.high:g}]"


Share = Annotated[float, Range(0.0, 1.0)]
"""A number in [0, 1]."""

Count = Annotated[int, Range(1)]
"""A whole number of at least 1."""


def build_part(part: type[Part], options: Mapping[str, Any], path: str) -> Part:
    """Build a part from what a recipe says of it.

    Args:
        part: A dataclass; its fields are the options and all have defaults.
        options: {option: value}.
        path: Where the recipe says it, such as `terms.pairwise`.

    Raises:
        ValueError: for an unknown option or a wrong value, with its whole path.
    """
    known = [field.name for field in fields(part)]  # type: ignore[arg-type]  # any dataclass
    types = get_type_hints(part, include_extras=True)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{path}.{option} is unknown; known options: {', '.join(known)}")
        complaints = [_complaint(kind, value) for kind in _alternatives(types[option])]
        if all(complaints):
            wanted = " or ".join(str(complaint) for complaint in complaints)
            raise ValueError(f"{path}.{option} must be {wanted}, got {value!r}")
    return part(**options)


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _complaint(kind: Any, value: Any) -> str | None:
    """Return what a value should be, or None if it is that."""
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return None if isinstance(value, str) and value in words else " or ".join(words)
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    allowed = Range()
    if get_origin(kind) is Annotated:
        kind, allowed = get_args(kind)
    assert kind in (int, float), kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and kind is int and not isinstance(value, int):
        return "a whole number"
    if not number or not math.isfinite(value) or not allowed.low <= value <= allowed.high:
        return f"a number {allowed}"
    return None
