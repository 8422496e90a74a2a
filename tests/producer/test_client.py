"""The client for programs, against a real Redis and a worker that keeps to the ledger."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from contract.errors import (
    BrokerUnavailableError,
    InvalidRequestError,
    JobConflictError,
    OsteopanError,
    ResultTimeoutError,
    TooManyOpenJobsError,
    UnknownJobError,
)
from contract.jobs import JobRequest, JobResult, JobState
from contract.ledger import Ledger
from contract.records import Claim, Heartbeat
from contract.settings import Settings
from producer.client import Client
from producer.waiting import Ended, Wait

End = Callable[[str], None]
Answering = Callable[..., AbstractContextManager[None]]


def request(name: str = "a.png", **fields: Any) -> dict[str, Any]:
    return {"img_path": f"/in/{name}", "destination_path": "/out", **fields}


@pytest.mark.usefixtures("worker")
def test_a_program_sends_two_fields_and_reads_the_result(client: Client) -> None:
    submission = client.submit(request())
    result = client.result(submission.job_id, wait_s=10)
    assert (result.result, result.diagnosis, result.job_id) == ("ok", "Healthy Patient", submission.job_id)
    assert client.status(submission.job_id).state is JobState.DONE


def test_a_submission_is_in_the_ledger_and_wakes_a_worker_through_the_queue_of_its_priority(
    client: Client, ledger: Ledger
) -> None:
    client.submit(request(job_id="slow"))
    client.submit(JobRequest.parse(request(job_id="fast", priority="urgent")))
    assert [ledger.status(job_id).state for job_id in ("slow", "fast")] == [JobState.QUEUED] * 2
    assert (
        ledger.client.llen("osteopan:celery:osteopan.routine"),
        ledger.client.llen("osteopan:celery:osteopan.urgent"),
    ) == (1, 1)


def test_relative_paths_are_made_absolute_and_links_stay(
    client: Client, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    client.submit({"img_path": "link/../a.png", "destination_path": "out", "job_id": "a"})
    claim = ledger.claim("a", "w")
    assert claim.request.img_path == f"{tmp_path}/link/../a.png"  # type: ignore[union-attr]
    assert claim.request.destination_path == f"{tmp_path}/out"  # type: ignore[union-attr]


def test_the_same_request_again_is_the_same_job_and_another_is_refused(client: Client) -> None:
    assert client.submit(request(job_id="a")).created
    assert not client.submit(request(job_id="a")).created
    with pytest.raises(JobConflictError, match="another request"):
        client.submit(request("b.png", job_id="a"))


def test_an_ended_job_submitted_again_wakes_nobody(client: Client, ledger: Ledger, end: End) -> None:
    client.submit(request(job_id="a"))
    end("a")
    ledger.client.delete("osteopan:celery:osteopan.routine")
    assert client.submit(request(job_id="a")).state is JobState.CANCELLED
    assert ledger.client.llen("osteopan:celery:osteopan.routine") == 0


def test_of_many_requests_none_is_queued_if_one_does_not_fit(client: Client, ledger: Ledger) -> None:
    with pytest.raises(InvalidRequestError, match="`destination_path`: Field required"):
        client.submit_many([request(), {"img_path": "/in/b.png"}])
    assert ledger.counts()[JobState.QUEUED] == 0
    assert [job.created for job in client.submit_many([request(), request("b.png")])] == [True, True]


def test_a_full_ledger_refuses(settings: Settings) -> None:
    with Client(settings.model_copy(update={"max_open_jobs": 1})) as client:
        with pytest.raises(TooManyOpenJobsError, match="at most 1"):
            client.submit_many([request(), request("b.png")])
        assert len(client.jobs()) == 1


def test_a_job_whose_message_is_lost_is_queued_all_the_same_and_the_log_names_its_id(
    client: Client, ledger: Ledger, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.client.acl_setuser(
        "scripts", enabled=True, passwords=["+pw"], categories=["+@all"], commands=["-lpush"], keys=["*"]
    )
    try:
        password = settings.broker_url().split("//:")[1].split("@")[0]
        url = settings.broker_url().replace(f":{password}", "scripts:pw")
        with caplog.at_level(logging.WARNING), Client.from_url(url) as restricted:
            assert restricted.submit(request("Jane-Doe.png", job_id="a")).created
    finally:
        ledger.client.acl_deluser("scripts")
    assert client.status("a").state is JobState.QUEUED
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("producer")]
    assert ours == ["job a is queued, but no worker was told; one will find it"]
    assert "Jane" not in caplog.text


def test_a_result_that_is_not_there_is_not_waited_for_unless_asked(client: Client) -> None:
    client.submit(request(job_id="a"))
    start_s = time.monotonic()
    with pytest.raises(ResultTimeoutError, match="job a has not ended; what is queued"):
        client.result("a")
    assert time.monotonic() - start_s < 0.5
    with pytest.raises(ResultTimeoutError, match="job a has not ended after 0.3 s"):
        client.result("a", wait_s=0.3)
    assert 0.3 <= time.monotonic() - start_s < 3


@pytest.mark.parametrize("job_id", ["nobody", "x" * 64])
def test_an_unknown_job_is_not_waited_for(client: Client, job_id: str) -> None:
    for call in (client.status, client.cancel, lambda job: client.result(job, wait_s=60)):
        with pytest.raises(UnknownJobError, match="known"):
            call(job_id)


@pytest.mark.parametrize("job_id", ["", "a b", "a:b", "\udcff", "x" * 65])
def test_what_cannot_be_an_id_is_refused_without_repeating_it(client: Client, job_id: str) -> None:
    for call in (client.status, client.cancel, client.result):
        with pytest.raises(InvalidRequestError, match="not the id of a job"):
            call(job_id)


@pytest.mark.usefixtures("worker")
def test_a_thousand_results_come_as_they_finish_and_each_once(client: Client) -> None:
    ids = [job.job_id for job in client.submit_many(request(f"{number}.png") for number in range(1000))]
    results = [result.job_id for result in client.results(ids, 30)]
    assert len(results) == 1000
    assert set(results) == set(ids)


def test_the_results_of_others_come_before_the_complaint_about_a_lost_one(
    client: Client, ledger: Ledger, end: End
) -> None:
    for name in ("a", "expired"):
        end(name)
    ledger.client.delete(ledger.keys.result("expired"))
    results = client.results(["expired", "a", "nobody"], 10)
    assert next(results).job_id == "a"
    with pytest.raises(UnknownJobError, match=r"2 jobs \(expired, nobody\) have no result"):
        next(results)


def test_entries_trimmed_from_the_stream_are_made_up_for(client: Client, ledger: Ledger, end: End) -> None:
    wait = Wait(ledger)
    ids = [job.job_id for job in client.submit_many(request() for _ in range(5))]
    wait.add(ids)
    assert wait.poll(0.01) == []
    for job_id in ids:
        end(job_id)
    ledger.client.xtrim(ledger.keys.results, maxlen=2, approximate=False)
    assert {job.job_id for job in wait.poll(0.01)} == set(ids[3:])
    wait.add(list(wait.open))
    assert {job.job_id for job in wait.poll(0.01)} == set(ids[:3])
    assert not wait.open


def test_many_entries_of_other_jobs_are_read_past(client: Client, ledger: Ledger, end: End) -> None:
    wait = Wait(ledger)
    client.submit(request(job_id="ours"))
    wait.add(["ours"])
    with ledger.client.pipeline() as pipeline:
        for number in range(1500):
            pipeline.xadd(ledger.keys.results, {"job_id": f"other{number}", "state": "done"})
        pipeline.execute()
    assert wait.poll(0.01) == []
    end("ours")
    ((entry_id, _),) = ledger.client.xrevrange(ledger.keys.results, count=1)
    assert [(job.job_id, job.entry_id) for job in wait.poll(0.01)] == [("ours", entry_id)]


def test_a_result_that_expires_before_it_is_read_is_lost_at_once(client: Client, ledger: Ledger, end: End) -> None:
    wait = Wait(ledger)
    client.submit(request(job_id="a"))
    wait.add(["a"])
    assert wait.poll(0.01) == []
    end("a")
    ledger.client.delete(ledger.keys.result("a"))
    assert [wait.poll(0.01), wait.poll(0.01)] == [[], []]
    assert (wait.open, wait.lost) == ({}, ["a"])


def test_a_restart_of_redis_is_waited_out(client: Client, redis_server: Any, answering: Answering) -> None:
    ids = [job.job_id for job in client.submit_many(request(f"{number}.png") for number in range(3))]
    got: list[str] = []
    waiting = threading.Thread(target=lambda: got.extend(job.job_id for job in client.results(ids, 30)))
    waiting.start()
    time.sleep(0.3)
    redis_server.kill()
    time.sleep(0.7)
    redis_server.start()
    with answering():
        waiting.join(20)
    assert sorted(got) == sorted(ids)


def test_an_outage_does_not_outlast_the_timeout(client: Client, redis_server: Any) -> None:
    job_id = client.submit(request()).job_id
    results = client.results([job_id], 1.5)
    killer = threading.Timer(0.5, redis_server.kill)
    killer.start()
    start_s = time.monotonic()
    with pytest.raises(ResultTimeoutError, match="not ended after 1.5 s"):
        next(results)
    killer.join()
    assert 1.5 <= time.monotonic() - start_s < 6


def test_a_redis_that_is_away_from_the_start_is_an_error(client: Client, redis_server: Any) -> None:
    redis_server.stop()
    start_s = time.monotonic()
    for call in (
        lambda: client.submit(request()),
        lambda: client.result("a", wait_s=60),
        lambda: client.status("a"),
        client.jobs,
        lambda: client.cancel("a"),
        lambda: next(client.follow()),
    ):
        with pytest.raises(BrokerUnavailableError, match="does not answer"):
            call()
    assert time.monotonic() - start_s < 10


@pytest.mark.usefixtures("node")
def test_cancelling_waits_until_the_job_has_ended(client: Client) -> None:
    client.submit(request(job_id="a"))
    start_s = time.monotonic()
    assert client.cancel("a") is JobState.CANCELLED
    assert time.monotonic() - start_s < 2, "it waits for the end, and no longer"
    assert client.result("a").error is not None
    assert client.cancel("a") is JobState.CANCELLED


def test_cancelling_without_a_node_leaves_the_job_to_the_next_one(client: Client, ledger: Ledger) -> None:
    client.submit(request(job_id="a"))
    start_s = time.monotonic()
    assert client.cancel("a", wait_s=0.3) is JobState.QUEUED
    assert 0.3 <= time.monotonic() - start_s < 2
    assert client.cancel("a", wait_s=0) is JobState.QUEUED
    assert ledger.end_cancelled() == ["a"]
    assert client.cancel("a") is JobState.CANCELLED


def test_cancelling_a_running_job_tells_its_worker(client: Client, ledger: Ledger) -> None:
    client.submit(request(job_id="a"))
    claim = ledger.claim("a", "w")
    assert isinstance(claim, Claim)
    assert client.cancel("a", wait_s=0) is JobState.RUNNING
    assert ledger.heartbeat(claim) is Heartbeat.CANCELLED


def test_a_job_that_ends_while_it_is_being_cancelled_keeps_its_result(
    client: Client, ledger: Ledger, answer_to: Callable[[Claim], JobResult]
) -> None:
    client.submit(request(job_id="a"))
    claim = ledger.claim("a", "w")
    assert isinstance(claim, Claim)
    late = threading.Timer(0.2, ledger.finish, (claim, answer_to(claim)))
    late.start()
    assert client.cancel("a", wait_s=10) is JobState.DONE
    assert client.cancel("a") is JobState.DONE
    late.join()


def test_following_starts_now_and_resumes_where_it_was_left(client: Client, ledger: Ledger, end: End) -> None:
    end("before")
    following = client.follow()
    for job_id in ("a", "b", "c"):
        end(job_id)
    first = next(following)
    assert first.job_id == "a"
    assert first.document == ledger.client.get(ledger.keys.result("a"))
    assert first.result == ledger.result("a")
    resumed = client.follow(first.entry_id)
    assert [next(resumed).job_id, next(resumed).job_id] == ["b", "c"]
    assert next(client.follow("0")).job_id == "before"


def test_following_goes_on_after_an_outage_and_tells_of_it(client: Client, redis_server: Any, end: End) -> None:
    told: list[OsteopanError | None] = []
    ended: list[Ended] = []
    following = client.follow(on_outage=told.append)
    end("a")
    assert next(following).job_id == "a"
    client.submit(request(job_id="b"))
    thread = threading.Thread(target=lambda: ended.append(next(following)))
    thread.start()
    redis_server.kill()
    time.sleep(0.8)
    redis_server.start()
    end("b")
    thread.join(10)
    assert [job.job_id for job in ended] == ["b"]
    assert isinstance(told[0], BrokerUnavailableError)
    assert told[1:] == [None]


@pytest.mark.parametrize("since", ["", "x", "1-", "-1", "1 ", "9" * 20])
def test_only_the_id_of_an_entry_can_be_followed_from(client: Client, since: str) -> None:
    with pytest.raises(InvalidRequestError, match="not the id of a stream entry"):
        client.follow(since)


def test_a_wrong_password_is_not_waited_out(settings: Settings, client: Client) -> None:
    password = settings.broker_url().split("//:")[1].split("@")[0]
    with Client.from_url(settings.broker_url().replace(password, "wrong-canary")) as stranger:
        for call in (lambda: next(stranger.follow("0")), lambda: stranger.result("a", wait_s=math.inf)):
            with pytest.raises(BrokerUnavailableError, match="refuses the user or the password") as caught:
                call()
            assert "canary" not in str(caught.value)


def test_a_result_of_a_later_version_is_an_error_that_says_so() -> None:
    ended = Ended("a", '{"result": "ok", "something_new": "Jane-Doe"}')
    with pytest.raises(OsteopanError, match=r"result of job a is not of schema version 1\.0") as caught:
        _ = ended.result
    assert "Jane" not in f"{caught.value}{caught.value.__cause__}"


def test_threads_may_share_a_client(client: Client, ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: client.submit(request(f"{number}.png")), range(200)))
    assert ledger.counts()[JobState.QUEUED] == 200
    assert ledger.client.llen("osteopan:celery:osteopan.routine") == 200


def test_one_client_closes_without_harm_to_another(client: Client, settings: Settings, ledger: Ledger) -> None:
    client.submit(request())
    with Client(settings) as other:
        other.submit(request())
    client.submit(request())
    assert ledger.client.llen("osteopan:celery:osteopan.routine") == 3


def test_submitting_is_fast(client: Client) -> None:
    client.submit(request())
    start_s = time.monotonic()
    client.submit_many(request() for _ in range(500))
    assert 500 / (time.monotonic() - start_s) > 100


def test_importing_the_producer_brings_neither_numpy_nor_torch_nor_celery() -> None:
    code = (
        "import sys, producer.cli, producer.client, producer.display; "
        "print([name for name in ('torch', 'numpy', 'celery', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_submitting_brings_neither_numpy_nor_torch(settings: Settings) -> None:
    code = (
        "import sys; from producer.client import Client\n"
        "with Client.from_url(sys.stdin.read()) as client:\n"
        "    client.submit({'img_path': '/a', 'destination_path': '/b'})\n"
        "print([name for name in ('torch', 'numpy', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=settings.broker_url(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
