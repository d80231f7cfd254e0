"""Read back which types a written file stores and which an engine executes.

An engine may execute another type than the file stores: CPUs mostly widen fp16 to fp32, and
OpenVINO narrows to bf16 where the processor has it, unless it is told not to. So both are read from
the finished file, by layers with weights, which are nearly all of the work.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.errors import PrecisionError
from boxseg.export.lowering import PRODUCTS

if TYPE_CHECKING:
    import onnx
    import openvino

ONNX_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 2: "int8", 3: "int8"}
OPENVINO_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData")
RUNTIME_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""What OpenVINO's CPU plugin calls them."""

TRANSPARENT = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose", "Unsqueeze")
"""Nodes that may stand between stored weights and their layer."""


@dataclass(frozen=True)
class Audit:
    """Types of the layers with weights in a written file."""

    asked: str
    engine: str
    stored: dict[str, int]
    """Type -> layers whose weights the file holds in it."""
    executed: dict[str, int]
    """Type -> layers that the engine computes in it, on this machine."""
    supported: tuple[str, ...]
    """Types that the engine can compute in on this machine, as far as it says."""
    expected: int
    """Layers that should be stored in the asked type."""
    refusal: str | None = None
    """Why the engine cannot run the file on this machine; None if it can."""

    @property
    def runs(self) -> bool:
        """Whether the engine can run the file on this machine."""
        return self.refusal is None

    def failure(self) -> str | None:
        """Say what is not as asked; None if all is.

        Storing must be as asked. Executing must be, too, where the engine says that it can: the
        machine that exports may lack what the robot has.
        """
        stored = self.stored.get(self.asked, 0)
        if stored < self.expected:
            return (
                f"{self.asked} was asked for {self.expected} layers, the file stores {stored} in it"
                f" ({_words(self.stored)})"
            )
        if self.asked not in self.supported or not self.runs:
            return None
        executed = self.executed.get(self.asked, 0)
        if executed < self.expected:
            return (
                f"{self.asked} was asked for {self.expected} layers, {self.engine} executes "
                f"{executed} in it ({_words(self.executed)}) although it can"
            )
        return None

    @property
    def executes(self) -> bool:
        """Whether the engine computes in the asked type here."""
        return self.executed.get(self.asked, 0) >= max(1, self.expected)

    def lines(self) -> list[str]:
        """Return the report for people."""
        if self.refusal is not None:
            executed = f"not by {self.engine} on this machine: {self.refusal}"
        else:
            executed = f"{_words(self.executed)} by {self.engine}"
            if not self.executes:
                executed += f", which does not compute this graph in {self.asked} on this machine"
        return [f"stored       {_words(self.stored)}", f"executed     {executed}"]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"supported": list(self.supported), "failure": self.failure()}


def _words(counts: Mapping[str, int]) -> str:
    """Write a count by type."""
    parts = [f"{name}: {count} layers" for name, count in sorted(counts.items())]
    return ", ".join(parts) if parts else "no layer with weights"


# ----------------------------------------------------------------------------------------- ONNX


def stored_in_onnx(model: onnx.ModelProto) -> dict[str, int]:
    """Count the layers of a graph by the type that their weights are stored in."""
    weights = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        name = node.input[1]
        while name not in weights and name in makers and makers[name].op_type in TRANSPARENT:
            name = makers[name].input[0]
        if name in weights:
            counts[ONNX_TYPES.get(weights[name], f"ONNX type {weights[name]}")] += 1
    return dict(counts)


def executed_by_onnxruntime(path: Path) -> dict[str, int]:
    """Count the layers of the graph that ONNX Runtime makes of a file for this CPU, by type."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "executed.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    weights = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        plain = node.op_type.removeprefix("QLinear").removeprefix("Fused").removeprefix("Nhwc")
        if plain not in PRODUCTS:
            continue
        if node.op_type.startswith("QLinear"):
            counts["int8"] += 1
        else:
            # anything that is no plain tensor is widened by a node before
            counts[ONNX_TYPES.get(weights.get(node.input[1], 1), "fp32")] += 1
    return dict(counts)


def audit_onnx(path: Path, asked: str, expected: int) -> Audit:
    """Audit an .onnx file with ONNX Runtime on the CPU."""
    import onnx

    stored = stored_in_onnx(onnx.load(path))
    executed: dict[str, int] = {}
    refusal = None
    try:
        executed = executed_by_onnxruntime(path)
    except Exception as error:  # its exceptions have no common class of their own
        refusal = str(error).strip().splitlines()[0]
    # ONNX Runtime does not say what it could do; it does what its kernels allow
    engine = "ONNX Runtime on the CPU"
    return Audit(asked, engine, stored, executed, ("fp32",), expected, refusal)


# ------------------------------------------------------------------------------------- OpenVINO


def _stored_type(node: openvino.Node) -> str | None:
    """Return the type of the constant behind a layer's weights; None for a computed one."""
    source = node.input_value(1).get_node()
    steps = 0
    while source.get_type_name() != "Constant":
        if not source.get_input_size() or steps > 8:
            return None
        source = source.input_value(0).get_node()
        steps += 1
    return str(source.get_element_type().get_type_name())


def stored_in_openvino(model: openvino.Model) -> dict[str, int]:
    """Count the layers of a model by the type that their weights are stored in."""
    counts: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() in OPENVINO_LAYERS:
            kind = _stored_type(node)
            if kind is not None:
                counts[OPENVINO_TYPES.get(kind, kind)] += 1
    return dict(counts)


def executed_by_openvino(compiled: openvino.CompiledModel) -> dict[str, int]:
    """Count the layers of a compiled model's execution graph by the type that they compute in."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        if about["layerType"].astype(str) in RUNTIME_LAYERS:
            kind = str(about["runtimePrecision"].astype(str))
            counts[OPENVINO_TYPES.get(kind, kind)] += 1
    return dict(counts)


def audit_openvino(xml: Path, asked: str, expected: int) -> Audit:
    """Audit an OpenVINO model on the CPU, compiled as the runtime compiles it."""
    import openvino

    from boxseg.runtime.backends import openvino_settings

    core = openvino.Core()
    model = core.read_model(str(xml))
    executed: dict[str, int] = {}
    refusal = None
    try:
        executed = executed_by_openvino(core.compile_model(model, "CPU", openvino_settings(asked)))
    except RuntimeError as error:  # all of its errors are one or its children
        refusal = str(error).strip().splitlines()[-1].strip()
    # its fp16 units are used only where every node is narrowed, the ones that must stay too
    able = {"FP32": "fp32", "BF16": "bf16", "INT8": "int8"}
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return Audit(
        asked,
        "OpenVINO on the CPU",
        stored_in_openvino(model),
        executed,
        tuple(able[word] for word in capabilities if word in able),
        expected,
        refusal,
    )


def audit(path: Path, asked: str, expected: int | None = None) -> Audit:
    """Audit a written file and refuse one that is not what was asked.

    Args:
        path: An .onnx file or an OpenVINO model's .xml file.
        asked: fp32, fp16, bf16 or int8.
        expected: Layers that should be stored, and where the engine can executed, in that type;
            None is all.

    Raises:
        PrecisionError: if they are not.
    """
    found = (audit_onnx if path.suffix == ".onnx" else audit_openvino)(path, asked, expected or 0)
    if expected is None:
        found = replace(found, expected=sum(found.stored.values()))
    failure = found.failure()
    if failure is not None:
        raise PrecisionError(f"{path}: {failure}")
    return found
