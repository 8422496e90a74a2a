"""Stand-ins for the other roles, so that `local` can be tested without them. Run as a program:

    stand_ins.py worker NAME BEHAVIOUR     serves the ledger without Celery and without looking at any radiograph
    stand_ins.py draw FILE                 writes a few bytes that are no picture
    stand_ins.py submit FILE DESTINATION   submits to the ledger, waits, prints the result as JSON
    stand_ins.py demo DESTINATION BEHAVIOUR [IMAGE]   `osteopan demo` with these stand-ins
    stand_ins.py up BEHAVIOUR              `osteopan up` with this worker

The stand-in worker has a child of its own, as a real one has. BEHAVIOUR of the worker: `work`, `fail` (every job
fails), `die` (ends before it is ready), `mute` (never becomes ready), `hang` (takes a job and does not finish it).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contract.jobs import JobResult
    from contract.records import Claim
    from local.progress import Progress
    from local.stack import Node

DIE_WITH_PARENT = [str(Path(__file__).resolve().parents[2] / "local" / "die_with_parent.py")]
SELF = [sys.executable, str(Path(__file__).resolve())]


def worker_command(node: Node, *, behaviour: str = "work") -> list[str]:
    return [*SELF, "worker", node.name, behaviour]


def work(name: str, behaviour: str) -> None:
    print(f"stand-in {name} starts", file=sys.stderr, flush=True)
    if behaviour == "die":
        sys.exit("stand-in: there is no such model")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    subprocess.Popen([sys.executable, "-I", "-S", *DIE_WITH_PARENT, str(os.getpid()), "sleep", "1000"])
    if behaviour == "mute":
        time.sleep(1000)
    from contract.connection import connect, translated_errors
    from contract.errors import BrokerUnavailableError
    from contract.ledger import Ledger
    from contract.records import Claim
    from contract.settings import Settings, load_settings

    settings = load_settings(Settings)
    ledger = Ledger(connect(settings), settings)
    while True:
        try:
            with translated_errors():
                ledger.client.set(ledger.keys.ready(name), "stand-in", ex=5)
                waiting = ledger.client.zrange(ledger.keys.queued, 0, 0)
            for job_id in waiting:
                if isinstance(claim := ledger.claim(job_id, worker=name), Claim):
                    if behaviour == "hang":
                        time.sleep(1000)
                    ledger.finish(claim, answer(claim, name, fails=behaviour == "fail"))
        except BrokerUnavailableError:
            print("stand-in: Redis is away", file=sys.stderr, flush=True)
        time.sleep(0.05)


def answer(claim: Claim, name: str, *, fails: bool) -> JobResult:
    from contract.errors import ErrorCode
    from contract.jobs import ErrorInfo, JobResult

    common = {
        "job_id": claim.job_id,
        "attempts": claim.attempts,
        "submitted_at": claim.submitted_at,
        "finished_at": datetime.now(UTC),
        "worker": name,
    }
    if fails:
        error = ErrorInfo(code=ErrorCode.NOT_A_RADIOGRAPH, message="the stand-in was told to fail")
        return JobResult(result="fail", error=error, **common)
    folder = Path(claim.request.destination_path)
    pictures = [folder / f"stand-in_{kind}.png" for kind in ("saliency", "overlay")]
    for picture in pictures:
        picture.write_bytes(b"no picture")
    return JobResult(
        result="ok",
        diagnosis="Stand-in",
        saliency_img_path=str(pictures[0]),
        overlay_img_path=str(pictures[1]),
        probability=0.25,
        threshold=0.5,
        warnings=("demonstration_model",),
        **common,
    )


def submit(image: str, destination: str) -> None:
    from contract.connection import connect
    from contract.jobs import JobRequest
    from contract.ledger import Ledger
    from contract.settings import Settings, load_settings

    print("environment:", *sorted(name for name in os.environ if name.startswith("OSTEOPAN_")), file=sys.stderr)
    settings = load_settings(Settings)
    ledger = Ledger(connect(settings), settings)
    job_id = ledger.submit(JobRequest(img_path=image, destination_path=destination)).job_id
    while (result := ledger.result(job_id)) is None:
        time.sleep(0.05)
    print(result.model_dump_json())


def as_command(run: Callable[[Progress], int], *, stopping_is_fine: bool) -> None:
    """Run as the command line does, with its signals and its exit codes."""
    import typer
    from rich.console import Console

    from local import cli
    from local.progress import Progress

    app = typer.Typer()

    @app.command()
    def command() -> None:
        progress = Progress(Console(stderr=True))
        with cli._ends_in_words(progress, stopping_is_fine=stopping_is_fine):
            raise typer.Exit(run(progress))

    app([])


def run_demo(destination: str, behaviour: str, image: Path | None, progress: Progress) -> int:
    from local import demo

    commands = demo.Commands(
        worker=partial(worker_command, behaviour=behaviour),
        draw=lambda image: [*SELF, "draw", str(image)],
        submit=lambda image, destination: [*SELF, "submit", str(image), str(destination)],
    )
    result = demo.run_demo(image, Path(destination), environment=os.environ, progress=progress, commands=commands)
    demo.summarise(result, progress)
    print(result.model_dump_json())
    return demo.exit_code_of(result)


def run_up(behaviour: str, progress: Progress) -> int:
    from contract.settings import Settings, load_settings
    from local import up
    from local.stack import Node

    up.run_up(
        [Node("one"), Node("two")],
        settings=load_settings(Settings),
        environment=os.environ,
        progress=progress,
        worker_command=partial(worker_command, behaviour=behaviour),
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", name, behaviour]:
            work(name, behaviour)
        case ["draw", file]:
            Path(file).write_bytes(b"no picture either")
        case ["submit", image, destination]:
            submit(image, destination)
        case ["demo", destination, behaviour, *images]:
            image = Path(images[0]) if images else None
            as_command(partial(run_demo, destination, behaviour, image), stopping_is_fine=False)
        case ["up", behaviour]:
            as_command(partial(run_up, behaviour), stopping_is_fine=True)
        case _:
            sys.exit(__doc__)
