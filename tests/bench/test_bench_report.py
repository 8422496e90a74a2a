"""`make bench` measures, and its report has the shape that tables and readers rely on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from bench.__main__ import PARTS, main, run, tables
from bench.scale import QUICK
from bench.summary import shown, spread


def assert_spread(found: dict[str, float], *, runs: int) -> None:
    assert set(found) == {"median", "min", "max", "runs"}
    assert 0 < found["min"] <= found["median"] <= found["max"]
    assert found["runs"] == runs


def test_the_queue_is_measured_and_reported() -> None:
    told: list[str] = []
    scale = replace(QUICK, queue_jobs=20, queue_single_jobs=3)

    report: dict[str, Any] = json.loads(json.dumps(run(scale, only=["queue"], tell=told.append)))

    assert told == ["queue"]
    assert set(report) == {"machine", "scale", "gpu", "parts"}
    assert report["machine"]["usable_cores"] >= 1
    assert report["machine"]["processor"]
    assert set(report["parts"]) == {"queue"}
    part = report["parts"]["queue"]
    assert part["took_s"] > 0
    found = part["found"]
    assert found["jobs"] == 20
    assert_spread(found["throughput"]["per_s"], runs=1)
    assert_spread(found["single_ms"], runs=3)
    assert set(found["cpu_ms_per_job"]) == {"redis", "celery", "engine"}

    console = Console(record=True, width=200)
    for table in tables(report):
        console.print(table)
    text = console.export_text()
    assert PARTS["queue"].title in text
    assert "500 jobs/s" in text


def test_explanations_are_measured_with_their_ratios() -> None:
    scale = replace(QUICK, input_size=(64, 136), repetitions=1)

    found = run(scale, only=["explanations"])["parts"]["explanations"]["found"]

    assert found["network"] == "efficientnet-b0"
    with_map_ms = found["library_forward_ms"]["median"] + found["closed_form_ms"]["median"]
    for name, ratio in found["ratios"].items():
        assert_spread(found[name], runs=1)
        assert abs(ratio - found[name]["median"] / with_map_ms) < 0.01


def test_a_spread_keeps_the_extremes() -> None:
    found = spread([612.4, 598.1, 640.0])
    assert found == {"median": 612.4, "min": 598.1, "max": 640.0, "runs": 3}
    assert shown(found, "ms") == "612 ms (598 to 640)"
    assert shown(spread([0.01234]), "s") == "0.012 s"


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--only", "queue,nonsense"])
    assert "no part nonsense; there are rolling_ball" in capsys.readouterr().err
