"""What others offer for the parts of the native runtime, each as its users would write it best.

Peers are named as data and imported on use, so that the benchmark runs without any of them; the
runtime itself uses none. A part that offers several ways takes them all: the fastest counts.
What a frame would have to prepare anew but could be prepared before (engine inputs, buffers) is
prepared outside the timed call, in favour of the peer.

N boxes, L locations, C classes, D masks, K instances, H x W pixels of the frame, h x w of the grid.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import counted
from boxseg.runtime.benchmark_inputs import HEAD_CHANNELS, NetworkOutputs, ScoredBoxes

Floats = NDArray[np.float32]

DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "cv2": "opencv-python-headless",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "numba": "numba",
    "pycocotools.mask": "pycocotools",
    "supervision": "supervision",
}
"""Module of a peer -> what installs it; onnx writes the graphs that the engines run."""

THREADS = (1, 2)
LARGEST_FOR_ALL = 20000
"""Boxes up to which all peers suppress; above it OpenVINO alone, the fastest there."""
IOU = 0.6


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Contender:
    """One way to do a part.

    Attributes:
        name: Package, way and threads.
        call: The work that is timed.
        prepare: Sets threads before each turn, untimed.
    """

    name: str
    call: Callable[[], Any]
    prepare: Callable[[], object] = _nothing


class Peers:
    """Imports peers on use and remembers which are missing.

    Attributes:
        missing: Modules that were asked for and are not installed, in order.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._loaded: dict[str, Any] = {}

    def __call__(self, module: str) -> Any | None:
        """Return a module, or None where it is not installed."""
        if module not in self._loaded:
            try:
                self._loaded[module] = importlib.import_module(module)
            except ModuleNotFoundError:
                self._loaded[module] = None
        if self._loaded[module] is None and module not in self.missing:
            self.missing.append(module)
        return self._loaded[module]

    def all(self, *modules: str) -> list[Any] | None:
        """Return modules, or None unless all of them are installed."""
        found = [self(module) for module in modules]
        return None if any(module is None for module in found) else found


def _per_thread(
    name: str, call: Callable[[], Any], set_threads: Callable[[int], object]
) -> Iterator[Contender]:
    """Offer a call at each number of threads of a package with one global setting."""
    for threads in THREADS:
        yield Contender(
            f"{name}, {counted(threads, 'thread')}", call, functools.partial(set_threads, threads)
        )


# --- engines -------------------------------------------------------------------------------------


def _onnx_model(onnx: Any, nodes: list[Any], inputs: dict[str, Any], output: Any) -> bytes:
    """Write a graph; inputs are name -> (array or type, shape)."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data: bytes = model.SerializeToString()
    return data


def _onnxruntime_session(onnxruntime: Any, model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # its threads would otherwise spin on into the next contender's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _openvino_request(openvino: Any, model: Any, threads: int, precision: str = "f32") -> Any:
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    return compiled.create_infer_request()


# --- non-maximum suppression ---------------------------------------------------------------------


def _offset_boxes(given: ScoredBoxes) -> Floats:
    """Move each class to a place of its own, the usual way to suppress per class in one list."""
    return given.boxes + (given.classes * np.float32(4096)).astype(np.float32)[:, None]


def nms_peers(peers: Peers, given: ScoredBoxes, max_keep: int | None) -> list[Contender]:
    """Offer class-aware suppression; every answer is a list of kept indices.

    Args:
        peers: Packages.
        given: N boxes.
        max_keep: Boxes wanted; None is all.
    """
    found: list[Contender] = []
    n = len(given.scores)
    boxes, scores = _offset_boxes(given), given.scores
    limit = n if max_keep is None else max_keep
    if (openvino := peers("openvino")) is not None:
        for threads in THREADS:
            request = _openvino_request(openvino, _nms_openvino(openvino, n, limit), threads)
            found.append(
                Contender(
                    f"openvino NonMaxSuppression, {counted(threads, 'thread')}",
                    lambda request=request: _openvino_kept(  # type: ignore[misc]
                        request, boxes[None], scores[None, None]
                    ),
                )
            )
    if n > LARGEST_FOR_ALL:
        return found  # the others take 9 to 18 seconds a call
    if (modules := peers.all("onnxruntime", "onnx")) is not None:
        onnxruntime, onnx = modules
        model = _nms_graph(onnx, n, limit)
        feed = {"boxes": boxes[None], "scores": scores[None, None]}
        for threads in THREADS:
            session = _onnxruntime_session(onnxruntime, model, threads)
            found.append(
                Contender(
                    f"onnxruntime NonMaxSuppression, {counted(threads, 'thread')}",
                    lambda session=session: session.run(None, feed)[0][:, 2],  # type: ignore[misc]
                )
            )
    if (modules := peers.all("torch", "torchvision")) is not None:
        found += _torchvision_nms(modules[0], modules[1], given, limit)
    if (cv2 := peers("cv2")) is not None:
        found += _opencv_nms(cv2, given, max_keep)
    if (numba := peers("numba")) is not None:
        greedy = _numba_nms(numba)
        found.append(
            Contender(
                "numba greedy loop",
                lambda: greedy(given.boxes, scores, given.classes, IOU, limit),
            )
        )
    return found


def _nms_graph(onnx: Any, n: int, limit: int) -> bytes:
    helper, types = onnx.helper, onnx.TensorProto
    constants = [
        helper.make_node("Constant", [], ["limit"], value_ints=[limit]),
        helper.make_node("Constant", [], ["iou"], value_floats=[IOU]),
    ]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "limit", "iou"], ["kept"])
    return _onnx_model(
        onnx,
        [*constants, node],
        {"boxes": (types.FLOAT, [1, n, 4]), "scores": (types.FLOAT, [1, 1, n])},
        helper.make_tensor_value_info("kept", types.INT64, [None, 3]),
    )


def _nms_openvino(openvino: Any, n: int, limit: int) -> Any:
    ops = importlib.import_module("openvino.opset9")
    boxes = ops.parameter([1, n, 4], np.float32, name="boxes")
    scores = ops.parameter([1, 1, n], np.float32, name="scores")
    node = ops.non_max_suppression(
        boxes,
        scores,
        ops.constant(np.int64(limit)),
        ops.constant(np.float32(IOU)),
        ops.constant(np.float32(-np.inf)),
        box_encoding="corner",
        sort_result_descending=False,
        output_type="i32",
    )
    return openvino.Model([node.output(0), node.output(2)], [boxes, scores], "nms")


def _openvino_kept(request: Any, *inputs: Floats) -> NDArray[np.int32]:
    request.infer(list(inputs), share_inputs=True)
    count = int(request.get_output_tensor(1).data[0])
    kept: NDArray[np.int32] = request.get_output_tensor(0).data[:count, 2]
    return kept


def _torchvision_nms(
    torch: Any, torchvision: Any, given: ScoredBoxes, limit: int
) -> Iterator[Contender]:
    boxes, scores = torch.from_numpy(given.boxes), torch.from_numpy(given.scores)
    classes = torch.from_numpy(given.classes.astype(np.int64))
    yield from _per_thread(
        "torchvision batched_nms",
        lambda: torchvision.ops.batched_nms(boxes, scores, classes, IOU)[:limit].numpy(),
        torch.set_num_threads,
    )
    offset = torch.from_numpy(_offset_boxes(given))
    yield from _per_thread(
        "torchvision nms on offset boxes",
        lambda: torchvision.ops.nms(offset, scores, IOU)[:limit].numpy(),
        torch.set_num_threads,
    )


def _opencv_nms(cv2: Any, given: ScoredBoxes, max_keep: int | None) -> Iterator[Contender]:
    if len(given.scores) > 5000:
        return  # it grows with the square: 0.3 s at 20000 realistic boxes, 1.6 s at the worst
    sides = given.boxes.astype(np.float64)
    sides[:, 2:] -= sides[:, :2]
    classes = given.classes.astype(np.int32)
    yield from _per_thread(
        "cv2.dnn.NMSBoxesBatched",
        lambda: np.asarray(
            cv2.dnn.NMSBoxesBatched(
                sides, given.scores, classes, 0.0, IOU, 1.0, 0 if max_keep is None else max_keep
            )
        ),
        cv2.setNumThreads,
    )


@functools.cache
def _numba_nms(numba: Any) -> Callable[..., NDArray[np.int64]]:
    """Compile the loop that people write: visit by score, compare with the kept of the class."""

    def greedy(
        boxes: Floats, scores: Floats, classes: NDArray[np.uint32], iou: float, limit: int
    ) -> NDArray[np.int64]:
        order = np.argsort(-scores)
        kept = np.empty(min(limit, len(order)), np.int64)
        count = 0
        for i in order:
            if count == limit:
                break
            area = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            free = True
            for k in range(count):
                j = kept[k]
                if classes[i] != classes[j]:
                    continue
                width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
                height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
                if width <= 0 or height <= 0:
                    continue
                other = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
                if width * height / (area + other - width * height) > iou:
                    free = False
                    break
            if free:
                kept[count] = i
                count += 1
        return kept[:count]

    compiled: Callable[..., NDArray[np.int64]] = numba.njit(greedy)
    compiled(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.uint32), IOU, 1)
    return compiled


def kept_per_class(peers: Peers, given: ScoredBoxes) -> NDArray[np.int64] | None:
    """Suppress each class by torchvision's nms alone; the indices by score, or None without it."""
    if (modules := peers.all("torch", "torchvision")) is None:
        return None
    torch, torchvision = modules
    kept = []
    for index in np.unique(given.classes):
        members = np.flatnonzero(given.classes == index)
        chosen = torchvision.ops.nms(
            torch.from_numpy(given.boxes[members]), torch.from_numpy(given.scores[members]), IOU
        )
        kept.append(members[chosen.numpy()])
    joined = np.concatenate(kept)
    ordered: NDArray[np.int64] = joined[np.argsort(-given.scores[joined], kind="stable")]
    return ordered


# --- candidate scan ------------------------------------------------------------------------------


def best_class_peers(peers: Peers, logits: Floats) -> list[Contender]:
    """Offer score and class of every location's best class, as detectors usually do it."""
    found = [Contender("numpy argmax, take", lambda: _numpy_best(logits))]
    if (torch := peers("torch")) is not None:
        tensor = torch.from_numpy(logits)
        found += _per_thread("torch max", lambda: tensor.max(dim=1), torch.set_num_threads)
    return found


def _numpy_best(logits: Floats) -> tuple[Floats, NDArray[np.int64]]:
    classes = logits.argmax(axis=1)
    scores: Floats = np.take_along_axis(logits, classes[:, None], axis=1)
    return scores, classes


def best_score_peers(peers: Peers, logits: Floats) -> list[Contender]:
    """Offer every location's best score alone, less than ours gives."""
    found = [Contender("numpy max", lambda: logits.max(axis=1))]
    if (torch := peers("torch")) is not None:
        tensor = torch.from_numpy(logits)
        found += _per_thread("torch amax", lambda: tensor.amax(dim=1), torch.set_num_threads)
    return found


def pair_peers(
    peers: Peers, logits: Floats, boxes: Floats, threshold: float, best: int
) -> list[Contender]:
    """Offer our whole job: all pairs above a threshold, scored, sorted, with their boxes.

    Each call returns location * C + class of the best pairs, best first.
    """

    def with_numpy() -> NDArray[np.int64]:
        places = np.flatnonzero(logits > threshold)
        scores = 1 / (1 + np.exp(-logits.ravel()[places]))
        order = np.argsort(-scores, kind="stable")[:best]
        boxes[places[order] // logits.shape[1]]
        return places[order]

    found = [Contender("numpy flatnonzero, argsort", with_numpy)]
    if (torch := peers("torch")) is not None:
        tensor, all_boxes = torch.from_numpy(logits), torch.from_numpy(boxes)

        def with_torch() -> Any:
            flat = tensor.view(-1)
            places = torch.nonzero(flat > threshold)[:, 0]
            _, order = flat[places].sigmoid().sort(descending=True, stable=True)
            places = places[order[:best]]
            all_boxes[places // tensor.shape[1]]
            return places.numpy()

        def with_topk() -> Any:
            scores, places = tensor.view(-1).topk(best)
            places = places[scores > threshold]
            all_boxes[places // tensor.shape[1]]
            return places.numpy()

        found += _per_thread("torch nonzero, sort", with_torch, torch.set_num_threads)
        found += _per_thread("torch topk", with_topk, torch.set_num_threads)
    return found


# --- mask head -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadInputs:
    """A dynamic head in the form that engines run fastest (form A of the export).

    The relative coordinates are folded into the first layer, which is one matrix for all
    instances; the other layers are batched products.

    Attributes:
        first: Weights of 8 channels, x, y and 1, (8 K, 11).
        pixels: The 8 channels, x, y and 1 of every cell, (11, h w).
        second: (K, 8, 8).
        bias2: (K, 8, 1).
        third: (K, 1, 8).
        bias3: (K, 1, 1).
    """

    first: Floats
    pixels: Floats
    second: Floats
    bias2: Floats
    third: Floats
    bias3: Floats

    def feed(self) -> dict[str, Floats]:
        """Give the arrays by the names of the graph's inputs."""
        return dict(vars(self))


def fold_head(
    outputs: dict[str, Floats],
    slots: NDArray[np.integer[Any]],
    places: NDArray[np.floating[Any]],
    scales: NDArray[np.floating[Any]],
) -> HeadInputs:
    """Bring parameters of the dense form into form A.

    Args:
        outputs: Of a network.
        slots: Locations of the instances, (K,).
        places: Their x and y in input pixels, (K, 2).
        scales: Input pixels per unit of relative coordinate, (K,).
    """
    features = outputs["mask_features"][0]
    channels, height, width = features.shape
    values = outputs["parameters"][0][:, slots].T.astype(np.float64)  # (K, 169)
    k = len(values)
    first = values[:, :80].reshape(k, 8, 10)
    bias1 = values[:, 152:160]
    folded = np.concatenate(
        [
            first[:, :, 2:],
            -first[:, :, :2] / scales[:, None, None],
            (bias1 + (first[:, :, :2] * (places / scales[:, None])[:, None]).sum(-1))[:, :, None],
        ],
        axis=2,
    )
    y, x = np.mgrid[:height, :width] * 8.0 + 4.0
    pixels = np.concatenate(
        [features.reshape(channels, -1), x.reshape(1, -1), y.reshape(1, -1), np.ones((1, x.size))]
    )
    arrays = (
        folded.reshape(8 * k, HEAD_CHANNELS + 3),
        pixels,
        values[:, 80:144].reshape(k, 8, 8),
        values[:, 160:168, None],
        values[:, 144:152].reshape(k, 1, 8),
        values[:, 168].reshape(k, 1, 1),
    )
    return HeadInputs(*(np.ascontiguousarray(array, np.float32) for array in arrays))


def head_peers(peers: Peers, inputs: HeadInputs) -> list[Contender]:
    """Offer the mask head of all instances on the whole grid; answers are (K, 1, h w)."""
    found: list[Contender] = []
    if (onnx := peers("onnx")) is None:
        for name in ("onnxruntime", "openvino"):
            peers(name)  # notes what is missing
        return found
    model = _head_graph(onnx, inputs)
    feed = inputs.feed()
    if (onnxruntime := peers("onnxruntime")) is not None:
        for threads in THREADS:
            session = _onnxruntime_session(onnxruntime, model, threads)
            found.append(
                Contender(
                    f"onnxruntime in graph, {counted(threads, 'thread')}",
                    lambda session=session: session.run(None, feed)[0],  # type: ignore[misc]
                )
            )
    if (openvino := peers("openvino")) is not None:
        graph = openvino.Core().read_model(model)
        values = list(feed.values())
        for threads in THREADS:
            for precision in ("f32", "bf16"):
                request = _openvino_request(openvino, graph, threads, precision)

                def call(request: Any = request) -> Any:
                    request.infer(values, share_inputs=True)
                    return request.get_output_tensor(0).data

                found.append(
                    Contender(f"openvino in graph, {precision}, {counted(threads, 'thread')}", call)
                )
    return found


def _head_graph(onnx: Any, inputs: HeadInputs) -> bytes:
    helper, types = onnx.helper, onnx.TensorProto
    cells = inputs.pixels.shape[1]
    nodes = [
        helper.make_node("MatMul", ["first", "pixels"], ["one"]),  # (8 K, h w)
        helper.make_node("Relu", ["one"], ["one_on"]),
        helper.make_node("Constant", [], ["shape"], value_ints=[-1, 8, cells]),
        helper.make_node("Reshape", ["one_on", "shape"], ["one_each"]),  # (K, 8, h w)
        helper.make_node("MatMul", ["second", "one_each"], ["two"]),
        helper.make_node("Add", ["two", "bias2"], ["two_biased"]),
        helper.make_node("Relu", ["two_biased"], ["two_on"]),
        helper.make_node("MatMul", ["third", "two_on"], ["three"]),  # (K, 1, h w)
        helper.make_node("Add", ["three", "bias3"], ["logits"]),
    ]
    return _onnx_model(
        onnx,
        nodes,
        {name: (types.FLOAT, array.shape) for name, array in inputs.feed().items()},
        helper.make_tensor_value_info("logits", types.FLOAT, [None, 1, cells]),
    )


# --- masks ---------------------------------------------------------------------------------------


def _roi_mask(
    cv2: Any, logits: Floats, cells: NDArray[np.int64], pixels: NDArray[np.int64], factor: int
) -> NDArray[np.bool_]:
    """Enlarge the cells of a box by a whole factor and cut its pixels out; axes as given."""
    (a0, b0, a1, b1), (p0, q0, p1, q1) = cells.tolist(), pixels.tolist()
    size = ((b1 - b0) * factor, (a1 - a0) * factor)
    large = cv2.resize(logits[a0:a1, b0:b1], size, interpolation=cv2.INTER_LINEAR)
    top, left = a0 * factor, b0 * factor
    result: NDArray[np.bool_] = large[p0 - top : p1 - top, q0 - left : q1 - left] > 0
    return result


@dataclass(frozen=True)
class MaskInputs:
    """D mask grids and the boxes that cut them.

    Attributes:
        grids: Logits of a grid that covers the input, (D, h, w).
        cells: x0, y0, x1, y1 of the cells that each box needs, (D, 4).
        pixels: x0, y0, x1, y1 of each box's frame pixels, (D, 4).
        frame: H, W.
        factor: Frame pixels per cell, a whole number.
    """

    grids: Floats
    cells: NDArray[np.int64]
    pixels: NDArray[np.int64]
    frame: tuple[int, int]
    factor: int


def rle_peers(peers: Peers, given: MaskInputs) -> list[Contender]:
    """Offer COCO run-length texts of boxes' masks in the frame; answers are lists of texts."""
    found: list[Contender] = []
    modules = peers.all("cv2", "pycocotools.mask")
    supervision = peers("supervision")
    if modules is None:
        return found
    cv2, codec = modules
    height, width = given.frame
    turned = np.ascontiguousarray(given.grids.transpose(0, 2, 1))  # (D, w, h)
    # a column of the mask is a row here: the order in which COCO counts, without a copy
    canvas = np.zeros((width, height), np.uint8)

    def smart() -> list[bytes]:
        texts = []
        for logits, cells, pixels in zip(turned, given.cells, given.pixels, strict=True):
            window = canvas[pixels[0] : pixels[2], pixels[1] : pixels[3]]
            window[:] = _roi_mask(cv2, logits, cells, pixels, given.factor)
            texts.append(codec.encode(canvas.T)["counts"])
            window[:] = 0
        return texts

    swap = [1, 0, 3, 2]
    image = np.zeros((height, width), np.uint8)

    def usual() -> list[bytes]:
        texts = []
        for logits, cells, pixels in zip(given.grids, given.cells, given.pixels, strict=True):
            window = image[pixels[1] : pixels[3], pixels[0] : pixels[2]]
            window[:] = _roi_mask(cv2, logits, cells[swap], pixels[swap], given.factor)
            texts.append(codec.encode(np.asfortranarray(image))["counts"])
            window[:] = 0
        return texts

    found += _per_thread("cv2 on transposed logits, pycocotools", smart, cv2.setNumThreads)
    found += _per_thread("cv2, pycocotools as usual", usual, cv2.setNumThreads)
    if supervision is not None:
        encode = supervision.mask_to_rle

        def with_supervision() -> list[Any]:
            texts = []
            for logits, cells, pixels in zip(given.grids, given.cells, given.pixels, strict=True):
                window = image[pixels[1] : pixels[3], pixels[0] : pixels[2]]
                window[:] = _roi_mask(cv2, logits, cells[swap], pixels[swap], given.factor)
                texts.append(encode(image.view(np.bool_)))
                window[:] = 0
            return texts

        found.append(Contender("cv2, supervision mask_to_rle", with_supervision))
    return found


def byte_peers(
    peers: Peers, given: MaskInputs, content: tuple[int, int], out: NDArray[np.uint8]
) -> list[Contender]:
    """Offer full-frame masks as bytes, written into `out` (D, H, W)."""
    found: list[Contender] = []
    height, width = given.frame
    # one cell more than the content, as the surface goes on into the padding
    rows = min(content[0] + 1, given.grids.shape[1])
    columns = min(content[1] + 1, given.grids.shape[2])
    size = (columns * given.factor, rows * given.factor)
    if (cv2 := peers("cv2")) is not None:
        large = np.empty((size[1], size[0]), np.float32)
        part = large[:height, :width]
        planes = out.view(np.bool_)

        def with_numpy() -> None:
            for logits, mask in zip(given.grids, planes, strict=True):
                cv2.resize(logits[:rows, :columns], size, large, interpolation=cv2.INTER_LINEAR)
                np.greater(part, 0, out=mask)

        def with_opencv() -> None:
            for logits, mask in zip(given.grids, out, strict=True):
                cv2.resize(logits[:rows, :columns], size, large, interpolation=cv2.INTER_LINEAR)
                cv2.compare(part, 0, cv2.CMP_GT, mask)

        found += _per_thread("cv2.resize, numpy greater", with_numpy, cv2.setNumThreads)
        found += _per_thread("cv2.resize, cv2.compare", with_opencv, cv2.setNumThreads)
    if (torch := peers("torch")) is not None:
        grids = torch.from_numpy(np.ascontiguousarray(given.grids[:, :rows, :columns]))[:, None]

        def with_torch() -> Any:
            large = torch.nn.functional.interpolate(
                grids, size=(size[1], size[0]), mode="bilinear", align_corners=False
            )
            return (large > 0)[:, 0, :height, :width]

        if len(given.grids) <= 20:
            found += _per_thread("torch interpolate", with_torch, torch.set_num_threads)
    return found


# --- letterbox -----------------------------------------------------------------------------------

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def letterbox_peers(
    peers: Peers, frame: NDArray[np.uint8], content: tuple[int, int], out: Floats
) -> list[Contender]:
    """Offer a BGR frame resized into the top left of a normalised RGB input (1, 3, H', W')."""
    if (cv2 := peers("cv2")) is None:
        peers("torch")
        return []
    height, width = content
    resized = np.empty((height, width, 3), np.uint8)
    plane = np.empty((height, width), np.uint8)
    scales = [np.float32(1 / std) for std in STD]
    shifts = [np.float32(-mean / std) for mean, std in zip(MEAN, STD, strict=True)]
    tables = [
        (np.arange(256, dtype=np.float32) * scale + shift)
        for scale, shift in zip(scales, shifts, strict=True)
    ]
    target = out[0, :, :height, :width]

    def in_place() -> None:
        cv2.resize(frame, (width, height), resized, interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            cv2.extractChannel(resized, 2 - channel, plane)
            np.multiply(plane, scales[channel], out=target[channel])
            target[channel] += shifts[channel]

    def by_table() -> None:
        cv2.resize(frame, (width, height), resized, interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            cv2.extractChannel(resized, 2 - channel, plane)
            cv2.LUT(plane, tables[channel], target[channel])

    def usual() -> None:
        cv2.resize(frame, (width, height), resized, interpolation=cv2.INTER_LINEAR)
        image = resized[:, :, ::-1].astype(np.float32)
        image -= np.array(MEAN, np.float32)
        image /= np.array(STD, np.float32)
        target[:] = image.transpose(2, 0, 1)

    found: list[Contender] = []
    for name, call in {
        "cv2.resize, extractChannel, numpy in place": in_place,
        "cv2.resize, extractChannel, cv2.LUT": by_table,
        "cv2.resize, numpy as usual": usual,
    }.items():
        found += _per_thread(name, call, cv2.setNumThreads)
    if (torch := peers("torch")) is not None:
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        into = torch.from_numpy(target)

        def with_torch() -> None:
            image = torch.from_numpy(frame).permute(2, 0, 1)[None]
            small = torch.nn.functional.interpolate(
                image, size=content, mode="bilinear", align_corners=False
            )
            into.copy_(small[0].flip(0).float().sub_(mean).div_(std))

        found += _per_thread("torch interpolate", with_torch, torch.set_num_threads)
    return found


def byte_letterbox_peers(
    peers: Peers, frame: NDArray[np.uint8], content: tuple[int, int], out: NDArray[np.uint8]
) -> list[Contender]:
    """Offer a BGR frame resized into the top left of an RGB byte input (H', W', 3)."""
    if (cv2 := peers("cv2")) is None:
        return []
    height, width = content
    resized = np.empty((height, width, 3), np.uint8)
    target = out[:height, :width]

    def call() -> None:
        cv2.resize(frame, (width, height), resized, interpolation=cv2.INTER_LINEAR)
        cv2.cvtColor(resized, cv2.COLOR_BGR2RGB, target)

    return list(_per_thread("cv2.resize, cvtColor", call, cv2.setNumThreads))


# --- the whole -----------------------------------------------------------------------------------


def whole_peers(
    peers: Peers,
    given: NetworkOutputs,
    places: NDArray[np.float64],
    scales: NDArray[np.float64],
    *,
    frame: tuple[int, int],
    content: tuple[int, int],
    candidate_score: float,
    max_det: int,
) -> list[Contender]:
    """Offer everything after the engine, composed of the fastest peers' parts.

    numpy finds and scores the pairs, ONNX Runtime suppresses them, an engine evaluates the mask
    head of the kept instances only, OpenCV enlarges inside the boxes and pycocotools encodes.
    Each call returns the list of texts, best score first.
    """
    modules = peers.all("cv2", "pycocotools.mask", "onnx", "onnxruntime")
    openvino = peers("openvino")
    if modules is None:
        return []
    cv2, codec, onnx, onnxruntime = modules
    helper, types = onnx.helper, onnx.TensorProto
    outputs = given.outputs
    logits, quality = outputs["class_logits"][0], outputs["quality_logits"][0]
    boxes, parameters = outputs["boxes"][0], outputs["parameters"][0]
    stride = 8
    rows, columns = outputs["mask_features"].shape[2:]
    factor = frame[0] * stride // content[0]
    limit = np.log(candidate_score**2 / (1 - candidate_score**2))
    nms_nodes = [
        helper.make_node("Constant", [], ["limit"], value_ints=[max_det]),
        helper.make_node("Constant", [], ["iou"], value_floats=[IOU]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "limit", "iou"], ["kept"]),
    ]
    suppress = _onnxruntime_session(
        onnxruntime,
        _onnx_model(
            onnx,
            nms_nodes,
            {"boxes": (types.FLOAT, [1, None, 4]), "scores": (types.FLOAT, [1, 1, None])},
            helper.make_tensor_value_info("kept", types.INT64, [None, 3]),
        ),
        1,
    )

    def select() -> NDArray[np.int64]:
        pairs = np.flatnonzero(logits > limit)
        slots, classes = np.divmod(pairs, logits.shape[1])
        scores = np.sqrt(1 / ((1 + np.exp(-logits.ravel()[pairs])) * (1 + np.exp(-quality[slots]))))
        good = np.flatnonzero(scores > candidate_score)
        if len(good) > 1000:
            good = np.sort(np.argpartition(-scores, 1000)[:1000])
        slots, classes, scores = slots[good], classes[good], scores[good]
        offset = boxes[slots] + (classes * np.float32(4096)).astype(np.float32)[:, None]
        kept = suppress.run(None, {"boxes": offset[None], "scores": scores[None, None]})[0][:, 2]
        best: NDArray[np.int64] = slots[kept]
        return best

    canvas = np.zeros((frame[1], frame[0]), np.uint8)
    content_box = np.array([content[1], content[0], content[1], content[0]], np.float32)

    def encode(slots: NDArray[np.int64], grids: Floats) -> list[bytes]:
        inside = np.clip(boxes[slots], 0, content_box)
        pixels = np.ceil(inside * (frame[0] / content[0]) - 0.5).astype(np.int64)
        cells = np.empty_like(pixels)
        cells[:, :2] = np.maximum(inside[:, :2] // stride - 1, 0)
        cells[:, 2:] = np.minimum(inside[:, 2:] // stride + 2, (columns, rows))
        texts = []
        for grid, cell, pixel in zip(grids, cells, pixels, strict=True):
            window = canvas[pixel[0] : pixel[2], pixel[1] : pixel[3]]
            turned = np.ascontiguousarray(grid.reshape(rows, columns).T)
            window[:] = _roi_mask(cv2, turned, cell, pixel, factor)
            texts.append(codec.encode(canvas.T)["counts"])
            window[:] = 0
        return texts

    # the head's graph is made for the number of instances that this frame has
    count = len(select())
    graph = _head_graph(
        onnx, fold_head(outputs, np.zeros(count, int), places[:count], scales[:count])
    )
    heads: dict[str, Callable[[dict[str, Floats]], Floats]] = {}
    for threads in THREADS:
        session = _onnxruntime_session(onnxruntime, graph, threads)
        heads[f"onnxruntime, {counted(threads, 'thread')}"] = (
            lambda feed, session=session: session.run(None, feed)[0]  # type: ignore[misc]
        )
        if openvino is not None:
            request = _openvino_request(openvino, openvino.Core().read_model(graph), threads)
            heads[f"openvino, {counted(threads, 'thread')}"] = (
                lambda feed, request=request: _inferred(request, feed)  # type: ignore[misc]
            )
    fold = _folder(outputs)

    def compose(head: Callable[[dict[str, Floats]], Floats]) -> list[bytes]:
        slots = select()
        return encode(slots, head(fold(parameters, slots, places[slots], scales[slots])))

    return [
        Contender(
            f"numpy, onnxruntime NMS, head in {name}, cv2, pycocotools",
            functools.partial(compose, head),
            functools.partial(cv2.setNumThreads, int(name.split()[-2])),
        )
        for name, head in heads.items()
    ]


def _inferred(request: Any, feed: dict[str, Floats]) -> Floats:
    request.infer(list(feed.values()), share_inputs=True)
    values: Floats = request.get_output_tensor(0).data
    return values


def _folder(outputs: dict[str, Floats]) -> Callable[..., dict[str, Floats]]:
    """Prepare `fold_head` for one frame: what does not depend on the instances is made once."""
    pixels = fold_head(outputs, np.zeros(1, int), np.zeros((1, 2)), np.ones(1)).pixels

    def fold(
        parameters: Floats,
        slots: NDArray[np.int64],
        places: NDArray[np.float64],
        scales: NDArray[np.float64],
    ) -> dict[str, Floats]:
        values = np.ascontiguousarray(parameters[:, slots].T)  # (K, 169)
        k = len(values)
        place, scale = places.astype(np.float32), scales.astype(np.float32)[:, None]
        weights = values[:, :80].reshape(k, 8, 10)
        first = np.empty((k, 8, HEAD_CHANNELS + 3), np.float32)
        first[:, :, :8] = weights[:, :, 2:]
        np.divide(weights[:, :, :2], -scale[:, None], out=first[:, :, 8:10])
        first[:, :, 10] = values[:, 152:160] + np.einsum(
            "kij,kj->ki", weights[:, :, :2], place / scale
        )
        return {
            "first": first.reshape(8 * k, HEAD_CHANNELS + 3),
            "pixels": pixels,
            "second": values[:, 80:144].reshape(k, 8, 8),
            "bias2": values[:, 160:168, None],
            "third": values[:, 144:152].reshape(k, 1, 8),
            "bias3": values[:, 168].reshape(k, 1, 1),
        }

    return fold
