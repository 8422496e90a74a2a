"""Faults are made on a real Redis and two real nodes, which the tests of this folder share.

`make faults` runs the long form of the soak; plain `pytest` runs the short one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import cv2
import pytest
from pydantic import SecretStr

from contract.settings import Settings
from local.redis_server import EmbeddedRedis
from training.phantoms.phantom import draw_phantom
from training.phantoms.truth import draw_truth

#: Sizes (height, width) of the radiographs: one quick to screen, one so slow that a fault hits the stage it is to hit.
SIZES_PX = {"small": (300, 726), "large": (1210, 2925)}

SHORT_SOAK_JOBS = 60


def _sibling(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    specification = importlib.util.spec_from_file_location(f"faults_{name}", Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


proxy = _sibling("proxy")
harness = _sibling("harness")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line say how long the soak is to be."""
    parser.addoption("--soak-jobs", type=int, default=SHORT_SOAK_JOBS, help="how many jobs the soak submits")


@pytest.fixture(scope="session")
def soak_jobs(pytestconfig: pytest.Config) -> int:
    """How many jobs the soak submits."""
    # A run of all tests knows this folder's option only after it has read its command line.
    return int(pytestconfig.getoption("--soak-jobs", default=SHORT_SOAK_JOBS))


@pytest.fixture(scope="session")
def _shared_site(tmp_path_factory: pytest.TempPathFactory, measured: Callable[[str, str], None]) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("faults")
    pictures = {}
    for name, size_px in SIZES_PX.items():
        pictures[name] = folder / f"{name}.png"
        assert cv2.imwrite(str(pictures[name]), draw_phantom(draw_truth(7, "C3", size_px=size_px)))
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(folder / "redis"))
        settings = Settings(
            redis_url=server.url,
            state_dir=folder / "state",
            lease_s=harness.LEASE_S,
            heartbeat_s=harness.HEARTBEAT_S,
        )
        nodes = []
        for name in ("left", "right"):
            line = stack.enter_context(proxy.Proxy(urlsplit(server.url).port))
            nodes.append(harness.Node(name, line, settings, folder / f"{name}.log"))
        submitted = folder / f"submitted-{harness.CANARY}"
        submitted.mkdir()
        site = harness.Site(server, settings, nodes, submitted, pictures, note=measured)
        stack.callback(site.close)
        yield site
        site.note(
            "requests with an invented name; log lines and keys searched in vain for it",
            f"{site.canaries_planted}; {site.lines_searched} lines, every other key",
        )


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    """Wait until something is so."""
    return harness.wait_until


@pytest.fixture
def lossy_settings(_shared_site: Any) -> Callable[[Any], Settings]:
    """Settings that lead to Redis through a proxy."""

    def through(line: Any) -> Settings:
        settings: Settings = _shared_site.settings
        return settings.model_copy(update={"redis_url": SecretStr(harness.url_through(line, settings))})

    return through


@pytest.fixture
def site(_shared_site: Any) -> Iterator[Any]:
    """Redis and two nodes, ready and at rest. After the test, no log may name the patient."""
    _shared_site.make_ready()
    yield _shared_site
    _shared_site.restart_redis()
    _shared_site.check_privacy()
