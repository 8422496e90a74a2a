"""A folder of results that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import ResourcesError


def check_new(out: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        ResourcesError: It exists and is not an empty folder.
    """
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as exc:
        raise ResourcesError(f"{out} cannot be looked at: {exc.strerror}; name another folder with --out") from exc
    if taken:
        raise ResourcesError(f"{out} exists and is not an empty folder: name a new one with --out, or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end and is removed if anything is raised.

    Args:
        out: The name it gets; its parents are made.

    Raises:
        ResourcesError: The name is taken, or the folder cannot be made.
    """
    check_new(out)
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as exc:
        raise ResourcesError(f"{out} cannot be made: {exc.strerror}; name another folder with --out") from exc
    try:
        yield partial
        try:
            partial.replace(out)
        except OSError as exc:
            raise ResourcesError(f"{out} was not written: {exc.strerror}; name another folder with --out") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
