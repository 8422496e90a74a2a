"""Where Prometheus and health checks find a node: `/metrics`, `/live` and `/ready`, served by the launcher.

The launcher outlives Celery's parent and the engine's process, so it answers whatever becomes of them, and a counter
never falls back while it runs. It adds three things up: the engine's numbers (see `worker.metrics`), what the ledger
says of the queue, the same on every node, and what it knows itself. While Redis is away the ledger's part is left out
and `osteopan_redis_up` is 0; a scrape takes some seconds at most, and does not fail.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.connection import connect
from contract.errors import BrokerUnavailableError, SettingsError
from contract.jobs import JobState, Priority
from contract.ledger import MAX_MEMORY_PERCENT, Ledger
from worker.metrics_files import EngineFiles
from worker.metrics_ledger import LedgerSnapshot, take_snapshot
from worker.settings import WorkerSettings

logger = structlog.stdlib.get_logger(__name__)

#: Tells prometheus-client, in the engine's process, where its files are.
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

#: What the ledger said, or that it was away, is believed for so long, in seconds.
CACHE_S = 2.0

#: Prometheus gives a scrape 10 s. Redis gets this for a connection and for an answer, once, in seconds.
REDIS_CONNECT_TIMEOUT_S = 1.0
REDIS_ANSWER_TIMEOUT_S = 2.0

#: A client that is silent for so long is left, in seconds.
CLIENT_TIMEOUT_S = 5


class NodeCollector(Collector):
    """Everything that is known of a node, gathered when it is asked for.

    Args:
        settings: The node's settings.
        files: The engine's numbers.
        clock: Seconds that only grow.
    """

    def __init__(
        self, settings: WorkerSettings, files: EngineFiles, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node = settings.node
        self._ledger = Ledger(connect(settings), settings)
        # A scrape must not wait for as long as a job may.
        self._ledger.client.set_retry(Retry(NoBackoff(), 0))
        self._ledger.client.connection_pool.connection_kwargs |= {
            "socket_connect_timeout": REDIS_CONNECT_TIMEOUT_S,
            "socket_timeout": REDIS_ANSWER_TIMEOUT_S,
        }
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: tuple[float, LedgerSnapshot | None] | None = None
        self._build = _build()
        self.restarts = 0

    def snapshot(self) -> LedgerSnapshot | None:
        """What the ledger says, or None while Redis is away; at most `CACHE_S` old."""
        with self._lock:
            if self._cached is None or self._clock() - self._cached[0] > CACHE_S:
                snapshot = None
                with contextlib.suppress(BrokerUnavailableError):
                    snapshot = take_snapshot(self._ledger, self._node)
                self._cached = (self._clock(), snapshot)
            return self._cached[1]

    def why_not_ready(self) -> str | None:
        """Why this node takes no jobs now; None if it does."""
        if not self._files.has_engine():
            return "no engine is loaded and warm"
        snapshot = self.snapshot()
        if snapshot is None:
            return "Redis does not answer"
        return None if snapshot.ready else "the engine does not say that it is ready"

    def collect(self) -> Iterable[Metric]:
        """Gather all metrics."""
        snapshot = self.snapshot()
        with self._lock:
            yield from self._files.collect()
        yield _gauge("osteopan_redis_up", "1 while this node's launcher reaches Redis.", snapshot is not None)
        yield _gauge("osteopan_node_ready", "1 while this node takes jobs.", self.why_not_ready() is None)
        restarts = CounterMetricFamily("osteopan_node_restarts", "How often the launcher had to start the node again.")
        restarts.add_metric([], self.restarts)
        yield restarts
        build = GaugeMetricFamily("osteopan_build_info", "1, with the versions of what runs.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build
        if snapshot is not None:
            yield from _ledger_metrics(snapshot)

    def close(self) -> None:
        """Close the connection."""
        self._ledger.client.close()


def _ledger_metrics(snapshot: LedgerSnapshot) -> Iterator[Metric]:
    open_jobs = GaugeMetricFamily("osteopan_jobs_open", "Jobs that have not ended, by state.", labels=["state"])
    open_jobs.add_metric([JobState.QUEUED.value], snapshot.queued)
    open_jobs.add_metric([JobState.RUNNING.value], snapshot.running)
    yield open_jobs
    yield _gauge("osteopan_jobs_dead", "Jobs given up, which wait for a person.", snapshot.dead)
    depth = GaugeMetricFamily("osteopan_queue_depth", "Messages waiting in a queue.", labels=["priority"])
    age = GaugeMetricFamily(
        "osteopan_queue_oldest_age_seconds", "How long the job at the queue's head has waited.", labels=["priority"]
    )
    for priority in Priority:
        depth.add_metric([priority.value], snapshot.depth[priority])
        age.add_metric([priority.value], snapshot.oldest_age_s[priority])
    yield depth
    yield age
    if snapshot.memory_share is not None:
        yield _gauge(
            "osteopan_redis_memory_ratio",
            f"Share of Redis' memory that is used; from {MAX_MEMORY_PERCENT / 100} on no job is accepted.",
            snapshot.memory_share,
        )


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _build() -> dict[str, str]:
    versions = {"version": "osteopan", "celery": "celery", "torch": "torch"}
    return {
        "python": platform.python_version(),
        **{label: metadata.version(package) for label, package in versions.items()},
    }


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: a scrape every 15 s is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log, as any other event, that a client fell silent or left."""
        logger.info("metrics_client_lost")


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


class MetricsEndpoint:
    """The endpoint of one node, from `__enter__` to `__exit__`.

    Args:
        settings: The node's settings.
        port: Where to listen.

    Raises:
        SettingsError: The address is not this machine's, or the port is taken.
    """

    def __init__(self, settings: WorkerSettings, port: int) -> None:
        # In memory where there is a place for it: writing to a mapped file of a full disk would end the engine.
        memory = Path("/dev/shm")  # noqa: S108  # nosec B108 - mkdtemp makes a folder of ours in it, mode 0700
        self._folder = Path(
            tempfile.mkdtemp(prefix="osteopan-metrics-", dir=memory if os.access(memory, os.W_OK) else None)
        )
        try:
            self._collector = NodeCollector(settings, EngineFiles(self._folder))
            address = settings.metrics_address
            kind = _ServerIPv6 if ":" in address else _Server
            self._server = make_server(address, port, self._answer, kind, _Handler)
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise SettingsError(
                f"OSTEOPAN_METRICS_PORT: cannot listen at {address}:{port}: {error.strerror}; "
                "give each node of this machine a port of its own"
            ) from error
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._collector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the node needs to know."""
        return {MULTIPROCESS_FOLDER: str(self._folder)}

    def count_restart(self) -> None:
        """Count that the node is started again."""
        self._collector.restarts += 1

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start_response)
        status, text = HTTPStatus.OK, "ok"
        if path == "/ready":
            reason = self._collector.why_not_ready()
            if reason is not None:
                status, text = HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}"
        elif path != "/live":
            status, text = HTTPStatus.NOT_FOUND, "here are /metrics, /live and /ready"
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]
