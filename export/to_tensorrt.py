"""Build a TensorRT engine from an ONNX graph, on TensorRT 10.12 and later and on 11.

Precision comes from the graph alone (a strongly typed network), so one path serves both majors and
what ONNX Runtime computes is what the engine is built for. Before the build, every node is held
against the operators of the ONNX parser; after it, the inspector says what the layers compute in.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.errors import (
    BoxSegError,
    PrecisionError,
    UnsupportedOperatorError,
    counted,
)
from boxseg.export.precision_audit import Audit, stored_in_onnx
from boxseg.runtime.backends import load_tensorrt, machine
from boxseg.runtime.cuda_driver import CudaDevice
from boxseg.runtime.engine_sidecar import Machine, Sidecar, sha256
from boxseg.runtime.metadata import METADATA_KEY

if TYPE_CHECKING:
    import onnx

# ------------------------------------------------------------------- the parser's operators

# Source: onnx/onnx-tensorrt, docs/operators.md of TensorRT 10.15 (opsets 9 to 24), Apache-2.0.
# The types are those of an operator's data; shapes and indices may be integers everywhere.
_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ANY = _NUMBERS | {"BOOL"}
_QUANTIZED = frozenset({"INT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1"})
_OPERATORS_OF_TYPES = (
    (
        _FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv "
        "ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool "
        "GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Hardmax "
        "InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax "
        "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu QuantizeLinear "
        "RMSNormalization RNN Reciprocal Resize Round Selu Sigmoid Sin Sinh Softmax Softplus "
        "Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (frozenset({"FLOAT", "FLOAT16"}), "DeformConv GridSample Mish NonMaxSuppression RoiAlign"),
    (
        _NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less "
        "LessOrEqual Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
        "ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (_NUMBERS | _QUANTIZED, "Gelu"),
    (
        _ANY,
        "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot "
        "Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze "
        "Where",
    ),
    (_ANY | _QUANTIZED, "Constant ConstantOfShape"),
    (_ANY | {"UINT8"}, "Cast CastLike"),
    (_QUANTIZED, "DequantizeLinear"),
    (frozenset({"BOOL"}), "And Not Or Xor"),
)
OPERATORS = {operator: types for types, names in _OPERATORS_OF_TYPES for operator in names.split()}
"""Types of data that the ONNX parser takes, by operator; operators that are not here it refuses."""
OPSETS = range(9, 25)
LARGEST_TOPK = 3839

_RESIZE_MAPS = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric")
_DATA_INPUT = {"Where": 1}  # elsewhere it is the first


@dataclass(frozen=True)
class Refusal:
    """A node that the parser would refuse."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        """Return one line."""
        return f"node {self.node} ({self.operator}): {self.reason}"


def _types_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the element type of every tensor by name."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    number = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    number.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return {name: onnx.TensorProto.DataType.Name(kind) for name, kind in number.items()}


def _constants_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the small constants by name."""
    from onnx import numpy_helper

    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if len(tensor.dims) <= 1
    }
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _limit(node: onnx.NodeProto, constants: Mapping[str, Any]) -> str | None:
    """Say which of the parser's limits a node of a supported operator breaks."""
    import onnx

    settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "TopK":
        count = constants.get(node.input[1])
        if not settings.get("sorted", 1):
            return "sorted must be 1"
        if count is not None and int(count.reshape(-1)[0]) > LARGEST_TOPK:
            return f"K must be at most {LARGEST_TOPK}, it is {int(count.reshape(-1)[0])}"
    if node.op_type == "Resize":
        mode = settings.get("mode", b"nearest").decode()
        grid = settings.get("coordinate_transformation_mode", b"half_pixel").decode()
        if mode not in ("nearest", "linear") or settings.get("antialias", 0):
            return f"mode must be nearest or linear without antialiasing, it is {mode}"
        if grid not in (*_RESIZE_MAPS, "align_corners"):
            return f"coordinate_transformation_mode {grid} is not supported"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        zero = constants.get(node.input[2])
        if node.input[2] and (zero is None or zero.any()):
            return "the zero point must be 0"
    if node.op_type in ("MaxPool", "LayerNormalization") and len(node.output) > 1:
        return "only the first output is supported"
    if node.op_type in ("MaxPool", "AveragePool", "LpPool"):
        dilations = settings.get("dilations", [])
        if any(step != 1 for step in dilations):
            return f"dilations must be 1, they are {list(dilations)}"
    if node.op_type == "ScatterND" and settings.get("reduction", b"none") != b"none":
        return "a reduction is not supported"
    return None


def refused_nodes(model: onnx.ModelProto) -> list[Refusal]:
    """List the nodes that TensorRT's ONNX parser would refuse.

    Args:
        model: A graph whose types can be inferred.
    """
    types, constants = _types_of(model), _constants_of(model)
    found = []
    for number, node in enumerate(model.graph.node):
        reason = None
        place = _DATA_INPUT.get(node.op_type, 0)
        data = node.input[:2] if node.op_type.endswith("Linear") else node.input  # no zero point
        read = [name for name in data if types.get(name) == "UINT8"]
        if node.domain not in ("", "ai.onnx"):
            reason = f"operators of {node.domain} are not supported"
        elif node.op_type not in OPERATORS:
            reason = "the operator is not supported"
        elif read and node.op_type not in ("Cast", "CastLike"):
            reason = f"it reads {read[0]} of bytes, which only a Cast may"
        elif len(node.input) > place:
            kind = types.get(node.input[place])
            if kind is not None and kind not in OPERATORS[node.op_type]:
                reason = f"data of the type {kind} is not supported"
        reason = reason or _limit(node, constants)
        if reason is not None:
            found.append(Refusal(node.name or f"number {number}", node.op_type, reason))
    return found


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse a graph that TensorRT's ONNX parser would refuse.

    Raises:
        UnsupportedOperatorError: naming the first node, its operator and the reason.
    """
    opset = next(int(entry.version) for entry in model.opset_import if entry.domain == "")
    if opset not in OPSETS:
        raise UnsupportedOperatorError(
            f"TensorRT reads opsets {OPSETS[0]} to {OPSETS[-1]}, the graph has {opset}"
        )
    found = refused_nodes(model)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsupportedOperatorError(f"TensorRT cannot run {found[0]}{more}")


# ------------------------------------------------------------------------------- the build


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built."""

    workspace_gib: float | None = None
    """GiB of memory that a layer may use; None is all of the GPU's."""
    version_compatible: bool = False
    """Let the next major version of TensorRT load the engine; it is slower then."""
    timing_cache: Path | None = None
    """File that keeps measured times, so that a second build is faster and alike."""


@dataclass(frozen=True)
class Toolkit:
    """TensorRT and the GPU to build on."""

    trt: Any
    major: int
    cuda: CudaDevice

    @property
    def machine(self) -> Machine:
        """What the engine will depend on."""
        return machine(self.trt.__version__, self.cuda)


def open_toolkit(device: int = 0) -> Toolkit:
    """Find TensorRT and a GPU.

    Raises:
        BackendMissingError: if one of them is not there or not supported.
    """
    trt, major = load_tensorrt()
    return Toolkit(trt, major, CudaDevice(device))


def _make_logger(trt: Any, messages: list[str]) -> Any:
    """Return a logger that keeps errors and warnings for our own messages."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.append(" ".join(message.split()))

    return KeepingLogger()


def _make_monitor(trt: Any, report: Callable[[str], None]) -> Any:
    """Return a monitor that names the outermost phases; it is called from several threads."""
    lock = threading.Lock()

    class PhaseMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                with lock:
                    report(f"{phase_name}: {counted(num_steps, 'step')}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            pass

    return PhaseMonitor()


def _parse(trt: Any, network: Any, logger: Any, graph: bytes) -> None:
    """Fill a network from ONNX.

    Raises:
        UnsupportedOperatorError: with the first error of the parser.
    """
    parser = trt.OnnxParser(network, logger)
    if parser.parse(graph):
        return
    if parser.num_errors == 0:
        raise UnsupportedOperatorError("TensorRT cannot read the graph and does not say why")
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    raise UnsupportedOperatorError(
        f"TensorRT cannot run node {error.node_name()} ({error.node_operator()}): {reason}"
    )


def _configure(
    toolkit: Toolkit, builder: Any, metadata: Mapping[str, Any], options: BuildOptions
) -> Any:
    """Return the settings of a build; the timing cache is set apart."""
    trt = toolkit.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector needs it
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(
            trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30)
        )
    batch, size = metadata["batch"], metadata["imgsz"]
    if batch["min"] < batch["max"]:
        profile = builder.create_optimization_profile()
        shapes = [(batch[name], size["height"], size["width"], 3) for name in ("min", "opt", "max")]
        profile.set_shape(metadata["input"]["name"], *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise BoxSegError(f"TensorRT refuses the batch {batch}")
    return config


def _load_timing_cache(config: Any, path: Path | None) -> None:
    """Give a build the times of earlier ones; times of another GPU or version are left out."""
    if path is None:
        return
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, path: Path | None) -> None:
    """Keep the times of a build."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(path)


@dataclass(frozen=True)
class Engine:
    """A built engine in memory."""

    plan: bytes
    sidecar: Sidecar
    audit: Audit
    """What the graph stores, and what the layers compute in by the inspector."""


def build_engine(
    model: onnx.ModelProto,
    toolkit: Toolkit,
    *,
    precision: str = "fp32",
    options: BuildOptions | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Build an engine from a graph that `boxseg.export.to_onnx.trace` made.

    Args:
        model: The graph with its metadata inside; its types are the engine's.
        toolkit: From `open_toolkit`.
        precision: What the graph was cast to, for the audit: fp32, fp16, bf16 or int8.
        options: See there.
        report: Is told each phase of the build.

    Raises:
        UnsupportedOperatorError: if TensorRT cannot run the graph.
        PrecisionError: if the engine does not compute in what was asked.
        BoxSegError: if the build fails.
    """
    options = options or BuildOptions()
    check_operators(model)
    trt = toolkit.trt
    stored = {entry.key: entry.value for entry in model.metadata_props}
    metadata = json.loads(stored[METADATA_KEY])
    graph = model.SerializeToString()
    messages: list[str] = []
    logger = _make_logger(trt, messages)
    toolkit.cuda.activate()
    builder = trt.Builder(logger)
    if toolkit.major == 10:
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    else:
        network = builder.create_network()  # always strongly typed
    _parse(trt, network, logger, graph)
    config = _configure(toolkit, builder, metadata, options)
    monitor = _make_monitor(trt, report)
    config.progress_monitor = monitor
    _load_timing_cache(config, options.timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        reason = messages[-1] if messages else "it does not say why"
        raise BoxSegError(f"TensorRT could not build the engine: {reason}")
    _save_timing_cache(config, options.timing_cache)
    plan = bytes(built)
    layers = _inspect(toolkit, logger, plan, options.version_compatible)
    check_precision(layers, precision)
    audit = Audit(
        asked=precision,
        engine=f"TensorRT {trt.__version__}",
        stored=stored_in_onnx(model),
        executed=layers,
        supported=(),
        expected=1,  # layers are fused, so their number says nothing; `check_precision` has judged
    )
    details = {
        "profile": metadata["batch"],
        "workspace_gib": options.workspace_gib,
        "precision": precision,
        "layers": layers,
    }
    sidecar = Sidecar(
        machine=toolkit.machine,
        version_compatible=options.version_compatible,
        engine_sha256=sha256(plan),
        onnx_sha256=sha256(graph),
        metadata=metadata,
        details=details,
    )
    return Engine(plan, sidecar, audit)


# ------------------------------------------------------------------------------- the audit

# What the inspector calls a type, by a word of its description ("Row major linear FP16 format" in
# TensorRT 10, a field of its own in 11).
_TYPE_WORDS = {
    "fp32": "fp32",
    "float": "fp32",
    "float32": "fp32",
    "tf32": "tf32",
    "fp16": "fp16",
    "half": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
    "uint8": "uint8",
}
_TYPE_FIELDS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType")


def _type_of(tensor: Mapping[str, Any]) -> str:
    """Return the type that the inspector gives a tensor, or "unknown"."""
    text = next((str(tensor[field]) for field in _TYPE_FIELDS if field in tensor), "")
    words = text.lower().replace("(", " ").replace(")", " ").replace(":", " ").split()
    return next((_TYPE_WORDS[word] for word in words if word in _TYPE_WORDS), "unknown")


def count_layers(information: str) -> dict[str, int]:
    """Count the layers of an engine by the type of their first output.

    Args:
        information: The inspector's JSON of the whole engine.
    """
    layers = json.loads(information).get("Layers", [])
    outputs = [
        layer["Outputs"][0] for layer in layers if isinstance(layer, dict) and layer.get("Outputs")
    ]
    return dict(Counter(_type_of(output) for output in outputs))


def _inspect(toolkit: Toolkit, logger: Any, plan: bytes, host_code: bool) -> dict[str, int]:
    """Open an engine and count its layers by type."""
    trt = toolkit.trt
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BoxSegError("TensorRT does not take the engine that it just built")
    inspector = engine.create_engine_inspector()
    return count_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def check_precision(layers: Mapping[str, int], precision: str) -> None:
    """Compare what an engine computes in with what was asked.

    Raises:
        PrecisionError: if fp32 was asked and a layer has less, or less was asked and none has it.
    """
    less = {"tf32", "fp16", "bf16", "int8", "fp8"} & set(layers)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(layers.items()))
    if precision == "fp32" and less:
        raise PrecisionError(f"fp32 was asked, the engine's layers are {counts}")
    if precision != "fp32" and precision not in layers:
        raise PrecisionError(f"{precision} was asked, the engine's layers are {counts}")
