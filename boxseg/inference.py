"""The student as a graph that export traces and as a backend that the runtime's Segmenter accepts.

B images, H x W pixels, L locations, C classes, P parameters, M mask channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from boxseg import __version__
from boxseg.checkpoint import load_model, read_model_payload
from boxseg.config import SIZE_DIVISOR, STRIDES, ModelConfig
from boxseg.errors import BackendMissingError
from boxseg.mask_head import COORDINATE_SCALES, MASK_STRIDE
from boxseg.student import Student

INPUT_NAME = "image"
OUTPUT_NAMES = ("class_logits", "quality_logits", "boxes", "parameters", "mask_features")
PADDING_RGB = (124, 116, 104)
"""The rounded ImageNet mean."""


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
        found = self.student(image.permute(0, 3, 1, 2))
        return (
            found.class_logits,
            found.quality_logits,
            found.boxes,
            found.parameters,
            found.mask_features,
        )


class TorchBackend:
    """Runs a student in torch, in eval mode, with the outputs of an exported file."""

    name = "torch"

    def __init__(self, student: Student, device: str = "cpu", short_long: bool = True) -> None:
        """Prepare the student.

        Args:
            student: The network; it is moved to the device, its mode is restored after each run.
            device: "cpu", "cuda" or "cuda:N".
            short_long: Evaluate at the config's short and long side where it has them; False
                uses imgsz, as an exported file does.

        Raises:
            BackendMissingError: if the device is not there.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendMissingError(f"device {device} is not available: torch finds no CUDA GPU")
        self.device = device
        self.metadata = describe(student.config, short_long=short_long)
        self._student = student.to(device)
        self._graph = DenseGraph(student)

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the dense outputs of RGB bytes (B, H, W, 3)."""
        was_training = self._student.training
        self._student.eval()
        try:
            with torch.inference_mode():
                outputs = self._graph(torch.from_numpy(image).to(self.device))
        finally:
            self._student.train(was_training)
        return {
            name: np.ascontiguousarray(output.float().cpu().numpy())
            for name, output in zip(OUTPUT_NAMES, outputs, strict=True)
        }


def open_torch_backend(path: Path, device: str | None = None) -> TorchBackend:
    """Open a run folder, a model file or a trainer.pt as a backend."""
    backend = TorchBackend(load_model(path), device or "cpu")
    backend.metadata["weights"] = read_model_payload(path)["weights"]
    return backend


def describe(
    config: ModelConfig, *, weights: str = "student", short_long: bool = False
) -> dict[str, Any]:
    """Return what a deployed file says about itself (metadata, format version 1), JSON types.

    Args:
        config: The network's config.
        weights: "student" or "ema".
        short_long: State the short and long side where the config has them, else imgsz.
    """
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
        "form": "dense",
        "classes": list(config.classes),
        "category_ids": list(config.category_ids),
        "imgsz": imgsz,
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
            "candidates": config.candidates,
            "max_det": config.max_det,
        },
        "precision": "fp32",
        "weights": weights,
        "licence": {"code": "Apache-2.0", "weights": "", "data": ""},
    }
