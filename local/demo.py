"""`osteopan demo`: one radiograph through the whole system, in a temporary folder of which nothing stays."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from contract.jobs import RESEARCH_USE, JobResult
from contract.settings import ENVIRONMENT_PREFIX, Settings
from local.errors import ExitCode, StartError
from local.processes import Child
from local.progress import Progress
from local.stack import Node, Stack, WorkerCommand, child_environment, describe_exit, worker_command

#: Name of the picture that is drawn when none is given.
SYNTHETIC_IMAGE_NAME = "synthetic-radiograph.png"

#: Warning of a result of the model that ships.
WARNING_DEMONSTRATION = "demonstration_model"

#: Who ends the demonstration does not want its job any more.
WORKER_PATIENCE_S = 3.0

#: The demonstration must not put its job into a hospital's queue, nor fail by a setting that is meant for others;
#: it may use the model that is configured, and the folder where exported networks lie.
INHERITED_SETTINGS = frozenset({f"{ENVIRONMENT_PREFIX}STATE_DIR", f"{ENVIRONMENT_PREFIX}MODEL"})


def draw_command(image: Path) -> list[str]:
    """How a synthetic radiograph is drawn."""
    return [sys.executable, "-m", "training", "phantom", str(image), "--seed", "0", "--class", "C3"]


def submit_command(image: Path, destination: Path) -> list[str]:
    """How a job is submitted and followed to its end; writes the result as JSON to standard output."""
    return [
        *(sys.executable, "-m", "producer", "submit", str(image)),
        *("--destination", str(destination), "--wait", "--json"),
    ]


@dataclass(frozen=True)
class Commands:
    """How the other roles are started.

    Attributes:
        worker: From a node.
        draw: From the path of the picture to be drawn.
        submit: From picture and destination.
    """

    worker: WorkerCommand = worker_command
    draw: Callable[[Path], list[str]] = draw_command
    submit: Callable[[Path, Path], list[str]] = submit_command


def demo_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment without osteopan's settings, save those in `INHERITED_SETTINGS`."""
    return {
        name: value
        for name, value in inherited.items()
        if not name.upper().startswith(ENVIRONMENT_PREFIX) or name.upper() in INHERITED_SETTINGS
    }


def run_demo(
    image: Path | None,
    destination: Path,
    *,
    environment: Mapping[str, str],
    progress: Progress,
    keep_logs: bool = False,
    commands: Commands | None = None,
) -> JobResult:
    """Screen one radiograph with an embedded Redis and one worker on the CPU.

    Args:
        image: The radiograph; None has one drawn.
        destination: An existing folder for the pictures.
        environment: This program's environment.
        progress: Shows the steps.
        keep_logs: Leave the temporary folder, and say where it is.
        commands: How the other roles are started.

    Returns:
        The job's result, which may be a failure.

    Raises:
        StartError: A step could not be done.
    """
    commands = commands or Commands()
    destination = destination.absolute()
    with ExitStack() as opened:
        # A short name: in a long TMPDIR the sockets that multiprocessing makes below it could not be named.
        folder = Path(tempfile.mkdtemp(prefix="osteopan-"))
        # What an ended worker leaves in its folder for temporary files goes with ours.
        environment = {**demo_environment(environment), "TMPDIR": str(folder)}
        if keep_logs:
            opened.callback(progress.say, f"Logs are kept in {folder}")
        else:
            opened.callback(shutil.rmtree, folder, ignore_errors=True)

        def keep_line(name: str, line: str) -> None:
            with (folder / f"{name}.log").open("a", encoding="utf-8") as log:
                log.write(line + "\n")

        url_file = folder / "redis.url"
        if image is None:
            drawn = folder / SYNTHETIC_IMAGE_NAME
            with (
                progress.step("Drawing a synthetic radiograph"),
                Child(
                    "drawing",
                    commands.draw(drawn),
                    environment=child_environment(environment, url_file),
                    on_log=lambda line: keep_line("drawing", line),
                ) as drawing,
            ):
                code = drawing.wait()
                if code != 0 or not drawn.is_file():
                    raise StartError(
                        f"no synthetic radiograph was drawn: the program ended {describe_exit(code)}", log=drawing.tail
                    )
            # The demonstration before this one may have left the same picture there.
            image = Path(shutil.move(drawn, destination / SYNTHETIC_IMAGE_NAME))
        stack = opened.enter_context(
            Stack(
                folder / "redis",
                [Node("demo")],
                url_file=url_file,
                environment=environment,
                # Not from the environment: whatever stands there is meant for another Redis.
                settings=Settings.model_construct(),
                worker_command=commands.worker,
                patience_s=WORKER_PATIENCE_S,
                step=progress.step,
                on_log=keep_line,
            )
        )
        # The producer shows how the job gets on; a spinner of ours would draw over it.
        progress.say("Screening the radiograph …")
        return _screen(stack, commands.submit(image.absolute(), destination), answer_file=folder / "result.json")


def _screen(stack: Stack, command: list[str], *, answer_file: Path) -> JobResult:
    with (
        answer_file.open("wb") as answer,
        Child("producer", command, environment=stack.child_environment, stdout=answer) as producer,
    ):
        code = producer.wait(while_waiting=stack.raise_if_ended)
    lines = answer_file.read_bytes().splitlines()
    try:
        return JobResult.model_validate_json(lines[-1] if lines else b"")
    except ValidationError:
        raise StartError(f"`producer submit` ended {describe_exit(code)} and gave no result") from None


def exit_code_of(result: JobResult) -> ExitCode:
    """How the demonstration ends after this result."""
    return ExitCode.OK if result.error is None else ExitCode.FAILED


def summarise(result: JobResult, progress: Progress) -> None:
    """Show a result to a person."""
    progress.say()
    if result.error is not None:
        progress.fault(f"the job failed ({result.error.code}): {result.error.message}")
    else:
        rows = [("Diagnosis", result.diagnosis)]
        if result.probability is not None:
            threshold = "" if result.threshold is None else f" (osteoporosis is diagnosed from {result.threshold:.2f})"
            rows.append(("Probability", f"{result.probability:.2f}{threshold}"))
        rows += [("Saliency map", result.saliency_img_path), ("Overlay", result.overlay_img_path)]
        rows += [("Warnings", ", ".join(result.warnings))] if result.warnings else []
        for label, value in rows:
            progress.say(f"  {label:<14}{value}")
    if WARNING_DEMONSTRATION in result.warnings:
        progress.say(
            "The model was trained on synthetic radiographs alone. This shows that the system works, "
            "and says nothing about the radiograph.",
            style="yellow",
        )
    progress.say(RESEARCH_USE, style="yellow")
