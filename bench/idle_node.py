"""A Celery node whose engine answers at once (`celery -A bench.idle_node worker`): what is left is the queue.

All but the engine is the worker's own: the app's settings, messages and acknowledgement, ledger, line, leases,
heartbeats at each stage, the note of the pictures, results, events for Flower, the search for forgotten jobs. Like
`worker.app`, whose place it takes, it reads its settings and connects Celery's signals when Celery imports it.
"""

# mypy: disable-error-code="untyped-decorator"
# Celery's decorators have no types.

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
from celery import signals
from numpy.typing import NDArray

from contract.broker import make_app
from contract.connection import connect
from contract.errors import JobError
from contract.ledger import Ledger
from contract.names import TASK_PROCESS
from contract.settings import load_settings
from panoramic.classification import Classification
from panoramic.manifest import Manifest
from panoramic.model_file import Model
from panoramic.runtime_choice import LoadedRuntime
from panoramic.runtime_info import Precision, RuntimeChoice, RuntimeInfo
from worker.acknowledgement import repair_acknowledgement
from worker.events import TaskEvents
from worker.job import JobProcessor
from worker.line import Line
from worker.logs import configure_logs
from worker.paths import Destination
from worker.reconciler import Reconciler
from worker.screening import OnPictures, OnStage, Prepared, Screener, Screening
from worker.settings import WorkerSettings, usable_cores
from worker.watchdog import Watchdog

#: The node says once that it is ready, for longer than any measurement takes (s).
READY_TTL_S = 3600

#: As long as the note of a real job.
_NOTE = json.dumps([[f"0123456789_{kind}_20260101000000.png", 12345678, 10**18] for kind in ("saliency", "overlay")])

_MANIFEST = Manifest(name="idle", version="0", network="efficientnet-b0", sha256="0" * 64)
_RUNTIME = RuntimeInfo(RuntimeChoice.REFERENCE, "none", Precision.FLOAT32, "cpu", 0.0, 0.0)
_ANSWER = Classification(
    probability=0.0,
    probabilities={"C1": 1.0, "C3": 0.0},
    class_index=0,
    class_name="C1",
    diagnosis=_MANIFEST.classes[0].label,
    cam=np.zeros((1, 1), np.float32),
    layer="none",
    method="none",
)


class _IdleRuntime:
    """A `Runtime` without a network."""

    model = Model(_MANIFEST, {}, "")

    def warm_up(self) -> None:
        """There is nothing to warm."""

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """The same answer to every picture."""
        return [_ANSWER] * len(batch)


class IdleScreener(Screener):
    """An engine that goes through the stages, and says so as the real one does, but does nothing in them."""

    def __init__(self, settings: WorkerSettings) -> None:
        # Not the real one's, which loads models.
        self.hands = settings.hands or max(1, usable_cores() // 4)
        self._loaded = LoadedRuntime(_IdleRuntime(), _RUNTIME)

    def prepare(
        self,
        img_path: str,
        destination_path: str,
        *,
        model: str | None = None,  # noqa: ARG002 - there is one
        on_stage: OnStage = lambda _: None,
    ) -> Prepared:
        """Reads nothing."""
        on_stage("read")
        on_stage("background")
        empty = np.zeros((1, 1), np.uint8)
        nowhere = Destination(destination_path, -1)
        return Prepared(self._loaded, img_path, empty, empty.astype(np.float32), nowhere, (), {}, ExitStack())

    def classify(self, batch: Sequence[Prepared]) -> list[Classification | JobError]:
        """Asks no network."""
        return [_ANSWER] * len(batch)

    def deliver(
        self,
        prepared: Prepared,
        classification: Classification,
        *,
        on_stage: OnStage = lambda _: None,
        on_pictures: OnPictures = lambda _: None,
    ) -> Screening:
        """Writes nothing."""
        on_stage("pictures")
        on_pictures(_NOTE)
        path = f"{prepared.destination.path}/{prepared.stem}"
        timings_ms = dict.fromkeys(("read", "background", "network", "pictures"), 0.0)
        return Screening(classification, _MANIFEST, _RUNTIME, path, path, warnings=(), timings_ms=timings_ms)

    def take_back(self, destination_path: str, note: str) -> bool:  # noqa: ARG002 - as the real one
        """There is nothing to take back."""
        return True


settings = load_settings(WorkerSettings)
app = make_app(settings, include=("bench.idle_node",))
repair_acknowledgement()

#: Set in the child only, as in `worker.app`.
_line: Line | None = None


@app.task(name=TASK_PROCESS)
def process(job_id: str) -> None:
    """Process the job of this id, if it is still to be had."""
    cast("Line", _line).process(job_id)


@signals.setup_logging.connect
def _configure_logs(**_: Any) -> None:
    configure_logs(settings)


@signals.worker_process_init.connect
def _start(**_: Any) -> None:
    global _line  # noqa: PLW0603
    ledger = Ledger(connect(settings), settings)
    engine = IdleScreener(settings)
    events = TaskEvents(app, node=settings.node)
    events.start()
    jobs = JobProcessor(ledger, engine, node=settings.node, events=events)
    _line = Line(jobs, engine, batch_size=settings.effective_batch_size)
    ledger.client.set(ledger.keys.ready(settings.node), "idle", ex=READY_TTL_S)


@signals.worker_ready.connect
def _look_after(**_: Any) -> None:
    ledger = Ledger(connect(settings), settings)
    Reconciler(ledger, app).start()
    Watchdog(ledger, node=settings.node).start()
