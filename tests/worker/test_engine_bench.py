"""`worker bench` says what runs the network and how long each stage takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.settings import Settings
from panoramic.native.tiles import LANES
from worker.screening import STAGES


def bench(environment: Any, settings: Settings, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "bench", *arguments],
        env=environment(settings, **extra),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize(
    ("asked", "name"),
    [("auto", "native" if LANES else "onnx"), ("onnx", "onnx"), ("pytorch", "pytorch"), ("reference", "reference")],
)
def test_the_runtime_and_its_difference_are_told(
    environment: Any, node_settings: Settings, phantom: Path, asked: str, name: str
) -> None:
    arguments = (str(phantom), "--repetitions", "1", "--batch-sizes", "1,2")
    ended = bench(environment, node_settings, *arguments, OSTEOPAN_RUNTIME=asked)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["runtime"]["name"] == name
    assert found["runtime"]["max_probability_difference"] <= 1e-3
    assert found["runtime"]["max_map_difference"] <= 1e-2
    assert set(found["stages_ms"]) == set(STAGES)
    assert found["picture_ms"] >= max(found["stages_ms"].values())
    assert set(found["network_pictures_per_s"]) == {"1", "2"}


def test_a_wrong_picture_is_answered_with_a_sentence(environment: Any, node_settings: Settings, tmp_path: Path) -> None:
    ended = bench(environment, node_settings, str(tmp_path / "nowhere.png"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("worker: ")
    assert "Traceback" not in ended.stderr
