"""Ends a node that is ready and takes no message although some are waiting; the launcher starts it anew.

A node can be deaf and look well: its engine is ready, its reconciler at work, its connections whole. A fault of this
kind is mended in `worker.acknowledgement`; should there be another, it costs half a minute and not the night.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import cast

import structlog

from contract.connection import translated_errors
from contract.errors import OsteopanError
from contract.ledger import Ledger
from contract.names import QUEUES

logger = structlog.stdlib.get_logger(__name__)

#: Pause between two looks, in seconds.
LOOK_PAUSE_S = 1.0

#: So many looks in a row must find the node idle while messages wait. Looks, not seconds: a machine that was
#: suspended has not been idle. More than the ready key outlives an engine that was killed.
PATIENCE_LOOKS = 20


class Watchdog:
    """Looks after its own node from a thread of the process that takes messages.

    Args:
        ledger: The truth about jobs.
        node: Name of the node.
        patience_looks: So many in a row must find the node idle.
    """

    def __init__(self, ledger: Ledger, *, node: str, patience_looks: int = PATIENCE_LOOKS) -> None:
        self._ledger = ledger
        self._node = node
        self._patience_looks = patience_looks

    def start(self) -> None:
        """Begin to look, for as long as the process lives."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        idle_looks = 0
        while idle_looks < self._patience_looks:
            time.sleep(LOOK_PAUSE_S)
            try:
                idle_looks = idle_looks + 1 if self.lets_messages_wait() else 0
            except OsteopanError:
                idle_looks = 0
        logger.critical("node_deaf", node=self._node)
        os.kill(os.getpid(), signal.SIGKILL)

    def lets_messages_wait(self) -> bool:
        """Whether the node is ready and has no job in hand although there are messages in the queues.

        Raises:
            BrokerUnavailableError: Redis does not answer.
        """
        client, keys = self._ledger.client, self._ledger.keys
        with translated_errors():
            pipeline = client.pipeline(transaction=False)
            pipeline.exists(keys.ready(self._node))
            pipeline.zrange(keys.running, 0, -1)
            for queue in QUEUES:
                pipeline.llen(keys.celery + queue)
            ready, running, *waiting = pipeline.execute()
            if not ready or not any(waiting):
                return False
            pipeline = client.pipeline(transaction=False)
            for job_id in cast("list[str]", running):
                pipeline.hget(keys.job(job_id), "worker")
            return self._node not in pipeline.execute()
