"""The command `producer`, run as a person or a script runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BrokerUnavailableError
from contract.jobs import RESEARCH_USE, JobResult, JobState
from contract.ledger import Ledger
from contract.records import Claim
from producer.batch import Batch
from producer.client import Client
from producer.exit_codes import ExitCode
from producer.requests_from import RequestReader
from producer.waiting import Wait

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
Answering = Callable[..., AbstractContextManager[None]]


def eventually(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def queued(ledger: Ledger) -> list[str]:
    return list(ledger.client.zrange(ledger.keys.queued, 0, -1))


def picture(folder: Path, name: str = "a.png") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    return path


def test_submit_prints_the_id_of_a_job_that_is_queued_with_absolute_paths(
    producer: Run, ledger: Ledger, tmp_path: Path
) -> None:
    picture(tmp_path)
    done = producer("submit", "a.png", "--priority", "urgent", "--model", "b7")
    assert (done.returncode, done.stderr) == (0, "")
    claim = ledger.claim(done.stdout.strip(), "w")
    assert isinstance(claim, Claim)
    assert claim.request.model_dump(mode="json") == {
        "img_path": f"{tmp_path}/a.png",
        "destination_path": f"{tmp_path}/osteopan-output",
        "job_id": done.stdout.strip(),
        "model": "b7",
        "priority": "urgent",
        "metadata": {},
    }
    assert ledger.client.llen("osteopan:celery:osteopan.urgent") == 1


def test_submit_with_json_prints_an_object_for_each_picture_of_a_folder(producer: Run, tmp_path: Path) -> None:
    for name in ("in/b.png", "in/a.jpg"):
        picture(tmp_path, name)
    done = producer("submit", "in", "--destination", "out", "--json")
    jobs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(sorted(job), job["state"], job["created"]) for job in jobs] == [
        (["created", "job_id", "state"], "queued", True)
    ] * 2


@pytest.mark.usefixtures("worker")
def test_waiting_ends_with_a_table_and_the_words_research_use(producer: Run, tmp_path: Path) -> None:
    picture(tmp_path, "fine.png")
    picture(tmp_path, "broken.png")
    done = producer("submit", "fine.png", "broken.png", "--destination", "out", "--wait")
    assert done.returncode == ExitCode.SOME_FAILED
    fine = next(line for line in done.stdout.splitlines() if "fine.png" in line)
    assert re.split(r"\s{2,}", fine.strip()) == [
        "fine.png",
        "Healthy Patient",
        "0.125",
        "low_contrast",
        f"{tmp_path}/out",
    ]
    broken = next(line for line in done.stdout.splitlines() if "broken.png" in line)
    assert re.split(r"\s{2,}", broken.strip()) == ["broken.png", "failed", "image_unreadable: not a picture"]
    assert done.stdout.splitlines()[-1] == RESEARCH_USE
    assert done.stderr == ""


@pytest.mark.usefixtures("worker")
def test_json_lines_go_in_and_the_stored_results_come_out(producer_process: Run, ledger: Ledger) -> None:
    lines = [
        {"img_path": "relative/é.png", "destination_path": "out", "job_id": "one", "metadata": {"name": "Ω"}},
        {"img_path": "/in/b.png"},
        {"img_path": "/in/missing.png", "destination_path": "/out", "job_id": "two", "priority": "urgent"},
        {"img_path": "/in/other.png", "destination_path": "/out", "job_id": "one"},
    ]
    stdin = "\n\n".join(json.dumps(line) for line in lines) + "\nnonsense"
    done = producer_process("submit", "-", "--wait", "--json", stdin=stdin, PYTHONIOENCODING="ascii")
    assert done.returncode == ExitCode.SOME_FAILED
    documents = {json.loads(line)["job_id"]: line for line in done.stdout.splitlines()}
    assert documents == {job_id: ledger.client.get(ledger.keys.result(job_id)) for job_id in ("one", "two")}
    assert "Ω" in documents["one"]
    notes = done.stderr.splitlines()
    assert [note.split(":")[0] for note in notes] == ["line 3", "line 7", "line 8"]
    assert "destination_path" in notes[0]
    assert "another request" in notes[1]
    assert "not JSON" in notes[2]


def test_without_a_worker_one_is_told_and_the_timeout_names_the_open_jobs(
    producer: Run, ledger: Ledger, tmp_path: Path
) -> None:
    picture(tmp_path)
    done = producer("submit", "a.png", "--job-id", "mine", "--wait", "--timeout", "3.2")
    assert done.returncode == ExitCode.TIMED_OUT
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "no worker is ready yet; start one with `worker run --cpu` or `osteopan up`",
        "not ended after 3.2 s, and going on:",
        "mine",
    ]
    assert ledger.status("mine").state is JobState.QUEUED


def test_an_id_is_for_one_request(producer: Run, ledger: Ledger, tmp_path: Path) -> None:
    picture(tmp_path)
    assert producer("submit", "a.png", "--job-id", "mine").stdout == "mine\n"
    again = producer("submit", "a.png", "--job-id", "mine", "--json")
    assert json.loads(again.stdout) == {"job_id": "mine", "state": "queued", "created": False}
    other = producer("submit", "a.png", "--job-id", "mine", "--priority", "urgent")
    assert (other.returncode, other.stdout) == (ExitCode.REFUSED, "")
    assert other.stderr.startswith("producer: job id mine belongs to another request")
    assert queued(ledger) == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["submit", "a.png", "missing.png"], "producer: missing.png: No such file or directory"),
        (["submit", "a.png", "-", "--job-id", "new"], "one id is for one picture"),
        (["submit", "a.png", "--job-id", "not/allowed"], "`job_id`: String should match pattern"),
        (["submit", "a.png", "--timeout", "5"], "needs --wait"),
        (["submit", "a.png", "--wait", "--timeout", "nan"], "not a number of seconds"),
        (["submit", "a.png", "--priority", "soon"], "'soon' is not one of"),
        (["submit"], "Missing argument"),
        (["submit", "-", "--destination", "out"], "each line says it itself"),
        (["result", "a:b"], "not the id of a job"),
        (["follow", "--since", "yesterday"], "not the id of a stream entry"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_queues_nothing(
    arguments: list[str], reason: str, producer: Run, ledger: Ledger, tmp_path: Path
) -> None:
    picture(tmp_path)
    done = producer(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert queued(ledger) == []


def test_a_name_that_is_not_utf_8_is_refused_and_the_rest_go_on(producer: Run, ledger: Ledger, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/Andr\xe9\x1b[31m.png"
    Path(os.fsdecode(odd)).write_bytes(b"")
    picture(tmp_path)
    done = producer("submit", odd, "a.png")
    assert done.returncode == ExitCode.SOME_FAILED
    assert queued(ledger) == done.stdout.split()
    assert len(queued(ledger)) == 1
    assert "the name is not UTF-8" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("url", ["redis://:canary@127.0.0.1:1/0", "redis://:canary@127.0.0.1/0?colour=red"])
def test_without_redis_there_is_a_sentence_and_an_exit_code(url: str, producer: Run) -> None:
    done = producer("--redis-url", url, "status")
    assert done.returncode == ExitCode.NO_BROKER
    assert re.fullmatch(r"producer: .*OSTEOPAN_REDIS_URL.*\n", done.stderr)
    assert "canary" not in done.stderr


def test_a_bad_setting_is_named(producer: Run) -> None:
    done = producer("status", OSTEOPAN_MAX_ATTEMPTS="none")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.startswith("producer: OSTEOPAN_MAX_ATTEMPTS: ")


def test_a_job_from_submission_to_the_end_names_no_patient(producer: Run, client: Client, ledger: Ledger) -> None:
    client.submit({"img_path": "/in/Jane-Doe.png", "destination_path": "/out", "job_id": "a"})
    unready = producer("status")
    assert re.search(r"^queued +1$", unready.stdout, re.MULTILINE)
    assert "no worker is ready yet" in unready.stdout
    pending = producer("result", "a")
    assert (pending.returncode, pending.stdout) == (ExitCode.TIMED_OUT, "")
    assert pending.stderr == "producer: job a is queued; --wait waits for its result\n"

    ledger.client.set(ledger.keys.ready("gpu0@host"), "1")
    claim = ledger.claim("a", "gpu0@host")
    assert isinstance(claim, Claim)
    ledger.heartbeat(claim, "network")
    overview, status, jobs = producer("status"), producer("status", "a"), producer("list")
    assert re.search(r"^ready +gpu0@host$", overview.stdout, re.MULTILINE)
    assert re.search(r"^stage +network$", status.stdout, re.MULTILINE)
    assert re.search(r"^ *a +running +network +routine +1 +gpu0@host ", jobs.stdout, re.MULTILINE)
    told = producer("cancel", "a", "--timeout", "0.2")
    assert (told.returncode, told.stdout) == (0, "running\n")
    assert told.stderr == "job a is not cancelled yet: its worker ends it when its present stage is over\n"
    assert "Jane" not in "".join(done.stdout + done.stderr for done in (unready, pending, overview, status, jobs, told))


@pytest.mark.usefixtures("node")
def test_cancelling_and_asking_for_what_has_ended_or_never_was(
    producer: Run, client: Client, ledger: Ledger, answer_to: Callable[[Claim], JobResult]
) -> None:
    assert producer("list").stdout == "no jobs\n"
    client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": "a"})
    cancelled = producer("cancel", "a")
    assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (0, "cancelled\n", "")
    table = producer("result", "a")
    assert table.returncode == ExitCode.SOME_FAILED
    assert "cancelled: the job was cancelled while it was queued" in table.stdout
    client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": "b"})
    claim = ledger.claim("b", "w")
    assert isinstance(claim, Claim)
    ledger.finish(claim, answer_to(claim))
    result = producer("result", "b", "--wait", "--json")
    assert (result.returncode, result.stdout) == (0, f"{ledger.client.get(ledger.keys.result('b'))}\n")
    late = producer("cancel", "b")
    assert (late.returncode, late.stderr) == (ExitCode.REFUSED, "job b has ended already: done\n")
    nobody = producer("result", "nobody", "--wait")
    assert (nobody.returncode, nobody.stdout) == (ExitCode.UNKNOWN_JOB, "")
    assert nobody.stderr.startswith("producer: no job nobody is known")


def test_a_queued_job_is_cancelled_by_the_next_node_and_this_is_said(
    producer: Run, client: Client, ledger: Ledger
) -> None:
    client.submit({"img_path": "/in/a.png", "destination_path": "/out", "job_id": "a"})
    asked = producer("cancel", "a", "--timeout", "0")
    assert (asked.returncode, asked.stdout) == (0, "queued\n")
    assert re.fullmatch(r"job a is not cancelled yet: .*`producer status`.*\n", asked.stderr)
    assert ledger.end_cancelled() == ["a"]


@pytest.mark.parametrize("delay_s", [0, 1])
def test_an_interrupted_wait_says_that_the_jobs_go_on(
    delay_s: float, start_producer: Start, ledger: Ledger, tmp_path: Path
) -> None:
    picture(tmp_path)
    process = start_producer("submit", "a.png", "--job-id", "mine", "--wait")
    eventually(lambda: queued(ledger) == ["mine"])
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (ExitCode.INTERRUPTED, "")
    assert stderr.splitlines() == [
        "stopped. Jobs that are queued or running go on; `producer result ID --wait` waits for one of these:",
        "mine",
    ]
    assert ledger.status("mine").state is JobState.QUEUED


def test_an_interrupted_submission_keeps_what_is_queued(start_producer: Start, ledger: Ledger) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb", buffering=0) as stdin:
        process = start_producer("submit", "-", stdin=read_end)
        os.close(read_end)
        stdin.write(b'{"img_path": "/a", "destination_path": "/out", "job_id": "mine"}\n')
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n", "a line is queued when it comes, not when the input ends"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr.splitlines()[1:] == ["mine"]
    assert queued(ledger) == ["mine"]


def line(job_id: str, img_path: str = "/in/a.png") -> str:
    return json.dumps({"img_path": img_path, "destination_path": "/out", "job_id": job_id}) + "\n"


def test_lines_are_answered_while_more_may_come(start_producer: Start, ledger: Ledger, worker: None) -> None:
    process = start_producer("submit", "-", "--wait", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for job_id in ("one", "two"):
        process.stdin.write(line(job_id))
        process.stdin.flush()
        assert process.stdout.readline() == f"{ledger.client.get(ledger.keys.result(job_id))}\n"
    stdout, stderr = process.communicate(line("three", "/in/broken.png"), timeout=10)
    assert [json.loads(answer)["job_id"] for answer in stdout.splitlines()] == ["three"]
    assert (process.returncode, stderr) == (ExitCode.SOME_FAILED, "")


def test_lines_that_come_while_redis_is_away_are_queued_when_it_answers(
    start_producer: Start, redis_server: Any, answering: Answering
) -> None:
    process = start_producer("submit", "-", "--wait", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with answering():
        process.stdin.write(line("before"))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["job_id"] == "before"
    redis_server.kill()
    process.stdin.write(line("during") + line("after"))
    process.stdin.flush()
    time.sleep(1)
    redis_server.start()
    with answering():
        stdout, stderr = process.communicate(timeout=20)
    assert {json.loads(answer)["job_id"] for answer in stdout.splitlines()} == {"during", "after"}
    assert process.returncode == 0
    assert stderr.splitlines()[1:] == ["Redis answers again"]


def test_a_line_that_met_an_outage_keeps_the_id_that_it_was_given(
    client: Client, ledger: Ledger, redis_server: Any
) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"):
        waiting = Wait(ledger)
        batch = Batch(client, waiting, as_json=True)
        reader = RequestReader(read_end)
        with os.fdopen(write_end, "wb", buffering=0) as lines:
            lines.write(b'{"img_path": "/in/a.png", "destination_path": "/out"}\n')
            redis_server.kill()
            with pytest.raises(BrokerUnavailableError, match="does not answer"):
                batch.submit_from(reader, 5)
            (job_id,) = batch.open_ids()
            redis_server.start()
            assert batch.submit_from(reader, 5), "more may come"
        assert not batch.submit_from(reader, 5)
    assert queued(ledger) == list(waiting.open) == [job_id]


def test_hundreds_of_lines_are_answered_each_once(producer_process: Run, worker: None) -> None:
    done = producer_process("submit", "-", "--wait", "--json", stdin="".join(line(f"j{n}") for n in range(600)))
    assert sorted(json.loads(answer)["job_id"] for answer in done.stdout.splitlines()) == sorted(
        f"j{n}" for n in range(600)
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_timeout_of_lines_begins_at_their_end(start_producer: Start, answering: Answering) -> None:
    process = start_producer("submit", "-", "--wait", "--json", "--timeout", "1", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(line("mine"))
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
        process.wait(1.7)
    hold = threading.Event()
    late = threading.Timer(0.3, hold.set)
    with answering(hold=hold):
        late.start()
        stdout, stderr = process.communicate(timeout=10)
        late.join()
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(stdout)["job_id"] == "mine"


def test_a_wait_for_lines_that_is_interrupted_names_the_open_jobs(start_producer: Start, ledger: Ledger) -> None:
    process = start_producer("submit", "-", "--wait", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(line("mine"))
    process.stdin.flush()
    eventually(lambda: queued(ledger) == ["mine"])
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == ExitCode.INTERRUPTED, "although standard input is still open"
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[1:] == ["mine"]


def test_a_full_ledger_ends_the_lines_and_says_how_much_is_queued(producer_process: Run) -> None:
    stdin = "".join(line(f"j{n}") for n in range(3))
    done = producer_process("submit", "-", "--wait", stdin=stdin, OSTEOPAN_MAX_OPEN_JOBS="2")
    assert done.returncode == ExitCode.REFUSED
    assert done.stderr.splitlines() == [
        "queued so far: 2; the remaining requests are not queued",
        "producer: 2 jobs are open and at most 2 may be; submit again when some have ended",
    ]


def test_a_restart_of_redis_during_a_wait_is_noted_and_waited_out(
    start_producer: Start, ledger: Ledger, redis_server: Any, answering: Answering, tmp_path: Path
) -> None:
    picture(tmp_path)
    process = start_producer("submit", "a.png", "--wait", "--json")
    eventually(lambda: ledger.client.llen("osteopan:celery:osteopan.routine"))
    time.sleep(0.2)
    redis_server.kill()
    time.sleep(1)
    redis_server.start()
    with answering():
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(stdout)["diagnosis"] == "Healthy Patient"
    notes = stderr.splitlines()
    assert notes[0].startswith("Redis does not answer")
    assert notes[1] == "Redis answers again"


def test_following_prints_results_over_a_restart_and_can_be_resumed(
    start_producer: Start, ledger: Ledger, redis_server: Any, end: Callable[[str], None]
) -> None:
    end("before")
    process = start_producer("follow", "--since", ledger.last_entry())
    end("a")
    assert process.stdout is not None
    assert process.stdout.readline() == f"{ledger.client.get(ledger.keys.result('a'))}\n"
    redis_server.kill()
    time.sleep(1.5)
    redis_server.start()
    end("b")
    assert json.loads(process.stdout.readline())["job_id"] == "b"
    last = ledger.last_entry()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == ExitCode.INTERRUPTED
    notes = stderr.splitlines()
    assert "trying again" in notes[0]
    assert notes[1:] == ["Redis answers again", f"resume with --since {last}"]

    end("c")
    resumed = start_producer("follow", "--since", last)
    assert resumed.stdout is not None
    assert json.loads(resumed.stdout.readline())["job_id"] == "c"


def test_a_reader_that_goes_is_no_reason_to_complain(start_producer: Start, end: Callable[[str], None]) -> None:
    for number in range(2):
        end(f"j{number}")
    process = start_producer("follow", "--since", "0")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    end("late")
    assert process.wait(10) == ExitCode.OUTPUT_CLOSED
    assert process.stderr is not None
    assert re.fullmatch(r"resume with --since \d+-\d+\n", process.stderr.read())


def test_a_submission_whose_reader_goes_says_how_much_is_queued(
    start_producer: Start, ledger: Ledger, tmp_path: Path
) -> None:
    for number in range(3):
        picture(tmp_path, f"{number}.png")
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start_producer("submit", "0.png", "1.png", "2.png", stdout=write_end)
    os.close(write_end)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == ExitCode.OUTPUT_CLOSED
    assert stderr == "queued so far: 1; the remaining requests are not queued\n"
    assert len(queued(ledger)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(start_producer: Start) -> None:
    with Path("/dev/full").open("w") as full:
        process = start_producer("list", stdout=full.fileno())
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == ExitCode.SOME_FAILED
    assert stderr == "producer: cannot write to standard output: No space left on device\n"


def test_on_a_terminal_a_bar_shows_the_stage_and_the_output_stays_clean(
    start_producer: Start, answering: Answering, tmp_path: Path
) -> None:
    picture(tmp_path)
    hold = threading.Event()
    ours, theirs = pty.openpty()
    drawn = bytearray()

    def read() -> None:
        while True:
            try:
                drawn.extend(os.read(ours, 4096))
            except OSError:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with answering(hold=hold):
        process = start_producer("submit", "a.png", "--wait", "--json", stderr=theirs)
        os.close(theirs)
        try:
            eventually(lambda: b"network" in drawn)
        finally:
            hold.set()
        stdout, _ = process.communicate(timeout=10)
    reader.join(5)
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(stdout)["diagnosis"] == "Healthy Patient"
    assert "\x1b" not in stdout


def test_a_full_ledger_refuses_and_says_how_much_is_queued(producer: Run, tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path, f"in/{number}.png")
    done = producer("submit", "in", OSTEOPAN_MAX_OPEN_JOBS="2")
    assert done.returncode == ExitCode.REFUSED
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.splitlines() == [
        "queued so far: 2; the remaining requests are not queued",
        "producer: 2 jobs are open and at most 2 may be; submit again when some have ended",
    ]


def test_help_is_quick_lists_the_exit_codes_and_ends_in_commands(producer: Run, producer_process: Run) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = producer_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1, "seconds of processor time"
    for code in ExitCode:
        assert f"{code.value:>3}  {code.meaning}" in done.stdout
    for command in ("submit", "result", "status", "list", "cancel", "follow", "dead"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("    producer ")
    submit = producer("submit", "--help").stdout
    assert "./osteopan-output" in " ".join(submit.split())
    assert "producer submit radiograph.png --wait" in submit


def test_the_version_is_that_of_the_distribution(producer: Run) -> None:
    assert re.fullmatch(r"osteopan \d+\.\d+\.\d+\n", producer("--version").stdout)
