"""What comes in through the queue twice, twenty times, or from a stranger."""

from __future__ import annotations

import base64
import json
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract.errors import JobConflictError
from contract.jobs import JobState
from contract.names import QUEUE_ROUTINE, TASK_PROCESS
from producer.client import Client

Until = Callable[..., Any]


def test_one_id_from_twenty_clients_is_one_job(site: Any) -> None:
    request = site.request(job_id="order-4711")
    barrier = threading.Barrier(20)

    def submit(_: int) -> bool:
        with Client(site.settings) as client:
            barrier.wait()
            return client.submit(request).created

    with ThreadPoolExecutor(20) as clients:
        assert sorted(clients.map(submit, range(20))) == [False] * 19 + [True]
    site.enter(request)
    first = site.settle()
    again = site.client.submit(request)
    assert (again.state, again.created) == (JobState.DONE, False)
    with pytest.raises(JobConflictError, match="order-4711 belongs to another request"):
        site.client.submit(site.request(job_id="order-4711"))
    # Whatever messages are still under way find nothing to do.
    time.sleep(3)
    assert site.settle() == first
    assert first["order-4711"].attempts == 1


def envelope(body: bytes, *, content_type: str, headers: dict[str, Any]) -> str:
    """A message as kombu lays it into the queue."""
    properties = {
        "delivery_tag": str(uuid.uuid4()),
        "delivery_info": {"exchange": "", "routing_key": QUEUE_ROUTINE},
        "delivery_mode": 2,
        "body_encoding": "base64",
    }
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary",
            "content-type": content_type,
            "headers": headers,
            "properties": properties,
        }
    )


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def task(name: str, *arguments: object, content_type: str = "application/json", body: bytes | None = None) -> str:
    """A message that asks for a task."""
    headers = {"lang": "py", "task": name, "id": str(uuid.uuid4()), "argsrepr": repr(arguments), "kwargsrepr": "{}"}
    return envelope(body or json.dumps([arguments, {}, {}]).encode(), content_type=content_type, headers=headers)


def test_what_strangers_put_into_the_queue_is_refused_and_not_repeated_in_a_log(site: Any, until: Until) -> None:
    proof, canary = site.folder / "exploited", f"/scans/{site.canary}.png"
    headers = {"task": TASK_PROCESS, "id": str(uuid.uuid4())}
    strangers = [
        task(TASK_PROCESS, content_type="application/x-python-serialize", body=pickle.dumps(Exploit(proof))),
        envelope(pickle.dumps(Exploit(proof)), content_type="application/x-python-serialize", headers={}),
        envelope(pickle.dumps(Exploit(proof)), content_type="application/json", headers=headers),
        task("another.task", canary),
        task(TASK_PROCESS, canary),
        task(TASK_PROCESS, canary, canary),
        task(TASK_PROCESS, {"img_path": canary}),
        task(TASK_PROCESS),
        task(TASK_PROCESS, body=f"[{canary}".encode()),
        envelope(json.dumps({"img_path": canary}).encode(), content_type="application/json", headers={}),
        envelope(canary.encode(), content_type="text/plain", headers={}),
        envelope(canary.encode(), content_type="application/json", headers={"task": canary, "id": canary}),
    ]
    queue = site.ledger.keys.celery + QUEUE_ROUTINE
    for message in strangers:
        site.redis.lpush(queue, message)
        job = site.submit()
        site.await_end(job, 30)
    celery = [node.celery.pid for node in site.nodes]
    site.settle()
    until(lambda: not site.redis.llen(queue), 10, what="the queue is empty")
    assert not proof.exists(), "a pickle was loaded"
    assert [node.celery.pid for node in site.nodes] == celery


def test_items_that_are_no_messages_cost_a_node_a_restart_at_most(site: Any) -> None:
    items = ["garbage {0}", '"{0}"', '["{0}"]', '{{"headers": "{0}"}}', '{{"body": "{0}"}}', "[" * 100_000]
    longest_s = 0.0
    for item in items:
        site.redis.lpush(site.ledger.keys.celery + QUEUE_ROUTINE, item.format(site.canary))
        job = site.submit()
        start = time.monotonic()
        site.await_end(job, 60)
        longest_s = max(longest_s, time.monotonic() - start)
    site.note(f"{len(items)} items in the queue that are no messages: the next job done", f"within {longest_s:.1f} s")
    site.settle()
