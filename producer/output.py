"""Lines on standard output and standard error, whoever may be reading them."""

from __future__ import annotations

import os
import sys

from contract.errors import OsteopanError


class OutputClosedError(Exception):
    """Whoever read standard output has gone."""


def printable(text: str) -> str:
    """The text without what a terminal would obey, or could not show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def emit(text: str, *, encoding: str | None = None) -> None:
    """Write a line to standard output at once: whoever reads it may be waiting for it.

    Args:
        text: The line.
        encoding: Of the bytes written; None is the terminal's, in which what it cannot show is escaped.

    Raises:
        OutputClosedError: Nobody reads it any more.
        OsteopanError: It cannot be written, for instance because a disk is full.
    """
    try:
        sys.stdout.buffer.write(f"{text}\n".encode(encoding or sys.stdout.encoding, "backslashreplace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python flushes once more at its end, and would complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputClosedError from None
        raise OsteopanError(f"cannot write to standard output: {error.strerror}") from error


def note(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{printable(text)}\n")
