"""From what a person names (files, folders, JSON lines) to requests."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from contract.errors import InvalidRequestError
from contract.jobs import JOB_ID_PATTERN, JobRequest

#: Endings, in lower case, of the files taken from a folder. A file that is named itself may be called anything.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm"})

#: Longest line of JSON, in bytes: two paths of 4096 characters and the metadata, all written as \\uXXXX, fit.
LINE_MAX_BYTES = 128 * 1024

#: At most so many requests are read before they are asked for, and given at once.
LINES_AHEAD = 250

#: A DICOM file begins with 128 bytes for any purpose and these four (PS3.10 section 7.1).
DICOM_PREAMBLE_BYTES = 128
DICOM_MAGIC = b"DICM"

# The worker's own pictures, which must not be taken for radiographs when a folder is submitted a second time.
_OUTPUT_NAME = re.compile(r"_(saliency|overlay)_\d{14}.*\.png$", re.IGNORECASE)
# Files named by a DICOM UID look as if they ended in its last component.
_NO_REAL_SUFFIX = re.compile(r"^(\.\d+)?$")


class UndecodableNameError(InvalidRequestError):
    """The name of a picture is not UTF-8; other pictures are not affected."""


def checked_id(job_id: str) -> str:
    """The id, if it can be one.

    Raises:
        InvalidRequestError: It cannot; the text is not repeated, for it may be anything.
    """
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise InvalidRequestError(
            "not the id of a job: it has 1 to 64 letters, digits, dots, hyphens and underscores, "
            "the first a letter or digit"
        )
    return job_id


def with_absolute_paths(request: JobRequest) -> JobRequest:
    """The request with both paths absolute, against the current folder; links are left as they are.

    Raises:
        InvalidRequestError: A path gets too long by it, or the current folder is gone.
    """
    paths = {"img_path": request.img_path, "destination_path": request.destination_path}
    if all(Path(path).is_absolute() for path in paths.values()):
        return request
    try:
        absolute = {name: str(Path(path).absolute()) for name, path in paths.items()}
    except FileNotFoundError:
        raise InvalidRequestError(
            "the current folder is gone, so a relative path means nothing; give a full path"
        ) from (None)
    return JobRequest.parse({**request.model_dump(), **absolute})


def pictures_named(paths: Sequence[str], *, destination: Path, recursive: bool = False) -> list[Path]:
    """The pictures that paths name: a file is taken as it is, a folder stands for the pictures in it, sorted.

    Args:
        paths: Files and folders.
        destination: Folder of the results, which is not searched for pictures.
        recursive: Whether folders stand for what is in their sub-folders as well.

    Returns:
        Each picture once, in the order in which it is named.

    Raises:
        InvalidRequestError: A path does not exist, is neither file nor folder, or is a folder without a picture.
    """
    pictures: list[Path] = []
    for name in paths:
        path = Path(name)
        try:
            path.stat()
            if path.is_dir():
                found = sorted(_pictures_in(path, destination=destination, recursive=recursive))
                if not found:
                    raise InvalidRequestError(
                        f"{name}: no picture in this folder; {', '.join(sorted(PICTURE_SUFFIXES))} and DICOM files "
                        f"count{'' if recursive else ', and --recursive searches sub-folders'}"
                    )
                pictures += found
            elif path.is_file():
                pictures.append(path)
            else:
                raise InvalidRequestError(f"{name}: neither a file nor a folder")
        except OSError as error:
            raise InvalidRequestError(f"{name}: {error.strerror}") from error
    return list(dict.fromkeys(path.absolute() for path in pictures))


def _pictures_in(folder: Path, *, destination: Path, recursive: bool) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    results = os.path.realpath(destination)
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [
            name
            for name in folders
            if recursive and not name.startswith(".") and os.path.realpath(Path(parent, name)) != results
        ]
        yield from (path for path in (Path(parent, name) for name in names) if _is_picture(path))


def _is_picture(path: Path) -> bool:
    if path.name.startswith(".") or _OUTPUT_NAME.search(path.name) or not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in PICTURE_SUFFIXES or bool(_NO_REAL_SUFFIX.match(suffix) and _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(DICOM_PREAMBLE_BYTES + len(DICOM_MAGIC))[DICOM_PREAMBLE_BYTES:] == DICOM_MAGIC
    except PermissionError:
        return False


def request_for(picture: Path, *, destination: Path, **options: Any) -> JobRequest:
    """The request for one picture.

    Args:
        picture: The radiograph.
        destination: Folder for the results.
        options: Further fields of the contract; None stands for not given.

    Raises:
        UndecodableNameError: The picture's path is not UTF-8, so that JSON cannot carry it.
        InvalidRequestError: The destination's is not, or an option does not fit.
    """
    for path, kind in ((destination, InvalidRequestError), (picture, UndecodableNameError)):
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError:
            raise kind(f"{path}: the name is not UTF-8, and JSON cannot carry it; rename it") from None
    given = {name: value for name, value in options.items() if value is not None}
    request = JobRequest.parse({"img_path": str(picture), "destination_path": str(destination), **given})
    return with_absolute_paths(request)


def requests_in(stream: BinaryIO) -> Iterator[tuple[int, JobRequest | InvalidRequestError]]:
    """Read requests from JSON lines, as they come; an empty line is skipped, a bad one costs only itself.

    Args:
        stream: Lines of UTF-8.

    Yields:
        The number of a line, from 1, and its request or what is wrong with it.
    """
    number = 0
    while line := stream.readline(LINE_MAX_BYTES + 1):
        number += 1
        if len(line) > LINE_MAX_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_MAX_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, InvalidRequestError(f"longer than {LINE_MAX_BYTES} bytes")
        elif line.strip():
            try:
                yield number, with_absolute_paths(JobRequest.parse(line))
            except InvalidRequestError as error:
                yield number, error


class RequestReader:
    """Reads requests from JSON lines in a thread, so that whoever takes them need not wait for the next line.

    Args:
        descriptor: File descriptor to read from. It is left open, and the thread may go on reading until it ends.

    Attributes:
        at_end: Whether all requests have been taken.
    """

    def __init__(self, descriptor: int) -> None:
        self.at_end = False
        self._descriptor = descriptor
        self._read: queue.Queue[tuple[int, JobRequest | InvalidRequestError] | Exception | None]
        self._read = queue.Queue(LINES_AHEAD)
        threading.Thread(target=self._run, name="requests", daemon=True).start()

    def _run(self) -> None:
        # Not `sys.stdin.buffer`: Python waits at its end for whoever reads from that.
        with os.fdopen(self._descriptor, "rb", closefd=False) as stream:
            try:
                for numbered in requests_in(stream):
                    self._read.put(numbered)
                self._read.put(None)
            except Exception as error:  # noqa: BLE001 - it is raised again where the requests are taken
                self._read.put(error)

    def take(self, wait_s: float) -> list[tuple[int, JobRequest | InvalidRequestError]]:
        """What has been read, as `requests_in` gives it; empty if nothing came for so many seconds, or at the end."""
        taken: list[tuple[int, JobRequest | InvalidRequestError]] = []
        try:
            for _ in range(LINES_AHEAD):
                item = self._read.get(block=not taken and wait_s > 0, timeout=wait_s)
                if item is None:
                    self.at_end = True
                    break
                if isinstance(item, Exception):
                    raise item
                taken.append(item)
        except queue.Empty:
            pass
        return taken
