"""Look after real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

STAND_INS = Path(__file__).with_name("stand_ins.py")


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; who has ended and waits to be reaped by a container's first process does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(what: Callable[[], object], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


class Program:
    """A command in a process, the streams in files, and all processes that it ever had, as far as was looked."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.stdout_file, self.stderr_file = folder / "stdout.txt", folder / "stderr.txt"
        with self.stdout_file.open("wb") as out, self.stderr_file.open("wb") as err:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        self.family: set[psutil.Process] = {psutil.Process(self.popen.pid)}

    def look(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.popen.pid).children(recursive=True))
        return self.family

    def wait(self, timeout_s: float = 40.0) -> int:
        deadline = time.monotonic() + timeout_s
        while self.popen.poll() is None:
            assert time.monotonic() < deadline, self.stderr
            self.look()
            time.sleep(0.05)
        return self.popen.returncode

    def wait_for(self, text: str) -> None:
        def is_there() -> bool:
            assert self.popen.poll() is None or text in self.stderr, self.stderr
            return text in self.stderr

        wait_until(is_there)
        self.look()

    def find(self, part: str) -> psutil.Process:
        """The one living process whose command line has this part."""
        found = []
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_alive(process) and any(part in argument for argument in process.cmdline()):
                    found.append(process)
        found = [process for process in found if process.pid != self.popen.pid]
        assert len(found) == 1, (part, found)
        return found[0]

    @property
    def left(self) -> list[psutil.Process]:
        return [process for process in self.family if is_alive(process)]

    @property
    def stdout(self) -> str:
        return self.stdout_file.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Waits until a function returns something true."""
    return wait_until


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For programs: a state folder and a folder for temporary files of their own."""
    (tmp_path / "temporary").mkdir()
    return {**os.environ, "OSTEOPAN_STATE_DIR": str(tmp_path / "state"), "TMPDIR": str(tmp_path / "temporary")}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Program]]:
    """Starts `stand_ins.py` with arguments, or another command; ends it all after the test, whatever it did."""
    programs: list[Program] = []

    def start_program(*arguments: str, command: tuple[str, ...] = (sys.executable, str(STAND_INS))) -> Program:
        folder = tmp_path / f"program-{len(programs)}"
        folder.mkdir()
        programs.append(Program([*command, *arguments], folder, environment))
        return programs[-1]

    # A shell that starts the tests in the background ignores SIGINT, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield start_program
    finally:
        signal.signal(signal.SIGINT, before)
        for program in programs:
            program.look()
            program.popen.kill()
            program.popen.wait()
            for process in program.left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
