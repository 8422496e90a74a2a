from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import psutil
import pytest

from local.errors import Stopped
from local.processes import TAIL_LINES, Child, signals_raise_stopped, stop_all

IGNORES_SIGTERM = "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 0.1; done"
LEAVES_ONE_BEHIND = "sleep 1000 & echo $!; exit 3"


def shell(script: str, **options) -> Child:
    return Child("shell", ["/bin/sh", "-c", script], environment=os.environ, **options)


def wait_for_line(child: Child) -> str:
    deadline = time.monotonic() + 10
    while not child.tail:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return child.tail[0]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.01)


def test_child_that_ignores_sigterm_is_killed_with_what_it_started():
    with shell(IGNORES_SIGTERM, patience_s=0.3) as child:
        wait_for_line(child)
        family = psutil.Process(child.pid).children(recursive=True)
        assert family
    assert child.poll() == -signal.SIGKILL
    for process in family:
        wait_until_gone(process.pid)


def test_child_that_waits_for_a_second_sigterm_gets_it():
    script = "trap 'trap \"exit 5\" TERM' TERM; echo ready; while :; do sleep 0.05; done"
    with shell(script, patience_s=0.3) as child:
        wait_for_line(child)
    assert child.poll() == 5


def test_child_may_end_in_its_own_way():
    with shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done") as child:
        wait_for_line(child)
    assert child.poll() == 7
    assert child.tail == ("ready", "bye")


def test_what_an_ended_child_leaves_behind_is_ended():
    child = shell(LEAVES_ONE_BEHIND)
    assert child.wait() == 3
    wait_until_gone(int(child.tail[0]))


def test_child_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError, match="division"), shell("sleep 1000") as child:
        1 / 0  # noqa: B018
    assert child.poll() == -signal.SIGTERM


def test_children_are_stopped_at_the_same_time():
    children = [shell(IGNORES_SIGTERM, patience_s=0.6) for _ in range(4)]
    for child in children:
        wait_for_line(child)
    begin = time.monotonic()
    stop_all(children)
    assert time.monotonic() - begin < 4 * (0.6 + 1)
    assert [child.poll() for child in children] == [-signal.SIGKILL] * 4


def test_both_streams_are_logged_and_the_last_lines_kept():
    lines: list[str] = []
    child = shell(
        "echo out; echo err >&2; for i in $(seq 40); do echo $i; done; printf 'caf\\351\\n'", on_log=lines.append
    )
    assert child.wait() == 0
    assert lines[:2] == ["out", "err"]
    assert lines[-2:] == ["40", "caf\N{REPLACEMENT CHARACTER}"]
    assert child.tail == tuple(lines[-TAIL_LINES:])


def test_child_does_not_stop_at_a_log_that_cannot_be_written():
    def full(_line: str) -> None:
        raise OSError(28, "No space left on device")

    # More than a pipe holds.
    assert shell("for i in $(seq 20000); do echo $i; done", on_log=full).wait() == 0


def test_output_can_be_kept(tmp_path):
    with (tmp_path / "output").open("wb") as file:
        assert shell("echo answer", stdout=file).wait() == 0
    assert (tmp_path / "output").read_text() == "answer\n"


def test_missing_program_is_named():
    child = Child("nothing", ["/no/such/program"], environment=os.environ)
    assert child.wait() == 127
    assert child.tail == ("cannot run /no/such/program: No such file or directory",)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_child_ends_when_its_parent_is_killed():
    script = (
        "import os, time; from local.processes import Child\n"
        "child = Child('c', ['sleep', '1000'], environment=os.environ)\n"
        "print(child.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
    wait_until_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_raises_stopped(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name) as caught, signals_raise_stopped():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_second_signal_does_not_cut_the_cleaning_up_short():
    steps = []

    def clean_up() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        steps.append("cleaned up")

    opened = ExitStack()
    opened.callback(clean_up)
    with pytest.raises(Stopped, match="SIGTERM"), signals_raise_stopped(), opened:
        signal.raise_signal(signal.SIGTERM)
    assert steps == ["cleaned up"]


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_raise_stopped():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
