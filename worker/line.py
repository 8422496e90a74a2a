"""The engine's assembly line: the next radiographs are read while the network runs and the last pictures are written.

A message starts it with one job. As long as more wait, it takes them along from the queue's head instead of waiting for
their messages. Each job has a lease, a result and a fate of its own.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from contract.errors import ErrorCode, JobError, LeaseLostError
from panoramic.runtime import Classification
from worker.job import JobInHand, JobProcessor
from worker.screening import Prepared, Screener

logger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

#: So long after its first job a run takes no further one along (s). What it has in hand must end within the time limit
#: of its message.
TAKING_S = 20.0

#: How long the network may wait for more of a batch once one of it is ready (s); it never does with one job in hand.
BATCH_WAIT_S = 0.02

#: Pause between two looks for more jobs while the last pictures are written (s).
LOOK_PAUSE_S = 0.05


class Line:
    """Runs jobs through an engine, several at a time.

    Args:
        jobs: Takes jobs up and ends them.
        screener: The engine.
        batch_size: At most so many go through the network together.
    """

    def __init__(self, jobs: JobProcessor, screener: Screener, *, batch_size: int) -> None:
        self._jobs = jobs
        self._screener = screener
        self._batch_size = batch_size
        self._readers = ThreadPoolExecutor(screener.hands, "reader")
        self._writers = ThreadPoolExecutor(screener.hands, "writer")
        self._read: deque[tuple[JobInHand, Future[Prepared | None]]] = deque()
        self._at_network: list[tuple[JobInHand, Prepared]] = []
        self._written: set[Future[None]] = set()
        self._taking = True

    def take_no_more(self) -> None:
        """End what is in hand and nothing else: the node is about to stop."""
        self._taking = False

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown()

    def process(self, job_id: str) -> None:
        """Take up a job, if it is to be had, end it, and end others that wait meanwhile."""
        first = self._jobs.take_up(job_id)
        if first is None:
            return
        self._admit(first)
        # A job that has lost a worker may be why: it runs alone, so that it takes no other with it.
        taking_until = time.monotonic() + (TAKING_S if first.claim.attempts == 1 else 0)
        while self._read or self._written:
            try:
                if self._taking and time.monotonic() < taking_until:
                    for job in self._jobs.take_along(self._room()):
                        self._admit(job)
                self._advance()
            except SoftTimeLimitExceeded:
                self._expire()

    def _room(self) -> int:
        return max(self._batch_size, self._screener.hands) - len(self._read)

    def _admit(self, job: JobInHand) -> None:
        self._read.append((job, self._readers.submit(self._prepare, job)))

    def _advance(self) -> None:
        """Run one batch through the network, or wait a while for the writers."""
        self._gather_batch()
        if not self._at_network:
            _, self._written = wait(self._written, LOOK_PAUSE_S, FIRST_COMPLETED)
            return
        outcomes = self._screener.classify([prepared for _, prepared in self._at_network])
        for (job, prepared), outcome in zip(self._at_network, outcomes, strict=True):
            if isinstance(outcome, JobError):
                self._jobs.end(job, outcome)
            else:
                self._written.add(self._writers.submit(self._deliver, job, prepared, outcome))
        self._at_network = []
        self._written = {future for future in self._written if not future.done()}

    def _gather_batch(self) -> None:
        """Collect what has been read, in order, for one model; wait for the first, and hardly for those behind it."""
        while self._read and len(self._at_network) < self._batch_size:
            job, future = self._read[0]
            if self._at_network:
                wait([future], BATCH_WAIT_S)
                if not future.done():
                    break
            prepared = future.result()
            if prepared is not None and self._at_network and prepared.loaded is not self._at_network[0][1].loaded:
                break
            self._read.popleft()
            if prepared is not None and self._enters_network(job, prepared):
                self._at_network.append((job, prepared))

    def _enters_network(self, job: JobInHand, prepared: Prepared) -> bool:
        def enter() -> bool:
            job.lease.enter("network")
            return True

        entered = bool(self._guard(job, enter))
        if not entered:
            prepared.close()
        return entered

    def _prepare(self, job: JobInHand) -> Prepared | None:
        request = job.claim.request
        return self._guard(
            job,
            lambda: self._screener.prepare(
                request.img_path, request.destination_path, model=request.model, on_stage=job.lease.enter
            ),
        )

    def _deliver(self, job: JobInHand, prepared: Prepared, classification: Classification) -> None:
        def deliver() -> None:
            screening = self._screener.deliver(
                prepared, classification, on_stage=job.lease.enter, on_pictures=job.lease.note
            )
            self._jobs.end(job, screening)

        self._guard(job, deliver)

    def _guard(self, job: JobInHand, work: Callable[[], T]) -> T | None:
        """Do some of a job's work; whatever goes wrong in it is this job's failure, and None is returned."""
        try:
            return work()
        except LeaseLostError:
            self._jobs.lose(job)
        except JobError as error:
            self._jobs.end(job, error)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            kind = type(error).__name__
            logger.error("job_crashed", job_id=job.claim.job_id, error=kind, at=_where(error))  # noqa: TRY400
            message = f"the worker met a fault of its own ({kind}); its log says where, under this job's id"
            self._jobs.end(job, JobError(ErrorCode.INTERNAL_ERROR, message))
        return None

    def _expire(self) -> None:
        """End what takes too long; what is being written, and what only waits for Redis, goes on."""
        late = JobError(ErrorCode.DEADLINE_EXCEEDED, "the job took longer than a job may; submit it again")
        for job, prepared in self._at_network:
            prepared.close()
            self._jobs.end(job, late)
        self._at_network = []
        waiting, self._read = self._read, deque()
        for job, future in waiting:
            if future.cancel():
                self._jobs.give_back(job)
            elif job.lease.away:
                self._read.append((job, future))
            else:
                self._jobs.end(job, late)
                future.add_done_callback(_discard)


def _discard(future: Future[Prepared | None]) -> None:
    if not future.cancelled() and (prepared := future.result()) is not None:
        prepared.close()


def _where(error: BaseException) -> list[str]:
    """Where an exception arose, without its text: that may quote a path or a file."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
