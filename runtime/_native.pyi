from typing import Any, TypeAlias

from numpy.typing import NDArray

_Buffer: TypeAlias = NDArray[Any] | bytearray | memoryview | bytes
_Map: TypeAlias = tuple[int, int, int, int, int, int]

def letterbox_fit(frame_height: int, frame_width: int, height: int, width: int, /) -> _Map: ...
def letterbox_short_long(
    frame_height: int, frame_width: int, short: int, long: int, divisor: int, /
) -> _Map: ...
def letterbox_scratch_size(plan: _Map, /) -> int: ...
def letterbox_rgb8(
    frame: _Buffer,
    is_bgr: bool,
    plan: _Map,
    padding: tuple[int, int, int],
    scratch: _Buffer,
    out: _Buffer,
    /,
) -> None: ...
def resize_scratch_size(channels: int, new_width: int, /) -> int: ...
def resize_u8(
    image: _Buffer, new_height: int, new_width: int, scratch: _Buffer, out: _Buffer, /
) -> None: ...
