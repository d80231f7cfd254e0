"""Engines behind one small protocol; each is imported when it is asked for.

B images, H x W pixels of the input.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import BackendMissingError, BoxSegError, FileMismatchError
from boxseg.runtime.cuda_driver import CudaDevice
from boxseg.runtime.engine_sidecar import INSTALL, Machine, check_engine, check_version, system
from boxseg.runtime.external_data import refuse_escaping_files
from boxseg.runtime.metadata import METADATA_KEY, Metadata
from boxseg.runtime.preprocess import Fit

if TYPE_CHECKING:
    import onnxruntime
    import openvino


ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
"""What people call TensorRT's files."""


class Backend(Protocol):
    """A graph on an engine.

    `metadata` is a Metadata or the dict that it is read from; it says how many images a run takes.
    """

    @property
    def name(self) -> str:
        """Name of the engine."""
        ...

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def metadata(self) -> Metadata | Mapping[str, Any]:
        """What the file says about itself."""
        ...

    def run(self, image: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """Run the graph.

        Args:
            image: RGB bytes, (B, H, W, 3).

        Returns:
            Outputs by name; the arrays hold until the next run.
        """
        ...


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    """Return the reason; OpenVINO begins with the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _read_metadata(text: str, path: Path) -> Metadata:
    try:
        return Metadata.from_json(text)
    except FileMismatchError as error:
        raise FileMismatchError(f"{path}: {error}") from None


def _no_metadata(path: Path) -> FileMismatchError:
    return FileMismatchError(
        f"{path} is no file of boxseg: it holds no {METADATA_KEY!r} metadata; write one with "
        "boxseg export"
    )


def _check_input(
    path: Path, metadata: Metadata, name: str, kind: str, shape: list[int | None]
) -> None:
    """Refuse a graph whose input is not what the metadata promise; None is any length."""
    batch = metadata.batch
    several = None if batch.least < batch.most else batch.most
    expected: list[int | None] = [several, None, None, 3]
    if isinstance(metadata.imgsz, Fit):
        expected = [several, metadata.imgsz.height, metadata.imgsz.width, 3]
    fits = len(shape) == 4 and all(
        want is None or have is None or want == have
        for want, have in zip(expected, shape, strict=True)
    )
    if several is None and len(shape) == 4:
        fits = fits and shape[0] is None
    if name != metadata.input_name or kind != "uint8" or not fits:
        raise FileMismatchError(
            f"{path}: the input must be uint8 {metadata.input_name} {expected} by the metadata, "
            f"the graph has {kind} {name} {shape}"
        )


class OnnxRuntimeBackend:
    """Runs an .onnx file on ONNX Runtime."""

    name = "onnxruntime"

    def __init__(
        self, path: str | Path, device: str | None = None, threads: int | None = None
    ) -> None:
        """Load a file.

        Args:
            path: The .onnx file.
            device: "cpu" (the default), "cuda" or "cuda:N".
            threads: Of the engine; None leaves it to the engine.

        Raises:
            BackendMissingError: if ONNX Runtime or the device is not there.
            FileMismatchError: if the file is foreign, damaged or of another version.
        """
        path = Path(path)
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise BackendMissingError(
                "ONNX Runtime is not installed; pip install boxseg[onnxruntime]"
            ) from None
        self.device = (device or "cpu").lower()
        provider, settings = self._provider(self.device)
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise BackendMissingError(
                f"device {self.device} is not available: this ONNX Runtime has "
                f"{', '.join(available)}; pip install onnxruntime-gpu"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors reach the caller as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self._session = self._open(path, options, provider, settings)
        if self._session.get_providers()[0] != provider:
            raise BackendMissingError(
                f"device {self.device} was not obtained: ONNX Runtime fell back to "
                f"{self._session.get_providers()[0]}"
            )
        stored = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in stored:
            raise _no_metadata(path)
        self.metadata = _read_metadata(stored[METADATA_KEY], path)
        graph_input = self._session.get_inputs()[0]
        _check_input(
            path,
            self.metadata,
            graph_input.name,
            graph_input.type.removeprefix("tensor(").removesuffix(")"),
            [side if isinstance(side, int) else None for side in graph_input.shape],
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    @staticmethod
    def _provider(device: str) -> tuple[str, dict[str, str]]:
        kind, _, number = device.partition(":")
        if kind == "cpu" and not number:
            return "CPUExecutionProvider", {}
        if kind == "cuda" and (not number or number.isdigit()):
            # fp32 means fp32: by default it would round what convolutions read to 11 bits
            return "CUDAExecutionProvider", {"device_id": number or "0", "use_tf32": "0"}
        raise ValueError(f"device must be cpu, cuda or cuda:N for an .onnx file, got {device!r}")

    @staticmethod
    def _open(
        path: Path,
        options: onnxruntime.SessionOptions,
        provider: str,
        settings: dict[str, str],
    ) -> onnxruntime.InferenceSession:
        import onnxruntime

        refuse_escaping_files(path)
        try:
            return onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=[(provider, settings)]
            )
        except Exception as error:  # its exceptions have no common class of their own
            raise FileMismatchError(
                f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}"
            ) from None

    def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the graph on RGB bytes (B, H, W, 3)."""
        outputs = self._session.run(self._outputs, {self.metadata.input_name: image})
        return {
            name: np.asarray(values) for name, values in zip(self._outputs, outputs, strict=True)
        }


def openvino_settings(precision: str) -> dict[str, Any]:
    """Return how OpenVINO must compile a file so that it executes the types that are in it.

    By default CPUs with bf16 units compute everything in bf16, fp32 and fp16 files too, and GPUs
    everything in fp16. The execution mode keeps each node in its own type; where a device does not
    have the type, it widens.

    Args:
        precision: What the metadata say.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "EXECUTION_MODE_HINT": "ACCURACY"}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return settings


class OpenVinoBackend:
    """Runs an OpenVINO model, a folder or its .xml file."""

    name = "openvino"

    def __init__(
        self, path: str | Path, device: str | None = None, threads: int | None = None
    ) -> None:
        """Load a model.

        Args:
            path: The .xml file (its .bin beside it) or the folder that holds one.
            device: "cpu" (the default) or a name of OpenVINO's, such as GPU.0, NPU or AUTO.
            threads: Of the engine, CPU only; None leaves it to the engine.

        Raises:
            BackendMissingError: if OpenVINO or the device is not there.
            FileMismatchError: if the files are foreign, damaged or of another version.
        """
        path = Path(path)
        try:
            import openvino
        except ModuleNotFoundError:
            raise BackendMissingError(
                "OpenVINO is not installed; pip install boxseg[openvino]"
            ) from None
        core = openvino.Core()
        wanted = (device or "cpu").upper()
        if ":" in wanted and not wanted.startswith("AUTO:"):
            raise ValueError(
                f"device must be a name of OpenVINO's, as GPU or GPU.0, got {device!r}"
            )
        available = list(core.available_devices)
        if wanted.partition(":")[0].partition(".")[0] not in {
            *(name.partition(".")[0] for name in available),
            "AUTO",
        }:
            raise BackendMissingError(
                f"device {wanted} is not available: OpenVINO finds {', '.join(available)} here"
            )
        model = self._read(core, path)
        if not model.has_rt_info([METADATA_KEY]):
            raise _no_metadata(path)
        self.metadata = _read_metadata(str(model.get_rt_info([METADATA_KEY]).astype(str)), path)
        self._check(path, model)
        settings = openvino_settings(self.metadata.precision)
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if wanted == "CPU":  # it pins every engine of a process to the same cores, counted from 0
            settings["ENABLE_CPU_PINNING"] = False
        try:
            self._compiled = core.compile_model(model, wanted, settings)
        except Exception as error:  # all of its errors are RuntimeError or its children
            raise FileMismatchError(
                f"{path} cannot be compiled by OpenVINO for {wanted}: {_last_line(error)}"
            ) from None
        running = [str(name) for name in self._compiled.get_property("EXECUTION_DEVICES")]
        if wanted != "AUTO" and not any(
            name.partition(".")[0] == wanted.partition(".")[0] for name in running
        ):
            raise BackendMissingError(
                f"device {wanted} was not obtained: OpenVINO runs on {', '.join(running)}"
            )
        self.device = wanted.lower()
        self._request = self._compiled.create_infer_request()
        # the compiled model adds names of inner tensors to these
        self._names = [output.get_any_name() for output in model.outputs]

    @staticmethod
    def _read(core: openvino.Core, path: Path) -> openvino.Model:
        xml = path
        if path.is_dir():
            found = sorted(path.glob("*.xml"))
            if len(found) != 1:
                raise FileMismatchError(f"{path} must hold one .xml file, it holds {len(found)}")
            xml = found[0]
        weights = xml.with_suffix(".bin")
        if not weights.is_file():
            raise FileMismatchError(f"{xml} needs its weights beside it: {weights} is missing")
        try:
            return core.read_model(str(xml), str(weights))
        except Exception as error:  # all of its errors are RuntimeError or its children
            raise FileMismatchError(
                f"{xml} cannot be read by OpenVINO: {_last_line(error)}"
            ) from None

    def _check(self, path: Path, model: openvino.Model) -> None:
        graph_input = model.inputs[0]
        kind = {"u8": "uint8"}.get(str(graph_input.element_type.get_type_name()), "another type")
        shape = [
            side.get_length() if side.is_static else None for side in graph_input.partial_shape
        ]
        _check_input(path, self.metadata, graph_input.get_any_name(), kind, shape)

    def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the graph on RGB bytes (B, H, W, 3); the outputs hold until the next run."""
        self._request.infer([image], share_inputs=True)
        return {name: self._request.get_output_tensor(i).data for i, name in enumerate(self._names)}


def load_tensorrt() -> tuple[Any, int]:
    """Import TensorRT and return it with its major version.

    Raises:
        BackendMissingError: if it is not installed, does not load or is not supported.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        raise BackendMissingError(f"TensorRT is not installed; {INSTALL}") from None
    except ImportError as error:
        raise BackendMissingError(f"TensorRT does not load: {_first_line(error)}") from None
    return trt, check_version(trt.__version__)


class TensorRTBackend:
    """Runs a TensorRT engine that `boxseg export` built, with its sidecar beside it.

    All memory is taken at load, for the largest batch. It has been run against a stand-in for
    TensorRT only (tests/tensorrt_double.py) unless a GPU was there.
    """

    name = "tensorrt"

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        """Load an engine.

        Args:
            path: The plan (.engine, .plan or .trt).
            device: "cuda" (the default) or "cuda:N".

        Raises:
            BackendMissingError: if TensorRT or the GPU is not there.
            FileMismatchError: if the file is foreign, damaged or of another machine.
        """
        path = Path(path)
        number = self._number(device)
        trt, _ = load_tensorrt()
        self._cuda = CudaDevice(number)
        self.device = f"cuda:{number}"
        plan = path.read_bytes()
        sidecar, self.metadata = check_engine(path, plan, machine(trt.__version__, self._cuda))
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        runtime.engine_host_code_allowed = sidecar.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise FileMismatchError(
                f"{path}: TensorRT {trt.__version__} does not take this engine; export it again"
            )
        context = engine.create_execution_context()
        if context is None:
            raise BoxSegError(f"{path}: the GPU has no room for this engine")
        self._kept = (logger, runtime, engine)  # the context needs them alive
        self._context = context
        self._bind(path, trt, engine, context)

    @staticmethod
    def _number(device: str | None) -> int:
        kind, _, number = (device or "cuda").lower().partition(":")
        if kind != "cuda" or (number and not number.isdigit()):
            raise ValueError(f"device must be cuda or cuda:N for an engine, got {device!r}")
        return int(number or 0)

    def _bind(self, path: Path, trt: Any, engine: Any, context: Any) -> None:
        """Take memory for the largest batch and tell the engine where it is."""
        kinds = {
            trt.DataType.FLOAT: np.float32,
            trt.DataType.HALF: np.float16,
            trt.DataType.INT32: np.int32,
            trt.DataType.UINT8: np.uint8,
        }
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if inputs != [self.metadata.input_name] or not isinstance(self.metadata.imgsz, Fit):
            raise FileMismatchError(
                f"{path}: the engine must have the one input {self.metadata.input_name} of a fixed "
                f"size by the metadata, it has {', '.join(inputs)}"
            )
        kind = np.dtype(kinds.get(engine.get_tensor_dtype(inputs[0]), np.float64)).name
        shape = [None if side < 0 else int(side) for side in engine.get_tensor_shape(inputs[0])]
        _check_input(path, self.metadata, inputs[0], kind, shape)
        most = self.metadata.batch.most
        size = (self.metadata.imgsz.height, self.metadata.imgsz.width, 3)
        self._resize(most, size)
        self._image = self._cuda.pinned((most, *size), np.uint8)
        self._addresses = {inputs[0]: self._cuda.allocate(self._image.nbytes)}
        self._outputs = {}
        for name in names:
            if name == inputs[0]:
                continue
            kind_of = engine.get_tensor_dtype(name)
            if kind_of not in kinds:
                raise FileMismatchError(f"{path}: output {name} is of the type {kind_of}")
            room = self._cuda.pinned(tuple(context.get_tensor_shape(name)), kinds[kind_of])
            self._outputs[name] = room
            self._addresses[name] = self._cuda.allocate(room.nbytes)
        for name, address in self._addresses.items():
            if not context.set_tensor_address(name, address):
                raise BoxSegError(f"{path}: TensorRT refuses the memory of {name}")

    def _resize(self, count: int, size: tuple[int, ...]) -> None:
        """Tell the engine how many images the next run has."""
        name = self.metadata.input_name
        if not self._context.set_input_shape(name, (count, *size)):
            raise ValueError(
                f"a run takes {self.metadata.batch.least} to {self.metadata.batch.most} images, "
                f"got {count}"
            )
        missing = self._context.infer_shapes()
        if missing:
            raise BoxSegError(f"TensorRT cannot tell the shapes of {', '.join(missing)}")
        self._count = count

    def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the engine on RGB bytes (B, H, W, 3); the outputs hold until the next run."""
        count = len(image)
        batch = self.metadata.batch
        if not batch.least <= count <= batch.most or image.shape[1:] != self._image.shape[1:]:
            raise ValueError(
                f"an image must be {self._image.shape[1:]} and a run have {batch.least} to "
                f"{batch.most} of them, got {image.shape}"
            )
        self._cuda.activate()  # a stream runs in a thread of its own
        if count != self._count:
            self._resize(count, image.shape[1:])
        np.copyto(self._image[:count], image)
        self._cuda.upload(self._image[:count], self._addresses[self.metadata.input_name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BoxSegError("TensorRT could not start the run")
        found = {name: room[:count] for name, room in self._outputs.items()}
        for name, values in found.items():
            self._cuda.download(self._addresses[name], values)
        self._cuda.wait()
        # the runtime reads float32, whatever an engine of less precision gives
        return {
            name: values.astype(np.float32) if values.dtype == np.float16 else values
            for name, values in found.items()
        }


def machine(tensorrt_version: str, cuda: CudaDevice) -> Machine:
    """Describe this machine as engines depend on it."""
    return Machine(
        tensorrt=tensorrt_version,
        system=system(),
        device=cuda.name,
        compute_capability=cuda.compute_capability,
        cuda_driver=cuda.driver_version,
    )


def open_backend(
    path: str | Path, device: str | None = None, threads: int | None = None
) -> OnnxRuntimeBackend | OpenVinoBackend | TensorRTBackend:
    """Open a deployed file with the engine that its name tells.

    Args:
        path: An .onnx file, an OpenVINO folder (`NAME_openvino_model`) or its .xml file, or a
            TensorRT engine (.engine, .plan, .trt).
        device: Where to run; None is the CPU, for TensorRT the first GPU. A device that is not
            obtained is an error.
        threads: Of the engine, at least 1; None leaves it to the engine. None for TensorRT.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        BackendMissingError: if the engine or the device is not there.
        FileMismatchError: if the file is foreign, damaged or of another version.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise FileMismatchError(f"{path} is neither a file nor a folder")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxRuntimeBackend(path, device, threads)
    if suffix == ".xml" or (path.is_dir() and any(path.glob("*.xml"))):
        return OpenVinoBackend(path, device, threads)
    if suffix in ENGINE_SUFFIXES:
        if threads is not None:
            raise ValueError("threads are for engines on a CPU; TensorRT has none")
        return TensorRTBackend(path, device)
    raise FileMismatchError(
        f"{path} is no deployed file: an .onnx file, an OpenVINO folder, its .xml file or a "
        "TensorRT engine is needed"
    )
