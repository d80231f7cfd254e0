from typing import Any, TypeAlias

from numpy.typing import NDArray

_Buffer: TypeAlias = NDArray[Any] | bytearray | memoryview | bytes
_Map: TypeAlias = tuple[int, int, int, int, int, int]
_Region: TypeAlias = tuple[int, int, int, int]
_Box: TypeAlias = tuple[float, float, float, float]

CANDIDATE_BYTES: int
INSTANCE_BYTES: int
MAX_SIDE: int

class _Model: ...

def simd_levels() -> tuple[str, ...]: ...
def letterbox_fit(frame_height: int, frame_width: int, height: int, width: int, /) -> _Map: ...
def letterbox_short_long(
    frame_height: int, frame_width: int, short: int, long: int, divisor: int, /
) -> _Map: ...
def letterbox_scratch_size(plan: _Map, /) -> int: ...
def letterbox_rgb8(
    frame: _Buffer,
    pixel_format: int,
    plan: _Map,
    padding: tuple[int, int, int] | None,
    scratch: _Buffer,
    out: _Buffer,
    simd: int = 0,
    yuv: int = 0,
    /,
) -> None: ...
def letterbox_f32(
    frame: _Buffer,
    pixel_format: int,
    plan: _Map,
    padding: tuple[int, int, int] | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    scratch: _Buffer,
    out: _Buffer,
    simd: int = 0,
    yuv: int = 0,
    /,
) -> None: ...
def resize_scratch_size(channels: int, new_width: int, /) -> int: ...
def resize_u8(
    image: _Buffer, new_height: int, new_width: int, scratch: _Buffer, out: _Buffer, /
) -> None: ...
def make_model(
    classes: int,
    strides: tuple[int, ...],
    coordinate_scales: tuple[float, ...],
    mask_channels: int,
    mask_stride: int,
    layer_widths: tuple[int, ...],
    relative_coordinates: int,
    score0: int,
    final_score: int,
    candidate_score: float,
    nms_iou: float,
    candidates: int,
    max_det: int,
    simd: int = 0,
    /,
) -> _Model: ...
def parameter_count(model: _Model, /) -> int: ...
def location_count(model: _Model, height: int, width: int, /) -> int: ...
def scan_scratch_size(model: _Model, /) -> int: ...
def scan_dense(
    model: _Model,
    class_logits: _Buffer,
    quality_logits: _Buffer | None,
    boxes: _Buffer,
    plan: _Map,
    scratch: _Buffer,
    candidates: _Buffer,
    /,
) -> int: ...
def select_scratch_size(model: _Model, /) -> int: ...
def select_dense(
    model: _Model,
    class_logits: _Buffer,
    quality_logits: _Buffer | None,
    boxes: _Buffer,
    plan: _Map,
    scratch: _Buffer,
    kept: _Buffer,
    budget_ms: float = ...,
    /,
) -> tuple[int, bool]: ...
def select_topk_scratch_size(model: _Model, /) -> int: ...
def select_topk(
    model: _Model,
    scores: _Buffer,
    labels: _Buffer,
    boxes: _Buffer,
    locations: _Buffer,
    levels: _Buffer,
    plan: _Map,
    scratch: _Buffer,
    kept: _Buffer,
    budget_ms: float = ...,
    /,
) -> tuple[int, bool]: ...
def nms_scratch_size(n: int, class_count: int, /) -> int: ...
def nms(
    boxes: _Buffer,
    scores: _Buffer,
    classes: _Buffer | None,
    class_count: int,
    iou_threshold: float,
    score_threshold: float,
    max_keep: int,
    scratch: _Buffer,
    keep: _Buffer,
    simd: int = 0,
    /,
) -> int: ...
def cut_box(box: _Box, plan: _Map, mask_stride: int, /) -> tuple[_Box, _Box, _Region, _Region]: ...
def mask_head_scratch_size(model: _Model, /) -> int: ...
def mask_head(
    model: _Model,
    parameters: _Buffer,
    features: _Buffer | None,
    slots: int,
    by_slot: bool,
    rows: int,
    columns: int,
    candidate: _Buffer,
    region: _Region,
    scratch: _Buffer,
    logits: _Buffer,
    /,
) -> None: ...
def mask_score(
    logits: _Buffer, region: _Region, rows: int, columns: int, stride: int, box: _Box, /
) -> float: ...
def surface_scratch_size(frame_height: int, frame_width: int, rows: int, /) -> int: ...
def surface_text_size(plan: _Map, rows: int, /) -> int: ...
def surface_rle(
    logits: _Buffer,
    region: _Region,
    rows: int,
    columns: int,
    stride: int,
    plan: _Map,
    pixels: _Region,
    scratch: _Buffer,
    text: _Buffer,
    simd: int = 0,
    /,
) -> tuple[int, int]: ...
def surface_bytes(
    logits: _Buffer,
    region: _Region,
    rows: int,
    columns: int,
    stride: int,
    plan: _Map,
    pixels: _Region,
    scratch: _Buffer,
    out: _Buffer,
    simd: int = 0,
    /,
) -> None: ...
def surface_bits(
    logits: _Buffer,
    region: _Region,
    rows: int,
    columns: int,
    stride: int,
    plan: _Map,
    pixels: _Region,
    scratch: _Buffer,
    out: _Buffer,
    simd: int = 0,
    /,
) -> None: ...
def surface_polygons(
    logits: _Buffer,
    region: _Region,
    rows: int,
    columns: int,
    stride: int,
    plan: _Map,
    box: _Box,
    /,
) -> tuple[bytes, bytes]: ...
def masks_scratch_size(model: _Model, plan: _Map, /) -> int: ...
def masks(
    model: _Model,
    parameters: _Buffer,
    features: _Buffer | None,
    slots: int,
    by_slot: bool,
    plan: _Map,
    candidates: _Buffer,
    n: int,
    confidence: float,
    scratch: _Buffer,
    instances: _Buffer,
    text: _Buffer,
    budget_ms: float = ...,
    /,
) -> tuple[int, int, bool]: ...
def rle_encode(mask: _Buffer, /) -> bytes: ...
def rle_paint(
    text: bytes, height: int, width: int, window: _Region, value: int, out: _Buffer, /
) -> None: ...
def rle_measure(text: bytes, height: int, width: int, /) -> tuple[int, _Region]: ...
def rle_bytes(text: bytes, height: int, width: int, window: _Region, out: _Buffer, /) -> None: ...
def rle_bits(text: bytes, height: int, width: int, window: _Region, out: _Buffer, /) -> None: ...
def rle_polygons(text: bytes, height: int, width: int, /) -> tuple[bytes, bytes]: ...
def label_image_scratch_size(height: int, width: int, /) -> int: ...
def label_image(
    texts: tuple[bytes, ...], height: int, width: int, scratch: _Buffer, out: _Buffer, /
) -> None: ...
