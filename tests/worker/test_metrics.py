"""What a node tells Prometheus: the numbers of the engine, of the ledger and of the launcher, and no patient."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from contract.broker import make_app, wake_worker
from contract.errors import ErrorCode, SettingsError
from contract.jobs import ErrorInfo, JobRequest, JobResult, JobState, ModelInfo, Priority
from contract.ledger import Ledger
from contract.records import Claim
from contract.settings import Settings
from worker.metrics import Device, EngineMetrics
from worker.metrics_endpoint import MetricsEndpoint
from worker.metrics_files import EngineFiles
from worker.metrics_ledger import take_snapshot
from worker.settings import WorkerSettings

REPOSITORY = Path(__file__).parents[2]
CANARY = "Canary-Maria-1961"

#: Exported where there is a GPU only.
GPU_ONLY = {"osteopan_gpu_memory_bytes"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def parse(text: str) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus itself would read them."""
    return {
        "".join([sample.name, *(f",{name}={value}" for name, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int) -> dict[str, float]:
    status, text = get(port, "/metrics")
    assert status == 200
    return parse(text)


# --- the engine's numbers ---------------------------------------------------------------------------------------------

MODEL = ModelInfo(name="model-a", version="3", sha256="0123456789abcdef", intended_use="research")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry, tmp_path: Path) -> EngineMetrics:
    return EngineMetrics([MODEL], Device("cpu", [tmp_path]), registry=registry)


def result(error: ErrorCode | None = None, **fields: Any) -> JobResult:
    now = datetime.now(UTC)
    common = {"job_id": "id", "submitted_at": now, "finished_at": now, "metadata": {"name": CANARY}, **fields}
    if error is not None:
        return JobResult(result="fail", error=ErrorInfo(code=error, message=CANARY), **common)
    pictures = {"saliency_img_path": f"/{CANARY}/s.png", "overlay_img_path": f"/{CANARY}/o.png"}
    return JobResult(result="ok", diagnosis="Healthy Patient", **pictures, model=MODEL, **common)


def test_every_series_is_there_from_the_beginning(metrics: EngineMetrics, registry: CollectorRegistry) -> None:
    value = registry.get_sample_value
    assert value("osteopan_jobs_total", {"outcome": "done", "error": ""}) == 0
    for code in set(ErrorCode) - {ErrorCode.CANCELLED}:
        assert value("osteopan_jobs_total", {"outcome": "failed", "error": code.value}) == 0
    assert value("osteopan_jobs_total", {"outcome": "dead", "error": "worker_lost"}) == 0
    assert value("osteopan_stage_duration_seconds_count", {"stage": "background"}) == 0
    assert value("osteopan_score_count", {"model": "model-a", "version": "3"}) == 0
    labels = {"name": "model-a", "version": "3", "sha256": "0123456789ab", "device": "cpu"}
    assert value("osteopan_model_info", labels) == 1


def test_jobs_are_counted_by_outcome_and_code(metrics: EngineMetrics, registry: CollectorRegistry) -> None:
    for attempts in (1, 1, 2):
        metrics.claimed(attempts=attempts)
    metrics.ended(JobState.DONE, result(probability=0.31, threshold=0.5, timings_ms={"queued": 20, "network": 1500}))
    metrics.ended(JobState.FAILED, result(ErrorCode.IMAGE_UNREADABLE, timings_ms={"queued": 400, "engine": 3}))
    metrics.ended(JobState.DEAD, result(ErrorCode.WORKER_LOST, timings_ms={"queued": 9e6, "engine": 0}))
    metrics.lost()
    value = registry.get_sample_value
    assert value("osteopan_job_attempts_total") == 3
    assert value("osteopan_job_retries_total") == 1
    assert value("osteopan_jobs_lost_total") == 1
    assert value("osteopan_jobs_total", {"outcome": "done", "error": ""}) == 1
    assert value("osteopan_jobs_total", {"outcome": "failed", "error": "image_unreadable"}) == 1
    assert value("osteopan_jobs_total", {"outcome": "dead", "error": "worker_lost"}) == 1
    assert value("osteopan_stage_duration_seconds_count", {"stage": "queued"}) == 2
    assert value("osteopan_stage_duration_seconds_sum", {"stage": "queued"}) == pytest.approx(0.42)
    assert value("osteopan_stage_duration_seconds_bucket", {"stage": "network", "le": "1.0"}) == 0
    assert value("osteopan_stage_duration_seconds_bucket", {"stage": "network", "le": "2.5"}) == 1
    score = {"model": "model-a", "version": "3"}
    assert value("osteopan_score_bucket", {**score, "le": "0.3"}) == 0
    assert value("osteopan_score_bucket", {**score, "le": "0.35"}) == 1
    everything = [sample for family in registry.collect() for sample in family.samples]
    assert CANARY not in repr(everything)


def test_the_least_free_disk_is_told(metrics: EngineMetrics, registry: CollectorRegistry, tmp_path: Path) -> None:
    metrics.sample()
    free = psutil.disk_usage(str(tmp_path)).free
    assert registry.get_sample_value("osteopan_output_disk_free_bytes") == pytest.approx(free, rel=0.1)
    gone = CollectorRegistry()
    EngineMetrics([], Device("cpu", [tmp_path, tmp_path / "gone"]), registry=gone).sample()
    assert gone.get_sample_value("osteopan_output_disk_free_bytes") == 0


# --- one engine after another -----------------------------------------------------------------------------------------

ENGINE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from worker.metrics import Device, EngineMetrics
model = SimpleNamespace(name="model-a", version="3", sha256="0" * 64)
metrics = EngineMetrics([model], Device("cpu", [Path("/")]))
metrics.sample()
for _ in range(int(sys.argv[1])):
    metrics.lost()
print("warm", flush=True)
sys.stdin.read()
"""


class Engine:
    """A process that writes as the engine's does, until it is killed."""

    def __init__(self, folder: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(count)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def wait_until_warm(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"warm\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_killed_engine_leaves_its_counts_and_takes_its_gauges(tmp_path: Path) -> None:
    files = EngineFiles(tmp_path)
    assert files.collect() == []
    assert not files.has_engine()

    def lost() -> tuple[float, set[str]]:
        families = files.collect()
        (value,) = [s.value for family in families for s in family.samples if s.name == "osteopan_jobs_lost_total"]
        return value, {family.name for family in families if family.type == "gauge"}

    engines = [Engine(tmp_path, count) for count in (3, 4)]
    try:
        for engine in engines:
            engine.wait_until_warm()
        gauges = {"osteopan_model_info", "osteopan_output_disk_free_bytes"}
        assert files.has_engine()
        assert lost() == (7, gauges)
        engines[0].kill()
        assert lost() == (7, gauges)
        engines[1].kill()
        assert not files.has_engine()
        assert lost() == (7, set())
        # Twice, for what has been added up must not be added again.
        assert lost() == (7, set())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_0.db", "histogram_0.db"]
    finally:
        for engine in engines:
            engine.kill()


# --- the ledger's numbers ---------------------------------------------------------------------------------------------


def submit(ledger: Ledger, settings: Settings, *, priority: Priority, announced: bool = True, age_s: float = 0) -> str:
    request = JobRequest(img_path="/x.png", destination_path="/out", priority=priority)
    job_id = ledger.submit(request).job_id
    if announced:
        wake_worker(make_app(settings), job_id, priority)
    key = ledger.keys.job(job_id)
    ledger.client.hset(key, "submitted_ms", int(ledger.client.hget(key, "submitted_ms")) - round(1000 * age_s))
    return job_id


def test_queue_and_jobs_are_counted_by_priority(ledger: Ledger, settings: Settings) -> None:
    empty = take_snapshot(ledger, "node")
    assert (empty.queued, empty.running, empty.dead, empty.ready) == (0, 0, 0, False)
    assert empty.depth == empty.oldest_age_s == {Priority.URGENT: 0, Priority.ROUTINE: 0}

    submit(ledger, settings, priority=Priority.ROUTINE, age_s=100)
    submit(ledger, settings, priority=Priority.ROUTINE, age_s=300)
    submit(ledger, settings, priority=Priority.URGENT, age_s=20)
    submit(ledger, settings, priority=Priority.URGENT, age_s=50, announced=False)
    running = submit(ledger, settings, priority=Priority.URGENT, age_s=9000)
    assert isinstance(ledger.claim(running, "other"), Claim)
    ledger.client.zadd(ledger.keys.dead, {"a": 1, "b": 2})
    ledger.client.set(ledger.keys.ready("node"), "model", ex=60)
    # What is no message of ours is no reason to fail.
    ledger.client.rpush(ledger.keys.celery + "osteopan.urgent", "garbage", "[1]", '{"headers": {"id": 5}}')

    snapshot = take_snapshot(ledger, "node")
    assert (snapshot.queued, snapshot.running, snapshot.dead, snapshot.ready) == (4, 1, 2, True)
    assert snapshot.depth == {Priority.ROUTINE: 2, Priority.URGENT: 5}
    assert snapshot.oldest_age_s[Priority.ROUTINE] == pytest.approx(300, abs=5)
    assert snapshot.oldest_age_s[Priority.URGENT] == pytest.approx(50, abs=5)
    assert not take_snapshot(ledger, "another").ready

    assert snapshot.memory_share == 0, "no limit is set"
    ledger.client.config_set("maxmemory", 2 * ledger.client.info("memory")["used_memory"])
    try:
        assert take_snapshot(ledger, "node").memory_share == pytest.approx(0.5, abs=0.1)
    finally:
        ledger.client.config_set("maxmemory", 0)


def test_an_urgent_job_behind_many_routine_ones_is_seen(ledger: Ledger, settings: Settings) -> None:
    for _ in range(120):
        ledger.submit(JobRequest(img_path="/x.png", destination_path="/out"))
    submit(ledger, settings, priority=Priority.URGENT, age_s=77)
    assert take_snapshot(ledger, "node").oldest_age_s[Priority.URGENT] == pytest.approx(77, abs=5)


# --- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered, as by a frozen Redis."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(params=["refused", "silent"])
def away_url(request: pytest.FixtureRequest, silent_server: int) -> str:
    return f"redis://127.0.0.1:{free_port() if request.param == 'refused' else silent_server}/0"


def test_a_scrape_does_not_fail_while_redis_is_away(away_url: str) -> None:
    settings = WorkerSettings(redis_url=away_url)
    port = free_port()
    with MetricsEndpoint(settings, port) as endpoint:
        (folder,) = endpoint.environment.values()
        engine = Engine(Path(folder), 1)
        try:
            engine.wait_until_warm()
            start = time.monotonic()
            samples = scrape(port)
            assert time.monotonic() - start < 8, "Prometheus gives up after 10 s"
            assert samples["osteopan_redis_up"] == 0
            assert samples["osteopan_node_ready"] == 0
            assert samples["osteopan_jobs_lost_total"] == 1
            assert not [name for name in samples if name.startswith(("osteopan_queue", "osteopan_jobs_open"))]
            assert get(port, "/ready") == (503, "not ready: Redis does not answer\n")
            assert get(port, "/live") == (200, "ok\n")
        finally:
            engine.kill()
    assert not Path(folder).exists()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(port, "/live")


def test_a_node_is_ready_while_its_engine_and_its_key_are_there(settings: Settings, ledger: Ledger, wait: Any) -> None:
    port = free_port()
    with MetricsEndpoint(WorkerSettings(**settings.model_dump(), node="node"), port) as endpoint:
        assert get(port, "/ready") == (503, "not ready: no engine is loaded and warm\n")
        (folder,) = endpoint.environment.values()
        assert Path(folder).stat().st_mode & 0o077 == 0
        engine = Engine(Path(folder), 0)
        try:
            engine.wait_until_warm()
            assert get(port, "/ready") == (503, "not ready: the engine does not say that it is ready\n")
            ledger.client.set(ledger.keys.ready("node"), "model", ex=60)
            wait(lambda: get(port, "/ready") == (200, "ok\n"), 5)
            endpoint.count_restart()
            samples = scrape(port)
            assert samples["osteopan_node_ready"] == samples["osteopan_redis_up"] == 1
            assert samples["osteopan_node_restarts_total"] == 1
        finally:
            engine.kill()
        assert get(port, "/ready") == (503, "not ready: no engine is loaded and warm\n")
        assert get(port, "/other") == (404, "here are /metrics, /live and /ready\n")


def test_a_client_that_says_nothing_keeps_nobody_waiting(settings: Settings) -> None:
    port = free_port()
    with (
        MetricsEndpoint(WorkerSettings(**settings.model_dump()), port),
        socket.create_connection(("127.0.0.1", port)),
    ):
        assert get(port, "/live") == (200, "ok\n")


def test_a_port_that_is_taken_is_named(silent_server: int) -> None:
    with pytest.raises(SettingsError, match=rf"OSTEOPAN_METRICS_PORT: cannot listen at 127\.0\.0\.1:{silent_server}"):
        MetricsEndpoint(WorkerSettings(redis_url="redis://127.0.0.1:1/0"), silent_server)


# --- a real node ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(
    start_node: Any, wait: Any, node_settings: Settings, phantom: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The life of a node: good and bad jobs, its engine killed, another job, SIGTERM; and what it said meanwhile."""
    folder = tmp_path_factory.mktemp(CANARY)
    settings = node_settings.model_copy(update={"key_prefix": "metrics"})
    port = free_port()
    picture, text = folder / f"{CANARY}.png", folder / f"{CANARY}-text.png"
    picture.write_bytes(phantom.read_bytes())
    text.write_text(CANARY)
    log_folder = tmp_path_factory.mktemp("log")
    extra = {"OSTEOPAN_KEY_PREFIX": "metrics", "OSTEOPAN_METRICS_PORT": str(port)}
    with start_node(settings, log_folder, "metrics-node", **extra) as node, node.client() as client:

        def screen(path: Path) -> str:
            request = {"img_path": str(path), "destination_path": str(folder), "metadata": {"name": CANARY}}
            return client.result(client.submit(request).job_id, wait_s=60).result

        wait(lambda: get(port, "/ready")[0] == 200, 10)
        outcomes = [screen(picture), screen(text), screen(folder / "missing.png")]
        wait(lambda: scrape(port)["osteopan_job_attempts_total"] == 3)
        first = get(port, "/metrics")[1]
        (celery,) = psutil.Process(node.process.pid).children()
        max(celery.children(), key=lambda process: process.memory_info().rss).kill()
        wait(lambda: get(port, "/ready")[0] == 503, 10)
        between = get(port, "/metrics")[1]
        outcomes.append(screen(picture))
        wait(lambda: get(port, "/ready")[0] == 200, 60)
        wait(lambda: scrape(port)["osteopan_jobs_total,error=,outcome=done"] == 2)
        last = get(port, "/metrics")[1]
        processes = [node.process.pid, *(child.pid for child in psutil.Process(node.process.pid).children(True))]
    return SimpleNamespace(
        outcomes=outcomes, first=first, between=between, last=last, processes=processes, log=node.log.read_text()
    )


def test_a_real_node_counts_what_it_did(story: SimpleNamespace) -> None:
    assert story.outcomes == ["ok", "fail", "fail", "ok"]
    samples = parse(story.first)
    assert samples["osteopan_jobs_total,error=,outcome=done"] == 1
    assert samples["osteopan_jobs_total,error=image_unreadable,outcome=failed"] == 1
    assert samples["osteopan_jobs_total,error=image_not_found,outcome=failed"] == 1
    assert samples["osteopan_stage_duration_seconds_count,stage=queued"] == 3
    assert 0 < samples["osteopan_stage_duration_seconds_sum,stage=network"] < 60
    assert samples["osteopan_score_count,model=demonstration-b0,version=1"] == 1
    assert samples["osteopan_output_disk_free_bytes"] > 0
    assert samples["osteopan_queue_depth,priority=urgent"] == 0
    assert [value for name, value in samples.items() if name.startswith("osteopan_model_info,device=cpu")] == [1]
    assert [value for name, value in samples.items() if name.startswith("osteopan_build_info")] == [1]


def test_a_killed_engine_loses_no_count(story: SimpleNamespace) -> None:
    between, last = parse(story.between), parse(story.last)
    assert between["osteopan_jobs_total,error=image_unreadable,outcome=failed"] == 1
    assert between["osteopan_node_ready"] == 0
    assert not [name for name in between if name.startswith("osteopan_model_info")]
    assert last["osteopan_job_attempts_total"] == 4
    assert last["osteopan_stage_duration_seconds_count,stage=network"] == 2
    assert last["osteopan_node_ready"] == 1


def test_no_metric_names_a_patient_or_a_job(story: SimpleNamespace) -> None:
    for text in (story.first, story.between, story.last):
        assert "Canary" not in text
        assert "/" not in "".join(re.findall(r"\{.*?\}", text)), "a label holds a path"
        assert not re.search(r"[0-9a-f]{32}", text), "a label holds a job's id"


def test_every_line_of_the_log_is_json_from_start_to_stop(story: SimpleNamespace) -> None:
    lines = story.log.splitlines()
    events = [json.loads(line) for line in lines]
    assert len(events) > 8
    assert {event["event"] for event in events} >= {"node_ready", "job_claimed", "job_ended"}
    assert all({"event", "level", "logger", "timestamp"} <= set(event) for event in events)
    assert any(event["level"] == "error" for event in events), "the killed engine is an error"
    assert "Canary" not in story.log


def named_in(*files: str) -> set[str]:
    texts = [(REPOSITORY / file).read_text(encoding="utf-8") for file in files]
    return {name for text in texts for name in re.findall(r"\bosteopan_[a-z0-9_]+\b", text)}


def exported_by(text: str) -> set[str]:
    families = list(text_string_to_metric_families(text))
    return {sample.name for family in families for sample in family.samples} | {family.name for family in families}


@pytest.mark.parametrize("file", ["deploy/grafana-dashboard.json", "deploy/alerts.yml", "docs/monitoring.md"])
def test_every_metric_that_is_named_is_exported(story: SimpleNamespace, file: str) -> None:
    named = named_in(file)
    assert len(named) > 5
    assert named - exported_by(story.last) - GPU_ONLY == set()


def test_every_metric_and_every_alert_is_explained(story: SimpleNamespace, metrics: EngineMetrics) -> None:
    documented = (REPOSITORY / "docs" / "monitoring.md").read_text(encoding="utf-8")
    types = re.findall(r"^# TYPE (\S+) ", story.last, re.MULTILINE)
    assert len(types) > 12
    missing = {name for name in {*types, *GPU_ONLY} if f"`{name}`" not in documented}
    assert missing == set()
    alerts = re.findall(r"- alert: (\w+)", (REPOSITORY / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
    assert len(alerts) > 8
    assert {alert for alert in alerts if f"`{alert}`" not in documented} == set()
    assert set(re.findall(r"`(Osteopan\w+)`", documented)) == set(alerts)


def test_the_dashboard_can_be_drawn() -> None:
    dashboard = json.loads((REPOSITORY / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 39
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    for panel in panels:
        assert all(target["expr"] and target["refId"] for target in panel["targets"])
        assert panel["title"]
