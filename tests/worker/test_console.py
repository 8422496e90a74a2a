"""The predecessor's protocol, with a predecessor's checkpoint: lines in, lines out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image

FAIL = {"result": "fail", "diagnosis": "", "saliency_img_path": "", "overlay_img_path": ""}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the predecessor leaves behind: a plain state dict whose head still has 1000 outputs."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "efficientnet-b0_FULL_IMG_C1_C3_Batch4_100Ep.pth"
    torch.save(EfficientNet.from_name("efficientnet-b0").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def console(checkpoint: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "console", str(checkpoint)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Loaded pretrained weights\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def ask(console: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert console.stdin is not None
    assert console.stdout is not None
    console.stdin.write(line + "\n")
    console.stdin.flush()
    answer: dict[str, Any] = json.loads(console.stdout.readline())
    return answer


def test_a_radiograph_is_answered_with_the_four_keys(
    console: subprocess.Popen[str], phantom: Path, tmp_path: Path
) -> None:
    answer = ask(console, json.dumps({"img_path": str(phantom), "destination_path": str(tmp_path)}))
    assert list(answer) == ["result", "diagnosis", "saliency_img_path", "overlay_img_path"]
    assert answer["result"] == "ok"
    assert answer["diagnosis"] in ("Healthy Patient", "Patient with Osteoporosis")
    for kind in ("saliency", "overlay"):
        path = Path(answer[f"{kind}_img_path"])
        assert path.parent == tmp_path
        assert path.name.startswith(f"{phantom.stem}_{kind}_20")
        with Image.open(path) as picture:
            picture.load()


def test_paths_may_be_relative_and_come_back_so(
    console: subprocess.Popen[str], phantom: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import os

    relative = os.path.relpath(tmp_path)
    answer = ask(console, json.dumps({"img_path": os.path.relpath(phantom), "destination_path": relative}))
    assert answer["result"] == "ok"
    assert answer["overlay_img_path"].startswith(relative)
    assert Path(answer["overlay_img_path"]).exists()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not JSON",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        '{"img_path": "a.jpg"}',
        '{"img_path": 7, "destination_path": "out"}',
        '{"img_path": "missing.jpg", "destination_path": "/tmp"}',
        '{"img_path": "/dev/null", "destination_path": "/tmp"}',
        '{"img_path": "/etc", "destination_path": "/tmp"}',
        '{"img_path": "\\u0000", "destination_path": "/tmp"}',
        '{"img_path": "\\ud800", "destination_path": "/tmp"}',
    ],
)
def test_any_fault_is_answered_with_fail_and_the_next_line_is_served(
    console: subprocess.Popen[str], phantom: Path, tmp_path: Path, line: str
) -> None:
    assert ask(console, line) == FAIL
    if line == "":
        answer = ask(console, json.dumps({"img_path": str(phantom), "destination_path": str(tmp_path)}))
        assert answer["result"] == "ok"


def test_fields_that_the_predecessor_would_pass_over_are_passed_over(
    console: subprocess.Popen[str], phantom: Path, tmp_path: Path
) -> None:
    line = {"img_path": str(phantom), "destination_path": str(tmp_path), "patient": "x"}
    assert ask(console, json.dumps(line))["result"] == "ok"


def test_causes_are_said_on_standard_error(checkpoint: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "console", str(checkpoint)],
        input='{"img_path": "/missing.jpg", "destination_path": "/tmp"}\n',
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0
    assert json.loads(ended.stdout) == FAIL
    assert ended.stderr.splitlines()[0] == "Loaded pretrained weights"
    assert "image_not_found: there is no file /missing.jpg" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_fault_of_the_system_is_answered_too(checkpoint: Path, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    lines = [
        {"img_path": "a.jpg", "destination_path": "b"},
        {"img_path": str(phantom), "destination_path": str(tmp_path)},
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "console", str(checkpoint)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        # Relative paths now lead nowhere at all.
        folder.rmdir()
        answers, remarks = process.communicate("".join(json.dumps(line) + "\n" for line in lines), timeout=120)
    assert "internal_error: FileNotFoundError" in remarks
    first, second = (json.loads(line) for line in answers.splitlines())
    assert first == FAIL
    assert second["result"] == "ok"


def test_a_file_that_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"garbage")
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "console", str(tmp_path / "model.pth")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "model.pth" in ended.stderr
    assert "Traceback" not in ended.stderr
