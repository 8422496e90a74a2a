"""Each service of docker-compose.yml as a process: its exact command, its health check and its environment.

There is no container engine here; the containers' paths and ports are mapped into folders and ports of the test's own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local.redis_server import free_port

yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the compose file")

READY_TIMEOUT_S = 120


def interpolated(text: str) -> str:
    """A compose value with the defaults of its variables, as with an empty .env file."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?[^}]*\}", lambda found: found[1] or "", text).replace("$$", "$")


@dataclass
class Host:
    """Stands in for the container engine.

    Attributes:
        services: Of docker-compose.yml.
        installation: Redis and its secrets.
        folder: Holds what the containers see as /data/input, /data/output and /tmp.
        ports: This host's port for each of a container's.
        substituted: Replaces words in a text.
    """

    services: dict[str, dict[str, Any]]
    installation: Any
    folder: Path
    ports: dict[str, str]
    substituted: Callable[[str, dict[str, str]], str]

    def map(self, text: str) -> str:
        """A command or a variable of a container, as it reads here."""
        volumes = {
            path: str(self.folder / path[1:].replace("/", "-")) for path in ("/data/input", "/data/output", "/tmp")
        }
        loopback = {"0.0.0.0": "127.0.0.1"}
        return self.substituted(interpolated(text), {**self.installation.paths, **volumes, **self.ports, **loopback})

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a container, and no others of osteopan's."""
        programs = self.folder / "bin"
        ours = {name: self.map(str(value)) for name, value in self.services[service].get("environment", {}).items()}
        temporary = self.map("/tmp")
        return {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": temporary,
            "NUMBA_CACHE_DIR": f"{temporary}/numba",
            "OSTEOPAN_STATE_DIR": f"{temporary}/osteopan",
            **ours,
        }

    def command(self, service: str, *arguments: str) -> list[str]:
        """The command line of a container."""
        about = self.services[service]
        words = [*about.get("entrypoint", []), *(arguments or about["command"])]
        return [self.map(word) for word in words]

    def health(self, service: str) -> int:
        """What the service's health check ends with."""
        kind, *test = self.services[service]["healthcheck"]["test"]
        words = [self.map(word) for word in test]
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        return subprocess.run(
            command, env=self.environment(service), capture_output=True, timeout=30, check=False
        ).returncode

    def run(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm SERVICE ARGUMENTS`."""
        return subprocess.run(
            self.command(service, *arguments),
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=READY_TIMEOUT_S,
            check=False,
        )

    @contextmanager
    def up(self, service: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service's process, until the end of the block; then stopped as an engine would, within its time."""
        seconds = self.services[service].get("stop_grace_period", "10s")
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(service), env=self.environment(service), cwd=self.folder, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(int(seconds.removesuffix("s")))
            finally:
                process.kill()

    def log(self, service: str) -> str:
        """What the service has written."""
        return (self.folder / f"{service}.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def host(
    repository: Path,
    server_program: Path,
    installation: Any,
    tmp_path_factory: pytest.TempPathFactory,
    substituted: Callable[[str, dict[str, str]], str],
) -> Host:
    """A host with Redis running, as the service `redis` has it."""
    folder = tmp_path_factory.mktemp("host")
    for name in ("data-input", "data-output", "tmp", "bin"):
        (folder / name).mkdir()
    (folder / "bin" / "valkey-server").symlink_to(server_program)
    services = yaml.safe_load((repository / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    ports = {"5555": str(free_port()), "9480": str(free_port())}
    return Host(services, installation, folder, ports, substituted)


@pytest.fixture(scope="module")
def worker(host: Host, until: Callable[..., None]) -> Iterator[subprocess.Popen[bytes]]:
    """The service `worker-cpu`, healthy."""
    with host.up("worker-cpu") as process:
        assert host.health("worker-cpu") != 0, "not yet"
        until(lambda: host.health("worker-cpu") == 0 or process.poll() is not None, READY_TIMEOUT_S)
        assert process.poll() is None, host.log("worker-cpu")
        yield process


def test_redis_starts_by_its_command_and_its_check_needs_the_password(
    host: Host, server_program: Path, make_installation: Callable[[Path], Any], until: Callable[..., None]
) -> None:
    cli = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if cli is None:
        pytest.skip("needs valkey-cli or redis-cli on the PATH, which the health check calls")
    installation = make_installation(server_program)
    installation.make_secrets()
    installation.write_configuration()
    (host.folder / "bin" / "valkey-cli").write_text(f'#!/bin/sh\nexec {shlex.quote(cli)} -p {installation.port} "$@"\n')
    (host.folder / "bin" / "valkey-cli").chmod(0o755)
    another = Host(host.services, installation, host.folder, {}, host.substituted)
    assert another.health("redis") != 0, "not yet"
    with another.up("redis"):
        until(lambda: another.health("redis") == 0)
        (installation.secrets / "operator.pass").chmod(0o600)
        (installation.secrets / "operator.pass").write_text("guess\n")
        assert another.health("redis") != 0


def test_a_job_goes_through_the_services(host: Host, worker: subprocess.Popen[bytes], radiograph: Path) -> None:
    shutil.copy(radiograph, host.folder / "data-input" / "picture.png")
    arguments = ("submit", "/data/input/picture.png", "--destination", "/data/output", "--wait", "--json")
    ended = host.run("producer", *arguments)
    assert json.loads(ended.stdout)["result"] == "ok", ended.stderr
    assert len(os.listdir(host.folder / "data-output")) == 2
    (host.folder / "data-input" / "link.png").symlink_to(radiograph)
    outside = host.run("producer", "submit", "/data/input/link.png", *arguments[2:])
    assert json.loads(outside.stdout)["error"]["code"] == "path_not_allowed"
    events = [json.loads(line) for line in host.log("worker-cpu").splitlines()]
    assert "job_ended" in {event["event"] for event in events}


def test_a_worker_serves_its_numbers(host: Host, worker: subprocess.Popen[bytes]) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{host.ports['9480']}/metrics", timeout=10) as answer:
        assert b"osteopan_redis_up 1.0" in answer.read()


def test_flower_asks_for_the_password_of_its_secret(host: Host, until: Callable[..., None]) -> None:
    with host.up("flower") as process:
        until(lambda: host.health("flower") == 0 or process.poll() is not None, 60)
        assert process.poll() is None, host.log("flower")
        url = f"http://127.0.0.1:{host.ports['5555']}/workers"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=10)
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        credential = (host.installation.secrets / "flower.auth").read_text().strip()
        manager.add_password(None, url, *credential.split(":"))
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        with opener.open(url, timeout=10) as answer:
            assert b"Flower" in answer.read()


def test_the_producer_shows_its_help_when_asked_nothing(host: Host) -> None:
    assert "submit" in host.run("producer").stdout
