"""`osteopan up` with a stand-in worker, as a program whose parts are killed."""

from __future__ import annotations

import signal
import stat
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from contract.connection import connect
from contract.jobs import JobRequest
from contract.ledger import Ledger
from contract.settings import Settings
from local.errors import StartError
from local.up import Backoff, explicit_url, only_one_here


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_pause_grows_to_its_longest_and_starts_anew_after_a_long_run():
    clock = Clock()
    backoff = Backoff((1.0, 5.0), clock=clock)
    pauses = []
    for _ in range(4):
        pauses.append(backoff.ended())
        assert backoff.is_waiting
        clock.now_s += pauses[-1] - 0.1
        assert not backoff.start_is_due()
        clock.now_s += 0.2
        assert backoff.start_is_due()
        assert not backoff.is_waiting
    assert pauses == [1.0, 2.0, 4.0, 5.0]
    clock.now_s += 5.1
    assert backoff.ended() == 1.0


def test_second_one_in_the_same_folder_is_refused(tmp_path):
    with (
        only_one_here(tmp_path),
        pytest.raises(StartError, match=r"running already.*process \d+"),
        only_one_here(tmp_path),
    ):
        pytest.fail("two at a time")
    with only_one_here(tmp_path):
        pass


def test_redis_is_used_only_if_the_settings_name_one(tmp_path):
    assert explicit_url(Settings(state_dir=tmp_path)) is None
    assert explicit_url(Settings(redis_url=SecretStr("redis://a"), state_dir=tmp_path)) == "redis://a"
    file = tmp_path / "url"
    file.write_text("redis://b\n")
    assert explicit_url(Settings(redis_url_file=file, state_dir=tmp_path)) == "redis://b"
    assert explicit_url(Settings(redis_url_file=tmp_path / "redis.url", state_dir=tmp_path)) is None


def test_up_keeps_its_parts_running_and_its_jobs(start, tmp_path, wait_until):
    url_file = tmp_path / "state" / "redis.url"
    program = start("up", "work")
    program.wait_for("producer submit")
    assert "[one] stand-in one starts" in program.stderr
    assert stat.S_IMODE(url_file.stat().st_mode) == 0o600

    second = start("up", "work")
    assert second.wait() == 3
    assert f"running already with its data in {tmp_path / 'state'} (process {program.popen.pid})" in second.stderr

    settings = Settings(state_dir=tmp_path / "state")
    with connect(settings) as client:
        ledger = Ledger(client, settings)
        request = JobRequest(img_path="/x", destination_path=str(tmp_path))
        first = ledger.submit(request).job_id
        wait_until(lambda: ledger.result(first))

        program.find("-server 127.0.0.1:").kill()
        program.wait_for("Redis runs again")
        assert ledger.result(first).diagnosis == "Stand-in"

        worker = program.find("two")
        worker.kill()
        program.wait_for("the worker two ended by signal 9; it is started again in 1 s")
        wait_until(lambda: program.stderr.count("[two] stand-in two starts") == 2)
        second_job = ledger.submit(request).job_id
        wait_until(lambda: ledger.result(second_job))

    program.look()
    program.popen.send_signal(signal.SIGTERM)
    assert program.wait() == 0
    assert "Traceback" not in program.stderr
    assert program.left == []
    assert not url_file.exists()

    again = start("up", "work")
    again.wait_for("producer submit")
    with connect(settings) as client:
        assert Ledger(client, settings).result(first).diagnosis == "Stand-in"
    again.look()
    again.popen.send_signal(signal.SIGINT)
    assert again.wait() == 0
    assert again.left == []


def test_worker_that_cannot_start_is_not_tried_again(start):
    program = start("up", "die")
    assert program.wait() == 3
    assert "ended with code 1" in program.stderr
    assert program.left == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_nothing_is_left_after_kill_9_and_the_lock_is_free(start, tmp_path, wait_until):
    program = start("up", "work")
    program.wait_for("producer submit")
    program.popen.kill()
    program.popen.wait()
    wait_until(lambda: program.left == [])
    with only_one_here(tmp_path / "state"):
        pass


def test_folder_that_cannot_be_written_is_named(start, environment, tmp_path):
    file = tmp_path / "file"
    file.touch()
    environment["OSTEOPAN_STATE_DIR"] = str(file / "state")
    program = start("up", command=(sys.executable, "-m", "local"))
    assert program.wait() == 3
    assert f"{Path(file) / 'state'}: Not a directory" in program.stderr
    assert "Traceback" not in program.stderr
