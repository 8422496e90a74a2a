"""The command `producer`: submit radiographs, follow and manage their jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import InvalidRequestError, OsteopanError, ResultTimeoutError
from contract.jobs import RESEARCH_USE, JobState, Priority
from producer import cli_dead
from producer.batch import Batch, requests_for
from producer.cli_options import (
    CONTEXT,
    JsonOption,
    TimeoutOption,
    WaitOption,
    checked_timeout_s,
    client_of,
    examples,
)
from producer.exit_codes import ExitCode, exit_code_of
from producer.output import OutputClosedError, emit, note
from producer.requests_from import RequestReader, pictures_named

if TYPE_CHECKING:
    from producer.client import Client
    from producer.waiting import Wait

DEFAULT_DESTINATION = Path("osteopan-output")
STDIN = "-"

_EXIT_CODES = "Exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)

app = typer.Typer(
    help=f"Submit dental panoramic radiographs to the workers, and read the results. {RESEARCH_USE}",
    epilog="\b\n"
    + _EXIT_CODES
    + "\n\n"
    + examples(
        "producer submit radiograph.png --wait",
        "producer submit folder/ --recursive --destination results/ --wait --json",
        "producer status",
        "producer follow",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
app.add_typer(cli_dead.app, name="dead")


def _show_version(wanted: bool) -> None:
    if wanted:
        emit(f"osteopan {version('osteopan')}")
        raise typer.Exit


@app.callback()
def _options(
    redis_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where Redis is; by default $OSTEOPAN_REDIS_URL, else what stands in the file "
            "$OSTEOPAN_REDIS_URL_FILE, else the Redis of `osteopan up`. "
            "A URL given here, password included, shows in the list of processes: the variables do not.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog=examples(
        "producer submit radiograph.png --wait",
        "producer submit folder/ --recursive --destination results/ --wait --json > results.jsonl",
        "producer submit urgent.dcm --priority urgent --job-id case-0001",
        """echo '{"img_path": "a.png", "destination_path": "out"}' | producer submit - --wait --json""",
    )
)
def submit(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="A picture; a folder, for the pictures in it (.jpg .jpeg .png .tif .tiff .bmp .dcm, and DICOM files "
            "without an ending); or - for requests on standard input, a JSON object a line.",
        ),
    ],
    destination: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Folder for the results' pictures. Default: ./{DEFAULT_DESTINATION}"),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders' sub-folders as well.")] = False,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="One of the workers' models; else their first.")
    ] = None,
    priority: Annotated[
        Priority | None, typer.Option(help="Urgent jobs are taken before all others. Default: routine")
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="An id of your own: the same request under it is not run twice."),
    ] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue radiographs; print the ids of their jobs, or with --wait their results."""
    timeout_s = checked_timeout_s(timeout, wait=wait)
    names = [name for name in paths if name != STDIN]
    if not names and (destination or model or priority or job_id):
        raise typer.BadParameter(
            "with - alone, --destination, --model, --priority and --job-id have no effect: each line says it itself"
        )
    if STDIN in paths and sys.stdin is None:
        raise InvalidRequestError("standard input is closed, and - reads it")
    destination = destination or DEFAULT_DESTINATION
    pictures = pictures_named(names, destination=destination, recursive=recursive)
    if job_id is not None and (len(pictures) > 1 or STDIN in paths):
        raise typer.BadParameter("one id is for one picture", param_hint="--job-id")
    options = {"model": model, "priority": priority, "job_id": job_id}
    requests, refused = requests_for(pictures, destination=destination, options=options)
    with client_of(ctx) as client:
        waiting = _wait_for(client) if wait else None
        batch = Batch(client, waiting, as_json=as_json)
        code = ExitCode.OK
        try:
            batch.submit(requests)
            if STDIN in paths and waiting is not None:
                waiting.feed = partial(batch.submit_from, RequestReader(sys.stdin.fileno()))
            elif STDIN in paths:
                batch.submit_lines(sys.stdin.buffer)
            if waiting is not None:
                from producer.display import show_results

                code = show_results(client, waiting, names=batch.names, timeout_s=timeout_s, as_json=as_json)
        except KeyboardInterrupt:
            raise _interrupted(batch.open_ids()) from None
    raise typer.Exit(code or (ExitCode.SOME_FAILED if refused or batch.refused else ExitCode.OK))


@app.command(epilog=examples("producer result case-0001", "producer result case-0001 --wait --timeout 60 --json"))
def result(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the result of a job."""
    from producer.display import show_results

    timeout_s = checked_timeout_s(timeout, wait=wait)
    with client_of(ctx) as client:
        status = client.status(job_id)
        if not (wait or status.state.is_terminal):
            raise ResultTimeoutError(f"job {job_id} is {status.state.value}; --wait waits for its result")
        try:
            waiting = _wait_for(client)
            waiting.add([job_id])
            code = show_results(client, waiting, names={}, timeout_s=timeout_s, as_json=as_json)
        except KeyboardInterrupt:
            raise _interrupted([job_id]) from None
    raise typer.Exit(code)


@app.command(epilog=examples("producer status", "producer status case-0001"))
def status(ctx: typer.Context, job_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None) -> None:
    """Show how a job stands; or, without an id, how many are open and which workers are ready."""
    from producer.display import overview, status_lines

    with client_of(ctx) as client:
        if job_id is None:
            emit(overview(client.ledger.counts(), client.ledger.ready_nodes()))
        else:
            emit(status_lines(client.status(job_id)))


@app.command("list", epilog=examples("producer list", "producer list | grep running"))
def list_jobs(ctx: typer.Context) -> None:
    """List jobs: running, queued, given up and ended, the newest 100 of each."""
    from producer.display import as_text, jobs_table

    with client_of(ctx) as client:
        jobs = client.jobs()
    emit(as_text(jobs_table(jobs), terminal=sys.stdout.isatty()) if jobs else "no jobs")


@app.command(epilog=examples("producer cancel case-0001", "producer cancel case-0001 --timeout 0"))
def cancel(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0, help="Wait for the end for so many seconds.")
    ] = 3.0,
) -> None:
    """Have a job ended; print the state that it is in then."""
    with client_of(ctx) as client:
        state = client.cancel(job_id, wait_s=timeout_s)
    if state.is_terminal and state is not JobState.CANCELLED:
        note(f"job {job_id} has ended already: {state.value}")
        raise typer.Exit(ExitCode.REFUSED)
    emit(state.value)
    if state is JobState.RUNNING:
        note(f"job {job_id} is not cancelled yet: its worker ends it when its present stage is over")
    elif state is JobState.QUEUED:
        note(f"job {job_id} is not cancelled yet: a worker ends it, and none has looked; `producer status` names them")


@app.command(epilog=examples("producer follow", "producer follow --since 1700000000000-0 >> results.jsonl"))
def follow(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="STREAM_ENTRY_ID",
            help="Go on after this entry of the results stream, as `follow` names it when it ends; 0 for all there is.",
        ),
    ] = None,
) -> None:
    """Print every result from now on, a JSON object a line, until Ctrl-C."""

    def on_outage(error: OsteopanError | None) -> None:
        note("Redis answers again" if error is None else f"{error}; trying again")

    with client_of(ctx) as client:
        entry = client.ledger.last_entry() if since is None else since
        following = client.follow(entry, on_outage=on_outage)
        try:
            for ended in following:
                emit(ended.document, encoding="utf-8")
                entry = ended.entry_id or entry
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        finally:
            note(f"resume with --since {entry}")


def _wait_for(client: Client) -> Wait:
    from producer.waiting import Wait

    return Wait(client.ledger)


def _interrupted(job_ids: Iterable[str]) -> typer.Exit:
    note("stopped. Jobs that are queued or running go on; `producer result ID --wait` waits for one of these:")
    for job_id in job_ids:
        note(job_id)
    return typer.Exit(ExitCode.INTERRUPTED)


def main() -> None:
    """Run the command; every error of ours is one sentence on standard error, and an exit code."""
    try:
        app(prog_name="producer")
    except OsteopanError as error:
        note(f"producer: {error}")
        sys.exit(exit_code_of(error))
    except OutputClosedError:
        sys.exit(ExitCode.OUTPUT_CLOSED)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
