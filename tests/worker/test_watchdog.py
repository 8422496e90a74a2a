"""When a node is to be held for deaf."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from contract.broker import make_app, wake_worker
from contract.jobs import JobRequest, Priority
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from worker.acknowledgement import ForgetfulQoS
from worker.watchdog import Watchdog


@pytest.fixture
def watchdog(ledger: Ledger) -> Watchdog:
    return Watchdog(ledger, node="here")


def announce(ledger: Ledger, settings: Settings, *job_ids: str) -> None:
    """Enter jobs, and have a message of each in the queue."""
    app = make_app(settings)
    for job_id in job_ids:
        ledger.submit(JobRequest(img_path="/in/a.png", destination_path="/out", job_id=job_id))
        wake_worker(app, job_id, Priority.ROUTINE)


def test_a_ready_node_without_a_job_lets_a_message_wait(ledger: Ledger, settings: Settings, watchdog: Watchdog) -> None:
    ledger.client.set(ledger.keys.ready("here"), "model")
    assert not watchdog.lets_messages_wait(), "there is none"
    announce(ledger, settings, "a")
    assert watchdog.lets_messages_wait()
    ledger.client.delete(ledger.keys.ready("here"))
    assert not watchdog.lets_messages_wait(), "its engine is still loading"


def test_only_its_own_job_keeps_a_node_busy(ledger: Ledger, settings: Settings, watchdog: Watchdog) -> None:
    ledger.client.set(ledger.keys.ready("here"), "model")
    announce(ledger, settings, "a", "b", "c")
    assert isinstance(ledger.claim("a", "elsewhere"), Claim)
    assert watchdog.lets_messages_wait()
    assert isinstance(ledger.claim("b", "here"), Claim)
    assert not watchdog.lets_messages_wait()


def test_a_deaf_node_is_ended(ledger: Ledger, settings: Settings) -> None:
    ledger.client.set(ledger.keys.ready("here"), "model")
    announce(ledger, settings, "a")
    program = (
        "import time; from contract.connection import connect; from contract.ledger import Ledger;"
        "from contract.settings import Settings;"
        "from worker.watchdog import Watchdog; settings = Settings();"
        "Watchdog(Ledger(connect(settings), settings), node='here', patience_looks=2).start(); time.sleep(30)"
    )
    environment = {**os.environ, "OSTEOPAN_REDIS_URL": settings.broker_url()}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert b"node_deaf" in ended.stdout


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
def test_a_message_that_was_answered_in_vain_leaves_room_for_the_next(
    redis_server: Any, ledger: Ledger, settings: Settings, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kombu.transport.redis.Channel.QoS", ForgetfulQoS)
    announce(ledger, settings, "a")
    app = make_app(settings)
    received: list[Any] = []
    with app.connection_for_read() as connection:
        channel = connection.channel()
        consumer = app.amqp.TaskConsumer(channel, on_message=received.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()
        connection.drain_events(timeout=5)
        assert not channel.qos.can_consume()
        redis_server.stop()
        with pytest.raises(connection.connection_errors, match="onnect"):
            getattr(received[0], answer)()
        assert channel.qos.can_consume()
        redis_server.start()
