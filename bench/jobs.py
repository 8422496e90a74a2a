"""Times whole jobs through a real node: what the queue adds to the engine's own time, and how memory grows.

``python -m bench.jobs`` takes about a minute with the demonstration's b0, ``--network efficientnet-b7 --jobs 200``
about ten.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import psutil

from bench.network import random_network
from bench.rolling_ball import HEIGHT_PX, WIDTH_PX
from contract.settings import Settings
from local.stack import Node, Stack, worker_command
from panoramic.manifest import ModelDescription
from panoramic.model_file import save_model
from panoramic.network import NETWORKS
from producer.client import Client
from training.phantoms.phantom import draw_phantom, draw_truth


def peak_memory_mib(pid: int) -> float:
    """Most memory that a process has had resident, in MiB (`VmHWM` of Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


def measure(*, network: str = "efficientnet-b0", jobs: int = 30) -> dict[str, Any]:
    """Submit synthetic radiographs one after another to a node with random weights, and wait for each.

    Args:
        network: One of `panoramic.network.NETWORKS`.
        jobs: How many, after three to warm up.

    Returns:
        Medians in milliseconds: ``submit_to_result_ms``, ``engine_ms`` and their difference, ``overhead_ms``; the
        engine's ``stages_ms``; and the ``peak_memory_mib`` of each of the node's processes after a tenth of the
        jobs, after half and after all.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        description = ModelDescription(name="bench", version="0", network=network)
        save_model(model, description, state_dict=random_network(network).state_dict())
        picture = folder / "radiograph.png"
        truth = draw_truth(0, "C1", size_px=(HEIGHT_PX, WIDTH_PX))
        cv2.imwrite(str(picture), draw_phantom(truth))
        settings = Settings(state_dir=folder)
        with Stack(
            folder=folder / "redis",
            nodes=[Node("bench")],
            url_file=settings.local_url_file,
            environment={**os.environ, "OSTEOPAN_STATE_DIR": str(folder)},
            settings=settings,
            worker_command=lambda node: worker_command(node, models=[model]),
        ):
            return _submit(settings, picture, folder / "out", jobs=jobs, network=network)


def _submit(settings: Settings, picture: Path, destination: Path, *, jobs: int, network: str) -> dict[str, Any]:
    marks = {max(1, jobs // 10): "tenth", jobs // 2: "half", jobs: "all"}
    taken: list[tuple[float, dict[str, float]]] = []
    memory: dict[str, dict[str, float]] = {}
    with Client(settings) as client:
        for number in range(-2, jobs + 1):
            began = time.perf_counter()
            job = client.submit({"img_path": str(picture), "destination_path": str(destination)})
            result = client.result(job.job_id, wait_s=300)
            wall_ms = (time.perf_counter() - began) * 1000
            if result.result != "ok":
                raise RuntimeError(f"a job failed: {result.error}")
            for path in (result.saliency_img_path, result.overlay_img_path):
                Path(path).unlink()
            if number > 0:
                taken.append((wall_ms, result.timings_ms))
            if number in marks:
                memory[marks[number]] = _memory_of_node()
    return {
        "network": network,
        "jobs": jobs,
        "submit_to_result_ms": statistics.median(wall for wall, _ in taken),
        "engine_ms": statistics.median(timings["engine"] for _, timings in taken),
        "overhead_ms": statistics.median(wall - timings["engine"] for wall, timings in taken),
        "stages_ms": {
            stage: statistics.median(timings[stage] for _, timings in taken)
            for stage in ("read", "background", "network", "pictures")
        },
        "peak_memory_mib": memory,
    }


def _memory_of_node() -> dict[str, float]:
    """Peak memory by role of the processes below this one."""
    roles = {
        "worker run": "launcher",
        "worker.node": "celery",
        "spawn_main": "engine",
        "decoder_child": "decoder",
        "-server": "redis",
    }
    found = {}
    for process in psutil.Process().children(recursive=True):
        command = " ".join(process.cmdline())
        for part, role in roles.items():
            if part in command:
                found[role] = round(peak_memory_mib(process.pid), 1)
    return found


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="efficientnet-b0")
    parser.add_argument("--jobs", type=int, default=30)
    options = parser.parse_args()
    print(json.dumps(measure(network=options.network, jobs=options.jobs)))


if __name__ == "__main__":
    main()
