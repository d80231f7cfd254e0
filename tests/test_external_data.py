"""ONNX files that name other files: wherever a tensor hides, its file is found first."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx

from boxseg.errors import FileMismatchError
from boxseg.runtime.backends import open_backend
from boxseg.runtime.external_data import external_files, refuse_escaping_files

if TYPE_CHECKING:
    import onnx
else:
    onnx = pytest.importorskip("onnx", reason="the files are built with onnx")
helper = onnx.helper


def tensor(location: str, name: str = "w") -> onnx.TensorProto:
    """A tensor of two floats that lie in another file."""
    made = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2])
    made.data_location = onnx.TensorProto.EXTERNAL
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    made.external_data.add(key="length", value="8")
    return made


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor(location))


def graph(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", [], [], initializer=weights)


def hidden_everywhere() -> onnx.ModelProto:
    """A model with a tensor in each place where the format has room for one."""
    branches = {
        "then_branch": graph(constant("branch")),
        "else_branch": graph(weights=(tensor("branch of branch"),)),
    }
    nodes = (
        constant("attribute"),
        helper.make_node("If", ["x"], ["y"], **branches),
        helper.make_node("Many", [], ["z"], tensors=[tensor("list 1"), tensor("list 2")]),
    )
    model = helper.make_model(graph(*nodes, weights=(tensor("weight"),)))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor("sparse values"))
    sparse.indices.CopyFrom(tensor("sparse indices"))
    model.graph.node.add(op_type="S").attribute.add(name="s").sparse_tensor.CopyFrom(sparse)
    function = model.functions.add(name="f")
    function.node.add().CopyFrom(constant("function"))
    function.attribute_proto.add(name="a").t.CopyFrom(tensor("default of function"))
    model.training_info.add().algorithm.CopyFrom(graph(constant("training")))
    # a field's value may hold the word, and metadata may too
    model.metadata_props.add(key="location", value="no file")
    return model


def test_every_place_of_a_tensor_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(hidden_everywhere().SerializeToString())
    assert external_files(path) == [
        "attribute",
        "branch",
        "branch of branch",
        "default of function",
        "function",
        "list 1",
        "list 2",
        "sparse indices",
        "sparse values",
        "training",
        "weight",
    ]


def test_a_file_without_other_files_names_none(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "small.onnx", dense_outputs(0), describe())
    assert external_files(path) == []
    refuse_escaping_files(path)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../../etc/passwd", "a/../../passwd", "..\\passwd", ".."]
)
def test_a_file_outside_the_folder_is_refused_before_an_engine_sees_it(
    tmp_path: Path, location: str
) -> None:
    pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "small.onnx", dense_outputs(0), describe())
    model = onnx.load(path)
    model.graph.initializer.append(tensor(location, "unused"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileMismatchError, match="outside its folder, so it was not loaded") as bad:
        open_backend(path)
    assert "\n" not in str(bad.value)


def test_a_file_inside_the_folder_is_the_engines_business(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = helper.make_model(graph(weights=(tensor("weights/a.bin"), tensor("./b.bin", "v"))))
    path.write_bytes(model.SerializeToString())
    refuse_escaping_files(path)


def test_numbers_written_longer_than_needed_hide_nothing(tmp_path: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        # tag and length in varints of three and five bytes; both could be one
        tag = number << 3 | 2
        longer = bytes([tag & 127 | 128, tag >> 7 | 128, 0])
        return longer + bytes([len(content) & 127 | 128, len(content) >> 7 | 128, 128, 128, 0])

    entry = b""
    for number, text in ((2, b"../x"), (1, b"location")):  # value before key
        entry += field(number, text) + text
    content = entry
    for number in (13, 5, 7):  # entry of a tensor of a graph of a model
        content = field(number, content) + content
    # in front an unknown group, a fixed64 and a fixed32, which are stepped over
    content = (
        b"\xa3\x06\x08\x01\xa4\x06" + b"\x99\x06" + bytes(8) + b"\x9d\x06" + bytes(4) + content
    )
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    assert external_files(path) == ["../x"]
    model = onnx.load_model_from_string(content)
    assert model.graph.initializer[0].external_data[0].key == "location"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",  # a tag and no length
        b"\x3a\x05abc",  # shorter than it says
        b"\x3a" + b"\xff" * 10,  # a number without end
        b"\x0c",  # the end of a group that did not begin
        b"\xa3\x06",  # a group without end
        b"\x0f",  # no kind of field
        struct.pack("<Q", 2**63),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(FileMismatchError, match=r"a\.onnx is damaged or no ONNX file"):
        external_files(path)


def test_noise_is_refused_or_names_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "a.onnx"
    whole = hidden_everywhere().SerializeToString()
    for _ in range(300):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(1, len(whole))])
        try:
            names = external_files(path)
        except FileMismatchError:
            continue
        assert all(isinstance(name, str) for name in names)
