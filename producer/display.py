"""What a person sees: the progress of a wait on standard error, tables of jobs and results as text."""

from __future__ import annotations

import io
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
from contract.jobs import JobResult, JobState
from contract.ledger import JobStatus
from producer.client import BLOCK_S, Client
from producer.output import printable
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
        timeout_s: How long to wait, in seconds.
        console: Standard error; a bar is drawn only if it is a terminal.

    Yields:
        Each job as it ends.

    Raises:
        BrokerUnavailableError: Redis does not let us in. That it is away is waited out.
    """
    start_s = time.monotonic()
    total = len(wait.open)
    single = next(iter(wait.open)) if total == 1 else None
    hinted = False

    def note(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    patience = Patience(lambda error: note("Redis answers again" if error is None else f"{error}; trying again"))
    with _progress(console) as progress:
        bar = progress.add_task("queued", total=total)
        while wait.open:
            waited_s = time.monotonic() - start_s
            left_s = max(0.0, timeout_s - waited_s)
            ended: list[Ended] = []
            with patience.outages_pass(left_s):
                ended = wait.poll(min(left_s, STAGE_PAUSE_S if single else BLOCK_S))
                if not hinted and waited_s >= WORKER_HINT_S:
                    hinted = True
                    if len(wait.open) == total and not client.ledger.ready_nodes():
                        note(NO_WORKER)
                progress.update(bar, description=_description(client, wait, single))
            yield from ended
            progress.update(bar, completed=total - len(wait.open))
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
    facts = {
        "job": job.job_id,
        "state": job.state.value,
        "stage": job.stage,
        "priority": job.priority,
        "attempts": str(job.attempts),
        "worker": job.worker or "",
        "submitted": _moment(job.submitted_at),
        "ended": _moment(job.finished_at),
    }
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
