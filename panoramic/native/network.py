"""A network's plan with the memory and the threads to run it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from panoramic.native.plan import Plan, aligned
from panoramic.native.steps import COUNTER_DISTANCE, run


class NativeNetwork:
    """Runs a plan on one picture after the other, by several threads together.

    The caller's own thread only waits. A time limit may interrupt it, and must not let go of memory that is still being
    written: what has begun is ended, and the next picture waits for that.
    """

    def __init__(self, plan: Plan, *, threads: int):
        """Take the memory; the threads are started with the first picture.

        Args:
            plan: From `panoramic.native.plan.plan`.
            threads: At least 1.
        """
        self._plan = plan
        self._memory = aligned(plan.memory_size)
        self._scratch = [aligned(plan.scratch_size) for _ in range(threads)]
        self._leader = ThreadPoolExecutor(1, "native-leader")
        self._helpers = ThreadPoolExecutor(threads, "native")

    def activation(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the last convolution and its activation put out.

        Args:
            picture: (3, height, width), of the plan's size.

        Returns:
            (h, w, channels), a new array.
        """
        return self._leader.submit(self._run_together, np.ascontiguousarray(picture)).result()

    def _run_together(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        plan = self._plan
        counters = np.zeros((len(plan.steps), 2, COUNTER_DISTANCE), np.int64)

        def share(scratch: NDArray[np.float32]) -> None:
            run(plan.steps, plan.weights, self._memory, picture, counters, scratch)

        helping = [self._helpers.submit(share, scratch) for scratch in self._scratch[1:]]
        share(self._scratch[0])
        for helper in helping:
            helper.result()
        begin, height, width, channels = plan.activation
        whole = self._memory[begin : begin + height * width * channels].reshape(height, width, channels)
        return whole[:, :, : plan.channels].copy()
