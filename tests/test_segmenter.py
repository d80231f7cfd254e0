"""From a frame to detections on every engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Outputs, dense_outputs, describe, write_onnx, write_openvino
from numpy.typing import NDArray

from boxseg.errors import FileMismatchError
from boxseg.runtime import Segmenter
from boxseg.runtime.postprocess import Postprocessor
from boxseg.runtime.preprocess import letterbox


class Recorder:
    """A backend that gives seeded outputs and keeps the images that it saw."""

    name = "recorder"
    device = "cpu"

    def __init__(self, **changes: Any) -> None:
        self.metadata: Mapping[str, Any] = describe(**changes)
        self.images: list[NDArray[np.uint8]] = []

    def run(self, image: NDArray[np.uint8]) -> Outputs:
        self.images.append(image.copy())
        return dense_outputs(4, height=image.shape[1], width=image.shape[2])


def _frame(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_backend_sees_the_letterboxed_frame() -> None:
    backend = Recorder()
    segmenter = Segmenter(backend)
    frame = _frame(120, 100)
    segmenter(frame)
    expected, _ = letterbox(frame, segmenter.metadata.imgsz)
    assert np.array_equal(backend.images[-1], expected[None])


def test_camera_frames_are_taken_as_they_are() -> None:
    backend = Recorder()
    segmenter = Segmenter(backend, yuv="BT.709 full")
    frames = [_frame(120, 100)[:, :, :2].copy(), _frame(120, 100, 1)[:, :, :2].copy()]
    found = segmenter.batch(frames, colour="YUYV")
    assert [one.size for one in found] == [(120, 100), (120, 100)]
    expected, _ = letterbox(frames[1], segmenter.metadata.imgsz, colour="YUYV", yuv="BT.709 full")
    assert np.array_equal(backend.images[-1], expected[None])
    assert segmenter(_frame(180, 100)[:, :, 0].copy(), colour="NV12").size == (120, 100)


def test_the_answer_is_the_postprocessed_output() -> None:
    segmenter = Segmenter(Recorder(), conf=0.3)
    frame = _frame(120, 100)
    found = segmenter(frame)
    _, plan = letterbox(frame, segmenter.metadata.imgsz)
    expected = Postprocessor(segmenter.metadata, conf=0.3)(dense_outputs(4), plan)
    assert len(found) > 5
    assert found.counts == expected.counts
    assert found.size == (120, 100)


def test_loading_warms_up_once() -> None:
    backend = Recorder()
    Segmenter(backend)
    assert len(backend.images) == 1


def test_every_stage_has_its_time() -> None:
    times = Segmenter(Recorder())(_frame(96, 160)).times_ms
    assert list(times) == ["letterbox", "engine", "select", "masks", "total"]
    assert times["total"] == pytest.approx(sum(list(times.values())[:4]))
    assert min(times.values()) > 0


def test_bgr_and_gray_frames_are_converted() -> None:
    segmenter = Segmenter(Recorder())
    backend = segmenter.backend
    assert isinstance(backend, Recorder)
    frame = _frame(96, 160)
    segmenter(frame)
    segmenter(np.ascontiguousarray(frame[:, :, ::-1]), colour="BGR")
    segmenter(frame[:, :, 0])
    rgb, bgr, gray = backend.images[-3:]
    assert np.array_equal(rgb, bgr)
    assert np.array_equal(gray[0, :, :, 1], rgb[0, :, :, 0])


def test_a_size_that_follows_the_frame() -> None:
    backend = Recorder(imgsz={"rule": "short_long", "short": 64, "long": 160})
    segmenter = Segmenter(backend, conf=0.0)
    assert backend.images == []  # no size is known at load
    for frame, size in (((128, 200), (64, 128)), ((200, 128), (128, 64)), ((50, 500), (32, 160))):
        found = segmenter(_frame(*frame))
        assert backend.images[-1].shape == (1, *size, 3)
        assert found.size == frame
        assert len(found) > 0


def test_answers_outlive_the_next_frame() -> None:
    segmenter = Segmenter(Recorder(), conf=0.0)
    first = segmenter(_frame(96, 160))
    before = first.dense().copy(), first.xyxy.copy(), first.scores.copy()
    segmenter(_frame(300, 40))
    after = first.dense(), first.xyxy, first.scores
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


class Batcher(Recorder):
    """Takes several images per run; each one's outputs follow its first pixel."""

    def __init__(self, least: int = 1, most: int = 8, **changes: Any) -> None:
        super().__init__(batch={"min": least, "opt": least, "max": most}, **changes)

    def run(self, image: NDArray[np.uint8]) -> Outputs:
        self.images.append(image.copy())
        _, height, width, _ = image.shape
        seeds = image[:, 0, 0, 0].tolist()
        each = [dense_outputs(seed, height=height, width=width) for seed in seeds]
        return {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}


def test_a_batch_answers_like_its_frames() -> None:
    frames = [np.full((60 + 10 * i, 90, 3), i, np.uint8) for i in range(3)]
    backend = Batcher()
    segmenter = Segmenter(backend, conf=0.3)
    expected = [segmenter(frame) for frame in frames]
    runs = len(backend.images)
    found = segmenter.batch(iter(frames))
    assert len(backend.images) == runs + 1
    assert backend.images[-1].shape == (3, 96, 160, 3)
    assert [one.counts for one in found] == [one.counts for one in expected]
    assert [one.size for one in found] == [one.size for one in expected]
    assert found[0].times_ms["engine"] == found[2].times_ms["engine"]
    assert segmenter.batch([]) == []
    assert segmenter(frames[1]).counts == expected[1].counts


def test_a_run_takes_no_more_images_than_the_file_allows() -> None:
    frames = [np.full((96, 160, 3), i, np.uint8) for i in range(5)]
    backend = Batcher(most=2)
    expected = [one.counts for one in Segmenter(Batcher(), conf=0.3).batch(frames)]
    segmenter = Segmenter(backend, conf=0.3)
    found = segmenter.batch(frames)
    assert [len(images) for images in backend.images] == [1, 2, 2, 1]  # the first warms up
    assert [one.counts for one in found] == expected


def test_a_run_that_is_short_of_images_is_filled_up() -> None:
    frames = [np.full((96, 160, 3), i, np.uint8) for i in range(4)]
    backend = Batcher(least=3, most=3)
    expected = [one.counts for one in Segmenter(Batcher(), conf=0.3).batch(frames)]
    found = Segmenter(backend, conf=0.3).batch(frames)
    assert [len(images) for images in backend.images] == [3, 3, 3]
    assert [one.counts for one in found] == expected


def test_a_file_of_one_image_takes_a_batch_in_turn() -> None:
    backend = Recorder()
    segmenter = Segmenter(backend, conf=0.3)
    found = segmenter.batch([_frame(50, 60), _frame(70, 80)])
    assert [image.shape[0] for image in backend.images[-2:]] == [1, 1]
    assert [one.size for one in found] == [(50, 60), (70, 80)]
    with pytest.raises(ValueError, match="non-empty"):
        segmenter.batch([_frame(50, 60), np.zeros((0, 3), np.uint8)])


def test_frames_of_a_batch_with_other_input_sizes_run_apart() -> None:
    backend = Batcher(imgsz={"rule": "short_long", "short": 64, "long": 160})
    sizes = [(128, 200), (128, 200), (200, 128)]
    found = Segmenter(backend).batch([_frame(*size) for size in sizes])
    assert [image.shape[:3] for image in backend.images] == [(2, 64, 128), (1, 128, 64)]
    assert [one.size for one in found] == sizes


def test_a_time_budget_ends_the_work_with_what_is_ready() -> None:
    frame = _frame(96, 160)
    everything = Segmenter(Recorder(), conf=0.0)(frame)
    plenty = Segmenter(Recorder(), conf=0.0, budget_ms=1e6)(frame)
    nothing = Segmenter(Recorder(), conf=0.0, budget_ms=1e-6)(frame)
    assert everything.complete
    assert plenty.complete
    assert plenty.counts == everything.counts
    assert not nothing.complete
    assert len(nothing) < len(everything)
    assert not nothing[:0].complete
    with pytest.raises(ValueError, match="budget_ms must be above 0, got 0"):
        Segmenter(Recorder(), budget_ms=0)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_same_masks_as_numpy(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the small graph is built with onnx")
    pytest.importorskip(engine)
    if engine == "onnxruntime":
        path = write_onnx(tmp_path / "small.onnx", dense_outputs(4), describe())
    else:
        path = write_openvino(tmp_path / "small_openvino_model", 4, describe())
    segmenter = Segmenter(path, conf=0.0, threads=1)
    frame = np.zeros((96, 160, 3), np.uint8)  # adds nothing to the logits
    found, expected = segmenter(frame), Segmenter(Recorder(), conf=0.0)(frame)
    assert found.counts == expected.counts
    assert np.array_equal(found.scores, expected.scores)
    assert segmenter.backend.name == engine
    assert segmenter.metadata.batch.most == 1


def test_bad_frames_and_options_are_named() -> None:
    segmenter = Segmenter(Recorder())
    with pytest.raises(ValueError, match="uint8"):
        segmenter(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="non-empty"):
        segmenter(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="conf must be in"):
        Segmenter(Recorder(), conf=2)
    with pytest.raises(ValueError, match="a backend has its own"):
        Segmenter(Recorder(), device="cpu")


def test_wrong_metadata_of_a_backend_are_refused() -> None:
    with pytest.raises(FileMismatchError, match=r"metadata\.form"):
        Segmenter(Recorder(form="sparse"))


def test_a_torch_student_is_a_backend() -> None:
    torch = pytest.importorskip("torch")
    from boxseg.config import ModelConfig
    from boxseg.inference import TorchBackend
    from boxseg.student import Student

    torch.manual_seed(0)
    config = ModelConfig(
        classes=("a", "b"),
        category_ids=(1, 2),
        backbone="mobilenet_v2",
        fpn_channels=32,
        tower_channels=32,
        tower_depth=1,
        mask_branch_channels=16,
        imgsz=(64, 96),
        candidate_score=0.01,
    )
    found = Segmenter(TorchBackend(Student(config)), conf=0.0)(_frame(50, 90))
    assert len(found) > 0
    assert found.dense().shape == (len(found), 50, 90)
