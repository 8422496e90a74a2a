"""The engine's assembly line: the next radiographs are read while the network runs and the last pictures are written.

A message starts it with one job. As long as more wait, it takes them along from the queue's head instead of waiting for
their messages. Each job has a lease, a result and a fate of its own.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from contract.broker import HARD_TIME_LIMIT_S, SOFT_TIME_LIMIT_S
from contract.errors import ErrorCode, JobError, LeaseLostError
from panoramic.classification import Classification
from worker.job import JobInHand, JobProcessor
from worker.screening import Prepared, Screener

logger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

#: So long after its first job a run takes no further one along (s).
TAKING_S = 20.0

#: A job that has been worked on so long when the time limit of its message strikes has had its time (s).
ENOUGH_S = SOFT_TIME_LIMIT_S - TAKING_S

#: After that limit threads that still read are waited for so long (s): less than is left to the hard limit.
READERS_LEFT_S = (HARD_TIME_LIMIT_S - SOFT_TIME_LIMIT_S) * 2 / 3

#: How long the network may wait for more of a batch once one of it is ready (s); it never does with one job in hand.
BATCH_WAIT_S = 0.02

#: Pause between two looks for more jobs while the last pictures are written (s).
LOOK_PAUSE_S = 0.05


class EngineLostError(Exception):
    """The engine cannot go on, and only another process can: a thread hangs in a file, or the device has failed."""


@dataclass(eq=False)
class _Item:
    """A job on the line.

    Attributes:
        job: What was taken up.
        began: `time.monotonic` when a thread began to read; None before.
        reading: Gives the radiograph, or None if the job has ended.
    """

    job: JobInHand
    began: float | None = None
    reading: Future[Prepared | None] | None = None

    @property
    def is_read(self) -> bool:
        return self.reading is not None and self.reading.done()


class Line:
    """Runs jobs through an engine, several at a time.

    At most two jobs for each reading thread are in hand unread, and of those read and those being written two batches
    each, so that a slow disk holds up few, and others are left to other nodes.

    Args:
        jobs: Takes jobs up and ends them.
        screener: The engine.
        batch_size: At most so many go through the network together.
        enough_s: As `ENOUGH_S`.
        readers_left_s: As `READERS_LEFT_S`.
    """

    def __init__(
        self,
        jobs: JobProcessor,
        screener: Screener,
        *,
        batch_size: int,
        enough_s: float = ENOUGH_S,
        readers_left_s: float = READERS_LEFT_S,
    ) -> None:
        self._jobs = jobs
        self._screener = screener
        self._batch_size = batch_size
        self._enough_s = enough_s
        self._readers_left_s = readers_left_s
        self._readers = ThreadPoolExecutor(screener.hands, "reader")
        self._writers = ThreadPoolExecutor(screener.hands, "writer")
        self._reading: list[_Item] = []
        self._at_network: list[tuple[_Item, Prepared]] = []
        self._written: set[Future[None]] = set()
        self._taking = True
        self._left_reading: list[Future[Prepared | None]] = []

    def take_no_more(self) -> None:
        """End what is begun and nothing else: the node is about to stop."""
        self._taking = False

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown()

    def process(self, job_id: str) -> None:
        """Take up a job, if it is to be had, end it, and end others that wait meanwhile.

        Raises:
            EngineLostError: What could be ended is, the rest is given back. End the process.
        """
        first = self._jobs.take_up(job_id)
        if first is None:
            return
        self._admit(first)
        # A job that has lost a worker may be why: it runs alone, so that it takes no other with it.
        taking_until = time.monotonic() + (TAKING_S if first.claim.attempts == 1 else 0)
        try:
            self._run(taking_until)
        except Exception as error:  # noqa: BLE001 - see below
            # Jobs fail in `_guard`; this is the engine's own fault, and would be the next job's too.
            kind = type(error).__name__
            logger.critical("engine_failed", error=kind, at=_where(error))
            try:
                self._abandon(kind)
            finally:  # whatever this meets, as the time limit
                raise EngineLostError(f"the engine failed ({kind})") from error
        _, hanging = wait(self._left_reading, self._readers_left_s)
        self._left_reading = []
        if hanging:
            raise EngineLostError(f"{len(hanging)} threads still read what was given up")

    def _run(self, taking_until: float) -> None:
        while self._reading or self._at_network or self._written:
            try:
                self._take_along(taking_until)
                self._gather_batch()
                if self._at_network:
                    self._take_along(taking_until)  # to be read while the network runs
                    self._classify()
                elif not self._reading:
                    wait(self._written, LOOK_PAUSE_S, FIRST_COMPLETED)
                self._written = {future for future in self._written if not future.done()}
            except SoftTimeLimitExceeded:
                self._expire()

    def _take_along(self, until: float) -> None:
        if not self._taking:
            self._give_back_unread()
        elif time.monotonic() < until and len(self._written) < 2 * self._most_read:
            unread = sum(not item.is_read for item in self._reading)
            room = min(self._most_read - len(self._reading), 2 * self._screener.hands - unread)
            for job in self._jobs.take_along(room):
                self._admit(job)

    @property
    def _most_read(self) -> int:
        return max(self._batch_size, self._screener.hands)

    def _give_back_unread(self) -> None:
        for item in list(self._reading):
            if item.job.along and item.reading is not None and item.reading.cancel():
                self._reading.remove(item)
                self._jobs.give_back(item.job)

    def _admit(self, job: JobInHand) -> None:
        item = _Item(job)
        self._reading.append(item)
        item.reading = self._readers.submit(self._prepare, item)

    def _classify(self) -> None:
        outcomes = self._screener.classify([prepared for _, prepared in self._at_network])
        for outcome in outcomes:
            item, prepared = self._at_network[0]
            if isinstance(outcome, JobError):
                self._jobs.end(item.job, outcome)
            else:
                self._written.add(self._writers.submit(self._deliver, item.job, prepared, outcome))
            del self._at_network[0]  # at once: a time limit gives back what is still here

    def _gather_batch(self) -> None:
        """Collect what has been read, for one model; wait a while for the first, and hardly for more."""
        if not any(item.is_read for item in self._reading):
            self._await_one(LOOK_PAUSE_S)
        self._collect()
        until = time.monotonic() + BATCH_WAIT_S
        while self._at_network and len(self._at_network) < self._batch_size:
            left_s = until - time.monotonic()
            if left_s <= 0 or all(item.is_read for item in self._reading):
                break
            self._await_one(left_s)
            self._collect()

    def _await_one(self, timeout_s: float) -> None:
        wait([item.reading for item in self._reading if item.reading and not item.is_read], timeout_s, FIRST_COMPLETED)

    def _collect(self) -> None:
        """Put what is read into the batch, whichever was ready first."""
        for item in list(self._reading):
            if len(self._at_network) == self._batch_size:
                break
            if item.reading is None or not item.is_read:
                continue
            prepared = item.reading.result()
            if prepared is not None and self._at_network and prepared.loaded is not self._at_network[0][1].loaded:
                continue
            if prepared is not None:
                self._at_network.append((item, prepared))
            self._reading.remove(item)
            if prepared is not None and not self._enters_network(item.job, prepared):
                self._at_network.pop()

    def _enters_network(self, job: JobInHand, prepared: Prepared) -> bool:
        def enter() -> bool:
            job.lease.enter("network")
            return True

        entered = bool(self._guard(job, enter))
        if not entered:
            prepared.close()
        return entered

    def _prepare(self, item: _Item) -> Prepared | None:
        item.began = time.monotonic()
        job, request = item.job, item.job.claim.request

        def prepare() -> Prepared:
            self._jobs.clear_up(job)
            return self._screener.prepare(
                request.img_path, request.destination_path, model=request.model, on_stage=job.lease.enter
            )

        return self._guard(job, prepare)

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

    def _abandon(self, kind: str) -> None:
        """Put off what was at the network, give back what is unread, and let what is written come to its end."""
        at_network, self._at_network = self._at_network, []
        reading, self._reading = self._reading, []
        fault = JobError(
            ErrorCode.INTERNAL_ERROR, f"the network failed ({kind}); the worker's log says where", may_pass=True
        )
        for item, prepared in at_network:
            prepared.close()
            self._jobs.end(item.job, fault)
        for item in reading:
            self._jobs.give_back(item.job)
            if item.reading is not None:
                item.reading.add_done_callback(_discard)
        wait(self._written, self._readers_left_s)

    def _expire(self) -> None:
        """End what has had its time and give the rest back; what is written, or only waits for Redis, goes on."""
        for item, prepared in self._at_network:
            prepared.close()
            self._end_or_give_back(item)
        self._at_network = []
        waiting, self._reading = self._reading, []
        for item in waiting:
            if item.reading is None or item.reading.cancel():
                self._jobs.give_back(item.job)
            elif item.job.lease.away:
                self._reading.append(item)
            else:
                self._left_reading.append(item.reading)
                self._end_or_give_back(item)
                item.reading.add_done_callback(_discard)

    def _end_or_give_back(self, item: _Item) -> None:
        if item.began is not None and time.monotonic() - item.began >= self._enough_s:
            late = JobError(ErrorCode.DEADLINE_EXCEEDED, "the job took longer than a job may; submit it again")
            self._jobs.end(item.job, late)
        else:
            self._jobs.give_back(item.job)


def _discard(future: Future[Prepared | None]) -> None:
    if not future.cancelled() and future.exception() is None and (prepared := future.result()) is not None:
        prepared.close()


def _where(error: BaseException) -> list[str]:
    """Where an exception arose, without its text: that may quote a path or a file."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
