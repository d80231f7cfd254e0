"""The native runtime part by part against the fastest peer on this machine: `boxseg bench-native`.

A case is one piece of work on one seeded input. Ours runs on one thread, once with AVX2 and once
with the best instructions of the machine; peers run on one and on two threads, and the fastest
counts. Every contender is called once and then timed up to three times; those whose best is above
three times the fastest peer's leave the race with it. The others take turns in shuffled order, in
one process, and medians are compared. A turn is one untimed call, unless it takes long, and one
timed call. Ours is called through the Python binding, whose overhead is inside. Inputs that peers
need in another form are prepared outside.

Where a part is no race, its name tells the unit of `ours_us`, and floor and goal are upper limits.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import BackendMissingError
from boxseg.runtime import _native, benchmark_inputs, benchmark_peers
from boxseg.runtime.benchmark_inputs import HEAD_SCALES, HEAD_WIDTHS, NetworkOutputs, ScoredBoxes
from boxseg.runtime.benchmark_peers import IOU, Contender, MaskInputs, Peers
from boxseg.runtime.metadata import MaskHead, Metadata
from boxseg.runtime.postprocess import CANDIDATE, INSTANCE, Postprocessor
from boxseg.runtime.preprocess import PADDING, Fit, Letterbox, plan_letterbox

try:
    import resource
except ModuleNotFoundError:  # not on every system
    resource = None  # type: ignore[assignment]

Floats = NDArray[np.float32]

OURS = "boxseg"
HOPELESS = 3.0  # times the fastest peer, at which a contender leaves the race
ENOUGH = 5  # turns for a median
LONG_MS = 20.0  # calls as long as this need no warm-up call in each turn
PROBABILITY = 0.05
ROUNDING = 0.75  # grey levels: weights of 11 bits, one rounding to a byte
BAND = 1e-4  # logits as close to the threshold may fall on either side


@dataclass(frozen=True)
class Row:
    """One line of the answer; its fields are the keys of the JSON."""

    part: str
    case: str
    ours_us: float | None
    peer: str | None
    peer_us: float | None
    ratio: float | None
    floor: float | None
    goal: float | None
    exact: bool | None


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        part: Line of the table that it belongs to.
        name: Input and output.
        ours: Our call by instruction level.
        peers: Others.
        missing: Distributions of peers that are not installed.
        exact: Whether the answer is the right one; None if nothing here can tell.
        floor: Ratio that holds on any day.
        goal: Ratio to reach.
    """

    part: str
    name: str
    ours: dict[str, Callable[[], Any]]
    peers: Sequence[Contender]
    missing: Sequence[str]
    exact: Callable[[str], bool | None]
    floor: float | None
    goal: float | None
    limits_us: tuple[float, float] | None = None
    """Upper limits of the time itself, floor and goal."""
    against: str = ""
    """What the names of the peers begin with that floor and goal speak of; others are shown too."""


class Times(NamedTuple):
    """Microseconds of one contender."""

    median: float
    best: float


@dataclass
class Report:
    """Rows, and the times of all who raced."""

    rows: list[Row] = field(default_factory=list)
    raced: dict[str, dict[str, Times]] = field(default_factory=dict)

    def as_list(self) -> list[dict[str, Any]]:
        """Give the rows in JSON types."""
        return [asdict(row) for row in self.rows]


# --- the race ------------------------------------------------------------------------------------


def _interruptions() -> int:
    """Times that the system took a processor from this process; 0 where it does not count."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _timed(contender: Contender) -> tuple[float, bool]:
    """Return microseconds of a call, and whether nothing interrupted it."""
    interruptions = _interruptions()
    begin = time.perf_counter_ns()
    contender.call()
    end = time.perf_counter_ns()
    return (end - begin) / 1e3, _interruptions() == interruptions


def _summary(turns: Sequence[tuple[float, bool]]) -> Times:
    clean = [us for us, undisturbed in turns if undisturbed]
    used = clean if len(clean) >= ENOUGH else [us for us, _ in turns]
    return Times(statistics.median(used), min(used))


def race(contenders: Sequence[Contender], *, seconds: float, seed: int = 0) -> dict[str, Times]:
    """Let contenders take turns.

    Args:
        contenders: Names are unique; those that begin with OURS never leave the race.
        seconds: Roughly the length of the race.
        seed: Of the order.

    Returns:
        Name -> times.
    """
    turns: dict[str, list[tuple[float, bool]]] = {}
    first: dict[str, float] = {}
    for contender in contenders:
        contender.prepare()
        turns[contender.name] = [_timed(contender)]
        once = turns[contender.name][0][0]
        repeats = 3 if once < 1e3 * LONG_MS else 1 if once < 2e6 else 0
        if repeats:
            turns[contender.name] = [_timed(contender) for _ in range(repeats)]
        first[contender.name] = min(us for us, _ in turns[contender.name])
    rivals = [us for name, us in first.items() if not name.startswith(OURS)]
    bound = HOPELESS * min(rivals, default=0.0)
    racing = [c for c in contenders if c.name.startswith(OURS) or first[c.name] <= bound]
    rounds = int(1e6 * seconds / sum(2 * first[c.name] for c in racing))
    for contender in racing:
        turns[contender.name] = []
    order = random.Random(seed)
    for _ in range(min(max(rounds, 2 * ENOUGH), 500)):
        order.shuffle(racing)
        for contender in racing:
            contender.prepare()
            if first[contender.name] < 1e3 * LONG_MS:
                contender.call()
            turns[contender.name].append(_timed(contender))
    return {name: _summary(values) for name, values in turns.items()}


def levels() -> dict[str, int]:
    """Return the levels that are timed, name -> number: AVX2 first, then the best if it differs."""
    known = _native.simd_levels()
    wanted = ["avx2", known[-1]] if "avx2" in known else [known[-1]]
    return {name: known.index(name) + 1 for name in wanted}


def _at_levels(call: Callable[[int], Any]) -> dict[str, Callable[[], Any]]:
    return {name: partial(call, level) for name, level in levels().items()}


def _against(row: Row, peers: dict[str, float]) -> Row:
    """Name the fastest peer in a row."""
    if not peers or row.ours_us is None:
        return row
    best = min(peers, key=lambda name: peers[name])
    return replace(row, peer=best, peer_us=peers[best], ratio=peers[best] / row.ours_us)


def run_case(case: Case, *, seconds: float) -> tuple[list[Row], dict[str, Times]]:
    """Race one case; rows for each level, then for each peer that is missing."""
    ours = [Contender(f"{OURS} {level}", call) for level, call in case.ours.items()]
    times = race([*ours, *case.peers], seconds=seconds)
    rivals = {peer.name: times[peer.name].median for peer in case.peers}
    judged = {name: t for name, t in rivals.items() if name.startswith(case.against)}
    rows = []
    for level in case.ours:
        blank = Row(
            part=case.part,
            case=f"{case.name}, {level}",
            ours_us=times[f"{OURS} {level}"].median,
            peer=None,
            peer_us=None,
            ratio=None,
            floor=None,
            goal=None,
            exact=case.exact(level),
        )
        if case.limits_us is not None:
            floor, goal = case.limits_us
            rows.append(replace(blank, part=f"{case.part} (us)", floor=floor, goal=goal))
        rows.append(replace(_against(blank, judged), floor=case.floor, goal=case.goal))
        if min(rivals.values(), default=math.inf) < min(judged.values(), default=math.inf):
            rows.append(_against(blank, rivals))
    rows += [
        Row(case.part, case.name, None, f"{name}: not installed", *(None,) * 5)
        for name in case.missing
    ]
    return rows, times


# --- suppression ---------------------------------------------------------------------------------


def _nms_call(given: ScoredBoxes, max_keep: int, level: int) -> Callable[[], NDArray[np.uint32]]:
    n = len(given.scores)
    classes = int(given.classes.max()) + 1
    scratch = np.empty(_native.nms_scratch_size(n, classes), np.uint8)
    keep = np.empty(min(n, max_keep), np.uint32)

    def call() -> NDArray[np.uint32]:
        count = _native.nms(
            given.boxes, given.scores, given.classes, classes, IOU, 0.0, max_keep, scratch, keep,
            level,
        )  # fmt: skip
        return keep[:count]

    return call


def _nms_case(
    part: str,
    name: str,
    given: ScoredBoxes,
    cap: int | None,
    floor: float,
    goal: float,
    against: str = "",
) -> Case:
    peers = Peers()
    contenders = benchmark_peers.nms_peers(peers, given, cap)
    limit = len(given.scores) if cap is None else cap
    ours = {name: _nms_call(given, limit, number) for name, number in levels().items()}

    def exact(level: str) -> bool | None:
        mine = ours[level]().astype(np.int64)
        if len(given.scores) <= benchmark_peers.LARGEST_FOR_ALL:
            truth = benchmark_peers.kept_per_class(peers, given)
            return None if truth is None else bool(np.array_equal(mine, truth[:limit]))
        if not contenders:
            return None
        return set(mine.tolist()) == set(np.asarray(contenders[0].call()).tolist())

    return Case(part, name, ours, contenders, _missing(peers), exact, floor, goal, against=against)


def _missing(peers: Peers) -> list[str]:
    return [benchmark_peers.DISTRIBUTIONS[module] for module in peers.missing]


def nms_cases() -> Iterator[Callable[[], Case]]:
    """Give suppression, capped, of all, and at its worst."""
    for n in (1000, 5000, 20000):
        floor, goal = (4, 8) if n < 20000 else (2, 4)
        yield lambda n=n, floor=floor, goal=goal: _nms_case(  # type: ignore[misc]
            "NMS, max_det 300", f"{n} realistic boxes",
            benchmark_inputs.realistic_boxes(n), 300, floor, goal, "onnxruntime",
        )  # fmt: skip
    for n in (1000, 5000, 20000):
        yield lambda n=n: _nms_case(  # type: ignore[misc]
            "NMS, all kept", f"{n} realistic boxes",
            benchmark_inputs.realistic_boxes(n), None, 8, 15,
        )  # fmt: skip
    for n in (5000, 20000, 100000):
        yield lambda n=n: _nms_case(  # type: ignore[misc]
            "NMS, all kept", f"{n} adversarial boxes of one class",
            benchmark_inputs.adversarial_boxes(n), None, 8, 15,
        )  # fmt: skip


# --- candidate scan ------------------------------------------------------------------------------


def _model(
    strides: tuple[int, ...], *, score0: int = 0, final: int = 0, max_det: int = 100, level: int = 0
) -> Any:
    return _native.make_model(
        benchmark_inputs.CLASSES, strides, HEAD_SCALES[: len(strides)],
        benchmark_inputs.HEAD_CHANNELS, 8, HEAD_WIDTHS, 1, score0, final,
        PROBABILITY if score0 == 1 else PROBABILITY**0.5, IOU, 1000, max_det, level,
    )  # fmt: skip


def _sorted_pairs(logits: Floats) -> NDArray[np.int64]:
    """Location * C + class of all pairs that pass, best first, ties by the lower index."""
    scores = (1 / (1 + np.exp(-logits.ravel().astype(np.float64)))).astype(np.float32)
    pairs = np.flatnonzero(scores > PROBABILITY)
    ordered: NDArray[np.int64] = pairs[np.argsort(-scores[pairs], kind="stable")]
    return ordered


def scan_cases() -> Iterator[Callable[[], Case]]:
    """Give the search for candidates against a location's best class, and against all it does."""
    logits = benchmark_inputs.class_logits()
    boxes = np.tile(np.array([10, 10, 50, 60], np.float32), (len(logits), 1))
    plan = plan_letterbox(Fit(640, 640), 720, 1280).as_tuple()
    threshold = float(np.log(PROBABILITY / (1 - PROBABILITY)))
    out = np.zeros(1000, CANDIDATE)

    def call(model: Any, scratch: NDArray[np.uint8]) -> NDArray[np.void]:
        return out[: _native.scan_dense(model, logits, None, boxes, plan, scratch, out)]

    ours: dict[str, Callable[[], Any]] = {}
    for name, number in levels().items():
        model = _model((8, 16, 32), score0=1, level=number)
        scratch = np.empty(_native.scan_scratch_size(model), np.uint8)
        ours[name] = lambda model=model, scratch=scratch: call(model, scratch)  # type: ignore[misc]

    def exact(level: str) -> bool:
        return bool(np.array_equal(ours[level]()["index"], _sorted_pairs(logits)))

    def case(name: str, kind: Callable[[Peers], list[Contender]], floor: float | None = 7) -> Case:
        peers = Peers()
        found = kind(peers)
        goal = None if floor is None else 12
        return Case("candidate scan", name, ours, found, _missing(peers), exact, floor, goal)

    yield lambda: case(
        "8400 x 80, peers give the best class",
        lambda peers: benchmark_peers.best_class_peers(peers, logits),
    )
    yield lambda: case(
        "8400 x 80, peers give no class, only the best score",
        lambda peers: benchmark_peers.best_score_peers(peers, logits),
        None,  # less than anyone can use
    )
    yield lambda: case(
        "8400 x 80, peers give all pairs, sorted",
        lambda peers: benchmark_peers.pair_peers(peers, logits, boxes, threshold, 1000),
    )


# --- mask head -----------------------------------------------------------------------------------


def _head_truth(
    outputs: dict[str, Floats], slot: int, place: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    """Evaluate one instance's head on the whole grid in float64, (h, w)."""
    features = outputs["mask_features"][0].astype(np.float64)
    values = outputs["parameters"][0][:, slot].astype(np.float64)
    channels, height, width = features.shape
    y, x = np.mgrid[:height, :width] * 8.0 + 4.0
    state = np.concatenate([(place[0] - x)[None] / scale, (place[1] - y)[None] / scale, features])
    state = state.reshape(channels + 2, -1)
    at = {"weights": 0, "biases": 152}
    for number, outs in enumerate(HEAD_WIDTHS):
        size = outs * len(state)
        weights = values[at["weights"] : at["weights"] + size].reshape(outs, len(state))
        state = weights @ state + values[at["biases"] : at["biases"] + outs, None]
        state = np.maximum(state, 0) if number + 1 < len(HEAD_WIDTHS) else state
        at = {"weights": at["weights"] + size, "biases": at["biases"] + outs}
    return state.reshape(height, width)


def head_cases() -> Iterator[Callable[[], Case]]:
    """Give the dynamic mask head of 100 instances, ours inside their boxes."""
    yield _head_case


def _head_case(count: int = 100) -> Case:
    given = benchmark_inputs.network_outputs(count, sizes=(60, 750))
    places, level_of = benchmark_inputs.locations(benchmark_inputs.STRIDES)
    scales = np.array(HEAD_SCALES)[level_of]
    outputs, best = given.outputs, given.best
    peers = Peers()
    folded = benchmark_peers.fold_head(outputs, best, places[best], scales[best])
    contenders = benchmark_peers.head_peers(peers, folded)
    plan = plan_letterbox(Fit(640, 640), 720, 1280)
    candidates = np.zeros(count, CANDIDATE)
    candidates["box"] = outputs["boxes"][0][best]
    candidates["score0"], candidates["index"], candidates["slot"] = 1, best, best
    candidates["level"] = level_of[best]
    candidates["x"], candidates["y"] = places[best].T
    share = _box_share(candidates["box"])
    instances = np.zeros(count, INSTANCE)

    def call(model: Any, scratch: NDArray[np.uint8], text: NDArray[np.uint8]) -> int:
        # heads and mask scores are computed, but no score is as high as this: nothing is encoded
        n, _, _ = _native.masks(
            model, outputs["parameters"], outputs["mask_features"], len(places), False,
            plan.as_tuple(), candidates, count, 1 - 1e-7, scratch, instances, text,
        )  # fmt: skip
        return n

    ours: dict[str, Callable[[], Any]] = {}
    models = {}
    for name, number in levels().items():
        models[name] = _model(benchmark_inputs.STRIDES, final=1, level=number)
        scratch = np.empty(_native.masks_scratch_size(models[name], plan.as_tuple()), np.uint8)
        text = np.empty(1, np.uint8)
        ours[name] = lambda m=models[name], s=scratch, t=text: call(m, s, t)  # type: ignore[misc]

    def exact(level: str) -> bool:
        model = models[level]
        scratch = np.empty(_native.mask_head_scratch_size(model), np.uint8)
        grid = np.empty((80, 80), np.float32)
        for i, slot in enumerate(best.tolist()):
            _native.mask_head(
                model, outputs["parameters"], outputs["mask_features"], len(places), False, 80, 80,
                candidates[i : i + 1], (0, 0, 80, 80), scratch, grid,
            )  # fmt: skip
            truth = _head_truth(outputs, slot, places[slot], float(scales[slot]))
            if not np.allclose(grid.T, truth, rtol=1e-4, atol=1e-3):
                return False
        return True

    return Case(
        "mask head", f"{count} instances at 80 x 80, boxes {share:.1%} of the map",
        ours, contenders, _missing(peers), exact, 6, 15,
    )  # fmt: skip


def _box_share(boxes: Floats) -> float:
    sides = np.clip(boxes, 0, 640)
    return float(((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])).mean() / 640**2)


# --- masks ---------------------------------------------------------------------------------------

STRIDE = 4


def _surface(grid: NDArray[Any], x: Any, y: Any, stride: int) -> NDArray[np.float64]:
    """Sample a grid bilinearly at input pixels in float64, (len(y), len(x))."""
    rows, columns = grid.shape
    u = np.clip(x / stride - 0.5, 0, columns - 1)
    v = np.clip(y / stride - 0.5, 0, rows - 1)
    j, i = np.floor(u).astype(int), np.floor(v).astype(int)
    j2, i2 = np.minimum(j + 1, columns - 1), np.minimum(i + 1, rows - 1)
    fx, fy = u - j, (v - i)[:, None]
    z = grid.astype(np.float64)
    upper = z[i][:, j] * (1 - fx) + z[i][:, j2] * fx
    lower = z[i2][:, j] * (1 - fx) + z[i2][:, j2] * fx
    result: NDArray[np.float64] = upper * (1 - fy) + lower * fy
    return result


def _truth(
    grid: NDArray[np.floating[Any]], plan: Letterbox, pixels: Sequence[int], stride: int
) -> NDArray[np.float64]:
    """Sample a grid at the centres of some frame pixels in float64."""
    x = (np.arange(pixels[0], pixels[2]) + 0.5) * plan.scale_x
    y = (np.arange(pixels[1], pixels[3]) + 0.5) * plan.scale_y
    return _surface(grid, x, y, stride)


def _agrees(mask: NDArray[np.bool_], truth: NDArray[np.float64], band: float = BAND) -> bool:
    clear = np.abs(truth) > band
    return bool(np.array_equal(mask[clear], (truth > 0)[clear]))


def _mask_inputs(count: int, plan: Letterbox) -> MaskInputs:
    grids, boxes = benchmark_inputs.mask_grids(count)
    cells, pixels = [], []
    for box in boxes.tolist():
        _, _, inside, needed = _native.cut_box(tuple(box), plan.as_tuple(), STRIDE)
        pixels.append(inside)
        cells.append(needed)
    frame = (plan.frame_height, plan.frame_width)
    factor = plan.frame_width * STRIDE // plan.content_width
    return MaskInputs(grids, np.array(cells), np.array(pixels), frame, factor)


def _rle_case(count: int = 20) -> Case:
    plan = plan_letterbox(Fit(640, 640), 720, 1280)
    given = _mask_inputs(count, plan)
    rows, columns = given.grids.shape[1:]
    jobs: list[tuple[Any, ...]] = []
    for grid, cells, pixels in zip(
        given.grids, given.cells.tolist(), given.pixels.tolist(), strict=True
    ):
        part = np.ascontiguousarray(grid[cells[1] : cells[3], cells[0] : cells[2]].T)
        jobs.append((part, tuple(cells), tuple(pixels)))
    scratch = np.empty(_native.surface_scratch_size(720, 1280, rows), np.uint8)
    text = np.empty(_native.surface_text_size(plan.as_tuple(), rows), np.uint8)
    where = plan.as_tuple()

    def call(level: int = 0) -> list[bytes]:
        texts = []
        for logits, region, pixels in jobs:
            length, _ = _native.surface_rle(
                logits, region, rows, columns, STRIDE, where, pixels, scratch, text, level
            )
            texts.append(text[:length].tobytes())
        return texts

    peers = Peers()
    contenders = benchmark_peers.rle_peers(peers, given)

    def exact(level: str) -> bool | None:
        codec = Peers()("pycocotools.mask")
        if codec is None:
            return None
        for found, grid, pixels in zip(
            call(levels()[level]), given.grids, given.pixels.tolist(), strict=True
        ):
            mask = codec.decode({"size": [720, 1280], "counts": found})
            if codec.encode(np.asfortranarray(mask))["counts"] != found:
                return False
            x0, y0, x1, y1 = pixels
            inside = mask[y0:y1, x0:x1].astype(bool)
            if inside.sum() != mask.sum() or not _agrees(
                inside, _truth(grid, plan, pixels, STRIDE)
            ):
                return False
        return True

    return Case(
        "COCO RLE in boxes", f"{count} masks at 720p", _at_levels(call),
        contenders, _missing(peers), exact, 40, 80,
    )  # fmt: skip


def _bytes_case(count: int, floor: float, goal: float) -> Case:
    plan = plan_letterbox(Fit(640, 640), 720, 1280)
    given = _mask_inputs(count, plan)
    rows, columns = given.grids.shape[1:]
    turned = np.ascontiguousarray(given.grids.transpose(0, 2, 1))
    scratch = np.empty(_native.surface_scratch_size(720, 1280, rows), np.uint8)
    out = np.zeros((count, 720, 1280), np.uint8)
    whole, region, where = (0, 0, 1280, 720), (0, 0, columns, rows), plan.as_tuple()

    def call(level: int = 0) -> None:
        for logits, mask in zip(turned, out, strict=True):
            _native.surface_bytes(
                logits, region, rows, columns, STRIDE, where, whole, scratch, mask, level
            )

    peers = Peers()
    content = (plan.content_height // STRIDE, plan.content_width // STRIDE)
    contenders = benchmark_peers.byte_peers(peers, given, content, np.empty_like(out))

    def exact(level: str) -> bool:
        call(levels()[level])
        return all(
            _agrees(mask.view(np.bool_), _truth(grid, plan, whole, STRIDE))
            for mask, grid in zip(out[:20], given.grids, strict=False)
        )

    return Case(
        "byte masks, full frame", f"{count} masks at 720p", _at_levels(call),
        contenders, _missing(peers), exact, floor, goal,
    )  # fmt: skip


def mask_cases() -> Iterator[Callable[[], Case]]:
    """Give run-length texts and bytes of masks in the frame."""
    yield _rle_case
    yield lambda: _bytes_case(20, 6, 9)
    yield lambda: _bytes_case(100, 4, 6)


# --- letterbox -----------------------------------------------------------------------------------


BGR = 1  # bxs_pixel_format


def _float_letterbox_case(height: int, width: int, floor: float, goal: float) -> Case:
    plan = plan_letterbox(Fit(640, 640), height, width)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = np.empty((1, 3, 640, 640), np.float32)
    scratch = np.empty(_native.letterbox_scratch_size(plan.as_tuple()), np.uint8)
    mean, std, where = benchmark_peers.MEAN, benchmark_peers.STD, plan.as_tuple()

    def call(level: int) -> None:
        # the padding of a reused buffer stays, as with the peers
        _native.letterbox_f32(frame, BGR, where, None, mean, std, scratch, out, level)

    peers = Peers()
    content = (plan.content_height, plan.content_width)
    contenders = benchmark_peers.letterbox_peers(peers, frame, content, np.zeros_like(out))

    def exact(level: str) -> bool:
        call(levels()[level])
        grey = out[0, :, : content[0], : content[1]].transpose(1, 2, 0) * std + np.array(mean)
        return bool(np.abs(grey - _resized(frame, content)[:, :, ::-1]).max() <= ROUNDING)

    return Case(
        "letterbox, f32 NCHW normalised", f"{width} x {height} to 640", _at_levels(call),
        contenders, _missing(peers), exact, floor, goal,
    )  # fmt: skip


def _byte_letterbox_case(height: int, width: int) -> Case:
    plan = plan_letterbox(Fit(640, 640), height, width)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = np.empty((640, 640, 3), np.uint8)
    scratch = np.empty(_native.letterbox_scratch_size(plan.as_tuple()), np.uint8)
    where = plan.as_tuple()

    def call(level: int) -> None:
        _native.letterbox_rgb8(frame, BGR, where, None, scratch, out, level)

    peers = Peers()
    content = (plan.content_height, plan.content_width)
    contenders = benchmark_peers.byte_letterbox_peers(peers, frame, content, np.zeros_like(out))

    def exact(level: str) -> bool:
        call(levels()[level])
        truth = _resized(frame, content)[:, :, ::-1]
        return bool(np.abs(out[: content[0], : content[1]] - truth).max() <= ROUNDING)

    return Case(
        "letterbox, bytes NHWC", f"{width} x {height} to 640", _at_levels(call),
        contenders, _missing(peers), exact, None, None,
    )  # fmt: skip


def _resized(frame: NDArray[np.uint8], content: tuple[int, int]) -> NDArray[np.float64]:
    """Resize bilinearly in float64, unrounded."""
    x = (np.arange(content[1]) + 0.5) * frame.shape[1] / content[1]
    y = (np.arange(content[0]) + 0.5) * frame.shape[0] / content[0]
    return np.stack([_surface(frame[:, :, c], x, y, 1) for c in range(3)], axis=2)


def letterbox_cases() -> Iterator[Callable[[], Case]]:
    """Give the way of a BGR camera frame into the network's input."""
    yield lambda: _float_letterbox_case(720, 1280, 3.3, 4)
    yield lambda: _float_letterbox_case(750, 1000, 2.4, 3)
    yield lambda: _byte_letterbox_case(720, 1280)
    yield lambda: _byte_letterbox_case(750, 1000)


# --- the whole -----------------------------------------------------------------------------------


def _metadata() -> Metadata:
    names = tuple(f"class {i}" for i in range(benchmark_inputs.CLASSES))
    return Metadata(
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        imgsz=Fit(640, 640),
        strides=benchmark_inputs.STRIDES,
        head=MaskHead(benchmark_inputs.HEAD_CHANNELS, HEAD_WIDTHS, True, HEAD_SCALES, 8),
        score0="sqrt_cls_quality",
        final_score="score0",
        candidate_score=PROBABILITY**0.5,
        nms_iou=IOU,
        candidates=1000,
        max_det=100,
        padding=PADDING,
    )


def _whole_case(count: int, floor_ms: float, goal_ms: float) -> Case:
    given = benchmark_inputs.network_outputs(count)
    plan = plan_letterbox(Fit(640, 640), 1080, 1920)
    metadata = _metadata()
    places, level_of = benchmark_inputs.locations(benchmark_inputs.STRIDES)
    scales = np.array(HEAD_SCALES)[level_of]
    ours: dict[str, Callable[[], Any]] = {}
    for name, number in levels().items():
        post = Postprocessor(metadata, conf=0.3, simd=number)
        ours[name] = lambda post=post: post(given.outputs, plan)  # type: ignore[misc]
    peers = Peers()
    contenders = benchmark_peers.whole_peers(
        peers, given, places, scales,
        frame=(1080, 1920), content=(plan.content_height, plan.content_width),
        candidate_score=metadata.candidate_score, max_det=metadata.max_det,
    )  # fmt: skip

    def exact(level: str) -> bool:
        found = ours[level]()
        if len(found) != count or set(found.labels % 80) != {i % 80 for i in range(count)}:
            return False
        return _whole_is_right(given, plan, found, places, scales)

    return Case(
        "whole post-processing", f"1080p, {count} detections", ours, contenders, _missing(peers),
        exact, 20, 40, (1e3 * floor_ms, 1e3 * goal_ms),
    )  # fmt: skip


def _whole_is_right(
    given: NetworkOutputs, plan: Letterbox, found: Any, places: Any, scales: Any
) -> bool:
    """Hold every mask against the head and the surface in float64, inside its box."""
    boxes = given.outputs["boxes"][0]
    matched = set()
    for crop, box in zip(found.crops(), found.xyxy, strict=True):
        predicted = np.clip(boxes[given.best], 0, (640, 360, 640, 360)) / plan.scale_x
        number = int(np.abs(predicted - box).max(axis=1).argmin())
        slot = int(given.best[number])
        matched.add(number)
        _, _, pixels, _ = _native.cut_box(tuple(boxes[slot].tolist()), plan.as_tuple(), 8)
        x0, y0, x1, y1 = pixels
        mask = np.zeros((plan.frame_height, plan.frame_width), bool)
        mask[crop.y : crop.y + crop.mask.shape[0], crop.x : crop.x + crop.mask.shape[1]] = crop.mask
        inside = mask[y0:y1, x0:x1]
        logits = _head_truth(given.outputs, slot, places[slot], float(scales[slot]))
        # float32 heads with coordinates of up to ten units are good to a thousandth
        truth = _truth(logits, plan, pixels, 8)
        if inside.sum() != mask.sum() or not _agrees(inside, truth, 1e-3):
            return False
    return len(matched) == len(found)


def whole_cases() -> Iterator[Callable[[], Case]]:
    """Give everything after the engine, from dense outputs to run-length texts."""
    yield lambda: _whole_case(20, 1.0, 0.5)
    yield lambda: _whole_case(100, 1.5, 1.0)


# --- size and memory -----------------------------------------------------------------------------

ALLOCATORS = (
    "malloc", "calloc", "realloc", "reallocarray", "aligned_alloc", "posix_memalign", "memalign",
    "valloc", "mmap", "mmap64", "brk", "sbrk", "strdup", "free",
)  # fmt: skip


def footprint_rows() -> list[Row]:
    """Say how large the library is, and how often it allocates.

    In a checkout with CMake and strip it is the library that CMake builds; else the Python
    extension, which holds the same library and its binding. Allocations are counted by name: a
    library that imports no allocator cannot allocate.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = _build_library(Path(folder))
        what = "libboxseg, built by CMake"
        if built is None:
            built, what = Path(_native.__file__), "Python extension with the library in it"
        text = built.read_bytes()
        size = _stripped_kilobytes(built, Path(folder) / "stripped")
    imported = [name for name in ALLOCATORS if b"\0" + name.encode() + b"\0" in text]
    return [
        Row("library size, stripped (KB)", what, size, None, None, None, 150, 100, None),
        Row(
            "allocations per frame (count)",
            f"{what}: imports {', '.join(imported) or 'no allocator'}",
            None if imported else 0.0, None, None, None, 0, 0, not imported,
        ),
    ]  # fmt: skip


def _build_library(folder: Path) -> Path | None:
    """Build libboxseg; None without CMake or the sources."""
    program, sources = shutil.which("cmake"), Path(__file__).resolve().parent
    if program is None or not (sources / "CMakeLists.txt").is_file():
        return None
    for words in (["-S", str(sources), "-B", str(folder)], ["--build", str(folder)]):
        done = subprocess.run([program, *words], capture_output=True, check=False)
        if done.returncode != 0:
            return None
    return next((path for path in folder.rglob("libboxseg.so*") if not path.is_symlink()), None)


def _stripped_kilobytes(path: Path, target: Path) -> float | None:
    """Return thousands of bytes of a file without symbols; None without the program `strip`."""
    program = shutil.which("strip")
    if program is None:
        return None
    done = subprocess.run(
        [program, "-s", "-o", str(target), str(path)], capture_output=True, check=False
    )
    return target.stat().st_size / 1e3 if done.returncode == 0 else None


# --- everything ----------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], Iterator[Callable[[], Case]]]] = {
    "nms": nms_cases,
    "scan": scan_cases,
    "head": head_cases,
    "masks": mask_cases,
    "letterbox": letterbox_cases,
    "whole": whole_cases,
}


def run(
    parts: Sequence[str] = (),
    *,
    seconds: float = 1.0,
    progress: Callable[[Row], object] = bool,
) -> Report:
    """Race parts.

    Args:
        parts: Keys of PARTS; none is all, with size and allocations.
        seconds: Roughly, per case.
        progress: Gets each row when it is there.
    """
    report = Report()

    def add(rows: Sequence[Row]) -> None:
        for row in rows:
            report.rows.append(row)
            progress(row)

    for name in parts or PARTS:
        for make in PARTS[name]():
            case = make()
            rows, times = run_case(case, seconds=seconds)
            report.raced[f"{case.part}, {case.name}"] = times
            add(rows)
    if not parts:
        add(footprint_rows())
    return report


def row_line(row: Row) -> str:
    """Return a row for people."""
    what = f"{row.part}: {row.case}"
    if row.ours_us is None:
        return f"{what:<72} {row.peer or 'not measured'}"
    exact = {True: "exact", False: "NOT EXACT", None: ""}[row.exact]
    limit = "no limit" if row.floor is None else f"{row.floor:g} / {row.goal:g}"
    if row.ratio is None:
        return f"{what:<72}{row.ours_us:>10.1f} at most {limit} {verdict(row)} {exact}"
    return (
        f"{what:<72}{row.ours_us:>10.1f}{row.peer_us:>11.1f}{row.ratio:>8.1f}x "
        f"{limit} {verdict(row)} {exact}  {row.peer}"
    )


def quiet_ratios(report: Report) -> list[str]:
    """Compare the best times, which other work on the machine disturbs least; a line per case."""
    lines = []
    for name, times in report.raced.items():
        rivals = {peer: t.best for peer, t in times.items() if not peer.startswith(OURS)}
        if rivals:
            theirs = min(rivals, key=lambda peer: rivals[peer])
            mine = {who: t.best for who, t in times.items() if who.startswith(OURS)}
            shown = ", ".join(
                f"{who.removeprefix(OURS + ' ')} {rivals[theirs] / best:.1f}x"
                for who, best in mine.items()
            )
            lines.append(f"{name}: {shown} ({theirs})")
    return lines


def verdict(row: Row) -> str:
    """Say where a row stands: goal, floor, below, or nothing where there is no limit."""
    if row.ours_us is None or row.floor is None or row.goal is None:
        return ""
    value = row.ours_us if row.ratio is None else row.ratio
    sign = -1 if row.ratio is None else 1
    if sign * value >= sign * row.goal:
        return "goal"
    return "floor" if sign * value >= sign * row.floor else "below"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the ratios with their floors and goals.

    Raises:
        BackendMissingError: if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BackendMissingError(
            "--plot needs matplotlib, which is not installed; pip install boxseg[train]"
        ) from None
    shown = [row for row in rows if row.ratio is not None]
    with mpl.rc_context({"svg.hashsalt": "boxseg"}):  # the same bytes for the same rows
        figure = Figure(figsize=(10, 0.32 * len(shown) + 1.4), layout="constrained")
        axes = figure.subplots()
        y = np.arange(len(shown))
        colours = {"goal": "tab:green", "floor": "tab:blue", "below": "tab:orange", "": "tab:grey"}
        axes.barh(
            y, [row.ratio or 0 for row in shown], color=[colours[verdict(row)] for row in shown]
        )
        for limit, marker in (("floor", "|"), ("goal", "D")):
            axes.plot([getattr(row, limit) for row in shown], y, marker, color="black", label=limit)
        axes.set_yticks(y, [f"{row.part}: {row.case}" for row in shown], fontsize=7)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("times faster than the fastest peer, one thread of ours")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=120)
