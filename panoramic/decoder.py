"""Decodes strangers' files in a child process that may die: a bomb or a crash costs that file alone.

The child (`panoramic.decoder_child`) has a limit on its address space, no GPU, none of its parent's environment beyond
what Python needs (so no passwords), and its standard error, where libraries print what they read, goes nowhere.

Each way a message is one frame: the lengths of its two parts (network byte order), a JSON header, and raw bytes.
Nothing is pickled, and what comes back is checked, for the child may have been taken over by what it read::

    parent → child    {"view", "limits"}                                + the file
    child → parent    {"ready"}                                         once, after its imports
                      {"shape", "format", "bit_depth", "warnings"}      + the pixels, row by row
                      {"error", "message"}

This module imports no decoding library, and neither it nor the child imports PyTorch.
"""

import contextlib
import json
import os
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from panoramic.errors import (
    DecoderTimeoutError,
    ImageError,
    ImageTooLargeError,
    ImageUnreadableError,
    NotARadiographError,
    PanoramicError,
)
from panoramic.radiograph import ImageWarning, Limits, Radiograph, refuse_file_size
from panoramic.view import View

DEFAULT_TIMEOUT_S = 20.0
DEFAULT_MEMORY_BYTES = 4 * 1024**3
#: The child's imports take about a second; a laden machine needs longer.
START_TIMEOUT_S = 60.0
#: How long a child that is told to end may take before it is killed.
STOP_TIMEOUT_S = 1.0

#: Lengths of header and body, bytes.
FRAME = struct.Struct("!IQ")
MAX_HEADER_BYTES = 64 * 1024
MAX_MESSAGE_CHARACTERS = 1000
CHUNK_BYTES = 1024 * 1024
#: What Python and the loader need to start; everything else of the parent's environment stays with the parent.
PASSED_VARIABLES = frozenset(
    {
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONHOME",
        "PYTHONPATH",
        "TMPDIR",
        "VIRTUAL_ENV",
    }
)
#: No GPU; and one thread, since each would reserve its share of the address space.
CHILD_VARIABLES = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
#: What the child may report. A name that is not here is not believed.
ERRORS = {kind.__name__: kind for kind in (ImageUnreadableError, ImageTooLargeError, NotARadiographError)}


class _DecoderDiedError(Exception):
    """The child closed its end of a pipe, or sent what is no answer."""


class _OutOfTimeError(Exception):
    """The deadline passed."""


class DecoderProcess:
    """A child process that decodes one file after another.

    Use it as a context manager, or call `start` and `close`. A child that died or was killed is replaced at the next
    `read`. It belongs to one thread: Linux ends it when the thread that started it ends, and reads may not overlap.

    Args:
        timeout_s: From handing over a file to having its pixels.
        memory_bytes: Limit on the child's address space (on Linux), the libraries' 0.4 GiB included.
        limits: Largest and smallest sizes.
    """

    def __init__(
        self,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        limits: Limits | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child, unless it runs, and wait until its imports are done.

        Raises:
            PanoramicError: It does not start; that is a fault of the installation and not of a file.
        """
        self._started()

    def read(self, data: bytes, *, view: View = View.FULL) -> Radiograph:
        """Decode and check a file, as `panoramic.image.read_radiograph` does.

        Args:
            data: The whole file.
            view: What the picture should show.

        Raises:
            ImageError: As `panoramic.image.read_radiograph`; ``ImageUnreadableError`` also if the child died of it.
            DecoderTimeoutError: It took longer than ``timeout_s``; the child is killed.
            PanoramicError: A new child does not start.
        """
        refuse_file_size(len(data), self.limits)
        child = self._started()
        deadline = time.monotonic() + self.timeout_s
        try:
            header = {"view": View(view).value, "limits": asdict(self.limits)}
            _send(child.stdin, (frame(header, len(data)), data), deadline)
            return _radiograph(*_receive(child.stdout, deadline, max_body_bytes=self.limits.max_pixels))
        except _OutOfTimeError:
            self._kill()
            raise DecoderTimeoutError(
                f"The picture took longer to decode than the {self.timeout_s:g} s that are allowed. "
                "Export it again, as PNG or uncompressed."
            ) from None
        except _DecoderDiedError:
            self._kill()
            raise ImageUnreadableError(
                "The decoder died of this file: the file is damaged, or takes more memory than the "
                f"{self.memory_bytes} bytes that are allowed. Export it again."
            ) from None
        except ImageError:
            raise
        except BaseException:
            # Whatever interrupted the exchange, the rest of it would be taken for the answer to the next file.
            self._kill()
            raise

    def close(self) -> None:
        """End the child; harmless if there is none."""
        if self._child is None:
            return
        if self._child.stdin:
            self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(STOP_TIMEOUT_S)
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child and self._child.poll() is None:
            return self._child
        self._kill()
        child = self._child = self._spawn()
        try:
            _receive(child.stdout, time.monotonic() + START_TIMEOUT_S, max_body_bytes=0)
        except (_DecoderDiedError, _OutOfTimeError):
            self._kill()
            raise PanoramicError(
                f"The decoder process does not start with {self.memory_bytes} bytes of memory (the libraries alone "
                "take 0.4 GiB). Allow more, or run `python -m panoramic.decoder_child` to see what else is wrong."
            ) from None
        except BaseException:
            self._kill()
            raise
        return child

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parent.parent)
        environment = {name: value for name, value in os.environ.items() if name in PASSED_VARIABLES} | CHILD_VARIABLES
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        # -P: a folder in the working directory must not pass for one of the libraries.
        command = [sys.executable, "-P", "-m", "panoramic.decoder_child", str(self.memory_bytes), str(os.getpid())]
        child = subprocess.Popen(  # noqa: S603 - no part of the command comes from a file or a request
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            # A terminal's Ctrl-C goes to the parent's group, from the first moment on.
            process_group=0,
        )
        for pipe in (child.stdin, child.stdout):
            if pipe:
                os.set_blocking(pipe.fileno(), False)
        return child

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()


def frame(header: dict[str, Any], body_bytes: int = 0) -> bytes:
    """Return a frame up to its body, which follows by itself, for it may be large."""
    encoded = json.dumps(header).encode()
    return FRAME.pack(len(encoded), body_bytes) + encoded


def _send(pipe: IO[bytes] | None, parts: tuple[bytes, ...], deadline: float) -> None:
    """Write without blocking: a child that has stopped reading must not hold up the deadline."""
    with selectors.DefaultSelector() as selector:
        descriptor = selector.register(pipe or -1, selectors.EVENT_WRITE).fd
        for part in parts:
            rest = memoryview(part)
            while rest:
                _wait(selector, deadline)
                try:
                    rest = rest[os.write(descriptor, rest[:CHUNK_BYTES]) :]
                except BrokenPipeError:
                    raise _DecoderDiedError from None


def _receive(pipe: IO[bytes] | None, deadline: float, *, max_body_bytes: int) -> tuple[dict[str, Any], bytearray]:
    with selectors.DefaultSelector() as selector:
        descriptor = selector.register(pipe or -1, selectors.EVENT_READ).fd

        def exactly(count: int) -> bytearray:
            buffer = bytearray(count)
            rest = memoryview(buffer)
            while rest:
                _wait(selector, deadline)
                got = os.readv(descriptor, [rest])
                if not got:
                    raise _DecoderDiedError
                rest = rest[got:]
            return buffer

        header_bytes, body_bytes = FRAME.unpack(exactly(FRAME.size))
        if header_bytes > MAX_HEADER_BYTES or body_bytes > max_body_bytes:
            raise _DecoderDiedError
        try:
            header: dict[str, Any] = json.loads(exactly(header_bytes))
        except (ValueError, RecursionError):
            raise _DecoderDiedError from None
        return header, exactly(body_bytes)


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    if not selector.select(max(0.0, deadline - time.monotonic())) or time.monotonic() > deadline:
        raise _OutOfTimeError


def _radiograph(header: dict[str, Any], body: bytearray) -> Radiograph:
    """Take the child's answer apart.

    Raises:
        ImageError: The child refused the file.
        _DecoderDiedError: The answer is none of those that the child gives while it is sound.
    """
    try:
        if "error" in header:
            error = ERRORS[header["error"]](_text(header["message"])[:MAX_MESSAGE_CHARACTERS])
        else:
            height, width = header["shape"]
            warnings = tuple(ImageWarning(code) for code in header["warnings"])
            pixels = np.frombuffer(body, np.uint8).reshape(height, width)
            return Radiograph(pixels, warnings, _text(header["format"])[:16], int(header["bit_depth"]))
    except (KeyError, TypeError, ValueError):
        raise _DecoderDiedError from None
    raise error


def _text(value: object) -> str:
    """A text that can be written down: JSON may hold halves of surrogate pairs, and UTF-8 may not."""
    return str(value).encode("utf-8", "replace").decode()
