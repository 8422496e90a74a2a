"""What can go wrong on one machine, and the exit codes that say so."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import IntEnum

from contract.errors import OsteopanError


class ExitCode(IntEnum):
    """How `osteopan` ends."""

    #: Everything went well.
    OK = 0
    #: `demo`: the job failed, its result says why. `doctor`: something is wrong.
    FAILED = 1
    #: The command line is wrong; nothing was started.
    USAGE = 2
    #: A part could not be started, or ended too early.
    NOT_STARTED = 3
    #: Ended by Ctrl-C.
    INTERRUPTED = 130


class StartError(OsteopanError):
    """A part could not be started, or ended too early.

    Args:
        message: A sentence for a person.
        log: The last lines that the part wrote, oldest first.
    """

    def __init__(self, message: str, *, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = tuple(log)


class Stopped(BaseException):
    """Someone asked this program to end, by Ctrl-C, by SIGTERM or by closing the terminal.

    Like KeyboardInterrupt it is no `Exception`, so that nothing takes it for an error of the program and goes on.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 and the number of the signal."""
        return 128 + self.signal_number
