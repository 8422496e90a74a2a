"""Files that appear whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from training.errors import ResourcesError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its own, then give it its name.

    Raises:
        ResourcesError: The disk is full or the folder cannot be written to; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as exc:
        raise ResourcesError(f"{path} was not written: {exc.strerror}; free some space or name another place") from exc
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
