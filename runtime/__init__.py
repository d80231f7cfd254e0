"""Frame in, instances out: numpy and C, no torch.

segmenter.py     Segmenter(path)(frame) -> Detections, with a time per stage
stream.py        the same for a camera: submit a frame, take an answer
detections.py    instances of a frame: boxes, scores, masks in any form
preprocess.py    letterbox and resize
backends.py      ONNX Runtime, OpenVINO and TensorRT behind one small protocol
engine_sidecar.py cuda_driver.py   what a TensorRT engine depends on; memory and copies of a GPU
agreement.py     when two answers to one image count as equal
golden_sample.py what lies beside a deployed file, and its replay
postprocess.py   candidates, suppression, masks: the calls into C
metadata.py      what a deployed file says about itself
accuracy.py      COCO AP of anything that answers frames with detections
benchmark.py     stage times
bench_scenarios.py bench_report.py   objects, batches, a pace, streams, memory; text and pictures
native_benchmark.py   the C library's parts against benchmark_peers.py on benchmark_inputs.py
commands.py bench_command.py   boxseg predict / eval / bench-native / doctor; boxseg bench
images.py        reading of images and videos
drawing.py       pictures of instances
include, csrc    the C library and its Python binding `_native`
"""

from boxseg.runtime.backends import Backend, open_backend
from boxseg.runtime.detections import Crop, Detections
from boxseg.runtime.metadata import Metadata
from boxseg.runtime.postprocess import Postprocessor
from boxseg.runtime.preprocess import (
    Fit,
    Letterbox,
    Letterboxer,
    ShortLong,
    letterbox,
    resize_bilinear,
)
from boxseg.runtime.segmenter import Segmenter
from boxseg.runtime.stream import Answer, Stream, StreamClosedError

__all__ = [
    "Answer",
    "Backend",
    "Crop",
    "Detections",
    "Fit",
    "Letterbox",
    "Letterboxer",
    "Metadata",
    "Postprocessor",
    "Segmenter",
    "ShortLong",
    "Stream",
    "StreamClosedError",
    "letterbox",
    "open_backend",
    "resize_bilinear",
]
