"""What this node's engine does with a picture, stage by stage, and with several at a time; no queue, no Redis."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import JobError
from worker.screening import STAGES, Screener


@dataclass(frozen=True)
class EngineBench:
    """Medians of one engine, warm.

    Attributes:
        model: Name of the model.
        runtime: What runs it, as in a result's `model.runtime`.
        stages_ms: Milliseconds by stage, one picture at a time.
        picture_ms: From file to pictures, one at a time.
        network_pictures_per_s: The network alone, by batch size.
    """

    model: str
    runtime: dict[str, Any]
    stages_ms: dict[str, float]
    picture_ms: float
    network_pictures_per_s: dict[int, float]


def measure(screener: Screener, picture: Path, *, repetitions: int, batch_sizes: Sequence[int]) -> EngineBench:
    """Screen one picture again and again.

    Args:
        screener: The engine, entered and warm.
        picture: A radiograph.
        repetitions: How often.
        batch_sizes: Of the network alone.

    Raises:
        JobError: The picture cannot be screened.
    """
    name = screener.model_names[0]
    stages: list[dict[str, float]] = []
    wall_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repetitions):
            start = time.perf_counter()
            stages.append(screener.screen(str(picture.absolute()), folder).timings_ms)
            wall_ms.append((time.perf_counter() - start) * 1000)
        rates = {}
        for size in batch_sizes:
            batch = [screener.prepare(str(picture.absolute()), folder)] * size
            seconds = []
            for _ in range(repetitions):
                start = time.perf_counter()
                outcomes = screener.classify(batch)
                seconds.append(time.perf_counter() - start)
                if isinstance(outcomes[0], JobError):
                    raise outcomes[0]
            batch[0].close()
            rates[size] = round(size / statistics.median(seconds), 3)
    return EngineBench(
        model=name,
        runtime={key: value for key, value in asdict(screener.runtimes[name]).items() if value is not None},
        stages_ms={stage: round(statistics.median(one[stage] for one in stages), 1) for stage in STAGES},
        picture_ms=round(statistics.median(wall_ms), 1),
        network_pictures_per_s=rates,
    )
