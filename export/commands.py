"""`boxseg export` and `boxseg verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxseg.errors import FileMismatchError

if TYPE_CHECKING:
    from boxseg.export.to_onnx import TracedGraph
    from boxseg.export.verify import ParityReport, Samples
    from boxseg.inference import TorchBackend
    from boxseg.student import Student

FORMATS = {"onnx": "onnx", "openvino": "openvino", "ov": "openvino"}
"""What users type, and what it means."""
ABSENT_FORMATS = ("trt", "tensorrt", "engine")
FORMS = ("dense", "topk", "graph")
DEFAULT_FORMS = {"onnx": "dense", "openvino": "dense"}
"""On a CPU the C library selects faster than an engine, and nothing has to be copied."""
DYNAMIC_BATCH = (1, 1, 8)
"""Least, best and most images where `--dynamic batch` says no more."""
ABSENT_PRECISIONS = ("fp16", "bf16", "int8")


class SizeCommand(click.Command):
    """Takes `--imgsz N` and `--imgsz H W`: a second number belongs to the option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the two numbers before click counts words."""
        joined: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            joined.append(word)
            if word == "--imgsz" and words:
                value = words.pop(0)
                if words and value.isdigit() and words[0].isdigit():
                    value = f"{value} {words.pop(0)}"
                joined.append(value)
        return super().parse_args(ctx, joined)


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


def _size(size_bytes: float) -> str:
    """Format a size for people."""
    return f"{size_bytes / 1e6:.1f} MB"


def _size_on_disk(path: Path) -> int:
    """Return the bytes of a file or of all files of a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


@dataclass(frozen=True)
class LeftBehind:
    """A part of trainer.pt that does not ship."""

    part: str
    tensors: int
    parameters: int
    size_bytes: int


def _tensors_of(value: Any) -> list[Any]:
    """Return all tensors inside nested dicts and lists."""
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors_of(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors_of(item)]
    return [value] if hasattr(value, "element_size") else []


def left_behind(payload: Mapping[str, Any]) -> list[LeftBehind]:
    """List the parts of a trainer.pt that hold tensors and do not ship.

    Args:
        payload: The file's content; its `model` is what ships.
    """
    found = []
    for part, value in payload.items():
        tensors = _tensors_of(value) if part != "model" else []
        if tensors:
            found.append(
                LeftBehind(
                    part,
                    len(tensors),
                    sum(tensor.numel() for tensor in tensors),
                    sum(tensor.numel() * tensor.element_size() for tensor in tensors),
                )
            )
    return found


def _trainer_of(source: Path) -> Path | None:
    """Return the trainer.pt that belongs to what the user named, if there is one."""
    trainer = source / "trainer.pt" if source.is_dir() else source.parent / "trainer.pt"
    return trainer if trainer.is_file() else None


@dataclass(frozen=True)
class Network:
    """A model file, opened for export."""

    file: Path
    student: Student
    backend: TorchBackend
    """At the fixed input size of the export."""
    metadata: dict[str, Any]


def open_network(
    source: Path,
    imgsz: tuple[int, int] | None,
    device: str,
    *,
    form: str = "dense",
    batch: tuple[int, int, int] = (1, 1, 1),
) -> Network:
    """Open a run folder, a model file or a trainer.pt.

    Args:
        source: What the user named.
        imgsz: (height, width) in place of the model's own.
        device: For the reference in torch.
        form: Outputs of the graph: "dense", "topk" or "graph".
        batch: Least, best and most images of a run.
    """
    from boxseg.checkpoint import load_model, model_file, read_model_payload
    from boxseg.inference import TorchBackend

    file = model_file(source)
    student = load_model(source)
    if imgsz is not None:
        student.config = replace(student.config, imgsz=imgsz)
    backend = TorchBackend(student, device, short_long=False, form=form, batch=batch)
    payload = read_model_payload(source)
    backend.metadata["weights"] = payload["weights"]
    licence = payload.get("metadata", {}).get("licence")
    if isinstance(licence, Mapping):
        backend.metadata["licence"].update(licence)
    return Network(file, student, backend, backend.metadata)


def _samples(data: Path | None, count: int) -> Samples:
    """Take the frames of the gate."""
    from boxseg.export.verify import drawn_samples, real_samples

    return drawn_samples() if data is None else real_samples(data, count)


def _target(source: Path, out: Path | None, kind: str, formats: int) -> Path:
    """Return where a format goes: beside the model file, into a folder, or as named."""
    from boxseg.checkpoint import model_file

    file = model_file(source)
    name = f"{file.stem}.onnx" if kind == "onnx" else f"{file.stem}_openvino_model"
    if out is None:
        return file.parent / name
    if kind == "onnx" and out.suffix == ".onnx" and not out.is_dir():
        if formats > 1:
            raise click.BadParameter(
                f"{out} names one file for {formats} formats; name a folder", param_hint="'--out'"
            )
        return out
    if kind == "openvino" and out.name.endswith("_openvino_model"):
        if formats > 1:
            raise click.BadParameter(
                f"{out} names one folder for {formats} formats; name its parent",
                param_hint="'--out'",
            )
        return out
    if out.is_file():
        raise click.BadParameter(f"{out} is a file, not a folder", param_hint="'--out'")
    return out / name


def _write(traced: TracedGraph, kind: str, target: Path) -> tuple[Path, Path]:
    """Write one format under a temporary name; return it and the file to open."""
    from boxseg.export.to_onnx import write_onnx
    from boxseg.export.to_openvino import write_openvino

    if kind == "onnx":
        temporary = target.with_name(f"{target.stem}.tmp.onnx")
        return temporary, write_onnx(traced, temporary)
    name = target.name.removesuffix("_openvino_model")
    temporary = target.with_name(f"{name}.tmp_openvino_model")
    return temporary, write_openvino(traced, temporary, stem=name)


def write_verified(
    traced: TracedGraph, kind: str, target: Path, network: Network, samples: Samples
) -> ParityReport:
    """Write one format, run the gate, and give the file its name or quarantine it.

    Raises:
        ParityError: if the file does not answer like the network.
    """
    from boxseg.export.verify import hold, release, remove
    from boxseg.runtime.backends import open_backend

    temporary, opened = _write(traced, kind, target)
    try:
        report = hold(
            str(target), str(network.file), open_backend(opened), network.backend, samples
        )
        release(temporary, target, report)
    finally:
        remove(temporary)
    return report


def _echo_report(report: ParityReport) -> None:
    """Print the gate's result."""
    for line in report.lines():
        click.echo(line)


def _write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a report for programs, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the report here too."
)


def _no_precision(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Refuse an alias of a precision that this version does not have."""

    def refuse(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            raise click.UsageError(
                f"--{name}: reduced precision is not available in this version; available: fp32"
            )

    return refuse


@click.command(cls=SizeCommand)
@click.argument("source", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    type=Choice("format", FORMATS, ABSENT_FORMATS),
    multiple=True,
    default=("onnx",),
    metavar="FORMAT",
    help="onnx (default) or openvino (ov); may be given twice.",
)
@click.option(
    "--imgsz", type=ImageSize(), help="Input size, height first; N is N x N. Default: the model's."
)
@click.option(
    "--precision",
    type=Choice("precision", {"fp32": "fp32"}, ABSENT_PRECISIONS),
    default="fp32",
    show_default=True,
    help="Only fp32 in this version.",
)
@click.option(
    "--half", is_flag=True, hidden=True, expose_value=False, callback=_no_precision("half")
)
@click.option(
    "--int8", is_flag=True, hidden=True, expose_value=False, callback=_no_precision("int8")
)
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Outputs: dense (every location; the runtime selects), topk (the best K pairs) or graph "
    "(their masks too). Default: dense.",
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
@click.option("--opset", type=int, help="ONNX operator set, 17 to 23. Default: 18.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder, or the file's own name. Default: beside the model file.",
)
@_DATA_OPTION
@_IMAGES_OPTION
@_DEVICE_OPTION
@_JSON_OPTION
def export(
    source: Path,
    formats: tuple[str, ...],
    imgsz: tuple[int, int] | None,
    precision: str,
    form: str | None,
    dynamic: str | None,
    batch: tuple[int, int, int] | None,
    opset: int | None,
    out: Path | None,
    data: Path | None,
    images: int,
    device: str,
    json_path: Path | None,
) -> None:
    """Write the network of RUN_OR_FILE as a file that engines load, and prove it.

    RUN_OR_FILE is a run folder (its best.pt), a model file or a trainer.pt. The file gets its
    name only after it answered like torch; otherwise it stays behind as NAME.failed, exit code 6.
    """
    from boxseg.checkpoint import read_payload
    from boxseg.export.to_onnx import OPSET, OPSETS, trace

    opset = OPSET if opset is None else opset
    if opset not in OPSETS:
        raise click.BadParameter(
            f"must be in {OPSETS[0]}..{OPSETS[-1]}, got {opset}", param_hint="'--opset'"
        )
    images_per_run = _batch(batch, dynamic)
    kinds = list(dict.fromkeys(formats))
    forms = {kind: form or DEFAULT_FORMS[kind] for kind in kinds}
    targets = {kind: _target(source, out, kind, len(kinds)) for kind in kinds}
    networks = {
        form: open_network(source, imgsz, _torch_device(device), form=form, batch=images_per_run)
        for form in dict.fromkeys(forms.values())
    }
    network = networks[forms[kinds[0]]]
    samples = _samples(data, images)
    config, size = network.student.config, network.metadata["imgsz"]
    click.echo(
        f"network      {network.file}: {config.backbone}, {len(config.classes)} "
        f"class{'es' if len(config.classes) > 1 else ''}, input {size['height']} x "
        f"{size['width']}, weights {network.metadata['weights']}, torch on {network.backend.device}"
    )
    graphs = {}
    for name, each in networks.items():
        graphs[name] = trace(each.student, each.metadata, opset=opset)
        proof = graphs[name].proof
        click.echo(
            f"shipped      {proof.weights} tensors, {proof.parameters:,} numbers, "
            f"{_size(proof.size_bytes)}: each is the model's by name, shape and bytes; "
            f"{len(proof.constants)} constants besides; form {name}, "
            f"K = {each.metadata['nms']['candidates']}"
        )
    trainer = _trainer_of(source)
    rest = left_behind(read_payload(trainer)) if trainer is not None else []
    for part in rest:
        click.echo(
            f"left behind  {part.part}: {part.tensors} tensor{'s' if part.tensors > 1 else ''}, "
            f"{part.parameters:,} numbers, "
            f"{_size(part.size_bytes)}"
        )
    content: dict[str, Any] = {
        "network": str(network.file),
        "precision": precision,
        "opset": opset,
        "imgsz": size,
        "batch": network.metadata["batch"],
        "shipped": {name: asdict(graph.proof) for name, graph in graphs.items()},
        "left_behind": [asdict(part) for part in rest],
        "files": [],
    }
    for kind, target in targets.items():
        form = forms[kind]
        report = write_verified(graphs[form], kind, target, networks[form], samples)
        _echo_report(report)
        size_bytes = _size_on_disk(target)
        click.echo(f"wrote        {target} ({_size(size_bytes)}, {precision})")
        content["files"].append(
            {
                "format": kind,
                "form": form,
                "path": str(target),
                "bytes": size_bytes,
                "parity": report.as_dict(),
            }
        )
    _write_json(json_path, content)


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--against",
    required=True,
    metavar="RUN_OR_FILE",
    type=click.Path(path_type=Path),
    help="The network it came from: a run folder, a model file or a trainer.pt.",
)
@_DATA_OPTION
@_IMAGES_OPTION
@_DEVICE_OPTION
@_JSON_OPTION
def verify(
    file: Path,
    against: Path,
    data: Path | None,
    images: int,
    device: str,
    json_path: Path | None,
) -> None:
    """Hold an exported FILE against the network it came from; exit code 6 if they differ."""
    from boxseg.errors import ParityError
    from boxseg.export.verify import check_metadata, hold
    from boxseg.runtime.backends import open_backend
    from boxseg.runtime.preprocess import Fit

    exported = open_backend(file)
    size = exported.metadata.imgsz
    if not isinstance(size, Fit):
        raise FileMismatchError(f"{file} states no fixed input size")
    said = exported.metadata
    network = open_network(
        against,
        (size.height, size.width),
        _torch_device(device),
        form=said.form,
        batch=(said.batch.least, said.batch.best, said.batch.most),
    )
    check_metadata(file, exported.metadata, network.metadata)
    samples = _samples(data, images)
    report = hold(str(file), str(network.file), exported, network.backend, samples)
    _echo_report(report)
    _write_json(json_path, report.as_dict())
    if not report.passed:
        raise ParityError(f"{file}: {report.failure()}")
