"""Letterbox and resize against slow bilinear sampling, OpenCV and hand-worked numbers."""

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import resize as slow_resize

from boxseg.runtime import _native
from boxseg.runtime.preprocess import (
    Fit,
    Letterboxer,
    ShortLong,
    letterbox,
    plan_letterbox,
    resize_bilinear,
)

Bytes = NDArray[np.uint8]


def _noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_fit_takes_the_smaller_ratio_and_rounds_each_axis() -> None:
    # r = min(320/720, 640/1280) = 4/9; 720 r = 320, 1280 r = 568.9 -> 569
    plan = plan_letterbox(Fit(320, 640), 720, 1280)
    assert plan.as_tuple() == (720, 1280, 320, 569, 320, 640)
    assert plan.scale_x == 569 / 1280
    assert plan.scale_y == 320 / 720


def test_fit_rounds_halves_up() -> None:
    # r = 32/64 = .5; 3 r = 1.5 -> 2
    assert plan_letterbox(Fit(32, 32), 3, 64).content_height == 2


def test_fit_never_loses_a_thin_frame() -> None:
    # r = 32/3000; 1 r = .01 -> at least 1
    assert plan_letterbox(Fit(32, 32), 1, 3000).content_height == 1


def test_short_long_pads_to_the_next_multiple_of_32() -> None:
    # r = 320/480 = 2/3: 320 x 426.7 -> 427, padded to 448
    assert plan_letterbox(ShortLong(320, 640), 480, 640).as_tuple() == (
        480,
        640,
        320,
        427,
        320,
        448,
    )
    # r = 2/3 would give 853 > 640, so r = 640/1280 = .5: 240 x 640, padded to 256
    assert plan_letterbox(ShortLong(320, 640), 480, 1280).as_tuple()[2:] == (240, 640, 256, 640)


def test_a_size_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imgsz\.width must be a multiple of 32, got 630"):
        Fit(320, 630)


def test_short_over_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imgsz\.short"):
        ShortLong(640, 320)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resize_is_the_rounded_bilinear_sample(channels: int) -> None:
    rng = np.random.default_rng(channels)
    for _ in range(8):
        height, width, new_height, new_width = rng.integers(1, 40, 4).tolist()
        image = rng.integers(0, 256, (height, width, channels), np.uint8)
        exact = slow_resize(image, new_height, new_width)
        # two weights of 11 bits move a sample by at most 2 * 255 / 4096 < .13, rounding by .5
        assert np.abs(resize_bilinear(image, new_height, new_width) - exact).max() < 0.63


def test_resize_agrees_with_opencv_within_one_grey_level() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    for _ in range(20):
        height, width, new_height, new_width = rng.integers(1, 300, 4).tolist()
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        peer = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        ours = resize_bilinear(image, new_height, new_width)
        assert np.abs(ours.astype(int) - peer.astype(int)).max() <= 1


def test_resize_to_the_same_size_is_a_copy() -> None:
    image = _noise(37, 53, 3)
    assert np.array_equal(resize_bilinear(image, 37, 53), image)


def test_resize_by_half_is_the_mean_of_four() -> None:
    # (10 + 20 + 30 + 41) / 4 = 25.25
    image = np.array([[10, 20], [30, 41]], np.uint8)
    assert resize_bilinear(image, 1, 1).tolist() == [[25]]


def test_resize_keeps_the_axes_of_a_gray_image() -> None:
    assert resize_bilinear(_noise(4, 6), 2, 3).shape == (2, 3)
    assert resize_bilinear(_noise(4, 6, 1), 2, 3).shape == (2, 3, 1)


def test_one_pixel_fills_any_size() -> None:
    assert np.all(resize_bilinear(np.full((1, 1, 3), 77, np.uint8), 9, 5) == 77)


def test_letterbox_puts_the_frame_top_left_and_pads_right_and_bottom() -> None:
    frame = _noise(20, 64, 3)
    out, plan = letterbox(frame, Fit(64, 64))
    assert (plan.content_height, plan.content_width) == (20, 64)
    assert np.array_equal(out[:20], frame)
    assert np.all(out[20:] == (124, 116, 104))
    out, plan = letterbox(_noise(64, 20, 3), Fit(64, 96), padding=(1, 2, 3))
    assert np.all(out[:, plan.content_width :] == (1, 2, 3))


def test_letterbox_content_is_the_plain_resize() -> None:
    frame = _noise(90, 120, 3)
    out, plan = letterbox(frame, Fit(64, 128))
    content = resize_bilinear(frame, plan.content_height, plan.content_width)
    assert np.array_equal(out[: plan.content_height, : plan.content_width], content)


def test_bgr_and_gray_become_rgb() -> None:
    frame = _noise(50, 70, 3)
    rgb, _ = letterbox(frame, Fit(64, 64))
    bgr, _ = letterbox(np.ascontiguousarray(frame[:, :, ::-1]), Fit(64, 64), colour="BGR")
    assert np.array_equal(rgb, bgr)
    gray, plan = letterbox(frame[:, :, 0], Fit(64, 64))
    rows = slice(plan.content_height)
    for channel in range(3):
        assert np.array_equal(gray[rows, :, channel], rgb[rows, :, 0])


def test_row_strides_and_odd_views_give_the_same_result() -> None:
    wide = _noise(40, 80, 3)
    view = wide[4:30, 10:60]
    expected, _ = letterbox(view.copy(), Fit(32, 64))
    assert np.array_equal(letterbox(view, Fit(32, 64))[0], expected)
    flipped = wide[::-1, ::-1]
    assert np.array_equal(
        letterbox(flipped, Fit(32, 64))[0], letterbox(flipped.copy(), Fit(32, 64))[0]
    )


def test_a_letterboxer_follows_frames_of_changing_size() -> None:
    boxer = Letterboxer(Fit(64, 64))
    out = np.empty((64, 64, 3), np.uint8)
    for height, width in ((40, 50), (400, 31), (40, 50), (1, 1)):
        frame = _noise(height, width, 3, seed=height)
        returned, plan = boxer(frame, out)
        assert returned is out
        assert (plan.frame_height, plan.frame_width) == (height, width)
        assert np.array_equal(out, letterbox(frame, Fit(64, 64))[0])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "non-empty"),
        (np.zeros((4, 4, 4), np.uint8), "1 or 3 channels, got 4"),
        (np.zeros(4, np.uint8), "uint8 array"),
    ],
)
def test_bad_frames_are_named(frame: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        letterbox(frame, Fit(32, 32))  # type: ignore[arg-type]  # bad input on purpose


def test_bad_buffers_and_colours_are_named() -> None:
    with pytest.raises(ValueError, match="out must be"):
        letterbox(_noise(4, 4, 3), Fit(32, 32), out=np.empty((32, 31, 3), np.uint8))
    with pytest.raises(ValueError, match="colour must be one of RGB, BGR, NV12, YUYV"):
        letterbox(_noise(4, 4, 3), Fit(32, 32), colour="GBR")  # type: ignore[arg-type]  # bad


def test_the_native_call_checks_room_and_scratch() -> None:
    frame, plan = _noise(4, 4, 3), (4, 4, 32, 32, 32, 32)
    scratch = bytearray(_native.letterbox_scratch_size(plan))
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.letterbox_rgb8(frame, False, plan, (0, 0, 0), scratch, bytearray(100))
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.letterbox_rgb8(frame, False, plan, (0, 0, 0), bytearray(8), bytearray(4000))
    wrong = (4, 5, 32, 32, 32, 32)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _native.letterbox_rgb8(frame, False, wrong, (0, 0, 0), scratch, bytearray(4000))
