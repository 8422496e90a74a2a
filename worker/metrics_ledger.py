"""What the ledger says of queue and jobs at one moment, at a cost that does not grow with the queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import redis

from contract.broker import QUEUE_OF_PRIORITY
from contract.connection import translated_errors
from contract.jobs import JobState, Priority
from contract.ledger import Ledger

#: So many of the jobs that entered the queue first are looked at for the oldest.
OLDEST_BATCH = 100


@dataclass(frozen=True)
class LedgerSnapshot:
    """What the ledger says at one moment.

    Attributes:
        queued: Jobs that nobody has claimed.
        running: Jobs that somebody has claimed.
        dead: Jobs given up, which wait for a person.
        depth: Messages that wait in each of the two queues.
        oldest_age_s: How long the job that is to be served next has waited, in seconds; 0 if there is none.
        ready: Whether this node's ready key is there.
        memory_share: How much of the memory that Redis may take is used, 0 to 1; 0 without a limit, None if we may
            not ask.
    """

    queued: int
    running: int
    dead: int
    depth: dict[Priority, int]
    oldest_age_s: dict[Priority, float]
    ready: bool
    memory_share: float | None


def take_snapshot(ledger: Ledger, node: str) -> LedgerSnapshot:
    """Ask the ledger, with a cost that does not grow with the queue.

    Args:
        ledger: The ledger.
        node: This node's name.

    Raises:
        BrokerUnavailableError: Redis does not answer.
    """
    client, keys = ledger.client, ledger.keys
    queues = {priority: keys.celery + name for priority, name in QUEUE_OF_PRIORITY.items()}
    with translated_errors():
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        for key in (keys.queued, keys.running, keys.dead):
            pipeline.zcard(key)
        pipeline.exists(keys.ready(node))
        pipeline.zrange(keys.queued, 0, OLDEST_BATCH - 1)
        for queue in queues.values():
            pipeline.llen(queue)
            # kombu pushes on the left and pops on the right.
            pipeline.lrange(queue, -1, -1)
        (seconds, microseconds), queued, running, dead, ready, first, *by_queue = pipeline.execute()
        lengths, heads = by_queue[::2], by_queue[1::2]
        # The queue's head, and those that no message leads to: these enter the ledger's queue first, and stay there.
        candidates = {*first, *(job_id for head in heads for message in head if (job_id := _job_id_of(message)))}
        pipeline = client.pipeline(transaction=False)
        for job_id in candidates:
            pipeline.hmget(keys.job(job_id), "state", "priority", "submitted_ms")
        records = pipeline.execute()
        memory_share = _memory_share(client)
    now_s = seconds + microseconds / 1e6
    oldest_age_s = dict.fromkeys(queues, 0.0)
    for state, priority, submitted_ms in records:
        if state == JobState.QUEUED:
            age_s = max(0.0, now_s - int(submitted_ms) / 1000)
            oldest_age_s[Priority(priority)] = max(oldest_age_s[Priority(priority)], age_s)
    return LedgerSnapshot(
        queued,
        running,
        dead,
        dict(zip(queues, lengths, strict=True)),
        oldest_age_s,
        ready=bool(ready),
        memory_share=memory_share,
    )


def _memory_share(client: redis.Redis) -> float | None:
    try:
        about = cast("dict[str, int]", client.info("memory"))
    except redis.exceptions.NoPermissionError:  # an access list that an earlier version made
        return None
    return about["used_memory"] / about["maxmemory"] if about["maxmemory"] else 0.0


def _job_id_of(message: str) -> str | None:
    """The job that a message in the queue leads to; None if it is none of ours."""
    try:
        job_id = json.loads(message)["headers"]["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return job_id if isinstance(job_id, str) else None
