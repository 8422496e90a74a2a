"""Times each stage of the engine alone, one picture at a time: by the clock, and in processor time."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import psutil

from bench.machine import cpu_s
from bench.material import Material
from bench.scale import Scale
from bench.summary import Row, rounded, shown, spread
from contract.errors import JobError
from worker.screening import STAGES, Screener
from worker.settings import WorkerSettings, usable_cores

T = TypeVar("T")


class _Watch:
    """Reads the clock, and the processor time of this process and of the decoders below it, whenever a stage begins."""

    def __init__(self) -> None:
        self._pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
        self.wall_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.cpu_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._stage: str | None = None
        self._wall_s = self._cpu_s = 0.0

    def enter(self, stage: str | None) -> None:
        """A stage begins, and the one before it has ended; None ends the last."""
        wall_s, used_s = time.perf_counter(), sum(cpu_s(pid) for pid in self._pids)
        if self._stage is not None:
            self.wall_ms[self._stage].append((wall_s - self._wall_s) * 1000)
            self.cpu_ms[self._stage].append((used_s - self._cpu_s) * 1000)
        self._stage, self._wall_s, self._cpu_s = stage, wall_s, used_s


def measure(material: Material, scale: Scale, *, device: str = "cpu") -> dict[str, Any]:
    """Screen one picture again and again with each network, in this process.

    Returns:
        By network: ``runtime`` that was chosen; ``load_s``, the probe included, and ``warm_up_s``; by stage
        ``wall_ms`` and ``cpu_ms``, which also counts the decoder's process; ``picture_ms``, all stages together; and
        ``cores_bound_per_s``: as many pictures a second as the cores' time is enough for, were none of it idle. On a
        CPU, where every stage takes its time from the same cores, no node does more.
    """
    return {network: _of_network(material, scale, network, device) for network in scale.networks}


def _of_network(material: Material, scale: Scale, network: str, device: str) -> dict[str, Any]:
    picture = str(material.picture(scale.picture_px))
    destination = str(material.new_folder("stages"))
    model = material.model(network, input_size=scale.input_size)
    settings = WorkerSettings(state_dir=material.state_dir, model=(model,), device=device)
    load_s, screener = _timed(lambda: Screener(settings))
    with screener:
        warm_up_s, _ = _timed(screener.warm_up)
        # numba's and the runtime's first picture of this size is not like the others.
        _screen(screener, picture, destination, _Watch())
        watch = _Watch()
        for _ in range(scale.repetitions):
            _screen(screener, picture, destination, watch)
        (about,) = screener.runtimes.values()
    cpu_ms = {stage: spread(times) for stage, times in watch.cpu_ms.items()}
    all_cpu_ms = sum(of_stage["median"] for of_stage in cpu_ms.values())
    pictures_ms = [sum(times) for times in zip(*watch.wall_ms.values(), strict=True)]
    return {
        "runtime": asdict(about),
        "load_s": round(load_s, 2),
        "warm_up_s": round(warm_up_s, 2),
        "wall_ms": {stage: spread(times) for stage, times in watch.wall_ms.items()},
        "cpu_ms": cpu_ms,
        "picture_ms": spread(pictures_ms),
        "cores_bound_per_s": round(1000 * usable_cores() / all_cpu_ms, 3),
    }


def _screen(screener: Screener, picture: str, destination: str, watch: _Watch) -> None:
    prepared = screener.prepare(picture, destination, on_stage=watch.enter)
    watch.enter("network")
    (outcome,) = screener.classify([prepared])
    if isinstance(outcome, JobError):
        raise outcome
    screener.deliver(prepared, outcome, on_stage=watch.enter)
    watch.enter(None)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    lines: list[Row] = []
    for network, of_network in found.items():
        about = of_network["runtime"]
        lines += [
            (f"{network}, {about['library']}, {about['precision']}", "", ""),
            *([("  not the fastest runtime", about["fallback_reason"], "")] if about["fallback_reason"] else []),
            ("  loading, compared with the reference", f"{of_network['load_s']:.1f} s", ""),
            *((f"  {stage}", shown(of_network["wall_ms"][stage], "ms"), "") for stage in STAGES),
            *((f"  {stage}, processor time", shown(of_network["cpu_ms"][stage], "ms"), "") for stage in STAGES),
            ("  all stages, one after another", shown(of_network["picture_ms"], "ms"), ""),
            ("  the cores' time is enough for", f"{rounded(of_network['cores_bound_per_s'])} pictures/s", ""),
        ]
    return lines
