"""Times an epoch of training, fed from our cache and fed in the predecessor's way, on the same pictures and machine.

Neither side pays for decoding and rolling ball, which both do once: ours keeps prepared pictures on disk, the
predecessor decoded ones in memory, which it resizes again in every epoch.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.scale import Scale
from bench.summary import Row, rounded
from bench.untrained import untrained_network
from panoramic.preprocess import CHANNEL_MEAN, CHANNEL_STD, remove_background
from panoramic.view import View
from training.data.augment import Augmentation
from training.data.batches import PictureDataset, loader
from training.data.cache import PictureCache
from training.data.dataset import Picture
from training.fit.module import BETAS, FoldModule
from training.phantoms.phantom import draw_phantom, draw_truth

Step = Callable[[torch.Tensor, torch.Tensor], None]


class InMemory(Dataset[tuple[torch.Tensor, int]]):
    """The predecessor's data set: decoded pictures in a list, and torchvision's Resize, ToTensor and Normalize on each.

    torchvision is not needed: these are the operations that it calls on a PIL picture and on its tensor.
    """

    def __init__(self, pictures: list[tuple[Image.Image, int]], size: tuple[int, int]) -> None:
        self._pictures = pictures
        self._size = size
        self._mean = torch.tensor(CHANNEL_MEAN).view(-1, 1, 1)
        self._std = torch.tensor(CHANNEL_STD).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture, label = self._pictures[index]
        resized = picture.resize(self._size[::-1], Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return tensor.sub_(self._mean).div_(self._std), label


@dataclass
class Timed:
    """What one way of feeding took, epoch by epoch, in seconds."""

    epochs_s: list[float] = field(default_factory=list)
    waiting_s: list[float] = field(default_factory=list)
    feed_alone_s: list[float] = field(default_factory=list)

    def summary(self, pictures: int) -> dict[str, float]:
        """Medians."""
        return {
            "pictures_per_s": pictures / statistics.median(self.epochs_s),
            "waiting_share_percent": 100
            * statistics.median(waiting / epoch for waiting, epoch in zip(self.waiting_s, self.epochs_s, strict=True)),
            "feed_alone_pictures_per_s": pictures / statistics.median(self.feed_alone_s),
        }


def measure(scale: Scale, *, network: str = "efficientnet-b0", batch: int = 4) -> dict[str, Any]:
    """Time epochs of forward, backward and Adam in turn: ours, the predecessor's, and each feed without a network.

    Ours is what ``training kfold`` does, without Lightning around it: pictures from the cache, augmented on the fly,
    read by as many processes as there are spare cores (none where the CPU computes); the network as `FoldModule` lays
    it out, and half precision on a GPU. The predecessor's is its loop without its progress bar, TensorBoard and
    accuracy: the plain layout in full precision, on the same device.

    Args:
        scale: How many phantoms, of which size, and epochs; one epoch more is there to warm up.
        network: One of `panoramic.network.NETWORKS`.
        batch: Pictures a step; the predecessor's default is 4.

    Returns:
        ``ours`` and ``predecessor``, each with medians: ``pictures_per_s`` in an epoch, ``waiting_share_percent`` of it
        without the next batch, ``feed_alone_pictures_per_s`` without a network; and ``ratio`` of the pictures a second
        in an epoch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = scale.input_size
    workers = min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
    with tempfile.TemporaryDirectory() as name:
        files, decoded = _draw(Path(name), scale)
        cache = PictureCache(Path(name) / "cache", view=View.FULL, input_size=size)
        labels = [picture.class_index for picture in files]
        dataset = PictureDataset(cache, cache.prepare(files), labels, augmentation=Augmentation.ON_THE_FLY)
        ours = loader(dataset, batch_size=batch, shuffle=True, seed=0, workers=workers)
        theirs = DataLoader(InMemory(decoded, size), batch_size=batch)
        steps = {"ours": _step(network, device, ours=True), "predecessor": _step(network, device, ours=False)}
        timed = {side: Timed() for side in steps}
        for epoch in range(scale.feed_epochs + 1):
            dataset.set_epoch(epoch)
            for side, batches in {"ours": ours, "predecessor": theirs}.items():
                alone_s, _ = _epoch(batches, lambda _x, _y: None)
                epoch_s, waiting_s = _epoch(batches, steps[side])
                if epoch > 0:
                    timed[side].epochs_s.append(epoch_s)
                    timed[side].waiting_s.append(waiting_s)
                    timed[side].feed_alone_s.append(alone_s)
    found = {side: times.summary(scale.feed_pictures) for side, times in timed.items()}
    return {
        "network": network,
        "size": size,
        "batch": batch,
        "pictures": scale.feed_pictures,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "workers": workers,
        **found,
        "ratio": found["ours"]["pictures_per_s"] / found["predecessor"]["pictures_per_s"],
    }


def _draw(folder: Path, scale: Scale) -> tuple[list[Picture], list[tuple[Image.Image, int]]]:
    """Phantoms as files, and as the predecessor has them: background removed, three channels, shuffled once."""
    files, decoded = [], []
    for number in range(scale.feed_pictures):
        pixels: NDArray[np.uint8] = draw_phantom(draw_truth(number, ("C1", "C3")[number % 2], size_px=scale.picture_px))
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), pixels)
        files.append(Picture(path, path.name, number % 2, path.stem))
        decoded.append((Image.fromarray(remove_background(pixels)).convert("RGB"), number % 2))
    random.Random(0).shuffle(decoded)
    return files, decoded


def _step(network: str, device: torch.device, *, ours: bool) -> Step:
    net = untrained_network(network).train()
    if ours:
        net = FoldModule(net, learning_rate=1e-3, seed=0, stream=0).net
    net = net.to(device)
    layout = torch.channels_last if ours else torch.contiguous_format
    half = ours and device.type == "cuda"
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=BETAS)
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step(x: torch.Tensor, labels: torch.Tensor) -> None:
        x, labels = x.to(device, non_blocking=ours).contiguous(memory_format=layout), labels.to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16, enabled=half):
            loss = F.cross_entropy(net(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # waits for a GPU, as a progress bar does, so that what follows is waiting for data

    return step


def _epoch(batches: Iterable[Any], step: Step) -> tuple[float, float]:
    """Seconds that one epoch takes, and those of them without a batch to work on."""
    began = time.perf_counter()
    waiting_s, since = 0.0, began
    for x, labels, *_ in batches:
        waiting_s += time.perf_counter() - since
        step(x, labels)
        since = time.perf_counter()
    ended = time.perf_counter()
    return ended - began, waiting_s + ended - since


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    lines: list[Row] = [(f"Training {found['network']} in batches of {found['batch']}, {found['device']}", "", "")]
    for side, title in (("ours", "fed from our cache"), ("predecessor", "fed in the predecessor's way")):
        times = found[side]
        lines += [
            (f"  {title}", f"{rounded(times['pictures_per_s'])} pictures/s", ""),
            ("    waiting for data", f"{times['waiting_share_percent']:.1f} %", ""),
            ("    the feed alone", f"{rounded(times['feed_alone_pictures_per_s'])} pictures/s", ""),
        ]
    return [*lines, ("  ratio", f"{found['ratio']:.2f} times", "")]
