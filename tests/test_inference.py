"""The student as a backend and what it says about itself."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import reference
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
    assert tuple(found) == OUTPUT_NAMES["dense"]
    for name, value in zip(OUTPUT_NAMES["dense"], expected, strict=True):
        np.testing.assert_array_equal(found[name], value.numpy())


def test_fp32_is_not_rounded_on_a_gpu(student: Student) -> None:
    seen = []

    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    class Failing(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(flags())
            raise ValueError("nothing to see")

    backend = TorchBackend(student)
    backend._graph = Failing()
    before = flags()
    assert any(before)  # else the test shows nothing
    with pytest.raises(ValueError, match="nothing to see"):
        backend.run(np.zeros((1, 32, 32, 3), np.uint8))
    assert seen == [(False, False)]
    assert flags() == before


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


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:", "cuda:x", "CPU", "", "meta"])
def test_a_word_that_is_no_device_is_refused(student: Student, device: str) -> None:
    with pytest.raises(ValueError, match=f"must be cpu, cuda or cuda:N .* got '{device}'"):
        TorchBackend(student, device=device)


def slow_pairs(dense: dict[str, npt.NDArray[np.float32]], count: int) -> list[tuple[int, int]]:
    """The best (location, class) pairs of one image, in plain loops."""
    logits, quality = dense["class_logits"][0], dense["quality_logits"][0]
    scored = []
    for place, row in enumerate(logits.astype(np.float64)):
        for label, logit in enumerate(row):
            score = 1 / (1 + np.exp(-logit)) / (1 + np.exp(-float(quality[place])))
            scored.append((-(score**0.5), place, label))
    return [(place, label) for _, place, label in sorted(scored)[:count]]


@pytest.fixture(scope="module")
def two_classes() -> Student:
    torch.manual_seed(3)
    config = ModelConfig(
        classes=("a", "b"),
        category_ids=(4, 5),
        backbone="resnet18",
        fpn_channels=8,
        tower_channels=8,
        tower_depth=1,
        mask_branch_channels=8,
        mask_branch_depth=0,
        imgsz=(64, 96),
        candidates=50,
        max_det=20,
        score0="sqrt_cls_quality",
    )
    made = Student(config)
    torch.nn.init.normal_(made.head.class_logits.weight, std=0.5)  # else nearly all scores tie
    return made.eval()


def test_the_form_topk_gives_the_best_pairs_of_the_dense_form(two_classes: Student) -> None:
    image = np.concatenate([frame(), frame()[:, ::-1]])
    dense = TorchBackend(two_classes).run(image)
    found = TorchBackend(two_classes, form="topk").run(image)
    assert tuple(found) == OUTPUT_NAMES["topk"]
    assert {name: value.shape for name, value in found.items()} == {
        "scores": (2, 50),
        "labels": (2, 50),
        "boxes": (2, 50, 4),
        "locations": (2, 50, 2),
        "levels": (2, 50),
        "parameters": (2, 50, two_classes.config.mask_head_parameters),
        "mask_features": (2, two_classes.config.mask_channels, 8, 12),
    }
    assert found["labels"].dtype == found["levels"].dtype == np.int32
    for i in range(2):
        pairs = slow_pairs({name: value[i : i + 1] for name, value in dense.items()}, 50)
        places, labels = np.array(pairs).T
        assert found["labels"][i].tolist() == labels.tolist()
        np.testing.assert_array_equal(found["boxes"][i], dense["boxes"][i, places])
        np.testing.assert_array_equal(found["parameters"][i], dense["parameters"][i][:, places].T)
        # 64 x 96 at strides 8, 16, ...: 8 * 12 = 96, 4 * 6 = 24, 2 * 3 = 6, 1 * 2 = 2, 1 * 1
        assert found["levels"][i].tolist() == [
            sum(int(place) >= end for end in (96, 120, 126, 128)) for place in places
        ]
        first = int(np.argmax(places < 96))  # the best of P3, where x = 8 column + 4
        column, row = places[first] % 12, places[first] // 12
        assert found["locations"][i, first].tolist() == [8 * column + 4, 8 * row + 4]


def test_the_form_graph_gives_the_masks_of_its_pairs(two_classes: Student) -> None:
    topk = TorchBackend(two_classes, form="topk").run(frame())
    found = TorchBackend(two_classes, form="graph").run(frame())
    assert tuple(found) == OUTPUT_NAMES["graph"]
    assert found["mask_logits"].shape == (1, 50, 8, 12)
    np.testing.assert_array_equal(found["boxes"], topk["boxes"])
    scales = np.array([64.0, 128.0, 256.0, 512.0, 1024.0])[topk["levels"][0]]
    for k in (0, 17, 49):
        expected = reference.mask_logits(
            topk["parameters"][0, k],
            topk["mask_features"][0],
            tuple(topk["locations"][0, k]),
            scales[k],
            widths=two_classes.config.mask_head_widths,
        )
        np.testing.assert_allclose(found["mask_logits"][0, k], expected, rtol=1e-4, atol=1e-4)


def test_the_form_graph_has_at_most_300_candidates() -> None:
    config = ModelConfig(classes=("a",), category_ids=(1,), candidates=1000, max_det=400)
    assert describe(config, form="topk")["nms"]["candidates"] == 1000
    graph = describe(config, form="graph", batch=(1, 2, 4))
    assert graph["form"] == "graph"
    assert graph["batch"] == {"min": 1, "opt": 2, "max": 4}
    assert (graph["nms"]["candidates"], graph["nms"]["max_det"]) == (300, 300)
