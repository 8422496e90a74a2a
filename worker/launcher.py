"""Starts a node pinned to its device, and starts it again should it end unasked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from contract.connection import connect, translated_errors
from contract.errors import BrokerUnavailableError
from contract.ledger import Ledger
from contract.settings import ENVIRONMENT_PREFIX
from worker.node import LAUNCHER_PID
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.metrics_endpoint import MetricsEndpoint

logger = structlog.stdlib.get_logger(__name__)

#: A node that ends unasked is started again after this pause, doubled each time up to the second, in seconds.
RESTART_PAUSE_S = (1.0, 30.0)

#: After SIGTERM (Celery's warm shutdown) the running job has this long to end; then it goes back to the queue.
STOP_TIMEOUT_S = 45.0


#: Environment variables that Celery's command takes for options of its own: another broker would win over ours.
CELERY_OPTIONS = frozenset({"APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND"})


def node_environment(settings: WorkerSettings, *, gpu: int | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a node: its device is settled before anything is imported.

    Args:
        settings: The node's settings.
        gpu: Index of the GPU that the node is to see, alone; None for none.
        environ: The environment to start from.
    """
    return {
        **{name: value for name, value in environ.items() if name not in CELERY_OPTIONS},
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu),
        LAUNCHER_PID: str(os.getpid()),
        f"{ENVIRONMENT_PREFIX}DEVICE": settings.device,
        f"{ENVIRONMENT_PREFIX}NODE": settings.node,
        f"{ENVIRONMENT_PREFIX}MODEL": os.pathsep.join(str(path) for path in settings.model),
        f"{ENVIRONMENT_PREFIX}VIEW": settings.view.value,
        f"{ENVIRONMENT_PREFIX}LOG_FORMAT": settings.log_format,
        f"{ENVIRONMENT_PREFIX}METRICS_PORT": "" if settings.metrics_port is None else str(settings.metrics_port),
    }


class Launcher:
    """Keeps one node running until SIGTERM or Ctrl-C.

    Args:
        settings: The node's settings.
        gpu: Index of its GPU; None for the CPU.
        metrics: Serves the node's numbers; None if nobody wants them.
    """

    def __init__(self, settings: WorkerSettings, *, gpu: int | None, metrics: MetricsEndpoint | None = None) -> None:
        self._settings = settings
        self._environment = node_environment(settings, gpu=gpu, environ=os.environ)
        self._metrics = metrics
        if metrics is not None:
            self._environment |= metrics.environment
        self._ledger = Ledger(connect(settings), settings)
        self._signals = 0

    def run(self) -> int:
        """Start the node and stay with it.

        Returns:
            0 after a signal; 1 if the node ended before it was ever ready: it would not do better the next time.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        pause_s, longest_s = RESTART_PAUSE_S
        ready_once = False
        while True:
            self._forget_ready()
            node = subprocess.Popen(
                [sys.executable, "-m", "worker.node"],
                env=self._environment,
                # Celery greets and takes leave there, in pictures; what it has to say it logs as well.
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                became_ready = self._watch(node)
            finally:
                _end_group(node)
            if self._signals:
                return 0
            ready_once = ready_once or became_ready
            if not ready_once:
                logger.error("node_never_ready", node=self._settings.node, status=node.returncode)
                return 1
            pause_s = RESTART_PAUSE_S[0] if became_ready else min(2 * pause_s, longest_s)
            logger.error("node_ended", node=self._settings.node, status=node.returncode, restart_in_s=pause_s)
            self._sleep(pause_s)
            if self._signals:
                return 0
            if self._metrics is not None:
                self._metrics.count_restart()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._signals and time.monotonic() < end:
            time.sleep(0.1)

    def _watch(self, node: subprocess.Popen[bytes]) -> bool:
        """Wait for the node to end, or end it when asked to; say whether it was ready in between."""
        ready = False
        told = 0
        deadline = float("inf")
        while node.poll() is None:
            if self._signals > told:
                # The second Ctrl-C means it.
                node.send_signal(signal.SIGTERM if told == 0 else signal.SIGKILL)
                deadline = time.monotonic() + STOP_TIMEOUT_S
                told = self._signals
            if time.monotonic() > deadline:
                node.kill()
            if not ready and not told:
                ready = self._is_ready()
            time.sleep(0.1)
        return ready or self._is_ready()

    def _forget_ready(self) -> None:
        """Delete what an earlier node of this name said of itself."""
        with contextlib.suppress(BrokerUnavailableError), translated_errors():
            self._ledger.client.delete(self._ledger.keys.ready(self._settings.node))

    def _is_ready(self) -> bool:
        try:
            return self._ledger.is_ready(self._settings.node)
        except BrokerUnavailableError:
            return False


def _end_group(node: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()
