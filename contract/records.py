"""What the ledger says of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from contract.jobs import JobRequest, JobState


@dataclass(frozen=True)
class Submission:
    """What became of a submitted request.

    Attributes:
        job_id: The job's id.
        state: The job's state now.
        created: False if the very same request was known under this id already.
    """

    job_id: str
    state: JobState
    created: bool


@dataclass(frozen=True)
class Claim:
    """A job in hand, until its lease runs out.

    Attributes:
        job_id: The job's id.
        token: Fencing token; shown with every further step.
        attempts: How many workers have taken the job up, this one included.
        request: What is asked.
        submitted_at: UTC.
        waited_ms: Milliseconds between submission and claim, by Redis' clock.
        exhausted: The job has used its attempts up and is to be ended, not run.
        left_behind: What the worker before noted of pictures that it was about to write; empty if it did not.
    """

    job_id: str
    token: str
    attempts: int
    request: JobRequest
    submitted_at: datetime
    waited_ms: float
    exhausted: bool
    left_behind: str = ""


class Heartbeat(StrEnum):
    """The ledger's answer to a sign of life."""

    OK = "ok"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands. Carries no path: the request stays in the ledger.

    Attributes:
        job_id: The job's id.
        state: Its state.
        stage: What its worker is doing now; empty unless it is running.
        priority: `routine` or `urgent`.
        attempts: How many workers have taken it up.
        worker: Node that holds or held it; None if none did.
        submitted_at: UTC.
        finished_at: UTC; None while the job is open.
    """

    job_id: str
    state: JobState
    stage: str
    priority: str
    attempts: int
    worker: str | None
    submitted_at: datetime
    finished_at: datetime | None


def utc(milliseconds: str) -> datetime:
    """A moment as the ledger stores it, milliseconds since 1970."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def status_of(job_id: str, record: Mapping[str, str]) -> JobStatus:
    """Where a job stands, from its record's fields."""
    return JobStatus(
        job_id,
        JobState(record["state"]),
        record.get("stage", ""),
        record["priority"],
        int(record["attempts"]),
        record.get("worker"),
        utc(record["submitted_ms"]),
        utc(record["finished_ms"]) if "finished_ms" in record else None,
    )
