"""The disk is full, or a file may not grow, while the pictures are written: the job fails whole, and says why."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one of the two pictures, but not for both."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1000k", "none", folder], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_fails_the_job_and_leaves_nothing_behind(site: Any, small_disk: Path) -> None:
    request = site.request("large", destination_path=str(small_disk / site.canary))
    job = site.enter(request)
    error = site.settle()[job].error
    assert error is not None
    assert error.code == "destination_not_writable"
    assert "No space left on device" in error.message
    small = site.enter(site.request("small", destination_path=str(small_disk / "again")))
    assert site.settle()[small].result == "ok", "what was written in vain still takes room"


def test_a_file_that_may_not_grow_fails_the_job_and_leaves_nothing_behind(site: Any) -> None:
    engines = [node.engine for node in site.nodes]
    before = [engine.rlimit(resource.RLIMIT_FSIZE) for engine in engines]
    # The engine's log is a file as well, and has outgrown the limit already: what it says meanwhile is lost.
    for engine in engines:
        engine.rlimit(resource.RLIMIT_FSIZE, (2000, before[0][1]))
    try:
        job = site.submit()
        site.await_end(job)
    finally:
        for engine, limit in zip(engines, before, strict=True):
            engine.rlimit(resource.RLIMIT_FSIZE, limit)
    error = site.settle()[job].error
    assert error is not None
    assert error.code == "destination_not_writable"
    good = site.submit()
    assert site.settle()[good].result == "ok"
