from __future__ import annotations

import sys
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from contract.connection import connect
from contract.jobs import JobRequest
from contract.ledger import Ledger
from contract.settings import Settings
from local.doctor import (
    Verdict,
    check_clock,
    check_disk,
    check_model,
    check_server,
    configured_paths,
    examine,
    shown_url,
)
from local.redis_server import EmbeddedRedis


@pytest.fixture
def server(tmp_path: Path):
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def settings(server: EmbeddedRedis, tmp_path: Path) -> Settings:
    return Settings(redis_url=SecretStr(server.url), state_dir=tmp_path)


def verdicts(settings: Settings) -> dict[str, Verdict]:
    return {finding.check: finding.verdict for finding in examine(settings, folders=[])}


def advice(settings: Settings, check: str) -> str:
    return next(finding.advice for finding in examine(settings, folders=[]) if finding.check == check)


def test_our_own_server_lacks_nothing_but_a_worker(settings):
    found = verdicts(settings)
    assert found.pop("Workers") is Verdict.FAIL
    assert found == dict.fromkeys(
        ["Redis", "Version", "Append-only file", "Eviction", "Clock", "Jobs", "Model"], Verdict.OK
    )
    assert "osteopan up" in advice(settings, "Workers")


def test_worker_and_jobs_are_counted(settings):
    with connect(settings) as client:
        ledger = Ledger(client, settings)
        client.set(ledger.keys.ready("node-7"), "model", ex=60)
        ledger.submit(JobRequest(img_path="/x", destination_path="/y"))
        client.zadd(ledger.keys.dead, {"a": 1, "b": 2})
    found = {finding.check: finding for finding in examine(settings, folders=[])}
    assert found["Workers"].found == "ready: node-7"
    assert found["Jobs"].found == "1 queued, 0 running"
    assert found["Given up"].found == "2 jobs"
    assert found["Given up"].verdict is Verdict.WARN


def test_what_loses_jobs_is_a_failure(settings, server):
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert verdicts(settings)["Eviction"] is Verdict.WARN
        client.config_set("maxmemory", "100mb")
        assert verdicts(settings)["Eviction"] is Verdict.FAIL
    assert verdicts(settings)["Append-only file"] is Verdict.FAIL
    assert "noeviction" in advice(settings, "Eviction")


@pytest.mark.parametrize(("share", "verdict"), [(0.75, Verdict.WARN), (0.9, Verdict.FAIL)])
def test_nearly_full_redis_is_a_warning_and_one_that_takes_no_job_a_failure(settings, server, share, verdict):
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", round(client.info("memory")["used_memory"] / share))
    assert verdicts(settings)["Memory"] is verdict


def test_short_access_list_is_a_warning(settings, server):
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "producer", "on", ">secret", "~*", "+@all", "-info", "-time")
    limited = settings.model_copy(
        update={
            "redis_url": SecretStr(
                server.url.replace("//:", "//producer:").replace(server.url.split(":")[2].split("@")[0], "secret")
            )
        }
    )
    found = verdicts(limited)
    assert found["Redis' settings"] is Verdict.WARN
    assert found["Clock"] is Verdict.WARN
    assert found["Workers"] is Verdict.FAIL


def test_old_server_is_a_failure():
    info = {"redis_version": "6.2.14", "aof_enabled": 1, "maxmemory_policy": "noeviction"}
    assert [finding.verdict for finding in check_server(info)] == [Verdict.FAIL, Verdict.OK, Verdict.OK]


def test_disk_that_refuses_writes_is_a_failure():
    info = {
        "redis_version": "7.2.4",
        "aof_enabled": 1,
        "aof_last_write_status": "err",
        "maxmemory_policy": "noeviction",
    }
    assert check_server(info)[1].verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "words"),
    [(0.3, Verdict.OK, "0.3 s"), (12.5, Verdict.WARN, "12.5 s behind"), (-12.5, Verdict.WARN, "12.5 s ahead of")],
)
def test_clocks_are_compared(ahead_s, verdict, words):
    finding = check_clock(ahead_s)
    assert finding.verdict is verdict
    assert words in finding.found


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert check_disk(tmp_path / "a" / "b").found == check_disk(tmp_path).found.replace(
        str(tmp_path), str(tmp_path / "a" / "b")
    )


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system without any space: /proc")
def test_full_disk_is_a_failure():
    assert check_disk(Path("/proc")).verdict is Verdict.FAIL


def test_url_is_shown_without_the_password():
    assert shown_url("redis://user:secret@host:6379/2") == "redis://host:6379/2"
    assert shown_url("rediss://host/0") == "rediss://host/0"
    assert shown_url("unix://:secret@/run/redis.sock") == "unix:///run/redis.sock"


def test_command_says_by_its_exit_code_whether_something_is_wrong(start, environment, server, settings):
    program = start("doctor", command=(sys.executable, "-m", "local"))
    environment["OSTEOPAN_REDIS_URL"] = "redis://:secret@127.0.0.1:1/0"
    away = start("doctor", command=(sys.executable, "-m", "local"))
    environment["OSTEOPAN_REDIS_URL"] = server.url
    with connect(settings) as client:
        client.set(Ledger(client, settings).keys.ready("node"), "model", ex=60)
        well = start("doctor", command=(sys.executable, "-m", "local"))
        assert well.wait() == 0, well.stdout
    assert [program.wait(), away.wait()] == [1, 1]
    assert "fail" in away.stdout
    assert "secret" not in away.stdout + away.stderr
    assert "Traceback" not in away.stderr


def test_setting_that_cannot_be_used_is_a_finding(start, environment):
    environment["OSTEOPAN_LEASE_S"] = "soon"
    program = start("doctor", command=(sys.executable, "-m", "local"))
    assert program.wait() == 1
    assert "OSTEOPAN_LEASE_S" in program.stdout


def test_damaged_model_file_is_a_failure(tmp_path):
    from panoramic.demonstration import demonstration_model

    model = tmp_path / "model.safetensors"
    model.write_bytes(demonstration_model().read_bytes())
    whole = check_model(model)
    assert whole.verdict is Verdict.OK
    assert whole.found.startswith("demonstration-b0 1, SHA-256 ")
    content = bytearray(model.read_bytes())
    content[-1000] ^= 1
    model.write_bytes(content)
    damaged = check_model(model)
    assert damaged.verdict is Verdict.FAIL
    assert str(model) in damaged.found
    assert check_model(tmp_path / "missing.safetensors").verdict is Verdict.FAIL


def test_models_are_those_of_the_settings_or_the_one_that_ships():
    assert configured_paths("MODEL", {}) == []
    named = configured_paths("MODEL", {"OSTEOPAN_MODEL": "/a.safetensors:/b.pth"})
    assert named == [Path("/a.safetensors"), Path("/b.pth")]
    shipped = check_model(None)
    assert shipped.verdict is Verdict.OK
    assert shipped.found.startswith("demonstration-b0 1, SHA-256 ")
