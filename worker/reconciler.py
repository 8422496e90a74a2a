"""Finds open jobs that no message leads to any more, and announces them again.

Celery's Redis transport can lose a message: it pops it first and only then notes that it is unacknowledged. The
ledger loses nothing, so every node compares the two, one node at a time. A message too many does no harm: whoever
comes second is told so when it claims the job.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
from typing import cast

import celery
import structlog

from contract.broker import QUEUE_OF_PRIORITY, wake_worker
from contract.connection import translated_errors
from contract.errors import OsteopanError
from contract.jobs import Priority
from contract.ledger import Ledger

logger = structlog.stdlib.get_logger(__name__)

#: Pause between two looks, in seconds.
SCAN_PAUSE_S = 1.0

#: A job younger than this is left alone, and so is one that is less than this ahead of its queue's oldest message: two
#: producers may enter their jobs in one order and announce them in the other. In milliseconds.
GRACE_MS = 2000

#: A job announced again is left alone for this long, in milliseconds.
PATIENCE_MS = 5000

#: At most so many jobs and messages are looked at in one go; where more wait, the next look goes on behind them.
BATCH = 5000


class Reconciler:
    """Looks after open jobs from a thread of its own.

    Args:
        ledger: The truth about jobs.
        app: The app through which to announce them.
    """

    def __init__(self, ledger: Ledger, app: celery.Celery) -> None:
        self._ledger = ledger
        self._app = app
        self._offset = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        name = secrets.token_hex(8)
        while not self._stop.wait(SCAN_PAUSE_S):
            try:
                if self._take_turn(name):
                    for job_id in self.scan():
                        logger.warning("job_announced_again", job_id=job_id)
                    for job_id in self._ledger.end_cancelled():
                        logger.info("job_cancelled", job_id=job_id)
            except OsteopanError:
                logger.warning("redis_away")
            except Exception as error:  # noqa: BLE001 - without this thread a node looks well and forgets jobs
                logger.error("reconciler_failed", error=type(error).__name__)  # noqa: TRY400

    def _take_turn(self, name: str) -> bool:
        """Whether this node is the one that looks: it was the last time, or the node that was has gone silent."""
        return self._ledger.hold(self._ledger.keys.reconciler, name, lifetime_s=3 * SCAN_PAUSE_S)

    def scan(self) -> list[str]:
        """Announce again what has been forgotten.

        Returns:
            Ids of the jobs: those whose worker let the lease run out, those that were given back and have rested, and
            those that their queue has passed over.

        Raises:
            BrokerUnavailableError: Redis does not answer.
        """
        client, keys = self._ledger.client, self._ledger.keys
        with translated_errors():
            seconds, microseconds = client.time()
            now = seconds * 1000 + microseconds // 1000
            expired, returned = (
                cast("list[str]", client.zrangebyscore(key, "-inf", now, start=0, num=BATCH))
                for key in (keys.running, keys.returned)
            )
            waiting = cast(
                "list[tuple[str, float]]",
                client.zrangebyscore(
                    keys.queued, "-inf", now - GRACE_MS, start=self._offset, num=BATCH, withscores=True
                ),
            )
            self._offset = self._offset + BATCH if len(waiting) == BATCH else 0
            priorities = self._priorities([job_id for job_id, _ in waiting])
            heads = {priority: self._age_of_head(queue) for priority, queue in QUEUE_OF_PRIORITY.items()}
        # A job that has lost its worker, or was given back, has waited once already: it is announced as urgent.
        forgotten = dict.fromkeys([*expired, *returned], Priority.URGENT)
        forgotten = {
            job_id: priorities[job_id] for job_id, since in waiting if since < heads[priorities[job_id]] - GRACE_MS
        } | forgotten
        for job_id, priority in forgotten.items():
            wake_worker(self._app, job_id, priority)
        with translated_errors():
            pipeline = client.pipeline(transaction=False)
            for job_id in forgotten:
                # Only where the job still is: it may have moved on meanwhile.
                pipeline.zadd(keys.running, {job_id: now + PATIENCE_MS}, xx=True, gt=True)
                pipeline.zrem(keys.returned, job_id)  # should this message be lost, its queue will pass it over
                pipeline.zadd(keys.queued, {job_id: now + PATIENCE_MS - GRACE_MS}, xx=True, gt=True)
            pipeline.execute()
        return list(forgotten)

    def _priorities(self, job_ids: list[str]) -> dict[str, Priority]:
        pipeline = self._ledger.client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hget(self._ledger.keys.job(job_id), "priority")
        found = pipeline.execute()
        return {
            job_id: Priority.URGENT if value == Priority.URGENT else Priority.ROUTINE
            for job_id, value in zip(job_ids, found, strict=True)
        }

    def _age_of_head(self, queue: str) -> float:
        """When the job of the queue's oldest message was entered, in ms; infinity if there is no message."""
        client = self._ledger.client
        # kombu pushes on the left and pops on the right.
        messages = cast("list[str]", client.lrange(self._ledger.keys.celery + queue, -BATCH, -1))
        if not messages:
            return math.inf
        ids = [job_id for job_id in map(_job_id_of, reversed(messages)) if job_id is not None]
        if not ids:
            return -math.inf
        scores = client.zmscore(self._ledger.keys.queued, ids)
        # A message whose job has been cancelled, or is running, says nothing of those behind it.
        return next((score for score in scores if score is not None), -math.inf)


def _job_id_of(message: str) -> str | None:
    try:
        job_id = json.loads(message)["headers"]["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return job_id if isinstance(job_id, str) else None
