"""Camera formats, float inputs and SIMD levels of the letterbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from tools import NATIVE, RUNTIME, SOURCES, require, run

from boxseg.runtime import _native
from boxseg.runtime.preprocess import (
    Colour,
    Fit,
    Letterbox,
    Letterboxer,
    YuvRule,
    letterbox,
    plan_letterbox,
    resize_bilinear,
)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

RGB, BGR, NV12, YUYV = 0, 1, 3, 4
PADDING = (124, 116, 104)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LEVELS = range(1, 1 + len(_native.simd_levels()))

# Kr, Kb, black level of Y, range of Y, range of U and V
RULES = [
    (0.299, 0.114, 16, 219, 224),
    (0.299, 0.114, 0, 255, 255),
    (0.2126, 0.0722, 16, 219, 224),
    (0.2126, 0.0722, 0, 255, 255),
]


def _noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _scratch(plan: Letterbox) -> Bytes:
    return np.empty(_native.letterbox_scratch_size(plan.as_tuple()), np.uint8)


def _bytes(
    frame: Bytes, plan: Letterbox, pixel_format: int = RGB, simd: int = 0, yuv: int = 0
) -> Bytes:
    out = np.empty((plan.height, plan.width, 3), np.uint8)
    where = plan.as_tuple()
    _native.letterbox_rgb8(frame, pixel_format, where, PADDING, _scratch(plan), out, simd, yuv)
    return out


def _floats(frame: Bytes, plan: Letterbox, pixel_format: int = RGB, simd: int = 0) -> Floats:
    out = np.empty((3, plan.height, plan.width), np.float32)
    where = plan.as_tuple()
    _native.letterbox_f32(frame, pixel_format, where, PADDING, MEAN, STD, _scratch(plan), out, simd)
    return out


def _sizes() -> list[tuple[int, int, int, int]]:
    """Frame and input sizes: random ones, narrow ones, exact halves, the same size."""
    rng = np.random.default_rng(1)
    random = [tuple(rng.integers(1, 200, 4).tolist()) for _ in range(25)]
    chosen = [(1, 1, 64, 64), (2, 3, 5, 40), (60, 80, 30, 40), (64, 66, 32, 33), (37, 53, 37, 53)]
    chosen += [(90, 2, 45, 1), (96, 320, 32, 107), (8, 1000, 4, 9), (300, 17, 64, 64)]
    return [*random, *chosen]


@pytest.mark.parametrize("simd", LEVELS)
def test_every_level_gives_the_plain_resize(simd: int) -> None:
    for seed, (height, width, new_height, new_width) in enumerate(_sizes()):
        frame = _noise(height, width, 3, seed=seed)
        plan = Letterbox(height, width, new_height, new_width, new_height + 3, new_width + 5)
        expected = np.empty((plan.height, plan.width, 3), np.uint8)
        expected[:] = PADDING
        expected[:new_height, :new_width] = resize_bilinear(frame, new_height, new_width)
        assert np.array_equal(_bytes(frame, plan, simd=simd), expected)
        bgr = np.ascontiguousarray(frame[:, :, ::-1])
        assert np.array_equal(_bytes(bgr, plan, BGR, simd), expected)
        gray = _bytes(frame[:, :, 0].copy(), plan, simd=simd)
        content = gray[:new_height, :new_width]
        assert np.array_equal(content, expected[:new_height, :new_width, :1].repeat(3, 2))


@pytest.mark.parametrize("simd", LEVELS)
def test_floats_are_the_normalised_bytes(simd: int) -> None:
    scale = np.float32(1) / np.array(STD, np.float32)
    for seed, (height, width, new_height, new_width) in enumerate(_sizes()):
        frame = _noise(height, width, 3, seed=seed)
        plan = Letterbox(height, width, new_height, new_width, new_height + 1, new_width + 9)
        whole = _bytes(frame, plan, BGR, simd).astype(np.float32)
        expected = ((whole - np.array(MEAN, np.float32)) * scale).transpose(2, 0, 1)
        assert np.array_equal(_floats(frame, plan, BGR, simd), expected)


def test_without_padding_the_rest_of_the_buffer_stays() -> None:
    plan = plan_letterbox(Fit(64, 96), 40, 80)
    frame = _noise(40, 80, 3)
    where, scratch = plan.as_tuple(), _scratch(plan)
    inside = np.zeros((64, 96), np.bool_)
    inside[: plan.content_height, : plan.content_width] = True
    out = np.full((64, 96, 3), 9, np.uint8)
    _native.letterbox_rgb8(frame, RGB, where, None, scratch, out)
    assert np.all(out[~inside] == 9)
    assert np.array_equal(out[inside], _bytes(frame, plan)[inside])
    floats = np.full((3, 64, 96), 9, np.float32)
    _native.letterbox_f32(frame, RGB, where, None, MEAN, STD, scratch, floats)
    assert np.all(floats[:, ~inside] == 9)
    assert np.array_equal(floats[:, inside], _floats(frame, plan)[:, inside])


def _rgb(luma: Bytes, u: Bytes, v: Bytes, rule: int) -> NDArray[np.float64]:
    """The formula of the header, unrounded, (H, W, 3)."""
    kr, kb, black, luma_range, chroma_range = RULES[rule]
    y = (luma.astype(np.float64) - black) * 255 / luma_range
    cb = (u.astype(np.float64) - 128) * 255 / chroma_range * (2 - 2 * kb)
    cr = (v.astype(np.float64) - 128) * 255 / chroma_range * (2 - 2 * kr)
    green = y - (kb * cb + kr * cr) / (1 - kr - kb)
    return np.clip(np.stack([y + cr, green, y + cb], axis=-1), 0, 255)


def _planes(frame: Bytes, pixel_format: int, height: int, width: int) -> tuple[Bytes, Bytes, Bytes]:
    """Luma, U and V at every pixel."""
    rows, columns = np.arange(height), np.arange(width)
    if pixel_format == NV12:
        pairs = frame[height:].reshape(-(-height // 2), -1)
        u = pairs[rows[:, None] // 2, columns // 2 * 2]
        v = pairs[rows[:, None] // 2, columns // 2 * 2 + 1]
        return frame[:height, :width], u, v
    return (
        frame[:, columns * 2],
        frame[:, columns // 2 * 4 + 1],
        frame[:, columns // 2 * 4 + 3],
    )


def _yuv_frame(pixel_format: int, height: int, width: int, seed: int) -> Bytes:
    """Random bytes with some more per row than needed."""
    if pixel_format == NV12:
        return _noise(height + -(-height // 2), width + width % 2 + 6, seed=seed)
    return _noise(height, -(-width // 2) * 4 + 5, seed=seed)


@pytest.mark.parametrize("pixel_format", [NV12, YUYV])
@pytest.mark.parametrize("rule", range(4))
def test_luma_and_chroma_follow_the_formula(pixel_format: int, rule: int) -> None:
    for height, width in ((6, 8), (1, 1), (5, 7), (2, 67), (9, 130), (3, 33)):
        frame = _yuv_frame(pixel_format, height, width, seed=width)
        plan = Letterbox(height, width, height, width, height, width)
        exact = _rgb(*_planes(frame, pixel_format, height, width), rule)
        for simd in LEVELS:
            found = _bytes(frame, plan, pixel_format, simd, rule)
            # factors of 1 / 65536 move a sum of three products by at most .01
            assert np.abs(found - exact).max() < 0.51
            assert np.array_equal(found, _bytes(frame, plan, pixel_format, 1, rule))


@pytest.mark.parametrize("pixel_format", [NV12, YUYV])
def test_a_yuv_frame_is_converted_first_and_resized_then(pixel_format: int) -> None:
    for height, width, new_height, new_width in ((48, 64, 24, 32), (31, 45, 20, 17), (5, 3, 9, 40)):
        frame = _yuv_frame(pixel_format, height, width, seed=height)
        same = Letterbox(height, width, height, width, height, width)
        rgb = _bytes(frame, same, pixel_format)
        plan = Letterbox(height, width, new_height, new_width, new_height, new_width)
        for simd in LEVELS:
            found = _bytes(frame, plan, pixel_format, simd)
            assert np.array_equal(found, resize_bilinear(rgb, new_height, new_width))
            assert np.array_equal(
                _floats(frame, plan, pixel_format, simd), _floats(rgb, plan, RGB, simd)
            )


@pytest.mark.parametrize("rule", range(4))
@pytest.mark.parametrize(("colour", "pixel_format"), [("NV12", NV12), ("YUYV", YUYV)])
def test_the_letterboxer_takes_camera_frames(colour: Colour, pixel_format: int, rule: int) -> None:
    size = Fit(32, 64)
    boxer = Letterboxer(size, padding=PADDING, yuv=get_args(YuvRule)[rule])
    for height, width in ((30, 44), (31, 44), (1, 2), (48, 96)):
        rows = height + -(-height // 2)
        frame = _noise(rows, width) if colour == "NV12" else _noise(height, width, 2)
        found, plan = boxer(frame, colour=colour)
        assert plan == plan_letterbox(size, height, width)
        assert np.array_equal(found, _bytes(frame, plan, pixel_format, yuv=rule))
        # a frame whose rows lie apart, as cameras give them
        wide = _noise(rows, width + 10) if colour == "NV12" else _noise(height, width + 5, 2)
        wide[:, :width] = frame
        assert np.array_equal(boxer(wide[:, :width], colour=colour)[0], found)


@pytest.mark.parametrize(
    ("shape", "colour", "message"),
    [
        ((46, 44), "NV12", r"\(H \+ H / 2, W\) with an even W, got \(46, 44\)"),  # no H has 46 rows
        ((45, 43), "NV12", "with an even W"),
        ((45, 44, 3), "NV12", "with an even W"),
        ((1, 44), "NV12", "with an even W"),
        ((30, 43, 2), "YUYV", r"\(H, W, 2\) with an even W, got \(30, 43, 2\)"),
        ((30, 44), "YUYV", "with an even W"),
        ((0, 44, 2), "YUYV", "non-empty"),
        ((30, 44, 2), "RGB", "1 or 3 channels, got 2"),
        ((30, 44, 3), "HSV", "one of RGB, BGR, NV12, YUYV, got 'HSV'"),
    ],
)
def test_frames_of_another_shape_are_refused(
    shape: tuple[int, ...], colour: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        letterbox(np.zeros(shape, np.uint8), Fit(32, 64), colour=colour)


def test_an_unknown_rule_is_refused() -> None:
    rule: Any = "BT.2020"
    with pytest.raises(ValueError, match=r"BT.601 limited.*got 'BT.2020'"):
        Letterboxer(Fit(32, 64), yuv=rule)


def test_opencv_converts_within_one_grey_level() -> None:
    cv2 = pytest.importorskip("cv2")
    plan = Letterbox(64, 96, 64, 96, 64, 96)
    nv12, yuyv = _noise(96, 96, seed=1), _noise(64, 96, 2, seed=2)
    for frame, pixel_format, code in (
        (nv12, NV12, cv2.COLOR_YUV2RGB_NV12),
        (yuyv, YUYV, cv2.COLOR_YUV2RGB_YUYV),
    ):
        peer = cv2.cvtColor(frame, code).astype(int)
        # OpenCV limits Y to 16 and more before it scales
        difference = np.abs(_bytes(frame, plan, pixel_format).astype(int) - peer)
        luma = nv12[:64] if pixel_format == NV12 else yuyv[:, :, 0]
        assert difference[luma >= 16].max() <= 1


@pytest.mark.parametrize("sanitizer", ["none", "address,undefined"])
def test_frames_and_errors_from_c(sanitizer: str, tmp_path: Path) -> None:
    require("gcc")
    program = tmp_path / "check_frames"
    flags = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    run(
        "gcc", "-std=c11", "-O1", "-ffp-contract=off", *flags, f"-I{RUNTIME}/include",
        NATIVE / "check_frames.c", *SOURCES, "-lm", "-o", program,
    )  # fmt: skip
    run(program)
