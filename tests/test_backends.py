"""Engines behind the protocol, and every file that they must refuse."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx, write_openvino

from boxseg.errors import BackendMissingError, FileMismatchError
from boxseg.runtime.backends import Backend, OnnxRuntimeBackend, open_backend
from boxseg.runtime.preprocess import Fit

pytest.importorskip("onnx", reason="the small graph is built with onnx")

ENGINES = ("onnxruntime", "openvino")


def _write(engine: str, folder: Path, metadata: dict[str, Any] | None, **options: Any) -> Path:
    pytest.importorskip(engine)
    if engine == "onnxruntime":
        return write_onnx(folder / "small.onnx", dense_outputs(0), metadata, **options)
    return write_openvino(folder / "small_openvino_model", 0, metadata)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_runs_and_knows_itself(engine: str, tmp_path: Path) -> None:
    backend: Backend = open_backend(_write(engine, tmp_path, describe()), threads=1)
    assert backend.name == engine
    assert backend.device == "cpu"
    assert not isinstance(backend.metadata, dict)
    image = np.full((1, 96, 160, 3), 255, np.uint8)
    outputs, expected = backend.run(image), dense_outputs(0)
    assert set(outputs) == set(expected)
    for name, values in expected.items():
        added = 1 if name == "class_logits" else 0  # the mean of the image over 255
        assert outputs[name].dtype == np.float32
        assert np.abs(outputs[name] - (values + added)).max() < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_the_metadata_come_from_inside_the_file(engine: str, tmp_path: Path) -> None:
    path = _write(engine, tmp_path, describe())
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(path, moved / path.name)
    assert open_backend(moved / path.name).metadata.imgsz == Fit(96, 160)


def test_openvino_computes_fp32_files_in_fp32(tmp_path: Path) -> None:
    backend = open_backend(_write("openvino", tmp_path, describe()))
    compiled = backend._compiled  # type: ignore[union-attr]  # the setting has no other witness
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == "f32"


def test_onnxruntime_rounds_no_fp32_on_a_gpu() -> None:
    for device, number in (("cuda", "0"), ("cuda:2", "2")):
        provider = OnnxRuntimeBackend._provider(device)
        assert provider == ("CUDAExecutionProvider", {"device_id": number, "use_tf32": "0"})


def test_openvino_pins_no_engine_to_the_cores_of_another(tmp_path: Path) -> None:
    path = _write("openvino", tmp_path, describe())
    for threads in (None, 1):
        backend = open_backend(path, threads=threads)
        compiled = backend._compiled  # type: ignore[union-attr]  # as above
        assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_the_xml_file_names_the_model_too(tmp_path: Path) -> None:
    folder = _write("openvino", tmp_path, describe())
    assert open_backend(folder / "small.xml").name == "openvino"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_without_our_metadata_is_refused(engine: str, tmp_path: Path) -> None:
    with pytest.raises(FileMismatchError, match="holds no 'boxseg' metadata"):
        open_backend(_write(engine, tmp_path, None))


@pytest.mark.parametrize("engine", ENGINES)
def test_metadata_that_are_wrong_name_the_file(engine: str, tmp_path: Path) -> None:
    with pytest.raises(FileMismatchError, match=r"small.*: metadata.format_version is 9"):
        open_backend(_write(engine, tmp_path, describe(format_version=9)))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_input_that_differs_from_the_metadata_is_refused(engine: str, tmp_path: Path) -> None:
    with pytest.raises(FileMismatchError, match=r"the graph has uint8 image \[1, 96, 160, 3\]"):
        open_backend(_write(engine, tmp_path, describe(imgsz__width=192)))


def test_an_input_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileMismatchError, match="the graph has uint8 frame"):
        open_backend(_write("onnxruntime", tmp_path, describe(), name="frame"))


def _broken(path: Path, part: str, content: bytes) -> None:
    for file in [path] if path.is_file() else path.glob(f"*{part}"):
        file.write_bytes(content)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("part", [".xml", ".bin"])
@pytest.mark.parametrize("kept", [0, 1, 100, 1000])
def test_truncated_and_foreign_files_are_refused(
    engine: str, part: str, kept: int, tmp_path: Path
) -> None:
    path = _write(engine, tmp_path, describe())
    file = path if path.is_file() else next(path.glob(f"*{part}"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(FileMismatchError) as caught:
        open_backend(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_of_noise_is_refused(engine: str, tmp_path: Path) -> None:
    path = _write(engine, tmp_path, describe())
    _broken(path, ".xml", np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    with pytest.raises(FileMismatchError):
        open_backend(path)


def test_openvino_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = _write("openvino", tmp_path, describe())
    (path / "small.bin").unlink()
    with pytest.raises(FileMismatchError, match=r"small.bin is missing"):
        open_backend(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_backend(tmp_path / "missing.onnx")
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"x")
    with pytest.raises(FileMismatchError, match="is no deployed file"):
        open_backend(picture)
    with pytest.raises(FileMismatchError, match="is no deployed file"):
        open_backend(tmp_path)
    engine = tmp_path / "best.engine"
    engine.write_bytes(b"x")
    with pytest.raises(BackendMissingError, match="TensorRT"):
        open_backend(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_that_is_not_there_is_an_error(engine: str, tmp_path: Path) -> None:
    path = _write(engine, tmp_path, describe())
    absent = {"onnxruntime": "cuda:0", "openvino": "NPU"}[engine]
    if engine == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this machine has the device")
    with pytest.raises(BackendMissingError, match=f"(?i)device {absent} is not available"):
        open_backend(path, device=absent)


def test_bad_options_are_named(tmp_path: Path) -> None:
    path = _write("onnxruntime", tmp_path, describe())
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N"):
        open_backend(path, device="tpu")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        open_backend(path, threads=0)
    with pytest.raises(ValueError, match=r"as GPU or GPU\.0, got 'cpu:0'"):
        open_backend(_write("openvino", tmp_path, describe()), device="cpu:0")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_engine_is_answered_with_its_install_command(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(engine, tmp_path, describe())
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(BackendMissingError, match=rf"pip install boxseg\[{engine}\]"):
        open_backend(path)
