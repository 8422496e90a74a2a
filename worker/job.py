"""The rules of one job at a worker: take it up, end it once, or let go of it. Needs no Celery to run."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from contract.errors import BrokerUnavailableError, ErrorCode, JobError, LeaseLostError
from contract.jobs import JOB_ID_PATTERN, JobResult, JobState
from contract.ledger import Ledger
from contract.records import Claim
from worker.events import TaskEvents
from worker.lease import LeaseKeeper, insist
from worker.results import make_result
from worker.screening import Screener, Screening

logger = structlog.stdlib.get_logger(__name__)

#: After a fault that may pass, a job rests for the first pause (s), and each time longer by the factor.
RETRY_PAUSE_S = 5.0
RETRY_GROWTH = 4.0


#: How long the end of a job that is given up waits for the removal of what its last holder left behind (s).
CLEARING_S = 5.0


class JobObserver:
    """Is told by several threads what becomes of jobs. This one takes no notice; that of `worker.metrics` counts."""

    def claimed(self, *, attempts: int) -> None:
        """A job was taken up, for the first time if `attempts` is 1."""

    def ended(self, state: JobState, result: JobResult) -> None:
        """The job's result is in the ledger."""

    def lost(self) -> None:
        """Another worker has the job by now."""


@dataclass(eq=False)
class JobInHand:
    """A claimed job, from when it is taken up to when it is ended, given back or lost.

    Attributes:
        claim: What the ledger handed out.
        lease: Keeps the claim alive.
        along: It was taken along with another, and Celery knows nothing of it.
        began: `time.perf_counter` when it was taken up.
    """

    claim: Claim
    lease: LeaseKeeper
    along: bool = False
    began: float = field(default_factory=time.perf_counter)
    _open: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> bool:
        """Whether the caller is the first to let go of the job, and so is to say what becomes of it."""
        with self._lock:
            first, self._open = self._open, False
        return first


class JobProcessor:
    """Takes jobs up and ends them.

    Args:
        ledger: The truth about jobs.
        screener: The engine, loaded; here it only takes pictures back.
        node: Name of this node, for ledger and result.
        observer: Is told what becomes of the jobs.
        events: Tells Flower of jobs that were taken along.
    """

    def __init__(
        self,
        ledger: Ledger,
        screener: Screener,
        *,
        node: str,
        observer: JobObserver | None = None,
        events: TaskEvents | None = None,
    ) -> None:
        self._ledger = ledger
        self._screener = screener
        self._node = node
        self._observer = observer or JobObserver()
        self._events = events
        self._refused = False

    def take_up(self, job_id: str) -> JobInHand | None:
        """Claim a job that a message named.

        Returns:
            The job; None if it is not to be had, or was given up here because it has used up its attempts.
        """
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            # Whoever sent this might have put a path here: it is not repeated.
            logger.warning("message_refused", reason="its argument is not the id of a job")
            return None
        nonce = secrets.token_hex(8)
        claim = insist(lambda: self._ledger.claim(job_id, self._node, nonce=nonce), job_id=job_id)
        if not isinstance(claim, Claim):
            logger.info("job_passed_over", job_id=job_id, state=claim or "unknown")
            return None
        if claim.exhausted:
            self._give_up(claim)
            return None
        return self._in_hand(claim)

    def clear_up(self, job: JobInHand) -> None:
        """Remove the pictures of an earlier holder, who died; not for the main thread, since a disk may hang."""
        self._take_back(job.claim, job.claim.left_behind)

    def take_along(self, count: int) -> list[JobInHand]:
        """Claim up to so many of the jobs that wait; none if Redis does not answer."""
        if count < 1:
            return []
        try:
            claims = self._ledger.take(self._node, count=count)
        except BrokerUnavailableError as error:
            if not self._refused:
                # Once, not for each job: an access list without the right to it, say, only makes the node slower.
                logger.warning("nothing_taken_along", reason=str(error))
            self._refused = True
            return []
        self._refused = False
        if self._events is not None:
            for claim in claims:
                self._events.taken(claim.job_id)
        return [self._in_hand(claim, along=True) for claim in claims]

    def _in_hand(self, claim: Claim, *, along: bool = False) -> JobInHand:
        logger.info("job_claimed", job_id=claim.job_id, attempt=claim.attempts, waited_ms=claim.waited_ms)
        self._observer.claimed(attempts=claim.attempts)
        lease = LeaseKeeper(self._ledger, claim, pause_s=self._ledger.settings.heartbeat_s)
        lease.start()
        return JobInHand(claim, lease, along)

    def end(self, job: JobInHand, outcome: Screening | JobError) -> None:
        """End a job, or put it off after a fault that may pass. Only the first call for a job counts."""
        if job.let_go():
            with self._letting_go(job):
                self._end(job, outcome)

    def lose(self, job: JobInHand) -> None:
        """Let go of a job that another worker has by now, and of its pictures."""
        if job.let_go():
            with self._letting_go(job):
                self._lost(job)

    def give_back(self, job: JobInHand) -> None:
        """Put a job back into the queue as if it had never been taken."""
        if job.let_go():
            with self._letting_go(job):
                insist(lambda: self._ledger.release(job.claim), job_id=job.claim.job_id)

    @contextmanager
    def _letting_go(self, job: JobInHand) -> Iterator[None]:
        try:
            yield
        finally:
            job.lease.stop()
            if job.along and self._events is not None:
                self._events.ended(job.claim.job_id, runtime_s=time.perf_counter() - job.began)

    def _end(self, job: JobInHand, outcome: Screening | JobError) -> None:
        claim = job.claim
        log = logger.bind(job_id=claim.job_id)
        try:
            if isinstance(outcome, JobError) and outcome.may_pass and self._try_later(claim):
                log.warning("job_put_off", attempt=claim.attempts, error=outcome.code.value)
                return
            engine_ms = (time.perf_counter() - job.began) * 1000
            result = make_result(claim, outcome, node=self._node, engine_ms=engine_ms)
            insist(lambda: self._ledger.finish(claim, result), job_id=claim.job_id)
        except LeaseLostError:
            self._lost(job)
            return
        log.info(
            "job_ended",
            state=result.state.value,
            error=result.error.code.value if result.error else None,
            timings_ms=result.timings_ms,
        )
        self._observer.ended(result.state, result)

    def _try_later(self, claim: Claim) -> bool:
        """Give the job back after a fault that may pass, unless this was its last attempt."""
        if claim.attempts >= self._ledger.settings.max_attempts:
            return False
        pause_s = RETRY_PAUSE_S * RETRY_GROWTH ** (claim.attempts - 1)
        return insist(lambda: self._ledger.release(claim, pause_s=pause_s, counted=True), job_id=claim.job_id)

    def _lost(self, job: JobInHand) -> None:
        self._take_back(job.claim, job.lease.noted)
        logger.warning("job_lost", job_id=job.claim.job_id, attempt=job.claim.attempts)
        self._observer.lost()

    def _take_back(self, claim: Claim, pictures: str) -> None:
        """Remove pictures that no result will name: of a worker that died, or of this one, which came too late."""
        if pictures and not self._screener.take_back(claim.request.destination_path, pictures):
            logger.warning("pictures_left_behind", job_id=claim.job_id)

    def _give_up(self, claim: Claim) -> None:
        # A disk that hangs must not keep the job from its end.
        clearing = threading.Thread(target=self._take_back, args=(claim, claim.left_behind), daemon=True)
        clearing.start()
        clearing.join(min(CLEARING_S, self._ledger.settings.lease_s / 2))
        error = JobError(
            ErrorCode.WORKER_LOST,
            f"{claim.attempts} attempts came to nothing, and the worker of the last one ended while it had this job; "
            "it is not tried again: look at the file, then use `producer dead`",
        )
        result = make_result(claim, error, node=self._node, engine_ms=0.0)
        try:
            insist(lambda: self._ledger.finish(claim, result, dead=True), job_id=claim.job_id)
        except LeaseLostError:
            return
        logger.error("job_given_up", job_id=claim.job_id, attempts=claim.attempts)
        self._observer.ended(JobState.DEAD, result)
