"""What each user of Redis may do and what it is refused, by the access list of deploy/ on a real server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.broker import make_app
from contract.connection import connect
from contract.errors import ErrorCode
from contract.jobs import ErrorInfo, JobResult
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from local.redis_server import free_port
from producer.client import Client

READY_TIMEOUT_S = 120

# Taken from KEDA's scaler: it does not ask for the length of one type alone.
KEDA_SCRIPT = """
local listType = redis.call('type', KEYS[1]).ok
local cmd = { zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen' }
return redis.call(cmd[listType], KEYS[1])
"""


def run(installation: Any, user: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of a role, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=installation.environment(user),
        capture_output=True,
        text=True,
        timeout=READY_TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def worker(installation: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker, as its user."""
    with (installation.folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", "--cpu", "--name", "access"],
            # Its numbers come from the ledger as well.
            env=installation.environment("worker", OSTEOPAN_METRICS_PORT=str(free_port())),
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def dead_job(installation: Any) -> str:
    """The id of a job that a worker has given up."""
    now = datetime.now(UTC)
    with Client(Settings(redis_url=installation.url("producer"))) as client:
        job_id = client.submit({"img_path": "/in/a.png", "destination_path": "/out"}).job_id
    settings = Settings(redis_url=installation.url("worker"))
    with connect(settings) as connection:
        ledger = Ledger(connection, settings)
        claim = ledger.claim(job_id, "access")
        assert isinstance(claim, Claim)
        error = ErrorInfo(code=ErrorCode.WORKER_LOST, message="three workers ended while they had it")
        result = JobResult(
            result="fail", job_id=job_id, error=error, attempts=3, submitted_at=now, finished_at=now, worker="access"
        )
        ledger.finish(claim, result, dead=True)
    return job_id


def refusals(installation: Any, *users: str) -> list[tuple[str, str, str]]:
    """What the server has refused to users, by its own account."""
    with installation.client("operator") as client:
        entries = client.acl_log()
    return [(entry["username"], entry["reason"], entry["object"]) for entry in entries if entry["username"] in users]


def test_producer_and_worker_are_refused_nothing_that_they_need(
    installation: Any, worker: subprocess.Popen[bytes], radiograph: Path, tmp_path: Path
) -> None:
    with installation.client("operator") as client:
        client.execute_command("ACL", "LOG", "RESET")

    def producer(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(installation, "producer", "producer", *arguments)

    submit = ("submit", str(radiograph), "--destination", str(tmp_path))
    assert producer(*submit, "--job-id", "first").stdout == "first\n"
    assert producer(*submit, "--job-id", "second", "--priority", "urgent").returncode == 0
    assert producer(*submit, "--job-id", "unwanted").returncode == 0
    producer("cancel", "unwanted")
    ended = producer(*submit, "--wait", "--json", "--timeout", str(READY_TIMEOUT_S))
    assert json.loads(ended.stdout)["result"] == "ok", ended.stderr
    assert json.loads(producer("result", "second", "--wait", "--json", "--timeout", "60").stdout)["result"] == "ok"
    unwanted = producer("result", "unwanted", "--wait", "--json", "--timeout", "60")
    assert json.loads(unwanted.stdout)["error"]["code"] == "cancelled"
    assert "access" in producer("status").stdout
    assert "first" in producer("list").stdout
    worker.terminate()
    assert worker.wait(60) == 0
    assert refusals(installation, "producer", "worker") == []


@pytest.mark.parametrize("verb", ["retry", "drop"])
def test_a_producer_deals_with_dead_jobs(installation: Any, dead_job: str, verb: str) -> None:
    assert dead_job in run(installation, "producer", "producer", "dead", "list").stdout
    assert "/in/a.png" in run(installation, "producer", "producer", "dead", "show", dead_job).stdout
    done = run(installation, "producer", "producer", "dead", verb, dead_job)
    assert (done.returncode, done.stdout.split()[0]) == (0, dead_job), done.stderr
    assert dead_job not in run(installation, "producer", "producer", "dead", "list").stdout


def test_doctor_sees_the_server_as_the_monitor(installation: Any) -> None:
    answer = run(installation, "monitor", "local", "doctor")
    assert "not known" not in answer.stdout
    assert "Append-only file" in answer.stdout


def test_the_scaler_counts_what_waits(installation: Any) -> None:
    with installation.client("monitor") as monitor, installation.client("producer") as producer:
        before = monitor.eval(KEDA_SCRIPT, 1, "osteopan:queued")
        producer.zadd("osteopan:queued", {"counted": 1})
        assert monitor.eval(KEDA_SCRIPT, 1, "osteopan:queued") == before + 1
        producer.zrem("osteopan:queued", "counted")


QUEUE = "osteopan:celery:osteopan.routine"
PIDBOX = "osteopan:celery:/0.celery.pidbox"


@pytest.mark.parametrize(
    ("user", "command"),
    [
        # A producer reads no queue, …
        ("producer", ("LRANGE", QUEUE, 0, -1)),
        ("producer", ("LINDEX", QUEUE, 0)),
        ("producer", ("RPOP", QUEUE)),
        ("producer", ("BRPOP", QUEUE, 1)),
        ("producer", ("LMOVE", QUEUE, "osteopan:job:x", "LEFT", "LEFT")),
        ("producer", ("COPY", QUEUE, "osteopan:job:x")),
        ("producer", ("DEL", QUEUE)),
        # … writes no result, …
        ("producer", ("SET", "osteopan:result:x", "{}")),
        ("producer", ("XADD", "osteopan:results", "*", "job_id", "x")),
        ("producer", ("DEL", "osteopan:result:x")),
        ("producer", ("EXPIRE", "osteopan:result:x", 1)),
        ("producer", ("ZADD", "osteopan:running", 1, "x")),
        ("producer", ("SET", "osteopan:ready:x", "y")),
        # … sends no control command, …
        ("producer", ("PUBLISH", PIDBOX, "{}")),
        ("producer", ("LPUSH", "osteopan:celery:celery@access.celery.pidbox", "{}")),
        ("producer", ("SADD", "osteopan:celery:_kombu.binding.celery.pidbox", "x")),
        ("producer", ("PSUBSCRIBE", "*")),
        # … and does nothing to the server.
        ("producer", ("KEYS", "*")),
        ("producer", ("FLUSHALL",)),
        ("producer", ("CONFIG", "SET", "appendonly", "no")),
        ("producer", ("ACL", "LIST")),
        ("producer", ("MONITOR",)),
        ("producer", ("SHUTDOWN",)),
        ("producer", ("EVAL", "return 1", 0)),
        # A worker ends jobs and cannot read the answers, nor leave its prefix.
        ("worker", ("GET", "osteopan:result:x")),
        ("worker", ("XRANGE", "osteopan:results", "-", "+")),
        ("worker", ("SET", "another:key", "x")),
        ("worker", ("PUBLISH", "another", "x")),
        ("worker", ("FLUSHDB",)),
        ("worker", ("CONFIG", "GET", "*")),
        ("worker", ("KEYS", "*")),
        ("worker", ("ACL", "LIST")),
        ("worker", ("SCRIPT", "FLUSH")),
        # The monitor sees no request, no result, no message and no slow command's arguments, and changes nothing.
        ("monitor", ("HGETALL", "osteopan:job:x")),
        ("monitor", ("HGET", "osteopan:job:x", "request")),
        ("monitor", ("GET", "osteopan:result:x")),
        ("monitor", ("LRANGE", QUEUE, 0, -1)),
        ("monitor", ("HGETALL", "osteopan:celery:unacked")),
        ("monitor", ("ZADD", "osteopan:queued", 1, "x")),
        ("monitor", ("DEL", "osteopan:queued")),
        ("monitor", ("LPUSH", QUEUE, "{}")),
        ("monitor", ("PUBLISH", "osteopan:celery:/0.celeryev/task.sent", "{}")),
        ("monitor", ("PSUBSCRIBE", "*")),
        ("monitor", ("SLOWLOG", "GET")),
        ("monitor", ("MONITOR",)),
        ("monitor", ("CLIENT", "KILL", "TYPE", "normal")),
        # Nor does the person who looks after the server read what patients have.
        ("operator", ("HGETALL", "osteopan:job:x")),
        ("operator", ("GET", "osteopan:result:x")),
        ("operator", ("SCAN", 0)),
        ("operator", ("FLUSHALL",)),
        ("operator", ("ACL", "SETUSER", "operator", "+@all")),
        ("operator", ("CONFIG", "SET", "appendonly", "no")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_refused(installation: Any, user: str, command: tuple[Any, ...]) -> None:
    with installation.client(user) as client, pytest.raises(redis.exceptions.NoPermissionError, match="[Nn]o perm"):
        client.execute_command(*command)


@pytest.mark.parametrize("keys", [["osteopan:result:forged"], ["osteopan:job:x"], []])
def test_a_script_of_a_producers_own_writes_no_result_either(installation: Any, keys: list[str]) -> None:
    with installation.client("producer") as client:
        digest = client.script_load("return redis.call('SET', 'osteopan:result:forged', 'x')")
        with pytest.raises(redis.ResponseError, match=r"(?i)permission|user executing the script can't"):
            client.evalsha(digest, len(keys), *keys)
        assert client.exists("osteopan:result:forged") == 0


def test_a_producers_control_command_reaches_no_worker(installation: Any) -> None:
    app = make_app(Settings(redis_url=installation.url("producer")))
    with pytest.raises((OperationalError, redis.exceptions.NoPermissionError), match="permission"):
        app.control.broadcast("shutdown")


@pytest.mark.parametrize("user", [None, "default", "nobody"])
def test_nobody_gets_in_without_a_name_and_its_password(installation: Any, user: str | None) -> None:
    with (
        redis.Redis(
            port=installation.port, username=user, password=user and "guess", retry=Retry(NoBackoff(), 0)
        ) as client,
        pytest.raises(redis.AuthenticationError, match="(?i)auth|invalid username"),
    ):
        client.ping()


def test_a_new_password_works_beside_the_old_one_until_that_is_retired(
    server_program: Path, make_installation: Callable[[Path], Any]
) -> None:
    installation = make_installation(server_program)
    installation.make_secrets()
    old = installation.url("worker")
    with installation.running(), installation.client("operator") as operator:
        installation.make_secrets("--rotate", "worker")
        new = installation.url("worker")
        assert new != old
        operator.acl_load()
        for url in (old, new):
            with redis.Redis.from_url(url) as client:
                assert client.ping()
        installation.make_secrets("--retire")
        assert installation.url("worker") == new
        operator.acl_load()
        with redis.Redis.from_url(new) as client:
            assert client.ping()
        with redis.Redis.from_url(old) as client, pytest.raises(redis.AuthenticationError, match="invalid username"):
            client.ping()


def test_what_was_said_of_redis_holds_until_it_is_said_otherwise(tmp_path: Path) -> None:
    """An upgrade runs the script plainly, and must not send the workers elsewhere."""

    def make(*options: str) -> str:
        script = Path(__file__).parents[2] / "deploy" / "make_secrets.py"
        subprocess.run([sys.executable, script, "--folder", tmp_path / "secrets", *options], check=True, timeout=30)
        return (tmp_path / "secrets" / "worker.url").read_text()

    first = make("--host", "redis.example.org", "--tls", "/run/tls", "--prefix", "clinic-2", "--redis-7.0")
    assert "@redis.example.org:6379/0?ssl_cert_reqs=required" in first
    access_list = (tmp_path / "secrets" / "users.acl").read_text()
    assert make() == first
    (tmp_path / "secrets" / "options.json").unlink()  # an earlier version kept none
    assert make() == first
    assert (tmp_path / "secrets" / "users.acl").read_text() == access_list
    assert make("--tls", "", "--port", "6380").endswith("@redis.example.org:6380/0\n")
    access_list = (tmp_path / "secrets" / "users.acl").read_text()
    assert "~clinic-2:job:*" in access_list
    assert "client|setinfo" not in access_list
    make("--no-redis-7.0")
    assert "client|setinfo" in (tmp_path / "secrets" / "users.acl").read_text()


def test_secrets_are_for_their_owner_and_in_the_list_as_digests_alone(
    server_program: Path, make_installation: Callable[[Path], Any]
) -> None:
    installation = make_installation(server_program)
    installation.make_secrets("--prefix", "clinic-2")
    access_list = (installation.secrets / "users.acl").read_text()
    assert stat.S_IMODE(installation.secrets.stat().st_mode) == 0o700
    passwords = [installation.url(user).split("@")[0].split(":")[-1] for user in ("producer", "worker", "monitor")]
    passwords.append((installation.secrets / "operator.pass").read_text().strip())
    assert len(set(passwords)) == 4
    assert min(map(len, passwords)) >= 32
    assert not any(password in access_list for password in passwords)
    assert "~clinic-2:job:*" in access_list
    assert "~osteopan:" not in access_list


def test_the_server_keeps_what_it_accepts_and_logs_no_request(installation: Any) -> None:
    with installation.client("operator") as client:
        found = {
            name: client.config_get(name)[name]
            for name in ("appendonly", "appendfsync", "maxmemory-policy", "slowlog-max-len")
        }
        assert int(client.config_get("maxmemory")["maxmemory"]) > 0
    assert found == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "slowlog-max-len": "0",
    }
