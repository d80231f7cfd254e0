"""The commands of a robot but bench: predict, eval and doctor; none of them imports torch.

MODEL is what `boxseg export` wrote (.onnx, *_openvino_model), or a run folder or .pt file, which is
opened by the function that the command line puts into `click.Context.obj["open_torch"]`.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxseg import __version__
from boxseg.errors import BackendMissingError, DataError, counted, one_line, printable

if TYPE_CHECKING:
    from boxseg.runtime.benchmark import Timing
    from boxseg.runtime.images import Frame
    from boxseg.runtime.segmenter import Segmenter

FILE = click.Path(path_type=Path)
REPORT = click.Path(path_type=Path, dir_okay=False)
"""A file that is written: a folder of that name is refused before the work, not after it."""

TORCH_SUFFIXES = (".pt", ".pth")
BUSY_SHARE = 0.5  # load per core, before a benchmark begins, above which times are not trusted

# Distribution -> the extra that installs it, in the order of `boxseg doctor`.
OPTIONAL = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "pycocotools": "eval",
    "av": "video",
    "torch": "train",
    "torchvision": "train",
    "onnx": "export",
    "onnxscript": "export",
}
FILES = {"onnxruntime": ".onnx", "openvino": "*_openvino_model", "tensorrt": ".engine"}
"""What each engine runs."""
TRACING = ("torch", "torchvision", "onnx", "onnxscript")
EXPORTS = {
    "onnx": (*TRACING, "onnxruntime"),
    "openvino": (*TRACING, "openvino"),
    "trt": (*TRACING, "tensorrt"),
}
"""What each format needs: to trace the network, and to prove the file."""
INSTRUCTION_SETS = (
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_bf16", "AMX BF16"),
    ("amx_int8", "AMX INT8"),
    ("asimd", "NEON"),
    ("asimddp", "NEON dot product"),
)


# --- what several commands need ------------------------------------------------------------------


def is_torch_model(path: Path) -> bool:
    """Whether a path is a model file or a run folder rather than a deployed file."""
    if path.is_dir():
        return not any(path.glob("*.xml"))
    return path.suffix.lower() in TORCH_SUFFIXES


def _open_torch(path: Path, device: str | None) -> Any:
    """Open a model file through the hook of the command line; torch is imported behind it."""
    context = click.get_current_context(silent=True)
    hook: Callable[[Path, str | None], Any] | None = (
        (context.find_object(dict) or {}).get("open_torch") if context is not None else None
    )
    missing = f"{path} runs in torch, which is not installed; pip install boxseg[train]"
    if hook is None:
        raise BackendMissingError(missing)
    try:
        return hook(path, device)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "boxseg":
            raise
        raise BackendMissingError(missing) from None


def open_model(
    path: Path,
    *,
    conf: float,
    iou: float | None = None,
    max_det: int | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Segmenter:
    """Open any kind of model as a Segmenter.

    Raises:
        FileMismatchError: if the file is none of boxseg's.
        BackendMissingError: if its engine is not installed.
        click.UsageError: if the path does not exist or an option does not go with it.
    """
    if not path.exists():
        raise click.UsageError(f"MODEL {path}: no such file or folder")
    opened: Any = path
    if is_torch_model(path):
        if threads is not None:
            raise click.UsageError(
                "--threads is for .onnx and OpenVINO files; in torch set OMP_NUM_THREADS"
            )
        opened = _open_torch(path, device)
        device = None  # the backend has it
    from boxseg.runtime.segmenter import Segmenter

    return Segmenter(opened, conf=conf, iou=iou, max_det=max_det, device=device, threads=threads)


def write_json(path: Path, values: object) -> None:
    """Write a JSON file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(values, stream, allow_nan=False)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a counter on a terminal's standard error; nothing in a log."""
    shown = sys.stderr.isatty()

    def step(done: int, total: int) -> None:
        if shown:
            click.echo(f"\r{label} {done}/{total}", nl=False, err=True)

    yield step
    if shown:
        click.echo("\r" + " " * 60 + "\r", nl=False, err=True)


class NumbersCommand(click.Command):
    """Takes `--imgsz 320 640` as well as `--imgsz 320,640`: what follows belongs to the option."""

    def __init__(self, *args: Any, numbers: Mapping[str, int | None], **words: Any) -> None:
        """Take the options of several numbers, and how many each takes at most; None is any."""
        super().__init__(*args, **words)
        self.numbers = numbers

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the numbers by commas before click counts words."""
        joined: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            joined.append(word)
            if word in self.numbers and words:
                found = [words.pop(0)]
                most = self.numbers[word] or len(args)
                while words and len(found) < most and found[0].isdigit() and words[0].isdigit():
                    found.append(words.pop(0))
                joined.append(",".join(found))
        return super().parse_args(ctx, joined)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every command with a model has."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine."),
        click.option("--device", help="cpu, cuda, cuda:0, or a device of OpenVINO."),
        click.option(
            "--max-det",
            type=click.IntRange(min=1),
            help="Detections per frame.  [default: the file's]",
        ),
        click.option(
            "--iou",
            type=click.FloatRange(0, 1),
            help="NMS suppresses above this IoU.  [default: the file's]",
        ),
    ):
        command = option(command)
    return command


def cores_text(machine: Mapping[str, object]) -> str:
    """Say how many cores this process has."""
    return f"{machine['cores']} of {machine['cores_present']} cores"


def input_text(segmenter: Segmenter) -> str:
    """Say the input size, height first."""
    from boxseg.runtime.preprocess import Fit

    size = segmenter.metadata.imgsz
    if isinstance(size, Fit):
        return f"input {size.height} x {size.width} (height x width)"
    return f"input short side {size.short}, long side at most {size.long}"


# --- predict -------------------------------------------------------------------------------------


def _count_text(names: list[str]) -> str:
    """Say what was found: 2 person, 1 dog."""
    return (
        ", ".join(f"{count} {one_line(name)}" for name, count in Counter(names).items())
        or "nothing"
    )


def _picture_path(folder: Path, frame: Frame, taken: set[Path]) -> Path:
    """Name a picture after its frame; a number is added where two frames share a name."""
    path, number = folder / f"{frame.name}.jpg", 2
    while path in taken:
        path = folder / f"{frame.name}-{number}.jpg"
        number += 1
    taken.add(path)
    return path


@click.command()
@click.argument("model", type=FILE)
@click.argument("sources", type=FILE, nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Keep detections with a final score above this.",
)
@engine_options
@click.option(
    "--out",
    type=FILE,
    default=Path("predictions"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--save-json", type=REPORT, help="Write all detections to this file (COCO).")
@click.option("--no-pictures", is_flag=True, help="Do not draw.")
def predict(
    model: Path,
    sources: tuple[Path, ...],
    conf: float,
    iou: float | None,
    max_det: int | None,
    device: str | None,
    threads: int | None,
    out: Path,
    save_json: Path | None,
    no_pictures: bool,
) -> None:
    """Find instances in images, folders or videos.

    SOURCE is an image file, a video file, or a folder of them. Pictures are written to --out, one
    per image or video frame. --save-json writes one COCO file: images with their names, categories,
    and annotations with a score each, boxes as x, y, width, height and masks as RLE.
    """
    from boxseg.runtime.images import iterate_frames, list_sources

    files = [file for source in sources for file in list_sources(source)]
    if not no_pictures:
        if out.exists() and not out.is_dir():
            raise click.UsageError(f"--out {out} is a file; name a folder")
        for file in files:
            if file.parent.resolve() == out.resolve():
                raise click.UsageError(f"--out {out} holds the source {file}; name another folder")
    segmenter = open_model(
        model, conf=conf, iou=iou, max_det=max_det, device=device, threads=threads
    )
    if not no_pictures:
        out.mkdir(parents=True, exist_ok=True)
    failed: list[DataError] = []

    def skip(error: DataError) -> None:
        failed.append(error)
        click.echo(f"error: {one_line(str(error))}", err=True)

    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    taken: set[Path] = set()
    for file in files:
        for frame in iterate_frames(file, skip if len(files) > 1 else None):
            detections = segmenter(frame.image)
            names = [segmenter.metadata.classes[int(label)] for label in detections.labels]
            milliseconds = float(detections.times_ms["total"])
            place = printable(str(frame.path)) + (f" [{frame.index}]" if frame.is_video else "")
            click.echo(f"{place}: {_count_text(names)}, {milliseconds:.1f} ms")
            if save_json is not None:
                image_id = len(images) + 1
                picture_entry: dict[str, object] = {
                    "id": image_id,
                    "file_name": str(frame.path),
                    "height": frame.image.shape[0],
                    "width": frame.image.shape[1],
                }
                if frame.is_video:
                    picture_entry["frame"] = frame.index
                images.append(picture_entry)
                for entry in detections.to_coco(image_id):
                    annotations.append(_annotation(entry, len(annotations) + 1))
            if not no_pictures:
                from boxseg.runtime.drawing import Instances, draw_instances, write_picture

                picture = draw_instances(frame.image, Instances.from_detections(detections))
                write_picture(_picture_path(out, frame, taken), picture)
    if save_json is not None:
        ids, classes = segmenter.metadata.category_ids, segmenter.metadata.classes
        categories = [{"id": i, "name": n} for i, n in zip(ids, classes, strict=True)]
        write_json(
            save_json,
            {"images": images, "categories": categories, "annotations": annotations},
        )
        click.echo(f"{counted(len(annotations), 'detection')} in {save_json}")
    if taken:
        click.echo(f"{counted(len(taken), 'picture')} in {out}")
    if failed:
        raise DataError(f"{len(failed)} of {len(files)} sources could not be read")


def _annotation(entry: Any, identity: int) -> dict[str, object]:
    """Complete a COCO result to an annotation that labelling tools read."""
    return {**entry, "id": identity, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}


# --- eval ----------------------------------------------------------------------------------------


def annotation_file(data: Path) -> Path:
    """Return the annotation file that --data names."""
    if data.is_dir():
        if not (data / "val.json").is_file():
            raise DataError(f"{data}: no val.json in this folder; give the annotation file itself")
        return data / "val.json"
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    return data


@click.command("eval")
@click.argument("model", type=FILE)
@click.option(
    "--data", type=FILE, required=True, help="COCO file, or a folder whose val.json is taken."
)
@click.option(
    "--images",
    type=FILE,
    help="Folder that the file names start from.  [default: that of the COCO file]",
)
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Judge detections with a final score above this; AP needs all of them.",
)
@engine_options
@click.option("--filled-boxes", is_flag=True, help="Also mask AP of the boxes filled.")
@click.option("--per-class", is_flag=True, help="Also AP of each class.")
@click.option("--max-images", type=click.IntRange(min=1), help="Judge the first N images alone.")
@click.option("--json", "json_file", type=REPORT, help="Write the numbers to this file.")
@click.option("--save-json", type=REPORT, help="Write the detections to this file (COCO results).")
def evaluate(
    model: Path,
    data: Path,
    images: Path | None,
    conf: float,
    iou: float | None,
    max_det: int | None,
    device: str | None,
    threads: int | None,
    filled_boxes: bool,
    per_class: bool,
    max_images: int | None,
    json_file: Path | None,
    save_json: Path | None,
) -> None:
    """Score a model on a COCO data set.

    Prints box AP, mask AP (if the file has masks), and how tightly masks fill their boxes, in
    percent. AP is COCO's: at most 100 detections per image and class, thresholds 0.50 to 0.95. Then
    the --conf of the highest F1 for `predict`, and what the default of 0.5 would find.
    """
    from boxseg.runtime import accuracy

    file = annotation_file(data)
    root = file.parent if images is None else images
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    segmenter = open_model(
        model, conf=conf, iou=iou, max_det=max_det, device=device, threads=threads
    )
    with progress("image") as step, progress("class") as judging:
        result = accuracy.evaluate(
            segmenter,
            file,
            root,
            max_images=max_images,
            filled_boxes=filled_boxes,
            progress=step,
            judging=judging,
        )
    click.echo(f"{model} on {file}, {_backend_text(segmenter)}, {input_text(segmenter)}")
    for line in accuracy.report_lines(result, per_class=per_class):
        click.echo(line)
    if conf > 0:
        click.echo(f"detections with a score up to {conf:g} were not judged (--conf)")
    if save_json is not None:
        write_json(save_json, result.results)
    if json_file is not None:
        settings = {"conf": conf, "iou": iou, "max_det": max_det, "max_images": max_images}
        write_json(
            json_file,
            {
                "boxseg": __version__,
                "model": str(model),
                "data": str(file),
                "backend": segmenter.backend.name,
                "device": segmenter.backend.device,
                "settings": settings,
                **result.as_dict(),
            },
        )


def _backend_text(segmenter: Segmenter) -> str:
    """Say engine, device and stored precision."""
    backend = segmenter.backend
    return f"{backend.name} on {backend.device}, {segmenter.metadata.precision}"


# --- bench-native -----------------------------------------------------------------------------


def bench_notes(timings: Sequence[Timing], machine: dict[str, Any]) -> list[str]:
    """Say what keeps the times from meaning what they seem to."""
    notes = []
    if any(timing.detections_most == 0 for timing in timings):
        notes.append("A model found nothing: selecting and drawing masks cost it nothing here.")
    load, cores = machine["load_before"], machine["cores_present"]
    if load is not None and cores is not None and load > BUSY_SHARE * cores:
        notes.append(
            f"The machine was busy before this began (load {load:.1f} on {cores} cores); "
            "times may be too long."
        )
    return notes


@click.command("bench-native")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(("nms", "scan", "head", "masks", "letterbox", "whole")),
    help="Only this part; may be repeated.  [default: all, with size and allocations]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Length of each case's race.",
)
@click.option("--json", "json_file", type=REPORT, help="Write the rows to this file.")
@click.option("--plot", "plot_file", type=REPORT, help="Draw the ratios into this picture.")
def bench_native(
    parts: tuple[str, ...], seconds: float, json_file: Path | None, plot_file: Path | None
) -> None:
    """Time the native runtime's parts against the fastest peers on this machine.

    Columns: microseconds of ours on one thread, of the fastest peer on one or two threads, their
    ratio. Inputs are seeded; `pip install boxseg[dev]` installs all peers, and one that is missing
    is named.
    """
    from boxseg.runtime import benchmark, native_benchmark

    machine = benchmark.describe_machine()
    click.echo(f"{machine['cpu']}, {cores_text(machine)}, Python {machine['python']}")
    report = native_benchmark.run(
        parts, seconds=seconds, progress=lambda row: click.echo(native_benchmark.row_line(row))
    )
    notes = bench_notes([], machine)
    for note in notes:
        click.echo(f"\n{note}")
    if notes:
        click.echo("Ratios of the best times, which other work disturbs least:")
        for line in native_benchmark.quiet_ratios(report):
            click.echo(f"  {line}")
    if json_file is not None:
        write_json(json_file, report.as_list())
    if plot_file is not None:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        native_benchmark.plot(report.rows, plot_file)


# --- doctor --------------------------------------------------------------------------------------


def _check_native() -> str | None:
    """Return what is wrong with the native library; None if it works."""
    try:
        import numpy as np

        from boxseg.runtime.preprocess import Fit, letterbox

        image, _ = letterbox(np.full((8, 16, 3), 7, np.uint8), Fit(32, 32))
    except Exception as error:  # a doctor reports whatever is wrong
        return f"{type(error).__name__}: {error}"
    # 8 x 16 fills 16 x 32 at the top; below it is padding
    if image.shape != (32, 32, 3) or (image[:16] != 7).any() or tuple(image[16, 0]) == (7, 7, 7):
        return "gives wrong pixels"
    return None


def _simd_level() -> str:
    """Name the widest vectors that the native library uses here."""
    from boxseg.runtime import _native

    return _native.simd_levels()[-1]


def _identity() -> bytes:
    """Return the smallest ONNX file: y = x. It is written by hand, for a robot has no onnx."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def value(name: bytes) -> bytes:  # one float
        return field(1, name) + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01"))))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"x")) + field(12, value(b"y"))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0d")  # opset 13


def _providers(onnxruntime: Any) -> list[str]:
    """List what ONNX Runtime was built for, and say which of it does not load here."""
    found = []
    for name in map(str, onnxruntime.get_available_providers()):
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                session = onnxruntime.InferenceSession(_identity(), options, providers=[name])
            loads = session.get_providers()[0] == name
        except Exception:  # its exceptions have no common class of their own
            loads = False
        found.append(name if loads else f"{name} (does not load here)")
    return found


def _engine_devices(name: str) -> tuple[list[str], str | None]:
    """Return the devices of an engine, or what keeps it from loading."""
    try:
        module = importlib.import_module(name)
        if name == "onnxruntime":
            return _providers(module), None
        if name == "tensorrt":
            from boxseg.runtime.cuda_driver import CudaDevice
            from boxseg.runtime.engine_sidecar import check_version

            check_version(module.__version__)
            return [CudaDevice().description], None
        return [str(device) for device in module.Core().available_devices], None
    except Exception as error:  # a doctor reports whatever is wrong
        return [], " ".join(f"{type(error).__name__}: {error}".split())


def _lacks(
    needed: tuple[str, ...], versions: Mapping[str, str | None], faults: Mapping[str, str]
) -> str:
    """Say what keeps packages from working; "" if nothing does."""
    missing = [name for name in needed if versions[name] is None]
    parts = [f"{name} is missing; pip install boxseg[{OPTIONAL[name]}]" for name in missing]
    parts += [f"{name} does not load: {faults[name]}" for name in needed if name in faults]
    return ", ".join(parts)


@click.command()
@click.option("--json", "json_file", type=REPORT, help="Write the findings to this file.")
def doctor(json_file: Path | None) -> None:
    """Say what this machine can run and export, and what is missing.

    Ends with 4 if the native library or every engine is missing.
    """
    from boxseg.runtime import benchmark

    machine = benchmark.describe_machine()
    flags = benchmark.cpu_flags()
    sets = [text for flag, text in INSTRUCTION_SETS if flag in flags]
    click.echo(f"boxseg {__version__}, Python {platform.python_version()} ({sys.executable})")
    click.echo(f"{machine['system']}, {machine['cpu']}, {cores_text(machine)}")
    click.echo(f"instruction sets: {', '.join(sets) if sets else 'not reported'}")

    fault = _check_native()
    simd = _simd_level() if fault is None else None
    click.echo(f"native library: {fault or f'ok, {simd}'}")
    click.echo()
    versions = {name: benchmark.package_version(name) for name in ("numpy", "pillow", *OPTIONAL)}
    for name, version in versions.items():
        extra = OPTIONAL.get(name)
        hint = f"missing; pip install {f'boxseg[{extra}]' if extra else name}"
        click.echo(f"{name:<14}{version or hint}")

    click.echo()
    engines: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for name in FILES:
        if versions[name] is None:
            continue
        devices, problem = _engine_devices(name)
        if problem is None:
            engines[name] = devices
            click.echo(f"{name} runs on {', '.join(devices) or 'nothing'}")
        else:
            faults[name] = problem
            click.echo(f"{name} does not load: {problem}")
    runs = {kind: _lacks((name,), versions, faults) for name, kind in FILES.items()}
    exports = {kind: _lacks(needed, versions, faults) for kind, needed in EXPORTS.items()}
    for verb, answers in (("runs", runs), ("exports", exports)):
        click.echo()
        for kind, lacks in answers.items():
            click.echo(f"{verb:<8} {kind:<17}{'no: ' + lacks if lacks else 'yes'}")
    if json_file is not None:
        write_json(
            json_file,
            {
                **machine,
                "instruction_sets": sets,
                "native": fault or "ok",
                "simd": simd,
                "versions": versions,
                "engines": engines,
                "faults": faults,
                "runs": runs,
                "exports": exports,
            },
        )
    if fault is not None:
        raise BackendMissingError(
            "the native library does not work; pip install --force-reinstall boxseg"
        )
    if not any(engines.values()):
        raise BackendMissingError(
            "no engine can run a deployed file; pip install boxseg[onnxruntime]"
        )
