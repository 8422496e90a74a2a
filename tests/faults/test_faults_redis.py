"""Redis crashes, and the line to it freezes, breaks and loses answers; no job is lost, and none ends twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from contract.connection import connect
from contract.errors import BrokerUnavailableError
from contract.jobs import JobState
from contract.ledger import Ledger
from contract.records import Claim

Until = Callable[..., Any]


def test_redis_killed_and_restarted_under_running_jobs_loses_none(site: Any, until: Until) -> None:
    jobs = [site.submit("large") for _ in range(4)]
    until(lambda: site.ledger.counts()[JobState.RUNNING] == 2, 30, what="both nodes busy")
    celery = [node.celery.pid for node in site.nodes]
    site.kill_redis()
    time.sleep(1.5)
    site.restart_redis()
    back_at = time.monotonic()
    results = site.settle()
    took_s = time.monotonic() - back_at
    site.note("Redis killed under two running jobs: four jobs done", f"{took_s:.1f} s after it is back")
    assert [results[job].result for job in jobs] == ["ok"] * 4
    assert [node.celery.pid for node in site.nodes] == celery, "a node was ended by the restart of Redis"


def test_a_result_waits_until_redis_is_back(site: Any) -> None:
    job = site.submit("large")
    node = site.await_stage(job, {"pictures"})
    with site.nodes[0].proxy.black_hole(), site.nodes[1].proxy.black_hole():
        time.sleep(6)
        assert site.ledger.result(job) is None
    thawed_at = time.monotonic()
    result = site.settle()[job]
    took_s = time.monotonic() - thawed_at
    site.note("Redis frozen for 6 s while a result is written: result there", f"{took_s:.1f} s after it is back")
    assert result.result == "ok"
    assert result.worker in (node.name, site.other(node).name)


def test_a_time_limit_that_strikes_while_redis_is_away_fails_no_job(site: Any) -> None:
    """An outage as long as a job may take would end in `deadline_exceeded`, and leave pictures without a result."""
    job = site.submit("large")
    node = site.await_stage(job, {"network"})
    with site.nodes[0].proxy.black_hole(), site.nodes[1].proxy.black_hole():
        for _ in range(3):
            time.sleep(2)
            # How Celery tells its child that the soft limit is over.
            node.engine.send_signal(signal.SIGUSR1)
    result = site.settle()[job]
    assert result.error is None
    assert result.attempts == 1


@pytest.mark.parametrize(("stage", "cut_off_s"), [("network", 20.0), ("pictures", 8.0)])
def test_a_worker_that_was_cut_off_comes_too_late_and_leaves_nothing(
    site: Any, until: Until, stage: str, cut_off_s: float
) -> None:
    job = site.submit("large")
    cut_off = site.await_stage(job, {stage})
    seen = cut_off.log.stat().st_size
    start = time.monotonic()
    with cut_off.proxy.black_hole():
        site.await_end(job)
        took_s = time.monotonic() - start
        site.note(f"worker cut off in the stage {stage}: job done by the other", f"after {took_s:.1f} s")
        first = site.ledger.result(job)
        time.sleep(max(0.0, cut_off_s - took_s))
    assert first.worker == site.other(cut_off).name
    until(lambda: b"job_lost" in cut_off.log.read_bytes()[seen:], 60, what="the late worker is told")
    assert site.settle() == {job: first}
    assert first.attempts == 2


def test_a_slow_line_and_broken_connections_cost_time_alone(site: Any) -> None:
    with site.nodes[0].proxy.delay(0.03), site.nodes[1].proxy.delay(0.06):
        jobs = [site.submit() for _ in range(6)]
        for _ in range(3):
            for node in site.nodes:
                time.sleep(0.4)
                node.proxy.cut()
        results = site.settle()
    assert [results[job].result for job in jobs] == ["ok"] * 6


def test_nodes_whose_connections_died_in_silence_notice_it(site: Any) -> None:
    """Both wait for messages on lines of which nobody will ever hear again."""
    for node in site.nodes:
        node.proxy.forget()
    job = site.submit()
    start = time.monotonic()
    site.await_end(job)
    site.note("all connections forgotten by a firewall: job done", f"after {time.monotonic() - start:.1f} s")
    assert site.settle()[job].result == "ok"


def test_a_node_that_cannot_reach_redis_for_a_while_comes_back(site: Any) -> None:
    alone, other = site.nodes
    other.celery.suspend()
    with alone.proxy.refusing():
        jobs = [site.submit() for _ in range(2)]
        time.sleep(4)
    start = time.monotonic()
    results = site.settle()
    other.celery.resume()
    site.note("line refused for 4 s: two jobs done", f"{time.monotonic() - start:.1f} s after it is back")
    assert [results[job].worker for job in jobs] == [alone.name] * 2


def test_a_claim_whose_answer_is_lost_costs_no_attempt(site: Any, lossy_settings: Callable[[Any], Any]) -> None:
    """The worker asks again, as itself, and is given what it was given already."""
    for node in site.nodes:
        node.celery.suspend()
    job = site.submit()
    proxy = site.nodes[0].proxy
    settings = lossy_settings(proxy)
    with connect(settings) as client:
        ledger = Ledger(client, settings)
        nonce = "one-attempt"
        client.ping()
        with proxy.answers_lost():
            threading.Timer(0.5, proxy.cut).start()
            with pytest.raises(BrokerUnavailableError, match="Redis does not answer"):
                ledger.claim(job, "left", nonce=nonce)
        assert site.ledger.status(job).state is JobState.RUNNING
        claim = ledger.claim(job, "left", nonce=nonce)
        assert isinstance(claim, Claim)
        assert (claim.attempts, claim.token) == (1, "1")
        assert ledger.claim(job, "left", nonce="another") is JobState.RUNNING
        ledger.release(claim)
    for node in site.nodes:
        node.celery.resume()
    site.settle()
