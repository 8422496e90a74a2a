"""Jobs that were given up: shown, run anew under another id, let go."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import pytest

from contract.errors import InvalidRequestError, JobConflictError, TooManyOpenJobsError, UnknownJobError
from contract.jobs import JobRequest, JobState
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from producer.client import Client
from producer.dead import retry_id
from producer.exit_codes import ExitCode

Run = Callable[..., subprocess.CompletedProcess[str]]
Die = Callable[..., None]


def test_the_same_request_runs_under_a_new_id_and_the_old_job_is_let_go(
    client: Client, ledger: Ledger, die: Die
) -> None:
    die("a", metadata={"case": 7}, model="b7", priority="urgent")
    submission = client.dead.retry("a")
    assert (submission.job_id, submission.state, submission.created) == ("a-retry-1", JobState.QUEUED, True)
    claim = ledger.claim("a-retry-1", "w")
    assert isinstance(claim, Claim)
    assert claim.attempts == 1
    assert claim.request == ledger.request("a").model_copy(update={"job_id": "a-retry-1"})
    assert client.dead.ids() == []
    assert ledger.client.ttl(ledger.keys.job("a")) > 0
    assert ledger.client.llen("osteopan:celery:osteopan.urgent") == 2, "a worker is woken for the new job as well"


def test_who_stops_between_the_two_steps_and_tries_again_runs_nothing_twice(
    client: Client, ledger: Ledger, die: Die
) -> None:
    die("a")
    client.submit(ledger.request("a").model_copy(update={"job_id": "a-retry-1"}))
    again = client.dead.retry("a")
    assert (again.job_id, again.created) == ("a-retry-1", False)
    assert client.dead.ids() == []
    assert ledger.counts()[JobState.QUEUED] == 1


def test_a_job_that_is_given_up_again_is_counted_on(client: Client, die: Die) -> None:
    die("a")
    client.dead.retry("a")
    die("a-retry-1")
    assert client.dead.retry("a-retry-1").job_id == "a-retry-2"
    assert client.dead.ids() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a", "a-retry-1"),
        ("a-retry-1", "a-retry-2"),
        ("a-retry-99", "a-retry-100"),
        ("a-retry-", "a-retry--retry-1"),
        ("x" * 56, "x" * 56 + "-retry-1"),
    ],
)
def test_the_new_id_tells_of_the_old_one(old: str, new: str) -> None:
    assert retry_id(old) == new


def test_long_ids_that_differ_at_the_end_have_different_new_ids_that_are_valid() -> None:
    ids = {f"1.2.840.{'9' * 54}{number}" for number in range(10, 60)}
    assert {len(job_id) for job_id in ids} == {64}
    for _ in range(12):
        ids = {retry_id(job_id) for job_id in ids}
        assert len(ids) == 50
        for job_id in ids:
            JobRequest(img_path="/a", destination_path="/b", job_id=job_id)
    assert all(job_id.endswith("-retry-12") for job_id in ids)


def test_a_retry_that_is_refused_leaves_the_dead_where_they_are(client: Client, settings: Settings, die: Die) -> None:
    die("a")
    with Client(settings.model_copy(update={"max_open_jobs": 1})) as full:
        client.submit({"img_path": "/in/b.png", "destination_path": "/out"})
        with pytest.raises(TooManyOpenJobsError, match="at most 1"):
            full.dead.retry("a")
    client.submit({"img_path": "/in/b.png", "destination_path": "/out", "job_id": "a-retry-1"})
    with pytest.raises(JobConflictError, match="a-retry-1 belongs to another request"):
        client.dead.retry("a")
    assert client.dead.ids() == ["a"]


def test_a_dropped_job_is_dead_no_more_and_expires(client: Client, ledger: Ledger, die: Die) -> None:
    die("a")
    assert ledger.client.ttl(ledger.keys.job("a")) == -1
    client.dead.drop("a")
    assert client.dead.jobs() == []
    assert 0 < ledger.client.ttl(ledger.keys.job("a")) <= ledger.settings.result_ttl_s


def test_what_is_not_among_the_dead_is_left_alone(client: Client, ledger: Ledger, die: Die) -> None:
    client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": "open"})
    die("dropped")
    client.dead.drop("dropped")
    for call in (client.dead.job, client.dead.retry, client.dead.drop):
        with pytest.raises(UnknownJobError, match="job open is not among the dead: it is queued"):
            call("open")
        with pytest.raises(UnknownJobError, match="has been retried or dropped since"):
            call("dropped")
        with pytest.raises(UnknownJobError, match="no job nobody is known"):
            call("nobody")
        with pytest.raises(InvalidRequestError, match="not the id of a job"):
            call("a b")
    assert ledger.counts()[JobState.QUEUED] == 1


def test_all_there_is_about_one_and_what_is_left_when_the_result_has_expired(
    client: Client, ledger: Ledger, die: Die
) -> None:
    die("a")
    job = client.dead.job("a")
    assert (job.status.state, job.request) == (JobState.DEAD, ledger.request("a"))
    assert job.result == ledger.result("a")
    ledger.client.delete(ledger.keys.result("a"))
    assert client.dead.job("a").result is None


def test_the_list_names_no_path_and_is_complete(producer: Run, client: Client, die: Die) -> None:
    assert producer("dead", "list").stdout == "no dead jobs\n"
    for number in range(101):
        die(f"j{number:03}")
    assert len(client.dead.jobs()) == 100
    table, lines = producer("dead", "list"), producer("dead", "list", "--json")
    jobs = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [job["job_id"] for job in jobs] == [f"j{number:03}" for number in reversed(range(101))]
    assert {(job["state"], job["attempts"], job["worker"]) for job in jobs} == {("dead", 1, "test-node")}
    assert all(re.search(rf"^ *{job['job_id']} +dead ", table.stdout, re.MULTILINE) for job in jobs)
    assert "Jane" not in table.stdout + lines.stdout + table.stderr + lines.stderr


def test_show_tells_whose_picture_it_is_and_what_became_of_it(producer: Run, ledger: Ledger, die: Die) -> None:
    die("a", metadata={"Fall": "Ä7"})
    shown = producer("dead", "show", "a")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert "picture    /in/Jane-Doe.png" in lines
    assert "results in /out" in lines
    assert 'metadata   {"Fall": "Ä7"}' in lines
    assert "error      worker_lost: 3 workers ended while they had this job" in lines
    document = json.loads(producer("dead", "show", "a", "--json").stdout)
    assert document["request"] == json.loads(ledger.request("a").model_dump_json())
    assert document["result"] == json.loads(ledger.client.get(ledger.keys.result("a")) or "")
    ledger.client.delete(ledger.keys.result("a"))
    assert "the result has expired" in producer("dead", "show", "a").stdout
    assert json.loads(producer("dead", "show", "a", "--json").stdout)["result"] is None


def test_retry_prints_both_ids_and_drop_prints_one(producer: Run, client: Client, die: Die) -> None:
    for job_id in ("a", "b", "c", "d"):
        die(job_id)
    one = producer("dead", "retry", "a")
    assert (one.returncode, one.stdout, one.stderr) == (0, "a a-retry-1\n", "")
    several = producer("dead", "retry", "c", "a", "b")
    assert (several.returncode, several.stdout) == (ExitCode.SOME_FAILED, "c c-retry-1\nb b-retry-1\n")
    assert several.stderr.startswith("a: job a is not among the dead")
    assert client.dead.ids() == ["d"]
    dropped = producer("dead", "drop", "d")
    assert (dropped.returncode, dropped.stdout, dropped.stderr) == (0, "d\n", "")
    assert client.dead.ids() == []


@pytest.mark.parametrize(("command", "printed"), [("retry", "a a-retry-1\nb b-retry-1\n"), ("drop", "a\nb\n")])
def test_all_of_them_in_the_order_in_which_they_were_given_up(
    command: str, printed: str, producer: Run, client: Client, die: Die
) -> None:
    none = producer("dead", command, "--all")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no dead jobs\n")
    for job_id in ("a", "b"):
        die(job_id)
    done = producer("dead", command, "--all")
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
    assert client.dead.ids() == []


def test_a_retry_that_finds_the_new_job_there_says_so(producer: Run, client: Client, ledger: Ledger, die: Die) -> None:
    die("a")
    client.submit(ledger.request("a").model_copy(update={"job_id": "a-retry-1"}))
    done = producer("dead", "retry", "a")
    assert (done.returncode, done.stdout) == (0, "a a-retry-1\n")
    assert done.stderr == "job a-retry-1 was there already, and is queued\n"


@pytest.mark.parametrize("command", ["retry", "drop"])
@pytest.mark.parametrize("arguments", [[], ["a", "--all"]])
def test_ids_or_all_and_not_both(command: str, arguments: list[str], producer: Run, client: Client, die: Die) -> None:
    die("a")
    done = producer("dead", command, *arguments)
    assert done.returncode == ExitCode.USAGE
    assert "give ids, or --all" in done.stderr
    assert client.dead.ids() == ["a"]


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_a_job_that_is_not_among_the_dead_has_an_exit_code(command: str, producer: Run, client: Client) -> None:
    client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": "a"})
    done = producer("dead", command, "a")
    assert (done.returncode, done.stdout) == (ExitCode.UNKNOWN_JOB, "")
    assert done.stderr == "producer: job a is not among the dead: it is queued\n"


def test_a_full_ledger_ends_a_retry_of_all(producer: Run, client: Client, die: Die) -> None:
    for job_id in ("a", "b"):
        die(job_id)
    done = producer("dead", "retry", "--all", OSTEOPAN_MAX_OPEN_JOBS="1")
    assert (done.returncode, done.stdout) == (ExitCode.REFUSED, "a a-retry-1\n")
    assert client.dead.ids() == ["b"]


@pytest.mark.parametrize("command", ["list", "show", "retry", "drop"])
def test_help_ends_in_commands(command: str, producer: Run) -> None:
    page = producer("dead", command, "--help").stdout
    assert page.splitlines()[-1].startswith(f"    producer dead {command}")
    assert page.isascii(), "nothing drawn around it"
