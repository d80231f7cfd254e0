"""Geometry of the loader: scale, flip, padding, and what follows for boxes, masks and depth.

Letters: B images, N instances, H x W pixels of the scaled image or of the padded batch, h x w cells
of the stride-4 grid. Boxes are x1, y1, x2, y2 in pixels of the named frame. Photometric changes are
no part of the loader: they are the last image operation of the training step, so that the clean
image stays at hand.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxseg.runtime.preprocess import resize_bilinear

FlipRule = Literal["off", "on"] | Mapping[str, str]

PADDING = (124, 116, 104)
"""RGB at the right and bottom of a batch: the rounded ImageNet mean."""
DIVISOR = 32
STRIDE = 4
"""Pixels per cell of the grid that masks and depth are supervised on."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its targets as they lie on disk, in pixels of the original frame."""

    image: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    boxes: NDArray[np.float32]
    """Inside the image, (N, 4)."""
    labels: NDArray[np.int64]
    """Class indices, (N,)."""
    image_id: int
    file_name: str
    masks: NDArray[np.uint8] | None = None
    """0 or 1, (N, height, width)."""
    depth: NDArray[np.float32] | None = None
    """Inverse depth in [0, 255] at any size that covers the same view."""


@dataclass(frozen=True)
class Sample:
    """One image with its targets in the scaled frame, not padded."""

    image: Tensor
    """uint8 RGB, (3, H, W)."""
    boxes: Tensor
    """float32, (N, 4)."""
    labels: Tensor
    """int64 class indices, (N,)."""
    image_id: int
    file_name: str
    original_size: tuple[int, int]
    """Height and width of the image on disk."""
    scale: tuple[float, float]
    """Scaled / original pixels, along y and along x."""
    flipped: bool
    masks: Tensor | None
    """uint8, 0 or 1, (N, H, W)."""
    depth: Tensor | None
    """float32 inverse depth in [0, 255] at the stride-4 centres, (ceil(H / 4), ceil(W / 4))."""


def scaled_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Size whose short side is `short`, unless the long side would then exceed `long`.

    Args:
        height: Height of the image, at least 1.
        width: Width of the image, at least 1.
        short: Wanted length of the short side.
        long: Greatest length of the long side.

    Returns:
        New height and width, each rounded half up and at least 1.
    """
    ratio = short / min(height, width)
    if ratio * max(height, width) > long:
        ratio = long / max(height, width)
    return max(1, math.floor(height * ratio + 0.5)), max(1, math.floor(width * ratio + 0.5))


def _axis_taps(
    positions: NDArray[np.float64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lower cell, upper cell and the upper one's weight for positions given in cell units."""
    clamped = np.clip(positions - 0.5, 0.0, length - 1.0)
    lower = np.floor(clamped).astype(np.int64)
    return lower, np.minimum(lower + 1, length - 1), clamped - lower


def sample_depth(
    depth: NDArray[np.float32], size: tuple[int, int], *, flipped: bool
) -> NDArray[np.float32]:
    """Depth at the stride-4 centres of a scaled image, in one bilinear step.

    Each axis has the one scale map length / image length, also where the map's own size was
    rounded. Borders clamp.

    Args:
        depth: Inverse depth over the same view at any size, larger is nearer.
        size: H, W of the scaled image.
        flipped: The scaled image is mirrored left to right, the map is not.

    Returns:
        Samples at ((4j + 2), (4i + 2)), (ceil(H / 4), ceil(W / 4)).
    """
    height, width = size
    ys = np.arange(0, height, STRIDE) + STRIDE / 2
    xs = np.arange(0, width, STRIDE) + STRIDE / 2
    if flipped:
        xs = width - xs
    top, bottom, y_weight = _axis_taps(ys * (depth.shape[0] / height), depth.shape[0])
    left, right, x_weight = _axis_taps(xs * (depth.shape[1] / width), depth.shape[1])
    rows = depth[top] * (1 - y_weight)[:, None] + depth[bottom] * y_weight[:, None]
    sampled = rows[:, left] * (1 - x_weight) + rows[:, right] * x_weight  # (h, w)
    return sampled.astype(np.float32)


def _resize_masks(masks: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Masks at a new size: bilinear with half-pixel centres, cut at one half, (N, H, W)."""
    if masks.shape[0] == 0:
        return torch.zeros((0, *size), dtype=torch.uint8)
    surfaces = torch.from_numpy(masks).float()[None]  # (1, N, height, width)
    scaled = torch.nn.functional.interpolate(
        surfaces, size=size, mode="bilinear", align_corners=False
    )
    return (scaled[0] >= 0.5).to(torch.uint8)


def _check_pairs(pairs: Mapping[str, str]) -> None:
    """Refuse a class that is named in more than one pair."""
    names = [name for pair in pairs.items() for name in pair]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"data.flip names {twice[0]!r} more than once; a class has one mirror")


_SIZE_STREAM = 0x512E
"""Parts the draws that a step makes from those that an image makes."""


_BOX_STREAM = 0xB0C5
"""Parts the errors of the boxes from the draws of an epoch."""


class Geometry:
    """Multi-scale and horizontal flip; every draw comes from (seed, epoch, index, step) alone.

    A sample thus depends neither on the number of workers nor on what was loaded before it, and a
    resumed run sees what the uninterrupted one would have seen.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        long_side: int,
        *,
        flip: FlipRule = "on",
        size_per: Literal["image", "batch"] = "image",
        box_jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Keep the rule.

        Args:
            short_sides: Lengths in pixels from which the short side is drawn, equally likely.
            long_side: Greatest length of the long side in pixels.
            flip: "off"; "on" (one image in two); or {left class: right class}: as "on", and a
                flip swaps the two classes of each pair.
            size_per: Draw a short side for each image, or one for all images of a step.
            box_jitter: Move each side of each box by up to this fraction of the box, the same in
                every epoch: how careless annotation is imitated.
            seed: Seed of the run.
        """
        if not short_sides or min(short_sides) < 1:
            raise ValueError(
                f"data.short_sides needs lengths of at least 1 px, got {list(short_sides)}"
            )
        if long_side < max(short_sides):
            raise ValueError(
                f"data.long_side must be at least the largest short side {max(short_sides)}, "
                f"got {long_side}"
            )
        if isinstance(flip, str) and flip not in ("off", "on"):
            raise ValueError(
                f"data.flip must be off, on or {{left class: right class}}, got {flip!r}"
            )
        if not isinstance(flip, str):
            _check_pairs(flip)
        self.short_sides = tuple(short_sides)
        self.long_side = long_side
        self.flip: FlipRule = flip if isinstance(flip, str) else dict(flip)
        self.size_per = size_per
        self.box_jitter = box_jitter
        self.seed = seed

    def mirrored_labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Class index after a flip for each class index, (C,).

        Args:
            classes: Class names in the order of their indices.

        Raises:
            ValueError: The rule names a class that is not there.
        """
        table = np.arange(len(classes), dtype=np.int64)
        if isinstance(self.flip, str):
            return table
        for left, right in self.flip.items():
            for name in (left, right):
                if name not in classes:
                    raise ValueError(
                        f"data.flip names the unknown class {name!r}; "
                        f"classes are {', '.join(classes)}"
                    )
            first, second = classes.index(left), classes.index(right)
            table[first], table[second] = second, first
        return table

    def draw(self, epoch: int, index: int, step: int = 0) -> tuple[int, bool]:
        """Short side in pixels and whether to flip, for one image of one epoch in one step."""
        generator = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence((self.seed, epoch, index)))
        )
        place = int(generator.integers(len(self.short_sides)))
        flipped = bool(generator.random() < 0.5)
        if self.size_per == "batch":
            sequence = np.random.SeedSequence((self.seed, step, _SIZE_STREAM))
            shared = np.random.Generator(np.random.PCG64(sequence))
            place = int(shared.integers(len(self.short_sides)))
        return self.short_sides[place], flipped and self.flip != "off"

    def careless(
        self, boxes: NDArray[np.float32], size: tuple[int, int], index: int
    ) -> NDArray[np.float32]:
        """Return the boxes of an image as `box_jitter` misplaces them, at least 2 px wide.

        Args:
            boxes: In pixels of the original frame, (N, 4).
            size: Height and width of the image, limits of the result.
            index: Index of the image in its data set.
        """
        if not self.box_jitter or not len(boxes):
            return boxes
        sequence = np.random.SeedSequence((self.seed, index, _BOX_STREAM))
        generator = np.random.Generator(np.random.PCG64(sequence))
        extent = np.tile(boxes[:, 2:] - boxes[:, :2], 2)  # width, height, width, height
        moved = boxes + generator.uniform(-self.box_jitter, self.box_jitter, boxes.shape) * extent
        limit = np.array([size[1], size[0]] * 2)
        moved = np.clip(moved, 0, limit)
        too_small = np.min(moved[:, 2:] - moved[:, :2], axis=1, keepdims=True) < 2
        return np.where(too_small, boxes, moved).astype(np.float32)

    def __call__(
        self,
        frame: AnnotatedImage,
        mirrored: NDArray[np.int64],
        *,
        epoch: int,
        index: int,
        step: int = 0,
    ) -> Sample:
        """Scale and perhaps mirror an image together with its targets.

        Args:
            frame: Image and targets as they lie on disk.
            mirrored: What `mirrored_labels` returned, (C,).
            epoch: Epoch of the run, from 0.
            index: Index of the image in its data set.
            step: Optimizer step that the sample is for, from 0.

        Returns:
            The scaled sample. Boxes are multiplied by new / old of each axis.
        """
        short, flipped = self.draw(epoch, index, step)
        height, width = frame.image.shape[:2]
        size = scaled_size(height, width, short, self.long_side)
        scale_y, scale_x = size[0] / height, size[1] / width
        image = resize_bilinear(frame.image, size[0], size[1])
        placed = self.careless(frame.boxes, (height, width), index)
        boxes = placed * np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
        labels = frame.labels
        masks = None if frame.masks is None else _resize_masks(frame.masks, size)
        if flipped:
            image = image[:, ::-1]
            boxes = np.stack(
                [size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], axis=1
            )
            labels = mirrored[labels]
            masks = None if masks is None else masks.flip(2)
        # float32: a side at the border may have come to lie outside of it
        boxes = np.clip(boxes, 0, np.array([size[1], size[0]] * 2, dtype=np.float32))
        depth = None if frame.depth is None else sample_depth(frame.depth, size, flipped=flipped)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            boxes=torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)),
            labels=torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
            image_id=frame.image_id,
            file_name=frame.file_name,
            original_size=(height, width),
            scale=(scale_y, scale_x),
            flipped=flipped,
            masks=masks,
            depth=None if depth is None else torch.from_numpy(depth),
        )


@dataclass(frozen=True)
class Batch:
    """Images padded at the right and bottom to one size, with their targets."""

    images: Tensor
    """uint8 RGB, clean, padded with (124, 116, 104), (B, 3, H, W); H and W multiples of 32."""
    sizes: Tensor
    """int64 height and width of the content, (B, 2)."""
    original_sizes: Tensor
    """int64 height and width on disk, (B, 2)."""
    boxes: list[Tensor]
    """float32 in pixels of the padded image, one (N, 4) per image."""
    labels: list[Tensor]
    """int64 class indices, one (N,) per image."""
    masks: list[Tensor] | None
    """float32, 1 where at least half of the 4 x 4 pixels are set, one (N, h, w) per image."""
    depth: Tensor | None
    """float32 inverse depth in [0, 255] at stride-4 centres, 0 in the padding, (B, h, w)."""
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on another device; `sizes` and `original_sizes` too."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return self._each(move)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a data loader calls this when asked to pin."""
        return self._each(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> "Batch":
        """The batch in memory that other processes can map, where loader processes leave it."""
        return self._each(lambda tensor: tensor.share_memory_())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=change(self.images),
            sizes=change(self.sizes),
            original_sizes=change(self.original_sizes),
            boxes=[change(item) for item in self.boxes],
            labels=[change(item) for item in self.labels],
            masks=None if self.masks is None else [change(item) for item in self.masks],
            depth=None if self.depth is None else change(self.depth),
        )


def _stride_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks on the stride-4 grid: 1 where at least half of the 4 x 4 pixels are set, (N, h, w)."""
    height, width = size
    padded = torch.zeros((len(masks), height, width), dtype=torch.float32)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    cells = padded.reshape(len(masks), height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    return (cells.mean(dim=(2, 4)) >= 0.5).float()


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples at the right and bottom to one size and put them into a batch.

    Args:
        samples: At least one; all with masks or none, all with depth or none.

    Returns:
        A batch whose height and width are the largest of its samples, rounded up to 32.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    height, width = (
        -(-max(sample.image.shape[axis] for sample in samples) // DIVISOR) * DIVISOR
        for axis in (1, 2)
    )
    images = torch.tensor(PADDING, dtype=torch.uint8)[None, :, None, None].repeat(
        len(samples), 1, height, width
    )
    for row, sample in enumerate(samples):
        images[row, :, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    masks = [
        _stride_masks(sample.masks, (height, width))
        for sample in samples
        if sample.masks is not None
    ]
    depth: Tensor | None = None
    if samples[0].depth is not None:
        depth = torch.zeros((len(samples), height // STRIDE, width // STRIDE))
        for row, sample in enumerate(samples):
            if sample.depth is None:
                raise ValueError(f"{sample.file_name} has no depth, others of its batch have")
            depth[row, : sample.depth.shape[0], : sample.depth.shape[1]] = sample.depth
    return Batch(
        images=images,
        sizes=torch.tensor([sample.image.shape[1:] for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
        boxes=[sample.boxes for sample in samples],
        labels=[sample.labels for sample in samples],
        masks=masks if samples[0].masks is not None else None,
        depth=depth,
        image_ids=tuple(sample.image_id for sample in samples),
        file_names=tuple(sample.file_name for sample in samples),
    )
