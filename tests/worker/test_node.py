"""The main job through a real node: the command line's worker, real Redis, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
from PIL import Image

from contract.jobs import JobResult, JobState
from contract.settings import Settings
from panoramic.demonstration import demonstration_model
from panoramic.model_file import load_model

Wait = Callable[..., Any]
PREDECESSOR_KEYS = ["result", "diagnosis", "saliency_img_path", "overlay_img_path"]


def screen(node: Any, img_path: Path | str, destination: Path | str, **fields: Any) -> JobResult:
    """Submit one job and wait for its result."""
    with node.client() as client:
        job = client.submit({"img_path": str(img_path), "destination_path": str(destination), **fields})
        return client.result(job.job_id, wait_s=60)


def test_a_radiograph_gets_a_diagnosis_and_two_pictures(node: Any, phantom: Path, tmp_path: Path) -> None:
    result = screen(node, phantom, tmp_path / "out", metadata={"order": 17})

    assert result.result == "ok"
    assert result.error is None
    assert result.diagnosis in ("Healthy Patient", "Patient with Osteoporosis")
    assert result.probability is not None
    assert result.threshold == load_model(demonstration_model()).manifest.threshold
    assert (result.probability >= result.threshold) == (result.diagnosis == "Patient with Osteoporosis")
    assert result.warnings == ("demonstration_model",)
    assert result.model is not None
    assert "For research use only" in result.model.intended_use
    assert result.explanation is not None
    assert result.explanation.class_label == result.diagnosis
    assert result.metadata == {"order": 17}
    assert result.worker == node.name
    assert result.attempts == 1
    assert list(result.timings_ms) == ["queued", "read", "background", "network", "pictures", "engine"]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        Path(path).name for path in (result.saliency_img_path, result.overlay_img_path)
    )
    with Image.open(phantom) as original, Image.open(result.saliency_img_path) as saliency:
        assert saliency.size == original.size
        assert len(np.unique(np.asarray(saliency))) > 20, "the map shows nothing"


def test_any_system_reads_the_result_with_a_plain_get(node: Any, phantom: Path, tmp_path: Path) -> None:
    result = screen(node, phantom, tmp_path)
    with redis.Redis.from_url(node.settings.broker_url()) as client:
        document = json.loads(client.get(f"osteopan:result:{result.job_id}"))
        assert list(document)[:4] == PREDECESSOR_KEYS
        assert document["explanation"]["class"] == result.diagnosis
        assert 0 < client.ttl(f"osteopan:result:{result.job_id}") <= 7 * 24 * 3600
        entries = [fields for _, fields in client.xrange("osteopan:results")]
        assert {b"job_id": result.job_id.encode(), b"state": b"done"} in entries


def test_the_same_picture_gets_the_same_answer_twice(node: Any, phantom: Path, tmp_path: Path) -> None:
    first, second = (screen(node, phantom, tmp_path) for _ in range(2))
    assert first.probability == second.probability
    assert first.saliency_img_path != second.saliency_img_path
    assert Path(first.overlay_img_path).read_bytes() == Path(second.overlay_img_path).read_bytes()


def test_names_may_hold_anything(node: Any, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "here" – пано 全景'
    folder.mkdir()
    picture = folder / "ünï 'code' $(x).jpg"
    picture.write_bytes(phantom.read_bytes())
    result = screen(node, picture, folder / "out put")
    assert result.result == "ok"
    assert Path(result.overlay_img_path).name.startswith("ünï 'code' $(x)_overlay_")


def make_text(folder: Path) -> Path:
    path = folder / "text.jpg"
    path.write_text("this is no picture")
    return path


def make_html(folder: Path) -> Path:
    path = folder / "page.jpg"
    path.write_text("<html><body>no</body></html>")
    return path


def make_empty(folder: Path) -> Path:
    path = folder / "empty.png"
    path.touch()
    return path


def make_bomb(folder: Path) -> Path:
    path = folder / "bomb.png"
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", (40000, 40000)).save(path)
    Image.MAX_IMAGE_PIXELS = limit
    return path


def make_cat(folder: Path) -> Path:
    from skimage.data import chelsea

    path = folder / "cat.png"
    Image.fromarray(chelsea()).resize((1800, 1200)).save(path)
    return path


def make_black(folder: Path) -> Path:
    path = folder / "black.png"
    Image.new("L", (2000, 900)).save(path)
    return path


def make_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "missing.png", "image_not_found"),
        (lambda folder: folder, "image_unreadable"),
        (make_empty, "image_unreadable"),
        (make_text, "image_unreadable"),
        (make_html, "image_unreadable"),
        (make_fifo, "image_unreadable"),
        (make_bomb, "image_too_large"),
        (make_cat, "not_a_radiograph"),
        (make_black, "not_a_radiograph"),
    ],
)
def test_bad_input_gets_a_code_and_the_node_goes_on(
    node: Any, phantom: Path, tmp_path: Path, make: Callable[[Path], Path], code: str
) -> None:
    result = screen(node, make(tmp_path), tmp_path / "out")
    assert result.result == "fail"
    assert (result.diagnosis, result.saliency_img_path, result.overlay_img_path) == ("", "", "")
    assert result.error is not None
    assert result.error.code.value == code
    assert len(result.error.message) > 30, "a sentence that says what to do"
    assert not (tmp_path / "out").exists()
    assert screen(node, phantom, tmp_path / "out").result == "ok"


def test_a_truncated_picture_is_not_classified(node: Any, phantom: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(phantom.read_bytes()[: phantom.stat().st_size // 2])
    result = screen(node, cut, tmp_path)
    assert result.error is not None
    assert result.error.code.value == "image_unreadable"


def test_a_destination_that_cannot_be_written_is_said(node: Any, phantom: Path) -> None:
    result = screen(node, phantom, "/proc/osteopan")
    assert result.error is not None
    assert result.error.code.value == "destination_not_writable"


def test_a_model_that_is_not_loaded_is_said_with_those_that_are(node: Any, phantom: Path, tmp_path: Path) -> None:
    result = screen(node, phantom, tmp_path, model="another")
    assert result.error is not None
    assert result.error.code.value == "model_unavailable"
    assert "demonstration-b0" in result.error.message


def test_urgent_jobs_go_first(node: Any, phantom: Path, tmp_path: Path) -> None:
    with node.client() as client:
        routine = [
            client.submit({"img_path": str(phantom), "destination_path": str(tmp_path)}).job_id for _ in range(4)
        ]
        urgent = client.submit(
            {"img_path": str(phantom), "destination_path": str(tmp_path), "priority": "urgent"}
        ).job_id
        ended = [result.job_id for result in client.results([*routine, urgent], timeout_s=120)]
    # One routine job runs already, and the node may hold the message of another.
    assert ended.index(urgent) <= 2


def test_a_queued_job_can_be_cancelled(node: Any, phantom: Path, tmp_path: Path) -> None:
    with node.client() as client:
        jobs = [client.submit({"img_path": str(phantom), "destination_path": str(tmp_path)}).job_id for _ in range(3)]
        client.cancel(jobs[-1])
        results = {result.job_id: result for result in client.results(jobs, timeout_s=60)}
    assert [results[job].state for job in jobs] == [JobState.DONE, JobState.DONE, JobState.CANCELLED]


def test_the_message_and_the_log_carry_ids_only(node: Any, phantom: Path, tmp_path: Path) -> None:
    secret = tmp_path / "Ana-Canary-1970"
    secret.mkdir()
    picture = secret / "Ana-Canary-1970.png"
    picture.write_bytes(phantom.read_bytes())
    for path in (picture, secret / "missing-Ana-Canary.png"):
        result = screen(node, path, secret, metadata={"name": "Ana-Canary"})
        assert result.job_id in node.log.read_text()
    assert "Canary" not in node.log.read_text()


def test_log_lines_are_json_with_the_jobs_id(node: Any, phantom: Path, tmp_path: Path, wait: Wait) -> None:
    result = screen(node, phantom, tmp_path)
    wait(lambda: node.log.read_text().count(result.job_id) >= 2)
    lines = [line for line in node.log.read_text().splitlines() if result.job_id in line]
    events = [json.loads(line) for line in lines]
    assert {event["event"] for event in events} >= {"job_claimed", "job_ended"}
    assert {event.get("job_id") for event in events} == {result.job_id}


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_told_node_ends_its_job_and_leaves_nothing(
    start_node: Any, node_settings: Settings, phantom: Path, tmp_path: Path, wait: Wait, number: int
) -> None:
    settings = node_settings.model_copy(update={"key_prefix": f"stop-{number}"})
    with start_node(settings, tmp_path, f"stop-{number}", OSTEOPAN_KEY_PREFIX=settings.key_prefix) as node:
        processes = descendants(node.process.pid)
        with node.client() as client:
            job = client.submit({"img_path": str(phantom), "destination_path": str(tmp_path)}).job_id
            wait(lambda: client.status(job).state is not JobState.QUEUED)
            node.process.send_signal(number)
            assert node.process.wait(60) == 0
            assert client.result(job).result == "ok"
        assert node.ledger().ready_nodes() == []
        assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_a_killed_launcher_takes_all_its_processes_along(
    start_node: Any, node_settings: Settings, tmp_path: Path
) -> None:
    settings = node_settings.model_copy(update={"key_prefix": "killed"})
    with start_node(settings, tmp_path, "killed", OSTEOPAN_KEY_PREFIX="killed") as node:
        processes = descendants(node.process.pid)
        assert len(processes) >= 3
        node.process.kill()
        assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_a_node_whose_main_process_dies_is_started_again(
    start_node: Any, node_settings: Settings, phantom: Path, tmp_path: Path, wait: Wait
) -> None:
    settings = node_settings.model_copy(update={"key_prefix": "again"})
    with start_node(settings, tmp_path, "again", OSTEOPAN_KEY_PREFIX="again") as node:
        first = psutil.Process(node.process.pid).children()[0]
        first.kill()
        wait(lambda: [child for child in psutil.Process(node.process.pid).children() if child.pid != first.pid])
        assert screen(node, phantom, tmp_path).result == "ok"


def test_a_node_without_a_usable_model_ends_and_says_why(
    environment: Any, node_settings: Settings, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "run", "--cpu", "--name", "broken", "--model", str(broken)],
        env=environment(node_settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "node_cannot_start" in ended.stderr
    assert "broken.safetensors" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "give either --gpu N or --cpu"),
        (["run", "--cpu", "--gpu", "0"], "give either --gpu N or --cpu"),
        (["run", "--cpu", "--model", "missing.pth"], "there is no model file"),
        (["run", "--cpu", "--name", "two words"], "OSTEOPAN_NODE"),
        (["console", "missing.pth"], "there is no model file"),
    ],
)
def test_wrong_commands_are_answered_with_a_sentence(
    environment: Any, node_settings: Settings, arguments: list[str], message: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=environment(node_settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_job_whose_worker_is_killed_is_done_by_the_next(
    start_node: Any, node_settings: Settings, phantom: Path, tmp_path: Path, wait: Wait
) -> None:
    settings = node_settings.model_copy(update={"key_prefix": "child", "lease_s": 2.0})
    with start_node(
        settings, tmp_path, "child", OSTEOPAN_KEY_PREFIX="child", OSTEOPAN_LEASE_S="2", OSTEOPAN_HEARTBEAT_S="0.5"
    ) as node:
        with node.client() as client:
            job = client.submit({"img_path": str(phantom), "destination_path": str(tmp_path / "out")}).job_id
            wait(lambda: client.status(job).stage in ("read", "background", "network"))
            (celery,) = psutil.Process(node.process.pid).children()
            # The engine's process is the one that has loaded PyTorch.
            max(celery.children(), key=lambda process: process.memory_info().rss).kill()
            result = client.result(job, wait_s=90)
        assert result.result == "ok"
        assert result.attempts == 2
        assert len(os.listdir(tmp_path / "out")) == 2
