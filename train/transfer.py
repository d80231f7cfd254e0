"""Start from another model: what fits is copied, classes are matched by name, the rest is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from boxseg.student import Student

CLASS_TENSORS = ("head.class_logits.weight", "head.class_logits.bias")
"""State of the student whose first dimension is the classes."""


@dataclass(frozen=True)
class Transfer:
    """What a start from another model took over."""

    classes_matched: tuple[str, ...]
    classes_new: tuple[str, ...]
    classes_dropped: tuple[str, ...]
    mismatched: tuple[str, ...]
    """Tensors of another shape, which keep their initial values: `name: theirs -> ours`."""
    missing: tuple[str, ...]
    """Tensors that the other model does not have."""
    taken: int
    """Tensors taken over."""

    def lines(self) -> list[str]:
        """Return the list that the user is shown."""
        lines = [
            f"classes taken over: {', '.join(self.classes_matched) or 'none'}",
            f"classes newly initialised: {', '.join(self.classes_new) or 'none'}",
        ]
        if self.classes_dropped:
            lines.append(f"classes left behind: {', '.join(self.classes_dropped)}")
        lines.append(f"tensors taken over: {self.taken}")
        lines += [f"tensor of another shape, newly initialised: {name}" for name in self.mismatched]
        lines += [f"tensor not in the file, newly initialised: {name}" for name in self.missing]
        return lines


@torch.no_grad()
def transfer_weights(source: Student, target: Student) -> Transfer:
    """Copy what fits from one student to another, classes by name.

    Args:
        source: Where the weights come from.
        target: Overwritten where names and shapes agree; a class of the same name gets its row
            of the classifier.
    """
    theirs, ours = source.state_dict(), target.state_dict()
    old, new = source.config.classes, target.config.classes
    matched = tuple(name for name in new if name in old)
    mismatched, missing, taken = [], [], 0
    for name, value in ours.items():
        other = theirs.get(name)
        if other is None:
            missing.append(name)
        elif name in CLASS_TENSORS and other.shape[1:] == value.shape[1:]:
            for class_name in matched:
                value[new.index(class_name)] = other[old.index(class_name)]
            taken += bool(matched)
        elif other.shape != value.shape:
            mismatched.append(f"{name}: {list(other.shape)} -> {list(value.shape)}")
        else:
            value.copy_(other)
            taken += 1
    return Transfer(
        classes_matched=matched,
        classes_new=tuple(name for name in new if name not in old),
        classes_dropped=tuple(name for name in old if name not in new),
        mismatched=tuple(mismatched),
        missing=tuple(missing),
        taken=taken,
    )
