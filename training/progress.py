"""The progress bars of every command of `training`."""

from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressBars:
    """Bars on standard error that appear with the first thing done: a mistake is answered by its sentence alone.

    They are put down when all of them are full, since two displays at once cannot be and a training has its own; the
    end of the ``with`` block puts them down as well.

    Args:
        transient: Whether nothing of them stays when they are put down.
        console: Where they are shown, where that is not standard error alone.
    """

    def __init__(self, *, transient: bool = False, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console or Console(stderr=True), transient=transient)
        # Pictures are done in several threads.
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def add(self, what: str, *, total: int | None = None) -> "ProgressBar":
        """A bar that counts to `total`; None where that is not known yet."""
        return ProgressBar(self, self._progress.add_task(what, total=total))

    def stop(self) -> None:
        """Put the bars down, so that something else can be printed; the next thing done shows them again."""
        with self._lock:
            self._put_down()

    def update(self, task: TaskID, *, advance: int = 0, total: int | None = None) -> None:
        """Count on, or say how far there is to count."""
        with self._lock:
            if advance:
                self._progress.start()
            self._progress.update(task, advance=advance, total=total)
            if self._progress.finished:
                self._put_down()

    def _put_down(self) -> None:
        # To stop what was not started would print an empty line.
        if self._progress.live.is_started:
            self._progress.stop()


class ProgressBar:
    """One of `ProgressBars`."""

    def __init__(self, bars: ProgressBars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def expect(self, total: int) -> None:
        """Count to `total`."""
        self._bars.update(self._task, total=total)

    def advance(self, n: int = 1) -> None:
        """That many more are done."""
        self._bars.update(self._task, advance=n)
