"""Jobs in processes and threads: few wait, faults come through, and closing ends them."""

import math
import operator
import os
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

import pytest

from training.data.parallel import run_in_processes, run_in_threads


def test_every_job_comes_back_with_its_result() -> None:
    jobs = [(number,) for number in range(50)]

    assert sorted(run_in_threads(math.factorial, jobs, threads=3)) == [(job, math.factorial(*job)) for job in jobs]
    assert list(run_in_processes(math.factorial, jobs, processes=1)) == [(job, math.factorial(*job)) for job in jobs]


def test_few_jobs_are_asked_for_ahead_of_their_results() -> None:
    asked = 0

    def jobs():  # type: ignore[no-untyped-def]
        nonlocal asked
        for number in range(100_000):
            asked += 1
            yield (number, number)

    with closing(run_in_threads(operator.add, jobs(), threads=2)) as results:
        for done in range(200):
            (a, b), total = next(results)
            assert total == a + b
            assert asked - done <= 2 * 4 * 2
    assert asked < 300


def test_processes_give_results_and_faults() -> None:
    assert sorted(run_in_processes(operator.mul, [(n, n) for n in range(9)], processes=2)) == [
        ((n, n), n * n) for n in range(9)
    ]
    with pytest.raises(ZeroDivisionError, match="division"):
        list(run_in_processes(operator.truediv, [(1, 0), (1, 1)], processes=2))


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(BrokenProcessPool, match="terminated abruptly"):
        list(run_in_processes(os._exit, [(3,), (3,)], processes=2))
