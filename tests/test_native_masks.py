"""The C mask head, cut, mask score and surface against slow references and released vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from boxseg.runtime import _native
from boxseg.runtime.postprocess import CANDIDATE, INSTANCE
from boxseg.runtime.preprocess import Fit, Letterbox, plan_letterbox

Floats = NDArray[np.float32]
Region = tuple[int, int, int, int]

SCALES = (64, 128, 256, 512, 1024)
VECTORS = Path(__file__).with_name("vectors.npz")


def _head(
    parameters: Floats,
    features: Floats,
    location: tuple[float, float],
    level: int,
    *,
    widths: tuple[int, ...] = (8, 8, 1),
    relative: int = 1,
    region: Region | None = None,
    by_slot: bool = True,
    slot: int = 0,
    simd: int = 0,
) -> Floats:
    """Run the C head; (h, w) of the region."""
    channels, rows, columns = features.shape
    model = _native.make_model(
        1, (8, 16, 32, 64, 128), SCALES, channels, 8, widths, relative, 0, 0, 0.2, 0.6, 10, 10, simd
    )
    candidate = np.zeros(1, CANDIDATE)
    candidate["slot"], candidate["level"] = slot, level
    candidate["x"], candidate["y"] = location
    region = region or (0, 0, columns, rows)
    logits = np.empty((region[2] - region[0], region[3] - region[1]), np.float32)
    _native.mask_head(
        model,
        parameters,
        features,
        parameters.shape[0 if by_slot else 1],
        by_slot,
        rows,
        columns,
        candidate,
        region,
        np.empty(_native.mask_head_scratch_size(model), np.uint8),
        logits,
    )
    return logits.T


@pytest.mark.parametrize("name", ["head233", "head169"])
def test_the_head_equals_the_released_vectors(name: str) -> None:
    vectors = np.load(VECTORS)
    parameters = vectors[f"{name}_params"]
    for i, expected in enumerate(vectors[f"{name}_logits"]):
        x, y = vectors[f"{name}_locations"][i].tolist()
        found = _head(
            parameters, vectors[f"{name}_features"], (x, y), vectors[f"{name}_levels"][i], slot=i
        )
        assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    ("channels", "widths", "relative"),
    [(8, (8, 8, 1), 1), (16, (8, 8, 1), 1), (5, (1,), 0), (3, (4, 1), 1), (20, (24, 2, 3, 1), 0)],
)
def test_any_plan_equals_the_slow_head(
    channels: int, widths: tuple[int, ...], relative: int
) -> None:
    rng = np.random.default_rng(channels)
    inputs, count = channels + 2 * relative, 0
    for width in widths:
        count += (inputs + 1) * width
        inputs = width
    parameters = rng.normal(0, 0.5, (count, 4)).astype(np.float32)
    features = rng.normal(0, 1, (channels, 9, 21)).astype(np.float32)
    for slot in range(4):
        slow = reference.mask_logits(
            parameters[:, slot],
            features,
            (36.0, 20.0),
            SCALES[slot],
            widths=widths,
            relative=bool(relative),
        )
        found = _head(
            parameters,
            features,
            (36.0, 20.0),
            slot,
            widths=widths,
            relative=relative,
            by_slot=False,
            slot=slot,
        )
        assert np.abs(found - slow).max() < 1e-5 * max(1, np.abs(slow).max())


@pytest.mark.parametrize(
    ("channels", "widths", "relative"),
    [(8, (8, 8, 1), 1), (16, (8, 8, 1), 1), (5, (1,), 0), (3, (4, 1), 1), (20, (24, 2, 3, 1), 0)],
)
def test_the_head_has_the_same_bits_at_every_level(
    channels: int, widths: tuple[int, ...], relative: int
) -> None:
    rng = np.random.default_rng(channels)
    inputs, count = channels + 2 * relative, 0
    for width in widths:
        count += (inputs + 1) * width
        inputs = width
    parameters = rng.normal(0, 0.5, (3, count)).astype(np.float32)
    parameters[2, 0] = np.inf
    for rows, columns in [(1, 1), (2, 3), (5, 7), (33, 40)]:
        features = rng.normal(0, 1, (channels, rows, columns)).astype(np.float32)
        for slot in range(3):
            x0, y0 = int(rng.integers(columns)), int(rng.integers(rows))
            region = x0, y0, int(rng.integers(x0, columns)) + 1, int(rng.integers(y0, rows)) + 1
            plain, *others = (
                _head(
                    parameters,
                    features,
                    (36.0, 20.0),
                    1,
                    widths=widths,
                    relative=relative,
                    region=region,
                    slot=slot,
                    simd=level,
                )
                for level in range(1, 1 + len(_native.simd_levels()))
            )
            for other in others:
                assert np.array_equal(plain, other)


def test_a_region_has_the_bits_of_the_whole_grid() -> None:
    rng = np.random.default_rng(1)
    parameters = rng.normal(0, 1, (1, 169)).astype(np.float32)
    features = rng.normal(0, 1, (8, 20, 37)).astype(np.float32)
    whole = _head(parameters, features, (100.0, 60.0), 1)
    for region in [(0, 0, 37, 20), (3, 5, 4, 6), (7, 1, 30, 19), (36, 19, 37, 20)]:
        x0, y0, x1, y1 = region
        part = _head(parameters, features, (100.0, 60.0), 1, region=region)
        assert np.array_equal(part, whole[y0:y1, x0:x1])


def test_numbers_that_are_none_become_off() -> None:
    features = np.array([[[np.nan, np.inf, -np.inf, 2]]], np.float32)
    found = _head(np.array([[1, 0]], np.float32), features, (0, 0), 0, widths=(1,), relative=0)
    assert found.tolist() == [[np.float32(-1e30), np.float32(1e30), np.float32(-1e30), 2]]


def test_slots_and_regions_outside_are_refused() -> None:
    features, parameters = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _head(parameters, features, (0, 0), 0, widths=(1,), relative=0, slot=1)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _head(parameters, features, (0, 0), 0, widths=(1,), relative=0, region=(0, 0, 3, 2))
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _head(parameters, features, (0, 0), 5, widths=(1,), relative=0)


# ------------------------------------------------------------------------------------ the cut


def _same_size(height: int, width: int) -> Letterbox:
    return Letterbox(height, width, height, width, height, width)


def test_a_pixel_belongs_to_a_box_if_its_centre_does() -> None:
    # centres .5 .. 15.5: 2.5 <= c < 6.5 are pixels 2..5; 3.6 <= c < 7.4 are 4..6
    plan = _same_size(16, 32).as_tuple()
    input_box, frame_box, pixels, _ = _native.cut_box((2.5, 3.6, 6.5, 7.4), plan, 8)
    assert pixels == (2, 4, 6, 7)
    assert frame_box == input_box


def test_a_box_without_a_centre_takes_the_nearest_pixel() -> None:
    plan = _same_size(16, 32).as_tuple()
    assert _native.cut_box((2.6, 3.6, 3.4, 9.4), plan, 8)[2] == (3, 4, 4, 9)
    assert _native.cut_box((31.9, 15.7, 32.0, 16.0), plan, 8)[2] == (31, 15, 32, 16)


def test_a_box_is_clipped_to_the_content_and_scaled_per_axis() -> None:
    # content 20 x 40 of a 10 x 80 frame: x doubles, y halves
    plan = Letterbox(10, 80, 20, 40, 32, 64)
    input_box, frame_box, pixels, cells = _native.cut_box((-5, 4, 50, 16), plan.as_tuple(), 8)
    assert list(input_box) == [0, 4, 40, 16]
    assert list(frame_box) == [0, 2, 80, 8]
    assert pixels == (0, 2, 80, 8)
    # cells at 4, 12, 20, 28: y from 4 to 16 lies between cells 0 and 2; x ends at 40, after cell 4
    assert cells == (0, 0, 6, 3)


def test_a_box_outside_the_content_is_refused() -> None:
    plan = Letterbox(10, 80, 20, 40, 32, 64).as_tuple()
    for box in [(41, 0, 50, 10), (0, 21, 5, 30), (-9, 0, 0, 5), (5, 5, 5, 9), (np.nan, 0, 5, 5)]:
        with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
            _native.cut_box(box, plan, 8)


def test_random_cuts_are_the_raster_rule_and_hold_their_cells() -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        height, width = rng.integers(1, 200, 2).tolist()
        plan = plan_letterbox(Fit(64, 96), height, width)
        corner = rng.uniform(-20, 90, 2)
        box = np.concatenate([corner, corner + rng.choice([0.05, 1, 30], 2)]).astype(np.float32)
        try:
            _, frame_box, pixels, cells = _native.cut_box(tuple(box.tolist()), plan.as_tuple(), 8)
        except ValueError:
            continue
        x0, y0, x1, y1 = pixels
        expected = reference.raster(np.array(frame_box), height, width)
        found = np.zeros((height, width), bool)
        found[y0:y1, x0:x1] = True
        assert np.array_equal(found, expected)
        assert 0 <= cells[0] < cells[2] <= 12
        assert 0 <= cells[1] < cells[3] <= 8


# -------------------------------------------------------------------------------- mask score


def _score(logits: Floats, box: tuple[float, float, float, float]) -> float:
    rows, columns = logits.shape
    return _native.mask_score(
        np.ascontiguousarray(logits.T), (0, 0, columns, rows), rows, columns, 8, box
    )


def test_the_mask_score_is_the_mean_probability_of_cells_that_are_on() -> None:
    # centres at 4 and 12; sigmoid(ln 3) = .75, sigmoid(0) is off, sigmoid(ln 4) = .8 is outside
    logits = np.array([[np.log(3), 0], [-1, np.log(4)]], np.float32)
    assert _score(logits, (0, 0, 12, 16)) == pytest.approx(0.75, abs=1e-7)
    assert _score(logits, (0, 0, 16, 16)) == pytest.approx((0.75 + 0.8) / 2, abs=1e-7)
    assert _score(-np.abs(logits), (0, 0, 16, 16)) == 0


def test_a_box_between_cells_asks_the_surface_at_its_centre() -> None:
    # centre (8, 4) lies half way between cells of logits 2 and 4: 3
    logits = np.array([[2, 4]], np.float32)
    assert _score(logits, (7, 3, 9, 5)) == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-7)
    assert _score(-logits, (7, 3, 9, 5)) == 0


def test_random_mask_scores_equal_the_slow_rule() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        logits = rng.normal(0, 6, rng.integers(1, 9, 2)).astype(np.float32)
        corner = rng.uniform(0, 40, 2)
        box = np.concatenate([corner, corner + rng.uniform(0.1, 30, 2)]).astype(np.float32)
        found = _score(logits, tuple(box.tolist()))
        assert found == pytest.approx(reference.mask_score(logits, box), abs=1e-6)


# ---------------------------------------------------------------------------------- surface


def _bytes_and_text(
    logits: Floats, plan: Letterbox, pixels: Region, region: Region | None = None
) -> tuple[NDArray[np.bool_], bytes, int]:
    """Pixels, text and area; bits and all levels must agree."""
    rows, columns = logits.shape
    x0, y0, x1, y1 = region or (0, 0, columns, rows)
    surface = np.ascontiguousarray(logits[y0:y1, x0:x1].T)
    args = (surface, (x0, y0, x1, y1), rows, columns, 8, plan.as_tuple(), pixels)
    scratch = np.empty(
        _native.surface_scratch_size(plan.frame_height, plan.frame_width, rows), np.uint8
    )
    height, width = pixels[3] - pixels[1], pixels[2] - pixels[0]
    results = []
    for level in range(1, 1 + len(_native.simd_levels())):
        out = np.full((height, width), 7, np.uint8)
        _native.surface_bytes(*args, scratch, out, level)
        bits = np.full((height, (width + 7) // 8), 7, np.uint8)
        _native.surface_bits(*args, scratch, bits, level)
        unpacked = np.unpackbits(bits, axis=1, bitorder="little")
        assert np.array_equal(unpacked[:, :width], out)
        assert not unpacked[:, width:].any()
        text = np.empty(_native.surface_text_size(plan.as_tuple(), rows), np.uint8)
        length, area = _native.surface_rle(*args, scratch, text, level)
        results.append((out, text[:length].tobytes(), area))
    for other in results[1:]:
        assert np.array_equal(results[0][0], other[0])
        assert results[0][1:] == other[1:]
    out, encoded, area = results[0]
    return out.view(np.bool_), encoded, area


def _float32_surface(logits: Floats, plan: Letterbox) -> Floats:
    """The defined arithmetic, pixel by pixel: weights rounded to float32, across, then down."""
    rows, columns = logits.shape

    def taps(side: int, content: int, cells: int) -> tuple[NDArray[np.intp], Floats]:
        position = (np.arange(side) + 0.5) * (content / side / 8) - 0.5
        position = np.clip(position, 0, cells - 1)
        lower = np.floor(position).astype(int)
        return lower, (position - lower).astype(np.float32)

    j, fx = taps(plan.frame_width, plan.content_width, columns)
    i, fy = taps(plan.frame_height, plan.content_height, rows)
    j2, i2 = np.minimum(j + 1, columns - 1), np.minimum(i + 1, rows - 1)
    across = logits[:, j] * (1 - fx) + logits[:, j2] * fx
    result: Floats = across[i] * (1 - fy)[:, None] + across[i2] * fy[:, None]
    return result


def _smooth(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Blobs of logits with some cells at exactly zero."""
    logits = rng.normal(0, 3, (rows, columns))
    logits += (
        6
        * np.kron(rng.normal(0, 1, (rows // 3 + 1, columns // 3 + 1)), np.ones((3, 3)))[
            :rows, :columns
        ]
    )
    logits[rng.random((rows, columns)) < 0.02] = 0
    return logits.astype(np.float32)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_masks_are_the_float32_surface_bit_for_bit_and_float64_away_from_zero(count: int) -> None:
    mask_coder = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(7)
    for number in range(count):
        height, width = rng.integers(1, 260 if number % 5 else 1500, 2).tolist()
        rows, columns = (12, 16) if number % 4 else (80, 100)
        plan = plan_letterbox(Fit(8 * rows, 8 * columns), height, width)
        logits = _smooth(rng, rows, columns)
        pixels = (0, 0, width, height)
        found, text, area = _bytes_and_text(logits, plan, pixels)
        assert np.array_equal(found, _float32_surface(logits, plan) > 0)
        exact = reference.frame_surface(
            logits, (height, width), (plan.content_height, plan.content_width)
        )
        clear = np.abs(exact) > 1e-4
        assert np.array_equal(found[clear], (exact > 0)[clear])
        assert area == found.sum()
        assert text == mask_coder.encode(np.asfortranarray(found.view(np.uint8)))["counts"]
        if number < 20:
            assert text == reference.run_text(reference.run_lengths(found))


@pytest.mark.parametrize(
    ("height", "width"), [(700, 1001), (512, 512), (1100, 333), (30000, 10), (9, 32768)]
)
def test_large_byte_masks_lie_anywhere_in_memory(height: int, width: int) -> None:
    # those are written in whole cache lines, and rows without a pixel that is on by themselves
    rows, columns = 40, 52
    plan = plan_letterbox(Fit(8 * rows, 8 * columns), height, width)
    scratch = np.empty(_native.surface_scratch_size(height, width, rows), np.uint8)
    blobs = [(0, 0, 3, 2), (38, 45, 40, 52), (17, 20, 23, 31), (12, 0, 13, 52), (0, 7, 40, 8)]
    for offset, blob in enumerate([*blobs, (0, 0, 40, 52), (0, 0, 0, 0)]):
        logits = np.full((rows, columns), -1, np.float32)
        logits[blob[0] : blob[2], blob[1] : blob[3]] = 1.5
        expected = _float32_surface(logits, plan) > 0
        args = (logits.T.copy(), (0, 0, columns, rows), rows, columns, 8, plan.as_tuple())
        for level in range(1, 1 + len(_native.simd_levels())):
            around = np.full(height * width + 200, 9, np.uint8)
            out = around[70 + 13 * offset % 64 :][: height * width]
            _native.surface_bytes(*args, (0, 0, width, height), scratch, out, level)
            assert np.array_equal(out.reshape(height, width), expected)
            assert np.count_nonzero(around == 9) == 200


def test_masks_equal_torch_interpolate_at_the_content_size() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    logits = _smooth(rng, 12, 16)
    plan = _same_size(96, 128)
    found, _, _ = _bytes_and_text(logits, plan, (0, 0, 128, 96))
    peer = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], size=(96, 128), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    clear = np.abs(peer) > 1e-4
    assert np.array_equal(found[clear], (peer > 0)[clear])


def test_a_cut_mask_is_the_whole_mask_inside_the_box() -> None:
    rng = np.random.default_rng(9)
    for _ in range(60):
        height, width = rng.integers(20, 200, 2).tolist()
        plan = plan_letterbox(Fit(96, 128), height, width)
        logits = _smooth(rng, 12, 16)
        corner = rng.uniform(0, 0.8, 2) * (plan.content_width, plan.content_height)
        box = (*corner.tolist(), *(corner + rng.uniform(0.2, 60, 2)).tolist())
        _, _, pixels, cells = _native.cut_box(box, plan.as_tuple(), 8)
        whole = _float32_surface(logits, plan) > 0
        x0, y0, x1, y1 = pixels
        expected = np.zeros_like(whole)
        expected[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
        found, text, area = _bytes_and_text(logits, plan, pixels, cells)
        assert np.array_equal(found, expected[y0:y1, x0:x1])
        assert text == reference.run_text(reference.run_lengths(expected))
        assert area == expected.sum()


def test_a_region_that_misses_a_needed_cell_is_refused() -> None:
    logits = np.ones((12, 16), np.float32)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _bytes_and_text(logits, _same_size(96, 128), (0, 0, 128, 96), (1, 0, 16, 12))
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _bytes_and_text(logits, _same_size(96, 128), (0, 0, 129, 96))


def test_text_that_does_not_fit_is_an_error() -> None:
    plan = _same_size(96, 128)
    scratch = np.empty(_native.surface_scratch_size(96, 128, 12), np.uint8)
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.surface_rle(
            np.tile(np.array([[1, -1]], np.float32), (16, 6)),
            (0, 0, 16, 12),
            12,
            16,
            8,
            plan.as_tuple(),
            (0, 0, 128, 96),
            scratch,
            bytearray(20),
        )


# ------------------------------------------------------------------------ limits and hostile input


def _masks(
    model: Any,
    parameters: Floats,
    features: Floats,
    plan: Letterbox,
    candidates: NDArray[np.void],
    **given: float,
) -> tuple[NDArray[np.void], list[bytes], bool]:
    scratch = np.empty(_native.masks_scratch_size(model, plan.as_tuple()), np.uint8)
    instances = np.zeros(len(candidates), INSTANCE)
    rows = features.shape[1]
    size = len(candidates) * _native.surface_text_size(plan.as_tuple(), rows)
    text = np.empty(size, np.uint8)
    n, _, complete = _native.masks(
        model,
        parameters,
        features,
        len(parameters),
        True,
        plan.as_tuple(),
        candidates,
        len(candidates),
        0.0,
        scratch,
        instances,
        text,
        *given.values(),
    )
    found = instances[:n]
    texts = [
        text[int(one["text_offset"]) : int(one["text_offset"] + one["text_length"])].tobytes()
        for one in found
    ]
    return found, texts, complete


def _frame(
    rng: np.random.Generator, count: int, simd: int = 0
) -> tuple[Any, Floats, Floats, Letterbox, NDArray[np.void]]:
    model = _native.make_model(
        3, (8, 16, 32, 64, 128), SCALES, 8, 8, (8, 8, 1), 1, 0, 1, 0.2, 0.6, 100, 100, simd
    )
    parameters = rng.normal(0, 0.7, (count, 169)).astype(np.float32)
    features = rng.normal(0, 1, (8, 12, 16)).astype(np.float32)
    candidates = np.zeros(count, CANDIDATE)
    corner = rng.uniform(0, 60, (count, 2))
    candidates["box"] = np.concatenate([corner, corner + rng.uniform(2, 50, (count, 2))], axis=1)
    candidates["score0"] = rng.uniform(0.3, 1, count)
    candidates["index"] = np.arange(count)
    candidates["slot"] = rng.permutation(count)
    candidates["level"] = rng.integers(0, 5, count)
    candidates["x"], candidates["y"] = (corner + 5).T
    return model, parameters, features, plan_letterbox(Fit(96, 128), 270, 360), candidates


def test_instances_are_the_same_bits_at_every_level() -> None:
    results = []
    for level in range(1, 1 + len(_native.simd_levels())):
        frame = _frame(np.random.default_rng(12), 60, level)
        results.append(_masks(*frame))
    assert len(results[0][0]) > 30
    for other in results[1:]:
        assert np.array_equal(results[0][0], other[0])
        assert results[0][1] == other[1]


def test_a_passed_deadline_gives_no_instance_and_is_not_complete() -> None:
    frame = _frame(np.random.default_rng(13), 20)
    found, texts, complete = _masks(*frame, budget_ms=0.0)
    assert (len(found), texts, complete) == (0, [], False)
    found, texts, complete = _masks(*frame, budget_ms=1e4)
    assert complete
    assert [texts, found["score"].tolist()] == [
        _masks(*frame)[1],
        _masks(*frame)[0]["score"].tolist(),
    ]


def test_numbers_that_are_none_and_boxes_that_are_none_give_codes_or_masks() -> None:
    rng = np.random.default_rng(14)
    for _ in range(200):
        model, parameters, features, plan, candidates = _frame(rng, 4)
        strange = np.array([np.nan, np.inf, -np.inf, 3e38, -1e-40, 0], np.float32)
        parameters[rng.random(parameters.shape) < 0.05] = rng.choice(strange)
        features[rng.random(features.shape) < 0.05] = rng.choice(strange)
        field = rng.choice(["none", "box", "score0", "slot", "level", "x"])
        if field in ("slot", "level"):
            candidates[field][1] = rng.choice([4, 5, 2**32 - 1])
        elif field != "none":
            candidates[field][1] = rng.choice(strange)
        try:
            found, texts, _ = _masks(model, parameters, features, plan, candidates)
        except ValueError as error:
            assert field in ("box", "slot", "level"), error  # noqa: PT017
            continue
        for one, text in zip(found, texts, strict=True):
            area, _ = _native.rle_measure(text, 270, 360)
            assert area == one["area"]


def test_surfaces_with_any_numbers_are_the_same_at_every_level() -> None:
    rng = np.random.default_rng(15)
    strange = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -1e-40, 0, -0.0], np.float32)
    for _ in range(100):
        rows, columns = rng.integers(1, 15, 2).tolist()
        logits = rng.normal(0, 1, (rows, columns)).astype(np.float32)
        here = rng.random(logits.shape) < 0.3
        logits[here] = rng.choice(strange, here.sum())
        height, width = rng.integers(1, 200, 2).tolist()
        plan = Letterbox(*_native.letterbox_fit(height, width, 8 * rows, 8 * columns))
        found, text, area = _bytes_and_text(logits, plan, (0, 0, width, height))
        assert area == found.sum()
        assert text == reference.run_text(reference.run_lengths(found))


def test_hostile_sizes_give_codes() -> None:
    rng = np.random.default_rng(16)
    logits, out, scratch = (
        np.ones(64, np.float32),
        np.empty(100, np.uint8),
        np.empty(9000, np.uint8),
    )
    sizes = [0, 1, 2, 7, 8, 9, 64, 32768, 32769, 2**31, 2**32 - 1]
    calls = (_native.surface_rle, _native.surface_bytes, _native.surface_bits)
    for _ in range(3000):
        region, pixels = (tuple(rng.choice(sizes[:7], 4).tolist()) for _ in range(2))
        rows, columns, stride = rng.choice(sizes, 3).tolist()
        plan = tuple(rng.choice(sizes, 6).tolist())
        for call in calls:
            try:
                call(logits, region, rows, columns, stride, plan, pixels, scratch, out, 0)
            except ValueError:
                continue
        try:
            _native.surface_polygons(logits, region, rows, columns, stride, plan, pixels)
        except ValueError:
            continue
    plan, args = _same_size(8, 8).as_tuple(), (logits, (0, 0, 1, 1), 1, 1, 8)
    for level in (-1, 4, 99):
        with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
            _native.surface_rle(*args, plan, (0, 0, 8, 8), scratch, out, level)
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.surface_bytes(*args, plan, (0, 0, 8, 8), scratch, out[:63])
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.surface_bits(*args, plan, (0, 0, 8, 8), scratch, out[:7])
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.surface_bits(*args, plan, (0, 0, 8, 8), scratch[:99], out)
