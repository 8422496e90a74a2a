"""The command `worker`: run a node on the queue, or answer on the console without one."""

from __future__ import annotations

import io
import os
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from contract.errors import OsteopanError
from contract.jobs import RESEARCH_USE
from contract.settings import load_settings
from panoramic.view import View

if TYPE_CHECKING:
    from worker.metrics_endpoint import MetricsEndpoint
    from worker.settings import WorkerSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Screens panoramic radiographs for signs of osteoporosis. {RESEARCH_USE}",
)


class ExitCode(IntEnum):
    """How `worker` ends."""

    OK = 0
    """Asked to stop, or end of file on the console."""
    NOT_STARTED = 1
    """The node could not start; its log says why."""
    USAGE = 2
    """The command line or a setting cannot be used."""
    MODEL_UNUSABLE = 3
    """`check-model`: the file cannot be used."""


ModelOption = Annotated[
    list[Path] | None,
    typer.Option("--model", help="Model file (.safetensors, or a predecessor's .pth). Repeat to serve several."),
]
ViewOption = Annotated[
    View | None, typer.Option(help="What a predecessor's .pth was trained on; a .safetensors says so itself.")
]


@app.command(
    epilog="Examples:  worker run --cpu   ·   worker run --gpu 0 --model osteopan.safetensors   ·   "
    "OSTEOPAN_REDIS_URL=redis://:secret@host:6379/0 worker run --gpu 1"
)
def run(
    gpu: Annotated[int | None, typer.Option(min=0, help="Index of the GPU that this node is pinned to.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the node; unique on its broker.")] = None,
    model: ModelOption = None,
    view: ViewOption = None,
    log_format: Annotated[str | None, typer.Option(help="`console` or `json`.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="TCP port of 127.0.0.1 for Prometheus and health checks; none without it.")
    ] = None,
) -> None:
    """Run a node: a Celery worker pinned to one device, its models loaded and warm before it says that it is ready.

    Every setting can also be given as an environment variable; docs/contract.md lists them. Ctrl-C or SIGTERM lets the
    running job end first; a second one does not.
    """
    if (gpu is None) != cpu:
        _fail("give either --gpu N or --cpu", ExitCode.USAGE)
    device = "cpu" if gpu is None else f"gpu{gpu}"
    # PyTorch stays out of this process: it only watches.
    from worker.launcher import Launcher
    from worker.logs import configure_logs
    from worker.settings import WorkerSettings

    try:
        settings = load_settings(
            WorkerSettings,
            device="cpu" if gpu is None else "cuda:0",
            node=name or os.environ.get("OSTEOPAN_NODE") or f"{device}@{socket.gethostname()}",
            model=None if model is None else tuple(path.absolute() for path in model),
            view=view,
            log_format=log_format,
            metrics_port=metrics_port,
        )
        _check_files(settings.model)
        configure_logs(settings)
        with _metrics_endpoint(settings) as metrics:
            status = Launcher(settings, gpu=gpu, metrics=metrics).run()
    except OsteopanError as error:
        _fail(str(error), ExitCode.USAGE)
    raise typer.Exit(ExitCode.OK if status == 0 else ExitCode.NOT_STARTED)


@app.command(
    epilog="""Example:  echo '{"img_path": "a.jpg", "destination_path": "out"}' | worker console model.safetensors"""
)
def console(
    model: Annotated[Path, typer.Argument(help="Model file: .safetensors, or a predecessor's .pth.")],
    view: ViewOption = None,
    colormap: Annotated[str | None, typer.Option(help="`inferno`, or the predecessor's `hot`.")] = None,
) -> None:
    """Answer requests on standard input, one JSON object a line, with no queue: the predecessor's protocol.

    Says `Loaded pretrained weights` on standard error when it is ready, and there, too, why an answer is `fail`.
    """
    from worker.console import serve
    from worker.screening import Screener
    from worker.settings import WorkerSettings

    try:
        _check_files((model,))
        settings = load_settings(WorkerSettings, model=(model,), view=view, colormap=colormap)
        with Screener(settings) as screener:
            serve(screener, sys.stdin.buffer, io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8"), sys.stderr)
    except OsteopanError as error:
        _fail(str(error), ExitCode.USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.OK) from None


@app.command(epilog="Example:  training phantom a.png && worker bench a.png --repetitions 5")
def bench(
    picture: Annotated[Path, typer.Argument(help="A radiograph.")],
    model: ModelOption = None,
    view: ViewOption = None,
    device: Annotated[str | None, typer.Option(help="`cpu`, or `cuda:0`.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each thing is done; the median is shown.")] = 5,
    batch_sizes: Annotated[str, typer.Option(help="Of the network alone, with commas between them.")] = "1,2,4",
) -> None:
    """Measure this machine's engine with one picture: which runtime was chosen, and how long each stage takes. JSON."""
    import json
    from dataclasses import asdict

    from worker.bench import measure
    from worker.screening import Screener
    from worker.settings import WorkerSettings

    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        _fail(f"batch sizes are {batch_sizes!r}, but must be numbers with commas between them", ExitCode.USAGE)
    try:
        chosen = None if model is None else tuple(path.absolute() for path in model)
        settings = load_settings(WorkerSettings, model=chosen, view=view, device=device)
        _check_files(settings.model)
        with Screener(settings) as screener:
            screener.warm_up()
            found = measure(screener, picture, repetitions=repetitions, batch_sizes=sizes)
    except OsteopanError as error:
        _fail(str(error), ExitCode.USAGE)
    print(json.dumps(asdict(found), indent=2))


@app.command(epilog="Example:  worker check-model osteopan.safetensors")
def check_model(
    model: Annotated[Path | None, typer.Argument(help="Model file; else the one that ships.")] = None,
) -> None:
    """Read a model file as a node would, its digest included, and say what it is.

    Exit codes: 0 it can be used · 3 it cannot, standard error says why
    """
    from panoramic.demonstration import demonstration_model
    from panoramic.errors import PanoramicError
    from panoramic.model_file import load_model

    path = model or demonstration_model()
    try:
        manifest = load_model(path).manifest
    except PanoramicError as error:
        print(f"worker: {path}: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.MODEL_UNUSABLE) from None
    print(f"{manifest.name} {manifest.version}, SHA-256 {manifest.sha256[:12]}…")


def _metrics_endpoint(settings: WorkerSettings) -> AbstractContextManager[MetricsEndpoint | None]:
    if settings.metrics_port is None:
        return nullcontext()
    from worker.metrics_endpoint import MetricsEndpoint

    return MetricsEndpoint(settings, settings.metrics_port)


def _check_files(models: tuple[Path, ...]) -> None:
    for path in models:
        if not path.is_file():
            _fail(f"there is no model file {path}; give a .safetensors file, or a predecessor's .pth", ExitCode.USAGE)


def _fail(message: str, code: ExitCode) -> NoReturn:
    print(f"worker: {message}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the command `worker`."""
    app()
