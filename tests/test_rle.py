"""Run-length text against pycocotools, the slow writer and hand-worked strings."""

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from boxseg.runtime import _native

Mask = NDArray[np.bool_]


def _encode(mask: Mask) -> bytes:
    return _native.rle_encode(np.ascontiguousarray(mask).view(np.uint8))


def _decode(text: bytes, height: int, width: int) -> Mask:
    out = np.zeros((height, width), np.uint8)
    _native.rle_paint(text, height, width, (0, 0, width, height), 1, out)
    return out.view(np.bool_)


def _masks(count: int) -> list[Mask]:
    rng = np.random.default_rng(5)
    masks: list[Mask] = [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.ones((1, 1), bool)]
    for _ in range(count):
        height, width = rng.integers(1, 70, 2)
        grid = np.kron(rng.random((8, 8)) < rng.random(), np.ones((9, 9), bool))
        masks.append(grid[:height, :width].astype(bool))
        masks.append(rng.random((height, width)) < 0.5)
    return masks


def test_a_hand_worked_mask() -> None:
    # columns (0, 1), (1, 1): runs 1 off, 3 on -> characters 48 + 1, 48 + 3
    assert _encode(np.array([[0, 1], [1, 1]], bool)) == b"13"


def test_empty_and_full_masks() -> None:
    # 12 off -> 48 + 12 = '<'; none off, 12 on
    assert _encode(np.zeros((3, 4), bool)) == b"<"
    assert _encode(np.ones((3, 4), bool)) == b"0<"


def test_a_count_of_16_needs_a_second_group() -> None:
    # 16 = 10000b: bit 4 is the sign, so a group of 0 follows: 16 + 32 + 48 = '`', '0'
    assert _encode(np.zeros((4, 4), bool)) == b"`0"


def test_text_equals_the_slow_writer_and_decodes_to_the_mask() -> None:
    for mask in _masks(30):
        text = _encode(mask)
        assert text == reference.run_text(reference.run_lengths(mask))
        assert np.array_equal(_decode(text, *mask.shape), mask)


def test_text_equals_pycocotools() -> None:
    codec = pytest.importorskip("pycocotools.mask")
    for mask in _masks(60):
        peer = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert _encode(mask) == peer["counts"]
        area, (x0, y0, x1, y1) = _native.rle_measure(peer["counts"], *mask.shape)
        assert area == codec.area(peer)
        rows, columns = np.nonzero(mask)
        if area:
            assert (x0, y0) == (columns.min(), rows.min())
            assert (x1, y1) == (columns.max() + 1, rows.max() + 1)
        else:
            assert (x0, y0, x1, y1) == (0, 0, 0, 0)


def test_long_runs_of_a_large_mask() -> None:
    codec = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((2000, 3000), bool)
    mask[1999, 2999] = mask[7, 1500] = True
    peer = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert _encode(mask) == peer["counts"]


def test_a_window_is_painted_over_what_is_there() -> None:
    mask = np.zeros((6, 5), bool)
    mask[2:5, 1:4] = True
    out = np.full((3, 2), 9, np.uint8)
    _native.rle_paint(_encode(mask), 6, 5, (3, 1, 5, 4), 4, out)
    assert out.tolist() == [[9, 9], [4, 9], [4, 9]]


@pytest.mark.parametrize("text", [b"", b"5", b"<1", b"\x00", b"l", b"zzzzzzzzzzzzz", b"\xff", b"/"])
def test_malformed_text_is_refused(text: bytes) -> None:
    out = np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
        _native.rle_paint(text, 3, 4, (0, 0, 4, 3), 1, out)
    with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
        _native.rle_measure(text, 3, 4)


def test_bad_windows_and_buffers_are_refused() -> None:
    text = _encode(np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _native.rle_paint(text, 3, 4, (0, 0, 5, 3), 1, np.zeros((3, 5), np.uint8))
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.rle_paint(text, 3, 4, (0, 0, 4, 3), 1, np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _native.rle_measure(text, 0, 4)


def test_random_text_never_crashes() -> None:
    rng = np.random.default_rng(9)
    out = np.zeros((5, 7), np.uint8)
    refused = 0
    for _ in range(2000):
        text = rng.integers(40, 120, rng.integers(0, 12)).astype(np.uint8).tobytes()
        try:
            _native.rle_paint(text, 5, 7, (0, 0, 7, 5), 1, out)
        except ValueError:
            refused += 1
    assert refused > 1000


def test_windows_as_bytes_and_bits_equal_the_mask() -> None:
    rng = np.random.default_rng(8)
    for mask in _masks(40):
        height, width = mask.shape
        text = _encode(mask)
        x0, y0 = int(rng.integers(width)), int(rng.integers(height))
        window = (x0, y0, int(rng.integers(x0, width)) + 1, int(rng.integers(y0, height)) + 1)
        for x0, y0, x1, y1 in [(0, 0, width, height), window]:
            out = np.full((y1 - y0, x1 - x0), 9, np.uint8)
            _native.rle_bytes(text, height, width, (x0, y0, x1, y1), out)
            assert np.array_equal(out, mask[y0:y1, x0:x1])
            bits = np.full((y1 - y0, (x1 - x0 + 7) // 8), 9, np.uint8)
            _native.rle_bits(text, height, width, (x0, y0, x1, y1), bits)
            unpacked = np.unpackbits(bits, axis=1, bitorder="little")
            assert np.array_equal(unpacked[:, : x1 - x0], out)
            assert not unpacked[:, x1 - x0 :].any()


def test_the_label_image_is_painted_from_the_last_to_the_first() -> None:
    rng = np.random.default_rng(9)
    for dtype, count in [(np.uint8, 5), (np.uint8, 255), (np.uint16, 300)]:
        masks = np.kron(rng.random((count, 4, 5)) < 0.2, np.ones((7, 9), bool))
        masks[1] = False
        expected = np.zeros((28, 45), dtype)
        for i in reversed(range(count)):
            expected[masks[i]] = i + 1
        found = np.full((28, 45), 7, dtype)
        scratch = np.empty(_native.label_image_scratch_size(28, 45), np.uint8)
        _native.label_image(tuple(map(_encode, masks)), 28, 45, scratch, found)
        assert np.array_equal(found, expected)


def test_label_images_refuse_what_does_not_fit() -> None:
    text = _encode(np.ones((3, 4), bool))
    scratch = np.empty(_native.label_image_scratch_size(3, 4), np.uint8)
    with pytest.raises(ValueError, match="BXS_ERROR_SIZE"):
        _native.label_image((text,) * 256, 3, 4, scratch, np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="BXS_ERROR_ROOM"):
        _native.label_image((text,), 3, 4, scratch, np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.label_image((text,), 3, 4, scratch[1:], np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
        _native.label_image((text[:1],), 3, 4, scratch, np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="uint8 or uint16"):
        _native.label_image((text,), 3, 4, scratch, np.zeros((3, 4), np.float32))


def test_hostile_text_gives_a_code() -> None:
    rng = np.random.default_rng(10)
    for _ in range(500):
        # the last character is none of the 64
        text = rng.integers(40, 120, rng.integers(0, 12), dtype=np.uint8).tobytes() + b"~"
        with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
            _native.rle_measure(text, 7, 9)
        with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
            _native.rle_bits(text, 7, 9, (1, 1, 5, 6), bytearray(5))
        with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
            _native.rle_bytes(text, 7, 9, (1, 1, 5, 6), bytearray(20))
        with pytest.raises(ValueError, match="BXS_ERROR_TEXT"):
            _native.rle_polygons(text, 7, 9)
