"""The command `producer`: submit radiographs, follow and manage their jobs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import InvalidRequestError, OsteopanError, ResultTimeoutError
from contract.jobs import RESEARCH_USE, JobRequest, JobState, Priority
from producer.batch import Batch, requests_for
from producer.exit_codes import ExitCode, exit_code_of
from producer.output import OutputClosedError, emit, note
from producer.requests_from import pictures_named

if TYPE_CHECKING:
    from producer.client import Client
    from producer.waiting import Ended, Wait

DEFAULT_DESTINATION = Path("osteopan-output")
STDIN = "-"

_EXIT_CODES = "Exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)


def _epilog(*examples: str) -> str:
    # click keeps the lines of a paragraph that begins with \b.
    return "\b\n" + "\n".join(["Examples:", *(f"  {example}" for example in examples)])


app = typer.Typer(
    help=f"Submit dental panoramic radiographs to the workers, and read the results. {RESEARCH_USE}",
    epilog="\b\n"
    + _EXIT_CODES
    + "\n\n"
    + _epilog(
        "producer submit radiograph.png --wait",
        "producer submit folder/ --recursive --destination results/ --wait --json",
        "producer status",
        "producer follow",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the result, and show it.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="S", help="With --wait: stop waiting after S seconds. The jobs go on."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, an object a line.")]


@app.command(
    epilog=_epilog(
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
    timeout_s = _timeout_s(timeout, wait=wait)
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
    with _client(ctx) as client:
        waiting = _wait_for(client) if wait else None
        batch = Batch(client, waiting, as_json=as_json)
        try:
            _queue(batch, requests, lines=STDIN in paths)
            code = ExitCode.OK
            if waiting is not None:
                code = _show_results(client, waiting, names=batch.names, timeout_s=timeout_s, as_json=as_json)
        except KeyboardInterrupt:
            raise _interrupted(batch.open_ids()) from None
    raise typer.Exit(code or (ExitCode.SOME_FAILED if refused or batch.refused else ExitCode.OK))


@app.command(epilog=_epilog("producer result case-0001", "producer result case-0001 --wait --timeout 60 --json"))
def result(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the result of a job."""
    timeout_s = _timeout_s(timeout, wait=wait)
    with _client(ctx) as client:
        status = client.status(job_id)
        if not (wait or status.state.is_terminal):
            raise ResultTimeoutError(f"job {job_id} is {status.state.value}; --wait waits for its result")
        try:
            waiting = _wait_for(client)
            waiting.add([job_id])
            code = _show_results(client, waiting, names={}, timeout_s=timeout_s, as_json=as_json)
        except KeyboardInterrupt:
            raise _interrupted([job_id]) from None
    raise typer.Exit(code)


@app.command(epilog=_epilog("producer status", "producer status case-0001"))
def status(ctx: typer.Context, job_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None) -> None:
    """Show how a job stands; or, without an id, how many are open and which workers are ready."""
    from producer.display import overview, status_lines

    with _client(ctx) as client:
        if job_id is None:
            emit(overview(client.ledger.counts(), client.ledger.ready_nodes()))
        else:
            emit(status_lines(client.status(job_id)))


@app.command("list", epilog=_epilog("producer list", "producer list | grep running"))
def list_jobs(ctx: typer.Context) -> None:
    """List jobs: running, queued, given up and ended, the newest 100 of each."""
    from producer.display import as_text, jobs_table

    with _client(ctx) as client:
        jobs = client.jobs()
    emit(as_text(jobs_table(jobs), terminal=sys.stdout.isatty()) if jobs else "no jobs")


@app.command(epilog=_epilog("producer cancel case-0001"))
def cancel(ctx: typer.Context, job_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """End a queued job, or tell the worker of a running one to stop."""
    with _client(ctx) as client:
        state = client.cancel(job_id)
    if state is JobState.CANCELLED:
        emit("cancelled")
    elif state is JobState.RUNNING:
        emit("running; its worker was told to stop")
    else:
        note(f"job {job_id} has ended already: {state.value}")
        raise typer.Exit(ExitCode.REFUSED)


@app.command(epilog=_epilog("producer follow", "producer follow --since 1700000000000-0 >> results.jsonl"))
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

    with _client(ctx) as client:
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


def _client(ctx: typer.Context) -> Client:
    from contract.settings import Settings, load_settings
    from producer.client import Client

    return Client(load_settings(Settings, redis_url=ctx.find_root().params["redis_url"]))


def _wait_for(client: Client) -> Wait:
    from producer.waiting import Wait

    return Wait(client.ledger)


def _timeout_s(timeout: float | None, *, wait: bool) -> float:
    if timeout is None:
        return math.inf
    if not wait:
        raise typer.BadParameter("needs --wait", param_hint="--timeout")
    if not timeout >= 0:
        raise typer.BadParameter(f"{timeout:g} is not a number of seconds from 0", param_hint="--timeout")
    return timeout


def _queue(batch: Batch, requests: Iterable[JobRequest], *, lines: bool) -> None:
    try:
        batch.submit(requests)
        if lines:
            batch.submit_lines(sys.stdin.buffer)
    except (OsteopanError, OutputClosedError):
        if batch.names:
            note(f"queued so far: {len(batch.names)}; the remaining requests are not queued")
        raise


def _interrupted(job_ids: Iterable[str]) -> typer.Exit:
    note("stopped. Jobs that are queued or running go on; `producer result ID --wait` waits for one of these:")
    for job_id in job_ids:
        note(job_id)
    return typer.Exit(ExitCode.INTERRUPTED)


def _show_results(client: Client, waiting: Wait, *, names: dict[str, str], timeout_s: float, as_json: bool) -> ExitCode:
    """Wait with a progress bar, then print the table; or print each result's JSON as it comes."""
    from rich.console import Console

    from producer.display import as_text, draw_wait, results_table

    console = Console(stderr=True)
    # A bar on the same terminal has to make room for a line of output; it is drawn again below it.
    clear = "\r\x1b[2K" if console.is_terminal and sys.stdout.isatty() else ""
    ended: list[Ended] = []
    for job in draw_wait(client, waiting, timeout_s=timeout_s, console=console):
        ended.append(job)
        if as_json:
            emit(f"{clear}{job.document}", encoding="utf-8")
    results = [job.result for job in ended]
    if results and not as_json:
        table = results_table(results, names=names)
        emit(f"{as_text(table, terminal=sys.stdout.isatty())}\n\n{RESEARCH_USE}")
    for job_id in waiting.lost:
        note(f"job {job_id} has no result: its record or its result has expired")
    if waiting.open:
        note(f"not ended after {timeout_s:g} s, and going on:")
        for job_id in waiting.open:
            note(job_id)
        return ExitCode.TIMED_OUT
    if waiting.lost:
        return ExitCode.UNKNOWN_JOB
    return ExitCode.SOME_FAILED if any(result.error for result in results) else ExitCode.OK


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
