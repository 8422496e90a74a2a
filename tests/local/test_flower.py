"""Flower beside a real node: in a real browser, and by its API; and how it refuses to start without a password."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import psutil
import pytest
from pydantic import SecretStr

from contract.errors import SettingsError
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.flower import ensure_credential, read_credential, run_flower, tls_options, without_foreign_settings
from local.redis_server import free_port
from producer.client import Client

CANARY = "Canary-Joao-1954"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]


# --- a browser --------------------------------------------------------------------------------------------------------


class Browser:
    """Chromium without a window, led through its DevTools protocol over two pipes: that needs no package at all."""

    def __init__(self, program: str) -> None:
        #: User and password for the browser's log-in dialogue; None has it cancelled.
        self.credential: tuple[str, str] | None = None
        #: Status of the last page that was opened.
        self.status = 0
        self._profile = tempfile.mkdtemp(prefix="browser-")
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        self._pid = os.posix_spawn(
            program,
            [program, *BROWSER_OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
            os.environ,
            # The protocol's fixed numbers; what the browser itself has to say is of no interest.
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, read_commands, 3),
                (os.POSIX_SPAWN_DUP2, write_answers, 4),
            ],
            setpgroup=0,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._received = b""
        self._last_id = 0
        self._session: str | None = None

    def __enter__(self) -> Self:
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.command("Page.enable")
        self.command("Network.enable")
        self.command("Fetch.enable", handleAuthRequests=True)
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; meanwhile let requests pass and log in."""
        number = self._send(method, parameters)
        deadline = time.monotonic() + 60
        while (message := self._receive(deadline)).get("id") != number:
            self._handle(message)
        assert "error" not in message, message
        return message["result"]

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return self._last_id

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            readable, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            assert readable, "the browser does not answer"
            chunk = os.read(self._answers, 1 << 16)
            assert chunk, "the browser has ended"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _handle(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Fetch.requestPaused":
                self._send("Fetch.continueRequest", {"requestId": parameters["requestId"]})
            case "Fetch.authRequired":
                response: dict[str, str] = {"response": "CancelAuth"}
                if self.credential is not None:
                    user, password = self.credential
                    response = {"response": "ProvideCredentials", "username": user, "password": password}
                self._send(
                    "Fetch.continueWithAuth",
                    {"requestId": parameters["requestId"], "authChallengeResponse": response},
                )
            case "Network.responseReceived" if parameters["type"] == "Document":
                self.status = parameters["response"]["status"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self.command("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        answer = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    @property
    def html(self) -> str:
        """The page as it stands now, scripts' work included."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def wait_for(self, *words: str) -> None:
        """Wait until the page shows all of these."""
        deadline = time.monotonic() + 30
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline, f"{words} not in:\n{self.text}"
            time.sleep(0.2)


def find_browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser; in CI it is installed where that is allowed."""
    program = find_browser()
    if program is None and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(
                ["apt-get", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                check=False,
                timeout=240,
            )
        program = find_browser()
    if program is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}; `apt-get install chromium` was not possible or not allowed")
    with Browser(program) as started:
        yield started


# --- Flower beside a node ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`osteopan up --flower` with a real worker, after one good and one bad job."""
    import cv2

    from training.phantoms.phantom import draw_phantom
    from training.phantoms.truth import draw_truth

    folder, logs = tmp_path_factory.mktemp(CANARY), tmp_path_factory.mktemp("logs")
    assert cv2.imwrite(str(folder / f"{CANARY}.png"), draw_phantom(draw_truth(7, "C3", size_px=(605, 1462))))
    state, port = logs / "state", free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    # Ways to lead Flower astray, which must have no effect.
    (logs / "flowerconfig.py").write_text("read_only = False\nbasic_auth = ['a:b']\n")
    astray = {"FLOWER_READ_ONLY": "False", "FLOWER_BASIC_AUTH": "a:b", "BROKER_URL": "redis://127.0.0.1:1/0"}
    with (logs / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "local", "up", "--flower", "--flower-port", str(port)],
            env={**inherited, **astray, "OSTEOPAN_STATE_DIR": str(state), "OSTEOPAN_KEY_PREFIX": "hospital-7"},
            cwd=logs,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while "producer submit" not in (said := (logs / "up.log").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        jobs = []
        with Client(Settings(state_dir=state, key_prefix="hospital-7")) as client:
            for name in (f"{CANARY}.png", "missing.png"):
                request = {"img_path": str(folder / name), "destination_path": str(folder), "metadata": {"is": CANARY}}
                jobs.append(client.submit(request).job_id)
                client.result(jobs[-1], wait_s=60)
        credential = (state / "flower.auth").read_text().strip()
        url = f"http://127.0.0.1:{port}"
        # Flower knows a worker by its heartbeats, every two seconds: nodes take no remote control, so it cannot ask.
        while not (workers := json.loads(fetch(f"{url}/api/workers?status=1", credential)[1])):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield SimpleNamespace(
            url=url, port=port, process=process, state=state, said=said, jobs=jobs, credential=credential,
            worker=next(iter(workers)), redis_password=(state / "redis.url").read_text().split(":")[2].split("@")[0],
        )  # fmt: skip
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def fetch(url: str, credential: str | None = None, *, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(url, method=method)
    if credential is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(credential.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_person_logs_in_and_sees_worker_task_and_queue_but_no_name(
    browser: Browser, monitored: SimpleNamespace
) -> None:
    browser.credential = None
    browser.open(f"{monitored.url}/workers")
    browser.wait_for("Access denied")
    assert browser.status == 401
    assert monitored.worker not in browser.html

    user, _, password = monitored.credential.partition(":")
    browser.credential = (user, password)
    seen = []
    browser.open(f"{monitored.url}/workers")
    browser.wait_for(monitored.worker, "Online")
    assert browser.status == 200
    seen.append(browser.html)

    browser.open(f"{monitored.url}/tasks")
    browser.wait_for("osteopan.process", "SUCCESS", *monitored.jobs)
    seen.append(browser.html)

    for job in monitored.jobs:
        browser.open(f"{monitored.url}/task/{job}")
        browser.wait_for(job, "SUCCESS", monitored.worker)
        seen.append(browser.html)

    browser.open(f"{monitored.url}/broker")
    browser.wait_for("osteopan.urgent", "osteopan.routine")
    seen.append(browser.html)
    assert "hospital-7:celery:" not in browser.text

    answer = browser.evaluate(
        f"fetch('/api/worker/shutdown/{monitored.worker}', {{method: 'POST'}})"
        ".then(answer => answer.text().then(text => answer.status + ' ' + text))"
    )
    assert answer == "403 Read only mode is enabled"

    for page in seen:
        assert len(page) > 1000
        assert "Canary" not in page
        assert monitored.redis_password not in page
        assert password not in page


READING = ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length")
CONTROL = (
    "/api/worker/shutdown/{worker}",
    "/api/worker/pool/restart/{worker}",
    "/api/worker/pool/grow/{worker}?n=1",
    "/api/worker/queue/cancel-consumer/{worker}?queue=osteopan.urgent",
    "/api/task/async-apply/osteopan.process",
    "/api/task/send-task/osteopan.process",
    "/api/task/revoke/{job}?terminate=true",
    "/api/task/timeout/osteopan.process?workername={worker}&hard=1",
)


def test_everything_but_its_counts_and_its_health_asks_for_the_password(monitored: SimpleNamespace) -> None:
    pages = [
        *READING,
        f"/task/{monitored.jobs[0]}",
        f"/worker/{monitored.worker}",
        f"/api/task/info/{monitored.jobs[0]}",
    ]
    for path in pages:
        assert fetch(monitored.url + path)[0] == 401, path
        assert fetch(monitored.url + path, "osteopan:wrong-password")[0] == 401, path
        # The user and password of the environment and of the file in the current folder.
        assert fetch(monitored.url + path, "a:b")[0] == 401, path
        status, text = fetch(monitored.url + path, monitored.credential)
        # A single worker's page wants to ask it things, and nodes take no remote control.
        assert status == (404 if path.startswith("/worker/") else 200), path
        assert "Canary" not in text, path
        assert monitored.redis_password not in text, path
    for path in ("/metrics", "/healthcheck"):
        status, text = fetch(monitored.url + path)
        assert status == 200
        assert "Canary" not in text
        assert not any(job in text for job in monitored.jobs)


def test_nothing_can_be_controlled(monitored: SimpleNamespace) -> None:
    for template in CONTROL:
        path = template.format(worker=monitored.worker, job=monitored.jobs[0])
        assert fetch(monitored.url + path, method="POST")[0] == 401, path
        status, text = fetch(monitored.url + path, monitored.credential, method="POST")
        assert (status, text) == (403, "Read only mode is enabled"), path
    status, text = fetch(f"{monitored.url}/api/workers?status=1", monitored.credential)
    assert json.loads(text) == {monitored.worker: True}


def test_the_api_knows_worker_task_and_queues_under_the_prefix(monitored: SimpleNamespace) -> None:
    tasks = json.loads(fetch(f"{monitored.url}/api/tasks", monitored.credential)[1])
    assert {job: task["state"] for job, task in tasks.items()} == dict.fromkeys(monitored.jobs, "SUCCESS")
    queues = json.loads(fetch(f"{monitored.url}/api/queues/length", monitored.credential)[1])["active_queues"]
    assert {queue["name"]: queue["messages"] for queue in queues} == {"osteopan.urgent": 0, "osteopan.routine": 0}


def test_up_says_where_the_password_is_and_shows_neither(monitored: SimpleNamespace) -> None:
    auth_file = monitored.state / "flower.auth"
    assert f"Flower: {monitored.url}; user and password are in {auth_file}" in monitored.said
    assert stat.S_IMODE(auth_file.stat().st_mode) == 0o600
    password = monitored.credential.partition(":")[2]
    assert len(password) >= 32
    family = [psutil.Process(monitored.process.pid), *psutil.Process(monitored.process.pid).children(recursive=True)]
    lines = [" ".join(process.cmdline()) for process in family]
    assert any(" flower " in line for line in lines)
    for secret in (password, monitored.redis_password):
        assert secret not in monitored.said
        assert not any(secret in line for line in lines)


def test_it_listens_on_loopback_only(monitored: SimpleNamespace) -> None:
    family = psutil.Process(monitored.process.pid).children(recursive=True)
    listening = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            listening |= {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert monitored.port in {port for _, port in listening}
    assert {address for address, _ in listening} == {"127.0.0.1"}


def test_a_flower_that_ends_is_started_again(monitored: SimpleNamespace) -> None:
    family = psutil.Process(monitored.process.pid).children(recursive=True)
    (flower,) = [process for process in family if "flower" in process.cmdline()]
    flower.kill()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError):
            if fetch(f"{monitored.url}/api/queues/length", monitored.credential)[0] == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)


# --- the password -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o600, "cannot read .*No such file"),
        ("osteopan:long-enough\n", 0o640, r"others may read .*mode 0640.*chmod 600"),
        ("osteopan:long-enough\n", 0o604, "others may read"),
        ("", 0o600, "one line `user:password`"),
        ("osteopan\n", 0o600, "one line `user:password`"),
        (":long-enough\n", 0o600, "one line `user:password`"),
        ("osteopan:short\n", 0o600, "8 characters or more"),
        ("osteopan:long-enough\nb:long-enough\n", 0o600, "one line"),
        ("osteopan:lång-enough\n", 0o600, "ASCII"),
    ],
)
def test_a_file_that_holds_no_usable_password_is_refused(
    tmp_path: Path, content: str | None, mode: int, message: str
) -> None:
    file = tmp_path / "flower.auth"
    if content is not None:
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)
    with pytest.raises(SettingsError, match=message) as caught:
        read_credential(file)
    assert "long-enough" not in str(caught.value)


def test_a_password_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "state" / "flower.auth"
    ensure_credential(file)
    first = read_credential(file)
    ensure_credential(file)
    assert read_credential(file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_comma_in_a_password_makes_no_second_password(tmp_path: Path) -> None:
    file = tmp_path / "flower.auth"
    file.touch(mode=0o600)
    file.write_text("osteopan:with,a-comma\n")
    assert read_credential(file) == "osteopan:with,a-comma"


def test_no_password_no_flower() -> None:
    with pytest.raises(SettingsError, match="OSTEOPAN_FLOWER_AUTH_FILE or --auth-file"):
        run_flower(Settings(redis_url=SecretStr("redis://127.0.0.1:1/0")), auth_file=None, address="", port=1)


def test_certificates_of_the_url_are_given_to_flower() -> None:
    assert tls_options("redis://:secret@host/0?ssl_ca_certs=/ca.crt") == {}
    assert tls_options("rediss://:secret@host/0?ssl_ca_certs=%2Fca.crt&protocol=3") == {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": "/ca.crt",
    }


@pytest.mark.parametrize("name", ["FLOWER_READ_ONLY", "CELERY_BROKER_URL", "BROKER_URL", "APP"])
def test_variables_of_flower_and_celery_are_left_out(name: str) -> None:
    assert without_foreign_settings({name: "x", "OSTEOPAN_REDIS_URL": "y", "PATH": "z"}) == {
        "OSTEOPAN_REDIS_URL": "y",
        "PATH": "z",
    }


def test_command_ends_with_a_sentence(start: Callable[..., Any], environment: dict[str, str], tmp_path: Path) -> None:
    command = (sys.executable, "-m", "local")
    without = start("flower", command=command)
    file = tmp_path / "flower.auth"
    ensure_credential(file)
    environment[f"{ENVIRONMENT_PREFIX}FLOWER_AUTH_FILE"] = str(file)
    environment[f"{ENVIRONMENT_PREFIX}REDIS_URL"] = f"redis://:{secrets.token_hex(8)}@127.0.0.1:1/0"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with_taken_port = start("flower", "--port", str(port), command=command)
        assert with_taken_port.wait() == 3
    assert f"Flower cannot listen at 127.0.0.1:{port}: Address already in use" in with_taken_port.stderr
    assert without.wait() == 3
    assert "does not start without a password" in without.stderr
    assert "Traceback" not in without.stderr + with_taken_port.stderr
