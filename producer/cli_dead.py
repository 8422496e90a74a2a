"""The commands `producer dead …`: what to do with jobs that were given up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from contract.errors import InvalidRequestError, JobConflictError, UnknownJobError
from producer.cli_options import CONTEXT, JsonOption, client_of, examples
from producer.exit_codes import ExitCode
from producer.output import emit, note

app = typer.Typer(
    help="Jobs that were given up, because several workers ended while they had them. They wait here for a person.",
    epilog=examples(
        "producer dead list",
        "producer dead show case-0001",
        "producer dead retry case-0001",
        "producer dead drop --all",
    ),
    no_args_is_help=True,
    context_settings=CONTEXT,
)

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID")]


@app.command("list", epilog=examples("producer dead list", "producer dead list --json | jq -r .job_id"))
def list_dead(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List all of them, the newest first."""
    from pydantic import TypeAdapter

    from contract.records import JobStatus
    from producer.display import as_text, jobs_table

    with client_of(ctx) as client:
        jobs = client.dead.jobs(limit=sys.maxsize)
    if as_json:
        for job in jobs:
            emit(TypeAdapter(JobStatus).dump_json(job).decode(), encoding="utf-8")
    else:
        emit(as_text(jobs_table(jobs), terminal=sys.stdout.isatty()) if jobs else "no dead jobs")


@app.command(epilog=examples("producer dead show case-0001", "producer dead show case-0001 --json | jq .request"))
def show(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: JsonOption = False,
) -> None:
    """Show one, its picture's path included, and why it was given up."""
    from producer.display import dead_lines

    with client_of(ctx) as client:
        job = client.dead.job(job_id)
    if as_json:
        result = job.result and job.result.model_dump(mode="json")
        shown = {"request": job.request.model_dump(mode="json"), "result": result}
        emit(json.dumps(shown, ensure_ascii=False), encoding="utf-8")
    else:
        emit(dead_lines(job))


@app.command(epilog=examples("producer dead retry case-0001", "producer dead retry --all"))
def retry(
    ctx: typer.Context,
    job_ids: IdsArgument = None,
    every: Annotated[bool, typer.Option("--all", help="Retry all of them.")] = False,
) -> None:
    """Run them again under new ids; print `old-id new-id`.

    A job may take workers with it again: look at its picture and at the workers' logs first. Whoever repeats the
    command because it was interrupted runs nothing twice.
    """
    with client_of(ctx) as client:

        def run_anew(job_id: str) -> None:
            submission = client.dead.retry(job_id)
            emit(f"{job_id} {submission.job_id}")
            if not submission.created:
                note(f"job {submission.job_id} was there already, and is {submission.state.value}")

        code = _for_each(_chosen(job_ids, client.dead.ids, every=every), run_anew)
    raise typer.Exit(code)


@app.command(epilog=examples("producer dead drop case-0001", "producer dead drop --all"))
def drop(
    ctx: typer.Context,
    job_ids: IdsArgument = None,
    every: Annotated[bool, typer.Option("--all", help="Drop all of them.")] = False,
) -> None:
    """Let them expire as other ended jobs do; print their ids."""
    with client_of(ctx) as client:

        def let_go(job_id: str) -> None:
            client.dead.drop(job_id)
            emit(job_id)

        code = _for_each(_chosen(job_ids, client.dead.ids, every=every), let_go)
    raise typer.Exit(code)


def _chosen(job_ids: list[str] | None, all_ids: Callable[[], list[str]], *, every: bool) -> list[str]:
    if bool(job_ids) == every:
        raise typer.BadParameter("give ids, or --all", param_hint="ID")
    chosen = list(dict.fromkeys(job_ids or all_ids()))
    if not chosen:
        note("no dead jobs")
    return chosen


def _for_each(job_ids: list[str], act: Callable[[str], None]) -> ExitCode:
    """Do it to each; of several, one that is refused is named and does not stop the others."""
    code = ExitCode.OK
    for job_id in job_ids:
        try:
            act(job_id)
        except (UnknownJobError, JobConflictError, InvalidRequestError) as error:
            if len(job_ids) == 1:
                raise
            note(f"{job_id}: {error}")
            code = ExitCode.SOME_FAILED
    return code
