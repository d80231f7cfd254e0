"""Objects cut out of earlier images, and which of them go where in later ones.

B images, n objects of one image, H x W pixels of the padded batch, h x w cells of the stride-4
grid. Boxes are x1, y1, x2, y2 in pixels of the padded image unless a crop is named.
`boxseg.train.copy_paste` does the pasting. Only the clean image is touched; the student's view is
made from it afterwards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.copy_paste import (
    CELL_AREA,
    Canvas,
    Objects,
    PasteRules,
    Peer,
    Placement,
    Scene,
    items_of,
    paste_peers,
)
from boxseg.train.options import Count, Share, build_part
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.transforms import Batch

_PASTE_STREAM = 0x9A57E
_EVICT_STREAM = 0xE71C7


def _draw_cell(generator: np.random.Generator, low: float, high: float) -> int:
    """Draw one of the cells that start between two pixels, the nearest one if there is none."""
    first = math.ceil(low / MASK_LOSS_STRIDE)
    last = math.floor(high / MASK_LOSS_STRIDE)
    if last < first:
        return math.floor((low + high) / (2 * MASK_LOSS_STRIDE) + 0.5)
    return int(generator.integers(first, last, endpoint=True))


def _place_anywhere(generator: np.random.Generator, peer: Peer, scene: Scene) -> Placement:
    """Draw a place at which the peer's box lies in the image; one that is too long spans it."""
    x1, y1, x2, y2 = peer.box
    row = _draw_cell(generator, *sorted((-y1, scene.height - y2)))
    column = _draw_cell(generator, *sorted((-x1, scene.width - x2)))
    return Placement(peer, row, column)


def _place_over(
    generator: np.random.Generator, peer: Peer, learner: NDArray[np.float64]
) -> Placement:
    """Draw a place at which a tenth of the peer's box reaches over the learner's, on each axis.

    Source: BoxSeg's released code draws the left side uniformly from [x1 of the learner - .9 peer
    widths, x2 of the learner - .1 peer widths], the top side likewise, without rescaling.
    """
    cells = []
    for low, high in ((1, 3), (0, 2)):
        length = peer.box[high] - peer.box[low]
        cells.append(
            _draw_cell(
                generator,
                learner[low] - 0.9 * length - peer.box[low],
                learner[high] - 0.1 * length - peer.box[low],
            )
        )
    return Placement(peer, row=cells[0], column=cells[1])


@dataclass(frozen=True)
class CopyPaste(PasteRules, ABC):
    """What both methods share: size of the bank, what may enter it, what stays visible."""

    length: Count = 80
    """Peers (peer) or images (semantic) in the bank."""
    evict: Literal["fifo", "random"] = "fifo"
    """What leaves a full bank. random: BoxSeg's released code; the paper says first in, first
    out."""
    remove_used: bool = False
    """Whether a peer leaves the bank when it is pasted, or tried and found hidden (BoxSeg's
    released code)."""
    min_quality: Share = 0.5
    """A peer's mask quality must exceed this."""
    min_confidence: Share = 0.5
    """A peer's mean prediction score must exceed this."""
    min_area: float = 300.0
    """Area of a peer's mask, pixels, that must be exceeded."""

    def good(self, boxes: Tensor, area: Tensor, quality: Tensor, confidence: Tensor) -> Tensor:
        """Say which objects of an image may enter the bank.

        Args:
            boxes: True boxes, (n, 4).
            area: Pixels of each pseudo mask, (n,).
            quality: (n,).
            confidence: (n,).

        Returns:
            Bool, (n,).
        """
        trusted = (quality > self.min_quality) & (confidence > self.min_confidence)
        return trusted & (area > self.min_area)

    @abstractmethod
    def unit(self, peer: Peer) -> int:
        """Return the number of what enters and leaves the bank as one, and counts as one."""

    @abstractmethod
    def attempts(
        self, generator: np.random.Generator, images: int, *, fill: float, teacher_step: int
    ) -> NDArray[np.bool_]:
        """Draw into which images to paste.

        Args:
            generator: Source of the draws.
            images: Images of the batch.
            fill: Filled part of the bank, in [0, 1].
            teacher_step: Steps since the teacher started.

        Returns:
            (images,).
        """

    @abstractmethod
    def plan(
        self, generator: np.random.Generator, peers: Sequence[Peer], scene: Scene
    ) -> list[Placement]:
        """Choose peers and places for one image; a later one covers an earlier one."""


@dataclass(frozen=True)
class PeerPaste(CopyPaste):
    """Peer-assisted copy-paste: one good, isolated object over an object of the same class.

    Source: BoxSeg (arXiv:2504.05137). The paper gives the bank of 80, first in, first out, and the
    aim (a tutor of high quality that overlaps nothing is pasted over a learner); the numbers and
    the order of draws are those of its released code. Different from that code: the bank holds
    peers instead of images keyed by their classes, so no class combination is refused, and the
    image that colour similarity is computed from is the pasted one. The paper's ablation is
    `choice` and `place`: random, random / quality, random / quality, overlapped.
    """

    choice: Literal["quality", "random"] = "quality"
    """quality: only good, isolated peers enter the bank, and the best of a random stored image is
    taken. random: any object with a mask of more than `min_area` enters, and any is taken."""
    place: Literal["overlapped", "random"] = "overlapped"
    """overlapped: over an object of the peer's class. random: anywhere in the image."""
    max_overlap: Share = 0.1
    """Box IoU with every other object of its image that a peer must stay below."""
    skip: Share = 0.7
    """Probability, once warmed up, that an image stays as it is."""
    warmup_steps: int = 10000
    """Steps of the teacher over which the probability of `skip` grows from 0."""

    def good(self, boxes: Tensor, area: Tensor, quality: Tensor, confidence: Tensor) -> Tensor:
        """Say which objects of an image may enter the bank."""
        if self.choice == "random":
            return (area > self.min_area) & (quality > 0)
        overlap: Tensor = box_iou(boxes, boxes).fill_diagonal_(0)  # (n, n)
        isolated = (overlap < self.max_overlap).all(dim=1)
        return super().good(boxes, area, quality, confidence) & isolated

    def unit(self, peer: Peer) -> int:
        """Return the number of the peer: each counts."""
        return peer.number

    def attempts(
        self, generator: np.random.Generator, images: int, *, fill: float, teacher_step: int
    ) -> NDArray[np.bool_]:
        """Draw into which images to paste: all at first, a share of 1 - skip in the end."""
        warm = min(teacher_step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return np.asarray(generator.random(images) >= self.skip * warm)

    def plan(
        self, generator: np.random.Generator, peers: Sequence[Peer], scene: Scene
    ) -> list[Placement]:
        """Choose one peer of a class that the image has, and its place."""
        shared = [peer for peer in peers if peer.label in scene.labels]
        if not shared:
            return []
        if self.choice == "quality":
            pictures = sorted({peer.picture for peer in shared})
            picture = pictures[int(generator.integers(len(pictures)))]
            together = (peer for peer in shared if peer.picture == picture)
            peer = max(together, key=lambda peer: (peer.quality, -peer.number))
        else:
            peer = shared[int(generator.integers(len(shared)))]
        if self.place == "random":
            return [_place_anywhere(generator, peer, scene)]
        learners = np.flatnonzero(scene.labels == peer.label)
        learner = scene.boxes[learners[int(generator.integers(len(learners)))]]
        return [_place_over(generator, peer, learner)]


@dataclass(frozen=True)
class SemanticPaste(CopyPaste):
    """SIM's online weakly supervised copy-paste: some of a stored image's objects, of any class.

    Source: SIM (arXiv:2303.08578). Paper: 100 images, first in, first out, a quarter of an image's
    objects, 1 to 3, drawn by quality. The released code has `length` 50 and `quality_power` 3, and
    draws with replacement, here without. An object is dropped when nothing of its mask is left.
    """

    length: Count = 100
    min_quality: Share = 0.0
    min_confidence: Share = 0.0
    min_area: float = 0.0
    min_pasted_area: float = 0.0
    min_left_area: float = 0.0
    probability: Share = 0.5
    """Of pasting into an image, once the bank is full."""
    share: Share = 0.25
    """Part of a stored image's objects that is pasted, rounded down."""
    most: Count = 3
    """Objects pasted into one image at most; at least 1 is."""
    quality_power: float = 1.0
    """Power of the quality that an object is drawn by."""
    place: Literal["in_place", "shifted"] = "in_place"
    """in_place: where the object lay in its own image. shifted: anywhere in the image."""

    def unit(self, peer: Peer) -> int:
        """Return the number of the stored image: its objects count together."""
        return peer.picture

    def attempts(
        self, generator: np.random.Generator, images: int, *, fill: float, teacher_step: int
    ) -> NDArray[np.bool_]:
        """Draw into which images to paste: none before the bank is full."""
        return np.asarray((generator.random(images) < self.probability) & (fill >= 1))

    def plan(
        self, generator: np.random.Generator, peers: Sequence[Peer], scene: Scene
    ) -> list[Placement]:
        """Choose objects of one stored image, and their places."""
        pictures = sorted({peer.picture for peer in peers})
        picture = pictures[int(generator.integers(len(pictures)))]
        together = [peer for peer in peers if peer.picture == picture]
        count = max(1, min(self.most, int(len(together) * self.share)))
        weights = np.array([peer.quality for peer in together]) ** self.quality_power
        chosen = generator.choice(
            len(together), size=count, replace=False, p=weights / weights.sum()
        )
        if self.place == "shifted":
            return [_place_anywhere(generator, together[index], scene) for index in chosen]
        return [Placement(together[index], *together[index].origin) for index in chosen]


COPY_PASTE: Mapping[str, type[CopyPaste]] = {"peer": PeerPaste, "semantic": SemanticPaste}
"""Every method that a recipe may name."""


def build_copy_paste(section: Mapping[str, Mapping[str, Any]]) -> CopyPaste:
    """Build the method that a recipe names under `copy_paste`.

    Args:
        section: {name: {option: value}} with one name; see COPY_PASTE.

    Raises:
        ValueError: for an unknown name, option or value, with its whole path.
    """
    if len(section) != 1:
        raise ValueError(
            f"copy_paste must name one method of {', '.join(COPY_PASTE)}, got {list(section)}"
        )
    name, options = next(iter(section.items()))
    if name not in COPY_PASTE:
        raise ValueError(f"copy_paste.{name} is unknown; known methods: {', '.join(COPY_PASTE)}")
    return build_part(COPY_PASTE[name], options or {}, f"copy_paste.{name}")


def _to_host(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Copy tensors to the host in one transfer, keeping their shapes."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class MemoryBank:
    """Peers of one process, the order in which they came, and what is done with them.

    Every draw comes from (seed, step, rank), so that a resumed run pastes what the uninterrupted
    one would have pasted. Peers stay on the device of the batch that they came from.
    """

    def __init__(self, options: CopyPaste, *, seed: int, rank: int) -> None:
        """Start empty.

        Args:
            options: Method and thresholds.
            seed: Seed of the run.
            rank: Number of this process.
        """
        self.options = options
        self._seed = seed
        self._rank = rank
        self._peers: list[Peer] = []
        self._pictures = 0
        self._numbers = 0

    @property
    def peers(self) -> tuple[Peer, ...]:
        """What is stored, oldest first."""
        return tuple(self._peers)

    @property
    def _fill(self) -> float:
        return len({self.options.unit(peer) for peer in self._peers}) / self.options.length

    def _generator(self, step: int, stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence((self._seed, step, self._rank, stream))
        return np.random.Generator(np.random.PCG64(sequence))

    @torch.no_grad()
    def paste(
        self, batch: Batch, pseudo: PseudoMasks, *, step: int, teacher_step: int
    ) -> tuple[Batch, PseudoMasks]:
        """Paste peers into images, boxes, labels, masks and depth.

        The arguments are not modified; what did not change is shared with the result.

        Args:
            batch: Clean images.
            pseudo: Masks of the batch's objects.
            step: Optimizer steps that are done; decides the draws.
            teacher_step: Steps since the teacher started; decides how often is pasted.

        Returns:
            The batch and its pseudo masks, which say in `pasted` what is new. Objects that are
            no longer to be seen are gone, pasted ones follow the others.

        Raises:
            ValueError: if the batch has depth or masks and a peer to be pasted has not.
        """
        pseudo = replace(
            pseudo, pasted=[torch.zeros_like(row, dtype=torch.bool) for row in batch.labels]
        )
        generator = self._generator(step, _PASTE_STREAM)
        wanted = self.options.attempts(
            generator, len(batch.boxes), fill=self._fill, teacher_step=teacher_step
        )
        plans = self._plan(batch, np.flatnonzero(wanted), generator)
        if not plans:
            return batch, pseudo
        images = batch.images.clone()
        depth = None if batch.depth is None else batch.depth.clone()
        edited: dict[int, Objects] = {}
        for row, (scene, placements) in plans.items():
            canvas = Canvas(
                scene=scene,
                image=images[row],
                depth=None if depth is None else depth[row],
                layers=images.new_zeros(images.shape[-2:]),
            )
            objects = _objects_of(batch, pseudo, row)
            edited[row] = paste_peers(canvas, placements, objects, self.options)
        kept = _to_host([objects["accepted"] for objects in edited.values()])
        chosen = [np.flatnonzero(keep) for keep in kept]
        indices = torch.from_numpy(np.concatenate(chosen)).to(images.device)
        parts = indices.split([len(rows) for rows in chosen])
        for (row, objects), part in zip(edited.items(), parts, strict=True):
            edited[row] = {name: value[part] for name, value in objects.items()}
        return _with_objects(replace(batch, images=images, depth=depth), pseudo, edited)

    def _plan(
        self, batch: Batch, rows: NDArray[np.intp], generator: np.random.Generator
    ) -> dict[int, tuple[Scene, list[Placement]]]:
        """Choose what goes where in each of some images; images without a peer are left out."""
        if not self._peers or not len(rows):
            return {}
        boxes = [batch.boxes[row] for row in rows]
        labels = [batch.labels[row] for row in rows]
        sizes, *numbers = _to_host([batch.sizes, *boxes, *labels])
        plans = {}
        for place, row in enumerate(rows.tolist()):
            scene = Scene(
                height=int(sizes[row, 0]),
                width=int(sizes[row, 1]),
                boxes=numbers[place],
                labels=numbers[len(rows) + place].astype(np.int64),
            )
            if not self._peers:
                break
            planned = self.options.plan(generator, self._peers, scene)
            if self.options.remove_used:
                used = {placement.peer.number for placement in planned}
                self._peers = [peer for peer in self._peers if peer.number not in used]
            placements = [
                replace(placement, peer=placement.peer.to(batch.images.device))
                for placement in planned
                if placement.shows_in(scene)
            ]
            for placement in placements:
                _check_peer(placement.peer, batch)
            if placements:
                plans[row] = scene, placements
        return plans

    @torch.no_grad()
    def store(self, batch: Batch, pseudo: PseudoMasks, *, step: int) -> None:
        """Take in what the options call good, and let the oldest go.

        Args:
            batch: Clean images into which nothing was pasted.
            pseudo: Masks of the batch's objects.
            step: Optimizer steps that are done.
        """
        tables = []
        for row, boxes in enumerate(batch.boxes):
            area = (pseudo.masks[row] > 0.5).flatten(1).sum(dim=1) * CELL_AREA
            quality, confidence = pseudo.quality[row], pseudo.confidence[row]
            accepted = self.options.good(boxes, area, quality, confidence)
            columns = [batch.labels[row], quality, confidence, accepted]
            tables.append(torch.stack([*boxes.T, *columns], dim=1))
        sizes, *numbers = _to_host([batch.sizes, *tables])
        for row, table in enumerate(numbers):
            good = np.flatnonzero(table[:, 7])
            size = int(sizes[row, 0]), int(sizes[row, 1])
            for index in good.tolist():
                self._peers.append(self._cut(batch, pseudo, row, index, table[index], size, step))
                self._numbers += 1
            self._pictures += bool(len(good))
        self._evict(step)

    def _cut(
        self,
        batch: Batch,
        pseudo: PseudoMasks,
        row: int,
        index: int,
        numbers: NDArray[np.float64],
        size: tuple[int, int],
        step: int,
    ) -> Peer:
        """Cut one object out of an image; `numbers` are box, label, quality and confidence."""
        stride = MASK_LOSS_STRIDE
        x1, y1, x2, y2 = (float(side) for side in numbers[:4])
        # a box may lie outside by the rounding of a float32
        top, left = max(math.floor(y1 / stride), 0), max(math.floor(x1 / stride), 0)
        height, width = pseudo.masks[row].shape[1:]
        bottom = min(max(math.ceil(y2 / stride), top + 1), height)
        right = min(max(math.ceil(x2 / stride), left + 1), width)
        cells = (slice(top, bottom), slice(left, right))
        return Peer(
            image=batch.images[
                row,
                :,
                top * stride : min(bottom * stride, size[0]),
                left * stride : min(right * stride, size[1]),
            ].clone(),
            mask=pseudo.masks[row][index][cells].clone(),
            counted=None if pseudo.counted is None else pseudo.counted[row][index][cells].clone(),
            true_mask=None if batch.masks is None else batch.masks[row][index][cells].clone(),
            depth=None if batch.depth is None else batch.depth[row][cells].clone(),
            origin=(top, left),
            box=(x1 - left * stride, y1 - top * stride, x2 - left * stride, y2 - top * stride),
            label=int(numbers[4]),
            quality=float(numbers[5]),
            confidence=float(numbers[6]),
            step=step,
            picture=self._pictures,
            number=self._numbers,
        )

    def _evict(self, step: int) -> None:
        """Let go what is too much."""
        units = list(dict.fromkeys(self.options.unit(peer) for peer in self._peers))
        surplus = len(units) - self.options.length
        if surplus <= 0:
            return
        leaving = set(units[:surplus])
        if self.options.evict == "random":
            drawn = self._generator(step, _EVICT_STREAM).permutation(len(units))[:surplus]
            leaving = {units[index] for index in drawn}
        self._peers = [peer for peer in self._peers if self.options.unit(peer) not in leaving]

    def diagnostics(self, step: int) -> dict[str, float]:
        """Return the filled part of the bank and the mean steps since its peers were stored."""
        ages = [step - peer.step for peer in self._peers]
        return {"bank_fill": self._fill, "bank_age": sum(ages) / len(ages) if ages else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return all peers as tensors and plain values."""
        return {
            "peers": [dict(items_of(peer)) for peer in self._peers],
            "pictures": self._pictures,
            "numbers": self._numbers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what state_dict returned; a shorter bank drops what is too much.

        Raises:
            KeyError: if a part is missing.
            TypeError: if a peer has other fields.
        """
        self._peers = [Peer(**values) for values in state["peers"]]
        self._pictures = state["pictures"]
        self._numbers = state["numbers"]
        self._evict(step=self._numbers)


def _check_peer(peer: Peer, batch: Batch) -> None:
    """Refuse to paste a peer that lacks what the batch has."""
    for name, there, own in (
        ("depth", batch.depth, peer.depth),
        ("masks", batch.masks, peer.true_mask),
    ):
        if there is not None and own is None:
            raise ValueError(
                f"the batch has {name}, a peer in the memory bank has none; "
                "start the run anew or train with the data that it began with"
            )


def _objects_of(batch: Batch, pseudo: PseudoMasks, row: int) -> Objects:
    """Gather the objects of one image."""
    assert pseudo.pasted is not None
    objects = {
        "boxes": batch.boxes[row],
        "labels": batch.labels[row],
        "masks": pseudo.masks[row],
        "quality": pseudo.quality[row],
        "confidence": pseudo.confidence[row],
        "pasted": pseudo.pasted[row],
        "accepted": torch.ones_like(pseudo.pasted[row]),
    }
    if pseudo.counted is not None:
        objects["counted"] = pseudo.counted[row]
    if batch.masks is not None:
        objects["true_masks"] = batch.masks[row]
    return objects


def _with_objects(
    batch: Batch, pseudo: PseudoMasks, edited: Mapping[int, Objects]
) -> tuple[Batch, PseudoMasks]:
    """Put edited objects into their images."""

    def merged(rows: list[Tensor], name: str) -> list[Tensor]:
        return [edited[row][name] if row in edited else value for row, value in enumerate(rows)]

    assert pseudo.pasted is not None
    batch = replace(
        batch,
        boxes=merged(batch.boxes, "boxes"),
        labels=merged(batch.labels, "labels"),
        masks=None if batch.masks is None else merged(batch.masks, "true_masks"),
    )
    return batch, PseudoMasks(
        masks=merged(pseudo.masks, "masks"),
        quality=merged(pseudo.quality, "quality"),
        confidence=merged(pseudo.confidence, "confidence"),
        counted=None if pseudo.counted is None else merged(pseudo.counted, "counted"),
        pasted=merged(pseudo.pasted, "pasted"),
    )
