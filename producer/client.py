"""Submit radiographs and read results from a program.

    with Client.from_url("redis://:password@host:6379/0") as client:
        submission = client.submit({"img_path": "/in/a.png", "destination_path": "/out"})
        result = client.result(submission.job_id, wait_s=60)

Importing this needs neither NumPy nor PyTorch.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from contract.connection import connect
from contract.errors import (
    BrokerUnavailableError,
    InvalidRequestError,
    OsteopanError,
    ResultTimeoutError,
    UnknownJobError,
)
from contract.jobs import JobRequest, JobResult, JobState
from contract.ledger import Ledger
from contract.records import JobStatus, Submission
from contract.settings import Settings, load_settings
from producer.dead import DeadJobs
from producer.requests_from import checked_id, with_absolute_paths
from producer.waiting import BATCH_ENTRIES, Ended, Patience, Wait, documents

if TYPE_CHECKING:
    import celery

logger = logging.getLogger(__name__)

#: Longest blocking read of the results stream, in seconds; so soon does Ctrl-C or a deadline take effect.
BLOCK_S = 1.0

Request = JobRequest | dict[str, Any]


class Client:
    """A producer's end of the queue. Safe to share between threads; close it, or use it in a `with`.

    Args:
        settings: Where Redis is.

    Attributes:
        ledger: The jobs, for what this class does not offer.
        dead: The jobs that were given up.
    """

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(connect(settings), settings)
        self.dead = DeadJobs(self.ledger, self._enter)
        self._settings = settings

    @classmethod
    def from_url(cls, url: str) -> Self:
        """A client of the Redis at a URL; the other settings come from the environment.

        Raises:
            SettingsError: A variable OSTEOPAN_… is out of range.
            BrokerUnavailableError: The URL is not one of Redis.
        """
        return cls(load_settings(Settings, redis_url=url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. What kombu keeps open belongs to the process, and other clients share it."""
        self.ledger.client.close()
        if "_app" in self.__dict__:
            self._app.close()

    @cached_property
    def _app(self) -> celery.Celery:
        # Celery takes half a second to import, and only submitting needs it.
        from contract.broker import make_app

        return make_app(self._settings)

    def submit(self, request: Request) -> Submission:
        """Queue one radiograph. The same request under the same `job_id` again is not run twice.

        The job is entered in the ledger first, and a worker is woken then. If only that second step fails, the job
        is queued all the same: the workers look through the ledger for jobs that nobody was told of, about every
        two seconds.

        Args:
            request: A request, or a dictionary with at least `img_path` and `destination_path`. Relative paths are
                made absolute against the current folder.

        Raises:
            InvalidRequestError: The request does not fit the contract.
            JobConflictError: The id belongs to another request.
            TooManyOpenJobsError: The ledger is full.
            BrokerUnavailableError: Redis does not answer. Whether the job was entered is not known; with a
                `job_id` of one's own it can safely be submitted again.
        """
        return self._enter(_checked(request))

    def submit_many(self, requests: Iterable[Request]) -> list[Submission]:
        """Queue radiographs in the order given. All requests are checked before the first is queued.

        Raises:
            InvalidRequestError: A request does not fit the contract; nothing was queued.
            OsteopanError: As for `submit`; the requests before the one at fault are queued.
        """
        return [self._enter(request) for request in [_checked(request) for request in requests]]

    def _enter(self, request: JobRequest) -> Submission:
        from contract.broker import wake_worker

        submission = self.ledger.submit(request)
        if submission.state is JobState.QUEUED:
            try:
                wake_worker(self._app, submission.job_id, request.priority)
            except BrokerUnavailableError:
                logger.warning("job %s is queued, but no worker was told; one will find it", submission.job_id)
        return submission

    def result(self, job_id: str, *, wait_s: float | None = None) -> JobResult:
        """The result of one job.

        Args:
            job_id: The job's id.
            wait_s: How long to wait for it, in seconds (`math.inf`: without limit); None looks once.

        Raises:
            ResultTimeoutError: The job has not ended.
            UnknownJobError: No such job, or its result has expired.
            BrokerUnavailableError: Redis does not answer.
        """
        return next(self.results([job_id], 0.0 if wait_s is None else wait_s))

    def results(self, job_ids: Iterable[str], timeout_s: float = math.inf) -> Iterator[JobResult]:
        """The results of many jobs, as they finish. An outage of Redis is waited out.

        Args:
            job_ids: The jobs' ids.
            timeout_s: How long to wait for all of them, in seconds.

        Raises:
            ResultTimeoutError: Some have not ended in time; they go on.
            UnknownJobError: Some are not known, or have expired; raised after the results of the others.
            BrokerUnavailableError: Redis does not answer at first, or does not let us in.
        """
        for job in self._ended([checked_id(job_id) for job_id in job_ids], timeout_s):
            yield job.result

    def _ended(self, job_ids: list[str], timeout_s: float) -> Iterator[Ended]:
        deadline_s = time.monotonic() + timeout_s
        patience = Patience()
        wait = Wait(self.ledger)
        wait.add(job_ids)
        while wait.open:
            left_s = max(0.0, deadline_s - time.monotonic())
            ended: list[Ended] = []
            with patience.outages_pass(left_s):
                ended = wait.poll(min(BLOCK_S, left_s))
            yield from ended
            if wait.open and not ended and left_s == 0:
                raise ResultTimeoutError(
                    f"{_named(list(wait.open))} not ended{f' after {timeout_s:g} s' if timeout_s else ''}; "
                    "what is queued or running goes on"
                )
        if wait.lost:
            raise UnknownJobError(f"{_named(wait.lost)} no result: the id is not known, or the record has expired")

    def follow(
        self, since: str | None = None, *, on_outage: Callable[[OsteopanError | None], None] | None = None
    ) -> Iterator[Ended]:
        """Every job that ends, from now on and without end; a restart of Redis is waited out.

        Args:
            since: Go on after this entry of the results stream (`Ended.entry_id`). The stream keeps about
                `results_stream_length` entries; a result that has expired is left out.
            on_outage: Called with the error when Redis stops answering, and with None when it answers again.

        Raises:
            InvalidRequestError: `since` is not the id of an entry.
            BrokerUnavailableError: Redis does not answer at first, or does not let us in.
        """
        if since is not None and not re.fullmatch(r"\d{1,19}(-\d{1,19})?", since):
            raise InvalidRequestError("not the id of a stream entry, which reads 1700000000000-0")
        entry = self.ledger.last_entry() if since is None else since
        return self._follow(entry, Patience(on_outage))

    def _follow(self, entry: str, patience: Patience) -> Iterator[Ended]:
        while True:
            entries: list[tuple[str, str]] = []
            found: dict[str, str] = {}
            with patience.outages_pass():
                read = self.ledger.ended_since(entry, block_s=BLOCK_S, count=BATCH_ENTRIES)
                found = documents(self.ledger, [job_id for _, job_id in read])
                entries = read
            for entry_id, job_id in entries:
                if job_id in found:
                    yield Ended(job_id, found[job_id], entry_id)
                entry = entry_id

    def status(self, job_id: str) -> JobStatus:
        """Where a job stands.

        Raises:
            UnknownJobError: No such job.
            BrokerUnavailableError: Redis does not answer.
        """
        return self.ledger.status(checked_id(job_id))

    def jobs(self, *, limit: int = 100) -> list[JobStatus]:
        """Jobs that run, are queued, were given up and have ended, each group newest first, at most `limit` of each."""
        return self.ledger.jobs(limit=limit)

    def cancel(self, job_id: str, *, wait_s: float = 3.0) -> JobState:
        """Ask for a job to be ended, and wait until it has.

        A node ends a queued job, its worker a running one at the next stage. Without a node nobody does, until there
        is one.

        Args:
            job_id: The job's id.
            wait_s: How long to wait for the end, in seconds; 0 asks and looks once.

        Returns:
            `cancelled`; another terminal state, if the job ended before it could be cancelled; or `queued` or
            `running`, if it has not ended yet, but will.

        Raises:
            UnknownJobError: No such job.
            BrokerUnavailableError: Redis does not answer.
        """
        state = self.ledger.cancel(checked_id(job_id))
        if state.is_terminal:
            return state
        with suppress(ResultTimeoutError):
            next(self._ended([job_id], wait_s))
        return self.ledger.status(job_id).state


def _checked(request: Request) -> JobRequest:
    return with_absolute_paths(request if isinstance(request, JobRequest) else JobRequest.parse(request))


def _named(job_ids: list[str]) -> str:
    shown = ", ".join(job_ids[:3])
    if len(job_ids) == 1:
        return f"job {shown} has"
    return f"{len(job_ids)} jobs ({shown}{', …' if len(job_ids) > 3 else ''}) have"
