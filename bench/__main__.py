"""`make bench`: measures everything side by side in one run, prints a table, and writes bench-output/bench.json.

It takes about a quarter of an hour; ``--quick`` leaves out what is slow (the whole reference, b7, many jobs).
"""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench import jobs, network, rolling_ball

OUTPUT = Path("bench-output") / "bench.json"


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "load_before": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table: what, how much, and what was to be reached."""
    ball, net, job, memory = (results[name] for name in ("rolling_ball", "network", "job", "memory"))
    whole = "whole" if ball["reference_rows"] == ball["shape"][0] else "scaled from a strip"
    engine = {name: f"{value['engine']:.0f} MiB" for name, value in memory["peak_memory_mib"].items()}
    return [
        (f"Rolling ball, reference package ({whole})", f"{ball['reference_s']:.1f} s", ""),
        ("Rolling ball, ours, warm", f"{ball['median_s'] * 1000:.0f} ms", ""),
        ("  ratio", f"{ball['ratio_median']} times", "200 times"),
        ("  equal in every pixel compared", str(ball["equal"]), "True"),
        (f"{net['network']} forward", f"{net['forward_s'] * 1000:.0f} ms", ""),
        ("  Grad-CAM on top", f"{net['closed_form_share_percent']:.2f} %", "3 %"),
        ("  forward + backward, predecessor's way", f"{net['backward_frozen_s'] * 1000:.0f} ms", ""),
        ("  ratio to ours with its map", f"{net['ratio_frozen']:.1f} times", "3 times"),
        (f"One job, {job['network']}, submit to result", f"{job['submit_to_result_ms']:.0f} ms", ""),
        ("  of which the engine", f"{job['engine_ms']:.0f} ms", ""),
        ("  of which everything else", f"{job['overhead_ms']:.1f} ms", "50 ms"),
        *((f"    stage {stage}", f"{value:.0f} ms", "") for stage, value in job["stages_ms"].items()),
        (f"Peak memory of the engine, {memory['network']}, {memory['jobs']} jobs", engine["all"], "constant"),
        ("  after a tenth and after half of them", f"{engine['tenth']}, {engine['half']}", ""),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes, with b0 and few jobs")
    quick = parser.parse_args().quick
    large = "efficientnet-b0" if quick else "efficientnet-b7"
    results: dict[str, Any] = {"machine": describe_machine()}
    steps = {
        "rolling_ball": lambda: rolling_ball.measure(whole=not quick),
        "network": lambda: network.measure(network=large, repetitions=3),
        "job": lambda: jobs.measure(network="efficientnet-b0", jobs=10 if quick else 30),
        "memory": lambda: jobs.measure(network=large, jobs=20 if quick else 200),
    }
    for name, step in steps.items():
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        results[name] = step()
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    machine = results["machine"]
    table = Table("measured", "value", "to reach", title=f"{machine['processor']}, {machine['cores']} cores")
    for row in rows(results):
        table.add_row(*row)
    Console().print(table)
    print(f"{OUTPUT}")


if __name__ == "__main__":
    main()
