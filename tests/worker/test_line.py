"""The assembly line takes waiting jobs along, and each keeps a fate of its own: real ledger, real engine, no Celery."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.broker import make_app, wake_worker
from contract.errors import ErrorCode
from contract.jobs import JobRequest, JobState, Priority
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from worker.job import JobProcessor
from worker.line import Line
from worker.screening import Screener
from worker.settings import WorkerSettings

BATCH = 3


@pytest.fixture(scope="module")
def screener(state_dir: Path) -> Iterator[Screener]:
    with Screener(WorkerSettings(state_dir=state_dir, hands=2, threads=1)) as loaded:
        yield loaded


@pytest.fixture
def make_line(ledger: Ledger, screener: Screener) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(*, batch_size: int = BATCH) -> Line:
        line = Line(JobProcessor(ledger, screener, node="line"), screener, batch_size=batch_size)
        made.append(line)
        return line

    yield make
    for line in made:
        line.close()


@pytest.fixture
def announce(ledger: Ledger, settings: Settings, phantom: Path, tmp_path: Path) -> Callable[..., None]:
    app = make_app(settings)

    def enter(*job_ids: str, img_path: Path = phantom, priority: Priority = Priority.ROUTINE) -> None:
        for job_id in job_ids:
            ledger.submit(
                JobRequest(
                    img_path=str(img_path), destination_path=str(tmp_path / "out"), job_id=job_id, priority=priority
                )
            )
            wake_worker(app, job_id, priority)

    return enter


def states(ledger: Ledger, *job_ids: str) -> list[JobState]:
    return [ledger.status(job_id).state for job_id in job_ids]


@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_one_message_is_enough_for_all_that_wait(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger, tmp_path: Path, batch_size: int
) -> None:
    ids = [f"job-{number}" for number in range(7)]
    announce(*ids)
    make_line(batch_size=batch_size).process(ids[0])
    results = [ledger.result(job_id) for job_id in ids]
    assert all(result is not None and result.result == "ok" for result in results)
    assert len({result.probability for result in results if result}) == 1 or batch_size > 1
    assert max(r.probability for r in results if r) - min(r.probability for r in results if r) < 1e-4
    named = {path for r in results if r for path in (r.saliency_img_path, r.overlay_img_path)}
    assert {str(path) for path in (tmp_path / "out").iterdir()} == named
    assert len(named) == 14
    assert ledger.client.xlen(ledger.keys.results) == 7


def test_one_bad_picture_among_others_fails_alone(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger, phantom: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(phantom.read_bytes()[:4000])
    announce("a", "b")
    announce("bad", img_path=broken)
    announce("missing", img_path=tmp_path / "nowhere.png")
    announce("c", "d")
    make_line().process("a")
    assert states(ledger, "a", "b", "c", "d") == [JobState.DONE] * 4
    assert states(ledger, "bad", "missing") == [JobState.FAILED] * 2
    codes = [result.error.code for job in ("bad", "missing") if (result := ledger.result(job)) and result.error]
    assert codes == [ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_NOT_FOUND]


def test_a_job_that_was_tried_before_runs_alone(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger
) -> None:
    announce("once-more", "other")
    claim = ledger.claim("once-more", "elsewhere")
    assert isinstance(claim, Claim)
    ledger.release(claim, counted=True)
    make_line().process("once-more")
    assert states(ledger, "once-more", "other") == [JobState.DONE, JobState.QUEUED]
    result = ledger.result("once-more")
    assert result is not None
    assert result.attempts == 2


def test_urgent_jobs_are_taken_along_first(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger
) -> None:
    announce("a", "b", "c")
    announce("urgent", priority=Priority.URGENT)
    make_line(batch_size=1).process("a")
    ended = [fields["job_id"] for _, fields in ledger.client.xrange(ledger.keys.results)]
    assert ended.index("urgent") < ended.index("c")


def test_a_job_cancelled_in_hand_is_not_classified(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger, tmp_path: Path
) -> None:
    announce("a", "b", "c", "d")
    line = make_line(batch_size=1)
    runner = threading.Thread(target=line.process, args=("a",))
    runner.start()
    ledger.cancel("d")
    runner.join(60)
    # A node's reconciler ends it if it is still queued, its next stage if it is in hand; it gets no answer.
    assert states(ledger, "a", "b", "c") == [JobState.DONE] * 3
    assert states(ledger, "d")[0] in {JobState.QUEUED, JobState.CANCELLED}
    result = ledger.result("d")
    assert result is None or result.result == "fail"
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_nothing_is_taken_along_once_the_node_is_to_stop(
    make_line: Callable[..., Line], announce: Callable[..., None], ledger: Ledger
) -> None:
    announce("a", "b")
    line = make_line()
    line.take_no_more()
    line.process("a")
    assert states(ledger, "a", "b") == [JobState.DONE, JobState.QUEUED]


def test_what_another_worker_has_is_let_go_with_its_pictures(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    ledger: Ledger,
    settings: Settings,
    screener: Screener,
    tmp_path: Path,
) -> None:
    announce("a")
    # A lease so short that it is over before the first sign of life, and a rival who takes the job then.
    hasty = Ledger(ledger.client, settings.model_copy(update={"lease_s": 0.01, "heartbeat_s": 30.0}))
    line = Line(JobProcessor(hasty, screener, node="hasty"), screener, batch_size=1)
    stop = threading.Event()
    rivals: list[Claim] = []

    def rival() -> None:
        while not stop.is_set() and not rivals:
            claim = ledger.claim("a", "rival") if states(ledger, "a") == [JobState.RUNNING] else None
            rivals.extend([claim] if isinstance(claim, Claim) else [])

    thread = threading.Thread(target=rival)
    thread.start()
    line.process("a")
    stop.set()
    thread.join(10)
    line.close()
    assert rivals
    assert ledger.result("a") is None
    assert ledger.status("a").worker == "rival"
    assert list((tmp_path / "out").glob("*")) == []


def test_a_node_under_load_stops_after_what_it_has_in_hand(
    start_node: Any, node_settings: Settings, phantom: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    settings = node_settings.model_copy(update={"key_prefix": "under-load"})
    picture = shutil.copy(phantom, tmp_path / "a.png")
    with start_node(settings, tmp_path, "loaded", OSTEOPAN_KEY_PREFIX="under-load") as node, node.client() as client:
        jobs = [
            client.submit({"img_path": str(picture), "destination_path": str(tmp_path / "out")}).job_id
            for _ in range(60)
        ]
        ledger = node.ledger()
        wait(lambda: ledger.client.xlen(ledger.keys.results) > 0)
        node.process.send_signal(signal.SIGTERM)
        node.process.wait(30)
        assert not psutil.pid_exists(node.process.pid) or node.process.returncode is not None
        found = [ledger.status(job).state for job in jobs]
    assert set(found) == {JobState.DONE, JobState.QUEUED}
    assert ledger.counts()[JobState.RUNNING] == 0
