"""The exit codes of the command `producer`, and the errors that lead to them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Self

from contract.errors import (
    BrokerUnavailableError,
    InvalidRequestError,
    JobConflictError,
    OsteopanError,
    ResultTimeoutError,
    SettingsError,
    TooManyOpenJobsError,
    UnknownJobError,
)


class ExitCode(IntEnum):
    """What a script may rely on; `--help` shows the meanings."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Keep the sentence beside the number, so that help and program cannot part."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = 0, "all is well"
    SOME_FAILED = 1, "a job failed, or one of several requests was refused"
    USAGE = 2, "the command, a setting or a request is wrong; nothing was queued"
    NO_BROKER = 3, "Redis does not answer, or does not let us in"
    TIMED_OUT = 4, "the result is not there, or did not come in time; the job goes on"
    REFUSED = 5, "the id is taken by another request, too many jobs are open, or it is too late to cancel"
    UNKNOWN_JOB = 6, "no such job: the id is not known, not among the dead, or its record has expired"
    INTERRUPTED = 130, "stopped with Ctrl-C; the jobs go on"
    OUTPUT_CLOSED = 141, "whoever read the output has gone"


_CODE_OF_ERROR: Mapping[type[OsteopanError], ExitCode] = {
    InvalidRequestError: ExitCode.USAGE,
    SettingsError: ExitCode.USAGE,
    BrokerUnavailableError: ExitCode.NO_BROKER,
    ResultTimeoutError: ExitCode.TIMED_OUT,
    JobConflictError: ExitCode.REFUSED,
    TooManyOpenJobsError: ExitCode.REFUSED,
    UnknownJobError: ExitCode.UNKNOWN_JOB,
}


def exit_code_of(error: OsteopanError) -> ExitCode:
    """The exit code that goes with an error."""
    return next((code for kind, code in _CODE_OF_ERROR.items() if isinstance(error, kind)), ExitCode.SOME_FAILED)
