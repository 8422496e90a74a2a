"""Wait for many jobs at once: one blocking read of the results stream, however many they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import redis
from pydantic import ValidationError

from contract.connection import translated_errors
from contract.errors import BrokerUnavailableError, OsteopanError
from contract.jobs import SCHEMA_VERSION, JobResult, JobState
from contract.ledger import Ledger

#: Jobs asked after in one round trip.
CHUNK_JOBS = 1000

#: Entries of the results stream read at once.
BATCH_ENTRIES = 1000

#: Longest pause between two looks whether there are more jobs to add, in seconds.
FEED_PAUSE_S = 0.1

#: Least pause between two searches for results that the stream did not tell of, in seconds.
SWEEP_PAUSE_S = 10.0

#: Pause before Redis is tried again, in seconds.
RETRY_PAUSE_S = 0.5


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        job_id: The job's id.
        document: Its result, the JSON exactly as it is stored.
        entry_id: Its entry of the results stream; None if the result was found without it.
    """

    job_id: str
    document: str
    entry_id: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the job failed; every version of the document says it in the same way."""
        return bool(json.loads(self.document)["result"] != "ok")

    @property
    def result(self) -> JobResult:
        """The result.

        Raises:
            OsteopanError: A later version of this program wrote it.
        """
        try:
            return JobResult.model_validate_json(self.document)
        except ValidationError as error:
            raise OsteopanError(
                f"the result of job {self.job_id} is not of schema version {SCHEMA_VERSION}, which this program reads; "
                "update it to the version of the workers"
            ) from error


def documents(ledger: Ledger, job_ids: Sequence[str]) -> dict[str, str]:
    """The stored results of those of the jobs that have one, as JSON."""
    found: dict[str, str] = {}
    for ids in _chunks(job_ids):
        with translated_errors():
            answers = cast("list[str | None]", ledger.client.mget([ledger.keys.result(job_id) for job_id in ids]))
        found.update({job_id: answer for job_id, answer in zip(ids, answers, strict=True) if answer is not None})
    return found


class Patience:
    """Waits out the outages of Redis, and tells of each once.

    Args:
        on_outage: Called with the error when Redis stops answering, and with None when it answers again.
    """

    def __init__(self, on_outage: Callable[[OsteopanError | None], None] | None = None) -> None:
        self._on_outage = on_outage or (lambda _: None)
        self._away = False

    @contextmanager
    def outages_pass(self, pause_s: float = RETRY_PAUSE_S) -> Iterator[None]:
        """Leave the block and pause if Redis is away or restarting; the caller's loop comes back.

        Raises:
            BrokerUnavailableError: Redis refuses us, which will not pass.
        """
        try:
            yield
        except BrokerUnavailableError as error:
            cause = error.__cause__
            if not isinstance(cause, (redis.ConnectionError, redis.TimeoutError)) or isinstance(
                cause, redis.AuthenticationError
            ):
                raise
            if not self._away:
                self._away = True
                self._on_outage(error)
            time.sleep(min(pause_s, RETRY_PAUSE_S))
        else:
            if self._away:
                self._away = False
                self._on_outage(None)


class Wait:
    """Jobs that are waited for.

    Make it before the jobs are submitted: it notes the stream's end and reads on from there. What the stream does not
    tell of (a job that had ended before, an entry trimmed away, a restart of Redis) is found by asking for the results
    themselves, which is done for each job at first, and for all after every outage and now and then.

    Args:
        ledger: Where the jobs are.

    Attributes:
        open: Ids of the jobs that have not ended, in the order in which they were added.
        lost: Ids of the jobs that will have no result: not known, or expired.
        feed: Adds jobs while others are waited for; called with the seconds that it may take, until it returns False,
            for there are no more. An outage of Redis may end a call, and the next goes on from there.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.open: dict[str, None] = {}
        self.lost: list[str] = []
        self.feed: Callable[[float], bool] | None = None
        self._ledger = ledger
        self._entry = ledger.last_entry()
        self._new: list[str] = []
        self._next_sweep_s = 0.0

    def add(self, job_ids: Iterable[str]) -> None:
        """Wait for these as well."""
        new = list(job_ids)
        self.open.update(dict.fromkeys(new))
        self._new += new

    def poll(self, block_s: float) -> list[Ended]:
        """The jobs that have ended since the last call; empty after `block_s` seconds without one.

        Raises:
            BrokerUnavailableError: Redis does not answer. To call again goes on from here.
        """
        try:
            if self.feed is not None:
                block_s = min(block_s, FEED_PAUSE_S)
                if not self.feed(0.0 if self.open else block_s):
                    self.feed = None
                if not self.open:
                    return []
            if self._new or time.monotonic() >= self._next_sweep_s:
                ended = self._sweep()
                if ended or not self.open:
                    return ended
            entries = self._ledger.ended_since(self._entry, block_s=block_s, count=BATCH_ENTRIES)
            ours = {job_id: entry_id for entry_id, job_id in entries if job_id in self.open}
            found = documents(self._ledger, list(ours))
        except BrokerUnavailableError:
            self._next_sweep_s = 0.0
            raise
        if entries:
            self._entry = entries[-1][0]
        if len(found) < len(ours):
            self._next_sweep_s = 0.0
        return self._close(Ended(job_id, document, ours[job_id]) for job_id, document in found.items())

    def _close(self, ended: Iterable[Ended]) -> list[Ended]:
        closed = list(ended)
        for job in closed:
            del self.open[job.job_id]
        return closed

    def _sweep(self) -> list[Ended]:
        """Ask for the results of all jobs if it is time to, else of those added since the last call."""
        started_s = time.monotonic()
        everything = started_s >= self._next_sweep_s
        asked = list(self.open if everything else dict.fromkeys(self._new))
        found = documents(self._ledger, asked)
        closed = self._closed([job_id for job_id in asked if job_id not in found])
        # A job may have ended between the two questions: its result is written together with its state.
        found |= documents(self._ledger, closed)
        gone = [job_id for job_id in closed if job_id not in found]
        self.lost += gone
        for job_id in gone:
            del self.open[job_id]
        self._new = []
        if everything:
            now_s = time.monotonic()
            self._next_sweep_s = now_s + max(SWEEP_PAUSE_S, 20 * (now_s - started_s))
        return self._close(Ended(job_id, document) for job_id, document in found.items())

    def _closed(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that are not queued or running."""
        closed = []
        for ids in _chunks(job_ids):
            with translated_errors():
                pipeline = self._ledger.client.pipeline(transaction=False)
                for job_id in ids:
                    pipeline.hget(self._ledger.keys.job(job_id), "state")
                states = pipeline.execute()
            closed += [
                job_id for job_id, state in zip(ids, states, strict=True) if not state or JobState(state).is_terminal
            ]
        return closed


def _chunks(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(job_ids), CHUNK_JOBS):
        yield job_ids[first : first + CHUNK_JOBS]
