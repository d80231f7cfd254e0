"""Reports: metrics.csv, curves, pictures and the lines of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console

from boxseg.runtime.accuracy import Accuracy, AveragePrecision
from boxseg.runtime.detections import Detections
from boxseg.train.reports import (
    LOG_EVERY,
    MetricsFile,
    Reports,
    StepReport,
    draw_curves,
    draw_predictions,
    duration,
)


def report(step: int, loss: float) -> StepReport:
    return StepReport(
        step=step,
        epoch=step / 10,
        losses={"focal": loss, "giou": 2.0},
        learning_rate=0.01,
        data_seconds=0.5,
        step_seconds=1.5,
    )


def accuracy(*, masks: bool) -> Accuracy:
    numbers = AveragePrecision(0.5, 0.75, 0.25, None, 0.4, 0.6, 0.55, {"thing": 0.5})
    return Accuracy(
        box=numbers,
        mask=numbers if masks else None,
        filled_boxes=None,
        tightness=0.9,
        images=2,
        objects=3,
        detections=4,
        notes=() if masks else ("mask AP: no masks in val.json",),
        results=[],
    )


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def lines_of(text: io.StringIO) -> list[str]:
    return text.getvalue().splitlines()


def open_reports(folder: Path, text: io.StringIO, *, first_step: int = 0) -> Reports:
    return Reports(
        folder,
        first_step=first_step,
        last_step=2 * LOG_EVERY,
        console=Console(file=text, width=400, highlight=False),
    )


def test_a_span_of_time_is_readable() -> None:
    spans = [duration(value) for value in (0.4, 89, 91, 3600, 5400, 11100)]
    assert spans == ["0 s", "89 s", "2 min", "60 min", "1 h 30 min", "3 h 05 min"]


def test_columns_are_added_and_old_rows_keep_their_values(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", keep_until=0)
    metrics.append({"step": 1, "loss": 3.5})
    metrics.append({"step": 2, "box_AP": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,box_AP\n1,3.5,\n2,,0.5\n"


def test_rows_after_the_resumed_step_and_torn_rows_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n20,1\n40,2\n60,3\n8")
    MetricsFile(path, keep_until=40)
    assert path.read_text() == "step,loss\n20,1\n40,2\n"


def test_a_row_averages_the_steps_since_the_last(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        for step in range(1, LOG_EVERY + 1):
            # mean of 1..20 is 10.5
            reports.step(report(step, loss=float(step)))
    header, row = (tmp_path / "metrics.csv").read_text().splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert (values["step"], values["phase"]) == (str(LOG_EVERY), "train")
    assert (values["loss_focal"], values["loss_giou"], values["loss"]) == ("10.5", "2", "12.5")
    assert (values["data_seconds"], values["step_seconds"]) == ("0.5", "1.5")
    (line,) = lines_of(text)
    for part in (f"step {LOG_EVERY}/{2 * LOG_EVERY}", "focal 10.500", "lr 1.00e-02", "ETA"):
        assert part in line


def test_a_validation_is_printed_recorded_and_drawn(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        reports.step(report(LOG_EVERY, loss=1.0))
        reports.validation(LOG_EVERY, accuracy(masks=True), score=0.45, improved=True)
    rows = MetricsFile(tmp_path / "metrics.csv", keep_until=1000).rows()
    assert (rows[1]["phase"], rows[1]["box_AP"], rows[1]["mask_AP75"]) == (
        "validation",
        "0.5",
        "0.25",
    )
    assert (rows[1]["tightness"], rows[1]["score"], rows[1]["loss"]) == ("0.9", "0.45", "")
    assert "best so far" in text.getvalue()
    assert size_of(tmp_path / "curves.png")[0] > 500
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_masks_the_report_says_so(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        reports.validation(1, accuracy(masks=False), score=0.45, improved=False)
    assert "mask AP: no masks in val.json" in text.getvalue()
    assert "best so far" not in text.getvalue()


def test_a_terminal_gets_one_live_block(tmp_path: Path) -> None:
    text = io.StringIO()
    reports = Reports(
        tmp_path,
        first_step=0,
        last_step=40,
        console=Console(file=text, width=200, force_terminal=True),
    )
    with reports:
        reports.step(report(1, loss=1.0))
    assert "1/40" in text.getvalue()
    assert "focal 1.000" in text.getvalue()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    text = io.StringIO()
    reports = Reports(
        tmp_path, first_step=0, last_step=5, console=Console(file=text), enabled=False
    )
    with reports:
        reports.step(report(LOG_EVERY, loss=1.0))
        reports.validation(1, accuracy(masks=True), score=0.1, improved=True)
        reports.note("hello")
        reports.finish()
    assert text.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_curves_of_no_rows_are_an_empty_picture(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png")[0] > 500


def one_box(_: npt.NDArray[np.uint8]) -> Detections:
    """Answer every frame with one filled box."""
    mask = np.zeros((24, 32), dtype=np.uint8, order="F")
    mask[3:13, 2:12] = 1
    score = np.array([0.9], dtype=np.float32)
    return Detections(
        xyxy=np.array([[2, 3, 12, 13]], dtype=np.float32),
        scores=score,
        labels=np.array([0]),
        height=24,
        width=32,
        counts=(coco_mask.encode(mask)["counts"],),
        class_names=("thing",),
        category_ids=(7,),
        score0=score,
        mask_scores=score,
        areas=np.array([100]),
    )


@pytest.mark.parametrize("images", [0, 1, 3, 9])
def test_predictions_stand_beside_the_truth(tmp_path: Path, images: int) -> None:
    for index in range(images):
        Image.new("RGB", (32, 24), (index * 20, 90, 120)).save(tmp_path / f"{index}.png")
    content = {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(images)],
        "annotations": [
            {"id": index, "image_id": index, "category_id": 7, "bbox": [2, 3, 10, 10]}
            for index in range(images)
        ],
        "categories": [{"id": 7, "name": "thing"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    draw_predictions(one_box, tmp_path / "val.json", tmp_path, tmp_path / "p.png")
    if images == 0:
        assert not (tmp_path / "p.png").exists()
        return
    width, height = size_of(tmp_path / "p.png")
    # two pictures of 480 per image, two images per row
    assert width > 2 * 480 * min(2, images)
    assert height > 360 * ((min(images, 6) + 1) // 2)


def test_diagnostics_are_averaged_over_the_steps_that_have_them(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        for step in range(1, LOG_EVERY + 1):
            told = {"pseudo_quality": 0.8} if step > 10 else {}
            if step == LOG_EVERY:
                told["ema_distance"] = 0.125
            reports.step(replace(report(step, 1.0), diagnostics=told))
    row = MetricsFile(tmp_path / "metrics.csv", keep_until=99).rows()[0]
    assert float(row["pseudo_quality"]) == pytest.approx(0.8)
    assert row["ema_distance"] == "0.125"
    assert "look:" not in text.getvalue()


def said_of(folder: Path, values: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what is said of diagnostics, one mapping per step of a run of 40."""
    text = io.StringIO()
    with open_reports(folder, text) as reports:
        for step, told in enumerate(values, start=1):
            reports.step(replace(report(step, 1.0), diagnostics=told))
    return [line for line in lines_of(text) if line.startswith("look:")]


def test_a_diagnostic_that_shows_trouble_is_said_once(tmp_path: Path) -> None:
    assert said_of(tmp_path, [{"pseudo_share": 0.04}] * 40) == [
        "look: only 4% of the boxes have a pseudo mask: the teacher scores too low; give it a "
        "later start (teacher.start) or the run more steps"
    ]


def test_a_new_teacher_and_a_new_bank_are_given_time(tmp_path: Path) -> None:
    # A twentieth of 40 steps are 2, a fifth are 8. In step 20 the teacher is 1 step old.
    nothing: list[Mapping[str, float]] = [{}] * 18
    new = {"pseudo_share": 0.04, "pseudo_quality": 0.1, "bank_fill": 0.0}
    assert said_of(tmp_path / "a", [*nothing, new, new]) == []
    assert len(said_of(tmp_path / "b", [*nothing[:17], new, new, new])) == 2  # the bank has time
    good = {"pseudo_share": 0.9, "pseudo_quality": 0.8, "bank_fill": 0.5}
    assert said_of(tmp_path / "c", [*nothing, new, new, *[good] * 20]) == []
    assert len(said_of(tmp_path / "d", [*nothing, *[new] * 22])) == 3


@pytest.mark.parametrize(
    ("column", "fine", "wrong", "words"),
    [
        ("pseudo_share", 0.11, 0.09, "only 9% of the boxes have a pseudo mask"),
        ("pseudo_quality", 0.31, 0.29, "a mean quality of 0.29"),
        ("bank_fill", 0.0125, 0.0, "the memory bank is empty"),
        ("bank_age", 10.0, 12.0, "on average 30% of the run old"),  # of 40 steps
        ("ema_distance", 0.29, 0.31, "31% away from the student's"),
        ("depth_edge_share", 0.06, 0.04, "only 4.0% of neighbouring cells are of like depth"),
        ("depth_logit_max", 199.0, 201.0, "mask logits reach 201"),
    ],
)
def test_every_diagnostic_has_a_sentence_for_trouble_and_none_without(
    tmp_path: Path, column: str, fine: float, wrong: float, words: str
) -> None:
    assert said_of(tmp_path / "fine", [{column: fine}] * 40) == []
    (line,) = said_of(tmp_path / "wrong", [{column: wrong}] * 40)
    assert words in line


def test_masks_that_do_not_reach_their_boxes_are_told(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        for tightness in (None, 0.5, 0.44, 0.44):
            loose = replace(accuracy(masks=False), tightness=tightness)
            reports.validation(20, loose, score=0.1, improved=False)
    said = [line for line in lines_of(text) if line.startswith("look:")]
    assert len(said) == 1
    assert "do not reach the sides of their boxes (tightness 44%)" in said[0]


def test_the_accuracy_of_other_weights_stands_beside(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_reports(tmp_path, text) as reports:
        reports.validation(
            40,
            accuracy(masks=True),
            score=0.4,
            improved=False,
            beside={"student": accuracy(masks=False)},
        )
    row = MetricsFile(tmp_path / "metrics.csv", keep_until=99).rows()[0]
    assert row["mask_AP"] == row["student_box_AP"] == "0.5"
    assert "student_mask_AP" not in row
    assert "  student:" in lines_of(text)
