"""Times the queue: jobs through one node whose engine answers at once, all waiting, and one after another."""

import sys
import time
from typing import Any

from bench.machine import cpu_s
from bench.material import Material
from bench.processes import by_role
from bench.running import PATIENCE_S, environment, rates, span
from bench.scale import Scale
from bench.summary import Row, rounded, shown, spread
from contract.jobs import JobState
from contract.names import QUEUES
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.redis_server import EmbeddedRedis
from local.stack import Node, Stack
from producer.client import Client

_LOOK_PAUSE_S = 0.2


def measure(material: Material, scale: Scale) -> dict[str, Any]:
    """Submit jobs with no node there, start one, and wait; then submit one at a time, each when the last has ended.

    Returns:
        ``jobs``; ``submitted_per_s`` by one producer; ``throughput``, from the first claim to the last result by the
        clock of Redis; ``cpu_ms_per_job`` by role, processor time that others' load on the machine hardly changes;
        ``kept_bytes_per_job``, memory of Redis for a job that has ended, until it expires;
        ``single_ms``, submit to result in an idle system, and what 95 of 100 stay below, ``single_p95_ms``.
    """
    folder = material.new_folder("queue")
    request = {"img_path": "/nowhere/a.png", "destination_path": "/nowhere"}
    with EmbeddedRedis(folder / "redis") as server:
        settings = Settings(state_dir=material.state_dir, redis_url=server.url)
        with Client(settings) as client:
            empty_bytes = client.ledger.client.info("memory")["used_memory"]
            began = time.perf_counter()
            jobs = client.submit_many([request] * scale.queue_jobs)
            submitting_s = time.perf_counter() - began
            stack = Stack(
                folder=folder,
                nodes=[Node("idle")],
                url_file=folder / "redis.url",
                environment={**environment(material), f"{ENVIRONMENT_PREFIX}NODE": "idle"},
                settings=settings,
                redis_url=server.url,
                worker_command=_command,
                ready_timeout_s=PATIENCE_S,
            )
            with stack:
                cpu_ms = _follow(client, stack)
                results = list(client.results([job.job_id for job in jobs], PATIENCE_S))
                kept_bytes = client.ledger.client.info("memory")["used_memory"] - empty_bytes
                single_ms = []
                for _ in range(scale.queue_single_jobs):
                    began = time.perf_counter()
                    client.result(client.submit(request).job_id, wait_s=PATIENCE_S)
                    single_ms.append((time.perf_counter() - began) * 1000)
            return {
                "jobs": scale.queue_jobs,
                "submitted_per_s": round(scale.queue_jobs / submitting_s, 1),
                "throughput": rates([span(client, results)]),
                "cpu_ms_per_job": cpu_ms,
                "kept_bytes_per_job": round(kept_bytes / scale.queue_jobs),
                "single_ms": spread(single_ms),
                "single_p95_ms": round(sorted(single_ms)[int(0.95 * len(single_ms))], 3),
            }


def _follow(client: Client, stack: Stack) -> dict[str, float]:
    """Wait until no job is open; give the processor time (ms) that each process took for one."""

    def look() -> tuple[int, dict[str, float]]:
        stack.raise_if_ended()
        counts = client.ledger.counts()
        return counts[JobState.QUEUED] + counts[JobState.RUNNING], {role: cpu_s(pid) for role, pid in pids.items()}

    pids = by_role()
    first, before = look()
    left, after = first, before
    while left:
        # Seldom: to follow each result would take its share of the cores.
        time.sleep(_LOOK_PAUSE_S)
        left, after = look()
    return {role: round(1000 * (after[role] - before[role]) / max(1, first), 3) for role in pids}


def _command(node: Node) -> list[str]:
    """The options are those of `worker.node`."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app=bench.idle_node", "worker"),
        *(f"--hostname={node.name}", f"--queues={','.join(QUEUES)}", "--loglevel=INFO"),
        *("--without-gossip", "--without-mingle"),
    ]


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    return [
        (f"{found['jobs']} jobs waiting, an engine that does nothing", "", ""),
        ("  through one node", shown(found["throughput"]["per_s"], "jobs/s"), "500 jobs/s"),
        *(
            (f"    processor time of {role}, a job", f"{rounded(taken_ms)} ms", "")
            for role, taken_ms in found["cpu_ms_per_job"].items()
        ),
        ("  memory of Redis for an ended job", f"{found['kept_bytes_per_job']:,} bytes", ""),
        ("  submitting them, one producer", f"{rounded(found['submitted_per_s'])} jobs/s", ""),
        ("One job in an idle system, submit to result", shown(found["single_ms"], "ms"), "below 10 ms"),
        ("  95 of 100 within", f"{rounded(found['single_p95_ms'])} ms", ""),
    ]
