"""The network that is exported, opened from what a training run leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boxseg.checkpoint import find_model, load_model
from boxseg.inference import TorchBackend
from boxseg.student import Student


@dataclass(frozen=True)
class Network:
    """A model file, opened for export."""

    file: Path
    """Where the weights were found."""
    student: Student
    backend: TorchBackend
    """At the fixed input size of the export."""
    metadata: dict[str, Any]
    training: Mapping[str, Any]
    """What the model file says about its run."""


def open_network(
    source: Path,
    imgsz: tuple[int, int] | None,
    device: str,
    *,
    form: str = "dense",
    batch: tuple[int, int, int] = (1, 1, 1),
    weights: str | None = None,
    licence: Mapping[str, str] | None = None,
) -> Network:
    """Open a run folder, a model file or a trainer.pt.

    Args:
        source: What the user named.
        imgsz: (height, width) in place of the model's own.
        device: For the reference in torch.
        form: Outputs of the graph: "dense", "topk" or "graph".
        batch: Least, best and most images of a run.
        weights: "student" or "ema"; None takes those that ship.
        licence: Licences that the user states, by part, before those of the model file.
    """
    file, payload = find_model(source, weights)
    student = load_model(source, weights)
    if imgsz is not None:
        student.config = replace(student.config, imgsz=imgsz)
    backend = TorchBackend(student, device, short_long=False, form=form, batch=batch)
    backend.metadata["weights"] = payload["weights"]
    training = payload["metadata"]
    recorded = training.get("licence")
    for stated in (recorded, licence):
        if isinstance(stated, Mapping):
            backend.metadata["licence"].update(stated)
    return Network(file, student, backend, backend.metadata, training)
