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

from contract.connection import connect
from contract.errors import BrokerUnavailableError, ErrorCode
from contract.jobs import ErrorInfo, JobResult
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from producer.cli import main
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
def end(client: Client) -> Callable[[str], None]:
    """Submit a job, unless it is there, and end it at once: cancelled, as a node does it."""

    def submit_and_end(job_id: str) -> None:
        if client.ledger.client.exists(client.ledger.keys.job(job_id)) == 0:
            client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": job_id})
        client.ledger.cancel(job_id)
        assert client.ledger.end_cancelled() == [job_id]

    return submit_and_end


@pytest.fixture
def node(settings: Settings) -> Iterator[None]:
    """A node that ends what is cancelled, and takes up no job."""
    stopped = threading.Event()

    def work() -> None:
        with connect(settings) as connection:
            ledger = Ledger(connection, settings)
            while not stopped.wait(0.05):
                ledger.end_cancelled()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stopped.set()
    thread.join(10)


@pytest.fixture
def die(client: Client) -> Callable[..., None]:
    """Submit a job and give it up, as a worker does after two others."""

    def submit_and_give_up(job_id: str, **fields: object) -> None:
        request = {"img_path": "/in/Jane-Doe.png", "destination_path": "/out", "job_id": job_id, **fields}
        client.submit(request)
        give_up(client.ledger, job_id)

    return submit_and_give_up


def give_up(ledger: Ledger, job_id: str) -> None:
    """Claim a job and end it as dead."""
    claim = ledger.claim(job_id, "test-node")
    assert isinstance(claim, Claim)
    error = ErrorInfo(code=ErrorCode.WORKER_LOST, message="3 workers ended while they had this job")
    now = datetime.now(UTC)
    result = JobResult(result="fail", error=error, job_id=job_id, submitted_at=now, finished_at=now)
    ledger.finish(claim, result, dead=True)


@pytest.fixture
def settings_in_environment(settings: Settings) -> dict[str, str]:
    """Variables with which `producer` finds the test's Redis."""
    return {
        "OSTEOPAN_REDIS_URL": settings.broker_url(),
        "OSTEOPAN_STATE_DIR": str(settings.state_dir),
        "COLUMNS": "200",
    }


@pytest.fixture
def environment(settings_in_environment: dict[str, str]) -> dict[str, str]:
    """The whole environment of a process `producer` in any folder."""
    return {**os.environ, **settings_in_environment, "PYTHONPATH": str(Path(__file__).parents[2])}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def producer(
    settings_in_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run the command line in `tmp_path` with these arguments, without the cost of a process of its own."""

    def run(*arguments: str | bytes | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["producer", *map(os.fsdecode, arguments)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in (settings_in_environment | variables).items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit, match=r"^\d+$") as ended:
                main()
        return subprocess.CompletedProcess(command, int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def producer_process(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run `producer` in `tmp_path` as a process with these arguments and this input, and wait for its end."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "producer", *arguments],
            input=stdin,
            encoding="utf-8",
            capture_output=True,
            env=environment | variables,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def start_producer(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `producer` as a process with these arguments in `tmp_path`, and leave it running."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: int) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            # Not by `python -m`: interrupted while it imports, CPython 3.11 ends by the signal, not with our code.
            [Path(sys.executable).with_name("producer"), *arguments],
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
