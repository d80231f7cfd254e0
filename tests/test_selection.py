"""The candidate scan and the two forms of selection, at every SIMD level, against slow rules."""

import math
from typing import Any

import numpy as np
import pytest
import reference
from deployed import SCALES, STRIDES, dense_outputs, locations
from numpy.typing import NDArray

from boxseg.runtime import _native
from boxseg.runtime.postprocess import CANDIDATE

Floats = NDArray[np.float32]
PLAN = (96, 160, 96, 160, 96, 160)
LEVELS = range(1, len(_native.simd_levels()) + 1)


def _model(
    classes: int = 3,
    *,
    rule: int = 0,
    score: float = 0.05**0.5,
    iou: float = 0.6,
    best: int = 1000,
    max_det: int = 100,
    level: int = 0,
) -> Any:
    return _native.make_model(
        classes, STRIDES, SCALES, 4, 8, (6, 1), 1, rule, 0, score, iou, best, max_det, level
    )


def _unaligned(values: Floats) -> Floats:
    """Copy to an address that is a multiple of 4 alone."""
    room = np.empty(values.size + 16, np.float32)
    start = next(i for i in range(16) if room[i:].ctypes.data % 64 == 4)
    copy = room[start : start + values.size].reshape(values.shape)
    copy[:] = values
    return copy


def _arrays(seed: int) -> tuple[Floats, Floats, Floats]:
    outputs = dense_outputs(seed)
    return outputs["class_logits"], outputs["quality_logits"], outputs["boxes"]


def _scan(
    model: Any, best: int, class_logits: Floats, quality: Floats | None, boxes: Floats
) -> Any:
    found = np.zeros(best, CANDIDATE)
    scratch = np.full(_native.scan_scratch_size(model), 255, np.uint8)
    n = _native.scan_dense(model, class_logits, quality, boxes, PLAN, scratch, found)
    return found[:n]


@pytest.mark.parametrize("classes", [1, 3, 7, 80])
@pytest.mark.parametrize(("rule", "score"), [(0, 0.05**0.5), (1, 0.05), (0, 0.0), (1, 0.9)])
def test_every_level_finds_the_pairs_of_the_slow_rule(
    classes: int, rule: int, score: float
) -> None:
    outputs = dense_outputs(classes, classes)
    logits, quality = _unaligned(outputs["class_logits"]), _unaligned(outputs["quality_logits"])
    rng = np.random.default_rng(classes)
    logits[rng.random(logits.shape) < 0.02] = np.nan
    logits[rng.random(logits.shape) < 0.02] = np.inf
    quality[rng.random(quality.shape) < 0.05] = np.nan
    logits[rng.random(logits.shape) < 0.05] = np.float32(1.5)  # equal scores
    for best in (10, 700, 40000):
        slow = reference.candidates(
            logits[0],
            quality[0] if rule == 0 else None,
            outputs["boxes"][0],
            content=(96, 160),
            candidate_score=score,
            best=best,
        )
        for level in LEVELS:
            model = _model(classes, rule=rule, score=score, best=best, max_det=1, level=level)
            found = _scan(model, best, logits, quality, outputs["boxes"])
            assert found["index"].tolist() == [index for _, index in slow]
            assert found["score0"].tolist() == [value for value, _ in slow]


def test_a_score_that_only_rounding_lifts_above_the_limit_is_found() -> None:
    # sigmoid(17.4) = 1 - 2.8e-8 rounds to 1 in float32, which is above .99999999
    logits = np.full((1, 323, 1), -5, np.float32)
    logits[0, 100] = 17.4
    boxes = np.tile(np.array([4, 4, 20, 20], np.float32), (1, 323, 1))
    for level in LEVELS:
        model = _model(1, rule=1, score=0.99999999, level=level)
        assert _scan(model, 1000, logits, None, boxes)["index"].tolist() == [100]


def test_levels_select_the_same_boxes_as_the_slow_rule() -> None:
    for seed in range(3):
        arrays = _arrays(seed)
        pairs = reference.candidates(
            arrays[0][0], arrays[1][0], arrays[2][0], content=(96, 160),
            candidate_score=0.05**0.5, best=1000,
        )  # fmt: skip
        index = np.array([i for _, i in pairs])
        kept = reference.nms(
            arrays[2][0][index // 3],
            np.array([s for s, _ in pairs], np.float32),
            index % 3,
            iou_threshold=0.6,
            max_keep=100,
        )
        for level in LEVELS:
            model = _model(level=level)
            out = np.zeros(100, CANDIDATE)
            scratch = np.full(_native.select_scratch_size(model), 255, np.uint8)
            n, complete = _native.select_dense(model, *arrays, PLAN, scratch, out)
            assert complete
            assert out["index"][:n].tolist() == index[kept].tolist()


# ------------------------------------------------------------------------------ the topk form


def _rows(found: NDArray[np.void], padding: int, seed: int) -> dict[str, NDArray[Any]]:
    """Give candidates as a graph does: in any order, with rows that do not count."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    rows = {
        "scores": found["score0"][order],
        "labels": found["class_index"][order].astype(np.int32),
        "boxes": found["box"][order],
        "locations": np.stack([found["x"], found["y"]], axis=1)[order],
        "levels": found["level"][order].astype(np.int32),
    }
    blank = {"scores": 0.1, "labels": -7, "boxes": math.nan, "locations": -1, "levels": 99}
    return {
        name: np.ascontiguousarray(
            np.concatenate([values, np.full((padding, *values.shape[1:]), blank[name])]),
            values.dtype,
        )
        for name, values in rows.items()
    }


def _select_topk(
    model: Any,
    rows: dict[str, NDArray[Any]],
    *,
    missing: int = 0,
    room: int = 100,
    budget_ms: float = math.inf,
) -> tuple[NDArray[np.void], bool]:
    """Select; `missing` bytes of scratch are left out."""
    out = np.zeros(room, CANDIDATE)
    n, complete = _native.select_topk(
        model,
        rows["scores"],
        rows["labels"],
        rows["boxes"],
        rows["locations"],
        rows["levels"],
        PLAN,
        np.full(_native.select_topk_scratch_size(model) - missing, 255, np.uint8),
        out,
        budget_ms,
    )
    return out[:n], complete


def test_both_forms_select_the_same_candidates() -> None:
    for seed in range(4):
        arrays = _arrays(seed)
        arrays[0][0, ::5] = 1  # equal scores, which the pair's index orders
        arrays[1][0, ::5] = 1
        model = _model()
        dense = np.zeros(100, CANDIDATE)
        scratch = np.empty(_native.select_scratch_size(model), np.uint8)
        n, _ = _native.select_dense(model, *arrays, PLAN, scratch, dense)
        rows = _rows(_scan(model, 1000, *arrays), 20, seed)
        for level in LEVELS:
            found, complete = _select_topk(_model(level=level), rows)
            assert complete
            for name in ("box", "score0", "class_index", "index", "level", "x", "y"):
                assert np.array_equal(found[name], dense[:n][name]), name
            assert np.array_equal(rows["boxes"][found["slot"]], found["box"])
            assert np.array_equal(rows["labels"][found["slot"]], found["class_index"])


def test_no_row_gives_no_candidate() -> None:
    rows = _rows(np.zeros(0, CANDIDATE), 5, 0)
    assert len(_select_topk(_model(), rows)[0]) == 0
    assert len(_select_topk(_model(), {k: v[:0] for k, v in rows.items()})[0]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", 3),
        ("labels", -1),
        ("levels", 5),
        ("levels", -1),
        ("locations", math.nan),
        ("locations", -4),
        ("locations", 5),  # no centre of a cell
        ("locations", 1e30),
        ("locations", 164),  # beyond the input
    ],
)
def test_a_row_that_points_nowhere_is_refused(name: str, value: float) -> None:
    found = _scan(_model(), 1000, *_arrays(1))
    rows = _rows(found[:10], 0, 0)
    rows[name][4] = value
    with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
        _select_topk(_model(), rows)


def test_rows_with_bad_boxes_or_scores_are_dropped() -> None:
    found = np.zeros(7, CANDIDATE)
    level, x, y = locations(96, 160)[40]
    found["level"], found["x"], found["y"] = level, x, y
    found["class_index"] = [0, 1, 2, 0, 1, 2, 0]
    found["box"] = [10, 10, 20, 20]
    found["score0"] = [0.9, math.nan, math.inf, 0.2, 0.8, 0.7, 0.6]
    found["box"][4] = [10, 10, math.nan, 20]
    found["box"][5] = [10, 10, 10, 20]
    found["box"][6] = [200, 10, 220, 20]
    rows = _rows(found, 0, 0)
    assert _select_topk(_model(), rows)[0]["index"].tolist() == [40 * 3]


def test_more_rows_than_candidates_are_refused() -> None:
    rows = _rows(np.zeros(0, CANDIDATE), 11, 0)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _select_topk(_model(best=10, max_det=10), rows)
    with pytest.raises(ValueError, match="labels must be int32"):
        _select_topk(_model(), {**rows, "labels": rows["labels"].astype(np.int64)})


# ------------------------------------------------------------------------------------ limits


def test_a_deadline_that_has_passed_ends_a_selection() -> None:
    arrays = _arrays(0)
    model = _model()
    scratch = np.empty(_native.select_scratch_size(model), np.uint8)
    out = np.zeros(100, CANDIDATE)
    assert _native.select_dense(model, *arrays, PLAN, scratch, out, 0.0) == (0, False)
    assert _native.select_dense(model, *arrays, PLAN, scratch, out, -5.0) == (0, False)
    n, complete = _native.select_dense(model, *arrays, PLAN, scratch, out, 60_000.0)
    assert (n > 0, complete) == (True, True)
    rows = _rows(_scan(model, 1000, *arrays), 0, 0)
    found, complete = _select_topk(model, rows, budget_ms=0)
    assert (len(found), complete) == (0, False)


def test_small_buffers_are_refused() -> None:
    arrays = _arrays(0)
    model = _model()
    out = np.zeros(100, CANDIDATE)
    size = _native.select_scratch_size(model)
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.select_dense(model, *arrays, PLAN, bytearray(size - 1), out)
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.select_dense(model, *arrays, PLAN, bytearray(size), out[:99])
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.scan_dense(model, *arrays, PLAN, bytearray(64), np.zeros(1000, CANDIDATE))
    rows = _rows(np.zeros(0, CANDIDATE), 3, 0)
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _select_topk(model, rows, missing=1)
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _select_topk(model, rows, room=99)
