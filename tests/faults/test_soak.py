"""Many small jobs while engines, nodes and Redis are killed at random: none is lost, and none ends twice.

`--soak-jobs` says how many; the seed of the faults is fixed, their moment within a job is not.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from contract.errors import BrokerUnavailableError
from contract.jobs import JobState

SEED = 4711

#: Open jobs at a time, at most.
OPEN_JOBS = 20

#: Least and greatest pause between two faults (s): an engine needs about five to be there again.
FAULT_PAUSE_S = (2.0, 7.0)

#: How long Redis stays away, at most (s).
REDIS_AWAY_S = 3.0

#: What is killed: each once in a round, then the cards are shuffled again.
DECK = ("engine", "celery", "node", "redis")

#: For a job of which worker after worker was killed; two nodes and Redis may all be away at a time.
LONGEST_S_PER_JOB = 3.0
LEAST_S = 120.0

#: From a kill to the result of a job that was running; whoever takes it over may be killed as well.
SLOWEST_RECOVERY_S = 60.0


class Saboteur:
    """Kills something again and again.

    Args:
        site: Where.

    Attributes:
        faults: How often which was killed.
        hit: When a job that was running lost its worker (wall clock, s), by id; the last time, if several.
    """

    def __init__(self, site: Any) -> None:
        self._site = site
        self._random = random.Random(SEED)
        self._deck: list[str] = []
        self.faults: Counter[str] = Counter()
        self.hit: dict[str, float] = {}

    def work_until(self, done: Callable[[], bool]) -> None:
        """Make faults until something is so, and each kind of them at least once.

        For the main thread: Linux ends Redis when the thread that started it ends.
        """
        next_at = time.monotonic()
        while not done() or set(self.faults) != set(DECK):
            time.sleep(0.1)
            self._site.revive()
            if time.monotonic() > next_at:
                self._make_fault()
                next_at = time.monotonic() + self._random.uniform(*FAULT_PAUSE_S)

    def _make_fault(self) -> None:
        if not self._deck:
            self._deck = self._random.sample(DECK, len(DECK))
        fault, site = self._deck.pop(), self._site
        if fault == "redis":
            site.kill_redis()
            time.sleep(self._random.uniform(0, REDIS_AWAY_S))
            site.restart_redis()
        else:
            node = self._random.choice(site.nodes)
            if not node.can_be_killed(fault):
                return
            for status in site.client.jobs():
                if status.state is JobState.RUNNING and status.worker == node.name:
                    self.hit[status.job_id] = time.time()
            site.kill(node, fault)
        self.faults[fault] += 1


def submit_all(site: Any, count: int, deadline: float) -> None:
    """Submit jobs as there is room; while Redis is away, submit the same job again."""
    for number in range(count):
        request = site.request(job_id=f"soak-{number}")
        while True:
            assert time.monotonic() < deadline, f"only {number} of {count} jobs were submitted in time"
            with contextlib.suppress(BrokerUnavailableError):
                counts = site.ledger.counts()
                if counts[JobState.QUEUED] + counts[JobState.RUNNING] < OPEN_JOBS:
                    site.enter(request)
                    break
            time.sleep(0.1)


@pytest.mark.timeout(1500)
def test_no_job_is_lost_under_random_kills(site: Any, soak_jobs: int) -> None:
    start = time.monotonic()
    deadline = start + LEAST_S + soak_jobs * LONGEST_S_PER_JOB
    saboteur = Saboteur(site)
    with ThreadPoolExecutor(1) as producer:
        submitted = producer.submit(submit_all, site, soak_jobs, deadline)
        saboteur.work_until(submitted.done)
        submitted.result()
    site.wait_ready()
    results = site.settle(LEAST_S)
    took_s = time.monotonic() - start
    assert len(results) == soak_jobs
    states = Counter(site.ledger.status(job).state.value for job in results)
    attempts = Counter(result.attempts for result in results.values())
    recoveries_s = sorted(results[job].finished_at.timestamp() - hit for job, hit in saboteur.hit.items())
    site.note("soak: jobs", f"{soak_jobs} in {took_s:.0f} s, seed {SEED}")
    site.note("soak: faults", f"{saboteur.faults.total()} ({dict(saboteur.faults)})")
    site.note("soak: lost, ended twice, stray or partial pictures", "0, 0, 0")
    site.note("soak: ended", ", ".join(f"{state} {count}" for state, count in states.items()))
    site.note("soak: workers that a job took", f"{dict(sorted(attempts.items()))}")
    if recoveries_s:
        site.note(
            "soak: a running job's worker killed, to the job's result",
            f"median {statistics.median(recoveries_s):.1f} s, slowest {recoveries_s[-1]:.1f} s, n={len(recoveries_s)}",
        )
        assert recoveries_s[-1] < SLOWEST_RECOVERY_S
    # A job may meet three kills by chance; it is then given up with its request, and not lost.
    assert set(states) <= {"done", "dead"}
    assert all(results[job].attempts == 3 for job in results if results[job].result == "fail")
