"""What the engine counts and measures of its own work, for Prometheus.

A node is three processes: the launcher, Celery's parent, and the child with the engine, which is killed and replaced
now and then. Only the child knows the jobs' outcomes, durations and scores, and only the launcher lives as long as the
node. So the child writes its numbers into files that it maps into memory (prometheus-client's multiprocess mode, in a
private folder that the launcher makes), and the launcher serves them (`worker.metrics_endpoint`). A number is in the
kernel's hands at the moment it is written: a child that is killed loses none, its successor begins files of its own,
and the launcher adds the two up. A pipe or a socket would lose what is under way, and would have to be emptied even
when nobody scrapes; a server in the child would forget everything with it, and be away just when it is wanted.

No label holds a job's id, a path or metadata: labels are codes, stages, and what the model file says of the model.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from contract.errors import ErrorCode
from contract.jobs import JobResult, JobState
from panoramic.manifest import Manifest
from worker.job import JobObserver
from worker.screening import STAGES

logger = structlog.stdlib.get_logger(__name__)

#: Every key of a result's `timings_ms`.
TIMED_STAGES = ("queued", *STAGES, "engine")

#: Upper bounds, in seconds. A stage takes from some milliseconds up, and a queue may hold a night's work.
DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600)

#: Upper bounds of the probability of the finding.
SCORE_BUCKETS = tuple(round(0.05 * step, 2) for step in range(1, 21))

#: Pause between two looks at memory and disk, in seconds.
SAMPLE_PAUSE_S = 5.0

#: So much of a model's digest is shown, in hexadecimal digits.
DIGEST_DIGITS = 12

#: `error` of a job that has none.
NO_ERROR = ""


@dataclass(frozen=True)
class Device:
    """Where the engine runs and writes.

    Attributes:
        name: `cpu`, or `cuda:0`.
        output_roots: Folders in which pictures may be written.
    """

    name: str
    output_roots: Sequence[Path]


class EngineMetrics(JobObserver):
    """The numbers of one engine.

    Every series is there from the beginning, at zero: a rate sees the first failure too, and no later write needs
    another page of the files, which on a full disk would end the process.

    Args:
        models: What the files of the loaded models say of them.
        device: Where the engine runs and writes.
        registry: Where the numbers can be read in this process. None leaves them to the files of the multiprocess mode.
    """

    def __init__(
        self, models: Sequence[Manifest], device: Device, *, registry: CollectorRegistry | None = None
    ) -> None:
        self._device = device
        self._jobs = Counter(
            "osteopan_jobs",
            "Jobs that ended on this node, by outcome and error code.",
            ["outcome", "error"],
            registry=registry,
        )
        self._attempts = Counter("osteopan_job_attempts", "Jobs that this node has taken up.", registry=registry)
        self._retries = Counter(
            "osteopan_job_retries",
            "Jobs that this node has taken up after another attempt had ended without a result.",
            registry=registry,
        )
        self._lost = Counter(
            "osteopan_jobs_lost", "Jobs that another worker took over while this node was silent.", registry=registry
        )
        self._durations = Histogram(
            "osteopan_stage_duration_seconds",
            "Time that ended jobs spent in each stage.",
            ["stage"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._scores = Histogram(
            "osteopan_score",
            "Probability of the finding that the model gave.",
            ["model", "version"],
            buckets=SCORE_BUCKETS,
            registry=registry,
        )
        self._models = Gauge(
            "osteopan_model_info",
            "1 for each loaded model, with its name, version, digest and device.",
            ["name", "version", "sha256", "device"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._disk = Gauge(
            "osteopan_output_disk_free_bytes",
            "Free space for pictures; the least, where there are several disks.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._gpu_memory = Gauge(
            "osteopan_gpu_memory_bytes",
            "Memory of the GPU: allocated and reserved by this node; free and total of the device.",
            ["kind"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._begin_at_zero(models)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on_and_on, name="metrics", daemon=True)

    def _begin_at_zero(self, models: Sequence[Manifest]) -> None:
        for outcome, error in _OUTCOMES:
            self._jobs.labels(outcome, error)
        for stage in TIMED_STAGES:
            self._durations.labels(stage)
        for model in models:
            self._scores.labels(model.name, model.version)
            self._models.labels(model.name, model.version, model.sha256[:DIGEST_DIGITS], self._device.name).set(1)

    def start(self) -> None:
        """Begin to look at memory and disk now and then, in a thread: a disk in the network may keep it waiting."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, unless a disk holds it."""
        self._stop.set()
        self._thread.join(timeout=1)

    def claimed(self, *, attempts: int) -> None:
        """Count a job that was taken up."""
        self._attempts.inc()
        if attempts > 1:
            self._retries.inc()

    def ended(self, state: JobState, result: JobResult) -> None:
        """Count a job that has its result."""
        self._jobs.labels(state.value, result.error.code.value if result.error else NO_ERROR).inc()
        if state is not JobState.DEAD:
            # Who ends a job that was given up did nothing else for it.
            for stage, milliseconds in result.timings_ms.items():
                self._durations.labels(stage).observe(milliseconds / 1000)
        if result.model is not None and result.probability is not None:
            self._scores.labels(result.model.name, result.model.version).observe(result.probability)

    def lost(self) -> None:
        """Count a job that another worker has by now."""
        self._lost.inc()

    def sample(self) -> None:
        """Look at memory and disk once."""
        try:
            self._disk.set(min(shutil.disk_usage(root).free for root in self._device.output_roots))
        except OSError:
            # A root that is not there can take no pictures either.
            self._disk.set(0)
        if self._device.name.startswith("cuda"):
            self._sample_gpu()

    def _sample_gpu(self) -> None:
        import torch

        device = self._device.name
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:
            # The job that meets the same fault is the one to say so.
            logger.warning("gpu_memory_unknown", error=type(error).__name__)
            return
        for kind, size in (
            ("free", free),
            ("total", total),
            ("allocated", torch.cuda.memory_allocated(device)),
            ("reserved", torch.cuda.memory_reserved(device)),
        ):
            self._gpu_memory.labels(kind).set(size)

    def _sample_on_and_on(self) -> None:
        self.sample()
        while not self._stop.wait(SAMPLE_PAUSE_S):
            self.sample()


#: Every pair of outcome and error code that a job can end with here. Who cancels a queued job ends it elsewhere.
_OUTCOMES = (
    (JobState.DONE.value, NO_ERROR),
    (JobState.CANCELLED.value, ErrorCode.CANCELLED.value),
    (JobState.DEAD.value, ErrorCode.WORKER_LOST.value),
    *product((JobState.FAILED.value,), (code.value for code in ErrorCode if code is not ErrorCode.CANCELLED)),
)
