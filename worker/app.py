"""What Celery loads on a node (`celery -A worker.app worker`): the app, its one task, the life of its child process.

The parent process handles messages and looks after forgotten jobs. The child, one a node, owns the device: it loads
the models, warms them up, says that the node is ready, and then runs one job at a time.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import billiard
import structlog
from celery import signals

from contract.broker import make_app
from contract.connection import connect, translated_errors
from contract.errors import OsteopanError
from contract.ledger import Ledger
from contract.names import TASK_PROCESS
from contract.settings import load_settings
from worker.acknowledgement import repair_acknowledgement
from worker.events import TaskEvents
from worker.logs import configure_logs
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from panoramic.manifest import Manifest
    from worker.metrics import EngineMetrics

logger = structlog.stdlib.get_logger(__name__)

#: The ready key lives this long after the last sign of life, in seconds.
READY_TTL_S = 15
READY_PAUSE_S = 5

#: From the parent to its child: end what is in hand, and take nothing along any more.
TAKE_NO_MORE = signal.SIGUSR2

settings = load_settings(WorkerSettings)
app = make_app(settings, include=("worker.app",))
repair_acknowledgement()


class Child:
    """The child process's engine and its sign of life."""

    def __init__(self) -> None:
        # PyTorch is imported here and not above: the parent has no use for it.
        from worker.job import JobProcessor
        from worker.line import Line
        from worker.screening import Screener

        self._ledger = Ledger(connect(settings), settings)
        self._screener = Screener(settings)
        self._screener.__enter__()
        self._screener.warm_up()
        self._metrics = _engine_metrics(self._screener.manifests)
        self._events = TaskEvents(app, node=settings.node)
        self._events.start()
        jobs = JobProcessor(
            self._ledger, self._screener, node=settings.node, observer=self._metrics, events=self._events
        )
        self.line = Line(jobs, self._screener, batch_size=settings.effective_batch_size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._say_ready, name="ready", daemon=True)
        self._thread.start()
        for model, runtime in self._screener.runtimes.items():
            log = logger.warning if runtime.fell_back else logger.info
            log("runtime_chosen", model=model, **dataclasses.asdict(runtime))
        logger.info("node_ready", node=settings.node, device=settings.device, models=self._screener.model_names)

    def close(self) -> None:
        """Stop being ready, and end the decoder."""
        self._stop.set()
        self._thread.join()
        if self._metrics is not None:
            self._metrics.stop()
        self.line.close()
        self._events.close()
        self._screener.__exit__(None, None, None)

    def _say_ready(self) -> None:
        key = self._ledger.keys.ready(settings.node)
        value = ",".join(self._screener.model_names)
        while True:
            try:
                self._ledger.hold(key, value, lifetime_s=READY_TTL_S, take=True)
                if self._stop.wait(READY_PAUSE_S):
                    with translated_errors():
                        self._ledger.client.delete(key)
                    return
            except OsteopanError:
                if self._stop.wait(1.0):
                    return


def _engine_metrics(models: Sequence[Manifest]) -> EngineMetrics | None:
    if settings.metrics_port is None:
        return None
    from worker.metrics import Device, EngineMetrics

    metrics = EngineMetrics(models, Device(settings.device, settings.output_roots))
    metrics.start()
    return metrics


#: Set in the child only, by `worker_process_init`. Celery gives a task no other place to keep what a process owns.
child: Child | None = None


@app.task(name=TASK_PROCESS)
def process(job_id: str) -> None:
    """Process the job of this id, if it is still to be had."""
    if child is None:
        raise RuntimeError("no engine in this process: the task runs in a node's child only")
    from worker.line import EngineLostError

    try:
        child.line.process(job_id)
    except EngineLostError as error:
        # A new child can read what this one's threads would never have room for, and gets a device of its own.
        logger.critical("engine_lost", node=settings.node, reason=str(error))
        os._exit(1)


@signals.setup_logging.connect
def _configure_logs(**_: Any) -> None:
    configure_logs(settings)


@signals.celeryd_after_setup.connect
def _silence_billiard(**_: Any) -> None:
    # Celery leaves this for its children, and billiard would log to standard error in a format of its own.
    os.environ.pop("_MP_FORK_LOGLEVEL_", None)


@signals.worker_process_init.connect
def _start(**_: Any) -> None:
    global child  # noqa: PLW0603
    try:
        child = Child()
    except BaseException as error:  # noqa: BLE001 - see below
        # Celery would log the fault and let the child take jobs without an engine, or start one child after another:
        # end the whole node instead, and let the launcher decide.
        message = str(error) if isinstance(error, OsteopanError) else type(error).__name__
        logger.critical("node_cannot_start", node=settings.node, reason=message)
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)
    signal.signal(TAKE_NO_MORE, _stop_taking)


def _stop_taking(*_: object) -> None:
    if child is not None:
        child.line.take_no_more()


@signals.worker_ready.connect
def _look_after(**_: Any) -> None:
    # In the parent, which outlives its children.
    from worker.reconciler import Reconciler
    from worker.watchdog import Watchdog

    ledger = Ledger(connect(settings), settings)
    Reconciler(ledger, app).start()
    Watchdog(ledger, node=settings.node).start()


@signals.worker_shutting_down.connect
def _take_no_more(**_: Any) -> None:
    for process in billiard.active_children():
        os.kill(process.pid, TAKE_NO_MORE)


@signals.worker_process_shutdown.connect
def _stop(**_: Any) -> None:
    if child is not None:
        child.close()
