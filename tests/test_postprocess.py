"""Post-processing of seeded dense outputs against the slow references, end to end."""

from typing import Any

import numpy as np
import pytest
import reference
from deployed import SCALES, Outputs, dense_outputs, describe, locations
from numpy.typing import NDArray

from boxseg.errors import FileMismatchError
from boxseg.runtime import _native
from boxseg.runtime.metadata import Metadata
from boxseg.runtime.postprocess import CANDIDATE, Postprocessor
from boxseg.runtime.preprocess import Fit, Letterbox, plan_letterbox


def _scan(metadata: Metadata, outputs: Outputs, plan: Letterbox) -> NDArray[np.void]:
    model = _native.make_model(
        len(metadata.classes),
        metadata.strides,
        SCALES,
        4,
        8,
        (6, 1),
        1,
        ("sqrt_cls_quality", "cls").index(metadata.score0),
        0,
        metadata.candidate_score,
        metadata.nms_iou,
        metadata.candidates,
        metadata.max_det,
    )
    found = np.zeros(metadata.candidates, CANDIDATE)
    n = _native.scan_dense(
        model,
        outputs["class_logits"],
        outputs["quality_logits"],
        outputs["boxes"],
        plan.as_tuple(),
        np.empty(_native.scan_scratch_size(model), np.uint8),
        found,
    )
    return found[:n]


def _slow_candidates(
    metadata: Metadata, outputs: Outputs, plan: Letterbox
) -> list[tuple[float, int]]:
    quality = outputs["quality_logits"][0] if metadata.score0 == "sqrt_cls_quality" else None
    return reference.candidates(
        outputs["class_logits"][0],
        quality,
        outputs["boxes"][0],
        content=(plan.content_height, plan.content_width),
        candidate_score=metadata.candidate_score,
        best=metadata.candidates,
    )


# ------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("rule", ["sqrt_cls_quality", "cls"])
@pytest.mark.parametrize("best", [1, 2, 7, 100, 5000])
def test_the_best_candidates_are_those_of_a_full_sort(rule: str, best: int) -> None:
    metadata = Metadata.from_dict(
        describe(scores__score0=rule, nms__candidates=best, nms__max_det=1)
    )
    plan = plan_letterbox(metadata.imgsz, 60, 130)
    for seed in range(5):
        outputs = dense_outputs(seed)
        slow = _slow_candidates(metadata, outputs, plan)
        found = _scan(metadata, outputs, plan)
        assert found["index"].tolist() == [index for _, index in slow]
        assert found["score0"].tolist() == [score for score, _ in slow]
        assert np.array_equal(found["slot"], found["index"] // 3)
        assert np.array_equal(found["class_index"], found["index"] % 3)
        places = np.array(locations(96, 160))[found["slot"]]
        assert np.array_equal(np.stack([found[k] for k in ("level", "x", "y")], 1), places)
        assert np.array_equal(found["box"], outputs["boxes"][0][found["slot"]])


def test_equal_scores_go_by_location_times_classes_plus_class() -> None:
    metadata = Metadata.from_dict(describe(nms__candidates=50, nms__max_det=1))
    outputs = dense_outputs(0)
    outputs["class_logits"][:] = 1
    outputs["quality_logits"][:] = 1
    found = _scan(metadata, outputs, plan_letterbox(Fit(96, 160), 96, 160))
    assert found["index"].tolist() == list(range(50))


def test_a_score_equal_to_the_limit_is_no_candidate() -> None:
    # sigmoid(0) = .5, sqrt(.5 * .5) = .5 exactly
    outputs = dense_outputs(0)
    outputs["class_logits"][:] = 0
    outputs["quality_logits"][:] = 0
    plan = plan_letterbox(Fit(96, 160), 96, 160)
    at = Metadata.from_dict(describe(scores__candidate_score=0.5))
    below = Metadata.from_dict(describe(scores__candidate_score=float(np.nextafter(0.5, 0))))
    assert len(_scan(at, outputs, plan)) == 0
    assert len(_scan(below, outputs, plan)) == 3 * len(locations(96, 160))


def test_bad_numbers_and_boxes_outside_the_frame_are_no_candidates() -> None:
    metadata = Metadata.from_dict(describe())
    outputs = dense_outputs(1)
    outputs["class_logits"][:] = 3
    outputs["quality_logits"][:] = 3
    boxes = outputs["boxes"][0]
    boxes[:] = (0, 0, 20, 20)
    boxes[0] = (np.nan, 0, 20, 20)
    boxes[1] = (0, 0, np.inf, 20)
    boxes[2] = (20, 0, 20, 20)
    boxes[3] = (0, 20, 20, 10)
    boxes[4] = (160, 0, 170, 20)
    boxes[5] = (0, -30, 20, 0)
    outputs["quality_logits"][0, 6] = np.nan
    outputs["quality_logits"][0, 7] = np.inf
    outputs["class_logits"][0, 8] = (np.nan, np.inf, -np.inf)
    found = _scan(metadata, outputs, plan_letterbox(Fit(96, 160), 96, 160))
    assert min(found["slot"]) == 9
    # a frame of 96 x 80 ends at 80
    boxes[9:] = (81, 0, 90, 20)
    assert len(_scan(metadata, outputs, plan_letterbox(Fit(96, 160), 96, 80))) == 0


def test_extreme_logits_score_one_and_nothing() -> None:
    metadata = Metadata.from_dict(describe(scores__candidate_score=0.0))
    outputs = dense_outputs(1)
    outputs["boxes"][:] = (0, 0, 20, 20)
    outputs["class_logits"][:] = -3e38
    outputs["quality_logits"][:] = 3e38
    outputs["class_logits"][0, 0, 0] = 3e38
    found = _scan(metadata, outputs, plan_letterbox(Fit(96, 160), 96, 160))
    assert found["score0"][0] == 1
    assert found["score0"][1:].max() < 1e-15


# -------------------------------------------------------------------------------- end to end


def _slow_instances(
    metadata: Metadata, outputs: Outputs, plan: Letterbox, conf: float
) -> list[dict[str, Any]]:
    """Everything after the graph, the slow way."""
    pairs = _slow_candidates(metadata, outputs, plan)
    classes = len(metadata.classes)
    slots = np.array([index // classes for _, index in pairs], int)
    boxes = outputs["boxes"][0][slots]
    kept = reference.nms(
        boxes,
        np.array([score for score, _ in pairs], np.float32),
        np.array([index % classes for _, index in pairs], int),
        iou_threshold=metadata.nms_iou,
        max_keep=metadata.max_det,
    )
    places = locations(plan.height, plan.width)
    frame, content = (
        (plan.frame_height, plan.frame_width),
        (plan.content_height, plan.content_width),
    )
    found = []
    for i in kept:
        level, x, y = places[slots[i]]
        logits = reference.mask_logits(
            outputs["parameters"][0][:, slots[i]],
            outputs["mask_features"][0],
            (x, y),
            SCALES[level],
            widths=(6, 1),
        )
        clipped = np.clip(boxes[i], 0, (content[1], content[0], content[1], content[0]))
        scale = np.array([frame[1] / content[1], frame[0] / content[0]] * 2)
        box = (clipped * scale).astype(np.float32)
        mask_score = reference.mask_score(logits, clipped)
        score0 = pairs[i][0]
        score = score0 if metadata.final_score == "score0" else (score0 * mask_score) ** 0.5
        if score > conf:
            surface = reference.frame_surface(logits, frame, content)
            found.append(
                {
                    "box": box,
                    "score": score,
                    "score0": score0,
                    "mask_score": mask_score,
                    "label": pairs[i][1] % classes,
                    "index": pairs[i][1],
                    "surface": surface,
                    "inside": reference.raster(box, *frame),
                }
            )
    found.sort(key=lambda entry: (-entry["score"], entry["index"]))
    return found


@pytest.mark.parametrize("final", ["score0", "sqrt_score0_mask"])
@pytest.mark.parametrize("frame", [(96, 160), (150, 200), (37, 300), (1, 1)])
def test_instances_equal_the_slow_path(final: str, frame: tuple[int, int]) -> None:
    metadata = Metadata.from_dict(describe(scores__final=final, nms__max_det=20))
    plan = plan_letterbox(metadata.imgsz, *frame)
    for seed, conf in ((0, 0.0), (1, 0.45)):
        outputs = dense_outputs(seed)
        slow = _slow_instances(metadata, outputs, plan, conf)
        found = Postprocessor(metadata, conf=conf)(outputs, plan)
        assert len(found) == len(slow)
        masks = found.dense()
        for i, entry in enumerate(slow):
            assert found.labels[i] == entry["label"]
            assert found.scores[i] == pytest.approx(entry["score"], abs=1e-6)
            assert found.score0[i] == pytest.approx(entry["score0"], abs=1e-7)
            assert found.mask_scores[i] == pytest.approx(entry["mask_score"], abs=1e-6)
            assert found.xyxy[i] == pytest.approx(entry["box"], abs=1e-4)
            expected = (entry["surface"] > 0) & entry["inside"]
            clear = np.abs(entry["surface"]) > 1e-4
            assert np.array_equal(masks[i][clear], expected[clear])
            assert found.areas[i] == masks[i].sum()


# ------------------------------------------------------------------------------------- topk


def _as_topk(metadata: Metadata, outputs: Outputs, plan: Letterbox, rows: int) -> dict[str, Any]:
    """What a graph of the form topk gives where another gives these outputs; rows shuffled."""
    found = _scan(metadata, outputs, plan)[:rows]
    order = np.random.default_rng(5).permutation(rows)
    slots = np.zeros(rows, int)
    slots[: len(found)] = found["slot"]
    padded = np.zeros(rows, CANDIDATE)  # rows behind the last candidate score nothing
    padded[: len(found)] = found
    padded = padded[order]
    return {
        "scores": padded["score0"][None],
        "labels": padded["class_index"].astype(np.int32)[None],
        "boxes": padded["box"][None],
        "locations": np.stack([padded["x"], padded["y"]], axis=1)[None],
        "levels": padded["level"].astype(np.int32)[None],
        "parameters": np.ascontiguousarray(outputs["parameters"][0][:, slots[order]].T)[None],
        "mask_features": outputs["mask_features"],
    }


@pytest.mark.parametrize("final", ["score0", "sqrt_score0_mask"])
def test_the_topk_form_answers_like_the_dense_one(final: str) -> None:
    dense = Metadata.from_dict(describe(scores__final=final))
    topk = Metadata.from_dict(describe(scores__final=final, form="topk"))
    posts = Postprocessor(dense, conf=0.2), Postprocessor(topk, conf=0.2)
    for seed, frame in enumerate([(96, 160), (150, 200), (37, 300)]):
        plan = plan_letterbox(dense.imgsz, *frame)
        outputs = dense_outputs(seed)
        for rows in (1000, 700):  # with and without padding
            chosen = _as_topk(dense, outputs, plan, rows)
            expected, found = posts[0](outputs, plan), posts[1](chosen, plan)
            assert len(found) > 0
            assert found.counts == expected.counts
            assert np.array_equal(found.scores, expected.scores)
            assert np.array_equal(found.labels, expected.labels)
            assert np.array_equal(found.xyxy, expected.xyxy)


def _as_graph(metadata: Metadata, topk: dict[str, Any]) -> dict[str, Any]:
    """What a graph of the form graph gives where another of the form topk gives these outputs."""
    scales = metadata.head.coordinate_scales
    logits = [
        reference.mask_logits(
            topk["parameters"][0, k],
            topk["mask_features"][0],
            topk["locations"][0, k],
            scales[n],
            widths=metadata.head.layer_widths,
        )
        for k, n in enumerate(topk["levels"][0])
    ]
    rows = {name: value for name, value in topk.items() if name != "parameters"}
    return {**rows, "mask_logits": np.stack(logits)[None].astype(np.float32)}


@pytest.mark.parametrize("final", ["score0", "sqrt_score0_mask"])
def test_the_form_graph_answers_like_the_form_topk(final: str) -> None:
    topk = Metadata.from_dict(describe(scores__final=final, form="topk"))
    graph = Metadata.from_dict(describe(scores__final=final, form="graph"))
    for seed, frame in enumerate([(96, 160), (150, 200), (37, 300)]):
        plan = plan_letterbox(topk.imgsz, *frame)
        chosen = _as_topk(Metadata.from_dict(describe()), dense_outputs(seed), plan, 60)
        expected = Postprocessor(topk, conf=0.2)(chosen, plan)
        found = Postprocessor(graph, conf=0.2)(_as_graph(topk, chosen), plan)
        assert len(found) == len(expected) > 0
        assert np.array_equal(found.xyxy, expected.xyxy)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        # the reference rounds its logits elsewhere, so a pixel on an edge may differ
        assert (found.dense() != expected.dense()).sum() <= 3


def test_mask_logits_that_are_no_numbers_are_off() -> None:
    metadata = Metadata.from_dict(describe(form="graph"))
    plan = plan_letterbox(metadata.imgsz, 96, 160)
    rows = {
        "scores": np.array([[0.9, 0.8]], np.float32),
        "labels": np.zeros((1, 2), np.int32),
        "boxes": np.array([[[0, 0, 16, 16], [64, 0, 96, 32]]], np.float32),
        "locations": np.array([[[4, 4], [68, 4]]], np.float32),
        "levels": np.zeros((1, 2), np.int32),
        "mask_logits": np.full((1, 2, 12, 20), np.nan, np.float32),
    }
    rows["mask_logits"][0, 1] = np.inf
    assert Postprocessor(metadata)(rows, plan).areas.tolist() == [0, 32 * 32]
    rows["mask_logits"] = rows["mask_logits"][:, :1]
    with pytest.raises(
        FileMismatchError, match=r"output mask_logits must be float32 \(1, 2, 12, 20"
    ):
        Postprocessor(metadata)(rows, plan)


def test_bad_topk_outputs_are_named() -> None:
    dense = Metadata.from_dict(describe())
    plan = plan_letterbox(dense.imgsz, 96, 160)
    post = Postprocessor(Metadata.from_dict(describe(form="topk")))
    outputs = _as_topk(dense, dense_outputs(0), plan, 50)
    assert len(post(outputs, plan)) > 0
    with pytest.raises(FileMismatchError, match="the graph has no output scores"):
        post({}, plan)
    with pytest.raises(FileMismatchError, match=r"labels must be int32 \(1, 50\).*got int64"):
        post({**outputs, "labels": outputs["labels"].astype(np.int64)}, plan)
    with pytest.raises(FileMismatchError, match=r"boxes must be float32 \(1, 50, 4\)"):
        post({**outputs, "boxes": outputs["boxes"][:, :9]}, plan)
    for name, value in (("labels", 3), ("labels", -1), ("levels", 5)):
        with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
            post({**outputs, name: np.full_like(outputs[name], value)}, plan)


def test_no_candidate_gives_no_instance() -> None:
    outputs = dense_outputs(0)
    outputs["class_logits"][:] = -20
    found = Postprocessor(Metadata.from_dict(describe()))(
        outputs, plan_letterbox(Fit(96, 160), 50, 50)
    )
    assert len(found) == 0
    assert found.dense().shape == (0, 50, 50)


def test_frames_of_changing_size_do_not_disturb_one_another() -> None:
    metadata = Metadata.from_dict(describe())
    kept = Postprocessor(metadata, conf=0.3)
    outputs = dense_outputs(2)
    for frame in ((96, 160), (400, 300), (20, 30), (400, 300), (96, 160)):
        plan = plan_letterbox(metadata.imgsz, *frame)
        fresh = Postprocessor(metadata, conf=0.3)(outputs, plan)
        again = kept(outputs, plan)
        assert again.counts == fresh.counts
        assert np.array_equal(again.xyxy, fresh.xyxy)


def test_options_of_the_call_go_before_the_files() -> None:
    metadata = Metadata.from_dict(describe())
    plan = plan_letterbox(metadata.imgsz, 96, 160)
    outputs = dense_outputs(3)
    everything = Postprocessor(metadata, conf=0.0)(outputs, plan)
    assert len(Postprocessor(metadata, conf=0.0, max_det=3)(outputs, plan)) == 3
    strict = Postprocessor(metadata, conf=0.0, iou=0.1)(outputs, plan)
    assert 0 < len(strict) < len(everything)
    confident = Postprocessor(metadata, conf=0.5)(outputs, plan)
    assert len(confident) == (everything.scores > 0.5).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": 1.5}, r"conf must be in \[0, 1\], got 1.5"),
        ({"conf": float("nan")}, "conf must be in"),
        ({"iou": -0.1}, r"iou must be in \[0, 1\], got -0.1"),
        ({"max_det": 0}, r"max_det must be in 1\.\.1000"),
        ({"max_det": 1001}, r"max_det must be in 1\.\.1000"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Postprocessor(Metadata.from_dict(describe()), **options)


def test_outputs_that_do_not_fit_the_metadata_are_named() -> None:
    post = Postprocessor(Metadata.from_dict(describe()))
    plan = plan_letterbox(Fit(96, 160), 96, 160)
    outputs = dense_outputs(0)
    with pytest.raises(FileMismatchError, match="no output parameters; it has boxes"):
        post({name: values for name, values in outputs.items() if name != "parameters"}, plan)
    with pytest.raises(FileMismatchError, match=r"output boxes must be float32 \(1, 323, 4\)"):
        post({**outputs, "boxes": outputs["boxes"][:, :-1]}, plan)
    with pytest.raises(FileMismatchError, match="got float64"):
        post({**outputs, "boxes": outputs["boxes"].astype(np.float64)}, plan)


def test_random_bits_never_crash() -> None:
    metadata = Metadata.from_dict(describe(scores__candidate_score=0.0, nms__max_det=50))
    rng = np.random.default_rng(11)
    post = Postprocessor(metadata, conf=0.0)
    for seed in range(20):
        outputs = dense_outputs(seed)
        for values in outputs.values():
            spoilt = rng.random(values.shape) < 0.2
            bits = rng.integers(0, 2**32, values.shape, np.uint32).view(np.float32)
            values[spoilt] = bits[spoilt]
        found = post(outputs, plan_letterbox(metadata.imgsz, *rng.integers(1, 300, 2).tolist()))
        assert np.isfinite(found.xyxy).all()
        assert np.isfinite(found.scores).all()
        assert np.array_equal(found.dense().sum(axis=(1, 2)), found.areas)
