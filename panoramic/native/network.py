"""A network's plan with the memory and the threads to run it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from panoramic.native.plan import Plan, aligned
from panoramic.native.steps import COUNTER_DISTANCE, run


class NativeNetwork:
    """Runs a plan on one picture after the other, by several threads together."""

    def __init__(self, plan: Plan, *, threads: int):
        """Take the memory; the threads are started with the first picture.

        Args:
            plan: From `panoramic.native.plan.plan`.
            threads: At least 1; the caller's own is one of them.
        """
        self._plan = plan
        self._memory = aligned(plan.memory_size)
        self._scratch = [aligned(plan.scratch_size) for _ in range(threads)]
        self._counters = np.zeros((len(plan.steps), 2, COUNTER_DISTANCE), np.int64)
        self._helpers = ThreadPoolExecutor(threads, "native")
        self._alone = threading.Lock()

    def activation(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the last convolution and its activation put out.

        Args:
            picture: (3, height, width), of the plan's size.

        Returns:
            (h, w, channels), a new array.
        """
        picture = np.ascontiguousarray(picture)
        with self._alone:
            self._counters[:] = 0
            helping = [self._helpers.submit(self._run, picture, scratch) for scratch in self._scratch[1:]]
            self._run(picture, self._scratch[0])
            for helper in helping:
                helper.result()
            begin, height, width, channels = self._plan.activation
            whole = self._memory[begin : begin + height * width * channels].reshape(height, width, channels)
            return whole[:, :, : self._plan.channels].copy()

    def _run(self, picture: NDArray[np.float32], scratch: NDArray[np.float32]) -> None:
        run(self._plan.steps, self._plan.weights, self._memory, picture, self._counters, scratch)
