"""Convert a traced graph to OpenVINO's own format, in full precision."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxseg.errors import BackendMissingError, BoxSegError, UnsupportedOperatorError
from boxseg.export.to_onnx import EXPORT_KEY, TracedGraph, write_onnx
from boxseg.runtime.metadata import METADATA_KEY


def write_openvino(traced: TracedGraph, folder: Path, *, stem: str = "best") -> Path:
    """Convert and write `<stem>.xml` and `<stem>.bin`.

    Weights stay float32: the converter's default would store them as float16.

    Args:
        traced: From `boxseg.export.to_onnx.trace`; its metadata goes into rt_info.
        folder: Made if needed; users know it as `best_openvino_model`.
        stem: Name of the two files.

    Returns:
        Path of the .xml file.

    Raises:
        BackendMissingError: if OpenVINO is not installed.
        BoxSegError: if the files cannot be written.
        UnsupportedOperatorError: if the converter refuses the graph.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise BackendMissingError(
            "openvino is not installed; pip install 'boxseg[openvino]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = write_onnx(traced, Path(scratch) / "graph.onnx")
        try:
            model = openvino.convert_model(str(source))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UnsupportedOperatorError(
                f"OpenVINO {openvino.__version__} cannot convert the graph: {reason}"
            ) from error
    stored = {entry.key: entry.value for entry in traced.model.metadata_props}
    made_by: Mapping[str, Any] = json.loads(stored[EXPORT_KEY])
    made_by = {**made_by, "openvino": str(openvino.__version__)}
    model.set_rt_info(stored[METADATA_KEY], METADATA_KEY)
    model.set_rt_info(json.dumps(made_by, sort_keys=True), EXPORT_KEY)
    target = folder / f"{stem}.xml"
    try:
        openvino.save_model(model, str(target), compress_to_fp16=False)
    except RuntimeError as error:  # its streams do not say what the system said
        reason = str(error).strip().splitlines()[-1]
        raise BoxSegError(
            f"{target} cannot be written (is the disk full, or the folder read-only?): {reason}"
        ) from error
    return target
