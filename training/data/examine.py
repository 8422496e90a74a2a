"""Reads every picture of a data set once, in parallel, and keeps what a check needs to know of it: some 4 KiB each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event

import numpy as np
from numpy.typing import NDArray

from panoramic.decoder import DecoderProcess
from panoramic.errors import ImageError
from panoramic.radiograph import pixel_digest, refuse_file_size
from panoramic.view import View
from training.data.dataset import Picture
from training.data.duplicates import thumbnail
from training.data.parallel import usable_cores
from training.data.shortcuts import shortcut_measures


@dataclass(frozen=True, eq=False)
class Examined:
    """A picture that can be used, and what was seen of it.

    Attributes:
        picture: Which one.
        digest: `panoramic.radiograph.pixel_digest`.
        size_px: (height, width).
        format: "JPEG", "PNG", "TIFF", "BMP" or "DICOM".
        bit_depth: Bits a sample in the file.
        warnings: Codes of `panoramic.radiograph.ImageWarning`.
        measures: `training.data.shortcuts.shortcut_measures`.
        thumbnail: `training.data.duplicates.thumbnail`.
    """

    picture: Picture
    digest: str
    size_px: tuple[int, int]
    format: str
    bit_depth: int
    warnings: tuple[str, ...]
    measures: dict[str, float]
    thumbnail: NDArray[np.float16]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, and why in a sentence."""

    picture: Picture
    reason: str


def examine(
    pictures: Sequence[Picture],
    *,
    view: View,
    processes: int | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> list[Examined | Unreadable]:
    """Read the pictures, each file in a process that may die of it.

    At any time one picture a process is in memory.

    Args:
        pictures: In any order.
        view: What they should show.
        processes: How many to read with; by default one a core.
        on_done: Called after each picture, from several threads.

    Returns:
        One for each picture, in their order.

    Raises:
        PanoramicError: The decoder does not start.
    """
    count = max(1, min(processes or usable_cores(), len(pictures)))
    found: list[Examined | Unreadable | None] = [None] * len(pictures)
    waiting: SimpleQueue[int] = SimpleQueue()
    for index in range(len(pictures)):
        waiting.put(index)
    stop = Event()

    def work() -> None:
        # A decoder belongs to the thread that starts it.
        with DecoderProcess() as decoder:
            while not stop.is_set():
                try:
                    index = waiting.get_nowait()
                except Empty:
                    return
                try:
                    found[index] = _examine(pictures[index], decoder, view)
                    on_done()
                except BaseException:
                    stop.set()
                    raise

    with ThreadPoolExecutor(count) as pool:
        try:
            for worker in [pool.submit(work) for _ in range(count)]:
                worker.result()
        finally:
            stop.set()
    return [one for one in found if one is not None]


def _examine(picture: Picture, decoder: DecoderProcess, view: View) -> Examined | Unreadable:
    try:
        refuse_file_size(picture.path.stat().st_size, decoder.limits)
        radiograph = decoder.read(picture.path.read_bytes(), view=view)
    except ImageError as fault:
        return Unreadable(picture, str(fault))
    except OSError as fault:
        return Unreadable(picture, f"The file cannot be read: {fault.strerror}. Check the path and its permissions.")
    pixels = radiograph.pixels
    return Examined(
        picture=picture,
        digest=pixel_digest(pixels),
        size_px=(pixels.shape[0], pixels.shape[1]),
        format=radiograph.format,
        bit_depth=radiograph.bit_depth,
        warnings=radiograph.warnings,
        measures=shortcut_measures(pixels),
        thumbnail=thumbnail(pixels),
    )
