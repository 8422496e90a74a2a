"""Watches the memory of a node over many jobs: what grows with them would end it some day."""

from typing import Any

from bench.material import Material
from bench.processes import by_role, memory_mib
from bench.running import running
from bench.scale import Scale
from bench.summary import Row
from local.stack import Node, worker_command

#: After which shares of the jobs the memory is read.
MARKS = (0.1, 0.5, 1.0)

#: Jobs that wait at a time, so that the node works as it does under load.
_WAITING = 10

#: For a great many jobs: (height, width) of pictures that pass for radiographs, and of the network's input.
TINY_PICTURE_PX = (121, 292)
TINY_INPUT_SIZE = (64, 136)


def measure(material: Material, scale: Scale, *, gpu: int | None = None) -> dict[str, Any]:
    """Run jobs through one node, ten at a time.

    Returns:
        ``network``, ``jobs``, ``picture_px``, ``input_size``; ``resident_mib`` and ``peak_mib``: for each of `MARKS`,
        in percent, by role of the process; ``engine_growth_percent`` of the resident memory from the first mark to the
        last.
    """
    picture_px, input_size = scale.picture_px, scale.input_size
    if scale.memory_tiny:
        picture_px, input_size = TINY_PICTURE_PX, TINY_INPUT_SIZE
    model = material.model(scale.memory_network, input_size=input_size)
    pictures = material.pictures(picture_px, _WAITING)
    marks = {max(1, round(share * scale.memory_jobs)): f"{100 * share:.0f}" for share in MARKS}
    resident: dict[str, dict[str, float]] = {}
    peak: dict[str, dict[str, float]] = {}

    def command(node: Node) -> list[str]:
        return worker_command(node, models=[model])

    with running(material, command, gpu=gpu) as site:
        done = 0
        while done < scale.memory_jobs:
            next_mark = min(mark for mark in marks if mark > done)
            count = min(_WAITING, next_mark - done)
            site.all(pictures[:count])
            done += count
            if done in marks:
                found = {role: memory_mib(pid) for role, pid in by_role().items()}
                resident[marks[done]] = {role: now for role, (now, _) in found.items()}
                peak[marks[done]] = {role: most for role, (_, most) in found.items()}
    first, *_, last = (of_mark["engine"] for of_mark in resident.values())
    return {
        "network": scale.memory_network,
        "jobs": scale.memory_jobs,
        "picture_px": picture_px,
        "input_size": input_size,
        "resident_mib": resident,
        "peak_mib": peak,
        "engine_growth_percent": round(100 * (last / first - 1), 2),
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    return [
        (f"{found['network']}, {found['jobs']} jobs", "", ""),
        *(
            (f"  {role}, resident after {', '.join(f'{mark} %' for mark in found['resident_mib'])}", values, reach)
            for role, values, reach in _by_role(found["resident_mib"])
        ),
        ("  engine, growth from the first to the last", f"{found['engine_growth_percent']:+.1f} %", "constant"),
        ("  engine, peak", f"{found['peak_mib']['100']['engine']:.0f} MiB", ""),
    ]


def _by_role(marks: dict[str, dict[str, float]]) -> list[Row]:
    return [
        (role, ", ".join(f"{of_mark[role]:.0f}" for of_mark in marks.values()) + " MiB", "")
        for role in marks["100"]
        if all(role in of_mark for of_mark in marks.values())
    ]
