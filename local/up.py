"""`osteopan up`: Redis and workers in the foreground, kept running until someone ends them."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from contract.settings import Settings
from local.errors import StartError
from local.flower import FlowerProcess
from local.progress import Progress
from local.stack import Node, Stack, WorkerCommand, describe_exit, nodes_for

#: A worker that ends unexpectedly is started again after a pause that doubles from the first to the second of these,
#: in seconds, and is back at the first once a worker has run for longer than the second.
RESTART_PAUSES_S = (1.0, 60.0)

_POLL_S = 0.25


class Backoff:
    """When something that keeps ending is to be started again.

    Args:
        pauses_s: The first and the longest pause, in seconds.
        clock: Seconds that only grow.
    """

    def __init__(
        self, pauses_s: tuple[float, float] = RESTART_PAUSES_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s, self._longest_s = pauses_s
        self._clock = clock
        self._pause_s = self._first_s
        self._started_at = clock()
        self._due_at: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the end was noted, and the new start is still to come."""
        return self._due_at is not None

    def ended(self) -> float:
        """Note the end; returns the pause until the next start, in seconds."""
        now = self._clock()
        if now - self._started_at > self._longest_s:
            self._pause_s = self._first_s
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self._longest_s)
        self._due_at = now + pause_s
        return pause_s

    def start_is_due(self) -> bool:
        """Whether the pause is over; if so, the new start is taken as made."""
        if self._due_at is None or self._clock() < self._due_at:
            return False
        self._due_at = None
        self._started_at = self._clock()
        return True


@dataclass
class KeptPart:
    """A part that is started again, after a pause, whenever it ends.

    Attributes:
        name: What to call it.
        poll: Gives its exit code, or None while it runs.
        start: Starts it again.
        backoff: When.
    """

    name: str
    poll: Callable[[], int | None]
    start: Callable[[], None]
    backoff: Backoff = field(default_factory=Backoff)

    def look(self, progress: Progress, *, may_start: bool) -> None:
        """Note if it has ended, and start it if it is time and it may."""
        code = self.poll()
        if code is None:
            return
        if not self.backoff.is_waiting:
            pause_s = self.backoff.ended()
            progress.fault(f"{self.name} ended {describe_exit(code)}; it is started again in {pause_s:g} s")
        elif may_start and self.backoff.start_is_due():
            self.start()


@contextmanager
def only_one_here(state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state folder. It goes with the process, however that ends.

    Raises:
        StartError: Another `osteopan up` holds it.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    lock_file = state_dir / "up.lock"
    # Not "w": whoever is refused must not wipe out the number of the process that has the lock.
    with lock_file.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise StartError(
                f"`osteopan up` is running already with its data in {state_dir} (process {holder}); "
                "stop it first, or set OSTEOPAN_STATE_DIR to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def explicit_url(settings: Settings) -> str | None:
    """The URL of Redis that the settings name, or None if `up` is to run its own."""
    # The file that `up` itself writes names a server that ended with the `up` before.
    names_one = settings.redis_url is not None or settings.redis_url_file not in (None, settings.local_url_file)
    return settings.broker_url() if names_one else None


def run_up(
    nodes: Sequence[Node],
    *,
    settings: Settings,
    environment: Mapping[str, str],
    progress: Progress,
    worker_command: WorkerCommand,
    flower_port: int | None = None,
) -> NoReturn:
    """Run Redis (unless the settings name one) and the workers until a signal raises `Stopped`.

    Args:
        nodes: The workers.
        settings: State folder, key prefix, and Redis if one is named.
        environment: This program's environment.
        progress: Shows steps, and the workers' logs.
        worker_command: How a worker is started.
        flower_port: Where Flower listens; None for no Flower.

    Raises:
        StartError: Something did not start, or another `up` runs with the same state folder.
        BrokerUnavailableError: The Redis that the settings name does not answer.
    """
    state_dir = settings.state_dir.absolute()
    with only_one_here(state_dir):
        stack = Stack(
            state_dir / "redis",
            nodes,
            url_file=state_dir / settings.local_url_file.name,
            environment=environment,
            settings=settings,
            redis_url=explicit_url(settings),
            worker_command=worker_command,
            step=progress.step,
            on_log=lambda name, line: progress.say(f"[{name}] {line}"),
        )
        with stack, ExitStack() as opened:
            parts = [
                KeptPart(f"the worker {worker.node.name}", worker.poll, partial(stack.restart, worker))
                for worker in stack.workers
            ]
            if flower_port is not None:
                flower = FlowerProcess(
                    state_dir / "flower.auth",
                    port=flower_port,
                    environment=stack.child_environment,
                    on_log=lambda line: progress.say(f"[flower] {line}"),
                )
                with progress.step("Starting Flower"):
                    opened.enter_context(flower)
                parts.append(KeptPart("Flower", flower.poll, flower.start))
                progress.say(f"Flower: {flower.url}; user and password are in {flower.auth_file}")
            progress.say(f"Ready: {', '.join(node.name for node in nodes)}. In another terminal:", style="green")
            progress.say("  producer submit picture.jpg --wait")
            progress.say("Ctrl-C stops everything; jobs that wait are kept.")
            try:
                _keep_running(stack, parts, progress)
            finally:
                progress.say("Stopping; a job that runs may end first")


def default_nodes(gpus: Sequence[int], *, workers: int) -> list[Node]:
    """The workers of this machine, named so that several machines can share one Redis."""
    return nodes_for(gpus, workers=workers, suffix=f"@{socket.gethostname()}")


def _keep_running(stack: Stack, parts: Sequence[KeptPart], progress: Progress) -> NoReturn:
    redis_backoff = Backoff()
    while True:
        redis = stack.redis
        if redis is not None and redis.has_ended:
            if not redis_backoff.is_waiting:
                pause_s = redis_backoff.ended()
                progress.fault(
                    f"Redis has ended unexpectedly; it is started again in {pause_s:g} s", log=redis.log_tail()
                )
            elif redis_backoff.start_is_due():
                redis.restart()
                progress.say("Redis runs again, with all that it held", style="green")
        for part in parts:
            part.look(progress, may_start=redis is None or not redis.has_ended)
        time.sleep(_POLL_S)
