"""trainer.pt: all that a run needs to go on as if it had never stopped.

The file is read with weights_only, so it can hold tensors and plain values and nothing else. It
holds the whole model file too, so that it can be exported on its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from boxseg.checkpoint import FORMAT_VERSION, TRAINER_FORMAT, read_payload, write_atomically
from boxseg.errors import FileMismatchError


@dataclass(frozen=True)
class Best:
    """The best validation so far."""

    score: float = -1.0
    """Box AP times tightness of the masks, or mask AP in mask-supervised recipes; -1 is none."""
    step: int = 0
    """Optimizer steps that were done."""


@dataclass(frozen=True)
class TrainerState:
    """A moment between two optimizer steps."""

    step: int
    """Optimizer steps that are done; the position in the data order follows from it."""
    model: dict[str, Any]
    """Model file of the student: its raw weights, also where the average ships."""
    optimizer: dict[str, Any]
    criterion: dict[str, Any]
    """State of the terms: heads, banks, counters that only training has."""
    precision: dict[str, Any]
    """Loss scale of 16-bit training; empty otherwise."""
    random: list[dict[str, Any]]
    """Random number generators, one entry per process."""
    recipe: dict[str, Any]
    data: dict[str, Any]
    """Which data the run learns from; see `boxseg.train.engine.data_identity`."""
    supervision: dict[str, Any] = field(default_factory=dict)
    """The teacher: number of updates and weights; empty in recipes without one."""
    own_supervision: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Memory bank and prototypes, one entry per process."""
    validated_step: int = 0
    """Step of the last finished validation, 0 before the first."""
    best: Best = field(default_factory=Best)


def save_trainer_state(path: Path, state: TrainerState) -> None:
    """Write trainer.pt atomically."""
    write_atomically(
        path,
        {
            "format": TRAINER_FORMAT,
            "version": FORMAT_VERSION,
            "step": state.step,
            "model": state.model,
            "optimizer": state.optimizer,
            "criterion": state.criterion,
            "precision": state.precision,
            "random": state.random,
            "recipe": state.recipe,
            "data": state.data,
            "supervision": state.supervision,
            "own_supervision": state.own_supervision,
            "validated_step": state.validated_step,
            "best": {"score": state.best.score, "step": state.best.step},
        },
    )


def load_trainer_state(path: Path) -> TrainerState:
    """Read trainer.pt without executing anything from it.

    Raises:
        FileNotFoundError: if it is missing.
        FileMismatchError: if it is damaged, foreign or of another version.
    """
    payload = read_payload(path)
    if payload["format"] != TRAINER_FORMAT:
        raise FileMismatchError(f"{path} is a model file; a run is resumed from its trainer.pt")
    try:
        return TrainerState(
            step=int(payload["step"]),
            model=dict(payload["model"]),
            optimizer=dict(payload["optimizer"]),
            criterion=dict(payload["criterion"]),
            precision=dict(payload["precision"]),
            random=list(payload["random"]),
            recipe=dict(payload["recipe"]),
            data=dict(payload["data"]),
            supervision=dict(payload["supervision"]),
            own_supervision=list(payload["own_supervision"]),
            validated_step=int(payload["validated_step"]),
            best=Best(score=float(payload["best"]["score"]), step=int(payload["best"]["step"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileMismatchError(f"{path} is incomplete: {error}") from error


def capture_random(device: torch.device) -> dict[str, Any]:
    """Return the state of this process's random number generators as plain values.

    numpy's global generator is not among them: this project never draws from it.

    Args:
        device: Device that the process trains on.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Set this process's random number generators to what capture_random returned."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
