"""Removes the background on the node's GPU, of all the radiographs together that wait for it at that moment.

For nodes whose cores cannot feed their GPU. The answers are those of `panoramic.preprocess.remove_background`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from concurrent.futures import Future

import numpy as np
import structlog
from numpy.typing import NDArray

from contract.errors import SettingsError
from panoramic import rolling_ball_cuda
from panoramic.preprocess import BALL_RADIUS_PX, remove_background

logger = structlog.stdlib.get_logger(__name__)

Picture = NDArray[np.uint8]

#: At most so many pictures at once; eight of 1270×2800 take 0.9 GB of the GPU's memory.
BATCH_SIZE = 8

#: (height, width) of the picture on which the GPU is compared with the CPU when the node starts.
PROBE_SHAPE = (600, 1100)


class GpuBackground:
    """Takes pictures from several threads, and gives them to the GPU from one of its own.

    Args:
        radius_px: Of the ball.
        probe_shape: (height, width) of the picture that is tried first.

    Raises:
        SettingsError: There is no GPU that numba can use, or its answer to the probe is not the CPU's.
    """

    def __init__(self, *, radius_px: int = BALL_RADIUS_PX, probe_shape: tuple[int, int] = PROBE_SHAPE) -> None:
        self._radius_px = radius_px
        self._waiting: queue.SimpleQueue[tuple[Picture, Future[Picture]] | None] = queue.SimpleQueue()
        # Grey levels that rise from left to right under noise, in steps: slopes that are nearly equal.
        rise = np.linspace(30, 190, probe_shape[1])
        probe = (np.random.default_rng(0).normal(rise, 12, probe_shape).clip(0, 255) // 3 * 3).astype(np.uint8)
        try:
            (found,) = rolling_ball_cuda.subtract_background_batch([probe], radius_px)
        except Exception as error:
            raise SettingsError(
                f"the background cannot be removed on the GPU ({type(error).__name__}): set OSTEOPAN_BACKGROUND=cpu"
            ) from error
        if not np.array_equal(found, remove_background(probe, radius_px=radius_px)):
            raise SettingsError("the GPU's background is not the CPU's on this machine: set OSTEOPAN_BACKGROUND=cpu")
        self._thread = threading.Thread(target=self._run, name="gpu-background", daemon=True)
        self._thread.start()

    def remove(self, pixels: Picture) -> Picture:
        """`panoramic.preprocess.remove_background` of one picture, (H, W); waits for it."""
        answer: Future[Picture] = Future()
        self._waiting.put((pixels, answer))
        return answer.result()

    def close(self) -> None:
        """End the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while item := self._waiting.get():
            batch = [item]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH_SIZE and (item := self._waiting.get_nowait()) is not None:
                    batch.append(item)
            try:
                found = rolling_ball_cuda.subtract_background_batch([pixels for pixels, _ in batch], self._radius_px)
            except Exception as error:  # noqa: BLE001 - numba and the driver raise what they like; no job is to fail
                logger.warning("background_on_cpu", error=type(error).__name__, pictures=len(batch))
                for pixels, answer in batch:
                    self._answer_from_cpu(pixels, answer)
            else:
                for (_, answer), picture in zip(batch, found, strict=True):
                    answer.set_result(picture)
            if item is None:
                return

    def _answer_from_cpu(self, pixels: Picture, answer: Future[Picture]) -> None:
        try:
            answer.set_result(remove_background(pixels, radius_px=self._radius_px))
        except Exception as error:  # noqa: BLE001 - it is for whoever waits, and the thread goes on
            answer.set_exception(error)
