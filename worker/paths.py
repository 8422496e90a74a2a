"""Which files a job may read and which folders it may write to.

A path is resolved and held against the allowed roots before it is opened, and once more by the open descriptor: a
link that is swapped in between gains nothing. All reading and writing then goes through that descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ErrorCode, JobError

#: Faults of disks and networks that may be gone in a while.
PASSING_FAULTS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


@dataclass(frozen=True)
class Destination:
    """A folder to write to.

    Attributes:
        path: As the request has it.
        descriptor: The open folder.
    """

    path: str
    descriptor: int


def read_input(img_path: str, *, roots: Sequence[Path], max_bytes: int) -> bytes:
    """Read a regular file that lies, links followed, under one of the roots.

    Raises:
        JobError: `path_not_allowed`, `image_not_found`, `image_unreadable` (no regular file, or no permission) or
            `image_too_large`.
    """
    _check_allowed(Path(img_path), roots, "img_path")
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
        descriptor = os.open(img_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _not_opened(error, img_path) from error
    try:
        _check_allowed(_path_of(descriptor), roots, "img_path")
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a device, pipe or socket"
            raise JobError(ErrorCode.IMAGE_UNREADABLE, f"{img_path} is {kind}; img_path must name one picture file")
        if about.st_size > max_bytes:
            raise JobError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{img_path} has {about.st_size / 2**20:.0f} MiB; at most {max_bytes / 2**20:.0f} MiB are read",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    except OSError as error:
        raise _unreadable(f"reading {img_path} failed", error) from error
    finally:
        os.close(descriptor)


@contextmanager
def open_destination(destination_path: str, *, roots: Sequence[Path]) -> Iterator[Destination]:
    """Open the folder for the pictures, made with its parents if it is missing.

    Raises:
        JobError: `path_not_allowed` or `destination_not_writable`.
    """
    _check_allowed(Path(destination_path), roots, "destination_path")
    try:
        Path(destination_path).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(destination_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise destination_error(destination_path, error) from error
    try:
        _check_allowed(_path_of(descriptor), roots, "destination_path")
        if not os.access(destination_path, os.W_OK | os.X_OK):
            raise JobError(
                ErrorCode.DESTINATION_NOT_WRITABLE,
                f"the worker may not write to destination_path {destination_path}; give it the right or another folder",
            )
        yield Destination(destination_path, descriptor)
    finally:
        os.close(descriptor)


def destination_error(destination_path: str, error: OSError) -> JobError:
    """Say why nothing can be written to a folder."""
    return JobError(
        ErrorCode.DESTINATION_NOT_WRITABLE,
        f"cannot write to destination_path {destination_path}: {error.strerror}; choose a folder that the worker may "
        "write to, on a disk that has room",
        may_pass=error.errno in PASSING_FAULTS,
    )


def _check_allowed(path: Path, roots: Sequence[Path], field: str) -> None:
    try:
        if not path.is_absolute():
            raise JobError(ErrorCode.PATH_NOT_ALLOWED, f"{field} {path} is relative; give an absolute path")
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:
        raise JobError(ErrorCode.PATH_NOT_ALLOWED, f"{field} {path} cannot be resolved: a loop of links?") from error
    except UnicodeEncodeError as error:
        raise JobError(ErrorCode.PATH_NOT_ALLOWED, f"{field} holds a character that no file name can") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        allowed = ", ".join(str(root) for root in roots)
        raise JobError(
            ErrorCode.PATH_NOT_ALLOWED,
            f"{field} {path} leads outside the folders that this worker may use ({allowed}); "
            "move the file, or have the worker's roots extended",
        )


def _not_opened(error: OSError, img_path: str) -> JobError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return JobError(
            ErrorCode.IMAGE_NOT_FOUND,
            f"there is no file {img_path} where the worker runs; check the path and that the folder is mounted there",
        )
    return _unreadable(f"the worker cannot open {img_path}", error)


def _unreadable(what: str, error: OSError) -> JobError:
    return JobError(ErrorCode.IMAGE_UNREADABLE, f"{what}: {error.strerror}", may_pass=error.errno in PASSING_FAULTS)


def _path_of(descriptor: int) -> Path:
    """Where an open descriptor really lies."""
    if sys.platform == "darwin":
        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(f"/proc/self/fd/{descriptor}").readlink()
