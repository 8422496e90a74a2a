"""Flower, Celery's web monitor: with a password, read-only, forgetting everything when it ends, on loopback.

It shows job ids only, since nothing else passes through Celery. Its pages and its API ask for the password; its
`/metrics` and `/healthcheck` do not, and no option makes them: so it listens at 127.0.0.1, and a proxy in front of it
closes them.
"""

from __future__ import annotations

import os
import secrets
import signal
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from contract.broker import make_app
from contract.errors import SettingsError
from contract.settings import Settings
from local.errors import StartError
from local.private_file import make_private_folder, write_private
from local.processes import Child

DEFAULT_ADDRESS = "127.0.0.1"
DEFAULT_PORT = 5555

#: Names the file with user and password.
AUTH_FILE_VARIABLE = "OSTEOPAN_FLOWER_AUTH_FILE"

#: The user of a file that we make.
USER = "osteopan"

#: A shorter password is refused.
LEAST_PASSWORD_CHARACTERS = 8

#: Flower forgets the oldest tasks beyond this number; 10,000 take some 30 MB.
MAX_TASKS = 10_000

#: Environment variables by which Flower and Celery let themselves be told otherwise: another broker, no read-only mode.
_FOREIGN_PREFIXES = ("CELERY_", "FLOWER_")
_FOREIGN_VARIABLES = frozenset({"APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE"})

_START_TIMEOUT_S = 60.0
_POLL_S = 0.1


def read_credential(auth_file: Path | None) -> str:
    """Read `user:password` from a file that only its owner may read.

    Raises:
        SettingsError: No file is named, it cannot be read, others may read it, or it does not hold one such line.
    """
    if auth_file is None:
        raise SettingsError(
            f"Flower does not start without a password: name a file with `user:password` by {AUTH_FILE_VARIABLE} or "
            "--auth-file, readable by its owner only (`osteopan up --flower` makes one by itself)"
        )
    try:
        mode = auth_file.stat().st_mode
        text = auth_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{AUTH_FILE_VARIABLE}: cannot read {auth_file}: {reason}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(
            f"{AUTH_FILE_VARIABLE}: others may read {auth_file} (mode {stat.S_IMODE(mode):04o}); run `chmod 600` on it"
        )
    credential = text.strip("\r\n")
    user, separator, password = credential.partition(":")
    fits = credential.isascii() and credential.isprintable() and separator and user
    if not fits or len(password) < LEAST_PASSWORD_CHARACTERS:
        raise SettingsError(
            f"{AUTH_FILE_VARIABLE}: {auth_file} must hold one line `user:password` of ASCII characters, with a "
            f"password of {LEAST_PASSWORD_CHARACTERS} characters or more"
        )
    return credential


def ensure_credential(auth_file: Path) -> None:
    """Make the file with a random password, unless it is there."""
    if not auth_file.exists():
        make_private_folder(auth_file.parent)
        write_private(auth_file, f"{USER}:{secrets.token_urlsafe(24)}\n")


def without_foreign_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would lead Flower to another broker or out of its read-only mode."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _FOREIGN_VARIABLES and not name.startswith(_FOREIGN_PREFIXES)
    }


def tls_options(url: str) -> dict[str, str]:
    """The options for TLS in a URL of Redis, by redis-py's names; none if it does not ask for TLS."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return {}
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    return {"ssl_cert_reqs": "required", **given}


def run_flower(settings: Settings, *, auth_file: Path | None, address: str, port: int) -> None:
    """Be Flower until SIGTERM or Ctrl-C. Changes this process's environment, and its signal handlers.

    Args:
        settings: Where Redis is. The URL stays inside this process: no command line shows it.
        auth_file: File with `user:password`.
        address: Where to listen.
        port: Where to listen.

    Raises:
        SettingsError: There is no usable password.
        StartError: Flower is not installed, or the port is taken.
    """
    credential = read_credential(auth_file)
    kept = without_foreign_settings(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    app = make_app(settings)
    # Flower's page of the queues connects by itself, and reads the certificates from here alone.
    app.conf.broker_use_ssl = tls_options(settings.broker_url())
    try:
        # Defines its options, which are global.
        import_module("flower.command")
        from tornado.options import options
    except ImportError:
        raise StartError("Flower is not installed; run `pip install 'osteopan[monitor]'`") from None
    # Not as an argument, which would be split at commas.
    options.basic_auth = [credential]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app.start(
            [
                "flower",
                f"--address={address}",
                f"--port={port}",
                "--read_only=True",
                "--persistent=False",
                f"--max_tasks={MAX_TASKS}",
                # Else a `flowerconfig.py` in the current folder would be run.
                f"--conf={os.devnull}",
            ]
        )
    except OSError as error:
        raise StartError(f"Flower cannot listen at {address}:{port}: {error.strerror}") from error


def flower_command(auth_file: Path, *, port: int) -> list[str]:
    """How Flower is started as a process of its own."""
    return [sys.executable, "-m", "local", "flower", "--auth-file", str(auth_file), "--port", str(port)]


class FlowerProcess:
    """Flower beside a stack; when the `with` block is entered it answers, when it is left it is stopped.

    Args:
        auth_file: File with `user:password`; made if it is missing.
        port: Where to listen, at 127.0.0.1.
        environment: Leads it to Redis.
        on_log: Takes each line that it writes.
    """

    def __init__(
        self, auth_file: Path, *, port: int, environment: Mapping[str, str], on_log: Callable[[str], None]
    ) -> None:
        self.auth_file = auth_file
        self.url = f"http://{DEFAULT_ADDRESS}:{port}"
        self._command = flower_command(auth_file, port=port)
        self._environment = environment
        self._on_log = on_log
        self._child: Child | None = None

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            StartError: It ended, or did not answer in time.
        """
        ensure_credential(self.auth_file)
        self.start()
        try:
            self._wait_for_answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self) -> None:
        """Start it, or start it again; does not wait until it answers."""
        self._child = Child("Flower", self._command, environment=self._environment, on_log=self._on_log)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return None if self._child is None else self._child.poll()

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(f"{self.url}/healthcheck"):
            if self._child is not None and self._child.poll() is not None:
                raise StartError("Flower has ended", log=self._child.tail)
            if time.monotonic() > deadline:
                raise StartError(f"Flower did not answer within {_START_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310  # nosec B310 - always http, to loopback
            return bool(answer.status == HTTPStatus.OK)
    except (urllib.error.URLError, OSError):
        return False
