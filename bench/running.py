"""Nodes as an operator starts them, on a real Redis, with a producer before them."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.material import Material
from bench.summary import Spread, spread
from contract.jobs import JobResult
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.stack import Node, Stack, WorkerCommand
from producer.client import Client

#: No job of ours takes longer, be the machine as busy as it may (s).
PATIENCE_S = 1800.0

#: With fewer the line is not full in the middle half.
STEADY_JOBS = 16


@dataclass(frozen=True)
class Span:
    """When jobs were taken up and ended, by the clock of Redis.

    Attributes:
        claimed_s: When the first was taken up.
        ended_s: When each ended, in that order.
    """

    claimed_s: float
    ended_s: tuple[float, ...]

    @property
    def per_s(self) -> float:
        """Jobs a second from the first claim to the last result: the first one's way through the node counts in."""
        return len(self.ended_s) / (self.ended_s[-1] - self.claimed_s)

    @property
    def steady_per_s(self) -> float:
        """Jobs a second in the middle half: what a node does whose queue never ends.

        Neither at its beginning nor at its end is the line empty, so that as many are on their way at both.
        """
        first, last = self._middle
        return (last - first) / (self.ended_s[last] - self.ended_s[first])

    @property
    def is_steady(self) -> bool:
        """Whether there are enough for `steady_per_s`."""
        first, last = self._middle
        return self.ended_s[last] > self.ended_s[first]

    @property
    def _middle(self) -> tuple[int, int]:
        return len(self.ended_s) // 4, len(self.ended_s) * 3 // 4


@dataclass(frozen=True)
class Running:
    """Nodes that are ready.

    Attributes:
        client: A producer.
        stack: Redis and the nodes.
        start_s: What starting them took, until the last was ready.
        destination: Where the pictures go.
    """

    client: Client
    stack: Stack
    start_s: float
    destination: Path

    def one(self, picture: Path) -> tuple[float, JobResult]:
        """Submit one job and wait for it: milliseconds from submitting to the result, and the result."""
        began = time.perf_counter()
        job = self.client.submit(self._request(picture))
        result = self.client.result(job.job_id, wait_s=PATIENCE_S)
        wall_ms = (time.perf_counter() - began) * 1000
        self._check([result])
        return wall_ms, result

    def all(self, pictures: Sequence[Path]) -> Span:
        """Submit a job for each picture at once and wait for all; their own pictures are deleted."""
        jobs = self.client.submit_many([self._request(picture) for picture in pictures])
        results = list(self.client.results([job.job_id for job in jobs], PATIENCE_S))
        self._check(results)
        return span(self.client, results)

    def _request(self, picture: Path) -> dict[str, str]:
        return {"img_path": str(picture), "destination_path": str(self.destination)}

    def _check(self, results: Sequence[JobResult]) -> None:
        for result in results:
            if result.result != "ok":
                raise RuntimeError(f"a job failed: {result.error}")
            for path in (result.saliency_img_path, result.overlay_img_path):
                Path(path).unlink()


def span(client: Client, results: Sequence[JobResult]) -> Span:
    """When these jobs were taken up and ended, from results and ledger."""
    claimed_s = min(result.submitted_at.timestamp() + result.timings_ms["queued"] / 1000 for result in results)
    ended = (client.ledger.status(result.job_id).finished_at for result in results)
    return Span(claimed_s, tuple(sorted(when.timestamp() for when in ended if when is not None)))


def rates(spans: Sequence[Span]) -> dict[str, Spread]:
    """``per_s`` and, where there are jobs enough, ``steady_per_s`` of several runs."""
    found = {"per_s": spread(run.per_s for run in spans)}
    if all(len(run.ended_s) >= STEADY_JOBS and run.is_steady for run in spans):
        found["steady_per_s"] = spread(run.steady_per_s for run in spans)
    return found


@contextmanager
def running(material: Material, command: WorkerCommand, *, nodes: int = 1, gpu: int | None = None) -> Iterator[Running]:
    """Start nodes with the default settings, whatever the environment says, and wait until they are ready.

    Args:
        material: Has their state folder.
        command: Starts one.
        nodes: How many.
        gpu: Index of the GPU that all of them share; None for the CPU.
    """
    folder = material.new_folder("running")
    settings = Settings(state_dir=material.state_dir)
    stack = Stack(
        folder=folder / "redis",
        nodes=[Node(f"bench-{number}", gpu) for number in range(nodes)],
        url_file=folder / "redis.url",
        environment=environment(material),
        settings=settings,
        worker_command=command,
        ready_timeout_s=PATIENCE_S,
    )
    began = time.perf_counter()
    with stack:
        start_s = time.perf_counter() - began
        url = stack.url_file.read_text(encoding="utf-8").strip()
        with Client(Settings(state_dir=material.state_dir, redis_url=url)) as client:
            yield Running(client, stack, start_s, folder / "out")


def environment(material: Material) -> dict[str, str]:
    """What nodes inherit: nothing of the settings of whoever measures."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**inherited, f"{ENVIRONMENT_PREFIX}STATE_DIR": str(material.state_dir)}
