"""Image files, folders and videos as RGB frames."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxseg.errors import BackendMissingError, DataError
from boxseg.runtime import images
from boxseg.runtime.images import iterate_frames, leaves_folder, read_image


def _colours() -> np.ndarray:
    """A 2 x 3 picture whose six pixels all differ."""
    return np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10


def test_png_comes_back_as_contiguous_rgb_bytes(tmp_path: Path) -> None:
    Image.fromarray(_colours()).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, _colours())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    # What a camera stores for each orientation tag of the EXIF table, so that undoing it gives
    # the upright picture back: "row 0 of the stored image is the ... side, column 0 the ...".
    upright = _colours()
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright[:, ::-1].transpose(1, 0, 2),  # right, top
        7: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: upright[::-1].transpose(1, 0, 2),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


def test_grey_is_repeated_over_three_channels(tmp_path: Path) -> None:
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=2))


def test_sixteen_bit_png_is_divided_by_257(tmp_path: Path) -> None:
    # 257 * 100 = 25700 -> 100; 25700 + 129 is nearer to 101; 25700 + 128 stays at 100
    grey = np.array([[0, 65535, 25700, 25829, 25828]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 1], [0, 255, 100, 101, 100])


def test_transparent_pixels_take_the_padding_colour(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [124, 116, 104]]])


def test_palette_with_a_transparent_entry_is_read(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[1, 2, 3], [124, 116, 104]]])


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = read_image(tmp_path / "a.jpg")[8, 8].astype(int)
    assert red[0] > 240
    assert red[1] < 15
    assert red[2] < 15


def test_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 2], [255, 0])


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (2, 2)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="32-bit pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "no such image file"),
        ("long" * 100 + ".png", None, r"no such image file \(File name too long\)"),
        ("text.jpg", b"hello", "not an image"),
        ("empty.png", b"", "not an image"),
    ],
)
def test_unusable_files_give_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_truncated_image_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image(path)


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "PIXEL_LIMIT", 199)
    with pytest.raises(DataError, match="10 x 20 pixels; the limit is 199"):
        read_image(tmp_path / "a.png")


def test_sides_that_the_letterbox_does_not_take_are_refused(tmp_path: Path) -> None:
    Image.new("1", (32_768, 1)).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png").shape == (1, 32_768, 3)
    Image.new("1", (1, 32_769)).save(tmp_path / "tall.png")
    with pytest.raises(DataError, match="32769 x 1 pixels; the limit of a side is 32768"):
        read_image(tmp_path / "tall.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="too many pixels"):
        read_image(tmp_path / "a.png")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    code = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + code


PNG_OF_10_GIGAPIXELS = (
    b"\x89PNG\r\n\x1a\n"
    + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    + _png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    + _png_chunk(b"IEND", b"")
)
JPEG_OF_4_GIGAPIXELS = (
    b"\xff\xd8"
    + b"\xff\xc0"
    + struct.pack(">HBHHB", 17, 8, 65_500, 65_500, 3)
    + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    + b"\xff\xda"
    + struct.pack(">HBBBBBBBBBB", 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0)
    + b"\xff\xd9"
)
BITMAP_OF_10_GIGAPIXELS = (
    b"BM"
    + struct.pack("<IHHI", 154, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    + bytes(100)
)
GIF_OF_4_GIGAPIXELS = (
    b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"\x3b"
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", PNG_OF_10_GIGAPIXELS),
        ("a.jpg", JPEG_OF_4_GIGAPIXELS),
        ("a.bmp", BITMAP_OF_10_GIGAPIXELS),
        ("a.gif", GIF_OF_4_GIGAPIXELS),
    ],
)
def test_a_header_that_claims_gigabytes_is_refused_before_they_are_reserved(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=f"{name}: .*(limit is 89478485 pixels|not an image)"):
        read_image(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "..", "a/b/../../.."])
def test_names_that_leave_their_folder_are_known(name: str) -> None:
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a.png", "a/../b.png", "..a.png", "a../b..", "./a/./../b.png"])
def test_names_that_stay_are_known_too(name: str) -> None:
    assert not leaves_folder(name)


def test_folder_yields_its_images_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deeper.png").mkdir()
    assert [frame.name for frame in iterate_frames(tmp_path)] == ["a", "b", "c"]


def test_empty_folder_and_wrong_path_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images or videos"):
        list(iterate_frames(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        list(iterate_frames(tmp_path / "x"))


def test_unreadable_file_is_reported_and_the_others_still_come(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    errors: list[DataError] = []
    assert [frame.name for frame in iterate_frames(tmp_path, errors.append)] == ["a", "c"]
    assert len(errors) == 1
    assert "b.png" in str(errors[0])
    with pytest.raises(DataError, match=r"b\.png"):
        list(iterate_frames(tmp_path))


def _write_video(path: Path, frames: int) -> None:
    av = pytest.importorskip("av", reason="video needs PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            pixels = np.full((48, 64, 3), (250, 40 * index, 5), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_video_yields_rgb_frames_with_their_index(tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.mp4", 4)
    frames = list(iterate_frames(tmp_path / "clip.mp4"))
    assert [frame.name for frame in frames] == [f"clip_{index:06d}" for index in range(4)]
    assert all(frame.image.shape == (48, 64, 3) for frame in frames)
    for index, frame in enumerate(frames):
        assert abs(int(frame.image[24, 32, 1]) - 40 * index) < 12  # lossy
        assert frame.image[24, 32, 0] > 220
        assert frame.image[24, 32, 2] < 40


def test_a_video_of_huge_frames_is_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_video(tmp_path / "clip.mp4", 1)
    monkeypatch.setattr(images, "PIXEL_LIMIT", 48 * 64 - 1)
    with pytest.raises(DataError, match=r"clip\.mp4: 48 x 64 pixels; the limit is 3071"):
        next(iterate_frames(tmp_path / "clip.mp4"))


def test_damaged_video_is_a_data_error(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="video needs PyAV")
    (tmp_path / "clip.mp4").write_bytes(b"not a video at all")
    with pytest.raises(DataError, match="cannot be decoded as video"):
        list(iterate_frames(tmp_path / "clip.mp4"))


def test_video_without_pyav_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(BackendMissingError, match=r"pip install boxseg\[video\]"):
        list(iterate_frames(tmp_path / "clip.mp4"))
