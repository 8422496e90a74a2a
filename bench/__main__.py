"""`make bench`: measures everything side by side in one run, prints tables, and writes bench-output/bench.json.

It takes a quarter of an hour on two cores; ``--quick`` takes three minutes, with b0 in place of b7 and the slow
reference on a strip of the picture. ``--only`` runs some parts, of which ``--list`` gives the names. What is to be
reached is shown beside each number and nothing is asserted: on a busy machine look at the load before each part.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from bench import (
    feed,
    jobs,
    machine,
    memory,
    network,
    predecessor,
    queue_alone,
    rolling_ball,
    runtimes,
    stages,
    two_nodes,
)
from bench.material import Material
from bench.scale import FULL, QUICK, Scale
from bench.summary import Row
from contract.settings import ENVIRONMENT_PREFIX
from panoramic.errors import PanoramicError
from panoramic.image import load_radiograph

OUTPUT = Path("bench-output") / "bench.json"

#: Characters in a line of the tables where they are not printed on a terminal.
_FILE_WIDTH = 120


@dataclass(frozen=True)
class Part:
    """One thing that is measured.

    Attributes:
        title: Of its table.
        measure: Takes the files, the scale, and the GPU or None.
        rows: Its table's lines.
    """

    title: str
    measure: Callable[[Material, Scale, int | None], dict[str, Any]]
    rows: Callable[[dict[str, Any]], list[Row]]


def _device(gpu: int | None) -> str:
    return "cpu" if gpu is None else f"cuda:{gpu}"


#: In the order in which they run.
PARTS = {
    "rolling_ball": Part(
        "Rolling ball",
        lambda material, scale, _gpu: rolling_ball.measure(material, scale),
        rolling_ball.rows,
    ),
    "stages": Part(
        "Each stage alone",
        lambda material, scale, gpu: stages.measure(material, scale, device=_device(gpu)),
        stages.rows,
    ),
    "runtimes": Part(
        "Runtimes, on the CPU",
        lambda material, scale, _gpu: runtimes.measure(material, scale),
        runtimes.rows,
    ),
    "jobs": Part(
        "Jobs through one node",
        lambda material, scale, gpu: jobs.measure(material, scale, gpu=gpu),
        jobs.rows,
    ),
    "predecessor": Part(
        "The predecessor on the same picture",
        lambda material, scale, gpu: predecessor.measure(material, scale, gpu=gpu),
        predecessor.rows,
    ),
    "two_nodes": Part(
        "One node and two, on the CPU",
        lambda material, scale, _gpu: two_nodes.measure(material, scale),
        two_nodes.rows,
    ),
    "explanations": Part(
        "Explanations, on the CPU",
        lambda _material, scale, _gpu: network.measure(scale),
        network.rows,
    ),
    "queue": Part(
        "The queue alone",
        lambda material, scale, _gpu: queue_alone.measure(material, scale),
        queue_alone.rows,
    ),
    "memory": Part(
        "Memory",
        lambda material, scale, gpu: memory.measure(material, scale, gpu=gpu),
        memory.rows,
    ),
    "feed": Part(
        "Training",
        lambda _material, scale, _gpu: feed.measure(scale),
        feed.rows,
    ),
}


def run(
    scale: Scale,
    *,
    only: Sequence[str] = (),
    gpu: int | None = None,
    radiograph: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure.

    Args:
        scale: How much.
        only: Names of `PARTS`; all of them if it is empty.
        gpu: Index of the GPU that nodes run on; None for the CPU.
        radiograph: A file of the scale's size, in place of a phantom.
        tell: Is told which part begins.

    Returns:
        ``machine``, ``scale``, ``gpu``; and ``parts`` by name, each with ``load_before``, ``took_s`` and what it has
        ``found``.
    """
    report: dict[str, Any] = {"machine": machine.describe(), "scale": asdict(scale), "gpu": gpu, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        material = Material(Path(folder), {scale.picture_px: radiograph} if radiograph else None)
        for name in [name for name in PARTS if not only or name in only]:
            tell(name)
            load_before, began = machine.load(), time.perf_counter()
            found = PARTS[name].measure(material, scale, gpu)
            took_s = round(time.perf_counter() - began, 1)
            report["parts"][name] = {"load_before": load_before, "took_s": took_s, "found": found}
    return report


def tables(report: dict[str, Any]) -> list[Table]:
    """One for each part."""
    return [
        _table(f"{PARTS[name].title} (load before: {part['load_before']})", PARTS[name].rows(part["found"]))
        for name, part in report["parts"].items()
    ]


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table("measured", "median (least to most)", "to reach", title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _parts(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write; takes the command line's arguments if none are given."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three minutes, with b0 and few jobs")
    parser.add_argument("--only", type=_parts, default=[], metavar="NAME[,NAME]", help="some parts")
    parser.add_argument("--list", action="store_true", help="print the names of the parts")
    parser.add_argument("--soak", action="store_true", help="memory over 5,000 jobs, with b0 and tiny pictures")
    parser.add_argument("--gpu", type=int, metavar="N", help="run nodes on this GPU, alone visible to them")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a radiograph in place of the phantom")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"where the JSON goes ({OUTPUT})")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(PARTS))
        return
    # What is measured are the defaults, and not the settings of whoever measures.
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    scale = QUICK if options.quick else FULL
    if options.soak:
        scale = replace(scale, memory_network="efficientnet-b0", memory_jobs=5000, memory_tiny=True)
    if options.picture is not None:
        try:
            height, width = load_radiograph(options.picture).pixels.shape
        except PanoramicError as exc:
            parser.error(str(exc))
        if cv2.imread(str(options.picture), cv2.IMREAD_GRAYSCALE) is None:
            parser.error("OpenCV, and so the predecessor, does not read this file; save it as a PNG or JPEG picture")
        scale = replace(scale, picture_px=(height, width))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = run(
        scale,
        only=options.only,
        gpu=options.gpu,
        radiograph=options.picture,
        tell=lambda name: print(f"measuring {name} …", file=sys.stderr, flush=True),
    )
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    # Into a file or through a pipe there is no width to find out.
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    about = report["machine"]
    console.print(f"{about['processor']}, {about['usable_cores']} cores, {', '.join(about['gpus']) or 'no GPU'}")
    for table in tables(report):
        console.print(table)
    print(options.output)


if __name__ == "__main__":
    main()
