"""Redis and workers on this machine, as one context manager: when it is entered, every worker is ready for jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from contract.connection import connect, translated_errors
from contract.ledger import Ledger
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.errors import StartError
from local.private_file import make_private_folder, write_private
from local.processes import Child, stop_all
from local.redis_server import EmbeddedRedis

_POLL_S = 0.1


@dataclass(frozen=True)
class Node:
    """One worker.

    Attributes:
        name: Under which it reports ready; unique among all that share the Redis.
        gpu: Index of the GPU that it is pinned to; None for the CPU.
    """

    name: str
    gpu: int | None = None


#: Says program and arguments for a worker.
WorkerCommand = Callable[[Node], list[str]]


def nodes_for(gpus: Sequence[int], *, workers: int = 1, suffix: str = "") -> list[Node]:
    """So many workers for each GPU, or for the CPU if no GPU is given."""
    devices: list[int | None] = list(dict.fromkeys(gpus)) or [None]
    return [
        Node(f"{'cpu' if gpu is None else f'gpu{gpu}'}-{number}{suffix}", gpu)
        for gpu in devices
        for number in range(1, workers + 1)
    ]


def worker_command(
    node: Node, *, models: Sequence[Path] = (), metrics_ports: Mapping[str, int] | None = None
) -> list[str]:
    """How the worker role is started.

    Args:
        node: Which worker.
        models: Model files.
        metrics_ports: Where each worker, by name, answers Prometheus; those that are left out do not.
    """
    metrics_port = (metrics_ports or {}).get(node.name)
    return [
        sys.executable,
        *("-m", "worker", "run"),
        *(["--cpu"] if node.gpu is None else ["--gpu", str(node.gpu)]),
        *("--name", node.name),
        *(part for model in models for part in ("--model", str(model))),
        *(() if metrics_port is None else ("--metrics-port", str(metrics_port))),
    ]


def child_environment(inherited: Mapping[str, str], url_file: Path) -> dict[str, str]:
    """The environment in which the other roles find this Redis, and nothing leads them to another one.

    Args:
        inherited: What else they may see.
        url_file: File with the URL: an environment variable with the password would be easier to read by others.
    """
    ours = {
        name: value
        for name, value in inherited.items()
        # CELERY_BROKER_URL would go before the URL that the program itself gives to Celery.
        if name.upper() != f"{ENVIRONMENT_PREFIX}REDIS_URL" and not name.upper().startswith("CELERY_")
    }
    # Else a `worker.py` or `json.py` in the folder where the user happens to stand would be run.
    return {**ours, "PYTHONSAFEPATH": "1", f"{ENVIRONMENT_PREFIX}REDIS_URL_FILE": str(url_file)}


@dataclass
class RunningWorker:
    """A worker and its process.

    Attributes:
        node: Which worker.
        child: Its process, or the last one it had.
    """

    node: Node
    child: Child

    def poll(self) -> int | None:
        """The exit code of its process, or None while that runs."""
        return self.child.poll()


def _silent_step(_text: str) -> AbstractContextManager[None]:
    return nullcontext()


def _drop_log(_name: str, _line: str) -> None:
    pass


@dataclass
class Stack:
    """Redis and workers. Leaving the `with` block stops the workers, then Redis, then removes the file with the URL.

    Attributes:
        folder: For the data of Redis.
        nodes: The workers.
        url_file: Where the URL is written for the other roles, mode 0600.
        environment: What the workers inherit.
        settings: Key prefix; its `redis_url` is not used.
        redis_url: A Redis that runs already, to be used in place of an embedded one.
        worker_command: How a worker is started.
        step: Opens a context that tells a person what is being done.
        on_log: Takes the name of a worker and a line of its log.
        ready_timeout_s: What the workers may take to get ready, in seconds.
        patience_s: What a worker may take to stop, in seconds.
    """

    folder: Path
    nodes: Sequence[Node]
    url_file: Path
    environment: Mapping[str, str]
    settings: Settings
    redis_url: str | None = field(default=None, repr=False)
    worker_command: WorkerCommand = worker_command
    step: Callable[[str], AbstractContextManager[None]] = _silent_step
    on_log: Callable[[str, str], None] = _drop_log
    ready_timeout_s: float = 300.0
    # A worker's launcher itself gives its node 45 s.
    patience_s: float = 50.0
    redis: EmbeddedRedis | None = field(default=None, init=False)
    workers: list[RunningWorker] = field(default_factory=list, init=False)
    _opened: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __enter__(self) -> Self:
        """Start everything and wait until every worker has its model loaded.

        Raises:
            StartError: A part did not start, ended, or was not ready in time.
            BrokerUnavailableError: The Redis at `redis_url` does not answer.
        """
        with ExitStack() as opened:
            url = self.redis_url
            if url is None:
                with self.step("Starting Redis"):
                    self.redis = opened.enter_context(EmbeddedRedis(self.folder))
                url = self.redis.url
            make_private_folder(self.url_file.parent)
            opened.callback(self.url_file.unlink, missing_ok=True)
            write_private(self.url_file, url + "\n")
            client = opened.enter_context(
                connect(self.settings.model_copy(update={"redis_url": SecretStr(url), "redis_url_file": None}))
            )
            self._ledger = Ledger(client, self.settings)
            with translated_errors():
                client.ping()

            opened.callback(lambda: stop_all(worker.child for worker in self.workers))
            with self.step(_starting(self.nodes)):
                for node in self.nodes:
                    self.workers.append(RunningWorker(node, self._start(node)))
                self._wait_until_ready()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def child_environment(self) -> dict[str, str]:
        """The environment for other roles that are to use this Redis."""
        return child_environment(self.environment, self.url_file)

    def restart(self, worker: RunningWorker) -> None:
        """Start a worker again that has ended; does not wait until it is ready."""
        worker.child = self._start(worker.node)

    def raise_if_ended(self) -> None:
        """Raise if Redis or a worker has ended by itself.

        Raises:
            StartError: With the end of its log.
        """
        if self.redis is not None and self.redis.has_ended:
            raise StartError("Redis has ended unexpectedly", log=self.redis.log_tail())
        for worker in self.workers:
            code = worker.child.poll()
            if code is not None:
                raise StartError(f"the worker {worker.node.name} ended {describe_exit(code)}", log=worker.child.tail)

    def ready(self) -> list[str]:
        """Names of those of the workers that are ready."""
        return [node.name for node in self.nodes if self._ledger.is_ready(node.name)]

    def _start(self, node: Node) -> Child:
        # A worker of this name that was killed may have left its sign, which outlives it by some seconds.
        with translated_errors():
            self._ledger.client.delete(self._ledger.keys.ready(node.name))
        return Child(
            node.name,
            self.worker_command(node),
            environment=self.child_environment,
            on_log=lambda line: self.on_log(node.name, line),
            patience_s=self.patience_s,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while len(ready := self.ready()) < len(self.nodes):
            self.raise_if_ended()
            if time.monotonic() > deadline:
                late = next(worker for worker in self.workers if worker.node.name not in ready)
                raise StartError(
                    f"the worker {late.node.name} was not ready within {self.ready_timeout_s:g} s", log=late.child.tail
                )
            time.sleep(_POLL_S)


def describe_exit(code: int) -> str:
    """An exit code of `Child.poll` in words."""
    return f"by signal {-code}" if code < 0 else f"with code {code}"


def _starting(nodes: Sequence[Node]) -> str:
    if len(nodes) == 1:
        return "Starting a worker (loads the network)"
    return f"Starting {len(nodes)} workers (each loads the network)"
