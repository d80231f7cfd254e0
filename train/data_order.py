"""The order of the data: which images an optimizer step sees, whoever asks and whenever.

What step s sees depends on the seed and on s alone, never on where the run was started or on how
many processes share it; that is half of what makes a resumed run equal to one never stopped.
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
        """
        if batch_size % processes:
            raise ValueError(
                f"data.batch_size must be a multiple of the {processes} devices, got {batch_size}"
            )
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._steps = range(first_step, last_step)
        self._share = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)

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
                    drawn_epoch, order = epoch, image_order(self._seed, epoch, self._images)
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
    """Let a loader process live through Ctrl-C and SIGTERM, which reach whole process groups.

    The run finishes its step and then ends its loaders; a loader whose run is gone ends itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
