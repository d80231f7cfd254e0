"""Write the network as ONNX, with its metadata inside.

The graph is traced once without any optimisation, so that the strip proof can compare it with the
state dict; constant folding comes afterwards and is covered by the parity gate. Engine-specific
optimisation is left to the engines.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from boxseg.config import STRIDES
from boxseg.errors import BackendMissingError, UnsupportedOperatorError
from boxseg.export.batch_norm import fold_batch_norms
from boxseg.export.verify import StripProof, prove_strip
from boxseg.inference import INPUT_NAME, OUTPUT_NAMES, graph_of
from boxseg.runtime.metadata import METADATA_KEY
from boxseg.student import Student, grid_locations

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Default: the oldest that the exporter writes natively, so the most engines read it."""
EXPORTERS = {"dynamo": range(17, 24), "torchscript": range(17, 21)}
"""How torch writes ONNX, with the operator sets that each knows. Dynamo is the default; TorchScript
is for networks and versions of torch that the other cannot trace."""
OPSETS = EXPORTERS["dynamo"]

BATCH_AXIS = "batch"
"""Name of the axis of images where its length is free."""

EXPORT_KEY = "boxseg_export"
"""How the file was made, as JSON, beside the metadata; nothing reads it to compute."""


@dataclass(frozen=True)
class TracedGraph:
    """A network as ONNX in memory."""

    model: onnx.ModelProto
    """Constants folded, checked, metadata inside."""
    proof: StripProof


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's progress lines and its own deprecations off the terminal."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _forget_sources(model: onnx.ModelProto) -> None:
    """Drop the tracer's notes: they hold stack traces with paths of this machine."""
    graph = model.graph
    for holder in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.metadata_props[:]
    graph.doc_string = ""
    graph.name = "boxseg"


def _divide_integers(self: Any, other: Any) -> Any:
    """Write `//` of numbers that are not negative as one Div, which truncates.

    The exporter's own version corrects the sign with operators on BOOL that TensorRT does not take.
    Up to 2.8 it takes this one only if the arguments have aten's names.
    """
    from onnxscript import opset18

    return opset18.Div(self, other)


def _let_only_a_cast_read_bytes(graph: onnx.GraphProto) -> None:
    """Take the image's shape from the cast image: TensorRT takes bytes at a cast and nowhere else.

    Where the batch is free, the graph asks for it.
    """
    cast = next(n for n in graph.node if n.op_type == "Cast" and INPUT_NAME in n.input)
    first = type(cast)()
    first.CopyFrom(cast)
    graph.node.remove(cast)
    graph.node.insert(0, first)
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == INPUT_NAME:
            node.input[0] = first.output[0]


def _opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain == "")


Exported = tuple["onnx.ModelProto", Callable[[], "onnx.ModelProto"]]
"""A graph before any optimisation, and what folds its constants."""


def _export_with_dynamo(
    graph: torch.nn.Module, example: torch.Tensor, outputs: list[str], opset: int, is_dynamic: bool
) -> Exported:
    """Trace through torch.export."""
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=[INPUT_NAME],
        output_names=outputs,
        dynamic_shapes=({0: BATCH_AXIS},) if is_dynamic else None,
        opset_version=opset,
        dynamo=True,
        custom_translation_table={torch.ops.aten.floor_divide.default: _divide_integers},
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise AssertionError("the exporter returned nothing")

    def fold() -> onnx.ModelProto:
        program.optimize()
        return program.model_proto

    return program.model_proto, fold


def _export_with_torchscript(
    graph: torch.nn.Module, example: torch.Tensor, outputs: list[str], opset: int, is_dynamic: bool
) -> Exported:
    """Trace through TorchScript."""
    import onnx
    from onnxscript import optimizer

    names = [INPUT_NAME, *outputs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=[INPUT_NAME],
            output_names=outputs,
            dynamic_axes={name: {0: BATCH_AXIS} for name in names} if is_dynamic else None,
            opset_version=opset,
            dynamo=False,
            do_constant_folding=False,  # it would fold norms into weights before the strip proof
            keep_initializers_as_inputs=True,  # else equal weights become one
        )
        model = onnx.load(path)
    del model.graph.input[1:]  # the weights

    def fold() -> onnx.ModelProto:
        folded: onnx.ModelProto = optimizer.optimize(model)
        return folded

    return model, fold


def _reason(error: BaseException) -> str:
    """Return the first lines of an exporter's error and of what caused it, without colours."""
    first, last = error, error
    while last.__cause__ is not None:
        last = last.__cause__
    lines = [str(part).strip().split("\n")[0] for part in dict.fromkeys((first, last))]
    return re.sub("\x1b\\[[0-9;]*m", "", ": ".join(lines))


def _computed(student: Student, size: Mapping[str, int]) -> list[NDArray[Any]]:
    """Return the constants that TorchScript computes while it traces.

    These are the places of the grid with their levels and strides, and the ones and zeros of the
    plain norms that it writes group norms with.

    Args:
        student: Whose group norms count.
        size: Height and width of the input.
    """
    cells = [(math.ceil(size["height"] / s), math.ceil(size["width"] / s)) for s in STRIDES]
    locations, levels = (tensor.numpy() for tensor in grid_locations(cells))
    strides = np.array(STRIDES, np.float32)[levels]
    groups = {m.num_groups for m in student.modules() if isinstance(m, torch.nn.GroupNorm)}
    plain = [make(count, np.float32) for count in groups for make in (np.ones, np.zeros)]
    return [locations, levels, strides[:, None], *plain]


def trace(
    student: Student,
    metadata: Mapping[str, Any],
    *,
    opset: int = OPSET,
    origin: Mapping[str, Any] | None = None,
    exporter: str = "dynamo",
) -> TracedGraph:
    """Trace the network in the form, at the size and for the batch that the metadata state.

    Args:
        student: The network, on the CPU, in eval mode.
        metadata: What the file says about itself, from `boxseg.inference.describe`.
        opset: ONNX operator set, one of the exporter's.
        origin: JSON types on how the file was made; versions are added.
        exporter: "dynamo" or "torchscript".

    Raises:
        ValueError: if the opset is out of range.
        BackendMissingError: if onnx or onnxscript is not installed.
        UnsupportedOperatorError: if the exporter or the checker refuses the graph.
        ParityError: if the strip proof fails.
    """
    known = EXPORTERS[exporter]
    if opset not in known:
        raise ValueError(f"--opset must be in {known[0]}..{known[-1]} for {exporter}, got {opset}")
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it and says so late
    except ModuleNotFoundError as error:
        raise BackendMissingError(
            f"{error.name} is not installed; pip install 'boxseg[export]'"
        ) from error
    size, batch, form = metadata["imgsz"], metadata["batch"], str(metadata["form"])
    is_dynamic = batch["min"] < batch["max"]
    images = 2 if is_dynamic else int(batch["max"])  # one image would be taken for a constant
    example = torch.zeros(images, int(size["height"]), int(size["width"]), 3, dtype=torch.uint8)
    graph = graph_of(student, form, int(metadata["nms"]["candidates"])).eval()
    with torch.no_grad(), _quiet_exporter():
        try:
            raw, fold = {
                "dynamo": _export_with_dynamo,
                "torchscript": _export_with_torchscript,
            }[exporter](graph, example, list(OUTPUT_NAMES[form]), opset, is_dynamic)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            other = "; try --exporter torchscript" if exporter == "dynamo" else ""
            raise UnsupportedOperatorError(
                f"torch {torch.__version__} cannot write this network as ONNX opset {opset} by "
                f"{exporter}: {_reason(error)}{other}"
            ) from error
        state = {name: value.cpu().numpy() for name, value in student.state_dict().items()}
        proof = prove_strip(raw.graph, state, _computed(student, size))
        model = fold()
        fold_batch_norms(model)
    if _opset_of(model) != opset:
        raise UnsupportedOperatorError(
            f"torch {torch.__version__} wrote opset {_opset_of(model)} where {opset} was asked; "
            f"--opset {OPSET} is written natively"
        )
    _forget_sources(model)
    _let_only_a_cast_read_bytes(model.graph)
    made_by = {
        "exporter": f"torch.onnx {exporter}",
        "opset": opset,
        "torch": str(torch.__version__),
        "onnx": version("onnx"),
        **(origin or {}),
    }
    for key, value in ((METADATA_KEY, metadata), (EXPORT_KEY, made_by)):
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedOperatorError(f"onnx.checker refuses the graph: {reason}") from error
    return TracedGraph(model, proof)


def write_onnx(traced: TracedGraph, path: Path) -> Path:
    """Write a traced graph to a file.

    Args:
        traced: From `trace`.
        path: A file ending in .onnx; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(traced.model.SerializeToString())
    return path
