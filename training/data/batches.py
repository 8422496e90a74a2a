"""Prepared pictures as batches for the network: the same numbers whatever the workers, the interruptions, the order."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from panoramic.preprocess import normalise
from training.data.augment import Augmentation, augment, predecessor_copy
from training.data.cache import PictureCache, Prepared

#: One picture: (3, h, w) float32 as `panoramic.preprocess.normalise` gives it, its class index, and its place among the
#: prepared pictures.
Item = tuple[torch.Tensor, int, int]

#: Batches that each worker has ready.
_AHEAD: Final = 2
#: Where workers hand over their batches on Linux.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # nosec B108 - only asked how much room it has

# Each use of the seed draws from a stream of its own.
_ORDER, _ALTERATION, _DOUBLING = range(3)


class PictureDataset(Dataset[Item]):
    """Pictures of the cache as tensors, altered or not.

    The random numbers of a picture depend on the seed, the epoch and its index alone: neither the number of workers
    nor a resumed run changes them.

    Args:
        cache: Holds the pictures; one is read when it is asked for, and none is kept.
        prepared: From `PictureCache.prepare`.
        labels: (N,) class index of each.
        augmentation: `Augmentation.PREDECESSOR` doubles the data set: the pictures as they are, then the copies.
        seed: 0 or more.
    """

    def __init__(
        self,
        cache: PictureCache,
        prepared: Sequence[Prepared],
        labels: Sequence[int] | NDArray[np.int64],
        augmentation: Augmentation = Augmentation.NONE,
        seed: int = 0,
    ) -> None:
        if len(prepared) != len(labels):
            raise ValueError(f"there are {len(prepared)} pictures and {len(labels)} labels; each picture needs one")
        self._cache = cache
        self._prepared = tuple(prepared)
        self._labels = [int(label) for label in labels]
        self._augmentation = Augmentation(augmentation)
        self.seed = seed
        self.epoch = 0
        order = np.random.default_rng([_DOUBLING, seed]).permutation(len(prepared))
        self._flipped = frozenset(order[: len(order) // 2].tolist())
        self._levels = normalise(np.arange(256, dtype=np.uint8)[None])  # (3, 1, 256)

    def __len__(self) -> int:
        return len(self._prepared) * (2 if self._augmentation is Augmentation.PREDECESSOR else 1)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return self._cache.input_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose alterations the next pictures have."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """One picture.

        Args:
            key: Its index, or (index, epoch), as `EpochSampler` asks: a worker's copy of this object does not hear of
                `set_epoch`.

        Raises:
            IndexError: No such index.
            DatasetError: The cache's entry is gone or damaged.
        """
        index, epoch = key if isinstance(key, tuple) else (key, self.epoch)
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; the data set has {len(self)} pictures")
        place = index % len(self._prepared)
        pixels = self._altered(self._cache.load(self._prepared[place]), index, epoch)
        values = np.empty((3, *pixels.shape), np.float32)
        # What `normalise` makes of each grey level, looked up: the same bits in a fraction of the time.
        for channel, levels in zip(values, self._levels, strict=True):
            cv2.LUT(pixels, levels, dst=channel)
        return torch.from_numpy(values), self._labels[place], place

    def _altered(self, pixels: NDArray[np.uint8], index: int, epoch: int) -> NDArray[np.uint8]:
        if self._augmentation is Augmentation.ON_THE_FLY:
            return augment(pixels, np.random.default_rng([_ALTERATION, self.seed, epoch, index]))
        if index < len(self._prepared):
            return pixels
        place = index - len(self._prepared)
        rng = np.random.default_rng([_ALTERATION, self.seed, 0, index])
        return predecessor_copy(pixels, rng, flip=place in self._flipped, size_px=self._prepared[place].size_px)


class EpochSampler(Sampler[tuple[int, int]]):
    """All of a data set's indices with the epoch, in the epoch's order.

    Args:
        dataset: Whose `PictureDataset.epoch` counts when an iteration begins.
        shuffle: In an order that depends on the seed and the epoch; otherwise ascending.
        seed: 0 or more.
    """

    def __init__(self, dataset: PictureDataset, *, shuffle: bool, seed: int) -> None:
        self._dataset = dataset
        self._shuffle = shuffle
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """As `PictureDataset.set_epoch`; training loops look for it here."""
        self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self._dataset.epoch
        order = np.arange(len(self))
        if self._shuffle:
            order = np.random.default_rng([_ORDER, self._seed, epoch]).permutation(order)
        return iter([(index, epoch) for index in order.tolist()])


def loader(
    dataset: PictureDataset, *, batch_size: int, shuffle: bool, seed: int, epoch: int = 0, workers: int = 0
) -> DataLoader[Item]:
    """Batches of pictures (N, 3, h, w), labels (N,) and places (N,); the last may be smaller.

    It can be used for many epochs: call `PictureDataset.set_epoch` before each, or let Lightning do it.

    Args:
        dataset: Its epoch is set.
        batch_size: N.
        shuffle: Whether the order changes from epoch to epoch.
        seed: Of the order.
        epoch: From 0.
        workers: Processes that read ahead; fewer start where the shared memory is too small for their batches. With 0
            pictures are read when they are asked for.
    """
    dataset.set_epoch(epoch)
    options: dict[str, Any] = {}
    workers = min(workers, _workers_with_room(dataset, batch_size))
    if workers > 0:
        # Workers come from a process that has only done its imports. Forked from this one they would inherit locks
        # that other threads hold: OpenCV's, TensorBoard's, CUDA's.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        options = {
            "multiprocessing_context": context,
            "prefetch_factor": _AHEAD,
            "persistent_workers": True,
            "worker_init_fn": _start_worker,
        }
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(dataset, shuffle=shuffle, seed=seed),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own, or each iteration would take a number from PyTorch's global one, and change the training.
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def _workers_with_room(dataset: PictureDataset, batch_size: int) -> int:
    """How many workers' batches fit into shared memory: containers often have 64 MB, and to exceed it is fatal."""
    if not _SHARED_MEMORY.is_dir():
        return 1_000
    status = os.statvfs(_SHARED_MEMORY)
    height, width = dataset.input_size
    batch_bytes = 3 * height * width * torch.float32.itemsize * batch_size
    # Besides what a worker has ready: the batch that it fills and the one in use. Half the room is others'.
    return int(status.f_bavail * status.f_frsize / 2 // (batch_bytes * (_AHEAD + 2)))


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(1)
