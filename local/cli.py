"""The command `osteopan`: everything on one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from contract.errors import OsteopanError, SettingsError
from contract.jobs import RESEARCH_USE
from contract.settings import Settings, load_settings
from local import demo as demonstration
from local import doctor as examination
from local.errors import ExitCode, StartError, Stopped
from local.flower import AUTH_FILE_VARIABLE, DEFAULT_ADDRESS, DEFAULT_PORT, run_flower
from local.processes import signals_raise_stopped
from local.progress import Progress
from local.stack import worker_command
from local.up import default_nodes, run_up

PortOption = Annotated[int, typer.Option(min=1, max=65535, help="Port at which Flower listens.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Everything on one machine: an embedded Redis, workers, a demonstration, a check-up. {RESEARCH_USE}",
    epilog="Examples:\n\nosteopan demo\n\nosteopan demo picture.jpg --destination pictures\n\n"
    "osteopan up --workers 2\n\nosteopan doctor",
)


def main() -> None:
    """Entry point of the command `osteopan`."""
    app()


@app.command(
    epilog="Examples:\n\nosteopan demo\n\nosteopan demo picture.jpg --destination pictures\n\n"
    "osteopan demo 2>steps.txt >result.json"
)
def demo(
    image: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, readable=True, help="A radiograph; else one is drawn."),
    ] = None,
    destination: Annotated[Path, typer.Option(file_okay=False, help="Folder for the pictures.")] = Path("demo-output"),
    keep_logs: Annotated[bool, typer.Option("--keep-logs", help="Keep the logs of Redis and worker.")] = False,
) -> None:
    """Screen one radiograph, with nothing running before and nothing left running after.

    Standard output holds one line: the result as JSON.

    Exit codes:
    0 the job is done
    1 the job failed; its result says why
    2 the command line is wrong; nothing was started
    3 something did not start, or ended too early
    130 Ctrl-C
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(
            f"{destination} cannot be made: {error.strerror}", param_hint="--destination"
        ) from None
    progress = Progress(Console(stderr=True))
    with _ends_in_words(progress):
        result = demonstration.run_demo(
            image, destination, environment=os.environ, progress=progress, keep_logs=keep_logs
        )
        demonstration.summarise(result, progress)
        print(result.model_dump_json(), flush=True)
        raise typer.Exit(demonstration.exit_code_of(result))


@app.command(
    epilog="Examples:\n\nosteopan up\n\nosteopan up --gpu 0 --gpu 1 --model osteopan.safetensors\n\n"
    "osteopan up --flower --metrics-port 9480"
)
def up(
    workers: Annotated[int, typer.Option(min=1, help="Workers for each GPU, or for the CPU without --gpu.")] = 1,
    gpu: Annotated[list[int] | None, typer.Option(min=0, help="Index of a GPU. Repeat to use several.")] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Model file, as for `worker run`. Repeat to serve several."),
    ] = None,
    flower: Annotated[bool, typer.Option("--flower", help="Run Flower, the monitor, as well.")] = False,
    flower_port: PortOption = DEFAULT_PORT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="OSTEOPAN_METRICS_PORT",
            help="Port of 127.0.0.1 where the first worker answers Prometheus; each further one takes the next port.",
        ),
    ] = None,
) -> None:
    """Run Redis and workers until Ctrl-C or SIGTERM; jobs and results outlast a restart.

    With OSTEOPAN_REDIS_URL or OSTEOPAN_REDIS_URL_FILE set,
    the workers join that Redis and none is started.

    Exit codes:
    0 stopped by Ctrl-C or SIGTERM
    2 the command line is wrong; nothing was started
    3 something did not start
    """
    progress = Progress(Console(stderr=True))
    nodes = default_nodes(gpu or (), workers=workers)
    ports = {} if metrics_port is None else {node.name: metrics_port + i for i, node in enumerate(nodes)}
    with _ends_in_words(progress, stopping_is_fine=True):
        run_up(
            nodes,
            settings=load_settings(Settings),
            environment=os.environ,
            progress=progress,
            worker_command=partial(
                worker_command, models=[path.absolute() for path in model or ()], metrics_ports=ports
            ),
            flower_port=flower_port if flower else None,
        )


@app.command(epilog="Example:\n\nosteopan flower --auth-file flower.auth")
def flower(
    auth_file: Annotated[
        Path | None,
        typer.Option(envvar=AUTH_FILE_VARIABLE, help="File with `user:password`, mode 0600. Flower needs one."),
    ] = None,
    address: Annotated[str, typer.Option(help="Where to listen.")] = DEFAULT_ADDRESS,
    port: PortOption = DEFAULT_PORT,
) -> None:
    """Run Flower, Celery's web monitor, read-only, for the Redis of OSTEOPAN_REDIS_URL or of `osteopan up`.

    Its pages ask for the password; its /metrics and /healthcheck do not, so leave it on loopback or put a proxy before.

    Exit codes:
    0 stopped by Ctrl-C or SIGTERM
    3 there is no usable password, or something did not start
    """
    progress = Progress(Console(stderr=True))
    try:
        run_flower(load_settings(Settings), auth_file=auth_file, address=address, port=port)
    except OsteopanError as error:
        progress.fault(str(error))
        raise typer.Exit(ExitCode.NOT_STARTED) from None


@app.command(epilog="Example:\n\nosteopan doctor")
def doctor() -> None:
    """Say what is wrong: Redis, its durability, the workers, the queue, the model files, the disks, the clocks.

    Exit codes:
    0 nothing is wrong, though there may be warnings
    1 something is wrong
    """
    progress = Progress(Console(stderr=True))
    with _ends_in_words(progress):
        try:
            settings = load_settings(Settings)
            findings = examination.examine(
                settings,
                folders=[
                    settings.state_dir,
                    *(examination.configured_paths("OUTPUT_ROOTS", os.environ) or [Path.cwd()]),
                ],
                models=examination.configured_paths("MODEL", os.environ),
            )
        except SettingsError as error:
            findings = [examination.bad_settings(error)]
        examination.show(findings, Console())
        wrong = any(finding.verdict is examination.Verdict.FAIL for finding in findings)
        raise typer.Exit(ExitCode.FAILED if wrong else ExitCode.OK)


@contextmanager
def _ends_in_words(progress: Progress, *, stopping_is_fine: bool = False) -> Iterator[None]:
    """Turn what can be foreseen into a sentence and an exit code; signals end the block with its clean-up."""
    try:
        with signals_raise_stopped():
            yield
    except Stopped as stopped:
        if stopping_is_fine and stopped.signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            raise typer.Exit(ExitCode.OK) from None
        progress.say("Stopped; nothing is left running.")
        raise typer.Exit(stopped.exit_code) from None
    except StartError as error:
        progress.fault(str(error), log=error.log)
        raise typer.Exit(ExitCode.NOT_STARTED) from None
    except OsteopanError as error:
        progress.fault(str(error))
        raise typer.Exit(ExitCode.NOT_STARTED) from None
    except OSError as error:
        # The disk is full, a folder belongs to someone else, …
        progress.fault(f"{error.filename or 'the system'}: {error.strerror or error}")
        raise typer.Exit(ExitCode.NOT_STARTED) from None
