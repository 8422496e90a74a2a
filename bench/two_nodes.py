"""Compares two nodes, each on one half of the cores, with one node on one half."""

import os
import sys
from pathlib import Path
from typing import Any

from bench.material import Material
from bench.running import rates, running
from bench.scale import Scale
from bench.summary import Row, shown
from local.stack import Node, WorkerCommand, worker_command

#: A node, its Redis and its producer want two cores: below this, the second node takes its cores from the first.
CORES_FOR_TWO = 4


def measure(material: Material, scale: Scale) -> dict[str, Any]:
    """Have one node and then two work off the same number of waiting jobs.

    Each node is bound to a half of its own, so that one alone cannot use what the second would bring. On a machine with
    a single core both are bound to that one.

    Returns:
        ``network``; ``halves`` of the cores; ``enough_cores`` for two nodes; ``one`` and ``two`` with the rates; and
        their ``ratio``, first claim to last result.
    """
    network = scale.large_network
    model = material.model(network, input_size=scale.input_size)
    cores = sorted(os.sched_getaffinity(0))
    halves = [half for half in (cores[: len(cores) // 2], cores[len(cores) // 2 :]) if half]
    pictures = material.pictures(scale.picture_px, scale.node_jobs)
    command = _pinned(model, halves)
    found = {}
    for name, nodes in (("one", 1), ("two", 2)):
        with running(material, command, nodes=nodes) as site:
            site.all(pictures[:nodes])
            found[name] = rates([site.all(pictures) for _ in range(scale.waiting_repetitions)])
    return {
        "network": network,
        "jobs": scale.node_jobs,
        "halves": halves,
        "enough_cores": len(cores) >= CORES_FOR_TWO,
        **found,
        "ratio": round(found["two"]["per_s"]["median"] / found["one"]["per_s"]["median"], 3),
    }


def _pinned(model: Path, halves: list[list[int]]) -> WorkerCommand:
    def command(node: Node) -> list[str]:
        half = halves[int(node.name[-1]) % len(halves)]
        return [
            *(sys.executable, "-m", "bench.pinned", ",".join(map(str, half))),
            *worker_command(node, models=[model]),
        ]

    return command


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    cores = len({core for half in found["halves"] for core in half})
    reach = "1.8" if found["enough_cores"] else f"none: {cores} cores are too few for two nodes"
    return [
        (f"{found['network']}, {found['jobs']} waiting, one node on half of the cores", "", ""),
        ("  pictures a second", shown(found["one"]["per_s"], "pictures/s"), ""),
        ("two nodes, each on its half", "", ""),
        ("  pictures a second", shown(found["two"]["per_s"], "pictures/s"), ""),
        ("  ratio", f"{found['ratio']:.2f} times", reach),
    ]
