"""`osteopan doctor`: what is wrong on this machine and in its Redis, in plain words, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.connection import connect, translated_errors
from contract.errors import BrokerUnavailableError, OsteopanError, SettingsError
from contract.jobs import JobState
from contract.ledger import MAX_MEMORY_PERCENT, Ledger
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.redis_server import OLDEST_MAJOR_VERSION
from local.stack import child_environment

#: Free space below which a disk is called nearly full, and full, in bytes. Two pictures take some 4 MB.
DISK_WARN_BYTES = 2 * 1024**3
DISK_FAIL_BYTES = 200 * 1024**2

#: Difference between two clocks from which times in results and logs mislead, in seconds.
CLOCK_WARN_S = 2.0

#: What reading a model file may take, in seconds, the imports of PyTorch included.
MODEL_TIMEOUT_S = 120

#: How `worker check-model` says that the file cannot be used.
MODEL_UNUSABLE = 3

#: Percent of `maxmemory` from which Redis is called nearly full.
MEMORY_WARN_PERCENT = 70


class Verdict(StrEnum):
    """How grave a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        verdict: How grave it is.
        found: What there is.
        advice: What to do; empty if nothing is to be done.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def shown_url(url: str) -> str:
    """A URL of Redis without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def bad_settings(error: SettingsError) -> Finding:
    """The finding that a setting cannot be used."""
    return Finding("Settings", Verdict.FAIL, str(error), "Correct the variable, or unset it")


def examine(settings: Settings, *, folders: Sequence[Path], models: Sequence[Path] = ()) -> list[Finding]:
    """Look at Redis, at the workers, at model files (without any at the one that ships) and at the disks of folders."""
    findings = list(_examine_redis(settings))
    findings += [check_model(model) for model in (dict.fromkeys(models) or [None])]
    return findings + [check_disk(folder) for folder in dict.fromkeys(folders)]


def configured_paths(name: str, environment: Mapping[str, str]) -> list[Path]:
    """What a worker's setting names, ``MODEL`` or ``OUTPUT_ROOTS``: several are separated as in ``PATH``."""
    return [Path(part) for part in environment.get(f"{ENVIRONMENT_PREFIX}{name}", "").split(os.pathsep) if part]


def check_model(model: Path | None) -> Finding:
    """Have the worker role read a model file, digest and all; None for the one that ships. It takes some seconds."""
    shown = "the one that ships" if model is None else model
    try:
        read = subprocess.run(  # noqa: S603 - a role of this program
            [sys.executable, "-m", "worker", "check-model", *([] if model is None else [str(model)])],
            env=child_environment(os.environ, Path(os.devnull)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MODEL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("Model", Verdict.WARN, f"{shown}: not read within {MODEL_TIMEOUT_S} s", "Look at its disk")
    if read.returncode == 0:
        return Finding("Model", Verdict.OK, read.stdout.strip())
    if read.returncode != MODEL_UNUSABLE:
        if model is None and find_spec("torch") is None:
            return Finding("Model", Verdict.OK, "no worker is installed here")
        return Finding("Model", Verdict.WARN, f"{shown}: not known", "Install what workers need: `osteopan[worker]`")
    return Finding(
        "Model", Verdict.FAIL, read.stderr.strip().removeprefix("worker: "), "Copy it again from where it came from"
    )


def _examine_redis(settings: Settings) -> Iterator[Finding]:
    where = ""
    try:
        where = shown_url(settings.broker_url())
        with connect(settings) as client:
            with translated_errors():
                client.ping()
            yield Finding("Redis", Verdict.OK, f"answers at {where}")
            yield from _checked("Redis' settings", lambda: check_server(_info(client)))
            yield from _checked("Clock", lambda: [_examine_clock(client)])
            yield from _checked("Workers and jobs", lambda: _examine_ledger(Ledger(client, settings)))
    except BrokerUnavailableError as error:
        yield Finding("Redis", Verdict.FAIL, f"{where}: {error}", "Start it: `osteopan up`; or set OSTEOPAN_REDIS_URL")
    except SettingsError as error:
        yield bad_settings(error)


def _checked(name: str, look: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    try:
        return look()
    except OsteopanError as error:
        # A user whose access list is short may well do all that its role needs.
        return [Finding(name, Verdict.WARN, f"not known: {error}", "Ask with a user that may read this")]


def _info(client: redis.Redis) -> dict[str, Any]:
    with translated_errors():
        return client.info("everything")


def check_server(info: dict[str, Any]) -> list[Finding]:
    """Judge version, durability and memory by Redis' own account (`INFO`)."""
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    findings = []
    if int(version.partition(".")[0]) >= OLDEST_MAJOR_VERSION:
        findings.append(Finding("Version", Verdict.OK, version))
    else:
        findings.append(
            Finding("Version", Verdict.FAIL, version, f"Use Redis or Valkey {OLDEST_MAJOR_VERSION} or newer")
        )

    if not info.get("aof_enabled"):
        findings.append(
            Finding(
                "Append-only file",
                Verdict.FAIL,
                "off: jobs are lost when Redis stops",
                "Set `appendonly yes` and `appendfsync always`",
            )
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        findings.append(
            Finding("Append-only file", Verdict.FAIL, "the last write failed", "Look at Redis' log, and at its disk")
        )
    else:
        findings.append(Finding("Append-only file", Verdict.OK, "on"))

    findings.append(_check_eviction(str(info.get("maxmemory_policy", "unknown")), int(info.get("maxmemory", 0))))
    used, allowed = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if allowed and 100 * used > MEMORY_WARN_PERCENT * allowed:
        refuses = 100 * used >= MAX_MEMORY_PERCENT * allowed
        found = f"{used / allowed:.0%} of `maxmemory` is used; from {MAX_MEMORY_PERCENT} % on no job is accepted"
        findings.append(Finding("Memory", Verdict.FAIL if refuses else Verdict.WARN, found, "Raise `maxmemory`"))
    return findings


def _check_eviction(policy: str, maxmemory: int) -> Finding:
    if policy == "noeviction":
        return Finding("Eviction", Verdict.OK, "noeviction")
    # Without a limit nothing is evicted, until someone sets one.
    verdict = Verdict.FAIL if maxmemory else Verdict.WARN
    return Finding(
        "Eviction", verdict, f"{policy}: a full Redis drops jobs silently", "Set `maxmemory-policy noeviction`"
    )


def _examine_clock(client: redis.Redis) -> Finding:
    before = time.time()
    with translated_errors():
        seconds, microseconds = client.time()
    return check_clock(seconds + microseconds / 1e6 - (before + time.time()) / 2)


def check_clock(ahead_s: float) -> Finding:
    """Judge by how many seconds the clock of Redis is ahead of ours."""
    if abs(ahead_s) < CLOCK_WARN_S:
        return Finding("Clock", Verdict.OK, f"differs from Redis' by {abs(ahead_s):.1f} s")
    order = "behind" if ahead_s > 0 else "ahead of"
    return Finding(
        "Clock",
        Verdict.WARN,
        f"this machine is {abs(ahead_s):.1f} s {order} Redis",
        "Set both by NTP; leases do not suffer, times in results do",
    )


def _examine_ledger(ledger: Ledger) -> list[Finding]:
    nodes = ledger.ready_nodes()
    counts = ledger.counts()
    findings = [
        Finding("Workers", Verdict.OK, f"ready: {', '.join(nodes)}")
        if nodes
        else Finding("Workers", Verdict.FAIL, "none is ready", "Start one: `worker run --cpu`, or `osteopan up`"),
        Finding("Jobs", Verdict.OK, f"{counts[JobState.QUEUED]} queued, {counts[JobState.RUNNING]} running"),
    ]
    dead = counts[JobState.DEAD]
    if dead:
        findings.append(
            Finding("Given up", Verdict.WARN, f"{dead} jobs", "See `producer dead list`, then `producer dead retry`")
        )
    return findings


def check_disk(folder: Path) -> Finding:
    """Judge the free space of the disk on which a folder lies, or would lie."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free < DISK_FAIL_BYTES:
        return Finding("Disk", Verdict.FAIL, found, "Make room: neither pictures nor jobs can be written")
    if free < DISK_WARN_BYTES:
        return Finding("Disk", Verdict.WARN, found, "Make room soon")
    return Finding("Disk", Verdict.OK, found)


_STYLE = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    """Draw the findings as a table."""
    table = Table("Check", "", "Found", "What to do")
    for finding in findings:
        verdict = Text(finding.verdict.value, _STYLE[finding.verdict])
        table.add_row(finding.check, verdict, Text(finding.found), Text(finding.advice))
    console.print(table)
