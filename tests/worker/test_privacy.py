"""Invented identities go through everything, and turn up in a job's request and result alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import redis
from PIL import Image

from contract.broker import make_app
from contract.settings import Settings
from local.redis_server import EmbeddedRedis
from producer.client import Client

CANARY = "Canary-Koo-1978"
IDENTITIES = Path(__file__).parents[2].parent / "shared" / "data" / "badinput" / "synthetic_identities"

#: What else names the invented people of the test material.
OTHER_NAMES = ("Huseyan", "Koo")

#: The two kinds of keys in which paths and names may stand.
ALLOWED_KEYS = ("osteopan:job:", "osteopan:result:")


class EventTap:
    """Writes down every event that Celery's workers send, as Flower sees them."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)
        self.seen: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 30
        # A worker sends a heartbeat every two seconds: from the first on, nothing is missed.
        while not self.seen and time.monotonic() < deadline:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.seen.append})
            while not self._stop.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield Settings(redis_url=server.url, state_dir=tmp_path_factory.mktemp("state"))


def everything_in_redis(settings: Settings) -> dict[str, str]:
    """Each key with its content."""
    dump = {}
    with redis.Redis.from_url(settings.broker_url(), decode_responses=True) as client:
        readers = {
            "string": client.get,
            "hash": client.hgetall,
            "list": lambda key: client.lrange(key, 0, -1),
            "set": client.smembers,
            "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
            "stream": client.xrange,
            # Gone since the scan.
            "none": lambda _: None,
        }
        for key in client.scan_iter(count=1000):
            dump[key] = key + repr(readers[client.type(key)](key))
    return dump


def job_keys(settings: Settings) -> set[str]:
    return {key for key in everything_in_redis(settings) if key.startswith(ALLOWED_KEYS)}


def submit_all(settings: Settings, phantom: Path, folder: Path) -> list[Any]:
    """Good and bad jobs, each of them with the canary wherever a request can hold one."""
    folder.mkdir()
    picture = folder / f"{CANARY}.png"
    shutil.copy(phantom, picture)
    (folder / f"{CANARY}.txt.jpg").write_text(CANARY)
    (folder / f"{CANARY}-cut.png").write_bytes(phantom.read_bytes()[:5000])
    images = [
        picture,
        folder / f"{CANARY}-missing.png",
        folder / f"{CANARY}.txt.jpg",
        folder / f"{CANARY}-cut.png",
        folder,
        *sorted(IDENTITIES.glob("*")),
    ]
    requests = [
        {"img_path": str(path), "destination_path": str(folder / "out"), "metadata": {"patient": CANARY}}
        for path in images
    ]
    requests.append({"img_path": str(picture), "destination_path": f"/proc/{CANARY}"})
    requests.append({"img_path": str(picture), "destination_path": str(folder / "out"), "model": CANARY})
    with Client(settings) as client:
        jobs = [client.submit(request).job_id for request in requests]
        cancelled = client.submit(requests[0]).job_id
        client.cancel(cancelled)
        return list(client.results([*jobs, cancelled], timeout_s=120))


def test_names_are_in_requests_and_results_alone(
    start_node: Any, own_redis: Settings, phantom: Path, tmp_path: Path, measured: Callable[[str, str], None]
) -> None:
    names = (CANARY, *OTHER_NAMES)
    with start_node(own_redis, tmp_path, "private", OSTEOPAN_LOG_LEVEL="DEBUG") as node, EventTap(own_redis) as events:
        results = submit_all(own_redis, phantom, tmp_path / f"{CANARY}-folder")
        processes = psutil.Process(node.process.pid).children(recursive=True)
        titles = [" ".join(process.cmdline()) + process.name() for process in processes]
        dump = everything_in_redis(own_redis)
        log = node.log.read_text(encoding="utf-8", errors="replace")

    assert {result.result for result in results} == {"ok", "fail"}
    assert all(result.job_id in log for result in results), "the log names every job by its id"
    # The tap works, and what the jobs wrote is there: so finding nothing elsewhere means something.
    assert {event["type"] for event in events.seen} >= {"task-received", "task-succeeded"}
    assert any(CANARY in content for key, content in dump.items() if key.startswith(ALLOWED_KEYS))

    leaks = {
        "log": log,
        "events": repr(events.seen),
        "process titles": "\n".join(titles),
        "Redis": "\n".join(content for key, content in dump.items() if not key.startswith(ALLOWED_KEYS)),
        "keys": "\n".join(dump),
    }
    assert {place for place, text in leaks.items() if any(name in text for name in names)} == set()

    planted = sum(content.count(name) for content in dump.values() for name in names)
    searched = sum(text.count("\n") + 1 for text in leaks.values())
    measured("invented names in requests and results; found elsewhere", f"{planted}; 0 in {searched} lines")

    for result in results:
        for path in filter(None, (result.saliency_img_path, result.overlay_img_path)):
            with Image.open(path) as picture:
                assert picture.info.keys() <= {"palette"}, "a picture carries no metadata"
            # Three letters turn up in any compressed file by chance.
            assert CANARY.encode() not in Path(path).read_bytes()


def test_only_what_shows_a_request_or_a_result_shows_names(
    node: Any, environment: Any, phantom: Path, tmp_path: Path
) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    shutil.copy(phantom, folder / "a.png")

    def command(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment(node.settings),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return ended.stdout + ended.stderr

    job_id = command("producer", "submit", str(folder / "a.png")).split()[0]
    assert CANARY in command("producer", "result", job_id, "--wait", "--json")
    quiet = [
        ("producer", "status"),
        ("producer", "status", job_id),
        ("producer", "list"),
        ("producer", "cancel", job_id),
        ("producer", "dead", "list"),
        ("producer", "dead", "retry", job_id),
        ("producer", "dead", "drop", job_id),
        ("local", "doctor"),
    ]
    said = {arguments: command(*arguments) for arguments in quiet}
    assert all(said.values())
    assert {arguments for arguments, text in said.items() if CANARY in text.replace(str(folder), "")} == set()
    assert {arguments for arguments, text in said.items() if CANARY in text} <= {("local", "doctor")}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"img_path": "/a", "destination_path": "/b", f"{CANARY}": 1}),
        json.dumps({"img_path": "/a", "destination_path": "/b", "job_id": f"{CANARY} not an id"}),
        json.dumps({"img_path": "/a", "destination_path": "/b", "priority": CANARY}),
        json.dumps({"img_path": [CANARY], "destination_path": "/b"}),
        json.dumps({"img_path": "/a", "destination_path": "/b", "metadata": {"x": CANARY * 1000}}),
        f"{CANARY} is not JSON",
    ],
)
def test_a_refused_request_is_not_repeated(own_redis: Settings, environment: Any, line: str) -> None:
    before = job_keys(own_redis)
    ended = subprocess.run(
        [sys.executable, "-m", "producer", "submit", "-"],
        input=line + "\n",
        env=environment(own_redis),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert CANARY not in ended.stdout + ended.stderr
    assert "line 1" in ended.stderr
    assert job_keys(own_redis) == before
