"""Files that an ONNX file wants opened beside it, found before an engine opens them.

A tensor may lie in another file, whose name a stranger may have chosen. The names are read here
from the bytes of the file, without the package onnx and before any engine sees them.

Source: onnx.proto and the wire format of protocol buffers. Only the fields on the way to a tensor
are followed; everything else is stepped over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from boxseg.errors import FileMismatchError
from boxseg.runtime.images import leaves_folder

_VARINT, _EIGHT_BYTES, _BYTES, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
"""Message -> number of a field -> what the field is, where that leads to the name of a file."""

_Bytes = mmap.mmap | bytes


class _DamagedError(Exception):
    """The bytes are no protocol buffer."""


def _varint(data: _Bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of up to ten bytes and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
    raise _DamagedError


def _fields(data: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of bytes."""
    depth, position = 0, start
    while position < end:
        tag, position = _varint(data, position, end)
        kind, begin = tag & 7, position
        if kind == _VARINT:
            _, position = _varint(data, position, end)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        elif kind == _BYTES:
            length, begin = _varint(data, position, end)
            position = begin + length
        elif kind == _GROUP:
            depth += 1
        elif kind == _GROUP_END and depth:
            depth -= 1
        else:
            raise _DamagedError
        if position > end:
            raise _DamagedError
        if kind == _BYTES and not depth:
            yield tag >> 3, begin, position
    if depth:
        raise _DamagedError


def _locations(data: _Bytes) -> Iterator[str]:
    """Yield the names of files in all tensors."""
    open_parts = [("model", 0, len(data))]
    while open_parts:
        message, start, end = open_parts.pop()
        key, value = b"", b""
        for number, first, last in _fields(data, start, end):
            part = _PARTS[message].get(number)
            if part == "key":
                key = data[first:last]
            elif part == "value":
                value = data[first:last]
            elif part is not None:
                open_parts.append((part, first, last))
        if message == "entry" and key == b"location":
            yield value.decode("utf-8", "surrogateescape")


def external_files(path: Path) -> list[str]:
    """Return the files that tensors of an ONNX file lie in, relative to its folder, sorted.

    Raises:
        FileMismatchError: if the file is no ONNX file.
        OSError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _DamagedError
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return sorted(set(_locations(data)))
    except _DamagedError:
        raise FileMismatchError(f"{path} is damaged or no ONNX file") from None


def refuse_escaping_files(path: Path) -> None:
    """Refuse an ONNX file that wants a file opened outside its own folder.

    Raises:
        FileMismatchError: if it does, or if it is no ONNX file.
    """
    for name in external_files(path):
        if leaves_folder(name) or leaves_folder(name.replace("\\", "/")):
            raise FileMismatchError(
                f"{path} wants weights from {name!r}, outside its folder, so it was not loaded"
            )
