"""Child processes of which nothing survives: not the end of this program, nor an exception, nor `kill -9` (on Linux).

Each child leads its own session. So Ctrl-C reaches this program alone, which then stops its children in order; and
what a child starts can be ended with it, as one process group. For `kill -9` see `die_with_parent`; a child's own
children must see to that themselves (those of Celery's prefork pool do).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from local.errors import Stopped

#: How many lines of its log a child leaves for an error message.
TAIL_LINES = 15

_SHIM = Path(__file__).with_name("die_with_parent.py")
_POLL_S = 0.05
#: Between the second SIGTERM and SIGKILL, in seconds. A worker takes the second for "now, not after this job", and
#: ends its own children, which lead sessions of their own and are not of its group.
_INSISTENCE_S = 1.0
#: What an ended child's log reader may take to come to the end of the pipe, in seconds.
_READER_END_S = 2.0


class Child:
    """One running process, and what it starts. Leaving the `with` block stops it.

    Args:
        name: What to call it in messages.
        command: Program and arguments.
        environment: Its whole environment.
        on_log: Takes each line that it writes, on either stream, without the line's end.
        stdout: If given, its standard output goes there and its standard error is ours; nothing is logged.
        patience_s: What `stop` leaves it for ending in its own way, in seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        on_log: Callable[[str], None] | None = None,
        stdout: IO[bytes] | None = None,
        patience_s: float = 10.0,
    ) -> None:
        self.name = name
        self.patience_s = patience_s
        self._on_log = on_log
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reader: threading.Thread | None = None
        self._swept = False
        self._process = subprocess.Popen(  # noqa: S603 - the command is this program's own, and no shell reads it
            [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=None if stdout else subprocess.STDOUT,
            start_new_session=True,
        )
        if self._process.stdout is not None:
            self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group and session."""
        return self._process.pid

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines that it wrote, oldest first."""
        return tuple(self._tail)

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number if one ended it), or None while it runs."""
        code = self._process.poll()
        if code is not None and not self._swept:
            self._swept = True
            # At once: later the system may have given the group's number to someone else.
            self._kill_group()
            if self._reader is not None:
                self._reader.join(_READER_END_S)
        return code

    def wait(self, while_waiting: Callable[[], None] = lambda: None) -> int:
        """Wait for its end; returns the exit code.

        Args:
            while_waiting: Called over and over; may raise.
        """
        while (code := self.poll()) is None:
            while_waiting()
            time.sleep(_POLL_S)
        return code

    def stop(self) -> None:
        """Ask it to end, ask again after `patience_s`, and soon after that kill it and what is left of its group."""
        stop_all([self])

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and its group."""
        if self.poll() is None:
            self._kill_group()
            self._process.wait()
            self.poll()

    def _kill_group(self) -> None:
        # Linux says that nobody is left by ProcessLookupError, macOS by PermissionError.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\r\n")
                self._tail.append(line)
                if self._on_log is not None:
                    try:
                        self._on_log(line)
                    except OSError:
                        # A full disk or a closed terminal: go on reading, or the child stops at a full pipe.
                        self._on_log = None


def stop_all(children: Iterable[Child]) -> None:
    """Stop several children at the same time, each with its own patience."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    insisted: set[int] = set()
    begin = time.monotonic()
    while running := [child for child in running if child.poll() is None]:
        for child in running:
            overdue_s = time.monotonic() - begin - child.patience_s
            if overdue_s > _INSISTENCE_S:
                child.kill()
            elif overdue_s > 0 and child.pid not in insisted:
                insisted.add(child.pid)
                child.terminate()
        time.sleep(_POLL_S)


@contextlib.contextmanager
def signals_raise_stopped() -> Iterator[None]:
    """In the block, the first SIGINT, SIGTERM or SIGHUP raises `Stopped`; those that follow are passed over.

    A second Ctrl-C would otherwise cut the cleaning up short. A signal that is ignored already (`nohup`) stays so.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def pass_over(_number: int, _frame: FrameType | None) -> None:
        pass

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, pass_over)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
