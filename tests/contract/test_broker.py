"""What lies in Redis for Celery, byte by byte: the id of a job, and nothing else of it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.broker import make_app, wake_worker
from contract.connection import connect
from contract.errors import BrokerUnavailableError, SettingsError
from contract.jobs import JobRequest, Priority
from contract.ledger import Ledger
from contract.settings import Settings

CANARY = "Jane-Doe-1950"
REQUEST = JobRequest(img_path=f"/in/{CANARY}.png", destination_path=f"/{CANARY}", job_id="a", metadata={"name": CANARY})


@pytest.mark.parametrize(
    ("priority", "queue"),
    [("routine", "osteopan:celery:osteopan.routine"), ("urgent", "osteopan:celery:osteopan.urgent")],
)
def test_the_message_carries_the_id_and_nothing_else(
    settings: Settings, ledger: Ledger, priority: str, queue: str
) -> None:
    ledger.submit(REQUEST)
    wake_worker(make_app(settings), "a", Priority(priority))
    (message,) = ledger.client.lrange(queue, 0, -1)
    envelope = json.loads(message)
    body = base64.b64decode(envelope["body"])
    arguments, keywords, _ = json.loads(body)
    assert (arguments, keywords) == (["a"], {})
    assert (envelope["headers"]["task"], envelope["headers"]["id"]) == ("osteopan.process", "a")
    assert envelope["content-type"] == "application/json"
    assert CANARY not in message + body.decode()


def test_nothing_but_the_ledgers_record_names_the_patient(settings: Settings, ledger: Ledger) -> None:
    ledger.submit(REQUEST)
    wake_worker(make_app(settings), "a", Priority.ROUTINE)
    keys = set(ledger.client.scan_iter())
    assert "osteopan:celery:osteopan.routine" in keys
    assert {key for key in keys if CANARY in repr(_dump(ledger, key))} == {"osteopan:job:a"}


def _dump(ledger: Ledger, key: str) -> object:
    client = ledger.client
    kinds = {
        "hash": client.hgetall,
        "list": lambda name: client.lrange(name, 0, -1),
        "set": client.smembers,
        "zset": lambda name: client.zrange(name, 0, -1),
        "string": client.get,
    }
    return key, kinds[client.type(key)](key)


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_another_broker_in_the_environment_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "redis://:canary@127.0.0.1:1/0")
    with pytest.raises(SettingsError, match=f"unset {name}: .* osteopan follows OSTEOPAN_REDIS_URL") as caught:
        make_app(Settings())
    assert "canary" not in str(caught.value)


def test_a_redis_that_is_away_is_reported_soon(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": Settings(redis_url="redis://127.0.0.1:1/0").redis_url})
    start_s = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match="stopped answering"):
        wake_worker(make_app(away), "a", Priority.ROUTINE)
    assert time.monotonic() - start_s < 5


def test_a_user_who_may_not_publish_is_reported(settings: Settings, ledger: Ledger) -> None:
    ledger.client.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], categories=["+@all"], commands=["-lpush"], keys=["*"]
    )
    try:
        url = settings.broker_url().replace("//:", "//reader:").replace(url_password(settings), "secret")
        app = make_app(Settings(redis_url=url))
        with pytest.raises(BrokerUnavailableError, match="announced"):
            wake_worker(app, "a", Priority.ROUTINE)
    finally:
        ledger.client.acl_deluser("reader")


def url_password(settings: Settings) -> str:
    return settings.broker_url().split("//:")[1].split("@")[0]


@pytest.fixture
def socket_url(redis_server: object, tmp_path: Path) -> Iterator[str]:
    """A second server that listens at a Unix socket alone."""
    binary = redis_server.binary  # type: ignore[attr-defined]
    # The path of a socket holds some 100 bytes, and pytest's folders can be longer than that.
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "redis.sock")
        command = [binary, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", tmp_path, "--logfile", "log"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                deadline_s = time.monotonic() + 10
                while not socket.exists():
                    assert time.monotonic() < deadline_s, (tmp_path / "log").read_text()
                    time.sleep(0.02)
                yield f"unix://{socket}?db=3"
            finally:
                process.terminate()


def test_a_unix_socket_serves_the_ledger_and_celery_alike(socket_url: str) -> None:
    settings = Settings(redis_url=socket_url)
    with connect(settings) as client:
        ledger = Ledger(client, settings)
        ledger.submit(REQUEST)
        wake_worker(make_app(settings), "a", Priority.ROUTINE)
        assert client.llen("osteopan:celery:osteopan.routine") == 1
        assert os.path.basename(str(client.connection_pool.connection_kwargs["path"])) == "redis.sock"  # noqa: PTH119
