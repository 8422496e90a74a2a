"""The decoder's child process: same answers, deadlines, deaths, limits, and what it inherits."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from panoramic.decoder import DecoderProcess, _radiograph
from panoramic.errors import (
    DecoderTimeoutError,
    ImageError,
    ImageTooLargeError,
    ImageUnreadableError,
    NotARadiographError,
    PanoramicError,
)
from panoramic.image import Limits, View, read_radiograph

ROOT = Path(__file__).resolve().parents[2]


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def draw() -> np.ndarray:
    y, x = np.linspace(0, 1, 450)[:, None], np.linspace(-1, 1, 1000)[None]
    arch = 1 / (1 + np.exp((y - (1 - 0.55 * x**2)) * 20))
    return (20 + arch * (110 + 40 * np.sin(9 * x) * np.cos(7 * y))).astype(np.uint8)


GOOD = png(draw())
#: More than a pipe holds, so that writing it waits for the child.
LARGE = b"\x89PNG" + bytes(8 * 1024 * 1024)


@pytest.fixture(scope="module")
def shared() -> Iterator[DecoderProcess]:
    with DecoderProcess() as decoder:
        yield decoder


@pytest.fixture
def hasty() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=1.0) as decoder:
        yield decoder


def child(decoder: DecoderProcess) -> psutil.Process:
    assert decoder.pid is not None
    return psutil.Process(decoder.pid)


def test_the_answer_is_that_of_reading_here(shared: DecoderProcess) -> None:
    expected = read_radiograph(GOOD)
    for _ in range(3):
        radiograph = shared.read(GOOD)
        np.testing.assert_array_equal(radiograph.pixels, expected.pixels)
        assert radiograph.pixels.flags.c_contiguous
        assert (radiograph.format, radiograph.bit_depth, radiograph.warnings) == ("PNG", 8, expected.warnings)


def test_warnings_and_the_view_travel(shared: DecoderProcess) -> None:
    assert shared.read(png(255 - draw())).warnings == ("polarity_inverted",)
    assert shared.read(png(draw()[:400, 300:700]), view=View.CROP).warnings == ()
    with pytest.raises(NotARadiographError, match="full panoramic radiograph is"):
        shared.read(png(draw()[:400, 300:700]))


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", ImageUnreadableError, "empty"),
        (GOOD[:-100], ImageUnreadableError, "cut short"),
        (png(np.zeros((450, 1000), np.uint8)), NotARadiographError, "constant"),
        (png(np.zeros((8000, 8000), np.uint8)), ImageTooLargeError, "8000x8000 px"),
    ],
)
def test_refusals_travel_with_their_class_and_message(
    shared: DecoderProcess, data: bytes, kind: type[ImageError], reason: str
) -> None:
    before = shared.pid
    with pytest.raises(kind, match=reason) as caught:
        shared.read(data)
    assert type(caught.value) is kind
    assert shared.pid == before


def test_a_child_that_was_taken_over_cannot_send_what_no_result_can_hold() -> None:
    """Half of a surrogate pair is text in JSON, and none in UTF-8."""
    for header in (
        {"error": "ImageUnreadableError", "message": "no\ud800"},
        {"shape": [1, 1], "warnings": [], "format": "P\udfff", "bit_depth": 8},
    ):
        try:
            text = _radiograph(header, bytearray(1)).format
        except ImageUnreadableError as error:
            text = str(error)
        assert text in {"no?", "P?"}


def test_limits_travel() -> None:
    with DecoderProcess(limits=Limits(max_pixels=449_999, max_file_bytes=len(GOOD))) as decoder:
        with pytest.raises(ImageTooLargeError, match="1000x450 px"):
            decoder.read(GOOD)
        with pytest.raises(ImageTooLargeError, match=f"at most {len(GOOD)} are allowed"):
            decoder.read(GOOD + b"\0")


@pytest.mark.parametrize("data", [GOOD, LARGE], ids=["waiting for the answer", "writing the file"])
def test_the_deadline_holds_for_a_child_that_stands_still(hasty: DecoderProcess, data: bytes) -> None:
    stuck = child(hasty)
    stuck.suspend()
    began = time.monotonic()
    with pytest.raises(DecoderTimeoutError, match="longer to decode than the 1 s"):
        hasty.read(data)
    assert 0.9 < time.monotonic() - began < 5
    assert not stuck.is_running()
    assert hasty.read(GOOD).pixels.shape == (450, 1000)


@pytest.mark.parametrize("data", [GOOD, LARGE], ids=["waiting for the answer", "writing the file"])
def test_a_death_while_reading_is_an_error_and_the_next_read_works(data: bytes) -> None:
    with DecoderProcess() as decoder:
        doomed = child(decoder)
        doomed.suspend()
        timer = threading.Timer(0.3, doomed.kill)
        timer.start()
        with pytest.raises(ImageUnreadableError, match="The decoder died of this file"):
            decoder.read(data)
        timer.join()
        assert decoder.read(GOOD).pixels.shape == (450, 1000)
        assert decoder.pid != doomed.pid


def test_a_child_that_died_between_two_reads_is_replaced_unnoticed() -> None:
    with DecoderProcess() as decoder:
        decoder.read(GOOD)
        dead = child(decoder)
        dead.kill()
        psutil.wait_procs([dead], timeout=5)
        assert decoder.read(GOOD).pixels.shape == (450, 1000)


def test_memory_is_limited() -> None:
    wide = png(np.zeros((7000, 8000, 3), np.uint8), compress_level=1)
    with DecoderProcess(memory_bytes=512 * 1024 * 1024) as decoder:
        with pytest.raises(ImageTooLargeError, match="memory allowed for decoding does not suffice"):
            decoder.read(wide)
        assert decoder.read(GOOD).pixels.shape == (450, 1000)


def test_a_child_that_cannot_start_is_no_fault_of_the_file() -> None:
    decoder = DecoderProcess(memory_bytes=16 * 1024 * 1024)
    with pytest.raises(PanoramicError, match="does not start with 16777216 bytes") as caught:
        decoder.read(GOOD)
    assert not isinstance(caught.value, ImageError)
    assert decoder.pid is None


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)


class Interrupted(BaseException):
    """Stands for Ctrl-C or a time limit of the caller."""


def test_an_interrupted_read_leaves_no_answer_for_the_next() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted("time is up")

    with DecoderProcess() as decoder:
        child(decoder).suspend()
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted, match="time is up"):
                decoder.read(png(255 - draw()))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert decoder.read(GOOD).warnings == ()


def test_ctrl_c_and_the_end_of_the_block(shared: DecoderProcess) -> None:
    before = child(shared)
    before.send_signal(signal.SIGINT)
    assert shared.read(GOOD).format == "PNG"
    assert shared.pid == before.pid
    assert os.getpgid(before.pid) != os.getpgid(0)
    with DecoderProcess() as other:
        ended = child(other)
    assert not ended.is_running()
    assert other.pid is None
    other.close()


def test_an_exception_in_the_block_ends_the_child() -> None:
    decoder, ended = DecoderProcess(), []

    def fail() -> None:
        with decoder:
            ended.append(child(decoder))
            raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        fail()
    assert not ended[0].is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child on Linux only")
def test_the_child_dies_with_its_parent_even_if_it_reads_nothing() -> None:
    program = (
        "import os, signal, sys\n"
        "from panoramic.decoder import DecoderProcess\n"
        "decoder = DecoderProcess()\n"
        "decoder.start()\n"
        "os.kill(decoder.pid, signal.SIGSTOP)\n"
        "print(decoder.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run(program)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_gets_no_secret_no_gpu_no_pytorch_and_no_core_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEOPAN_REDIS_URL", "redis://worker:secret@localhost")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with DecoderProcess(memory_bytes=2 * 1024**3) as decoder:
        decoder.read(GOOD)
        process = child(decoder)
        environment = process.environ()
        assert not [value for value in environment.values() if "secret" in value]
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "cv2" in maps
        assert "torch" not in maps
        assert process.rlimit(psutil.RLIMIT_AS) == (2 * 1024**3, 2 * 1024**3)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{process.pid}/fd/2").readlink() == Path(os.devnull)
        assert Path(f"/proc/{process.pid}/fd/1").readlink() == Path(os.devnull)


def test_a_folder_beside_the_caller_does_not_pass_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("raise SystemExit('taken over')\n")
    monkeypatch.chdir(tmp_path)
    with DecoderProcess() as decoder:
        assert decoder.read(GOOD).format == "PNG"


def test_importing_the_decoder_imports_no_decoding_library() -> None:
    program = (
        "import sys, panoramic.decoder\n"
        "print(sorted({'cv2', 'PIL', 'pydicom', 'torch', 'multiprocessing'} & set(sys.modules)))\n"
    )
    done = run(program)
    assert done.stdout.strip() == "[]"
