"""The real command line, and a worker that keeps to the ledger and answers without looking."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from contract.errors import BrokerUnavailableError, ErrorCode
from contract.jobs import ErrorInfo, JobResult
from contract.ledger import Claim, Ledger, connect
from contract.settings import Settings
from producer.client import Client


def _answer_to(claim: Claim) -> JobResult:
    now = datetime.now(UTC)
    if "broken" in claim.request.img_path:
        error = ErrorInfo(code=ErrorCode.IMAGE_UNREADABLE, message="not a picture")
        return JobResult(result="fail", error=error, job_id=claim.job_id, submitted_at=now, finished_at=now)
    return JobResult(
        result="ok",
        diagnosis="Healthy Patient",
        saliency_img_path=f"{claim.request.destination_path}/s.png",
        overlay_img_path=f"{claim.request.destination_path}/o.png",
        job_id=claim.job_id,
        probability=0.125,
        threshold=0.5,
        warnings=("low_contrast",),
        submitted_at=claim.submitted_at,
        finished_at=now,
        metadata=claim.request.metadata,
    )


@contextmanager
def _answering(settings: Settings, *, hold: threading.Event | None = None) -> Iterator[None]:
    """Claim and finish what is queued, in a thread; `hold`, while it is not set, keeps jobs in the stage `network`."""
    stopped = threading.Event()

    def work() -> None:
        with connect(settings) as client:
            ledger = Ledger(client, settings)
            while not stopped.is_set():
                try:
                    for job_id in client.zrange(ledger.keys.queued, 0, 99):
                        claim = ledger.claim(job_id, "test-node")
                        assert isinstance(claim, Claim)
                        ledger.heartbeat(claim, "network")
                        while hold and not hold.wait(0.05) and not stopped.is_set():
                            ledger.heartbeat(claim)
                        ledger.finish(claim, _answer_to(claim))
                except (BrokerUnavailableError, OSError):
                    pass
                stopped.wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(10)


@pytest.fixture
def answering(settings: Settings) -> Callable[..., AbstractContextManager[None]]:
    """Make a worker, for as long as a `with` lasts."""
    return partial(_answering, settings)


@pytest.fixture
def answer_to() -> Callable[[Claim], JobResult]:
    """Make a result for a job: a failure if the picture's name says `broken`."""
    return _answer_to


@pytest.fixture
def worker(settings: Settings) -> Iterator[None]:
    """A worker that answers everything at once."""
    with _answering(settings):
        yield


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A client of the test's Redis."""
    with Client(settings) as client:
        yield client


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """Variables with which `producer` finds the test's Redis, from any folder."""
    return {
        **os.environ,
        "OSTEOPAN_REDIS_URL": settings.broker_url(),
        "OSTEOPAN_STATE_DIR": str(settings.state_dir),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "COLUMNS": "200",
    }


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def producer(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run `producer` with these arguments in `tmp_path`, and wait for its end."""

    def run(
        *arguments: str | bytes | Path, stdin: str | bytes = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "producer", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env=environment | variables,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "backslashreplace")
        )

    return run


@pytest.fixture
def start_producer(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `producer` with these arguments in `tmp_path`, and leave it running."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: int) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [sys.executable, "-m", "producer", *arguments],
            env=environment,
            cwd=tmp_path,
            text=True,
            **streams,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
