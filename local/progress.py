"""Tell a person on standard error what is being done: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text


class Progress:
    """Steps, remarks and errors for a person.

    Args:
        console: Where they are shown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str = "", *, style: str = "") -> None:
        """Show a line as it is: paths hold brackets, and a path that is broken in two cannot be copied."""
        self.console.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show the step while the block runs, and how long it took."""
        begin = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(Text(text)):
                yield
            self.say(f"✓ {text} ({time.monotonic() - begin:.1f} s)", style="green")
        else:
            self.say(f"{text} …")
            yield
            self.say(f"{text}: done in {time.monotonic() - begin:.1f} s")

    def fault(self, message: str, *, log: Sequence[str] = ()) -> None:
        """Show what went wrong, after the last lines that the part at fault wrote."""
        for line in log:
            self.say(f"  | {line}", style="dim")
        hint = " (the last lines of its log are above)" if log else ""
        self.say(f"Error: {message}{hint}", style="bold red")
