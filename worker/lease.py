"""Keeps a claimed job alive, and insists on telling Redis what must be told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from contract.broker import HARD_TIME_LIMIT_S
from contract.errors import BrokerUnavailableError, ErrorCode, JobError, LeaseLostError
from contract.ledger import Ledger
from contract.records import Claim, Heartbeat

logger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

#: What the ledger heard of a job this share of the pause between two signs of life ago is new enough, 45 ms with the
#: default lease: shorter stages go by without a word.
NEWS_SHARE = 0.015

#: While Redis is away, what it is to be told is said again after this pause (s), doubled each time up to the second.
INSISTENCE_PAUSE_S = (0.1, 2.0)


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
        away: Redis did not answer the last time.
    """

    def __init__(self, ledger: Ledger, claim: Claim, *, pause_s: float) -> None:
        self._ledger = ledger
        self._claim = claim
        self._pause_s = pause_s
        self.away = False
        self._stop = threading.Event()
        self._heard = time.monotonic()
        self.noted = ""

    def start(self) -> None:
        """Begin to keep it alive."""
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def stop(self) -> None:
        """Keep it alive no longer."""
        # The thread is not waited for: it may hang on a frozen line, and what it says after the end changes nothing.
        self._stop.set()

    def enter(self, stage: str) -> None:
        """Note that a stage begins, unless the ledger has only just heard of the job.

        Raises:
            JobError: The job has been cancelled.
            LeaseLostError: Another worker has it.
        """
        if self.away or time.monotonic() - self._heard < NEWS_SHARE * self._pause_s:
            return
        try:
            answer = self._ledger.heartbeat(self._claim, stage)
        except (BrokerUnavailableError, SoftTimeLimitExceeded):
            # The work goes on; whether the lease outlived the break is decided before the pictures are made. A time
            # limit that strikes here has been used up by waiting for Redis.
            self.away = True
            return
        self._heard = time.monotonic()
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
        # No job takes longer than its message may; a lease that nobody ended must not live for ever.
        until = time.monotonic() + HARD_TIME_LIMIT_S
        while time.monotonic() < until and not self._stop.wait(self._pause_s):
            try:
                self._ledger.heartbeat(self._claim)
                self.away = False
            except BrokerUnavailableError:
                self.away = True
                logger.warning("redis_away", job_id=self._claim.job_id)
