"""The student as a graph that export traces and as a backend that the runtime's Segmenter accepts.

B images, H x W pixels, L locations, C classes, K best pairs of a location and a class,
P parameters, M mask channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from boxseg import __version__
from boxseg.checkpoint import load_model, read_model_payload
from boxseg.config import SIZE_DIVISOR, STRIDES, ModelConfig
from boxseg.errors import BackendMissingError, counted
from boxseg.mask_head import COORDINATE_SCALES, MASK_STRIDE, dynamic_mask_head
from boxseg.student import DensePredictions, Student

INPUT_NAME = "image"
PAIR_NAMES = ("scores", "labels", "boxes", "locations", "levels")
OUTPUT_NAMES = {
    "dense": ("class_logits", "quality_logits", "boxes", "parameters", "mask_features"),
    "topk": (*PAIR_NAMES, "parameters", "mask_features"),
    "graph": (*PAIR_NAMES, "mask_logits", "mask_features"),
}
"""Outputs of each form."""
Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The outputs of PAIR_NAMES."""
GRAPH_CANDIDATES = 300
"""Most pairs of the form `graph`, whose masks are all computed."""
PADDING_RGB = (124, 116, 104)
"""The rounded ImageNet mean."""


def _predict(student: Student, image: Tensor) -> DensePredictions:
    """Run the student on bytes (B, H, W, 3).

    The cast comes before the change of layout: TensorRT takes bytes at a cast and nowhere else.
    """
    found: DensePredictions = student(image.float().permute(0, 3, 1, 2))
    return found


class DenseGraph(nn.Module):
    """The form `dense`: bytes in, everything the C runtime selects from out."""

    def __init__(self, student: Student) -> None:
        """Wrap the student; its weights are shared, not copied."""
        super().__init__()
        self.student = student

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run one batch.

        Args:
            image: RGB bytes, (B, H, W, 3); H and W multiples of 32.

        Returns:
            class_logits (B, L, C), quality_logits (B, L), boxes (B, L, 4) in input pixels,
            parameters (B, P, L) and mask_features (B, M, H / 8, W / 8), float32.
        """
        found = _predict(self.student, image)
        return (
            found.class_logits,
            found.quality_logits,
            found.boxes,
            found.parameters,
            found.mask_features,
        )


class TopKGraph(nn.Module):
    """The form `topk`: the graph picks the best pairs, so that little leaves a GPU."""

    def __init__(self, student: Student, candidates: int) -> None:
        """Wrap the student.

        Args:
            student: Its weights are shared, not copied.
            candidates: K; where there are fewer pairs, all of them are taken.
        """
        super().__init__()
        self.student = student
        self.candidates = candidates

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run one batch.

        Args:
            image: RGB bytes, (B, H, W, 3); H and W multiples of 32.

        Returns:
            scores (score0, highest first), labels and levels (int32), each (B, K), boxes (B, K, 4)
            and locations x, y (B, K, 2) in input pixels, parameters (B, K, P) and mask_features
            (B, M, H / 8, W / 8).
        """
        found = _predict(self.student, image)
        pairs = _best_pairs(found, self.student.config, self.candidates)
        return (*pairs, self._chosen_parameters(found, pairs), found.mask_features)

    def _chosen_parameters(self, found: DensePredictions, pairs: Pairs) -> Tensor:
        """Return the parameters of the chosen pairs, (B, K, P); the graph computes no others."""
        *_, locations, levels = pairs
        return self.student.head.parameters_at(found.box_features, locations, levels.long())


class SelfContainedGraph(TopKGraph):
    """The form `graph`: as `topk`, and the graph computes the masks of all K pairs."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run one batch.

        Args:
            image: As in `topk`.

        Returns:
            As in `topk`, with mask_logits (B, K, H / 8, W / 8) in place of parameters.
        """
        found = _predict(self.student, image)
        pairs = _best_pairs(found, self.student.config, self.candidates)
        parameters = self._chosen_parameters(found, pairs)
        *_, locations, levels = pairs
        logits = dynamic_mask_head(
            found.mask_features,
            parameters,
            locations,
            parameters.new_tensor(COORDINATE_SCALES)[levels.long()],
            self.student.config.mask_head_widths,
        )
        return (*pairs, logits, found.mask_features)


def _best_pairs(found: DensePredictions, config: ModelConfig, candidates: int) -> Pairs:
    """Return the outputs of PAIR_NAMES of the best pairs.

    Engines that follow ONNX break ties by the lower location * C + class; torch, TensorRT and
    OpenVINO promise no order, which matters only where equal scores meet at the last row.
    """
    score0 = found.class_logits.sigmoid()
    if config.score0 == "sqrt_cls_quality":
        score0 = (score0 * found.quality_logits.sigmoid()[..., None]).sqrt()
    classes = len(config.classes)
    count = min(candidates, score0.shape[1] * classes)
    scores, pairs = score0.flatten(1).topk(count)  # (B, K)
    places = pairs // classes
    labels = pairs - places * classes
    boxes = found.boxes.gather(1, places[..., None].expand(-1, -1, 4))
    return scores, labels.int(), boxes, found.locations[places], found.levels[places].int()


def graph_of(student: Student, form: str, candidates: int) -> nn.Module:
    """Return the graph of a form.

    Args:
        student: Its weights are shared, not copied.
        form: "dense", "topk" or "graph".
        candidates: K of the last two.
    """
    if form == "dense":
        return DenseGraph(student)
    return {"topk": TopKGraph, "graph": SelfContainedGraph}[form](student, candidates)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in float32; GPUs of today would round what convolutions read to 11 bits."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


class TorchBackend:
    """Runs a student in torch, in eval mode, with the outputs of an exported file."""

    name = "torch"

    def __init__(
        self,
        student: Student,
        device: str = "cpu",
        short_long: bool = True,
        *,
        form: str = "dense",
        batch: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        """Prepare the student.

        Args:
            student: The network; it is moved to the device, its mode is restored after each run.
            device: "cpu", "cuda" or "cuda:N".
            short_long: Evaluate at the config's short and long side where it has them; False
                uses imgsz, as an exported file does.
            form: Which outputs it gives: "dense", "topk" or "graph".
            batch: For the metadata; see `describe`.

        Raises:
            ValueError: if that is no device.
            BackendMissingError: if the device is not there.
        """
        kind, colon, number = device.partition(":")
        if device != "cpu" and not (kind == "cuda" and (not colon or number.isdigit())):
            raise ValueError(
                f"device must be cpu, cuda or cuda:N for a network in torch, got {device!r}"
            )
        gpus = torch.cuda.device_count() if kind == "cuda" else 0
        if kind == "cuda" and int(number or 0) >= gpus:
            raise BackendMissingError(
                f"device {device} is not available: torch finds "
                + (f"{counted(gpus, 'CUDA GPU')}, cuda:0 the first" if gpus else "no CUDA GPU")
            )
        self.device = device
        self.metadata = describe(student.config, short_long=short_long, form=form, batch=batch)
        self._student = student.to(device)
        self._names = OUTPUT_NAMES[form]
        self._graph = graph_of(student, form, int(self.metadata["nms"]["candidates"]))

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of RGB bytes (B, H, W, 3) by name; labels and levels are int32."""
        was_training = self._student.training
        self._student.eval()
        try:
            with torch.inference_mode(), full_precision():
                outputs = self._graph(torch.from_numpy(image).to(self.device))
        finally:
            self._student.train(was_training)
        return {
            name: np.ascontiguousarray(
                (output.float() if output.is_floating_point() else output).cpu().numpy()
            )
            for name, output in zip(self._names, outputs, strict=True)
        }


def open_torch_backend(path: Path, device: str | None = None) -> TorchBackend:
    """Open a run folder, a model file or a trainer.pt as a backend."""
    backend = TorchBackend(load_model(path), device or "cpu")
    backend.metadata["weights"] = read_model_payload(path)["weights"]
    return backend


def describe(
    config: ModelConfig,
    *,
    weights: str = "student",
    short_long: bool = False,
    form: str = "dense",
    batch: tuple[int, int, int] = (1, 1, 1),
) -> dict[str, Any]:
    """Return what a deployed file says about itself (metadata, format version 1), JSON types.

    Args:
        config: The network's config.
        weights: "student" or "ema".
        short_long: State the short and long side where the config has them, else imgsz.
        form: "dense", "topk" or "graph"; the last has at most 300 candidates.
        batch: Least, best and most images per run.
    """
    candidates = config.candidates
    if form == "graph":
        candidates = min(candidates, GRAPH_CANDIDATES)
    imgsz: dict[str, Any] = {
        "rule": "fit",
        "height": config.imgsz[0],
        "width": config.imgsz[1],
    }
    if short_long and config.short_long is not None:
        imgsz = {
            "rule": "short_long",
            "short": config.short_long[0],
            "long": config.short_long[1],
        }
    return {
        "format_version": 1,
        "producer": f"boxseg {__version__}",
        "task": "instance-segmentation",
        "form": form,
        "classes": list(config.classes),
        "category_ids": list(config.category_ids),
        "imgsz": imgsz,
        "batch": dict(zip(("min", "opt", "max"), batch, strict=True)),
        "input": {"name": INPUT_NAME, "layout": "NHWC", "dtype": "uint8", "colour": "RGB"},
        "letterbox": {
            "padding": list(PADDING_RGB),
            "side": "right_bottom",
            "divisor": SIZE_DIVISOR,
        },
        "strides": list(STRIDES),
        "head": {
            "mask_channels": config.mask_channels,
            "layer_widths": list(config.mask_head_widths),
            "relative_coordinates": True,
            "coordinate_scales": [int(scale) for scale in COORDINATE_SCALES],
            "mask_stride": MASK_STRIDE,
        },
        "scores": {
            "score0": config.score0,
            "final": config.final_score,
            "candidate_score": config.candidate_score,
        },
        "nms": {
            "iou": config.nms_iou,
            "candidates": candidates,
            "max_det": min(config.max_det, candidates),
        },
        "precision": "fp32",
        "weights": weights,
        "licence": {"code": "Apache-2.0", "weights": "", "data": ""},
    }
