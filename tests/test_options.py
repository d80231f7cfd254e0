"""Options of parts: what a field's type allows."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from boxseg.train.options import Count, Share, build_part


@dataclass(frozen=True)
class Kettle:
    litres: float = 1.5
    cups: Count | Literal["many"] = 2
    full: Share = 0.5
    colour: Literal["red", "blue"] = "red"
    whistles: bool = True
    scale: int = 0


def test_a_part_keeps_what_the_recipe_says_and_the_rest_of_its_defaults() -> None:
    given: dict[str, Any] = {"litres": 2, "cups": "many", "full": 1, "whistles": False}
    assert build_part(Kettle, given, "kettle") == Kettle(2, "many", 1, "red", False, 0)
    assert build_part(Kettle, {"cups": 1, "full": 0}, "kettle") == Kettle(cups=1, full=0)
    assert build_part(Kettle, {}, "kettle") == Kettle()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("size", 1, "is unknown; known options: litres, cups, full, colour, whistles, scale"),
        ("litres", -0.1, "must be a number of at least 0, got -0.1"),
        ("litres", float("inf"), "must be a number of at least 0, got inf"),
        ("litres", float("nan"), "must be a number of at least 0, got nan"),
        ("litres", True, "must be a number of at least 0, got True"),
        ("litres", "1", "must be a number of at least 0, got '1'"),
        ("cups", 0, "must be a number of at least 1 or many, got 0"),
        ("cups", 1.5, "must be a whole number or many, got 1.5"),
        ("cups", "few", "must be a number of at least 1 or many, got 'few'"),
        ("full", 1.01, "must be a number in [0, 1], got 1.01"),
        ("colour", "green", "must be red or blue, got 'green'"),
        ("colour", 0, "must be red or blue, got 0"),
        ("whistles", 0, "must be true or false, got 0"),
        ("whistles", "yes", "must be true or false, got 'yes'"),
        ("scale", 2.0, "must be a whole number, got 2.0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"parts.kettle.{option} {message}")):
        build_part(Kettle, {option: value}, "parts.kettle")
