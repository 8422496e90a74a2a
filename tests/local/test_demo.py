"""The demonstration with stand-ins for the other roles, as a program that is ended in every way."""

from __future__ import annotations

import json
import signal
import stat
import sys

import pytest

from contract.jobs import RESEARCH_USE

OSTEOPAN = (sys.executable, "-m", "local")


def test_result_is_the_only_line_on_standard_output(start, tmp_path):
    program = start("demo", str(tmp_path), "work")
    assert program.wait() == 0
    result = json.loads(program.stdout)
    assert program.stdout.count("\n") == 1
    assert (result["result"], result["diagnosis"]) == ("ok", "Stand-in")
    steps = [
        "Drawing a synthetic radiograph",
        "Starting Redis",
        "Starting a worker (loads the network)",
        "Screening the radiograph",
    ]
    summary = [
        "Stand-in",
        "0.25",
        result["saliency_img_path"],
        result["overlay_img_path"],
        "synthetic radiographs alone",
        RESEARCH_USE,
    ]
    positions = [program.stderr.index(text) for text in steps + summary]
    assert positions == sorted(positions)
    assert (tmp_path / "synthetic-radiograph.png").is_file()
    assert program.left == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_failed_job_is_a_result_too(start, tmp_path):
    program = start("demo", str(tmp_path), "fail")
    assert program.wait() == 1
    assert json.loads(program.stdout)["error"]["code"] == "not_a_radiograph"
    assert "the stand-in was told to fail" in program.stderr
    assert program.left == []


def test_worker_that_cannot_start_is_shown_with_its_log(start, tmp_path):
    program = start("demo", str(tmp_path), "die")
    assert program.wait() == 3
    assert program.stdout == ""
    assert "| stand-in: there is no such model" in program.stderr
    assert "Error: the worker demo ended with code 1" in program.stderr
    assert "Traceback" not in program.stderr
    assert program.left == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_settings_for_another_queue_are_not_used(start, tmp_path, environment):
    environment |= {
        "OSTEOPAN_REDIS_URL": "redis://192.0.2.1:6379/0",
        "OSTEOPAN_KEY_PREFIX": "not valid!",
        "osteopan_lease_s": "not a number",
        "OSTEOPAN_MODEL": "model.pth",
    }
    program = start("demo", str(tmp_path), "work")
    assert program.wait() == 0, program.stderr
    assert "environment: OSTEOPAN_MODEL OSTEOPAN_REDIS_URL_FILE OSTEOPAN_STATE_DIR\n" in program.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_nothing_is_left_after_a_signal(start, tmp_path, number, code):
    program = start("demo", str(tmp_path), "hang")
    program.wait_for("environment: ")
    # valkey, worker, its child, producer
    assert len(program.family) >= 5
    program.popen.send_signal(number)
    assert program.wait() == code
    assert "Traceback" not in program.stderr
    assert program.stdout == ""
    assert program.left == []
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_nothing_is_left_after_kill_9(start, tmp_path, wait_until):
    program = start("demo", str(tmp_path), "hang")
    program.wait_for("environment: ")
    assert len(program.family) >= 5
    program.popen.kill()
    program.popen.wait()
    wait_until(lambda: program.left == [])
    # It cannot be removed; what it holds is for the owner's eyes only.
    (folder,) = (tmp_path / "temporary").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "missing.png"], "does not exist"),
        (["demo", "."], "is a directory"),
        (["demo", "--destination", "/dev/null/folder"], "cannot be made"),
    ],
)
def test_wrong_command_line_is_said_before_anything_is_started(start, arguments, message):
    program = start(*arguments, command=OSTEOPAN)
    assert program.wait() == 2
    assert message in " ".join(program.stderr.replace("│", " ").split())
    assert "Starting" not in program.stderr
    assert "Traceback" not in program.stderr
    assert len(program.family) == 1


def test_help_ends_with_commands(start):
    program = start("--help", command=OSTEOPAN)
    assert program.wait() == 0
    assert [line.strip() for line in program.stdout.splitlines() if line.strip()][-1] == "osteopan doctor"
