"""What every command of `training` shares: exit codes, and faults told in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from panoramic.errors import PanoramicError
from training.errors import TrainingError

#: What the user gave cannot be used.
EXIT_USAGE = 2
#: Stopped by Ctrl-C: 128 + SIGINT, as a shell reports it.
EXIT_INTERRUPTED = 130


@contextmanager
def faults_told(left_behind: str = "nothing half-written is left behind") -> Iterator[None]:
    """Turn a fault of what the user gave into a sentence on standard error and an exit code.

    Args:
        left_behind: What an interruption leaves, for the sentence that is printed then.
    """
    try:
        yield
    except (TrainingError, PanoramicError, ValueError, OSError) as fault:
        sentence = str(fault)
        if isinstance(fault, OSError) and fault.strerror:
            # The operating system's own words: a number, a reason and a path, but no sentence.
            sentence = f"cannot use {fault.filename}: {fault.strerror}. Name another place"
        typer.echo(f"training: {sentence}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        typer.echo(f"training: stopped. {left_behind}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
