"""TensorRT: the operator check, and the build and the run against a stand-in; on a GPU for real."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_double
from deployed import dense_outputs, describe
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tools import require, run

from boxseg import cli
from boxseg.checkpoint import save_model
from boxseg.errors import (
    BackendMissingError,
    BoxSegError,
    FileMismatchError,
    PrecisionError,
    UnsupportedOperatorError,
)
from boxseg.export.to_onnx import TracedGraph
from boxseg.export.to_tensorrt import (
    BuildOptions,
    Engine,
    build_engine,
    check_operators,
    check_precision,
    count_layers,
    open_toolkit,
    refused_nodes,
)
from boxseg.export.verify import drawn_samples
from boxseg.runtime import cuda_driver
from boxseg.runtime.backends import TensorRTBackend, open_backend
from boxseg.runtime.engine_sidecar import (
    Machine,
    Sidecar,
    differences,
    read_sidecar,
    sha256,
    sidecar_path,
    write_sidecar,
)
from boxseg.runtime.golden_sample import open_shelved
from boxseg.runtime.segmenter import Segmenter
from boxseg.student import Student

HAS_TENSORRT = importlib.util.find_spec("tensorrt") is not None


def one_node(node: onnx.NodeProto, kind: int = TensorProto.FLOAT, *constants: Any) -> Any:
    """A graph of one node that reads x and writes y."""
    x = helper.make_tensor_value_info("x", kind, [2, 8])
    y = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "one", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def constant(name: str, *values: float, kind: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (one_node(helper.make_node("Det", ["x"], ["y"], "d")), "node d (Det): the operator is not"),
        (
            one_node(helper.make_node("Transpose", ["x"], ["y"], "t"), TensorProto.UINT8),
            "node t (Transpose): it reads x of bytes, which only a Cast may",
        ),
        (
            one_node(helper.make_node("Sigmoid", ["x"], ["y"]), TensorProto.DOUBLE),
            "node number 0 (Sigmoid): data of the type DOUBLE is not supported",
        ),
        (
            one_node(
                helper.make_node("TopK", ["x", "k"], ["y", "i"]),
                TensorProto.FLOAT,
                constant("k", 3840),
            ),
            "K must be at most 3839, it is 3840",
        ),
        (
            one_node(
                helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"),
                TensorProto.FLOAT,
                constant("s", 1, 2, kind=np.float32),
            ),
            "mode must be nearest or linear without antialiasing, it is cubic",
        ),
        (
            one_node(
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]),
                TensorProto.FLOAT,
                constant("s", 1, kind=np.float32),
                constant("z", 3, kind=np.uint8),
            ),
            "the zero point must be 0",
        ),
    ],
)
def test_a_node_that_the_parser_refuses_is_named(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        check_operators(model)
    assert reason in str(caught.value)


def test_nodes_that_the_parser_takes_pass() -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    check_operators(one_node(cast, TensorProto.UINT8))
    best = helper.make_node("TopK", ["x", "k"], ["y", "i"])
    check_operators(one_node(best, TensorProto.FLOAT, constant("k", 3)))


def test_an_opset_that_tensorrt_does_not_read_is_refused() -> None:
    model = one_node(helper.make_node("Relu", ["x"], ["y"]))
    model.opset_import[0].version = 25
    with pytest.raises(UnsupportedOperatorError, match="opsets 9 to 24, the graph has 25"):
        check_operators(model)


def test_the_dense_form_passes(tiny_graph: TracedGraph) -> None:
    assert refused_nodes(tiny_graph.model) == []


def test_layers_are_counted_in_both_spellings_of_the_inspector() -> None:
    of_10 = {"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}] * 2}
    of_11 = {"Layers": [{"Outputs": [{"Format": "Linear", "DataType": "Half"}]}, {"Outputs": []}]}
    assert count_layers(json.dumps(of_10)) == {"fp16": 2}
    assert count_layers(json.dumps(of_11)) == {"fp16": 1}
    assert count_layers('{"Layers": ["only a name"]}') == {}
    assert count_layers('{"Layers": [{"Outputs": [{"Name": "x"}]}]}') == {"unknown": 1}


def test_another_precision_than_the_asked_one_is_refused() -> None:
    check_precision({"fp32": 9, "int32": 1}, "fp32")
    check_precision({"fp32": 9, "fp16": 1}, "fp16")
    with pytest.raises(PrecisionError, match="fp32 was asked, the engine's layers are 1 fp16"):
        check_precision({"fp16": 1}, "fp32")
    with pytest.raises(PrecisionError, match="int8 was asked, the engine's layers are 3 fp32"):
        check_precision({"fp32": 3}, "int8")


# ------------------------------------------------------------------------------- sidecar

HERE = Machine("10.16.1.11", "linux-x86_64", "Card", "8.6", 12080)


def sidecar_of(version_compatible: bool = False, **changes: Any) -> Sidecar:
    values = {**vars(HERE), **changes}
    return Sidecar(Machine(**values), version_compatible, "", "", {}, {})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"cuda_driver": 12000}, []),  # a newer driver runs older engines
        ({"device": "Other card"}, []),
        ({"tensorrt": "10.15.0"}, ["TensorRT 10.16.1.11, engine of 10.15.0"]),
        ({"system": "linux-aarch64"}, ["system linux-x86_64, engine of linux-aarch64"]),
        ({"compute_capability": "8.7"}, ["compute capability 8.6 (Card), engine of 8.7 (Card)"]),
        ({"cuda_driver": 13000}, ["driver of CUDA 12080, engine of 13000"]),
    ],
)
def test_what_differs_is_said(changes: dict[str, Any], expected: list[str]) -> None:
    assert differences(sidecar_of(**changes), HERE) == expected


@pytest.mark.parametrize(
    ("built", "fits"), [("10.12.0", True), ("9.3.0", True), ("8.6.1", False), ("11.0.0", False)]
)
def test_a_version_compatible_engine_runs_on_the_next_major_version(built: str, fits: bool) -> None:
    found = differences(sidecar_of(version_compatible=True, tensorrt=built), HERE)
    assert (found == []) == fits


def test_damaged_sidecars_are_named(tmp_path: Path) -> None:
    engine = tmp_path / "best.engine"
    with pytest.raises(FileMismatchError, match=r"needs best\.engine\.json beside it"):
        read_sidecar(engine)
    sidecar = sidecar_of()
    assert read_sidecar_after(engine, sidecar.to_dict()) == sidecar
    for content, message in (
        ("{", "is no JSON"),
        ("[]", "format_version is None"),
        (json.dumps({"format_version": 2}), "format_version is 2"),
        (json.dumps({"format_version": 1}), "a key is missing or wrong: 'tensorrt'"),
    ):
        sidecar_path(engine).write_text(content)
        with pytest.raises(FileMismatchError, match=message):
            read_sidecar(engine)


def read_sidecar_after(engine: Path, values: dict[str, Any]) -> Sidecar:
    sidecar_path(engine).write_text(json.dumps(values))
    return read_sidecar(engine)


# ------------------------------------------------------------------------------- stand-in


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in for NVIDIA's driver."""
    require("gcc")
    path = tmp_path_factory.mktemp("cuda") / "libcuda_double.so"
    source = Path(__file__).parent / "native" / "cuda_double.c"
    run("gcc", "-std=c11", "-shared", "-fPIC", source, "-o", path)
    return path


@pytest.fixture(params=[10, 11])
def trt(request: pytest.FixtureRequest, driver: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the stand-ins in place."""
    module = tensorrt_double.double(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(driver))
    return module


def small_graph(least: int = 1, most: int = 1) -> onnx.ModelProto:
    """A graph of the dense form; class logits have the image's mean over 255 added."""
    dynamic = least < most
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch" if dynamic else most, 96, 160, 3]
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=0),  # (B,)
        helper.make_node("Div", ["mean", "full"], ["bright"]),
        helper.make_node("Mul", ["bright", "nothing"], ["zero"]),
    ]
    constants = [
        constant("axes", 1, 2, 3),
        constant("full", 255, kind=np.float32),
        constant("nothing", 0, kind=np.float32),
    ]
    values = []
    for name, array in dense_outputs(4).items():
        shape = [-1, *(1 for _ in array.shape[1:])]
        added = "bright" if name == "class_logits" else "zero"
        nodes.append(helper.make_node("Reshape", [added, f"{name}_shape"], [f"{name}_added"]))
        nodes.append(helper.make_node("Add", [f"{name}_constant", f"{name}_added"], [name]))
        constants.append(constant(f"{name}_shape", *shape))
        constants.append(numpy_helper.from_array(array, f"{name}_constant"))
        sides = ["batch" if dynamic else most, *array.shape[1:]]
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
    graph = helper.make_graph(nodes, "small", [image], values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    metadata = describe(batch={"min": least, "opt": least, "max": most})
    model.metadata_props.add(key="boxseg", value=json.dumps(metadata))
    return model


def write(engine: Engine, path: Path) -> Path:
    path.write_bytes(engine.plan)
    write_sidecar(path, engine.sidecar)
    return path


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((96, 160, 3), value, np.uint8)


def test_an_engine_is_built_and_answers(trt: Any, tmp_path: Path) -> None:
    phases: list[str] = []
    engine = build_engine(small_graph(1, 4), open_toolkit(), report=phases.append)
    assert phases == ["Building: 2 steps"]
    assert engine.audit.executed == {"fp32": 1}
    assert ("clear", "TF32") in trt.events
    backend = open_backend(write(engine, tmp_path / "best.engine"))
    assert (backend.name, backend.device) == ("tensorrt", "cuda:0")
    for values in ((255,), (0, 51, 255), (255, 0)):  # the batch grows and shrinks
        found = backend.run(np.stack([frame(value) for value in values]))
        for name, expected in dense_outputs(4).items():
            share = [value / 255 if name == "class_logits" else 0 for value in values]
            added = np.reshape(share, (-1, *(1 for _ in expected.shape[1:])))
            np.testing.assert_allclose(found[name], expected + added, atol=1e-5)
    with pytest.raises(ValueError, match="a run have 1 to 4 of them, got \\(5, 96, 160, 3\\)"):
        backend.run(np.zeros((5, 96, 160, 3), np.uint8))


def test_a_segmenter_runs_an_engine_in_another_thread(trt: Any, tmp_path: Path) -> None:
    path = write(build_engine(small_graph(2, 2), open_toolkit()), tmp_path / "best.plan")
    segmenter = Segmenter(path, conf=0.0)
    expected = segmenter(frame(7))
    assert len(expected) > 0
    with segmenter.stream(when_full="block") as stream:
        stream.submit(frame(7))
        assert stream.result().detections.counts == expected.counts


def test_the_memory_is_given_back(trt: Any, driver: Path, tmp_path: Path) -> None:
    path = write(build_engine(small_graph(), open_toolkit()), tmp_path / "best.engine")
    live = ctypes.CDLL(str(driver)).live_handles
    before = live()
    backend = TensorRTBackend(path)
    assert live() > before + 10  # context, stream, and two pieces for each of six tensors
    del backend
    assert live() == before


@pytest.mark.parametrize("trt", [10], indirect=True)
def test_an_unverified_engine_is_opened_with_its_sidecar(trt: Any, tmp_path: Path) -> None:
    path = write(build_engine(small_graph(), open_toolkit()), tmp_path / "best.engine.unverified")
    assert open_shelved(path).name == "tensorrt"
    with pytest.raises(FileMismatchError, match="is no deployed file"):
        open_backend(path)  # whoever asks for a proven file does not get it
    values = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps({**values, "compute_capability": "7.2"}))
    with pytest.raises(FileMismatchError, match=f"^{path} cannot run here: compute capability"):
        open_shelved(path)


@pytest.mark.parametrize("trt", [10], indirect=True)
def test_bench_names_the_gpu_and_its_memory(trt: Any, tmp_path: Path) -> None:
    path = write(build_engine(small_graph(), open_toolkit()), tmp_path / "best.engine")
    record = tmp_path / "bench.json"
    words = ["bench", str(path), "--iters", "1", "--warmup", "0", "--json", str(record)]
    assert cli.run([*words, "--markdown", str(tmp_path / "bench.md")]) == 0
    (model,) = json.loads(record.read_text())["models"]
    assert (model["device"], model["gpu"]) == (
        "cuda:0",
        "Stand-in GPU (8.6, driver of CUDA 12.8)",
    )
    # an input of 96 x 160 x 3 bytes, and float32 outputs
    numbers = sum(values.size for values in dense_outputs(4).values())
    assert model["memory"]["gpu_bytes"] == 96 * 160 * 3 + 4 * numbers
    report = (tmp_path / "bench.md").read_text()
    assert "tensorrt on cuda:0, Stand-in GPU (8.6, driver of CUDA 12.8), fp32" in report
    assert "0 MiB on the GPU" in report
    assert "\n  engine: the copies to the GPU and back are inside\n" in report


def test_a_thread_without_the_gpu_is_an_error_of_the_driver(trt: Any) -> None:
    device = cuda_driver.CudaDevice()
    caught: list[BaseException] = []

    def use() -> None:
        try:
            device.wait()
        except BoxSegError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "cuStreamSynchronize failed with 201, invalid device context" in str(caught[0])


def test_the_sidecar_says_what_the_plan_depends_on(trt: Any, tmp_path: Path) -> None:
    options = BuildOptions(workspace_gib=1.5, version_compatible=True)
    engine = build_engine(small_graph(1, 4), open_toolkit(), options=options)
    path = write(engine, tmp_path / "best.engine")
    assert path.read_bytes() == engine.plan  # the plan is TensorRT's alone
    found = read_sidecar(path)
    assert found.machine.tensorrt == trt.__version__
    assert (found.machine.device, found.machine.compute_capability) == ("Stand-in GPU", "8.6")
    assert found.machine.cuda_driver == 12080
    assert found.version_compatible
    assert found.details["profile"] == {"min": 1, "opt": 1, "max": 4}
    assert ("set", "VERSION_COMPATIBLE") in trt.events
    assert ("WORKSPACE", 3 * 2**29) in trt.events


def test_foreign_engines_are_refused_before_tensorrt_sees_them(trt: Any, tmp_path: Path) -> None:
    path = write(build_engine(small_graph(), open_toolkit()), tmp_path / "best.engine")
    values = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps({**values, "compute_capability": "7.2"}))
    with pytest.raises(FileMismatchError, match=r"compute capability 8\.6 .*, engine of 7\.2"):
        open_backend(path)
    sidecar_path(path).write_text(json.dumps(values))
    path.write_bytes(b"other")
    with pytest.raises(FileMismatchError, match=r"is not the file that best\.engine\.json belongs"):
        open_backend(path)
    sidecar_path(path).write_text(json.dumps({**values, "engine_sha256": sha256(b"other")}))
    with pytest.raises(FileMismatchError, match="does not take this engine; export it again"):
        open_backend(path)


def test_times_of_a_build_are_kept_and_foreign_ones_left_out(trt: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "times.cache"
    options = BuildOptions(timing_cache=path)
    build_engine(small_graph(), open_toolkit(), options=options)
    build_engine(small_graph(), open_toolkit(), options=options)
    assert path.read_bytes() == b"++"
    path.write_bytes(b"foreign")
    build_engine(small_graph(), open_toolkit(), options=options)
    assert path.read_bytes() == b"+"


def test_what_tensorrt_refuses_ends_in_our_errors(trt: Any) -> None:
    trt.refuses = "Div"
    with pytest.raises(UnsupportedOperatorError, match=r"\(Div\): no importer registered"):
        build_engine(small_graph(), open_toolkit())
    trt.refuses, trt.layer_type = "", "broken"
    with pytest.raises(BoxSegError, match="could not build the engine: out of memory"):
        build_engine(small_graph(), open_toolkit())
    trt.layer_type = "FP16"
    with pytest.raises(PrecisionError, match="fp32 was asked, the engine's layers are 1 fp16"):
        build_engine(small_graph(), open_toolkit())


def test_a_library_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open\nshared object file")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(
        BackendMissingError, match=r"does not load: libnvinfer\.so\.10: cannot open$"
    ):
        open_toolkit()


def test_other_versions_and_devices_are_refused(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissingError, match="device cuda:1 is not available: 1 GPU here"):
        open_toolkit(1)
    for version in ("10.11.0", "12.0.0", "8.6.1"):
        monkeypatch.setattr(trt, "__version__", version)
        with pytest.raises(BackendMissingError, match=rf"TensorRT {version} is not supported"):
            open_toolkit()
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnothing.so.0")
    monkeypatch.setattr(trt, "__version__", "10.12.0")
    with pytest.raises(BackendMissingError, match="no NVIDIA driver here"):
        open_toolkit()


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def model(tiny_student: Student, tmp_path: Path) -> Path:
    save_model(tmp_path / "best.pt", tiny_student)
    return tmp_path / "best.pt"


@pytest.mark.skipif(HAS_TENSORRT, reason="TensorRT is installed")
@pytest.mark.parametrize("word", ["trt", "tensorrt", "engine"])
def test_without_tensorrt_nothing_is_written(
    model: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(model), "--format", "onnx", "--format", word]) == 4
    assert "TensorRT is not installed; pip install 'boxseg[tensorrt]'" in capsys.readouterr().err
    assert [path.name for path in model.parent.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("trt", [10], indirect=True)
def test_the_command_writes_a_proven_engine(
    trt: Any, model: Path, tiny_graph: TracedGraph, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from boxseg.export import to_onnx

    monkeypatch.setattr(to_onnx, "trace", lambda *_, **__: tiny_graph)  # traced already
    words = ["export", str(model), "--format", "engine", "--form", "dense"]
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    assert f"executed     fp32: 1 layers by TensorRT {trt.__version__}" in printed
    assert "build        Building: 2 steps" in printed
    beside = ("manifest.json", "golden.png", "md")
    names = {"best.pt", "best.engine", "best.engine.json"}
    names |= {f"best.engine.{name}" for name in beside}
    assert {path.name for path in model.parent.iterdir()} == names
    engine = str(model.parent / "best.engine")
    assert cli.run(["verify", engine, "--against", str(model)]) == 0
    assert cli.run(["verify", engine]) == 0

    honest = TensorRTBackend.run

    def fails(*_: Any) -> Any:
        raise BoxSegError("the GPU has no room for this engine")

    monkeypatch.setattr(TensorRTBackend, "run", fails)
    assert cli.run(words) == 9
    printed = capsys.readouterr()
    assert f"best.engine.unverified: TensorRT {trt.__version__} cannot run it here" in printed.err
    assert "the GPU has no room for this engine" in printed.out
    names |= {"best.engine.unverified", "best.engine.unverified.json"}
    names |= {f"best.engine.unverified.{name}" for name in beside}
    assert {path.name for path in model.parent.iterdir()} == names

    def lies(self: Any, image: NDArray[np.uint8]) -> Any:
        outputs = dict(honest(self, image))
        outputs["boxes"] = outputs["boxes"] + 1
        return outputs

    monkeypatch.setattr(TensorRTBackend, "run", lies)
    assert cli.run(words) == 6
    assert "first divergent tensor boxes" in capsys.readouterr().err
    names |= {"best.engine.failed", "best.engine.failed.json"}
    assert {path.name for path in model.parent.iterdir()} == names


# ------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_TENSORRT, reason="TensorRT is not installed")
@pytest.mark.parametrize("form", ["dense", "topk", "graph"])
@pytest.mark.parametrize("batch", [(), ("--batch", "1", "2", "4")])
def test_tensorrt_itself_answers_like_torch(
    model: Path, form: str, batch: tuple[str, ...], tmp_path: Path
) -> None:
    cache = str(tmp_path / "times.cache")
    words = ["--format", "trt", "--form", form, *batch, "--timing-cache", cache]
    assert cli.run(["export", str(model), *words, "--workspace", "1"]) == 0
    engine = model.parent / "best.engine"
    assert cli.run(["verify", str(engine), "--against", str(model)]) == 0
    assert cli.run(["verify", str(engine)]) == 0
    assert read_sidecar(engine).details["layers"]
    found = Segmenter(engine, conf=0.0).batch([frame(i) for i in range(5)])
    assert len(found) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_TENSORRT, reason="TensorRT is not installed")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_tensorrt_itself_computes_in_the_asked_precision(
    model: Path, precision: str, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(drawn_samples(count=16).frames.values()):
        Image.fromarray(np.asarray(pixels)).save(photos / f"{number}.png")
    report = tmp_path / "report.json"
    words = ["--format", "trt", "--precision", precision, "--calib", str(photos)]
    assert cli.run(["export", str(model), *words, "--json", str(report)]) == 0
    (file,) = json.loads(report.read_text())["files"]
    assert file["parity"]["passed"]
    assert file["audit"]["executed"][precision] > 0
    assert file["audit"]["failure"] is None
    assert cli.run(["verify", str(model.parent / f"best_{precision}.engine")]) == 0
