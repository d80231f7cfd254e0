"""What training keeps and a deployed file does not: the parts of trainer.pt, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from boxseg.errors import counted

CRITERION_PART = "depth head"
"""The only part of the criterion that has weights."""
OWN_PARTS = {"bank": "bank", "pseudo_masks": "prototypes"}
"""Key of a process's own state -> what it is."""
PLAIN_PARTS = {
    "optimizer": "optimizer",
    "random": "random state",
    "precision": "loss scale",
    "recipe": "recipe",
    "data": "data",
}
"""Key of trainer.pt -> what it is; others go by their key."""


@dataclass(frozen=True)
class LeftBehind:
    """A part of trainer.pt that does not ship."""

    part: str
    tensors: int
    parameters: int
    """Numbers in the tensors."""
    size_bytes: int

    def line(self) -> str:
        """Return one line of a report."""
        return (
            f"{self.part}: {counted(self.tensors, 'tensor')}, "
            f"{self.parameters:,} numbers, {self.size_bytes / 1e6:.1f} MB"
        )


def _tensors_of(value: Any) -> list[Any]:
    """Return all tensors inside nested dicts and lists."""
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors_of(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors_of(item)]
    return [value] if hasattr(value, "element_size") else []


def _parts(payload: Mapping[str, Any], weights: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the content of every part that does not ship."""
    for key, value in payload.items():
        if key == "model":
            if weights == "ema":
                yield "raw student", value
        elif key == "supervision" and isinstance(value, Mapping):
            for name, part in value.items():
                if name != "teacher":
                    yield name, part
                elif weights == "student":
                    yield "average", part
        elif key == "own_supervision":
            own: list[Mapping[str, Any]] = [entry for entry in value if isinstance(entry, Mapping)]
            for name in dict.fromkeys(name for entry in own for name in entry):
                yield OWN_PARTS.get(name, name), [entry.get(name) for entry in own]
        elif key == "criterion":
            yield CRITERION_PART, value
        else:
            yield PLAIN_PARTS.get(key, key), value


def left_behind(payload: Mapping[str, Any], weights: str = "student") -> list[LeftBehind]:
    """List the parts of a trainer.pt that hold tensors and do not ship.

    Args:
        payload: The file's content.
        weights: Which weights ship, "student" or "ema"; the other set is left behind.
    """
    found = []
    for part, value in _parts(payload, weights):
        tensors = _tensors_of(value)
        if tensors:
            found.append(
                LeftBehind(
                    part,
                    len(tensors),
                    sum(tensor.numel() for tensor in tensors),
                    sum(tensor.numel() * tensor.element_size() for tensor in tensors),
                )
            )
    return found
