"""The two PNG files of a result: their names, and how they appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path

from worker.paths import Destination, destination_error

#: NAME_MAX of Linux, in bytes.
NAME_MAX_BYTES = 255


def write_pictures(
    destination: Destination, stem: str, *, saliency: bytes, overlay: bytes, now: datetime
) -> tuple[str, str]:
    """Write `<stem>_saliency_<YYYYmmddHHMMSS>.png` and `<stem>_overlay_<YYYYmmddHHMMSS>.png`.

    The names are the predecessor's. Where another job has taken them in the same second, the next free second
    is used, so that nothing is ever overwritten.

    Args:
        destination: The open folder.
        stem: The radiograph's file name without its ending.
        saliency: A PNG file.
        overlay: A PNG file.
        now: Local time.

    Returns:
        Both paths, in the folder as the request names it.

    Raises:
        JobError: `destination_not_writable`; nothing is left behind.
    """
    try:
        while True:
            names = [_name(stem, kind, now) for kind in ("saliency", "overlay")]
            written: list[str] = []
            try:
                for name, content in zip(names, (saliency, overlay), strict=True):
                    _write_new(destination.descriptor, name, content)
                    written.append(name)
            except FileExistsError:
                _remove(destination.descriptor, written)
                now += timedelta(seconds=1)
            except BaseException:
                _remove(destination.descriptor, written)
                raise
            else:
                os.fsync(destination.descriptor)
                saliency_path, overlay_path = (str(Path(destination.path) / name) for name in names)
                return saliency_path, overlay_path
    except OSError as error:
        raise destination_error(destination.path, error) from error


def remove_pictures(*paths: str) -> None:
    """Take back the pictures of a job that turned out to belong to another worker."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def _name(stem: str, kind: str, when: datetime) -> str:
    ending = f"_{kind}_{when:%Y%m%d%H%M%S}.png"
    room = NAME_MAX_BYTES - len(ending)
    return stem.encode()[:room].decode(errors="ignore") + ending


def _write_new(folder: int, name: str, content: bytes) -> None:
    """Make a file in one step, from nothing to whole; it must not exist.

    Raises:
        FileExistsError: There is one of this name.
    """
    temporary = f".osteopan-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without hard links (FAT, some network shares): take the name, then put the file there.
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder))
            try:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                _remove(folder, [name])
                raise
    finally:
        _remove(folder, [temporary])


def _remove(folder: int, names: list[str]) -> None:
    for name in names:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue
