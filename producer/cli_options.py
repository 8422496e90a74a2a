"""What the subcommands of `producer` have in common: options, examples, and the way to Redis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from producer.client import Client

CONTEXT = {"help_option_names": ["-h", "--help"]}

WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the result, and show it.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="S",
        help="With --wait: stop waiting S seconds after the last request. The jobs go on.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, an object a line.")]


def examples(*commands: str) -> str:
    """The end of a help page."""
    # click keeps the lines of a paragraph that begins with \b.
    return "\b\n" + "\n".join(["Examples:", *(f"  {command}" for command in commands)])


def client_of(ctx: typer.Context) -> Client:
    """A client of the Redis that the command line or the environment names."""
    from contract.settings import Settings, load_settings
    from producer.client import Client

    return Client(load_settings(Settings, redis_url=ctx.find_root().params["redis_url"]))


def checked_timeout_s(timeout: float | None, *, wait: bool) -> float:
    """The value of --timeout in seconds; infinity if it was not given.

    Raises:
        typer.BadParameter: It is no time, or does not go with the other options.
    """
    if timeout is None:
        return math.inf
    if not wait:
        raise typer.BadParameter("needs --wait", param_hint="--timeout")
    if not timeout >= 0:
        raise typer.BadParameter(f"{timeout:g} is not a number of seconds from 0", param_hint="--timeout")
    return timeout
