"""Networks' plans with the memory and the threads to run them."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from panoramic.native.plan import Plan, aligned
from panoramic.native.steps import COUNTER_DISTANCE, run


class NativeNetwork:
    """Runs the plans of one network, or of an ensemble's members, on one picture after the other.

    Several threads share each picture. The caller's own only waits: a time limit may interrupt it, and must not let go
    of memory that is still being written. What has begun is ended, and the next picture waits for that. In a process
    that was forked after the first picture there are no threads, and it would wait for ever.
    """

    def __init__(self, plans: Sequence[Plan], *, threads: int):
        """Take the memory; the threads are started with the first picture.

        Args:
            plans: From `panoramic.native.plan.plan`, one or several for pictures of the same size.
            threads: At least 1.
        """
        self._plans = plans
        self._memory = aligned(max(plan.memory_size for plan in plans))
        self._scratch = [aligned(max(plan.scratch_size for plan in plans)) for _ in range(threads)]
        self._leader = ThreadPoolExecutor(1, "native-leader")
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), "native")

    def activation(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the last convolution and its activation put out.

        Args:
            picture: (3, height, width), of the plans' size.

        Returns:
            (h, w, channels), a new array; the channels of one plan behind those of the other.
        """
        return self._leader.submit(self._run_all, np.ascontiguousarray(picture)).result()

    def _run_all(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([self._run_together(plan, picture) for plan in self._plans], axis=2)

    def _run_together(self, plan: Plan, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        counters = np.zeros((len(plan.steps), 2, COUNTER_DISTANCE), np.int64)

        def share(scratch: NDArray[np.float32]) -> None:
            run(plan.steps, plan.weights, self._memory, picture, counters, scratch)

        helping: list[Future[None]] = []
        try:
            helping.extend(self._helpers.submit(share, scratch) for scratch in self._scratch[1:])
            share(self._scratch[0])
        finally:
            wait(helping)
        for helper in helping:
            helper.result()
        begin, height, width, channels = plan.activation
        whole = self._memory[begin : begin + height * width * channels].reshape(height, width, channels)
        return whole[:, :, : plan.channels].copy()
