"""Stands in for TensorRT, because it cannot be installed everywhere.

`double(major)` gives a module that has only names which tensorrt_api.json lists for that major
version, so that a name which does not exist fails a test. Its engines run the ONNX graph in ONNX
Runtime on the addresses that they are given. It says nothing about TensorRT's own behaviour.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime

API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8"))
PLAN = b"PLAN"
TYPES = {1: "FLOAT", 2: "UINT8", 6: "INT32", 10: "HALF"}
NUMPY = {1: np.float32, 2: np.uint8, 6: np.int32, 10: np.float16}


class Listed:
    """An object whose attributes must be in the list of its class."""

    api: ClassVar[dict[str, list[str]]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._listed():
            raise AttributeError(f"{type(self).__name__} of this TensorRT has no {name}")
        object.__setattr__(self, name, value)

    def _listed(self) -> list[str]:
        return next(self.api[c.__name__] for c in type(self).__mro__ if c.__name__ in self.api)


def double(major: int) -> types.ModuleType:
    """Make the stand-in for a major version of TensorRT, "10" or "11" in the lists."""
    api = API[str(major)]
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = api["tensorrt"]
    trt.events = []  # what was asked of it, in order
    trt.refuses = ""  # an operator that the parser refuses
    trt.layer_type = "FP32"
    for name, members in api["enums"].items():
        setattr(trt, name, enum.IntEnum(name, members, start=0))

    class ILogger(Listed):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class Logger(ILogger):
        def __init__(self, min_severity: int = 2) -> None:
            self.min_severity = min_severity

        def log(self, severity: int, message: str) -> None:
            raise AssertionError(message)

    class IProgressMonitor(Listed):
        pass

    class IOptimizationProfile(Listed):
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            self._shapes = (name, shapes)

    class ITimingCache(Listed):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> memoryview:
            return memoryview(self._content + b"+")

    class IBuilderConfig(Listed):
        def __init__(self) -> None:
            self._profile: Any = None

        def clear_flag(self, flag: int) -> None:
            trt.events.append(("clear", trt.BuilderFlag(flag).name))

        def set_flag(self, flag: int) -> None:
            trt.events.append(("set", trt.BuilderFlag(flag).name))

        def set_memory_pool_limit(self, pool: int, size: int) -> None:
            trt.events.append((trt.MemoryPoolType(pool).name, size))

        def add_optimization_profile(self, profile: Any) -> int:
            self._profile = profile._shapes
            return 0

        def create_timing_cache(self, content: bytes) -> ITimingCache:
            return ITimingCache(content)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            self._cache = cache
            foreign = cache._content.startswith(b"foreign")
            return ignore_mismatch or not foreign

        def get_timing_cache(self) -> ITimingCache:
            return self._cache

    class INetworkDefinition(Listed):
        pass

    class ParserError(Listed):
        def __init__(self, node: Any) -> None:
            self._node = node

        def desc(self) -> str:
            return "no importer\n registered"

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

    class OnnxParser(Listed):
        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network
            self._errors: list[ParserError] = []
            self.num_errors = 0

        def parse(self, content: bytes) -> bool:
            graph = onnx.load_from_string(content).graph
            self._errors = [ParserError(n) for n in graph.node if n.op_type == trt.refuses]
            self.num_errors = len(self._errors)
            self._network._graph = content
            return not self._errors

        def get_error(self, number: int) -> ParserError:
            found: ParserError = self._errors[number]
            return found

    class Builder(Listed):
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert flags == (typed if major == 10 else 0)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> memoryview | None:
            config.progress_monitor.phase_start("Building", None, 2)
            assert config.progress_monitor.step_complete("Building", 0)
            config.progress_monitor.phase_finish("Building")
            if trt.layer_type == "broken":
                self._logger.log(ILogger.ERROR, "out of\nmemory")
                return None
            head = json.dumps({"profile": config._profile, "tensorrt": trt.__version__})
            return memoryview(PLAN + head.encode() + b"\n" + network._graph)

    class EngineInspector(Listed):
        def get_engine_information(self, form: int) -> str:
            assert form == trt.LayerInformationFormat.JSON
            if major == 10:
                tensor = {"Name": "x", "Format/Datatype": f"Row major linear {trt.layer_type}"}
                tables = {"Bindings": ["image"]}
            else:
                tensor = {"Name": "x", "Format": "Row major linear", "DataType": trt.layer_type}
                tables = {"I/O Tensors": ["image"]}
            return json.dumps(
                {"Layers": [{"Name": "conv", "Outputs": [tensor]}, "opaque"], **tables}
            )

    class IExecutionContext(Listed):
        def __init__(self, engine: Any) -> None:
            self._engine, self._batch = engine, 0
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            profile = self._engine._profile
            if profile is not None:
                least, _, most = profile[1]
                if not least[0] <= shape[0] <= most[0] or profile[0] != name:
                    return False
            self._batch = shape[0]
            return True

        def infer_shapes(self) -> list[str]:
            return [] if self._batch else ["image"]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            sides = self._engine._values[name].type.tensor_type.shape.dim
            return (self._batch, *(side.dim_value for side in sides[1:]))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream
            engine = self._engine
            shape = self.get_tensor_shape("image")
            pixels = ctypes.string_at(self._addresses["image"], int(np.prod(shape)))
            names = [name for name in engine._values if name != "image"]
            feed = {"image": np.frombuffer(pixels, np.uint8).reshape(shape)}
            for name, values in zip(names, engine._session.run(names, feed), strict=True):
                assert values.shape == self.get_tensor_shape(name)
                content = np.ascontiguousarray(values)
                ctypes.memmove(self._addresses[name], content.ctypes.data, content.nbytes)
            return True

    class ICudaEngine(Listed):
        def __init__(self, profile: Any, graph: bytes) -> None:
            model = onnx.load_from_string(graph)
            self._profile = profile
            self._values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
            self._session = onnxruntime.InferenceSession(graph)
            self.num_io_tensors = len(self._values)

        def get_tensor_name(self, number: int) -> str:
            names: list[str] = list(self._values)
            return names[number]

        def get_tensor_mode(self, name: str) -> int:
            mode = trt.TensorIOMode
            return int(mode.INPUT if name == "image" else mode.OUTPUT)

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[TYPES[self._values[name].type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            sides = self._values[name].type.tensor_type.shape.dim
            return tuple(side.dim_value or -1 for side in sides)

        def create_execution_context(self) -> IExecutionContext:
            return IExecutionContext(self)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector()

    class Runtime(Listed):
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
            if not plan.startswith(PLAN):
                return None
            head, _, graph = plan[len(PLAN) :].partition(b"\n")
            values = json.loads(head)
            return ICudaEngine(values["profile"], graph)

    for made in (
        *(ILogger, Logger, IProgressMonitor, IOptimizationProfile, ITimingCache, IBuilderConfig),
        *(INetworkDefinition, ParserError, OnnxParser, Builder, EngineInspector),
        *(IExecutionContext, ICudaEngine, Runtime),
    ):
        listed = api["classes"][made.__name__]
        invented = {name for name in vars(made) if not name.startswith("_")} - set(listed)
        assert not invented, f"{made.__name__} of TensorRT {major} has no {invented}"
        made.api = api["classes"]
        setattr(trt, made.__name__, made)
    module: types.ModuleType = trt
    return module
