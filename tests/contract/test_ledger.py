"""Every transition of the ledger, and every refusal, against a real Redis."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import redis

from contract.broker import make_app, wake_worker
from contract.connection import connect
from contract.errors import (
    BrokerUnavailableError,
    ErrorCode,
    JobConflictError,
    LeaseLostError,
    TooManyOpenJobsError,
    UnknownJobError,
)
from contract.jobs import ErrorInfo, JobRequest, JobResult, JobState, Priority
from contract.ledger import Ledger
from contract.names import QUEUE_ROUTINE, QUEUE_URGENT
from contract.records import Claim, Heartbeat
from contract.settings import Settings

REQUEST = JobRequest(img_path="/in/a.png", destination_path="/out", job_id="a")


def answer(job_id: str = "a", **changes: object) -> JobResult:
    now = datetime.now(UTC)
    fields: dict[str, object] = {
        "result": "ok",
        "diagnosis": "Healthy Patient",
        "saliency_img_path": "/out/s.png",
        "overlay_img_path": "/out/o.png",
        "job_id": job_id,
        "submitted_at": now,
        "finished_at": now,
    }
    return JobResult.model_validate(fields | changes)


def failure(code: ErrorCode, job_id: str = "a") -> JobResult:
    pictures = dict.fromkeys(("diagnosis", "saliency_img_path", "overlay_img_path"), "")
    return answer(job_id, result="fail", error=ErrorInfo(code=code, message="it is so"), **pictures)


def claimed(ledger: Ledger, job_id: str = "a", worker: str = "w1") -> Claim:
    claim = ledger.claim(job_id, worker)
    assert isinstance(claim, Claim)
    return claim


@pytest.fixture
def with_limits(settings: Settings, ledger: Ledger) -> Callable[..., Ledger]:
    """A ledger on the same Redis with other limits."""
    return lambda **limits: Ledger(ledger.client, settings.model_copy(update=limits))


def test_a_job_goes_from_queued_over_running_to_done(ledger: Ledger) -> None:
    submission = ledger.submit(REQUEST)
    assert (submission.job_id, submission.state, submission.created) == ("a", JobState.QUEUED, True)
    assert ledger.counts() == {JobState.QUEUED: 1, JobState.RUNNING: 0, JobState.DEAD: 0}

    claim = claimed(ledger)
    assert (claim.request, claim.attempts, claim.exhausted) == (REQUEST, 1, False)
    assert 0 <= claim.waited_ms < 5000
    assert ledger.heartbeat(claim, "network") is Heartbeat.OK
    running = ledger.status("a")
    assert (running.state, running.stage, running.worker, running.attempts) == (JobState.RUNNING, "network", "w1", 1)
    assert ledger.counts() == {JobState.QUEUED: 0, JobState.RUNNING: 1, JobState.DEAD: 0}

    result = answer()
    ledger.finish(claim, result)
    done = ledger.status("a")
    assert (done.state, done.stage) == (JobState.DONE, "")
    assert done.finished_at is not None
    assert ledger.result("a") == result
    assert ledger.counts() == {JobState.QUEUED: 0, JobState.RUNNING: 0, JobState.DEAD: 0}


def test_a_request_without_an_id_gets_one(ledger: Ledger) -> None:
    request = REQUEST.model_copy(update={"job_id": None})
    ids = {ledger.submit(request).job_id for _ in range(3)}
    assert len(ids) == 3
    assert claimed(ledger, ids.pop()).request.img_path == "/in/a.png"


def test_the_same_request_again_answers_with_the_job_that_is_there(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claimed(ledger)
    again = ledger.submit(REQUEST)
    assert (again.state, again.created) == (JobState.RUNNING, False)


def test_the_order_of_keys_makes_no_other_request_and_metadata_come_back_equal(ledger: Ledger) -> None:
    first = '{"b": {"y": 1.0, "x": [{"q": "ü", "p": null}]}, "a": "2"}'
    second = '{"a": "2", "b": {"x": [{"p": null, "q": "\\u00fc"}], "y": 1.0}}'
    other = '{"a": "2", "b": {"x": [{"p": null, "q": "u"}], "y": 1.0}}'
    document = '{"img_path": "/in/a.png", "destination_path": "/out", "job_id": "a", "metadata": %s}'
    assert ledger.submit(JobRequest.parse(document % first)).created
    assert not ledger.submit(JobRequest.parse(document % second)).created
    with pytest.raises(JobConflictError, match="another request"):
        ledger.submit(JobRequest.parse(document % other))
    claim = claimed(ledger)
    ledger.finish(claim, answer(metadata=claim.request.metadata))
    result = ledger.result("a")
    assert result is not None
    assert result.metadata == json.loads(first)


def test_another_request_under_the_same_id_is_refused(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    with pytest.raises(JobConflictError, match="job id a belongs to another request") as caught:
        ledger.submit(REQUEST.model_copy(update={"img_path": "/in/Jane-Doe.png"}))
    assert "Jane" not in str(caught.value)
    assert claimed(ledger).request == REQUEST


def test_a_full_ledger_refuses_one_more_and_takes_one_when_one_has_ended(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(max_open_jobs=2)
    for job_id in ("a", "b"):
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
    claim = claimed(ledger)
    third = REQUEST.model_copy(update={"job_id": "c"})
    with pytest.raises(TooManyOpenJobsError, match="2 jobs are open and at most 2"):
        ledger.submit(third)
    assert ledger.submit(REQUEST).state is JobState.RUNNING
    ledger.finish(claim, answer())
    assert ledger.submit(third).created


def test_of_two_claimants_one_is_told_that_the_job_is_running(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claimed(ledger)
    assert ledger.claim("a", "w2") is JobState.RUNNING
    assert ledger.status("a").attempts == 1


def test_an_unknown_job_cannot_be_claimed(ledger: Ledger) -> None:
    assert ledger.claim("nobody", "w1") is None


@pytest.mark.parametrize("code", [None, ErrorCode.IMAGE_UNREADABLE, ErrorCode.CANCELLED])
def test_an_ended_job_cannot_be_claimed(ledger: Ledger, code: ErrorCode | None) -> None:
    ledger.submit(REQUEST)
    ledger.finish(claimed(ledger), failure(code) if code else answer())
    expected = {None: JobState.DONE, ErrorCode.IMAGE_UNREADABLE: JobState.FAILED, ErrorCode.CANCELLED: "cancelled"}
    assert ledger.claim("a", "w2") == expected[code]


def test_a_job_is_taken_over_when_its_lease_has_run_out_and_the_old_holder_is_turned_away(
    with_limits: Callable[..., Ledger],
) -> None:
    ledger = with_limits(lease_s=0.1)
    ledger.submit(REQUEST)
    old = claimed(ledger, worker="frozen")
    time.sleep(0.15)
    new = claimed(ledger, worker="alive")
    assert (new.attempts, new.exhausted) == (2, False)

    assert ledger.heartbeat(old) is Heartbeat.LOST
    assert ledger.release(old) is False
    with pytest.raises(LeaseLostError, match="no longer held"):
        ledger.finish(old, failure(ErrorCode.INTERNAL_ERROR))
    assert ledger.status("a").worker == "alive"
    assert ledger.result("a") is None

    result = answer()
    ledger.finish(new, result)
    with pytest.raises(LeaseLostError, match="no longer held"):
        ledger.finish(old, failure(ErrorCode.INTERNAL_ERROR))
    assert ledger.result("a") == result


def test_a_sign_of_life_extends_the_lease(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(lease_s=0.4)
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    for _ in range(3):
        time.sleep(0.2)
        assert ledger.heartbeat(claim) is Heartbeat.OK
    assert ledger.claim("a", "w2") is JobState.RUNNING


def test_a_sign_of_life_without_a_stage_leaves_the_stage(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    ledger.heartbeat(claim, "read")
    ledger.heartbeat(claim)
    assert ledger.status("a").stage == "read"


def test_the_holder_may_finish_twice_and_the_first_result_stays(ledger: Ledger) -> None:
    start = ledger.last_entry()
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    first = answer()
    ledger.finish(claim, first)
    ledger.finish(claim, failure(ErrorCode.INTERNAL_ERROR))
    assert ledger.result("a") == first
    assert [job_id for _, job_id in ledger.ended_since(start, block_s=0.01)] == ["a"]


def test_a_queued_job_is_marked_by_whoever_cancels_it_and_ended_by_a_node(ledger: Ledger) -> None:
    start = ledger.last_entry()
    ledger.submit(REQUEST.model_copy(update={"metadata": {"case": 7}}))
    assert ledger.cancel("a") is JobState.QUEUED
    assert (ledger.status("a").state, ledger.result("a")) == (JobState.QUEUED, None)
    assert ledger.end_cancelled() == ["a"]
    assert ledger.end_cancelled() == []
    assert ledger.status("a").state is JobState.CANCELLED
    assert ledger.cancel("a") is JobState.CANCELLED
    assert ledger.client.exists(ledger.keys.cancelling) == 0
    result = ledger.result("a")
    assert result is not None
    assert result.error is not None
    assert (result.error.code, result.metadata, result.attempts) == (ErrorCode.CANCELLED, {"case": 7}, 0)
    assert [job_id for _, job_id in ledger.ended_since(start, block_s=0.01)] == ["a"]
    assert ledger.claim("a", "w1") is JobState.CANCELLED


def test_cancelling_a_running_job_tells_its_worker_and_the_next_one(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(lease_s=0.1)
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    assert ledger.cancel("a") is JobState.RUNNING
    assert ledger.heartbeat(claim) is Heartbeat.CANCELLED
    time.sleep(0.15)
    successor = claimed(ledger, worker="w2")
    assert ledger.heartbeat(successor) is Heartbeat.CANCELLED
    ledger.finish(successor, failure(ErrorCode.CANCELLED))
    assert ledger.status("a").state is JobState.CANCELLED


def test_cancelling_an_ended_job_changes_nothing(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    result = answer()
    ledger.finish(claimed(ledger), result)
    assert ledger.cancel("a") is JobState.DONE
    assert ledger.end_cancelled() == []
    assert ledger.result("a") == result


def test_a_running_job_that_is_cancelled_is_ended_by_its_worker_alone(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    ledger.cancel("a")
    assert ledger.end_cancelled() == []
    assert ledger.status("a").state is JobState.RUNNING
    result = answer()
    ledger.finish(claim, result)
    assert ledger.end_cancelled() == []
    assert ledger.result("a") == result, "it was done before its worker heard of it"
    assert ledger.client.exists(ledger.keys.cancelling) == 0


def test_a_running_job_that_is_cancelled_and_given_back_is_ended_by_a_node(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    ledger.cancel("a")
    ledger.end_cancelled()
    ledger.release(claim, pause_s=60, counted=True)
    assert ledger.end_cancelled() == ["a"]
    result = ledger.result("a")
    assert result is not None
    assert (result.state, result.attempts) == (JobState.CANCELLED, 1)
    assert ledger.counts()[JobState.QUEUED] == 0


def test_what_is_cancelled_is_forgotten_if_its_record_is_gone_and_others_are_ended(ledger: Ledger) -> None:
    later = REQUEST.model_copy(update={"job_id": "later", "metadata": {"case": 7}})
    for request in (REQUEST, later):
        ledger.submit(request)
        ledger.cancel(str(request.job_id))
    ledger.client.delete(ledger.keys.job("a"))
    document = json.loads(ledger.client.hget(ledger.keys.job("later"), "request") or "")
    ledger.client.hset(ledger.keys.job("later"), "request", json.dumps(document | {"field_of_a_later_version": 1}))
    assert ledger.end_cancelled() == ["later"]
    result = ledger.result("later")
    assert result is not None
    assert result.metadata == {"case": 7}
    assert ledger.client.exists(ledger.keys.cancelling) == 0


def test_of_twenty_nodes_one_ends_what_is_cancelled(ledger: Ledger) -> None:
    start = ledger.last_entry()
    ledger.submit(REQUEST)
    ledger.cancel("a")
    with ThreadPoolExecutor(20) as threads:
        ended = list(threads.map(lambda _: ledger.end_cancelled(), range(20)))
    assert sorted(ended) == [[]] * 19 + [["a"]]
    assert len(ledger.ended_since(start, block_s=0.01)) == 1


def test_who_may_only_submit_can_cancel(ledger: Ledger, settings: Settings) -> None:
    ledger.submit(REQUEST)
    ledger.client.acl_setuser(
        "canceller",
        enabled=True,
        passwords=["+pw"],
        commands=["+evalsha", "+script|load", "+select", "+ping", "+hget", "+hset", "+sadd"],
        keys=["osteopan:job:*", "osteopan:cancelling"],
    )
    try:
        server = settings.broker_url().split("@")[1]
        with connect(Settings(redis_url=f"redis://canceller:pw@{server}")) as client:
            restricted = Ledger(client, settings)
            assert restricted.cancel("a") is JobState.QUEUED
            with pytest.raises(BrokerUnavailableError, match="Redis refuses the command"):
                restricted.end_cancelled()
    finally:
        ledger.client.acl_deluser("canceller")
    assert ledger.end_cancelled() == ["a"]


def test_what_is_not_known_has_no_status_and_cannot_be_cancelled(ledger: Ledger) -> None:
    with pytest.raises(UnknownJobError, match="no job nobody is known"):
        ledger.status("nobody")
    with pytest.raises(UnknownJobError, match="no job nobody is known"):
        ledger.cancel("nobody")
    assert ledger.result("nobody") is None


def test_a_released_job_is_queued_again_and_the_attempt_does_not_count(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    assert ledger.release(claim)
    status = ledger.status("a")
    assert (status.state, status.attempts) == (JobState.QUEUED, 0)
    assert ledger.heartbeat(claim) is Heartbeat.LOST
    assert ledger.release(claim) is False
    with pytest.raises(LeaseLostError, match="no longer held"):
        ledger.finish(claim, answer())
    assert claimed(ledger, worker="w2").attempts == 1


def test_a_job_given_back_is_marked_to_be_announced_until_somebody_has_it(ledger: Ledger) -> None:
    for job_id in ("a", "b"):
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
        ledger.release(claimed(ledger, job_id))
    assert ledger.client.zrange(ledger.keys.returned, 0, -1) == ["a", "b"]
    claimed(ledger, "a", "w2")
    ledger.cancel("b")
    assert ledger.end_cancelled() == ["b"]
    assert ledger.client.zcard(ledger.keys.returned) == 0
    # A worker of an earlier version ends a job and leaves it there: the message that this brings about is the last.
    ledger.client.zadd(ledger.keys.returned, {"b": 1, "never-known": 1})
    assert ledger.claim("b", "w2") is JobState.CANCELLED
    assert ledger.claim("never-known", "w2") is None
    assert ledger.client.zcard(ledger.keys.returned) == 0


@pytest.mark.parametrize("beyond_bytes", [20_000, -200_000])
def test_a_full_redis_takes_no_job_and_lets_those_that_it_has_come_to_their_end(
    ledger: Ledger, settings: Settings, beyond_bytes: int
) -> None:
    for job_id in "abcd":
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
        wake_worker(make_app(settings), job_id, Priority.ROUTINE)
    held = claimed(ledger)
    ledger.client.config_set("maxmemory", ledger.client.info("memory")["used_memory"] + beyond_bytes)
    try:
        with pytest.raises(TooManyOpenJobsError, match=r"^\d+ % of the memory .* from 80 % on no job is accepted"):
            ledger.submit(REQUEST.model_copy(update={"job_id": "e"}))
        ledger.client.config_set("maxmemory", ledger.client.info("memory")["used_memory"] - 200_000)
        with pytest.raises(redis.OutOfMemoryError):
            ledger.client.set("osteopan-test", "x")
        assert ledger.hold(ledger.keys.ready("w1"), "m", lifetime_s=5, take=True)
        assert ledger.heartbeat(held, "network") is Heartbeat.OK
        ledger.note_pictures(held, "[]")
        ledger.finish(held, answer())
        assert {claim.job_id for claim in ledger.take("w1", count=2)} == {"b", "c"}
        assert ledger.release(claimed(ledger, "d"))
        assert ledger.cancel("d") is JobState.QUEUED
        assert ledger.end_cancelled() == ["d"]
    finally:
        ledger.client.config_set("maxmemory", 0)
    assert ledger.submit(REQUEST.model_copy(update={"job_id": "e"})).created


def test_a_redis_with_room_takes_jobs_and_so_does_one_that_may_not_be_asked(ledger: Ledger, settings: Settings) -> None:
    client = ledger.client
    client.config_set("maxmemory", 2 * client.info("memory")["used_memory"])
    client.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "-info")
    try:
        assert ledger.submit(REQUEST).created
        connection = client.connection_pool.connection_kwargs
        with redis.Redis(
            host=connection["host"], port=connection["port"], username="mute", password="secret", decode_responses=True
        ) as mute:
            assert Ledger(mute, settings).submit(REQUEST.model_copy(update={"job_id": "b"})).created
    finally:
        client.config_set("maxmemory", 0)
        client.execute_command("ACL", "DELUSER", "mute")


def test_a_worker_that_may_not_know_of_returned_jobs_takes_none_by_halves(ledger: Ledger, settings: Settings) -> None:
    """As with an access list that an earlier version made: it is refused, and the jobs wait for another."""
    client = ledger.client
    client.execute_command(
        *("ACL", "SETUSER", "old", "on", ">secret", "+@all"),
        *(f"~{settings.key_prefix}:{key}" for key in ("job:*", "queued", "running", "celery:*", "result*", "finished")),
    )
    ledger.submit(REQUEST)
    wake_worker(make_app(settings), "a", Priority.ROUTINE)
    connection = client.connection_pool.connection_kwargs
    try:
        with redis.Redis(
            host=connection["host"], port=connection["port"], username="old", password="secret", decode_responses=True
        ) as old:
            hindered = Ledger(old, settings)
            for take in (lambda: hindered.take("w1", count=1), lambda: hindered.claim("a", "w1")):
                with pytest.raises(BrokerUnavailableError):
                    take()
    finally:
        client.execute_command("ACL", "DELUSER", "old")
    assert ledger.status("a").state is JobState.QUEUED
    assert [claim.job_id for claim in ledger.take("w2", count=1)] == ["a"]


def test_a_key_is_held_by_one_at_a_time(ledger: Ledger) -> None:
    key = ledger.keys.reconciler
    assert ledger.hold(key, "first", lifetime_s=0.2)
    assert not ledger.hold(key, "second", lifetime_s=5)
    assert ledger.hold(key, "first", lifetime_s=0.2)
    assert ledger.hold(key, "third", lifetime_s=0.2, take=True)
    time.sleep(0.3)
    assert ledger.hold(key, "second", lifetime_s=5)


def test_a_job_released_after_a_fault_has_made_an_attempt_and_is_queued_for_later(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    claim = claimed(ledger)
    now_ms = time.time() * 1000
    assert ledger.release(claim, pause_s=60, counted=True)
    status = ledger.status("a")
    assert (status.state, status.stage, status.attempts) == (JobState.QUEUED, "", 1)
    assert now_ms + 59_000 < (ledger.client.zscore(ledger.keys.queued, "a") or 0) < now_ms + 65_000
    assert ledger.counts() == {JobState.QUEUED: 1, JobState.RUNNING: 0, JobState.DEAD: 0}
    assert claimed(ledger, worker="w2").attempts == 2


def test_a_fault_that_never_passes_uses_the_attempts_up(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(max_attempts=2)
    ledger.submit(REQUEST)
    for _ in range(2):
        claim = claimed(ledger)
        assert not claim.exhausted
        ledger.release(claim, counted=True)
    assert claimed(ledger).exhausted


def die(ledger: Ledger, job_id: str) -> None:
    ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
    ledger.finish(claimed(ledger, job_id), failure(ErrorCode.WORKER_LOST, job_id), dead=True)


def test_the_dead_are_listed_the_newest_first_with_what_was_asked(ledger: Ledger) -> None:
    assert ledger.dead() == []
    for job_id in ("a", "b", "c"):
        die(ledger, job_id)
        time.sleep(0.002)
    assert [job.job_id for job in ledger.dead()] == ["c", "b", "a"]
    assert [job.job_id for job in ledger.dead(limit=2)] == ["c", "b"]
    assert {job.state for job in ledger.dead()} == {JobState.DEAD}
    assert ledger.request("a") == REQUEST
    with pytest.raises(UnknownJobError, match="no job nobody is known"):
        ledger.request("nobody")


def test_a_buried_job_is_dead_no_more_and_expires_as_others_do(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(result_ttl_s=60)
    die(ledger, "a")
    ledger.submit(REQUEST.model_copy(update={"job_id": "open"}))
    assert (ledger.bury("a"), ledger.bury("a"), ledger.bury("open"), ledger.bury("nobody")) == (
        True,
        False,
        False,
        False,
    )
    assert (ledger.dead(), ledger.counts()[JobState.DEAD]) == ([], 0)
    assert 0 < ledger.client.ttl(ledger.keys.job("a")) <= 60
    assert ledger.client.ttl(ledger.keys.job("open")) == -1
    assert [job.job_id for job in ledger.jobs()] == ["open", "a"]
    result = ledger.result("a")
    assert result is not None
    assert result == failure(ErrorCode.WORKER_LOST).model_copy(
        update={"submitted_at": result.submitted_at, "finished_at": result.finished_at}
    ), "one id, one result"
    assert ledger.submit(REQUEST).state is JobState.DEAD


def test_a_job_that_has_used_its_attempts_up_is_handed_out_to_be_ended(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(lease_s=0.02, max_attempts=2)
    ledger.submit(REQUEST)
    outcomes = []
    for worker in ("w1", "w2", "w3"):
        claim = claimed(ledger, worker=worker)
        outcomes.append((claim.attempts, claim.exhausted))
        time.sleep(0.04)
    assert outcomes == [(1, False), (2, False), (2, True)]

    ledger.finish(claim, failure(ErrorCode.WORKER_LOST), dead=True)
    assert ledger.status("a").state is JobState.DEAD
    assert ledger.counts()[JobState.DEAD] == 1
    assert ledger.claim("a", "w4") is JobState.DEAD
    assert ledger.client.ttl(ledger.keys.job("a")) == -1, "a job given up stays until a person has seen it"


def test_an_ended_job_and_its_result_expire_together(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(result_ttl_s=60)
    ledger.submit(REQUEST)
    ledger.finish(claimed(ledger), answer())
    assert 0 < ledger.client.ttl(ledger.keys.job("a")) <= 60
    assert 0 < ledger.client.ttl(ledger.keys.result("a")) <= 60


def test_of_twenty_submitters_of_one_id_exactly_one_creates_the_job(ledger: Ledger) -> None:
    with ThreadPoolExecutor(20) as threads:
        submissions = list(threads.map(lambda _: ledger.submit(REQUEST), range(20)))
    assert sum(submission.created for submission in submissions) == 1
    assert ledger.counts()[JobState.QUEUED] == 1


def test_of_twenty_claimants_exactly_one_holds_the_job(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    with ThreadPoolExecutor(20) as threads:
        outcomes = list(threads.map(lambda number: ledger.claim("a", f"w{number}"), range(20)))
    assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 1
    assert outcomes.count(JobState.RUNNING) == 19


def test_the_stream_tells_of_ended_jobs_in_order_and_waits_for_the_next(ledger: Ledger) -> None:
    start = ledger.last_entry()
    assert ledger.ended_since(start, block_s=0.01) == []
    for job_id in ("b", "a"):
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
        ledger.finish(claimed(ledger, job_id), answer(job_id))
    entries = ledger.ended_since(start, block_s=0.01)
    assert [job_id for _, job_id in entries] == ["b", "a"]
    assert ledger.ended_since(entries[0][0], block_s=0.01) == entries[1:]
    assert ledger.last_entry() == entries[1][0]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ledger.ended_since, ledger.last_entry(), block_s=5)
        ledger.submit(REQUEST.model_copy(update={"job_id": "c"}))
        ledger.finish(claimed(ledger, "c"), answer("c"))
        assert [job_id for _, job_id in waiting.result(5)] == ["c"]


def test_the_results_stream_is_trimmed(with_limits: Callable[..., Ledger]) -> None:
    ledger = with_limits(results_stream_length=100)
    for number in range(400):
        job_id = f"j{number}"
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
        ledger.cancel(job_id)
    assert len(ledger.end_cancelled()) == 400
    assert ledger.client.xlen(ledger.keys.results) < 300, "the length is kept roughly, in whole nodes of the stream"


def test_the_stream_and_the_status_name_no_path(ledger: Ledger) -> None:
    ledger.submit(REQUEST.model_copy(update={"img_path": "/in/Jane-Doe.png"}))
    claim = claimed(ledger)
    ledger.finish(claim, answer())
    assert "Jane" not in str(dataclasses.asdict(ledger.status("a")))
    assert "Jane" not in str(ledger.client.xrange(ledger.keys.results))


def test_jobs_are_listed_running_first_and_limited_by_group(ledger: Ledger) -> None:
    for job_id in ("a", "b", "c", "d"):
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id}))
    ledger.finish(claimed(ledger, "a"), answer("a"))
    claimed(ledger, "b")
    assert ledger.jobs()[0].job_id == "b"
    assert {job.job_id: job.state.value for job in ledger.jobs()} == {
        "a": "done",
        "b": "running",
        "c": "queued",
        "d": "queued",
    }
    assert len(ledger.jobs(limit=1)) == 3


def test_ready_nodes_are_those_with_a_key(ledger: Ledger) -> None:
    assert ledger.ready_nodes() == []
    for node in ("gpu1@host", "gpu0@host"):
        ledger.client.set(ledger.keys.ready(node), "1", ex=60)
    assert ledger.ready_nodes() == ["gpu0@host", "gpu1@host"]


def test_systems_with_different_prefixes_do_not_meet(ledger: Ledger, settings: Settings) -> None:
    other = Ledger(ledger.client, settings.model_copy(update={"key_prefix": "other"}))
    ledger.submit(REQUEST)
    assert other.claim("a", "w1") is None
    assert other.submit(REQUEST).created


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:wrong@127.0.0.1:{port}/0", "refuses the user or the password"),
        ("redis://127.0.0.1:1/0", "does not answer"),
        ("http://127.0.0.1/", "is not valid"),
        ("redis://127.0.0.1/0?colour=red", "is not valid"),
        ("redis://" + "x" * 80 + "/0", "is not valid"),
        ("unix:///nowhere/redis.sock", "does not answer"),
    ],
)
def test_what_goes_wrong_with_redis_is_said_without_the_password(
    url: str, reason: str, settings: Settings, ledger: Ledger
) -> None:
    port = ledger.client.connection_pool.connection_kwargs["port"]
    with pytest.raises(BrokerUnavailableError, match=reason) as caught:  # noqa: PT012 - either step may find the fault
        client = connect(Settings(redis_url=url.format(port=port)))
        Ledger(client, settings).last_entry()
    assert "wrong" not in str(caught.value)


def test_a_request_of_a_later_version_ends_its_job(ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    document = json.loads(ledger.client.hget(ledger.keys.job("a"), "request"))
    ledger.client.hset(ledger.keys.job("a"), "request", json.dumps({**document, "field_of_2031": "Jane"}))
    assert ledger.claim("a", "worker") is JobState.FAILED
    result = ledger.result("a")
    assert result is not None
    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert "upgrade the workers" in result.error.message
    assert "Jane" not in result.error.message
    assert ledger.status("a").state is JobState.FAILED


def announce(ledger: Ledger, settings: Settings, *job_ids: str, priority: Priority = Priority.ROUTINE) -> None:
    """Enter jobs and put their messages into the queue, as a producer does."""
    app = make_app(settings)
    for job_id in job_ids:
        ledger.submit(REQUEST.model_copy(update={"job_id": job_id, "priority": priority}))
        wake_worker(app, job_id, priority)


def waiting(ledger: Ledger) -> int:
    return sum(int(ledger.client.llen(ledger.keys.celery + queue)) for queue in (QUEUE_URGENT, QUEUE_ROUTINE))


def test_what_waits_is_taken_along_with_its_messages_in_order(ledger: Ledger, settings: Settings) -> None:
    announce(ledger, settings, "a", "b", "c", "d")
    announce(ledger, settings, "u", priority=Priority.URGENT)
    claims = ledger.take("w1", count=3)
    assert [claim.job_id for claim in claims] == ["u", "a", "b"]
    assert {claim.attempts for claim in claims} == {1}
    assert waiting(ledger) == 2
    assert ledger.status("b").state is JobState.RUNNING
    assert ledger.status("b").worker == "w1"
    assert ledger.heartbeat(claims[1]) is Heartbeat.OK
    ledger.finish(claims[1], answer("a"))
    assert ledger.status("a").state is JobState.DONE
    assert [claim.job_id for claim in ledger.take("w2", count=9)] == ["c", "d"]
    assert ledger.take("w2", count=9) == []
    assert waiting(ledger) == 0


def test_two_nodes_never_take_the_same_job_along(ledger: Ledger, settings: Settings) -> None:
    announce(ledger, settings, *(f"job-{number}" for number in range(40)))
    with ThreadPoolExecutor(4) as nodes:
        taken = list(nodes.map(lambda name: ledger.take(name, count=15), ["a", "b", "c", "d"]))
    ids = [claim.job_id for claims in taken for claim in claims]
    assert sorted(ids) == sorted(f"job-{number}" for number in range(40))


def test_a_message_whose_job_is_no_longer_queued_is_removed(ledger: Ledger, settings: Settings) -> None:
    announce(ledger, settings, "a", "b")
    claimed(ledger, "a")
    assert [claim.job_id for claim in ledger.take("w1", count=9)] == ["b"]
    assert waiting(ledger) == 0


def test_jobs_that_were_tried_before_or_are_to_be_cancelled_come_alone(ledger: Ledger, settings: Settings) -> None:
    announce(ledger, settings, "a", "b")
    ledger.release(claimed(ledger, "a"), counted=True)
    assert ledger.take("w1", count=9) == []
    assert waiting(ledger) == 2
    ledger.finish(claimed(ledger, "a"), answer("a"))
    ledger.cancel("b")
    assert ledger.take("w1", count=9) == []
    assert ledger.status("b").state is JobState.QUEUED


@pytest.mark.parametrize(
    "message",
    [
        b"not JSON",
        b"[]",
        b'{"headers": 1}',
        b'{"headers": {"id": 3, "task": "osteopan.process"}}',
        b'{"headers": {"id": "a", "task": "strange"}}',
    ],
)
def test_what_is_no_message_of_ours_is_left_in_the_queue(ledger: Ledger, settings: Settings, message: bytes) -> None:
    ledger.client.rpush(ledger.keys.celery + QUEUE_ROUTINE, message)
    announce(ledger, settings, "a")
    assert ledger.take("w1", count=9) == []
    assert waiting(ledger) == 2
    assert ledger.status("a").state is JobState.QUEUED
