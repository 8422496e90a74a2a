"""Jobs whose message is lost are announced again, and no others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import celery
import pytest

from contract.broker import make_app, wake_worker
from contract.jobs import JobRequest, JobState, Priority
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from worker.reconciler import GRACE_MS, Reconciler


@pytest.fixture
def app(settings: Settings) -> celery.Celery:
    return make_app(settings)


@pytest.fixture
def reconciler(ledger: Ledger, app: celery.Celery) -> Reconciler:
    return Reconciler(ledger, app)


def enter(ledger: Ledger, job_id: str, priority: Priority = Priority.ROUTINE, *, age_ms: int = 2 * GRACE_MS) -> None:
    """Enter a job in the ledger, as if so many milliseconds ago."""
    ledger.submit(JobRequest(img_path="/a", destination_path="/b", job_id=job_id, priority=priority))
    ledger.client.zincrby(ledger.keys.queued, -age_ms, job_id)


def messages(ledger: Ledger, queue: str = "osteopan.routine") -> list[str]:
    """Ids in a queue, the oldest first."""
    found = ledger.client.lrange(ledger.keys.celery + queue, 0, -1)
    return [json.loads(message)["headers"]["id"] for message in reversed(found)]


def test_a_job_without_a_message_is_announced(ledger: Ledger, reconciler: Reconciler) -> None:
    enter(ledger, "lost")
    assert reconciler.scan() == ["lost"]
    assert messages(ledger) == ["lost"]


def test_it_is_announced_once(ledger: Ledger, reconciler: Reconciler) -> None:
    enter(ledger, "lost")
    reconciler.scan()
    assert reconciler.scan() == []
    assert messages(ledger) == ["lost"]


def test_a_job_given_back_goes_before_all_that_wait(ledger: Ledger, app: celery.Celery, reconciler: Reconciler) -> None:
    """By its place in the ledger's queue it would be announced after all of them, at their end."""
    for number in range(5):
        enter(ledger, f"job-{number}", age_ms=60_000)
        wake_worker(app, f"job-{number}", Priority.ROUTINE)
    for job_id, pause_s in (("job-0", 0.0), ("job-1", 0.3)):
        ledger.client.rpop(ledger.keys.celery + "osteopan.routine")
        claim = ledger.claim(job_id, "stopping")
        assert isinstance(claim, Claim)
        ledger.release(claim, pause_s=pause_s)
    assert reconciler.scan() == ["job-0"]
    assert reconciler.scan() == []
    time.sleep(0.3)
    assert reconciler.scan() == ["job-1"]
    assert messages(ledger, "osteopan.urgent") == ["job-0", "job-1"]
    assert ledger.client.zcard(ledger.keys.returned) == 0, "once is enough: a lost message is found as any other is"


def test_a_young_job_is_left_alone(ledger: Ledger, reconciler: Reconciler) -> None:
    enter(ledger, "young", age_ms=0)
    assert reconciler.scan() == []


def test_a_long_queue_is_no_reason(ledger: Ledger, app: celery.Celery, reconciler: Reconciler) -> None:
    for number in range(30):
        enter(ledger, f"job-{number}", age_ms=60_000 - number)
        wake_worker(app, f"job-{number}", Priority.ROUTINE)
    assert reconciler.scan() == []


def test_a_job_that_its_queue_has_passed_over_is_announced(
    ledger: Ledger, app: celery.Celery, reconciler: Reconciler
) -> None:
    enter(ledger, "lost", age_ms=60_000)
    enter(ledger, "behind", age_ms=30_000)
    wake_worker(app, "behind", Priority.ROUTINE)
    assert reconciler.scan() == ["lost"]
    assert messages(ledger) == ["behind", "lost"]


def test_each_priority_is_held_against_its_own_queue(
    ledger: Ledger, app: celery.Celery, reconciler: Reconciler
) -> None:
    enter(ledger, "routine", age_ms=60_000)
    wake_worker(app, "routine", Priority.ROUTINE)
    enter(ledger, "urgent", Priority.URGENT, age_ms=30_000)
    assert reconciler.scan() == ["urgent"]
    assert messages(ledger, "osteopan.urgent") == ["urgent"]


def test_a_message_of_a_job_that_has_ended_hides_nothing(
    ledger: Ledger, app: celery.Celery, reconciler: Reconciler
) -> None:
    for job_id, age_ms in (("cancelled", 50_000), ("lost", 40_000), ("behind", 10_000)):
        enter(ledger, job_id, age_ms=age_ms)
    for job_id in ("cancelled", "behind"):
        wake_worker(app, job_id, Priority.ROUTINE)
    ledger.cancel("cancelled")
    assert ledger.end_cancelled() == ["cancelled"]
    assert reconciler.scan() == ["lost"]


def test_a_job_that_is_to_rest_is_announced_when_its_time_has_come_and_not_before(
    ledger: Ledger, reconciler: Reconciler
) -> None:
    enter(ledger, "resting")
    claim = ledger.claim("resting", "w")
    assert isinstance(claim, Claim)
    assert ledger.release(claim, pause_s=60, counted=True)
    assert reconciler.scan() == []
    ledger.client.zincrby(ledger.keys.queued, -59_000, "resting")
    assert reconciler.scan() == []
    ledger.client.zincrby(ledger.keys.queued, -1000 - 2 * GRACE_MS, "resting")
    assert reconciler.scan() == ["resting"]
    assert messages(ledger) == ["resting"]


def test_a_job_that_rests_does_not_hold_up_the_queue_behind_it(
    ledger: Ledger, app: celery.Celery, reconciler: Reconciler
) -> None:
    enter(ledger, "resting", age_ms=60_000)
    claim = ledger.claim("resting", "w")
    assert isinstance(claim, Claim)
    ledger.release(claim, pause_s=60, counted=True)
    enter(ledger, "lost", age_ms=40_000)
    enter(ledger, "behind", age_ms=10_000)
    wake_worker(app, "behind", Priority.ROUTINE)
    assert reconciler.scan() == ["lost"]


def test_the_node_that_looks_ends_what_is_cancelled(
    ledger: Ledger, reconciler: Reconciler, wait: Callable[..., None]
) -> None:
    enter(ledger, "a", age_ms=0)
    enter(ledger, "running", age_ms=0)
    assert isinstance(ledger.claim("running", "w"), Claim)
    for job_id in ("a", "running"):
        ledger.cancel(job_id)
    reconciler.start()
    try:
        wait(lambda: ledger.status("a").state is JobState.CANCELLED, 5)
        assert ledger.status("running").state is JobState.RUNNING
    finally:
        reconciler.stop()


def test_garbage_in_the_queue_is_passed_over(ledger: Ledger, reconciler: Reconciler) -> None:
    enter(ledger, "a")
    ledger.client.lpush(ledger.keys.celery + "osteopan.routine", "garbage", '{"headers": 1}', '{"headers": {"id": 7}}')
    assert reconciler.scan() == []


def test_a_job_whose_worker_has_died_is_announced_and_can_be_claimed(
    settings: Settings, ledger: Ledger, app: celery.Celery
) -> None:
    hasty = Ledger(ledger.client, settings.model_copy(update={"lease_s": 0.5}))
    enter(hasty, "orphan")
    assert isinstance(hasty.claim("orphan", "dead-worker"), Claim)
    reconciler = Reconciler(hasty, app)
    assert reconciler.scan() == []
    time.sleep(0.6)
    assert reconciler.scan() == ["orphan"]
    assert reconciler.scan() == []
    claim = hasty.claim("orphan", "next-worker")
    assert isinstance(claim, Claim)
    assert claim.attempts == 2


def test_of_two_nodes_one_looks(
    settings: Settings, ledger: Ledger, app: celery.Celery, wait: Callable[..., None]
) -> None:
    enter(ledger, "lost")
    reconcilers = [Reconciler(ledger, app), Reconciler(ledger, app)]
    for reconciler in reconcilers:
        reconciler.start()
    try:
        wait(lambda: messages(ledger))
        time.sleep(2.5)
        assert messages(ledger) == ["lost"]
        assert ledger.client.get(ledger.keys.reconciler) is not None
    finally:
        for reconciler in reconcilers:
            reconciler.stop()
