"""The order of the data: which images an optimizer step sees, whoever asks and whenever.

What step s sees depends on the seed and on s alone, never on where the run was started or on how
many processes share it; that is half of what makes a resumed run equal to one never stopped.

Images of one batch are padded to one size. Where a recipe asks for it, batches are made of images
of like shape (aspect-ratio grouping), which spares that padding; every epoch still shows every
image once.

Letters: I images of the data set.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from boxseg.errors import DataError
from boxseg.train.coco import CocoBoxes
from boxseg.train.interrupts import ORDERLY
from boxseg.train.transforms import Batch, Sample, collate


@dataclass(frozen=True)
class SampleKey:
    """One image of one epoch, for one optimizer step."""

    epoch: int
    index: int
    step: int


def image_order(seed: int, epoch: int, images: int) -> npt.NDArray[np.int64]:
    """Return the order of the images in an epoch, (images,)."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, 0xDA7A))))
    return generator.permutation(images)


def aspect_groups(sizes: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Part images by height / width.

    The ratios at which one group ends and the next begins are evenly spaced in their logarithm,
    from 1/2 to 2; two groups part landscape from portrait. Eight are those of torchvision's
    references (`--aspect-ratio-group-factor 3`), two those of Detectron2.

    Args:
        sizes: Height and width, (I, 2).
        count: Number of groups, at least 1.

    Returns:
        Group of each image, from 0 (the widest) to count - 1 (the tallest); a ratio that is an end
        belongs to the taller group, (I,).
    """
    ends = np.array([1.0]) if count == 2 else 2.0 ** np.linspace(-1.0, 1.0, count - 1)
    return np.searchsorted(ends, sizes[:, 0] / sizes[:, 1], side="right").astype(np.int64)


def grouped_order(
    seed: int, epoch: int, groups: npt.NDArray[np.int64], batch_size: int
) -> npt.NDArray[np.int64]:
    """Return the order of the images in an epoch, such that batches hold images of one group.

    The shuffled images are sorted by group and cut into batches, and the batches are shuffled. A
    batch that lies in two epochs takes images of the largest group from both. What is left over
    from a group shares a batch with the next group, so that an epoch has fewer mixed batches than
    groups. torchvision's references fill such a batch with images that were shown already; here
    every image is shown once.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        groups: Group of each image, (I,).
        batch_size: Images per step over all processes.

    Returns:
        Indices of the images, (I,). With one group: `image_order`.
    """
    images = len(groups)
    order = image_order(seed, epoch, images)
    sizes = np.bincount(groups)
    if np.count_nonzero(sizes) < 2:
        return order
    order = order[np.argsort(groups[order], kind="stable")]
    head = min(-epoch * images % batch_size, images)  # completes the last batch of the epoch before
    tail = (images - head) % batch_size
    largest = int(sizes[: sizes.argmax()].sum())  # where the largest group starts
    ends = np.arange(head + tail) + min(largest, images - head - tail)
    whole = np.delete(order, ends).reshape(-1, batch_size)
    sequence = np.random.SeedSequence((seed, epoch, 0xBA7C))
    whole = np.random.Generator(np.random.PCG64(sequence)).permutation(whole)
    return np.concatenate([order[ends[:head]], whole.reshape(-1), order[ends[head:]]])


def images_per_process(batch_size: int, processes: int) -> int:
    """Return how many images of a step each process sees.

    Args:
        batch_size: Images per step over all processes.
        processes: Number of processes.

    Raises:
        ValueError: if the images cannot be shared out evenly.
    """
    if batch_size % processes:
        raise ValueError(
            f"data.batch_size must be a multiple of the {processes} devices, got {batch_size}"
        )
    return batch_size // processes


class StepSampler(Sampler[list[SampleKey]]):
    """Batches of a stream of epochs, addressed by optimizer step.

    Epoch follows epoch without a gap: where the number of images is no multiple of the batch
    size, a batch holds the end of one and the start of the next. Several processes share the
    batch that one process would see.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        processes: int = 1,
        groups: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Describe the stream.

        Args:
            images: Images per epoch.
            batch_size: Images per step over all processes.
            seed: Seed of the run.
            first_step: Step that the first batch belongs to, from 0.
            last_step: One past the last step.
            rank: Number of this process.
            processes: Number of processes; must divide batch_size.
            groups: Group of each image, (images,), for batches of one group; None mixes all.
        """
        share = images_per_process(batch_size, processes)
        self._groups = np.zeros(images, dtype=np.int64) if groups is None else groups
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._steps = range(first_step, last_step)
        self._share = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield this process's part of each step's batch."""
        drawn_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self._steps:
            keys = []
            for position in range(step * self._batch_size, (step + 1) * self._batch_size):
                epoch, place = divmod(position, self._images)
                if epoch != drawn_epoch:
                    drawn_epoch = epoch
                    order = grouped_order(self._seed, epoch, self._groups, self._batch_size)
                keys.append(SampleKey(epoch, int(order[place]), step))
            yield keys[self._share]


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a batch with an image that cannot be read."""

    message: str


class KeyedSamples(Dataset["Sample | Unreadable"]):
    """The images of a data set, addressed by epoch and index.

    A loader process reports an unreadable image as a value: an exception would reach the run as
    the text of a traceback.
    """

    def __init__(self, images: CocoBoxes) -> None:
        """Wrap a data set."""
        self._images = images

    def __getitem__(self, key: SampleKey) -> Sample | Unreadable:
        """Return the image as the epoch sees it."""
        try:
            return self._images.sample(key.index, epoch=key.epoch, step=key.step)
        except DataError as error:
            return Unreadable(str(error))


def collate_readable(samples: Sequence[Sample | Unreadable]) -> Batch | Unreadable:
    """Collate samples, or return the first complaint."""
    good = [sample for sample in samples if not isinstance(sample, Unreadable)]
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    return collate(good)


def leave_interrupts_to_the_run(_: int) -> None:
    """Let a loader process live through requests to end, which reach whole process groups.

    The run finishes its step and then ends its loaders; a loader whose run is gone ends itself.
    """
    for number in ORDERLY:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
