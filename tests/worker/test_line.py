"""The assembly line takes waiting jobs along, and each keeps a fate of its own: real ledger, real engine, no Celery."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from contract.broker import make_app, wake_worker
from contract.errors import ErrorCode, JobError
from contract.jobs import JobRequest, JobState, Priority
from contract.ledger import Ledger
from contract.names import QUEUE_URGENT
from contract.records import Claim
from contract.settings import Settings
from panoramic.classification import Classification
from worker.job import JobProcessor
from worker.line import EngineLostError, Line
from worker.screening import Prepared, Screener, Screening
from worker.settings import WorkerSettings

BATCH = 3


HANDS = 2


class GatedScreener(Screener):
    """The real engine, in which reading a picture of some name, or writing any, can be held up."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self.reading: dict[str, threading.Event] = {}
        self.writing = threading.Event()
        self.removing = threading.Event()
        self.device_fails = False

    def classify(self, batch: Sequence[Prepared]) -> list[Classification | JobError]:
        if self.device_fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().classify(batch)

    def take_back(self, destination_path: str, note: str) -> bool:
        self.removing.wait(60)
        return super().take_back(destination_path, note)

    def prepare(self, img_path: str, destination_path: str, **options: Any) -> Prepared:
        if gate := self.reading.get(Path(img_path).stem):
            gate.wait(60)
        return super().prepare(img_path, destination_path, **options)

    def deliver(self, *args: Any, **options: Any) -> Screening:
        self.writing.wait(60)
        return super().deliver(*args, **options)


@pytest.fixture(scope="module")
def loaded(state_dir: Path) -> Iterator[GatedScreener]:
    with GatedScreener(WorkerSettings(state_dir=state_dir, hands=HANDS, threads=1)) as engine:
        yield engine


@pytest.fixture
def screener(loaded: GatedScreener) -> Iterator[GatedScreener]:
    loaded.writing.set()
    loaded.removing.set()
    yield loaded
    for gate in (*loaded.reading.values(), loaded.writing, loaded.removing):
        gate.set()
    loaded.reading.clear()
    loaded.device_fails = False


@pytest.fixture
def hold(screener: GatedScreener, phantom: Path, tmp_path: Path) -> Callable[[str], tuple[Path, threading.Event]]:
    """Make a picture that cannot be read before the event is set."""

    def make(name: str) -> tuple[Path, threading.Event]:
        gate = screener.reading[name] = threading.Event()
        return Path(shutil.copy(phantom, tmp_path / f"{name}.png")), gate

    return make


@pytest.fixture
def make_line(ledger: Ledger, screener: Screener) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(*, batch_size: int = BATCH, **limits: float) -> Line:
        line = Line(JobProcessor(ledger, screener, node="line"), screener, batch_size=batch_size, **limits)
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


@contextmanager
def running(line: Line, job_id: str) -> Iterator[None]:
    """The line runs in a thread meanwhile, and has ended afterwards."""
    thread = threading.Thread(target=line.process, args=(job_id,))
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_a_job_cancelled_in_hand_is_not_classified(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    hold: Callable[[str], tuple[Path, threading.Event]],
    ledger: Ledger,
    tmp_path: Path,
    wait: Callable[..., None],
) -> None:
    held, gate = hold("held")
    announce("a")
    announce("b", img_path=held)
    with running(make_line(), "a"):
        wait(lambda: states(ledger, "b") == [JobState.RUNNING])
        ledger.cancel("b")
        wait(lambda: states(ledger, "a") == [JobState.DONE])
        gate.set()
    assert states(ledger, "a", "b") == [JobState.DONE, JobState.CANCELLED]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_picture_that_is_slow_to_read_keeps_none_waiting(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    hold: Callable[[str], tuple[Path, threading.Event]],
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    slow, gate = hold("slow")
    announce("slow", img_path=slow)
    announce("a", "b", "c", "d")
    with running(make_line(batch_size=1), "slow"):
        wait(lambda: states(ledger, "a", "b", "c", "d") == [JobState.DONE] * 4)
        assert states(ledger, "slow") == [JobState.RUNNING]
        gate.set()
    assert states(ledger, "slow") == [JobState.DONE]


def test_a_slow_disk_leaves_what_waits_to_other_nodes(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    screener: GatedScreener,
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    ids = [f"job-{number}" for number in range(20)]
    announce(*ids)
    screener.writing.clear()

    def held() -> int:
        return ledger.counts()[JobState.RUNNING]

    with running(make_line(batch_size=1), ids[0]):
        wait(lambda: held() >= 2 * HANDS)
        most = 0
        for _ in range(100):
            time.sleep(0.01)
            most = max(most, held())
        screener.writing.set()
    # Two batches that are written, one in the network, two for each thread that reads.
    assert most <= 2 * HANDS + 1 + 2 * HANDS
    assert states(ledger, *ids) == [JobState.DONE] * 20


def test_the_time_limit_ends_what_has_had_its_time_and_gives_back_the_rest(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    hold: Callable[[str], tuple[Path, threading.Event]],
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    stuck, release = hold("stuck")
    late, gate = hold("late")
    announce("stuck", img_path=stuck)
    line = make_line(enough_s=1.5, readers_left_s=0.2)

    def strike(*_: object) -> None:
        raise SoftTimeLimitExceeded

    def meanwhile() -> None:
        time.sleep(1.0)
        announce("late", "unread", img_path=late)
        wait(lambda: states(ledger, "late", "unread") == [JobState.RUNNING] * 2)
        time.sleep(max(0.0, began + 2.0 - time.monotonic()))
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.3)
        gate.set()

    before = signal.signal(signal.SIGUSR1, strike)
    began = time.monotonic()
    other = threading.Thread(target=meanwhile)
    other.start()
    try:
        with pytest.raises(EngineLostError, match="still read"):
            line.process("stuck")
    finally:
        other.join(10)
        signal.signal(signal.SIGUSR1, before)
        release.set()
    assert states(ledger, "stuck", "late", "unread") == [JobState.FAILED, JobState.QUEUED, JobState.QUEUED]
    result = ledger.result("stuck")
    assert result is not None
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert [ledger.status(job).attempts for job in ("late", "unread")] == [0, 0]


def test_a_device_that_fails_costs_its_batch_an_attempt_and_ends_the_engine(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    screener: GatedScreener,
    hold: Callable[[str], tuple[Path, threading.Event]],
    ledger: Ledger,
) -> None:
    """What cannot be told from the next job's fault must not be met by one job after the other."""
    slow, gate = hold("slow")
    announce("a")
    announce("slow", img_path=slow)
    screener.device_fails = True
    with pytest.raises(EngineLostError, match=r"the engine failed \(RuntimeError\)"):
        make_line().process("a")
    gate.set()
    assert states(ledger, "a", "slow") == [JobState.QUEUED] * 2
    assert [ledger.status(job).attempts for job in ("a", "slow")] == [1, 0]
    assert set(ledger.client.zrange(ledger.keys.returned, 0, -1)) == {"a", "slow"}

    # The same with a new engine each time: the job is given up and the reason told.
    for _ in range(2):
        with pytest.raises(EngineLostError):
            make_line().process("a")
    result = ledger.result("a")
    assert result is not None
    assert result.error is not None
    assert (result.error.code, result.attempts) == (ErrorCode.INTERNAL_ERROR, 3)
    screener.device_fails = False
    make_line().process("slow")
    assert states(ledger, "a", "slow") == [JobState.FAILED, JobState.DONE]


def test_a_disk_that_hangs_under_a_dead_workers_pictures_holds_up_no_lease_and_no_end(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    screener: GatedScreener,
    settings: Settings,
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    dying = Ledger(ledger.client, settings.model_copy(update={"lease_s": 0.05}))
    brief = Ledger(ledger.client, settings.model_copy(update={"lease_s": 1.0, "heartbeat_s": 0.1}))

    def lose_a_worker(job_id: str) -> None:
        claim = dying.claim(job_id, "killed")
        assert isinstance(claim, Claim)
        dying.note_pictures(claim, "[]")
        time.sleep(0.1)

    announce("a")
    lose_a_worker("a")
    screener.removing.clear()
    line = Line(JobProcessor(brief, screener, node="brief"), screener, batch_size=1)
    with running(line, "a"):
        wait(lambda: ledger.status("a").worker == "brief")
        time.sleep(1.5)
        assert ledger.claim("a", "rival") is JobState.RUNNING, "the lease is kept alive meanwhile"
        screener.removing.set()
    assert states(ledger, "a") == [JobState.DONE]

    announce("b")
    for _ in range(settings.max_attempts):
        lose_a_worker("b")
    screener.removing.clear()
    began = time.monotonic()
    line.process("b")
    assert time.monotonic() - began < settings.lease_s
    assert states(ledger, "b") == [JobState.DEAD]
    screener.removing.set()
    line.close()


def test_what_was_not_begun_is_given_back_when_the_node_is_to_stop(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    hold: Callable[[str], tuple[Path, threading.Event]],
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    ids = [f"job-{number}" for number in range(2 * HANDS)]
    gates = [hold(name) for name in ids]
    for job_id, (picture, _) in zip(ids, gates, strict=True):
        announce(job_id, img_path=picture)
    line = make_line(batch_size=2 * HANDS)
    with running(line, ids[0]):
        wait(lambda: states(ledger, *ids) == [JobState.RUNNING] * len(ids))
        line.take_no_more()
        gates[0][1].set()
        wait(lambda: states(ledger, ids[-1]) == [JobState.QUEUED])
        for _, gate in gates:
            gate.set()
    # The reading thread that was freed first may have begun one more before the line noticed.
    begun = states(ledger, *ids[:-1])
    assert begun[:HANDS] == [JobState.DONE] * HANDS
    assert set(begun) <= {JobState.DONE, JobState.QUEUED}
    assert ledger.status(ids[-1]).attempts == 0


def test_a_job_that_has_lost_its_worker_is_left_for_a_message_of_its_own(
    make_line: Callable[..., Line],
    announce: Callable[..., None],
    settings: Settings,
    ledger: Ledger,
    wait: Callable[..., None],
) -> None:
    """What is urgent for having been announced anew must not be thrown away by a node that is busy."""
    dying = Ledger(ledger.client, settings.model_copy(update={"lease_s": 0.05}))
    announce("orphan", priority=Priority.URGENT)
    assert isinstance(dying.claim("orphan", "killed"), Claim)
    announce("fresh")
    time.sleep(0.1)
    assert ledger.take("busy", count=5) == []
    urgent = ledger.keys.celery + QUEUE_URGENT
    assert ledger.client.llen(urgent) == 1

    assert isinstance(ledger.claim("orphan", "next"), Claim)
    assert [claim.job_id for claim in ledger.take("busy", count=5)] == ["fresh"]
    assert ledger.client.llen(urgent) == 0


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
