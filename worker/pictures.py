"""The two PNG files of a result: their names, and how they appear whole or not at all.

A worker may be killed at any moment. So a file is written without a name, which the kernel forgets with the process,
and gets its name when it is whole; and before that a *note* goes to the ledger, by which whoever takes the job over can
remove what he finds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from worker.paths import Destination, destination_error

#: NAME_MAX of Linux, in bytes.
NAME_MAX_BYTES = 255

KINDS = ("saliency", "overlay")

#: Name, inode number and time of modification (ns) of a file; the name alone tells it where it is a random one.
_Entry = tuple[str, int | None, int | None]

#: What a file system says that has no files without a name (old kernels say that the folder is one).
_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
#: What a file system says that has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class _Draft:
    """A whole file that has no name yet, or a temporary one where the file system wants one.

    Attributes:
        folder: Descriptor of its folder.
        descriptor: Of the file.
        temporary: Its temporary name, or empty.
    """

    folder: int
    descriptor: int
    temporary: str

    def entry(self, name: str) -> _Entry:
        """What `remove_noted` tells this file by, under a name that could be another's by then."""
        about = os.fstat(self.descriptor)
        return name, about.st_ino, about.st_mtime_ns

    def publish(self, name: str) -> None:
        """Give it its name.

        Raises:
            FileExistsError: There is a file of this name.
        """
        if not self.temporary:
            os.link(f"/proc/self/fd/{self.descriptor}", name, dst_dir_fd=self.folder, follow_symlinks=True)
            return
        try:
            os.link(self.temporary, name, src_dir_fd=self.folder, dst_dir_fd=self.folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # FAT, some network shares: take the name, then put the file there.
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self.folder))
            try:
                os.rename(self.temporary, name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
            except OSError:
                _remove(self.folder, name)
                raise


def write_pictures(
    destination: Destination,
    stem: str,
    *,
    saliency: bytes,
    overlay: bytes,
    now: datetime,
    on_names: Callable[[str], None] = lambda _: None,
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
        on_names: Called with a note for `remove_noted` before a file gets a name, and with a longer one each time
            that another name is needed. If it raises, no file is left.

    Returns:
        Both paths, in the folder as the request names it.

    Raises:
        JobError: `destination_not_writable`; nothing is left behind.
    """
    folder = destination.descriptor
    noted: list[_Entry] = []

    def note(*entries: _Entry) -> None:
        noted.extend(entries)
        on_names(json.dumps(noted))

    try:
        with ExitStack() as stack:
            drafts = [stack.enter_context(_draft(folder, content, note)) for content in (saliency, overlay)]
            while True:
                names = [_name(stem, kind, now) for kind in KINDS]
                if not any(_is_taken(folder, name) for name in names):
                    note(*(draft.entry(name) for draft, name in zip(drafts, names, strict=True)))
                    if _publish(drafts, names):
                        break
                now += timedelta(seconds=1)
    except OSError as error:
        raise destination_error(destination.path, error) from error
    saliency_path, overlay_path = (str(Path(destination.path) / name) for name in names)
    return saliency_path, overlay_path


def remove_noted(destination: Destination, note: str) -> None:
    """Remove the files of a note, those that are there and are still the same ones.

    Args:
        destination: Their folder.
        note: As `write_pictures` gave it.

    Raises:
        JobError: `destination_not_writable`; some may be left.
    """
    folder = destination.descriptor
    try:
        for name, inode, modified_ns in json.loads(note):
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if inode is None or (about.st_ino, about.st_mtime_ns) == (inode, modified_ns):
                    os.unlink(name, dir_fd=folder)
    except OSError as error:
        raise destination_error(destination.path, error) from error


def _name(stem: str, kind: str, when: datetime) -> str:
    ending = f"_{kind}_{when:%Y%m%d%H%M%S}.png"
    room = NAME_MAX_BYTES - len(ending)
    return stem.encode()[:room].decode(errors="ignore") + ending


def _is_taken(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _publish(drafts: list[_Draft], names: list[str]) -> bool:
    """Give both files their names, or neither; False if one was taken meanwhile."""
    published: list[str] = []
    try:
        for draft, name in zip(drafts, names, strict=True):
            draft.publish(name)
            published.append(name)
        os.fsync(drafts[0].folder)
    except BaseException as error:
        for name in published:
            _remove(drafts[0].folder, name)
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


@contextmanager
def _draft(folder: int, content: bytes, note: Callable[[_Entry], None]) -> Iterator[_Draft]:
    """Write a file and have it on the disk; it vanishes at the end of the block unless it has been published."""
    descriptor, temporary = _open_draft(folder, note)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        yield _Draft(folder, descriptor, temporary)
    finally:
        os.close(descriptor)
        if temporary:
            _remove(folder, temporary)


def _open_draft(folder: int, note: Callable[[_Entry], None]) -> tuple[int, str]:
    flags = os.O_WRONLY | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o644, dir_fd=folder), ""
        except OSError as error:
            if error.errno not in _NO_NAMELESS_FILES:
                raise
    temporary = f".osteopan-{secrets.token_hex(8)}.tmp"
    note((temporary, None, None))
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder), temporary


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
