"""TLS with client certificates, for the ledger (redis-py) and the broker (kombu) alike, by one and the same URL.

A server that was built with TLS is not on every machine. The clients' half is therefore also shown against a proxy that
speaks TLS in front of a plain server.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from contract.broker import make_app, wake_worker
from contract.connection import connect
from contract.errors import BrokerUnavailableError
from contract.jobs import JobRequest, Priority
from contract.ledger import Ledger
from contract.settings import Settings

#: Also this machine, and not a name in the certificate.
UNNAMED_HOST = "127.0.0.2"


@dataclass
class Served:
    """A Redis that answers by TLS alone.

    Attributes:
        installation: Its secrets and its data.
        port: Where it speaks TLS.
    """

    installation: Any
    port: int

    def url(self, options: str, *, host: str = "localhost") -> str:
        """The producer's URL with options of its own."""
        user_and_password = self.installation.url("producer").split("//")[1].split("@")[0]
        return f"rediss://{user_and_password}@{host}:{self.port}/0{options}"


class Proxy(threading.Thread):
    """Speaks TLS with clients that have a certificate, or with all, and passes on what they say to a plain port."""

    def __init__(self, certificates: Path, port: int, *, clients: ssl.VerifyMode = ssl.CERT_REQUIRED) -> None:
        super().__init__(daemon=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "redis.crt", certificates / "redis.key")
        self._context.load_verify_locations(certificates / "ca.crt")
        self._context.verify_mode = clients
        self._target = port
        self._listener = socket.create_server(("", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Accept until closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            client = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target)))
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)


@contextlib.contextmanager
def running_proxy(certificates: Path, port: int, clients: ssl.VerifyMode) -> Iterator[int]:
    """A proxy, for as long as the block; gives its port."""
    proxy = Proxy(certificates, port, clients=clients)
    proxy.start()
    try:
        yield proxy.port
    finally:
        proxy.close()


@pytest.fixture(params=["server", "proxy"])
def served(
    request: pytest.FixtureRequest,
    make_installation: Callable[[Path], Any],
    certificates: Path,
    repository: Path,
    tmp_path: Path,
) -> Iterator[Served]:
    """A Redis by TLS: its own, or a proxy's."""
    if request.param == "proxy":
        installation = make_installation(request.getfixturevalue("server_program"))
        installation.make_secrets()
        with installation.running(), running_proxy(certificates, installation.port, ssl.CERT_REQUIRED) as port:
            yield Served(installation, port)
        return
    yaml = pytest.importorskip("yaml", reason="needs PyYAML to read the compose file")
    installation = make_installation(request.getfixturevalue("tls_server_program"))
    installation.make_secrets(tls=certificates)
    shutil.copytree(certificates, tmp_path / "tls-mounted")
    compose = yaml.safe_load((repository / "deploy" / "docker-compose.tls.yml").read_text(encoding="utf-8"))
    # The very options of the compose file, with paths and port of this test.
    _, _, *options = compose["services"]["redis"]["command"]
    options = [str(installation.port) if option == "6379" else installation.map(option) for option in options]
    with installation.running(*options, "--bind", "0.0.0.0"):
        yield Served(installation, installation.port)


def identity(certificates: Path) -> str:
    """The options by which a client shows who it is."""
    return f"ssl_certfile={certificates}/client.crt&ssl_keyfile={certificates}/client.key"


def submit(url: str) -> int:
    """Enter a job and announce it; returns how many messages then wait, as the ledger's connection counts them."""
    settings = Settings(redis_url=url)
    with connect(settings) as client:
        Ledger(client, settings).submit(JobRequest(img_path="/in/a.png", destination_path="/out", job_id="a"))
        wake_worker(make_app(settings), "a", Priority.ROUTINE)
        return int(client.llen("osteopan:celery:osteopan.routine"))


def assert_both_refuse(url: str) -> None:
    """Neither the ledger nor the broker talks to this server."""
    settings = Settings(redis_url=url)
    with connect(settings) as client, pytest.raises(BrokerUnavailableError, match="does not answer"):
        Ledger(client, settings).counts()
    with pytest.raises(BrokerUnavailableError, match="stopped answering"):
        wake_worker(make_app(settings), "a", Priority.ROUTINE)


def test_one_url_serves_ledger_and_broker(served: Served, certificates: Path) -> None:
    trust = f"?ssl_cert_reqs=required&ssl_ca_certs={certificates}/ca.crt&{identity(certificates)}"
    assert submit(served.url(trust)) == 1


def test_to_verify_the_server_need_not_be_asked_for(served: Served, certificates: Path) -> None:
    assert submit(served.url(f"?ssl_ca_certs={certificates}/ca.crt&{identity(certificates)}")) == 1


def test_the_url_of_the_script_is_the_one_that_works(
    served: Served, certificates: Path, request: pytest.FixtureRequest
) -> None:
    served.installation.make_secrets(tls=certificates)
    assert submit(served.installation.url("producer").replace(f":{served.installation.port}/", f":{served.port}/")) == 1


def test_a_server_of_a_strange_authority_is_refused(
    served: Served, certificates: Path, strange_certificates: Path
) -> None:
    assert_both_refuse(served.url(f"?ssl_ca_certs={strange_certificates}/ca.crt&{identity(certificates)}"))


@pytest.mark.parametrize("options", ["", "?ssl_cert_reqs=required", "?ssl_check_hostname=true"])
def test_a_url_without_an_authority_trusts_no_stranger(
    server_program: Path, make_installation: Callable[[Path], Any], certificates: Path, options: str
) -> None:
    installation = make_installation(server_program)
    installation.make_secrets()
    # Any client may come, so that it is the client that refuses. A port for each: kombu takes a connection again for a
    # URL that differs in its options alone.
    anyone = partial(running_proxy, certificates, installation.port, ssl.CERT_NONE)
    with installation.running(), anyone() as trusted, anyone() as unknown:
        assert submit(Served(installation, trusted).url(f"?ssl_ca_certs={certificates}/ca.crt")) == 1
        assert_both_refuse(Served(installation, unknown).url(options))


def test_a_server_under_a_strange_name_is_refused(served: Served, certificates: Path) -> None:
    try:
        socket.create_connection((UNNAMED_HOST, served.port), timeout=5).close()
    except OSError:
        pytest.skip(f"this system has no {UNNAMED_HOST}")
    trust = f"?ssl_ca_certs={certificates}/ca.crt&{identity(certificates)}"
    assert_both_refuse(served.url(trust, host=UNNAMED_HOST))


def test_a_client_without_a_certificate_is_refused(served: Served, certificates: Path) -> None:
    assert_both_refuse(served.url(f"?ssl_ca_certs={certificates}/ca.crt"))


def test_a_client_of_a_strange_authority_is_refused(
    served: Served, certificates: Path, strange_certificates: Path
) -> None:
    assert_both_refuse(served.url(f"?ssl_ca_certs={certificates}/ca.crt&{identity(strange_certificates)}"))


def test_plain_text_is_refused(served: Served) -> None:
    assert_both_refuse(served.url("").replace("rediss://", "redis://"))
