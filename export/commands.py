"""`boxseg export` and `boxseg verify`."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxseg.errors import (
    FileMismatchError,
    ParityError,
    UnverifiedError,
    counted,
)
from boxseg.runtime.commands import REPORT, NumbersCommand, is_torch_model

if TYPE_CHECKING:
    from boxseg.export.calibration import CalibrationSet
    from boxseg.export.precision import Reduced
    from boxseg.export.to_onnx import TracedGraph
    from boxseg.export.verify import Samples

FORMATS = {
    "onnx": "onnx",
    "openvino": "openvino",
    "ov": "openvino",
    "trt": "trt",
    "tensorrt": "trt",
    "engine": "trt",
}
"""What users type, and what it means."""
NAMED = {
    ".onnx": "onnx",
    "_openvino_model": "openvino",
    ".engine": "trt",
    ".plan": "trt",
    ".trt": "trt",
}
"""What a name in --out is taken for; other names are folders."""
FORMS = ("dense", "topk", "graph")
DEFAULT_FORMS = {"onnx": "dense", "openvino": "dense", "trt": "topk"}
"""On a CPU the C library selects faster than an engine; from a GPU every location would have to be
copied."""
DYNAMIC_BATCH = (1, 1, 8)
"""Least, best and most images where `--dynamic batch` says no more."""
PRECISIONS = {name: name for name in ("fp32", "fp16", "bf16", "int8")}


class ImageSize(click.ParamType[tuple[int, int]]):
    """Height and width in pixels, from `640`, `320 640`, `320,640` or `320x640`."""

    name = "H W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        words = str(value).replace(",", " ").replace("x", " ").split()
        if not 1 <= len(words) <= 2 or not all(word.isdigit() for word in words):
            self.fail(f"must be one number or height and width, got {value!r}", param, ctx)
        height, width = int(words[0]), int(words[-1])
        if height < 32 or width < 32 or height % 32 or width % 32:
            self.fail(f"must be multiples of 32 (height first), got {height} {width}", param, ctx)
        return height, width


def _batch(batch: tuple[int, int, int] | None, dynamic: str | None) -> tuple[int, int, int]:
    """Return the least, best and most images of a run from `--batch` and `--dynamic`."""
    if batch is None:
        return (1, 1, 1) if dynamic is None else DYNAMIC_BATCH
    least, best, most = batch
    if not least <= best <= most:
        raise click.BadParameter(
            f"must be MIN <= OPT <= MAX, got {least} {best} {most}", param_hint="'--batch'"
        )
    if dynamic is not None and least == most:
        raise click.UsageError(
            f"--dynamic batch needs MIN < MAX, got --batch {least} {best} {most}"
        )
    return batch


class Choice(click.ParamType[str]):
    """A word out of a list; words of later versions are answered as such."""

    def __init__(self, name: str, known: Mapping[str, str], absent: Iterable[str]) -> None:
        """Take the words that work, with their meaning, and those that do not work yet."""
        self.name = name
        self.known = known
        self.absent = tuple(absent)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the meaning of the word."""
        word = str(value).lower()
        if word in self.known:
            return self.known[word]
        there = ", ".join(self.known)
        if word in self.absent:
            reason = f"{word} is not available in this version; available: {there}"
        else:
            reason = f"must be one of {there}, got {value!r}"
        raise click.BadParameter(reason, ctx, param)


def _torch_device(value: str) -> str:
    """Return torch's spelling of a device: `0` and `cuda` are GPUs, `CPU` is the CPU."""
    word = value.lower()
    if word.isdigit():
        return f"cuda:{word}"
    if word == "cpu" or word == "cuda" or (word[:5] == "cuda:" and word[5:].isdigit()):
        return word
    raise click.BadParameter(
        f"must be cpu, cuda, cuda:N or N, got {value!r}", param_hint="'--device'"
    )


def _device_number(device: str) -> int:
    """Return the number of a GPU in torch's spelling; 0 for the CPU."""
    number = device.partition(":")[2]
    return int(number) if number else 0


def _size(size_bytes: float) -> str:
    """Format a size for people."""
    return f"{size_bytes / 1e6:.1f} MB"


def _gmac(traced: TracedGraph, metadata: Mapping[str, Any]) -> float:
    """Count the multiplications of one image in the convolutions, in thousands of millions."""
    from boxseg.export.lowering import name_nodes
    from boxseg.export.quantization import layers_of

    batch = metadata["batch"]
    images = batch["max"] if batch["min"] == batch["max"] else 1
    return float(sum(layer.work for layer in layers_of(name_nodes(traced.model)))) / images / 1e9


def _trainer_of(source: Path) -> Path | None:
    """Return the trainer.pt that belongs to what the user named, if there is one."""
    trainer = source / "trainer.pt" if source.is_dir() else source.parent / "trainer.pt"
    return trainer if trainer.is_file() else None


def _licences(words: Iterable[str]) -> dict[str, str]:
    """Read `--licence PART=NAME`; the code's licence is not the user's to state."""
    found = {}
    for word in words:
        part, equals, name = word.partition("=")
        if part not in ("weights", "data") or not equals or not name.strip():
            raise click.BadParameter(
                f"must be weights=NAME or data=NAME, got {word!r}", param_hint="'--licence'"
            )
        found[part] = name.strip()
    return found


def _samples(data: Path | None, count: int) -> Samples:
    """Take the frames of the gate."""
    from boxseg.export.verify import drawn_samples, real_samples

    return drawn_samples() if data is None else real_samples(data, count)


def _calibration(
    precision: str, calib: Path | None, count: int, data: Path | None, samples: Samples
) -> CalibrationSet:
    """Take the images that ranges are measured on."""
    from boxseg.export.calibration import CalibrationSet, calibration_set
    from boxseg.export.verify import image_files

    if calib is not None:
        return calibration_set(image_files(calib, "train"), calib, count)
    if data is not None and (data / "train.json").is_file():
        return calibration_set(image_files(data, "train"), data / "train.json", count)
    if precision == "int8":
        raise click.UsageError(
            "--precision int8 needs calibration images: name a folder or a COCO file with --calib, "
            "or a data folder that has a train.json with --data"
        )
    return CalibrationSet((), samples.source, tuple(samples.frames.values()))


def _doubts(
    calibration: CalibrationSet, data: Path | None, accuracy_images: int, report_images: int | None
) -> tuple[str, ...]:
    """Hold the calibration set against the images that the file is tried and judged on.

    Args:
        calibration: The set.
        data: What the user named.
        accuracy_images: AP is measured on so many images.
        report_images: --report judges on so many; None judges on all.
    """
    from boxseg.export.calibration import doubts_about
    from boxseg.export.manifest import annotations_of
    from boxseg.export.verify import image_files

    if data is None:
        return ()
    files, truth = image_files(data), annotations_of(data)
    most = len(files) if report_images is None else max(accuracy_images, report_images)
    judged = [] if truth is None else files[:most]
    return doubts_about(calibration, (truth or data).name, files, judged)


def _truth(precision: str, data: Path | None, report: Path) -> Path:
    """Return the annotation file that --report judges on."""
    from boxseg.export.manifest import annotations_of

    if report.suffix == ".md":
        raise click.UsageError(f"--report writes JSON, and tables beside it; got {report}")
    if precision == "fp32":
        raise click.UsageError("--report compares precisions; give --precision too")
    file = None if data is None else annotations_of(data)
    if file is None:
        raise click.UsageError(
            "--report needs masks and boxes to judge on: name a data folder with a val.json, or a "
            f"COCO file, with --data (got {data})"
        )
    return file


def _target(
    file: Path,
    out: Path | None,
    kind: str,
    formats: int,
    precision: str,
    weights: str | None = None,
) -> Path:
    """Return where a format goes: beside the model file, into a folder, or as named.

    Args:
        file: The model file.
        out: What the user named.
        kind: The format.
        formats: How many formats are written.
        precision: In the name if it is not fp32.
        weights: In the name if the user asked for them.
    """
    from boxseg.export.proven_file import ENDINGS

    parts = [file.stem, weights, None if precision == "fp32" else precision]
    stem = "_".join(part for part in parts if part is not None)
    name = f"{stem}{ENDINGS[kind]}"
    if out is None:
        return file.parent / name
    named = next((kind for ending, kind in NAMED.items() if out.name.endswith(ending)), None)
    if out.is_dir() and named != "openvino":
        named = None  # a folder may be called anything
    if named is not None and formats > 1:
        what, instead = ("folder", "its parent") if named == "openvino" else ("file", "a folder")
        raise click.BadParameter(
            f"{out} names one {what} for {formats} formats; name {instead}", param_hint="'--out'"
        )
    if named == kind:
        return out
    if named is not None or out.suffix == ".xml":
        raise click.BadParameter(
            f"{out} is no name for the format {kind}: it must end in {ENDINGS[kind]}, or be a "
            "folder",
            param_hint="'--out'",
        )
    if out.is_file():
        raise click.BadParameter(f"{out} is a file, not a folder", param_hint="'--out'")
    return out / name


def _check_build(
    is_asked: bool, workspace: float | None, timing_cache: Path | None, version_compatible: bool
) -> None:
    """Refuse options of TensorRT where no engine is asked for, and a workspace of no size."""
    given = {
        "--workspace": workspace is not None,
        "--timing-cache": timing_cache is not None,
        "--version-compatible": version_compatible,
    }
    for option, is_given in given.items():
        if is_given and not is_asked:
            raise click.UsageError(f"{option} is for --format trt")
    if workspace is not None and not math.isfinite(workspace):
        raise click.BadParameter(
            f"must be a number of GiB, got {workspace}", param_hint="'--workspace'"
        )


def _free_target(target: Path, kind: str) -> Path:
    """Refuse to replace what is no export of this format, or to write where nobody may.

    Returns:
        The target.
    """
    from boxseg.runtime.golden_sample import sidecars

    folder = next(place for place in target.parents if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written to" if folder.is_dir() else "is a file, not a folder"
        raise click.BadParameter(f"{folder} {reason}", param_hint="'--out'")
    if kind != "openvino":
        foreign = "is a folder" if target.is_dir() else ""
    elif target.is_dir():
        places = sidecars(target)
        beside = {places.manifest, places.golden, places.card} if places.manifest.is_file() else ()
        others = sorted(
            path.name
            for path in target.iterdir()
            if path.suffix not in (".xml", ".bin") and path not in beside
        )
        foreign = f"holds more than an OpenVINO model: {others[0]}" if others else ""
    else:
        foreign = "is a file" if target.exists() else ""
    if foreign:
        raise click.BadParameter(
            f"{target} would be replaced, but it {foreign}; name another place",
            param_hint="'--out'",
        )
    return target


def _echo(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line)


def _write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a report for programs, if a path was given."""
    from boxseg.export.manifest import finite

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(content), indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


_DATA_OPTION = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Compare on these images: a data folder with val.json, a COCO file, a folder or an "
    "image. Without it, on drawn shapes.",
)
_IMAGES_OPTION = click.option(
    "--images",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="How many images of --data.",
)
_DEVICE_OPTION = click.option(
    "--device", default="cpu", show_default=True, help="Where torch runs: cpu, cuda, cuda:N or N."
)
_JSON_OPTION = click.option(
    "--json",
    "json_path",
    type=REPORT,
    help="Write the report here too.",
)


def _asked_precision(precision: str | None, half: bool, int8: bool) -> str:
    """Return the one precision that was asked for."""
    asked = {"--precision": precision, "--half": "fp16" if half else None}
    asked["--int8"] = "int8" if int8 else None
    given = {option: value for option, value in asked.items() if value is not None}
    if len(set(given.values())) > 1:
        words = " and ".join(
            f"{option} {value}" if option == "--precision" else option
            for option, value in given.items()
        )
        raise click.UsageError(f"{words} contradict each other; give one")
    return next(iter(given.values()), "fp32")


@click.command(cls=NumbersCommand, numbers={"--imgsz": 2})
@click.argument("source", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    type=Choice("format", FORMATS, ()),
    multiple=True,
    default=("onnx",),
    metavar="FORMAT",
    help="onnx (default), openvino (ov) or trt (tensorrt, engine); may be given several times.",
)
@click.option(
    "--imgsz", type=ImageSize(), help="Input size, height first; N is N x N. Default: the model's."
)
@click.option(
    "--precision",
    type=Choice("precision", PRECISIONS, ()),
    help=f"{', '.join(PRECISIONS)}.  [default: fp32]",
)
@click.option("--half", is_flag=True, help="Same as --precision fp16.")
@click.option("--int8", is_flag=True, help="Same as --precision int8.")
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    help="Measure ranges on these images: a data folder with train.json, a COCO file or a folder. "
    "Default: the train.json of --data; without one, fp16 and bf16 take the images compared on.",
)
@click.option(
    "--calib-images",
    type=click.IntRange(16),
    default=64,
    show_default=True,
    help="How many of them, evenly spread.",
)
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Outputs: dense (every location; the runtime selects), topk (the best K pairs) or graph "
    "(their masks too). Default: dense, for trt topk.",
)
@click.option(
    "--weights",
    type=click.Choice(("student", "ema")),
    help="student (raw) or ema (its average), of a run that has both. Default: those that ship.",
)
@click.option(
    "--dynamic",
    type=click.Choice(("batch",)),
    help="Leave the number of images per run free. Default: fixed.",
)
@click.option(
    "--batch",
    type=(click.IntRange(1), click.IntRange(1), click.IntRange(1)),
    metavar="MIN OPT MAX",
    help="Images per run. Default: 1 1 1, with --dynamic batch 1 1 8.",
)
@click.option(
    "--workspace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GiB",
    help="TensorRT: GPU memory that a layer may use, in GiB. Default: all.",
)
@click.option(
    "--timing-cache",
    type=REPORT,
    help="TensorRT: keep measured times in this file, for a faster second build.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="TensorRT: let the next major version load the engine; it is slower.",
)
@click.option("--opset", type=int, help="ONNX operator set, 17 to 23. Default: 18, bf16: 22.")
@click.option(
    "--exporter",
    type=click.Choice(("dynamo", "torchscript")),
    default="dynamo",
    show_default=True,
    help="How torch writes ONNX; torchscript knows opsets up to 20.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder, or the file's own name. Default: beside the model file.",
)
@click.option(
    "--licence",
    "licences",
    multiple=True,
    metavar="PART=NAME",
    help="Licence of the weights or of the data, for the file's metadata and card, as in "
    "--licence data=CC-BY-4.0. May be given for each.",
)
@click.option(
    "--golden",
    metavar="FILE|none",
    help="Image that travels with the file and the answer to it. Default: drawn shapes.",
)
@click.option(
    "--accuracy-images",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Score the file on so many images of --data, if it has annotations; 0 does not.",
)
@_DATA_OPTION
@_IMAGES_OPTION
@click.option(
    "--report",
    "report_path",
    type=REPORT,
    help="Reduced precision: judge fp32, fp16 and the asked one on the val.json or COCO file of "
    "--data, and write AP per class, worst images and layers to give back here (JSON; as tables "
    "beside it, .md).",
)
@click.option(
    "--report-images",
    type=click.IntRange(1),
    help="Judge the first N images alone.  [default: all]",
)
@click.option(
    "--report-layers",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="int8: how many layers to give back on trial; each judges all images again.",
)
@_DEVICE_OPTION
@_JSON_OPTION
def export(
    source: Path,
    formats: tuple[str, ...],
    imgsz: tuple[int, int] | None,
    precision: str | None,
    half: bool,
    int8: bool,
    calib: Path | None,
    calib_images: int,
    form: str | None,
    weights: str | None,
    dynamic: str | None,
    batch: tuple[int, int, int] | None,
    workspace: float | None,
    timing_cache: Path | None,
    version_compatible: bool,
    opset: int | None,
    exporter: str,
    out: Path | None,
    licences: tuple[str, ...],
    golden: str | None,
    accuracy_images: int,
    data: Path | None,
    images: int,
    report_path: Path | None,
    report_images: int | None,
    report_layers: int,
    device: str,
    json_path: Path | None,
) -> None:
    """Write the network of RUN_OR_FILE as a file that engines load, and prove it.

    RUN_OR_FILE is a run folder (its best.pt), a model file or a trainer.pt. The file gets its
    name only after it answered like torch; otherwise it stays behind as NAME.failed, exit code 6.
    What no engine on this machine can run stays behind as NAME.unverified, exit code 9.

    Beside the file lie its manifest, a model card and a golden sample, which `boxseg verify FILE`
    replays on any machine.

    In reduced precision the nodes that cannot bear it stay in fp32; they are found by measuring,
    and --json lists each with its reason.
    """
    from boxseg.checkpoint import find_model, read_model_payload, read_payload
    from boxseg.export.lowering import FLOAT_TYPES
    from boxseg.export.manifest import Story, expected, golden_image
    from boxseg.export.network import open_network
    from boxseg.export.precision import reduce_network
    from boxseg.export.proven_file import (
        accompany,
        imitate_precision,
        write_engine_verified,
        write_verified,
    )
    from boxseg.export.strip_report import left_behind
    from boxseg.export.to_onnx import EXPORTERS, OPSET, trace
    from boxseg.export.to_tensorrt import BuildOptions, build_engine, open_toolkit
    from boxseg.runtime.golden_sample import NOTHING_EXPECTED

    precision = _asked_precision(precision, half, int8)
    if precision == "fp32" and calib is not None:
        raise click.UsageError("--calib is for reduced precision; give --precision too")
    if opset is None:
        opset = max(OPSET, FLOAT_TYPES[precision].oldest_opset) if precision == "bf16" else OPSET
    known = EXPORTERS[exporter]
    if opset not in known:
        raise click.BadParameter(
            f"must be in {known[0]}..{known[-1]} for --exporter {exporter}, got {opset}",
            param_hint="'--opset'",
        )
    images_per_run, licence = _batch(batch, dynamic), _licences(licences)
    kinds = list(dict.fromkeys(formats))
    _check_build("trt" in kinds, workspace, timing_cache, version_compatible)
    forms = {kind: form or DEFAULT_FORMS[kind] for kind in kinds}
    file = find_model(source, weights)[0]
    named = None
    if weights is not None and read_model_payload(source)["weights"] != weights:
        named = weights
    targets = {
        kind: _free_target(_target(file, out, kind, len(kinds), precision, named), kind)
        for kind in kinds
    }
    cuda = _device_number(_torch_device(device))
    toolkit = open_toolkit(cuda) if "trt" in kinds else None  # before anything is written
    truth = None if report_path is None else _truth(precision, data, report_path)
    samples = _samples(data, images)
    calibration = None
    if precision != "fp32":  # what is missing is said before the work
        calibration = _calibration(precision, calib, calib_images, data, samples)
    networks = {
        form: open_network(
            source,
            imgsz,
            _torch_device(device),
            form=form,
            batch=images_per_run,
            weights=weights,
            licence=licence,
        )
        for form in dict.fromkeys(forms.values())
    }
    network = networks[forms[kinds[0]]]
    image = golden_image(golden, network.backend)
    config, size = network.student.config, network.metadata["imgsz"]
    click.echo(
        f"network      {network.file}: {config.backbone}, "
        f"{counted(len(config.classes), 'class')}, input {size['height']} x "
        f"{size['width']}, weights {network.metadata['weights']}, torch on {network.backend.device}"
    )
    graphs = {}
    for name, each in networks.items():
        graphs[name] = trace(each.student, each.metadata, opset=opset, exporter=exporter)
        proof = graphs[name].proof
        click.echo(
            f"shipped      {proof.weights} tensors, {proof.parameters:,} numbers, "
            f"{_size(proof.size_bytes)}: each is the model's by name, shape and bytes; "
            f"{counted(len(proof.constants), 'constant')} besides; form {name}, "
            f"K = {each.metadata['nms']['candidates']}"
        )
    gmac = _gmac(graphs[forms[kinds[0]]], network.metadata)
    click.echo(f"work         {gmac:.2f} GMAC per image, in its convolutions")
    trainer = _trainer_of(source)
    rest = (
        [] if trainer is None else left_behind(read_payload(trainer), network.metadata["weights"])
    )
    _echo(f"left behind  {part.line()}" for part in rest)
    content: dict[str, Any] = {
        "network": str(network.file),
        "precision": precision,
        "opset": opset,
        "exporter": exporter,
        "imgsz": size,
        "weights": network.metadata["weights"],
        "batch": network.metadata["batch"],
        "gmac": gmac,
        "shipped": {name: asdict(graph.proof) for name, graph in graphs.items()},
        "left_behind": [asdict(part) for part in rest],
        "files": [],
    }
    reduced: dict[str, Reduced] = {}
    if calibration is not None:
        doubts = _doubts(
            calibration, data, accuracy_images, 0 if report_path is None else report_images
        )
        calibration = replace(calibration, doubts=doubts)
        _echo(f"warning      {doubt}" for doubt in doubts)
        for name, graph in graphs.items():
            reduced[name] = reduce_network(graph, precision, calibration)
            _echo(reduced[name].lines())
        content["reduced"] = {name: each.as_dict() for name, each in reduced.items()}
    imitations = {
        name: functools.cache(functools.partial(imitate_precision, networks[name], samples, each))
        for name, each in reduced.items()
        if each.imitation is not None
    }
    story = Story(
        metadata={**network.metadata, "precision": precision},
        training=network.training,
        opset=opset,
        exporter=exporter,
        strip={
            "shipped": asdict(graphs[forms[kinds[0]]].proof),
            "left_behind": content["left_behind"],
        },
        precision={"asked": precision},
        private=tuple(
            path for path in (source, file, data, calib, *targets.values()) if path is not None
        ),
    )
    answers = {
        name: (image, expected(each.backend, image, precision))
        for name, each in networks.items()
        if image is not None
    }
    if image is not None and any(not answer["detections"] for _, answer in answers.values()):
        click.echo(f"golden       {image.source}: {NOTHING_EXPECTED}")
    unverified = []
    for kind, target in targets.items():
        form = forms[kind]
        if toolkit is not None and kind == "trt":
            graph = reduced[form].traced if form in reduced else graphs[form]
            engine = build_engine(
                graph.model,
                toolkit,
                precision=precision,
                options=BuildOptions(workspace, version_compatible, timing_cache),
                report=lambda phase: click.echo(f"build        {phase}"),
            )
            written = write_engine_verified(
                engine, target, networks[form], samples, cuda, imitations.get(form)
            )
        else:
            written = write_verified(
                graphs[form],
                kind,
                target,
                networks[form],
                samples,
                reduced.get(form),
                imitations.get(form),
            )
        _echo(written.lines())
        click.echo(f"wrote        {written.path} ({_size(written.size_bytes)}, {precision})")
        own = replace(
            story,
            metadata={**networks[form].metadata, "precision": precision},
            precision={"asked": precision} | (reduced[form].as_dict() if form in reduced else {}),
        )
        where = f"cuda:{cuda}" if kind == "trt" else None
        beside = accompany(
            written, kind, own, answers.get(form), data, accuracy_images, click.echo, where
        )
        content["files"].append({"format": kind, "form": form} | written.as_dict() | beside)
        if written.parity is None and written.audit is not None:
            unverified.append(
                f"{written.path}: {written.audit.engine} cannot run it here; boxseg verify it "
                "where an engine can"
            )
    if report_path is not None and truth is not None:
        from boxseg.export import precision_report

        form = next(iter(reduced))
        proven = {
            file["format"]: Path(file["path"])
            for file in content["files"]
            if file["form"] == form and "parity" in file
        }
        judged, tried = precision_report.compare_precisions(
            reduced[form],
            graphs[form],
            proven,
            truth,
            max_images=report_images,
            layers=report_layers,
            gpu=f"cuda:{cuda}",
        )
        _echo(precision_report.report_lines(judged, tried))
        doubts = reduced[form].calibration.doubts
        _write_json(report_path, precision_report.as_dict(judged, tried, truth, doubts))
        table = precision_report.markdown(judged, tried, truth, doubts)
        report_path.with_suffix(".md").write_text(table, encoding="utf-8")
    _write_json(json_path, content)
    if unverified:
        raise UnverifiedError("; ".join(unverified))


def _refuse_network(file: Path) -> None:
    """Say what `verify` takes where it was given a run folder or a model file.

    Raises:
        FileMismatchError: if the path is one of those.
    """
    from boxseg.runtime.golden_sample import UNVERIFIED

    if not file.exists() or not is_torch_model(file):
        return
    folder = file if file.is_dir() else file.parent
    exported = [
        str(path)
        for path in sorted(folder.iterdir())
        if path.name.removesuffix(UNVERIFIED).endswith(tuple(NAMED))
    ]
    raise FileMismatchError(
        f"{file} is no exported file; "
        + (
            f"give {' or '.join(exported)}"
            if exported
            else f"boxseg export {file} writes one: an .onnx file, an OpenVINO folder or an engine"
        )
    )


def _final_name(file: Path) -> Path | None:
    """Return the name that an unverified file gets if it passes; None for other files."""
    from boxseg.runtime.golden_sample import UNVERIFIED

    if not file.name.endswith(UNVERIFIED):
        return None
    final = file.with_name(file.name.removesuffix(UNVERIFIED))
    if final.exists():
        raise click.UsageError(f"{file} would become {final}, which is there; move it away first")
    return final


def _accept(file: Path, proof: str, result: Mapping[str, Any], against: Path | None = None) -> None:
    """Give a file that passed its name."""
    from boxseg.export.manifest import accept

    private = (file,) if against is None else (file, against)
    click.echo(f"verified     {accept(file, proof, result, private)}, as it is called from now on")


def _replay(file: Path, device: str | None, json_path: Path | None) -> None:
    """Replay the golden sample of a file; nothing of torch is needed."""
    from boxseg.runtime.golden_sample import replay

    final = _final_name(file)
    replayed = replay(file, device)
    _echo(replayed.lines())
    _write_json(json_path, replayed.as_dict())
    reason = replayed.failure()
    if reason is not None:
        raise ParityError(f"{file}: {reason}")
    if final is not None:
        _accept(file, "replay", replayed.as_dict())


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="RUN_OR_FILE",
    type=click.Path(path_type=Path),
    help="The network it came from: a run folder, a model file or a trainer.pt.",
)
@_DATA_OPTION
@_IMAGES_OPTION
@click.option(
    "--device",
    help="Where the engine runs; with --against, where torch runs.  [default: cpu]",
)
@_JSON_OPTION
def verify(
    file: Path,
    against: Path | None,
    data: Path | None,
    images: int,
    device: str | None,
    json_path: Path | None,
) -> None:
    """Replay the golden sample of an exported FILE; exit code 6 if the answer differs.

    It needs an engine and no torch, takes about a second, and says whether preprocessing, engine
    and decoding on this machine give the answer that the network gave. A damaged or exchanged file
    is exit code 8. A file that is called NAME.unverified gets its NAME if it passes.

    --against NETWORK holds the file against the network itself, on images. A manifest that lies
    beside the file must be of this file there too.
    """
    from boxseg.export.verify import check_metadata, hold
    from boxseg.runtime.golden_sample import open_shelved, read_manifest, sidecars
    from boxseg.runtime.preprocess import Fit

    _refuse_network(file)
    if against is None:
        if data is not None:
            raise click.UsageError("--data is for --against; the golden sample is one image")
        _replay(file, device, json_path)
        return
    from boxseg.export.network import open_network  # torch, which a replay does without

    final = _final_name(file)
    if sidecars(file).manifest.exists():
        read_manifest(file)  # a changed byte need not move the answer
    exported = open_shelved(file)
    said = exported.metadata
    size = said.imgsz
    if not isinstance(size, Fit):
        raise FileMismatchError(f"{file} states no fixed input size")
    network = open_network(
        against,
        (size.height, size.width),
        _torch_device(device or "cpu"),
        form=said.form,
        batch=(said.batch.least, said.batch.best, said.batch.most),
        weights=said.weights,
    )
    check_metadata(file, said, network.metadata)
    samples = _samples(data, images)
    report = hold(str(file), str(network.file), exported, network.backend, samples, said.precision)
    _echo(report.lines())
    _write_json(json_path, report.as_dict())
    if not report.passed:
        raise ParityError(f"{file}: {report.failure()}")
    if final is not None:
        _accept(file, "parity", report.as_dict(), against)
