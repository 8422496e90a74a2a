"""`osteopan demo` with the real worker, the real producer and the real drawing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.jobs import RESEARCH_USE


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An empty folder to stand in, and a state folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    return {"cwd": folder, "env": {**os.environ, "OSTEOPAN_STATE_DIR": str(folder / "state")}}


def demo(surroundings: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", "demo", *arguments],
        **surroundings,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("run", ["first", "second"])
def test_the_demo_ends_with_the_result_and_two_pictures(surroundings: dict[str, Any], run: str) -> None:
    ended = demo(surroundings)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["result"] == "ok"
    assert result["warnings"] == ["demonstration_model"]
    assert Path(result["saliency_img_path"]).parent == surroundings["cwd"] / "demo-output"
    assert Path(result["overlay_img_path"]).stat().st_size > 100_000
    assert "synthetic radiographs alone" in ended.stderr
    assert RESEARCH_USE in ended.stderr


def test_ctrl_c_in_the_middle_leaves_nothing_running(surroundings: dict[str, Any]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "local", "demo"],
        **surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watched: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + 60
        # The engine's decoder is the last process to be started.
        while not any("decoder_child" in " ".join(child.cmdline()) for child in alive(watched.values())):
            assert time.monotonic() < deadline
            watched |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert psutil.wait_procs(watched.values(), timeout=10)[1] == []


def alive(processes: Any) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
