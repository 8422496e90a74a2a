"""The files of deploy/, with the paths of the containers mapped into folders of the test's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.settings import ENVIRONMENT_PREFIX
from local.redis_server import find_server, free_port
from training.phantoms.phantom import draw_phantom
from training.phantoms.truth import draw_truth

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"


def substituted(text: str, ours: dict[str, str]) -> str:
    """A text with words of the containers' replaced by those of this host, each once."""
    pattern = "|".join(re.escape(word) for word in sorted(ours, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])(?:{pattern})\b", lambda found: ours[found[0]], text)


def is_redis_7_0(program: Path) -> bool:
    """Whether a server is the one version that lacks a command of the access list."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    return " v=7.0." in version


@dataclass
class Installation:
    """A Redis with the configuration and the access list of deploy/, and the secrets that belong to it.

    Attributes:
        program: The server.
        folder: All that it keeps: its data, its secrets.
        port: At 127.0.0.1.
        tls: Folder of certificates, as a client sees it.
    """

    program: Path
    folder: Path
    port: int = field(default_factory=free_port)
    tls: Path | None = None

    @property
    def secrets(self) -> Path:
        """What the containers see as /run/secrets."""
        return self.folder / "secrets"

    def make_secrets(self, *options: str, tls: Path | None = None) -> None:
        """Run the script as a person would."""
        command = [sys.executable, DEPLOY / "make_secrets.py", "--folder", self.secrets]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *options]
        command += ["--tls", str(tls)] if tls else []
        command += ["--redis-7.0"] if is_redis_7_0(self.program) else []
        subprocess.run(command, check=True, timeout=30)

    @property
    def paths(self) -> dict[str, str]:
        """Where the containers' paths are here."""
        (self.folder / "data").mkdir(exist_ok=True)
        return {
            "/usr/local/etc/osteopan/redis.conf": str(self.folder / "redis.conf"),
            "/run/secrets": str(self.secrets),
            "/run/tls": str(self.folder / "tls-mounted"),
        }

    def map(self, text: str) -> str:
        """The text of a file or a command with paths of here."""
        return substituted(text, self.paths)

    def write_configuration(self) -> Path:
        """deploy/redis.conf, mapped."""
        data = {"dir /data": f"dir {self.folder / 'data'}", "port 6379": f"port {self.port}"}
        text = substituted((DEPLOY / "redis.conf").read_text(encoding="utf-8"), {**self.paths, **data})
        path = self.folder / "redis.conf"
        path.write_text(text, encoding="utf-8")
        return path

    @contextmanager
    def running(self, *options: str) -> Iterator[None]:
        """The server, for as long as the block."""
        command = [str(self.program), str(self.write_configuration()), "--bind", "127.0.0.1", *options]
        with (self.folder / "redis.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"}
            )
        try:
            wait_until(lambda: process.poll() is not None or "ready to accept" in self.log().lower(), 15)
            assert process.poll() is None, self.log()
            yield
        finally:
            process.terminate()
            process.wait(15)

    def log(self) -> str:
        """What the server says."""
        return (self.folder / "redis.log").read_text(encoding="utf-8")

    def url(self, user: str) -> str:
        """The URL that the script made."""
        return (self.secrets / f"{user}.url").read_text(encoding="utf-8").strip()

    def client(self, user: str) -> redis.Redis:
        """A connection of one of the users."""
        once = Retry(NoBackoff(), 0)
        if user == "operator":
            password = (self.secrets / "operator.pass").read_text(encoding="utf-8").strip()
            return redis.Redis(port=self.port, username=user, password=password, decode_responses=True, retry=once)
        return redis.Redis.from_url(self.url(user), decode_responses=True, retry=once)

    def environment(self, user: str, **extra: str) -> dict[str, str]:
        """The environment of a role, as the containers have it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        return {
            **inherited,
            "OSTEOPAN_REDIS_URL_FILE": str(self.secrets / f"{user}.url"),
            "OSTEOPAN_STATE_DIR": str(self.folder / "state"),
            "OSTEOPAN_LOG_FORMAT": "json",
            **extra,
        }


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(0.05)


def speaks_tls(program: Path) -> bool:
    """Whether a server was built with TLS: then it asks for a certificate, and ends."""
    command = [program, "--port", "0", "--tls-port", str(free_port()), "--save", ""]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"}
    )
    try:
        return b"tls-cert-file" in process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def tls_server_program() -> Path:
    """A server that speaks TLS, as those of Debian and of the container image do; the bundled one does not."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and speaks_tls(Path(found)):
            return Path(found)
    pytest.skip("needs a redis-server or valkey-server on the PATH that was built with TLS")


@pytest.fixture(scope="session")
def server_program() -> Path:
    """A real server."""
    return find_server()


@pytest.fixture(scope="session")
def radiograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic radiograph of half the usual size."""
    path = tmp_path_factory.mktemp("radiograph") / "synthetic.png"
    assert cv2.imwrite(str(path), draw_phantom(draw_truth(7, "C3", size_px=(605, 1462))))
    return path


@pytest.fixture(name="substituted", scope="session")
def _substituted() -> Callable[[str, dict[str, str]], str]:
    return substituted


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def installation(server_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Redis as deploy/ has it, running."""
    made = Installation(server_program, tmp_path_factory.mktemp("installation"))
    made.make_secrets()
    with made.running():
        yield made


@pytest.fixture(name="make_installation")
def _make_installation(tmp_path: Path) -> Callable[[Path], Installation]:
    return lambda program: Installation(program, tmp_path)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A throw-away authority and its certificates, by deploy/make_certificates.sh, laid out as clients see them."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def strange_certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of another authority, which nobody here trusts."""
    return make_certificates(tmp_path_factory.mktemp("strange"))


def make_certificates(folder: Path) -> Path:
    """Run the script as a person would."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl on the PATH")
    subprocess.run([DEPLOY / "make_certificates.sh", folder], check=True, capture_output=True, timeout=60)
    for ending in ("crt", "key"):
        shutil.copy(folder / f"worker.{ending}", folder / f"client.{ending}")
    return folder
