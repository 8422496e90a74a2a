"""Jobs that were given up: look at them, run them anew under another id, or let them go."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from contract.connection import translated_errors
from contract.errors import UnknownJobError
from contract.jobs import JobRequest, JobResult, JobState
from contract.ledger import Ledger
from contract.records import JobStatus, Submission
from producer.requests_from import checked_id
from producer.waiting import Ended, documents

#: As many as `JOB_ID_PATTERN` allows.
JOB_ID_MAX_CHARACTERS = 64

#: Hexadecimal digits that keep two ids apart that are cut at the same place.
DIGEST_CHARACTERS = 12

_RETRIED = re.compile(r"(?P<original>.+)-retry-(?P<number>[1-9]\d*)")


@dataclass(frozen=True)
class DeadJob:
    """A job that was given up, paths and all.

    Attributes:
        status: Where it stands.
        request: What was asked.
        result: Why it was given up; None once the result has expired.
    """

    status: JobStatus
    request: JobRequest
    result: JobResult | None


class DeadJobs:
    """The jobs that were given up; `Client.dead` is one.

    Args:
        ledger: Where the jobs are.
        submit: Enters a request and wakes a worker.
    """

    def __init__(self, ledger: Ledger, submit: Callable[[JobRequest], Submission]) -> None:
        self._ledger = ledger
        self._submit = submit

    def ids(self) -> list[str]:
        """Ids of all of them, in the order in which they were given up."""
        with translated_errors():
            return cast("list[str]", self._ledger.client.zrange(self._ledger.keys.dead, 0, -1))

    def jobs(self, *, limit: int = 100) -> list[JobStatus]:
        """Where they stand, newest first, at most `limit`."""
        return self._ledger.dead(limit=limit)

    def job(self, job_id: str) -> DeadJob:
        """All there is about one.

        Raises:
            UnknownJobError: It is not among the dead.
            InvalidRequestError: A later version of this program wrote its request.
        """
        self._check(job_id)
        document = documents(self._ledger, [job_id]).get(job_id)
        return DeadJob(
            self._ledger.status(job_id),
            self._ledger.request(job_id),
            None if document is None else Ended(job_id, document).result,
        )

    def retry(self, job_id: str) -> Submission:
        """Submit the request anew, and let the old job go. An id has one result for ever, so the new job has its own.

        The new id follows from the old one: whoever stopped between the two steps, and tries again, is answered with
        the job that is there, and it is not run twice.

        Returns:
            The new job.

        Raises:
            UnknownJobError: It is not among the dead.
            InvalidRequestError: A later version of this program wrote its request.
            JobConflictError: The new id belongs to another request. The old job stays.
            TooManyOpenJobsError: The ledger is full. The old job stays.
            BrokerUnavailableError: Redis does not answer. To try again does no harm.
        """
        self._check(job_id)
        request = self._ledger.request(job_id).model_copy(update={"job_id": retry_id(job_id)})
        submission = self._submit(request)
        self._ledger.bury(job_id)
        return submission

    def drop(self, job_id: str) -> None:
        """Let one go: its record expires as that of any ended job.

        Raises:
            UnknownJobError: It is not among the dead.
        """
        if not self._ledger.bury(checked_id(job_id)):
            raise self._not_dead(job_id)

    def _check(self, job_id: str) -> None:
        with translated_errors():
            given_up = self._ledger.client.zscore(self._ledger.keys.dead, checked_id(job_id))
        if given_up is None:
            raise self._not_dead(job_id)

    def _not_dead(self, job_id: str) -> UnknownJobError:
        state = self._ledger.status(job_id).state
        why = "it was, and has been retried or dropped since" if state is JobState.DEAD else f"it is {state.value}"
        return UnknownJobError(f"job {job_id} is not among the dead: {why}")


def retry_id(job_id: str) -> str:
    """The id under which a job is run anew: `<id>-retry-1`, the next time `<id>-retry-2`.

    The original id is cut where the whole would get too long, and told by a digest then.
    """
    again = _RETRIED.fullmatch(job_id)
    original, number = (again["original"], int(again["number"]) + 1) if again else (job_id, 1)
    ending = f"-retry-{number}"
    if len(original) + len(ending) > JOB_ID_MAX_CHARACTERS:
        ending = f"-{hashlib.sha256(original.encode()).hexdigest()[:DIGEST_CHARACTERS]}{ending}"
    return original[: JOB_ID_MAX_CHARACTERS - len(ending)] + ending
