"""A real node: real Redis, the real command `worker run`, one for all tests of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.connection import connect
from contract.ledger import Ledger
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.redis_server import EmbeddedRedis
from producer.client import Client
from training.phantoms.phantom import draw_phantom
from training.phantoms.truth import draw_truth

READY_TIMEOUT_S = 120


@dataclass
class Node:
    """A running node and all that a test needs to talk with it.

    Attributes:
        name: Its name.
        process: The launcher.
        settings: Lead to its Redis.
        log: Its standard error.
    """

    name: str
    process: subprocess.Popen[bytes]
    settings: Settings
    log: Path

    def client(self) -> Client:
        """A producer."""
        return Client(self.settings)

    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(connect(self.settings), self.settings)


def environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment of a role as an operator would set it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {
        **inherited,
        "OSTEOPAN_REDIS_URL": settings.broker_url(),
        "OSTEOPAN_STATE_DIR": str(settings.state_dir),
        "OSTEOPAN_LOG_FORMAT": "json",
        **extra,
    }


@contextmanager
def running_node(settings: Settings, folder: Path, name: str, **extra: str) -> Iterator[Node]:
    """Start `worker run --cpu` and wait until it says that it is ready."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", "--cpu", "--name", name],
            env=environment(settings, **extra),
            stderr=stream,
            stdout=stream,
        )
    node = Node(name, process, settings, log)
    try:
        ledger = node.ledger()
        wait_until(lambda: name in ledger.ready_nodes() or process.poll() is not None, READY_TIMEOUT_S)
        if process.poll() is not None:
            pytest.fail(f"the node ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        yield node
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {timeout_s} s")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demonstration model is kept, once for all tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def node_settings(tmp_path_factory: pytest.TempPathFactory, state_dir: Path) -> Iterator[Settings]:
    """Settings that lead to a Redis of this folder's own, which no test empties."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield Settings(redis_url=server.url, state_dir=state_dir)


@pytest.fixture(scope="session")
def node(node_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests that leave it running."""
    with running_node(node_settings, tmp_path_factory.mktemp("node"), "test-node") as started:
        yield started


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic radiograph of half the usual size, as a PNG file."""
    path = tmp_path_factory.mktemp("phantom") / "synthetic.png"
    pixels: np.ndarray = draw_phantom(draw_truth(7, "C3", size_px=(605, 1462)))
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(name="wait", scope="session")
def _wait() -> Callable[..., None]:
    return wait_until


@pytest.fixture(name="start_node", scope="session")
def _start_node() -> Callable[..., object]:
    return running_node


@pytest.fixture(name="environment")
def _environment() -> Callable[..., dict[str, str]]:
    return environment
