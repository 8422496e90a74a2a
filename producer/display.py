"""What a person sees: the progress of a wait on standard error, tables of jobs and results as text."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from contract.errors import UnknownJobError
from contract.jobs import RESEARCH_USE, JobResult, JobState
from contract.records import JobStatus
from producer.client import BLOCK_S, Client
from producer.dead import DeadJob
from producer.exit_codes import ExitCode
from producer.output import emit, note, printable
from producer.waiting import Ended, Patience, Wait

#: Seconds without an answer after which one looks whether there is a worker at all.
WORKER_HINT_S = 3.0

#: Seconds between two looks at the stage of a single job.
STAGE_PAUSE_S = 0.25

NO_WORKER = "no worker is ready yet; start one with `worker run --cpu` or `osteopan up`"

#: Wide enough for any line, where no terminal sets a limit.
UNLIMITED_COLUMNS = 10_000


def draw_wait(client: Client, wait: Wait, *, timeout_s: float, console: Console) -> Iterator[Ended]:
    """Wait for jobs with a progress bar, and say so when there is no worker or no Redis.

    Args:
        client: For the stage of a single job, and for the workers.
        wait: The jobs; those that did not end in time stay in `wait.open`.
        timeout_s: How long to wait, in seconds, from the moment when no more jobs are added.
        console: Standard error; a bar is drawn only if it is a terminal.

    Yields:
        Each job as it ends.

    Raises:
        BrokerUnavailableError: Redis does not let us in. That it is away is waited out.
    """
    fed_s = busy_s = time.monotonic()
    count = 0
    hinted = False

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    patience = Patience(lambda error: say("Redis answers again" if error is None else f"{error}; trying again"))
    with _progress(console) as progress:
        bar = progress.add_task("queued", total=len(wait.open))
        while wait.open or wait.feed:
            now_s = time.monotonic()
            fed_s = now_s if wait.feed else fed_s
            busy_s = busy_s if wait.open else now_s
            left_s = math.inf if wait.feed else max(0.0, timeout_s - (now_s - fed_s))
            single = next(iter(wait.open), None) if len(wait.open) + len(wait.lost) + count == 1 else None
            ended: list[Ended] = []
            with patience.outages_pass(left_s):
                ended = wait.poll(min(left_s, STAGE_PAUSE_S if single else BLOCK_S))
                count += len(ended)
                if not hinted and wait.open and now_s - busy_s >= WORKER_HINT_S:
                    hinted = True
                    if not count and not client.ledger.ready_nodes():
                        say(NO_WORKER)
                progress.update(bar, description=_description(client, wait, single))
            yield from ended
            closed = count + len(wait.lost)
            progress.update(bar, completed=closed, total=closed + len(wait.open))
            if left_s == 0 and not ended:
                return


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _description(client: Client, wait: Wait, single: str | None) -> str:
    """The stage of a single job; of many, how many are open."""
    if single not in wait.open:
        return f"{len(wait.open)} to go"
    try:
        status = client.status(single)
    except UnknownJobError:
        return "expired"
    return printable(status.stage or status.state.value)


def show_results(client: Client, wait: Wait, *, names: Mapping[str, str], timeout_s: float, as_json: bool) -> ExitCode:
    """Wait with a progress bar, then print the table; or print each result's JSON as it comes.

    Args:
        client: The queue.
        wait: The jobs.
        names: What to call the picture of a job id, in the table.
        timeout_s: How long to wait, in seconds.
        as_json: Print JSON.
    """
    console = Console(stderr=True)
    # A bar on the same terminal has to make room for a line of output; it is drawn again below it.
    clear = "\r\x1b[2K" if console.is_terminal and sys.stdout.isatty() else ""
    results: list[JobResult] = []
    failed = False
    for job in draw_wait(client, wait, timeout_s=timeout_s, console=console):
        failed |= job.failed
        if as_json:
            emit(f"{clear}{job.document}", encoding="utf-8")
        else:
            results.append(job.result)
    if results:
        table = results_table(results, names=names)
        emit(f"{as_text(table, terminal=sys.stdout.isatty())}\n\n{RESEARCH_USE}")
    for job_id in wait.lost:
        note(f"job {job_id} has no result: its record or its result has expired")
    if wait.open:
        note(f"not ended after {timeout_s:g} s, and going on:")
        for job_id in wait.open:
            note(job_id)
        return ExitCode.TIMED_OUT
    if wait.lost:
        return ExitCode.UNKNOWN_JOB
    return ExitCode.SOME_FAILED if failed else ExitCode.OK


def results_table(results: Iterable[JobResult], *, names: Mapping[str, str]) -> Table:
    """A row for each result: what was found and where the pictures are, or why there are none.

    Args:
        results: In the order of the rows.
        names: What to call the picture of a job id; else the id itself is shown.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("picture", "diagnosis", "probability", "warnings", "pictures in, or what went wrong"):
        table.add_column(heading, overflow="fold")
    for result in results:
        if result.error is None:
            where = str(Path(result.saliency_img_path).parent)
        else:
            where = f"{result.error.code}: {result.error.message}"
        probability = "" if result.probability is None else f"{result.probability:.3f}"
        cells = (
            names.get(result.job_id, result.job_id),
            result.diagnosis or "failed",
            probability,
            ", ".join(result.warnings),
            where,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def jobs_table(jobs: Iterable[JobStatus]) -> Table:
    """A row for each job; nothing in it names a picture."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("job", "state", "stage", "priority", "attempts", "worker", "submitted", "ended"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        cells = (
            job.job_id,
            job.state.value,
            job.stage,
            job.priority,
            str(job.attempts),
            job.worker or "",
            _moment(job.submitted_at),
            _moment(job.finished_at),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def status_lines(job: JobStatus) -> str:
    """One job, a line for each thing known of it."""
    return _lines(_facts(job))


def dead_lines(job: DeadJob) -> str:
    """One job that was given up, with its request and its error: for the eyes of whoever may see the picture."""
    error = job.result.error if job.result else None
    request = job.request
    return _lines(
        _facts(job.status)
        | {
            "picture": request.img_path,
            "results in": request.destination_path,
            "model": request.model or "",
            "metadata": json.dumps(request.metadata, ensure_ascii=False) if request.metadata else "",
            "error": f"{error.code}: {error.message}" if error else "no longer known: the result has expired",
        }
    )


def _facts(job: JobStatus) -> dict[str, str]:
    return {
        "job": job.job_id,
        "state": job.state.value,
        "stage": job.stage,
        "priority": job.priority,
        "attempts": str(job.attempts),
        "worker": job.worker or "",
        "submitted": _moment(job.submitted_at),
        "ended": _moment(job.finished_at),
    }


def _lines(facts: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<10} {printable(fact)}" for name, fact in facts.items() if fact)


def overview(counts: Mapping[JobState, int], ready_nodes: Iterable[str]) -> str:
    """How much there is to do, and who does it."""
    nodes = ", ".join(printable(node) for node in ready_nodes) or f"none ({NO_WORKER})"
    return "\n".join([*(f"{state.value:<10} {count}" for state, count in counts.items()), f"{'ready':<10} {nodes}"])


def as_text(table: Table, *, terminal: bool) -> str:
    """The table as text: as wide as the terminal, or in a file as wide as it needs to be."""
    console = Console(
        file=io.StringIO(), force_terminal=terminal or None, width=None if terminal else UNLIMITED_COLUMNS
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%SZ}"
