"""The way of one job through a worker: claim it, keep the lease alive, screen, finish. Needs no Celery to run."""

from __future__ import annotations

import re
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from contract.errors import BrokerUnavailableError, ErrorCode, JobError, LeaseLostError
from contract.jobs import JOB_ID_PATTERN, ErrorInfo, Explanation, JobResult, JobState, ModelInfo
from contract.ledger import Ledger
from contract.records import Claim, Heartbeat
from worker.screening import Screener, Screening

logger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

#: While Redis is away, what it is to be told is said again after this pause (s), doubled each time up to the second.
INSISTENCE_PAUSE_S = (0.1, 2.0)

#: After a fault that may pass, a job rests for the first pause (s), and each time longer by the factor.
RETRY_PAUSE_S = 5.0
RETRY_GROWTH = 4.0


def insist(operation: Callable[[], T], *, job_id: str) -> T:
    """Tell Redis something until it answers. Only for what does no harm when it is said twice.

    Without Redis there is nothing else to do for an engine, so a soft time limit that strikes here is let pass: it
    would turn an outage into the failure of a job. The hard one ends the engine; the job is then done by another.
    """
    pause_s, longest_s = INSISTENCE_PAUSE_S
    while True:
        try:
            return operation()
        except (BrokerUnavailableError, SoftTimeLimitExceeded):
            logger.warning("redis_away", job_id=job_id)
        try:
            time.sleep(pause_s)
        except SoftTimeLimitExceeded:
            continue
        pause_s = min(2 * pause_s, longest_s)


class LeaseKeeper:
    """Keeps a claim alive from a thread of its own, and tells the job at each stage whether to go on.

    Args:
        ledger: Where the claim was made.
        claim: The job in hand.
        pause_s: Seconds between two signs of life.

    Attributes:
        noted: What the ledger was told of the pictures that are about to be made; empty before.
    """

    def __init__(self, ledger: Ledger, claim: Claim, *, pause_s: float) -> None:
        self._ledger = ledger
        self._claim = claim
        self._pause_s = pause_s
        self._away = False
        self._stop = threading.Event()
        self.noted = ""

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: it may hang on a frozen line, and what it says after the job's end changes nothing.
        self._stop.set()

    def enter(self, stage: str) -> None:
        """Note that a stage begins.

        Raises:
            JobError: The job has been cancelled.
            LeaseLostError: Another worker has it.
        """
        if self._away:
            return
        try:
            answer = self._ledger.heartbeat(self._claim, stage)
        except (BrokerUnavailableError, SoftTimeLimitExceeded):
            # The work goes on; whether the lease outlived the break is decided before the pictures are made. A time
            # limit that strikes here has been used up by waiting for Redis.
            self._away = True
            return
        if answer is Heartbeat.LOST:
            raise LeaseLostError(f"job {self._claim.job_id} is no longer held under token {self._claim.token}")
        if answer is Heartbeat.CANCELLED:
            raise JobError(ErrorCode.CANCELLED, f"the job was cancelled before the stage `{stage}`")

    def note(self, pictures: str) -> None:
        """Note which pictures are about to be made.

        Raises:
            LeaseLostError: Another worker has the job; make none.
        """
        insist(lambda: self._ledger.note_pictures(self._claim, pictures), job_id=self._claim.job_id)
        self.noted = pictures

    def _beat(self) -> None:
        while not self._stop.wait(self._pause_s):
            try:
                self._ledger.heartbeat(self._claim)
                self._away = False
            except BrokerUnavailableError:
                self._away = True
                logger.warning("redis_away", job_id=self._claim.job_id)


class JobObserver:
    """Is told what becomes of jobs. This one takes no notice; `worker.metrics` has one that counts."""

    def claimed(self, *, attempts: int) -> None:
        """A job was taken up, for the first time if `attempts` is 1."""

    def ended(self, state: JobState, result: JobResult) -> None:
        """The job's result is in the ledger."""

    def lost(self) -> None:
        """Another worker has the job by now."""


class JobProcessor:
    """Takes jobs through the engine, one at a time.

    Args:
        ledger: The truth about jobs.
        screener: The engine, loaded.
        node: Name of this node, for ledger and result.
        observer: Is told what becomes of the jobs.
    """

    def __init__(self, ledger: Ledger, screener: Screener, *, node: str, observer: JobObserver | None = None) -> None:
        self._ledger = ledger
        self._screener = screener
        self._node = node
        self._observer = observer or JobObserver()

    def process(self, job_id: str) -> JobState | None:
        """Take up a job, if it is to be had, and end it.

        Returns:
            The state in which it ended here; `queued` if it is to be tried again later; None if there was nothing
            to do, or another worker has it.
        """
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            # Whoever sent this might have put a path here: it is not repeated.
            logger.warning("message_refused", reason="its argument is not the id of a job")
            return None
        log = logger.bind(job_id=job_id)
        nonce = secrets.token_hex(8)
        claim = insist(lambda: self._ledger.claim(job_id, self._node, nonce=nonce), job_id=job_id)
        if not isinstance(claim, Claim):
            log.info("job_passed_over", state=claim or "unknown")
            return None
        self._take_back(claim, claim.left_behind)
        if claim.exhausted:
            return self._give_up(claim)
        log.info("job_claimed", attempt=claim.attempts, waited_ms=claim.waited_ms)
        self._observer.claimed(attempts=claim.attempts)
        start = time.perf_counter()
        lease = LeaseKeeper(self._ledger, claim, pause_s=self._ledger.settings.heartbeat_s)
        try:
            with lease:
                outcome = self._screen(claim, lease)
                if isinstance(outcome, JobError) and outcome.may_pass and self._try_later(claim):
                    log.warning("job_put_off", attempt=claim.attempts, error=outcome.code.value)
                    return JobState.QUEUED
                result = self._result(claim, outcome, (time.perf_counter() - start) * 1000)
                self._finish(claim, result)
        except LeaseLostError:
            self._take_back(claim, lease.noted)
            log.warning("job_lost", attempt=claim.attempts)
            self._observer.lost()
            return None
        log.info(
            "job_ended",
            state=result.state.value,
            error=result.error.code.value if result.error else None,
            timings_ms=result.timings_ms,
        )
        self._observer.ended(result.state, result)
        return result.state

    def _screen(self, claim: Claim, lease: LeaseKeeper) -> Screening | JobError:
        """Run the engine; whatever goes wrong in it is this job's failure, and the next job is served.

        Raises:
            LeaseLostError: Another worker has the job.
        """
        request = claim.request
        try:
            return self._screener.screen(
                request.img_path,
                request.destination_path,
                model=request.model,
                on_stage=lease.enter,
                on_pictures=lease.note,
            )
        except LeaseLostError:
            raise
        except JobError as error:
            return error
        except SoftTimeLimitExceeded:
            return JobError(ErrorCode.DEADLINE_EXCEEDED, "the job took longer than a job may; submit it again")
        except Exception as error:  # noqa: BLE001 - see above
            kind = type(error).__name__
            logger.error("job_crashed", job_id=claim.job_id, error=kind, at=_where(error))  # noqa: TRY400
            return JobError(
                ErrorCode.INTERNAL_ERROR,
                f"the worker met a fault of its own ({kind}); its log says where, under this job's id",
            )

    def _try_later(self, claim: Claim) -> bool:
        """Give the job back after a fault that may pass, unless this was its last attempt."""
        if claim.attempts >= self._ledger.settings.max_attempts:
            return False
        pause_s = RETRY_PAUSE_S * RETRY_GROWTH ** (claim.attempts - 1)
        return insist(lambda: self._ledger.release(claim, pause_s=pause_s, counted=True), job_id=claim.job_id)

    def _finish(self, claim: Claim, result: JobResult, *, dead: bool = False) -> None:
        insist(lambda: self._ledger.finish(claim, result, dead=dead), job_id=claim.job_id)

    def _take_back(self, claim: Claim, pictures: str) -> None:
        """Remove pictures that no result will name: of a worker that died, or of this one, which came too late."""
        if pictures and not self._screener.take_back(claim.request.destination_path, pictures):
            logger.warning("pictures_left_behind", job_id=claim.job_id)

    def _give_up(self, claim: Claim) -> JobState | None:
        error = JobError(
            ErrorCode.WORKER_LOST,
            f"{claim.attempts} workers ended while they had this job, so it is not tried again; "
            "look at the file, then use `producer dead`",
        )
        result = self._result(claim, error, 0.0)
        try:
            self._finish(claim, result, dead=True)
        except LeaseLostError:
            return None
        logger.error("job_given_up", job_id=claim.job_id, attempts=claim.attempts)
        self._observer.ended(JobState.DEAD, result)
        return JobState.DEAD

    def _result(self, claim: Claim, outcome: Screening | JobError, engine_ms: float) -> JobResult:
        timings_ms = {"queued": round(claim.waited_ms, 3)}
        common = {
            "job_id": claim.job_id,
            "attempts": claim.attempts,
            "submitted_at": claim.submitted_at,
            "finished_at": datetime.now(UTC),
            "worker": self._node,
            "metadata": claim.request.metadata,
        }
        if isinstance(outcome, JobError):
            timings_ms["engine"] = round(engine_ms, 3)
            return JobResult.model_validate(
                {
                    "result": "fail",
                    "error": ErrorInfo(code=outcome.code, message=outcome.message),
                    "timings_ms": timings_ms,
                    **common,
                }
            )
        timings_ms |= outcome.timings_ms
        timings_ms["engine"] = round(engine_ms, 3)
        manifest, classification = outcome.manifest, outcome.classification
        return JobResult.model_validate(
            {
                "result": "ok",
                "diagnosis": classification.diagnosis,
                "saliency_img_path": outcome.saliency_img_path,
                "overlay_img_path": outcome.overlay_img_path,
                "probability": classification.probability,
                "threshold": manifest.threshold,
                "model": ModelInfo(
                    name=manifest.name,
                    version=manifest.version,
                    sha256=manifest.sha256,
                    intended_use=manifest.intended_use,
                ),
                "explanation": Explanation(
                    method=classification.method, class_label=classification.diagnosis, layer=classification.layer
                ),
                "warnings": outcome.warnings,
                "timings_ms": timings_ms,
                **common,
            }
        )


def _where(error: BaseException) -> list[str]:
    """Where an exception arose, without its text: that may quote a path or a file."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
