"""Objects, batches, paces and streams of a benchmark."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx

from boxseg import cli
from boxseg.runtime.bench_scenarios import (
    MemoryWatch,
    WithObjects,
    measure_batches,
    measure_paced,
    measure_streams,
    synthetic_outputs,
)
from boxseg.runtime.metadata import Metadata
from boxseg.runtime.segmenter import Segmenter

FRAMES = [np.zeros((96, 160, 3), np.uint8)]


class Clock:
    """Stands still until somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Answer:
    times_ms: dict[str, float] = {}  # noqa: RUF012  never written to

    def __len__(self) -> int:
        return 0


class Silent:
    """A backend that answers nothing; what it is asked is counted."""

    name, device = "silent", "cpu"

    def __init__(self, metadata: Metadata) -> None:
        self.metadata, self.runs = metadata, 0

    def run(self, image: np.ndarray) -> dict[str, Any]:
        self.runs += 1
        return {}


def metadata(form: str, head: tuple[int, ...] = (6, 1)) -> Metadata:
    described = describe(
        form=form,
        imgsz={"rule": "fit", "height": 320, "width": 480},
        head__layer_widths=list(head),
    )
    return Metadata.from_dict(described)


@pytest.mark.parametrize("form", ["dense", "topk", "graph"])
@pytest.mark.parametrize("count", [0, 1, 10, 100])
def test_a_frame_holds_as_many_objects_as_asked(form: str, count: int) -> None:
    said = metadata(form)
    inner = Silent(said)
    backend = WithObjects(inner, said, (320, 480), count)
    found = Segmenter(backend, conf=0.0)(np.zeros((320, 480, 3), np.uint8))
    assert len(found) == count
    assert inner.runs == 2  # the engine runs too: once at load, once for the frame
    assert (found.labels == 0).all()


@pytest.mark.parametrize("form", ["dense", "topk", "graph"])
def test_the_mask_of_an_object_is_a_diamond_in_its_box(form: str) -> None:
    # one object: location of P3 that holds the middle: column 30 of 8 px, row 20: (244, 164)
    # box 60 x 40; |dx| + |dy| < 20, whose area is 2 * 20 * 20 = 800
    backend = WithObjects(Silent(metadata(form)), metadata(form), (320, 480), 1)
    found = Segmenter(backend, conf=0.0)(np.zeros((320, 480, 3), np.uint8))
    np.testing.assert_allclose(found.xyxy[0], [214, 144, 274, 184])
    assert found.areas[0] == pytest.approx(800, rel=0.1)
    mask = found.dense()[0]
    assert mask[164, 244]
    assert not mask[146, 216]


def test_a_head_that_is_too_narrow_fills_its_boxes() -> None:
    said = metadata("dense", (3, 1))
    backend = WithObjects(Silent(said), said, (320, 480), 1)
    found = Segmenter(backend, conf=0.0)(np.zeros((320, 480, 3), np.uint8))
    assert found.areas[0] == 60 * 40


def test_a_deeper_head_gives_the_same_diamond() -> None:
    areas = []
    for head in ((6, 1), (8, 5, 8, 1)):
        said = metadata("dense", head)
        backend = WithObjects(Silent(said), said, (320, 480), 4)
        areas.append(Segmenter(backend, conf=0.0)(np.zeros((320, 480, 3), np.uint8)).areas)
    np.testing.assert_array_equal(areas[0], areas[1])


def test_more_objects_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--objects must be at most 100 .*, got 101"):
        synthetic_outputs(metadata("dense"), (320, 480), (320, 480), 101)
    with pytest.raises(ValueError, match="--objects 50 do not fit an input of 32 x 32"):
        synthetic_outputs(metadata("dense"), (32, 32), (32, 32), 50)


def test_engines_take_turns_on_repeated_inputs() -> None:
    clock, calls = Clock(), []

    def engine(name: str, cost: float) -> Any:
        def run(images: np.ndarray) -> None:
            calls.append((name, len(images)))
            clock.now += cost * len(images)

        return run

    found = measure_batches(
        {"a": engine("a", 0.001), "b": engine("b", 0.002)},
        dict.fromkeys("ab", FRAMES[0]),
        {"a": (1, 2), "b": (2,)},
        warmup=1,
        iters=2,
        clock=clock,
    )
    assert calls == [("a", 1)] * 3 + [
        *[("a", 2), ("b", 2)],
        *[("b", 2), ("a", 2)],
        *[("a", 2), ("b", 2)],
    ]
    assert found["a"][2].p50 == pytest.approx(2)
    assert found["b"][2].p50 == pytest.approx(4)
    assert list(found["b"]) == [2]
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        measure_batches({"a": engine("a", 0)}, {"a": FRAMES[0]}, {"a": (0,)})


def test_a_paced_model_is_timed_from_the_tick() -> None:
    clock = Clock()

    def quick(frame: np.ndarray) -> Answer:
        clock.now += 0.02
        return Answer()

    found = measure_paced({"a": quick}, FRAMES, hz=10, count=12, clock=clock, sleep=clock.sleep)
    assert (found["a"].frames, found["a"].late, found["a"].dropped) == (12, 0, 0)
    assert found["a"].latency.p99 == pytest.approx(20)


@pytest.mark.parametrize("hz", [0.0, float("nan"), float("inf")])
def test_a_pace_that_is_none_is_refused(hz: float) -> None:
    with pytest.raises(ValueError, match="hz must be above 0 and finite"):
        measure_paced({}, [], hz=hz)


def test_a_model_that_is_too_slow_drops_frames() -> None:
    # ticks every 100 ms, 250 ms of work: from the tick at 0 to 250; the newest then is of 200,
    # that of 100 is dropped; done at 500 (latency 300), when that of 500 has just come
    clock = Clock()

    def slow(frame: np.ndarray) -> Answer:
        clock.now += 0.25
        return Answer()

    found = measure_paced({"a": slow}, FRAMES, hz=10, count=10, clock=clock, sleep=clock.sleep)["a"]
    assert found.late == 10
    assert found.latency.minimum >= 249
    assert found.latency.p99 < 351
    assert found.dropped >= 10
    with pytest.raises(ValueError, match="hz must be above 0 and finite, got 0"):
        measure_paced({"a": slow}, FRAMES, hz=0)


def test_streams_run_at_once_and_fail_as_one() -> None:
    together = threading.Barrier(3, timeout=20)

    def waits(frame: np.ndarray) -> Answer:
        together.wait()  # passes only if all three are inside
        return Answer()

    found = measure_streams({"a": [waits] * 3}, FRAMES, warmup=1, iters=4, blocks=2)["a"]
    assert found.streams == 3
    assert found.frames_per_second > 0

    def fails(frame: np.ndarray) -> Answer:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        measure_streams({"a": [fails, fails]}, FRAMES, iters=1)


def test_memory_that_stays_is_seen() -> None:
    watch = MemoryWatch()
    watch.start()
    block = np.ones(40_000_000, np.uint8)
    found = watch.stop()
    assert found.resident_bytes is None or found.resident_bytes > 30_000_000
    assert found.peak_bytes is None or found.peak_bytes > 30_000_000
    assert block[0] == 1


def test_the_whole_command_says_what_is_inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("a.onnx", "b.onnx"):
        write_onnx(tmp_path / name, dense_outputs(3), describe())
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 96, "width": 160}],
        "categories": [{"id": 3, "name": "star"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400}
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    words = ["bench", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--data", str(tmp_path)]
    words += ["--iters", "4", "--warmup", "1", "--threads", "1", "--batch", "1", "2"]
    words += ["--objects", "0,10", "--hz", "200", "--streams", "2"]
    for option, name in (("--json", "b.json"), ("--markdown", "b.md"), ("--plot", "b.png")):
        words += [option, str(tmp_path / name)]
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    assert "engine x 2: not timed, the file takes 1 image per run" in printed
    assert "box AP" in printed
    assert "copies to the GPU" not in printed  # there is none
    content = json.loads((tmp_path / "b.json").read_text())
    record = content["models"][0]
    assert [entry["detections"] for entry in record["objects"]] == [0, 10]
    second = content["models"][1]["objects"]
    assert [list(entry["compared"]) for entry in record["objects"]] == [[], []]
    assert [list(entry["compared"]) for entry in second] == [["engine", "total"]] * 2
    assert printed.count("against the first: engine ") == 2
    assert record["threads"] == 1
    assert record["streams"] | {"total": 0} == {
        "streams": 2,
        "threads_each": 1,
        "frames_per_second": record["streams"]["frames_per_second"],
        "total": 0,
    }
    assert record["paced"]["frames"] == 4
    assert record["accuracy"]["images"] == 1
    assert record["engine_version"]
    assert set(content["inside"]) >= {"letterbox", "engine", "total", "objects", "paced", "memory"}
    report = (tmp_path / "b.md").read_text()
    for name, text in content["inside"].items():
        assert f"- **{name}**: {text}." in report
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_no_more_images_are_taken_than_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    images = [{"id": i, "file_name": f"{i}.png", "height": 96, "width": 160} for i in (1, 2)]
    for image in images:
        Image.fromarray(FRAMES[0]).save(tmp_path / str(image["file_name"]))
    truth = {"images": images, "categories": [{"id": 3, "name": "star"}], "annotations": []}
    (tmp_path / "val.json").write_text(json.dumps(truth))
    model = write_onnx(tmp_path / "a.onnx", dense_outputs(3), describe())
    words = ["bench", str(model), "--iters", "1", "--warmup", "0", "--threads", "1"]
    words += ["--data", str(tmp_path), "--json", str(tmp_path / "b.json")]
    for more, taken in ((["--max-images", "1"], 1), ([], 2)):
        assert cli.run([*words, *more]) == 0
        assert f"frames: the first {taken} image" in capsys.readouterr().out
        content = json.loads((tmp_path / "b.json").read_text())
        assert content["settings"]["frames"] == taken
        assert content["models"][0]["accuracy"]["images"] == taken


def test_all_cores_are_the_default_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from boxseg.runtime.benchmark import usable_cores

    path = write_onnx(tmp_path / "a.onnx", dense_outputs(3), describe())
    assert cli.run(["bench", str(path), "--iters", "1", "--warmup", "0"]) == 0
    cores = usable_cores()
    assert f", {cores} thread{'s' if cores > 1 else ''}," in capsys.readouterr().out
