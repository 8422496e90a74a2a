"""A hospital's site in small: one Redis, two nodes, each behind a proxy of its own; and the one check of what is left.

Every path, file name and metadata that a test submits here holds `CANARY`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import redis
from PIL import Image

from contract.errors import BrokerUnavailableError
from contract.jobs import JobResult, JobState
from contract.ledger import Ledger
from contract.records import JobStatus
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.redis_server import EmbeddedRedis
from producer.client import Client

#: An invented patient, in every path and metadata of these tests; found nowhere but in requests and results.
CANARY = "Zoe-Canary-19610203"

LEASE_S = 2.0
HEARTBEAT_S = 0.5

READY_TIMEOUT_S = 90.0
SETTLE_TIMEOUT_S = 90.0
STRAY_TIMEOUT_S = 30.0

#: While the engine has a job in hand.
STAGES = ("read", "background", "network", "pictures")


def wait_until(condition: Callable[[], Any], timeout_s: float, *, what: str, pause_s: float = 0.02) -> Any:
    """Look again and again until something is so; gives what the condition gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s:g} s: {what}")
        time.sleep(pause_s)
    return found


def url_through(proxy: Any, settings: Settings) -> str:
    """The URL of Redis by way of a proxy."""
    direct = settings.broker_url()
    return direct.replace(f":{urlsplit(direct).port}/", f":{proxy.port}/")


class Node:
    """One node: `worker run --cpu`, which sees Redis through its proxy.

    Args:
        name: Its name.
        proxy: Its line to Redis.
        settings: Lead to Redis without the proxy.
        log: Takes its standard output and error, of all its lives.
    """

    def __init__(self, name: str, proxy: Any, settings: Settings, log: Path) -> None:
        self.name = name
        self.proxy = proxy
        self.log = log
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs; does not wait until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        environment = {
            **inherited,
            "OSTEOPAN_REDIS_URL": url_through(self.proxy, self._settings),
            "OSTEOPAN_STATE_DIR": str(self._settings.state_dir),
            "OSTEOPAN_LEASE_S": str(self._settings.lease_s),
            "OSTEOPAN_HEARTBEAT_S": str(self._settings.heartbeat_s),
            "OSTEOPAN_LOG_FORMAT": "json",
            "OSTEOPAN_THREADS": "1",
        }
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", "--cpu", "--name", self.name],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    @property
    def launcher(self) -> psutil.Process:
        """The process that watches the node."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def celery(self) -> psutil.Process:
        """The process that takes messages."""
        (process,) = self.launcher.children()
        return process

    @property
    def engine(self) -> psutil.Process:
        """The process that has the model loaded, or is loading it."""
        (process,) = [
            child for child in self.celery.children() if any("spawn_main" in part for part in child.cmdline())
        ]
        return process

    def processes(self) -> list[psutil.Process]:
        """All of them."""
        return [self.launcher, *self.launcher.children(recursive=True)]

    def can_be_killed(self, which: str) -> bool:
        """Whether the part of the node is there: it may be about to be started."""
        try:
            return bool(self.engine if which == "engine" else self.celery)
        except (psutil.NoSuchProcess, ValueError):
            return False

    def kill(self, which: str) -> None:
        """SIGKILL `engine`, `celery`, or `node`, which is all of it at once, as if the machine had stopped."""
        if which == "node":
            victims = self.processes()
        elif which == "celery":
            victims = [self.celery]
        else:
            victims = [self.engine]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        if which == "node":
            assert self._process is not None
            self._process.wait()

    def wake(self) -> None:
        """Let go on what a test has frozen."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def terminate(self) -> None:
        """Ask it to stop, as a service manager does."""
        self.launcher.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """End it in any case."""
        if self._process is None or self._process.poll() is not None:
            return
        self.wake()
        self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()


class Site:
    """What a test works with.

    Args:
        server: Redis.
        settings: Lead to it.
        nodes: Two.
        folder: For everything that is submitted; its name holds the canary.
        pictures: Synthetic radiographs by the name of their size.
        note: Takes measured numbers for the summary at the end.

    Attributes:
        accepted: Each job that the test has submitted, with its own folder for its pictures.
        canaries_planted: Requests that held the canary.
        lines_searched: Lines of logs that were searched for it.
    """

    def __init__(
        self,
        server: EmbeddedRedis,
        settings: Settings,
        nodes: list[Node],
        folder: Path,
        pictures: dict[str, Path],
        note: Callable[[str, str], None],
    ) -> None:
        self.server = server
        self.settings = settings
        self.nodes = nodes
        self.folder = folder
        self.note = note
        self.canary = CANARY
        self.client = Client(settings)
        self.ledger: Ledger = self.client.ledger
        self.accepted: dict[str, Path] = {}
        self.canaries_planted = 0
        self.lines_searched = 0
        self._pictures = pictures
        self._logs_from: dict[Path, int] = {}
        self._numbers = itertools.count()

    @property
    def redis(self) -> redis.Redis:
        """Redis, without the proxy."""
        return self.ledger.client

    def node(self, name: str | None) -> Node:
        """The node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def other(self, node: Node) -> Node:
        """The other one of the two."""
        return next(other for other in self.nodes if other is not node)

    def make_ready(self) -> None:
        """Have Redis and both nodes run, with their models loaded and their lines whole, and nothing left to do."""
        self.accepted = {}
        self._logs_from = {log: log.stat().st_size if log.exists() else 0 for log in self._logs}
        self.restart_redis()
        for node in self.nodes:
            node.proxy.thaw()
            node.start()
            node.wake()
        self.wait_ready()

    def revive(self) -> None:
        """Start the nodes that have ended, as a service manager does."""
        for node in self.nodes:
            node.start()

    def wait_ready(self) -> None:
        """Wait until both nodes are ready."""
        names = {node.name for node in self.nodes}

        def ready() -> bool:
            self.revive()
            return names <= set(self.ledger.ready_nodes())

        wait_until(ready, READY_TIMEOUT_S, what="both nodes ready", pause_s=0.1)

    def kill(self, node: Node, which: str) -> None:
        """Kill (see `Node.kill`), and forget that the node was ready, which Redis would for some seconds yet."""
        node.kill(which)
        self.redis.delete(self.ledger.keys.ready(node.name))

    def kill_redis(self) -> None:
        """End the server as a crash would."""
        assert self.server.pid is not None
        process = psutil.Process(self.server.pid)
        process.kill()
        wait_until(lambda: self.server.has_ended, 10, what="Redis killed")

    def restart_redis(self) -> None:
        """Start the server again, if it has ended, with what its disk holds."""
        if self.server.has_ended:
            self.server.restart()

    def request(self, size: str = "small", **fields: Any) -> dict[str, Any]:
        """A request for a picture and a folder of its own, both named after the canary."""
        folder = self.folder / f"{next(self._numbers):05d}-{CANARY}"
        folder.mkdir()
        self.canaries_planted += 1
        picture = folder / f"{CANARY}.png"
        os.link(self._pictures[size], picture)
        destination = folder / f"out-{CANARY}"
        return {
            "img_path": str(picture),
            "destination_path": str(destination),
            "metadata": {"patient": CANARY},
            **fields,
        }

    def submit(self, size: str = "small", **fields: Any) -> str:
        """Submit one job; gives its id."""
        return self.enter(self.request(size, **fields))

    def enter(self, request: dict[str, Any]) -> str:
        """Submit a request; gives the job's id."""
        job_id = self.client.submit(request).job_id
        self.accepted[job_id] = Path(request["destination_path"])
        return job_id

    def await_stage(self, job_id: str, stages: Collection[str] = STAGES, *, timeout_s: float = 60) -> Node:
        """Wait until a job is in one of these stages; gives the node that has it."""
        key = self.ledger.keys.job(job_id)
        deadline = time.monotonic() + timeout_s
        while True:
            state, stage, worker = self.redis.hmget(key, "state", "stage", "worker")
            if state == JobState.RUNNING and stage in stages:
                return self.node(worker)
            assert state in (JobState.QUEUED, JobState.RUNNING), f"the job was {state} before it was seen in {stages}"
            assert time.monotonic() < deadline, f"the job is {state}, {stage!r}"

    def await_end(self, job_id: str, timeout_s: float = SETTLE_TIMEOUT_S) -> JobStatus:
        """Wait until a job has ended."""
        wait_until(lambda: self.ledger.status(job_id).state.is_terminal, timeout_s, what=f"{job_id} ended")
        return self.ledger.status(job_id)

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> dict[str, JobResult]:
        """Wait until every accepted job has ended, then check all that must hold; gives the results by id."""

        def all_ended() -> bool:
            with contextlib.suppress(BrokerUnavailableError):
                return all(self.ledger.status(job_id).state.is_terminal for job_id in self.accepted)
            return False

        wait_until(all_ended, timeout_s, what="every accepted job has ended", pause_s=0.1)
        # A worker that came too late may still be taking its pictures away.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._stray_pictures(), STRAY_TIMEOUT_S, what="no stray picture", pause_s=0.1)
        return self.check()

    def _stray_pictures(self) -> list[str]:
        """Of each job whose folder holds other things than the pictures of its result: what is wrong."""
        wrong = []
        for job_id, destination in self.accepted.items():
            result = self.ledger.result(job_id)
            assert result is not None, f"{job_id} has no result"
            there = sorted(os.listdir(destination)) if destination.exists() else []
            named = sorted(Path(path).name for path in (result.saliency_img_path, result.overlay_img_path) if path)
            if there != named:
                wrong.append(f"{job_id} ({result.result}, attempt {result.attempts}): {there} on disk, not {named}")
        return wrong

    def check(self) -> dict[str, JobResult]:
        """Of every accepted job: one terminal state, one result, one stream entry, and its pictures and no others."""
        entries: dict[str, list[str]] = {}
        for _, entry in self.redis.xrange(self.ledger.keys.results):
            entries.setdefault(entry["job_id"], []).append(entry["state"])
        results = {}
        assert self._stray_pictures() == []
        for job_id, destination in self.accepted.items():
            status = self.ledger.status(job_id)
            result = self.ledger.result(job_id)
            assert status.state.is_terminal, f"{job_id} is {status.state}"
            assert entries.get(job_id) == [status.state.value], f"stream entries of {job_id}: {entries.get(job_id)}"
            assert result is not None, f"{job_id} has no result"
            expected = JobState.FAILED if status.state is JobState.DEAD else status.state
            assert result.state is expected, f"{job_id} is {status.state}, its result says {result.state}"
            assert result.attempts == status.attempts
            assert result.metadata == {"patient": CANARY}
            for path in filter(None, (result.saliency_img_path, result.overlay_img_path)):
                assert Path(path).parent == destination
                with Image.open(path) as picture:
                    assert picture.format == "PNG"
                    picture.load()
            results[job_id] = result
        for key in (self.ledger.keys.queued, self.ledger.keys.running, self.ledger.keys.cancelling):
            assert not self.redis.exists(key), f"{key} holds something although every job has ended"
        return results

    def all_that_celery_holds(self) -> str:
        """All of Celery's own keys, queues and unacknowledged messages among them, as text."""
        return "\n".join(_held(self.redis, key) for key in self.redis.scan_iter(match=self.ledger.keys.celery + "*"))

    @property
    def _logs(self) -> list[Path]:
        return [*(node.log for node in self.nodes), self.server.log_file]

    def check_privacy(self) -> None:
        """The canary is in requests and results, and nowhere else: no log, no command line, no other key."""
        for log in self._logs:
            said = log.read_bytes()[self._logs_from[log] :].decode(errors="replace").splitlines()
            self.lines_searched += len(said)
            lines = [line[:300] for line in said if CANARY in line]
            assert not lines, f"{log.name} names the patient in {len(lines)} lines: {lines[:5]}"
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in node.processes():
                    assert not any(CANARY in part for part in process.cmdline())
        found = [key for key in self.redis.scan_iter(count=1000) if CANARY in key + _held(self.redis, key)]
        allowed = (self.ledger.keys.job(""), self.ledger.keys.result(""))
        assert [key for key in found if not key.startswith(allowed)] == []
        assert not self.accepted or found, "the canary is not where it belongs: this check cannot fail"

    def close(self) -> None:
        """Stop the nodes and close the connections."""
        for node in self.nodes:
            node.proxy.thaw()
            node.terminate()
        for node in self.nodes:
            node.stop()
        self.client.close()
        shutil.rmtree(self.folder)


def _held(client: redis.Redis, key: str) -> str:
    """All that a key holds, as text."""
    readers: dict[str, Callable[[], Any]] = {
        "string": lambda: client.get(key),
        "hash": lambda: client.hgetall(key),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: client.smembers(key),
        "zset": lambda: client.zrange(key, 0, -1),
        "stream": lambda: client.xrange(key),
        "none": lambda: "",
    }
    return str(readers[client.type(key)]())
