"""Tells Flower of jobs that were taken along, for which Celery itself sends no events. They carry ids alone."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import celery
import structlog
from celery.utils.nodenames import default_nodename

from contract.names import TASK_PROCESS

logger = structlog.stdlib.get_logger(__name__)

#: Events that wait to be sent, at most; while Redis is away, later ones are dropped.
MOST_WAITING = 1000

#: Events are sent together, so often (s).
SEND_PAUSE_S = 0.1

#: Rest after Redis could not be told (s).
PAUSE_S = 2.0


class TaskEvents:
    """Sends the events of a task's life from a thread of its own: no job waits for them.

    Args:
        app: The app whose worker this is.
        node: Name of the node.
    """

    def __init__(self, app: celery.Celery, *, node: str) -> None:
        self._app = app
        self._hostname = default_nodename(node)
        self._waiting: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what waits, if that is quickly done."""
        self._put(None)
        self._thread.join(timeout=1)

    def taken(self, job_id: str) -> None:
        """A job was taken along."""
        about = {"name": TASK_PROCESS, "args": repr((job_id,)), "kwargs": "{}", "retries": 0}
        self._put(("task-received", self._fields(job_id, **about)))
        self._put(("task-started", self._fields(job_id)))

    def ended(self, job_id: str, *, runtime_s: float) -> None:
        """The job is no longer in hand. As with Celery's own events, this says nothing of its result."""
        self._put(("task-succeeded", self._fields(job_id, result="None", runtime=runtime_s)))

    def _fields(self, job_id: str, **more: object) -> dict[str, Any]:
        return {"uuid": job_id, "timestamp": time.time(), **more}

    def _put(self, event: tuple[str, dict[str, Any]] | None) -> None:
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            logger.debug("event_dropped")

    def _run(self) -> None:
        while True:
            try:
                with self._app.connection_for_write() as connection:
                    dispatcher = self._app.events.Dispatcher(
                        connection, hostname=self._hostname, buffer_group={"task"}, buffer_while_offline=False
                    )
                    with dispatcher:
                        self._send(dispatcher)
            except Exception:  # noqa: BLE001 - kombu raises what it likes, and Flower must not cost a job
                logger.debug("events_not_sent")
                time.sleep(PAUSE_S)
            else:
                return

    def _send(self, dispatcher: Any) -> None:
        while event := self._waiting.get():
            kind, fields = event
            dispatcher.send(kind, **fields)
            if self._waiting.empty():
                dispatcher.flush()
                time.sleep(SEND_PAUSE_S)
