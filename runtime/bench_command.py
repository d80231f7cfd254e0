"""`boxseg bench`: several files in one run, and what else a robot's builder asks about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxseg.errors import BackendMissingError, BoxSegError, counted
from boxseg.runtime import commands

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from boxseg.runtime.benchmark import StageTime
    from boxseg.runtime.cuda_driver import CudaDevice
    from boxseg.runtime.segmenter import Segmenter

FRAMES = 64
"""Decoded frames that are kept in memory."""


class NumberList(click.ParamType[tuple[int, ...]]):
    """Numbers in ascending order, from `1,2,4`."""

    name = "N,N,..."

    def __init__(self, least: int) -> None:
        """Take the least number that is allowed."""
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        words = str(value).replace(",", " ").split()
        if not words or not all(word.isdigit() and int(word) >= self.least for word in words):
            self.fail(f"must be numbers of at least {self.least}, got {value!r}", param, ctx)
        return tuple(sorted({int(word) for word in words}))


def _frames(
    source: Path | None, data: Path | None, max_images: int | None
) -> tuple[list[NDArray[np.uint8]], str]:
    """Return frames and what they are.

    Args:
        source: What the user named for times.
        data: What the user named for AP; the frames are its images where there is no source.
        max_images: No more of them than this.
    """
    from itertools import islice

    from boxseg.runtime.benchmark import synthetic_frame
    from boxseg.runtime.images import iterate_frames, read_image

    if source is None and data is not None:
        from boxseg.runtime.accuracy import load_truth

        file = commands.annotation_file(data)
        entries = load_truth(file).images[: min(FRAMES, max_images or FRAMES)]
        frames = [read_image(file.parent / entry["file_name"]) for entry in entries]
        return frames, f"frames: the first {counted(len(frames), 'image')} of {data}"
    if source is None:
        return [
            synthetic_frame()
        ], "frames: a synthetic frame (seed 0), no real image: use --source"
    frames = [frame.image for frame in islice(iterate_frames(source), FRAMES)]
    return frames, f"frames: {counted(len(frames), 'frame')} of {source}"


def _size_bytes(path: Path) -> int:
    """Return the bytes of what is loaded: a file, an .xml with its .bin, a run's best.pt."""
    if path.is_dir():
        is_run = commands.is_torch_model(path)
        parts = [path / "best.pt"] if is_run else [*path.glob("*.xml")]
        return sum(_size_bytes(part) for part in parts if part.is_file())
    weights = path.with_suffix(".bin")
    extra = weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0
    return path.stat().st_size + extra


def _threads(path: Path, asked: int | None, device: str | None) -> int | None:
    """Return the threads of an engine: as asked, else all cores; None where it has no such number.

    An engine that chooses for itself may choose otherwise on the next day.
    """
    from boxseg.runtime.backends import ENGINE_SUFFIXES
    from boxseg.runtime.benchmark import usable_cores

    on_cpu = (device or "cpu").lower() == "cpu"
    if asked is not None or not on_cpu or commands.is_torch_model(path):
        return asked
    return None if path.suffix.lower() in ENGINE_SUFFIXES else usable_cores()


def _gpu(path: Path, device: str | None) -> CudaDevice | None:
    """Open the GPU that a file will run on; None for other devices, and where there is none."""
    from boxseg.runtime.backends import ENGINE_SUFFIXES
    from boxseg.runtime.cuda_driver import CudaDevice

    is_engine = path.suffix.lower() in ENGINE_SUFFIXES
    kind, _, number = (device or ("cuda" if is_engine else "cpu")).lower().partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        return None
    try:
        return CudaDevice(int(number or 0))
    except BackendMissingError:  # the engine says it in its own words
        return None


def _refused(name: str, batch: int, run: Callable[[Any], object]) -> Callable[[Any], object]:
    """Say in one line that an engine does not take a batch."""

    def guarded(images: Any) -> object:
        try:
            return run(images)
        except BoxSegError:
            raise
        except Exception as error:  # every engine has its own class for a refused shape
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BoxSegError(
                f"--batch {batch}: {name} refuses this batch ({reason}); "
                "the file may hold a fixed batch of 1"
            ) from None

    return guarded


def _batch_entries(
    paths: Sequence[Path],
    segmenters: dict[str, Segmenter],
    frame: NDArray[np.uint8],
    batches: Sequence[int],
    rounds: tuple[int, int],
) -> dict[str, list[dict[str, Any]]]:
    """Time the engines alone on every batch that their file takes."""
    from boxseg.runtime.bench_scenarios import measure_batches
    from boxseg.runtime.preprocess import letterbox

    images, wanted = {}, {}
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in segmenters}
    for path in paths:
        name, segmenter = str(path), segmenters[str(path)]
        said = segmenter.metadata
        images[name] = letterbox(frame, said.imgsz, padding=said.padding)[0]
        wanted[name] = list(batches)
        if not commands.is_torch_model(path):
            least, most = said.batch.least, said.batch.most
            wanted[name] = [size for size in batches if least <= size <= most]
            takes = counted(most, "image")
            takes = takes if least == most else f"{least} to {takes}"
            entries[name] = [
                {"batch": size, "skipped": f"not timed, the file takes {takes} per run"}
                for size in batches
                if size not in wanted[name]
            ]
    found: dict[str, dict[int, StageTime]] = {name: {} for name in segmenters}
    for size in batches:
        runs = {
            name: _refused(segmenter.backend.name, size, segmenter.backend.run)
            for name, segmenter in segmenters.items()
            if size in wanted[name]
        }
        if runs:
            sizes = dict.fromkeys(runs, (size,))
            timed = measure_batches(runs, images, sizes, warmup=rounds[0], iters=rounds[1])
            for name, stages in timed.items():
                found[name] |= stages
    for name, stages in found.items():
        entries[name] += [{"batch": size, **asdict(stage)} for size, stage in stages.items()]
        entries[name].sort(key=lambda entry: int(entry["batch"]))
    return entries


def _object_entries(
    segmenters: dict[str, Segmenter],
    frame: NDArray[np.uint8],
    counts: Sequence[int],
    rounds: tuple[int, int, int],
    options: dict[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Time whole frames whose outputs hold so many synthetic objects; all take turns.

    Args:
        segmenters: By name.
        frame: uint8 RGB (H, W, 3).
        counts: Objects; each number is timed.
        rounds: Those of the warm-up, timed ones, and those of a block.
        options: Limits of the suppression.
    """
    from boxseg.runtime.bench_scenarios import WithObjects
    from boxseg.runtime.benchmark import measure
    from boxseg.runtime.preprocess import plan_letterbox
    from boxseg.runtime.segmenter import Segmenter

    models, against = {}, {}
    leader = next(iter(segmenters))
    for name, segmenter in segmenters.items():
        plan = plan_letterbox(segmenter.metadata.imgsz, *frame.shape[:2])
        content = (plan.content_height, plan.content_width)
        for count in counts:
            backend = WithObjects(segmenter.backend, segmenter.metadata, content, count)
            models[f"{name}\n{count}"] = Segmenter(backend, conf=0.0, **options)
            against[f"{name}\n{count}"] = f"{leader}\n{count}"
    warmup, iters, block = rounds
    timings = measure(models, [frame], warmup=warmup, iters=iters, block=block, against=against)
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in segmenters}
    for timing in timings:
        name, _, number = timing.model.rpartition("\n")
        entries[name].append(
            {
                "objects": int(number),
                "detections": timing.detections_mean,
                "rounds": timing.rounds,
                "stages": {stage: asdict(value) for stage, value in timing.stages.items()},
                "compared": {stage: asdict(value) for stage, value in timing.compared.items()},
            }
        )
    return entries


def _score(
    segmenters: dict[str, Segmenter], data: Path, most: int | None, options: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Measure the accuracy of the opened files."""
    from boxseg.runtime import accuracy
    from boxseg.runtime.segmenter import Segmenter

    file = commands.annotation_file(data)
    found: dict[str, dict[str, Any]] = {}
    for name, segmenter in segmenters.items():
        judged = Segmenter(segmenter.backend, conf=0.0, **options)
        with commands.progress("image") as step:
            result = accuracy.evaluate(judged, file, file.parent, max_images=most, progress=step)
        found[name] = {"data": str(file), **result.as_dict()}
    return found


@click.command(cls=commands.NumbersCommand, numbers={"--batch": None, "--objects": None})
@click.argument("models", type=commands.FILE, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--source",
    type=commands.FILE,
    help="Image, folder or video.  [default: the images of --data, else a synthetic 720 x 1280 "
    "frame]",
)
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True)
@click.option(
    "--iters",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Timed frames per model, at least.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds of timed work, at least.",
)
@click.option(
    "--block",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Rounds of a block; of each block it is said which model won.",
)
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Masks are made of detections with a final score above this.",
)
@commands.engine_options
@click.option(
    "--batch",
    "batches",
    type=NumberList(1),
    default=(1,),
    help="Also time the engine alone on so many images per call, for each number.",
)
@click.option(
    "--objects",
    type=NumberList(0),
    default=(),
    help="Also time frames with so many synthetic objects, for each number: 0,10,50,100.",
)
@click.option(
    "--hz",
    type=click.FloatRange(min=0, min_open=True),
    help="Also answer one frame per tick at this pace, as behind a camera.",
)
@click.option(
    "--streams",
    type=click.IntRange(min=2),
    help="Also run so many engines of each file at once, each in a thread of its own.",
)
@click.option(
    "--data", type=commands.FILE, help="Also measure COCO AP: COCO file, or folder with a val.json."
)
@click.option(
    "--max-images",
    type=click.IntRange(min=1),
    help="Of --data, take the first N images alone, for AP and as frames.",
)
@click.option(
    "--json", "json_file", type=commands.REPORT, help="Write settings, machine and times here."
)
@click.option("--markdown", "markdown_file", type=commands.REPORT, help="Write a report here.")
@click.option("--plot", "plot_file", type=commands.REPORT, help="Draw the stages here.")
def bench(
    models: tuple[Path, ...],
    source: Path | None,
    warmup: int,
    iters: int,
    duration: float,
    block: int,
    conf: float,
    iou: float | None,
    max_det: int | None,
    device: str | None,
    threads: int | None,
    batches: tuple[int, ...],
    objects: tuple[int, ...],
    hz: float | None,
    streams: int | None,
    data: Path | None,
    max_images: int | None,
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Time models, stage by stage.

    Several models take turns on the same frames. `total` is the wall-clock time from a frame in
    memory to its detections with masks as RLE; reading and decoding of image files is outside.
    --markdown says of each number what is inside.

    An engine on the CPU gets all cores of this process, unless --threads says otherwise.
    """
    from boxseg.runtime import bench_report, bench_scenarios, benchmark

    if max_images is not None and data is None:
        raise click.UsageError("--max-images is for --data")
    if plot_file is not None:
        bench_report.check_plot(plot_file)
    frames, text = _frames(source, data, max_images)
    names = [str(path) for path in models]
    if len(set(names)) < len(names):
        raise click.UsageError("MODEL is given twice; each model is timed once")
    machine = benchmark.describe_machine()
    limits: dict[str, Any] = {"iou": iou, "max_det": max_det}
    segmenters: dict[str, Segmenter] = {}
    load_ms: dict[str, float] = {}
    memory, watch = {}, bench_scenarios.MemoryWatch()
    given = {str(path): _threads(path, threads, device) for path in models}

    def opened(path: Path, own_threads: int | None) -> Segmenter:
        return commands.open_model(path, conf=conf, device=device, threads=own_threads, **limits)

    gpus: dict[str, str | None] = {}
    for path in models:
        gpu = _gpu(path, device)
        gpus[str(path)] = None if gpu is None else gpu.description
        watch.start(gpu)
        begin = time.perf_counter()
        segmenters[str(path)] = opened(path, given[str(path)])
        load_ms[str(path)] = (time.perf_counter() - begin) * 1000
        memory[str(path)] = watch.stop()
    rounds = (warmup, iters)
    sweep = tuple(size for size in batches if size > 1 or len(batches) > 1)
    # first, because an engine may refuse
    batch_entries = _batch_entries(models, segmenters, frames[0], sweep, rounds) if sweep else {}
    scores = {} if data is None else _score(segmenters, data, max_images, limits)
    timings = benchmark.measure(
        segmenters, frames, warmup=warmup, iters=iters, duration=duration, block=block
    )
    object_entries = (
        _object_entries(segmenters, frames[0], objects, (warmup, iters, block), limits)
        if objects
        else {}
    )
    paced = (
        {} if hz is None else bench_scenarios.measure_paced(segmenters, frames, hz=hz, count=iters)
    )
    shared = {name: None if n is None else max(1, n // (streams or 1)) for name, n in given.items()}
    crowd = {}
    if streams is not None:
        groups = {
            str(path): [opened(path, shared[str(path)]) for _ in range(streams)] for path in models
        }
        crowd = bench_scenarios.measure_streams(groups, frames, warmup=warmup, iters=iters)

    sizes = sorted({f"{frame.shape[0]} x {frame.shape[1]}" for frame in frames})
    shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    click.echo(f"{machine['cpu']}, {commands.cores_text(machine)}, Python {machine['python']}")
    click.echo(f"{text}; {shown} (height x width), {counted(timings[0].rounds, 'round')}")
    records: list[dict[str, Any]] = []
    for path, timing in zip(models, timings, strict=True):
        name, segmenter = str(path), segmenters[str(path)]
        at_pace, together = paced.get(name), crowd.get(name)
        record: dict[str, Any] = {
            **timing.as_dict(),
            "backend": segmenter.backend.name,
            "engine_version": benchmark.package_version(segmenter.backend.name),
            "device": segmenter.backend.device,
            "gpu": gpus[name],
            "precision": segmenter.metadata.precision,
            "threads": given[name],
            "input": commands.input_text(segmenter),
            "bytes": _size_bytes(path),
            "load_ms": load_ms[name],
            "memory": asdict(memory[name]),
            "batches": batch_entries.get(name, []),
            "objects": object_entries.get(name, []),
            "paced": None if at_pace is None else {"hz": hz, **asdict(at_pace)},
            "streams": None
            if together is None
            else {"threads_each": shared[name], **asdict(together)},
            "accuracy": scores.get(name),
        }
        click.echo()
        for line in bench_report.record_lines(record):
            click.echo(line)
        records.append(record)
    if len(records) > 1:
        click.echo()
        for line in bench_report.table_lines(records):
            click.echo(line)
    notes = commands.bench_notes(timings, machine)
    for note in notes:
        click.echo(f"\n{note}")
    content = {
        "machine": machine,
        "frames": text,
        "peak_memory_bytes": watch.peak_bytes,
        "settings": {
            "source": None if source is None else str(source),
            "data": None if data is None else str(data),
            "frames": len(frames),
            "frame_sizes": sizes,
            "warmup": warmup,
            "iters": iters,
            "duration": duration,
            "block": block,
            "conf": conf,
            "iou": iou,
            "max_det": max_det,
            "threads": threads,
            "batch": list(batches),
            "objects": list(objects),
            "hz": hz,
            "streams": streams,
        },
        "models": records,
        "inside": {name: bench_report.INSIDE[name] for name in bench_report.used_numbers(records)},
        "notes": notes,
    }
    if json_file is not None:
        commands.write_json(json_file, content)
    if markdown_file is not None:
        markdown_file.parent.mkdir(parents=True, exist_ok=True)
        markdown_file.write_text(bench_report.markdown(content), encoding="utf-8")
    if plot_file is not None:
        bench_report.plot(records, plot_file)
