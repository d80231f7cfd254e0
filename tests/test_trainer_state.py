"""trainer.pt: what goes in comes out, and nothing foreign comes in."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boxseg.checkpoint import write_atomically
from boxseg.errors import FileMismatchError
from boxseg.train.trainer_state import (
    Best,
    TrainerState,
    capture_random,
    load_trainer_state,
    restore_random,
    save_trainer_state,
)

CPU = torch.device("cpu")

STATE = TrainerState(
    step=7,
    model={"format": "boxseg-model", "version": 1, "state_dict": {"w": torch.arange(3.0)}},
    optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    criterion={},
    precision={},
    random=[],
    recipe={"seed": 3},
    data={"images": 5},
    validated_step=4,
    best=Best(0.25, 4),
)


def test_a_state_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trainer.pt"
    save_trainer_state(path, replace(STATE, random=[capture_random(CPU)]))
    state = load_trainer_state(path)
    assert (state.step, state.validated_step, state.best) == (7, 4, Best(0.25, 4))
    assert (state.recipe, state.data) == ({"seed": 3}, {"images": 5})
    assert torch.equal(state.model["state_dict"]["w"], torch.arange(3.0))
    assert torch.equal(state.optimizer["state"][0]["momentum_buffer"], torch.ones(3))


def test_the_generators_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "trainer.pt"
    save_trainer_state(path, replace(STATE, random=[capture_random(CPU)]))
    expected = (random.random(), torch.rand(3))
    random.seed(99)
    torch.manual_seed(99)
    restore_random(load_trainer_state(path).random[0], CPU)
    again = (random.random(), torch.rand(3))
    assert expected[0] == again[0]
    assert torch.equal(expected[1], again[1])


def test_a_model_file_is_no_trainer_state(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_atomically(path, STATE.model)
    with pytest.raises(FileMismatchError, match=r"resumed from its trainer\.pt"):
        load_trainer_state(path)


def test_a_missing_a_damaged_and_a_hostile_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainer\.pt"):
        load_trainer_state(tmp_path / "trainer.pt")
    path = tmp_path / "trainer.pt"
    save_trainer_state(path, STATE)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileMismatchError, match="damaged"):
        load_trainer_state(path)
    torch.save({"format": "boxseg-trainer", "payload": Path("anything")}, path)
    with pytest.raises(FileMismatchError, match="not loaded"):
        load_trainer_state(path)


def test_an_incomplete_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainer.pt"
    write_atomically(path, {"format": "boxseg-trainer", "version": 1, "step": 3})
    with pytest.raises(FileMismatchError, match="incomplete: 'model'"):
        load_trainer_state(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "trainer.pt"
    save_trainer_state(path, STATE)
    with pytest.raises(Exception, match="pickle"):
        save_trainer_state(path, replace(STATE, criterion={"bad": lambda: None}))
    assert load_trainer_state(path).step == 7
    assert [file.name for file in tmp_path.iterdir()] == ["trainer.pt"]
