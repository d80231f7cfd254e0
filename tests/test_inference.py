"""The student as a backend and what it says about itself."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from boxseg.checkpoint import save_model
from boxseg.config import ModelConfig
from boxseg.errors import BackendMissingError
from boxseg.inference import OUTPUT_NAMES, DenseGraph, TorchBackend, describe, open_torch_backend
from boxseg.student import Student


@pytest.fixture(scope="module")
def student() -> Student:
    return Student(
        ModelConfig(
            classes=("a",),
            category_ids=(4,),
            backbone="resnet18",
            fpn_channels=8,
            tower_channels=8,
            tower_depth=1,
            mask_branch_channels=8,
            mask_branch_depth=0,
            imgsz=(64, 96),
            short_long=(64, 128),
        )
    )


def frame() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)


def test_a_backend_answers_like_the_graph_in_eval_mode_and_restores_the_mode(
    student: Student,
) -> None:
    student.train()
    found = TorchBackend(student).run(frame())
    assert student.training
    student.eval()
    with torch.no_grad():
        expected = DenseGraph(student)(torch.from_numpy(frame()))
    assert tuple(found) == OUTPUT_NAMES
    for name, value in zip(OUTPUT_NAMES, expected, strict=True):
        np.testing.assert_array_equal(found[name], value.numpy())


def test_running_does_not_move_the_batch_statistics(student: Student) -> None:
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    TorchBackend(student).run(frame())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_metadata_states_the_rule_that_the_backend_uses(student: Student) -> None:
    assert TorchBackend(student).metadata["imgsz"] == {
        "rule": "short_long",
        "short": 64,
        "long": 128,
    }
    fit = {"rule": "fit", "height": 64, "width": 96}
    assert TorchBackend(student, short_long=False).metadata["imgsz"] == fit
    assert describe(student.config)["imgsz"] == fit


def test_metadata_says_which_weights_a_file_holds(student: Student, tmp_path: Path) -> None:
    save_model(tmp_path / "best.pt", student, weights="ema")
    assert open_torch_backend(tmp_path / "best.pt").metadata["weights"] == "ema"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_an_error(student: Student) -> None:
    with pytest.raises(BackendMissingError, match="device cuda:0 is not available"):
        TorchBackend(student, device="cuda:0")
