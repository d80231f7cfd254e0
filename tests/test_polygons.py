"""Outlines from the C library: contours of surfaces and edges of pixels."""

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from boxseg.runtime import _native
from boxseg.runtime.preprocess import Fit, Letterbox, plan_letterbox

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]


def _split(found: tuple[bytes, bytes]) -> list[Floats]:
    points = np.frombuffer(found[0], np.float32).reshape(-1, 2)
    ends = np.frombuffer(found[1], np.uint32).astype(int)
    assert (ends[-1] if len(ends) else 0) == len(points)
    return np.split(points, ends)[:-1]


def _contours(logits: Floats, plan: Letterbox, box: Box, stride: int = 8) -> list[Floats]:
    rows, columns = logits.shape
    region = (0, 0, columns, rows)
    surface = np.ascontiguousarray(logits.T)
    return _split(
        _native.surface_polygons(surface, region, rows, columns, stride, plan.as_tuple(), box)
    )


def _outlines(mask: NDArray[np.bool_]) -> list[Floats]:
    text = _native.rle_encode(np.ascontiguousarray(mask).view(np.uint8))
    return _split(_native.rle_polygons(text, *mask.shape))


def _area(ring: Floats) -> float:
    """The signed area by the shoelace formula."""
    x, y = ring.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _inside(rings: list[Floats], x: Floats, y: Floats) -> NDArray[np.bool_]:
    """The even-odd rule at points, (n,)."""
    odd = np.zeros(len(x), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                spans = (y >= min(y0, y1)) & (y < max(y0, y1))
                odd ^= spans & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def _same_size(height: int, width: int) -> Letterbox:
    return Letterbox(height, width, height, width, height, width)


# ------------------------------------------------------------------------------------ contours


def test_a_hand_worked_contour() -> None:
    # cells at 4, 12, 20; only the middle one is on, with 1 against -1: zero half way, at 8 and 16
    logits = np.full((3, 3), -1, np.float32)
    logits[1, 1] = 1
    (ring,) = _contours(logits, _same_size(24, 24), (0, 0, 24, 24))
    assert ring.tolist() == [[8, 12], [12, 8], [16, 12], [12, 16]]
    assert _area(ring) == 32


def test_a_contour_is_cut_at_the_box() -> None:
    logits = np.ones((3, 3), np.float32)
    (ring,) = _contours(logits, _same_size(24, 24), (2, 3, 21, 23))
    assert sorted(map(tuple, ring.tolist())) == [(2, 3), (2, 23), (21, 3), (21, 23)]
    assert _area(ring) == 19 * 20


def test_a_hole_in_a_contour_runs_the_other_way() -> None:
    logits = np.ones((3, 3), np.float32)
    logits[1, 1] = -1
    outer, hole = sorted(_contours(logits, _same_size(24, 24), (0, 0, 24, 24)), key=len)
    if _area(outer) < 0:
        outer, hole = hole, outer
    assert _area(outer) == 24 * 24
    assert _area(hole) == -32


@pytest.mark.parametrize(("diagonal", "rings"), [(3, 1), (0.5, 2)])
def test_the_saddle_decides_what_is_joined(diagonal: float, rings: int) -> None:
    # on cells d on one diagonal, -1 on the other: the saddle is (d * d - 1) / (2 d + 2)
    logits = np.array([[diagonal, -1], [-1, diagonal]], np.float32)
    assert len(_contours(logits, _same_size(16, 16), (0, 0, 16, 16))) == rings


def test_nothing_on_has_no_contour() -> None:
    logits = np.full((3, 3), -1, np.float32)
    assert _contours(logits, _same_size(24, 24), (0, 0, 24, 24)) == []
    assert _contours(np.full((3, 3), np.nan, np.float32), _same_size(24, 24), (0, 0, 24, 24)) == []


def test_contours_enclose_the_mask() -> None:
    """Between the lines of the grid the contour is straight where the surface's is a hyperbola, so
    pixels may differ near it only: fewer than 4 % of the mask here, none where |logit| is large."""
    rng = np.random.default_rng(2)
    for _ in range(25):
        height, width = rng.integers(40, 200, 2).tolist()
        plan = plan_letterbox(Fit(96, 128), height, width)
        coarse = np.pad(rng.normal(0, 4, (4, 5)), 1, mode="edge")
        x, y = np.arange(128) / 128 * 40, np.arange(96) / 96 * 32
        logits = reference.surface(coarse, x[4::8], y[4::8]).astype(np.float32)
        box = (0.0, 0.0, float(width), float(height))
        if rng.random() < 0.5:
            corner = rng.uniform(0, 0.5, 2) * (width, height)
            box = (*corner.tolist(), *(corner + rng.uniform(0.1, 0.5, 2) * (width, height)))
        rings = _contours(logits, plan, box)
        exact = reference.frame_surface(
            logits, (height, width), (plan.content_height, plan.content_width)
        )
        inside = np.zeros((height, width), bool)
        columns = (np.arange(width) + 0.5 > box[0]) & (np.arange(width) + 0.5 < box[2])
        lines = (np.arange(height) + 0.5 > box[1]) & (np.arange(height) + 0.5 < box[3])
        inside[np.ix_(lines, columns)] = True
        v, u = np.nonzero(inside)
        found = np.zeros_like(inside)
        found[v, u] = _inside(rings, u + np.float32(0.5), v + np.float32(0.5))
        wrong = found != ((exact > 0) & inside)
        assert wrong.sum() <= 0.04 * max(25, ((exact > 0) & inside).sum())
        assert np.abs(exact[wrong]).max(initial=0) < 1
        area = sum(map(_area, rings))
        assert area == pytest.approx(found.sum(), abs=0.02 * height * width + 20)


def test_contours_of_noise_are_closed_and_disjoint() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        rows, columns = rng.integers(1, 20, 2).tolist()
        logits = rng.normal(0, 1, (rows, columns)).astype(np.float32)
        plan = _same_size(8 * rows, 8 * columns)
        rings = _contours(logits, plan, (0, 0, 8 * columns, 8 * rows))
        # a point on a line through the cells, or on the frame's edge, belongs to one ring only
        points = np.concatenate([*rings, np.zeros((0, 2), np.float32)])
        for ring in rings:
            assert len(ring) >= 3
            assert not (ring == np.roll(ring, 1, axis=0)).all(axis=1).any()
        inner = ((points > 0) & (points < (8 * columns, 8 * rows))).all(axis=1)
        assert len(np.unique(points[inner], axis=0)) >= inner.sum() - 2
        y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) * 8 + 4
        found = _inside(rings, x.astype(np.float32), y.astype(np.float32))
        clear = np.abs(logits.ravel()) > 1e-4
        assert np.array_equal(found[clear], (logits.ravel() > 0)[clear])


def test_boxes_and_regions_that_do_not_fit_are_refused() -> None:
    logits = np.ones((3, 3), np.float32)
    plan = _same_size(24, 24).as_tuple()
    for box in [(5, 5, 5, 9), (0, 0, 25, 9), (-1, 0, 5, 5), (np.nan, 0, 5, 5)]:
        with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
            _native.surface_polygons(logits, (0, 0, 3, 3), 3, 3, 8, plan, box)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _native.surface_polygons(logits[:2].copy(), (1, 0, 3, 3), 3, 3, 8, plan, (0, 0, 24, 24))


# --------------------------------------------------------------------------------- pixel edges


def test_a_hand_worked_outline() -> None:
    mask = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], bool)
    (ring,) = _outlines(mask)
    assert ring.tolist() == [[1, 1], [3, 1], [3, 2], [2, 2], [2, 3], [1, 3]]


def test_outlines_enclose_exactly_the_pixels() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9, 1])
        rings = _outlines(mask)
        assert sum(map(_area, rings)) == mask.sum()
        y, x = np.mgrid[0:height, 0:width].reshape(2, -1) + np.float32(0.5)
        found = _inside(rings, x, y)
        assert np.array_equal(found.reshape(mask.shape), mask)
        for ring in rings:
            steps = np.roll(ring, -1, axis=0) - ring
            # corners only: one coordinate moves, and never the same one twice
            assert ((steps != 0).sum(axis=1) == 1).all()
            assert ((steps != 0) != (np.roll(steps, 1, axis=0) != 0)).all()


def test_an_empty_mask_has_no_outline() -> None:
    assert _outlines(np.zeros((3, 4), bool)) == []


def test_malformed_text_has_no_outline() -> None:
    with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
        _native.rle_polygons(b"11", 3, 4)
