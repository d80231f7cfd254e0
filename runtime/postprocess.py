"""From a graph's outputs to instances; the C library does the work.

L locations, C classes, K candidate pairs, P parameters per instance, M mask channels, h x w of the
mask grid, N instances. One image at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import FileMismatchError
from boxseg.runtime import _native
from boxseg.runtime.detections import Detections
from boxseg.runtime.metadata import FINAL_RULES, SCORE0_RULES, Metadata
from boxseg.runtime.preprocess import Letterbox

CANDIDATE = np.dtype(
    [
        ("box", np.float32, 4),
        ("score0", np.float32),
        ("class_index", np.uint32),
        ("index", np.uint32),
        ("slot", np.uint32),
        ("level", np.uint32),
        ("x", np.float32),
        ("y", np.float32),
    ]
)
"""bxs_candidate: a (location, class) pair that survived selection."""

INSTANCE = np.dtype(
    [
        ("box", np.float32, 4),
        ("score", np.float32),
        ("score0", np.float32),
        ("mask_score", np.float32),
        ("class_index", np.uint32),
        ("index", np.uint32),
        ("area", np.uint32),
        ("text_offset", np.uint64),
        ("text_length", np.uint64),
    ]
)
"""bxs_instance: one instance of the answer."""

assert CANDIDATE.itemsize == _native.CANDIDATE_BYTES
assert INSTANCE.itemsize == _native.INSTANCE_BYTES

Outputs = Mapping[str, NDArray[Any]]
"""float32 arrays by name, in the forms `topk` and `graph` also int32 labels and levels."""


class Postprocessor:
    """Selects candidates and decodes their masks, in buffers that are made once.

    An instance belongs to one thread. Buffers follow the largest frame seen.
    """

    def __init__(
        self,
        metadata: Metadata,
        *,
        conf: float = 0.5,
        iou: float | None = None,
        max_det: int | None = None,
        simd: int = 0,
    ) -> None:
        """Prepare for one file.

        Args:
            metadata: Of the file.
            conf: Instances need a final score above this, [0, 1].
            iou: Suppress above this IoU, [0, 1]; None is the file's.
            max_det: Instances per frame, at least 1; None is the file's.
            simd: Instruction level for tests and benchmarks, 1 for the first of
                `_native.simd_levels()`; 0 is the best.

        Raises:
            ValueError: if an option is outside its range.
        """
        iou = metadata.nms_iou if iou is None else iou
        max_det = metadata.max_det if max_det is None else max_det
        if not 0 <= conf <= 1:
            raise ValueError(f"conf must be in [0, 1], got {conf}")
        if not 0 <= iou <= 1:
            raise ValueError(f"iou must be in [0, 1], got {iou}")
        if not 1 <= max_det <= metadata.candidates:
            raise ValueError(
                f"max_det must be in 1..{metadata.candidates} (the file's candidates), "
                f"got {max_det}"
            )
        self.metadata = metadata
        self.conf = conf
        head = metadata.head
        self._model = _native.make_model(
            len(metadata.classes),
            metadata.strides,
            head.coordinate_scales,
            head.mask_channels,
            head.mask_stride,
            head.layer_widths,
            int(head.relative_coordinates),
            SCORE0_RULES.index(metadata.score0),
            FINAL_RULES.index(metadata.final_score),
            metadata.candidate_score,
            iou,
            metadata.candidates,
            max_det,
            simd,
        )
        self.parameter_count: int = _native.parameter_count(self._model)
        self._chosen = metadata.form != "dense"  # the graph has picked the pairs
        select_scratch_size = (
            _native.select_topk_scratch_size if self._chosen else _native.select_scratch_size
        )
        self._select_scratch = np.empty(select_scratch_size(self._model), np.uint8)
        self._candidates = np.zeros(max_det, CANDIDATE)
        self._instances = np.zeros(max_det, INSTANCE)
        self._mask_scratch = np.empty(0, np.uint8)
        self._text = np.empty(0, np.uint8)
        self._plan: Letterbox | None = None
        self._selected_all = True

    def _expected(self, outputs: Outputs, plan: Letterbox) -> dict[str, tuple[Any, ...]]:
        """Type and shape of every output by the metadata."""
        head = self.metadata.head
        grid = (plan.height // head.mask_stride, plan.width // head.mask_stride)
        features = (np.float32, 1, head.mask_channels, *grid)
        if self._chosen:
            given = outputs["scores"].shape[-1:] if "scores" in outputs else ()
            rows = min(*given, self.metadata.candidates) if given else self.metadata.candidates
            pairs = {
                "scores": (np.float32, 1, rows),
                "labels": (np.int32, 1, rows),
                "boxes": (np.float32, 1, rows, 4),
                "locations": (np.float32, 1, rows, 2),
                "levels": (np.int32, 1, rows),
            }
            if self.metadata.form == "graph":
                return {**pairs, "mask_logits": (np.float32, 1, rows, *grid)}
            parameters = (np.float32, 1, rows, self.parameter_count)
            return {**pairs, "parameters": parameters, "mask_features": features}
        locations = _native.location_count(self._model, plan.height, plan.width)
        return {
            "class_logits": (np.float32, 1, locations, len(self.metadata.classes)),
            "quality_logits": (np.float32, 1, locations),
            "boxes": (np.float32, 1, locations, 4),
            "parameters": (np.float32, 1, self.parameter_count, locations),
            "mask_features": features,
        }

    def _checked(self, outputs: Outputs, plan: Letterbox) -> dict[str, NDArray[Any]]:
        """Refuse outputs that are not what the metadata promise."""
        checked = {}
        for name, (kind, *shape) in self._expected(outputs, plan).items():
            if name not in outputs:
                raise FileMismatchError(
                    f"the graph has no output {name}; it has {', '.join(sorted(outputs))}"
                )
            values = outputs[name]
            if values.shape != tuple(shape) or values.dtype != kind:
                raise FileMismatchError(
                    f"output {name} must be {kind.__name__} {tuple(shape)} by the file's metadata, "
                    f"got {values.dtype} {values.shape}"
                )
            checked[name] = np.ascontiguousarray(values)
        return checked

    def _prepare(self, plan: Letterbox) -> None:
        """Make room for a frame's size; most frames have the last one's."""
        if plan == self._plan:
            return
        needed = _native.masks_scratch_size(self._model, plan.as_tuple())
        if needed > self._mask_scratch.size:
            self._mask_scratch = np.empty(needed, np.uint8)
        rows = plan.height // self.metadata.head.mask_stride
        # a bound that no frame reaches; the pages that are never written cost no memory
        text = self._candidates.size * _native.surface_text_size(plan.as_tuple(), rows)
        if text > self._text.size:
            self._text = np.empty(text, np.uint8)
        self._plan = plan

    def select(
        self, outputs: Outputs, plan: Letterbox, *, budget_ms: float = math.inf
    ) -> NDArray[np.void]:
        """Find the candidates that survive suppression.

        Args:
            outputs: Arrays by name for one image, batch axis included. Form `dense`: class_logits
                (1, L, C), quality_logits (1, L), boxes (1, L, 4), parameters (1, P, L) and
                mask_features (1, M, h, w). Form `topk`: scores, labels and levels (1, K), boxes
                (1, K, 4), locations x, y (1, K, 2), parameters (1, K, P) and mask_features. Form
                `graph`: mask_logits (1, K, h, w) in place of the last two.
            plan: Where the frame lies in the input.
            budget_ms: Stop after this long with the best up to then.

        Returns:
            Items of CANDIDATE, best first; a view that holds until the next call.
        """
        given = self._checked(outputs, plan)
        room = (plan.as_tuple(), self._select_scratch, self._candidates, budget_ms)
        if self._chosen:
            n, self._selected_all = _native.select_topk(
                self._model,
                given["scores"],
                given["labels"],
                given["boxes"],
                given["locations"],
                given["levels"],
                *room,
            )
        else:
            n, self._selected_all = _native.select_dense(
                self._model, given["class_logits"], given["quality_logits"], given["boxes"], *room
            )
        return self._candidates[:n]

    def masks(
        self,
        outputs: Outputs,
        plan: Letterbox,
        candidates: NDArray[np.void],
        *,
        budget_ms: float = math.inf,
    ) -> Detections:
        """Decode, score and encode the masks of candidates.

        Args:
            outputs: What `select` got.
            plan: What `select` got.
            candidates: What `select` gave.
            budget_ms: Stop after this long with the instances up to then.

        Returns:
            Detections in frame pixels, by final score.
        """
        self._prepare(plan)
        features = None
        if self.metadata.form == "graph":
            per_slot = outputs["mask_logits"]
        else:
            per_slot = outputs["parameters"]
            features = np.ascontiguousarray(outputs["mask_features"])
        n, _, complete = _native.masks(
            self._model,
            np.ascontiguousarray(per_slot),
            features,
            per_slot.shape[1 if self._chosen else 2],
            self._chosen,
            plan.as_tuple(),
            candidates,
            len(candidates),
            self.conf,
            self._mask_scratch,
            self._instances,
            self._text,
            budget_ms,
        )
        found = self._instances[:n]
        starts = found["text_offset"].tolist()
        lengths = found["text_length"].tolist()
        return Detections(
            xyxy=found["box"].copy(),
            scores=found["score"].copy(),
            labels=found["class_index"].astype(np.int64),
            height=plan.frame_height,
            width=plan.frame_width,
            counts=tuple(
                self._text[start : start + length].tobytes()
                for start, length in zip(starts, lengths, strict=True)
            ),
            class_names=self.metadata.classes,
            category_ids=self.metadata.category_ids,
            score0=found["score0"].copy(),
            mask_scores=found["mask_score"].copy(),
            areas=found["area"].astype(np.int64),
            complete=complete and self._selected_all,
        )

    def __call__(self, outputs: Outputs, plan: Letterbox) -> Detections:
        """Select and decode."""
        return self.masks(outputs, plan, self.select(outputs, plan))
