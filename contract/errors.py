"""Every error that osteopan raises across a boundary, and every code a failed job can carry.

The tree::

    OsteopanError
    ├── SettingsError            a setting is missing or out of range
    ├── BrokerUnavailableError   Redis cannot be reached, or does not let us in
    ├── InvalidRequestError      a request does not fit the contract
    ├── JobConflictError         the id is taken by another request
    ├── TooManyOpenJobsError     the ledger holds as many open jobs as it may
    ├── UnknownJobError          no job of this id, or it has expired
    ├── ResultTimeoutError       the result did not come in time; the job goes on
    ├── LeaseLostError           another worker holds the job, or it has ended
    └── JobError                 this job fails, with a code; the worker goes on
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a job failed. ``docs/contract.md`` says what to do about each."""

    INVALID_REQUEST = "invalid_request"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    NOT_A_RADIOGRAPH = "not_a_radiograph"
    PATH_NOT_ALLOWED = "path_not_allowed"
    DESTINATION_NOT_WRITABLE = "destination_not_writable"
    MODEL_UNAVAILABLE = "model_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"


class OsteopanError(Exception):
    """Base of the tree; its text is a sentence for a person."""


class SettingsError(OsteopanError):
    """A setting is missing or out of range."""


class BrokerUnavailableError(OsteopanError):
    """Redis cannot be reached, or does not let us in."""


class InvalidRequestError(OsteopanError):
    """A request does not fit the contract."""


class JobConflictError(OsteopanError):
    """The id is taken by another request."""


class TooManyOpenJobsError(OsteopanError):
    """The ledger holds as many open jobs as it may; submit again when some have finished."""


class UnknownJobError(OsteopanError):
    """No job of this id is known, or its record has expired."""


class ResultTimeoutError(OsteopanError):
    """The result did not come in time; the job itself goes on."""


class LeaseLostError(OsteopanError):
    """Another worker holds the job by now, or it has ended; whatever was done for it must be undone."""


class JobError(OsteopanError):
    """This job fails with a code and a sentence; the worker goes on with the next one.

    Args:
        code: For programs.
        message: For people.
        may_pass: The fault may be gone in a while (a disk or a network that does not answer), so that it is worth
            trying again.
    """

    def __init__(self, code: ErrorCode, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.may_pass = may_pass
