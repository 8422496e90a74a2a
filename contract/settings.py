"""The settings that both ends of the queue share, read once from the environment (`OSTEOPAN_…`)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.errors import SettingsError

ENVIRONMENT_PREFIX = "OSTEOPAN_"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

S = TypeVar("S", bound=BaseSettings)


def default_state_dir() -> Path:
    """Where one machine keeps its own Redis data and what its nodes have exported (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "osteopan"


class Settings(BaseSettings):
    """Where Redis is, what keys are called, and how long things last.

    Attributes:
        redis_url: `redis://`, `rediss://` or `unix://`. Left out, it is read from `redis_url_file`.
        redis_url_file: File with the URL, so that a password need not stand in the environment. Left out, it is
            the file that `osteopan up` writes, and where there is none, Redis is sought at 127.0.0.1:6379.
        key_prefix: First part of every Redis key.
        state_dir: Folder of what this machine keeps for itself.
        result_ttl_s: Lifetime of a result and of a finished job's record, in seconds.
        results_stream_length: About how many entries the results stream keeps.
        max_open_jobs: Jobs that may be queued or running at a time; one more is refused.
        lease_s: A claimed job whose worker is silent for this long is free again, in seconds.
        heartbeat_s: Pause between two signs of life of a working worker, in seconds; at most half of `lease_s`.
        max_attempts: How many workers may take a job up before it is given up.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    redis_url: SecretStr | None = None
    redis_url_file: Path | None = None
    key_prefix: str = Field(default="osteopan", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    state_dir: Path = Field(default_factory=default_state_dir)
    result_ttl_s: int = Field(default=7 * 24 * 3600, ge=60)
    results_stream_length: int = Field(default=100_000, ge=100)
    max_open_jobs: int = Field(default=1_000_000, ge=1)
    lease_s: float = Field(default=10.0, ge=0.5)
    heartbeat_s: float = Field(default=3.0, gt=0, validate_default=True)
    max_attempts: int = Field(default=3, ge=1)

    @field_validator("heartbeat_s")
    @classmethod
    def _a_lease_outlives_two(cls, heartbeat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s", math.inf)
        if lease_s < 2 * heartbeat_s:
            raise ValueError(
                f"it is {heartbeat_s:g} and OSTEOPAN_LEASE_S {lease_s:g}; a lease must last two heartbeats or more, or "
                "jobs are lost to workers that are well"
            )
        return heartbeat_s

    @property
    def local_url_file(self) -> Path:
        """Where `osteopan up` leaves the URL of the Redis that it runs."""
        return self.state_dir / "redis.url"

    def broker_url(self) -> str:
        """The URL of Redis, password and all: for connecting, never for showing.

        Raises:
            SettingsError: `redis_url_file` is set and cannot be read.
        """
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_url_file is not None:
            try:
                return self.redis_url_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingsError(
                    f"OSTEOPAN_REDIS_URL_FILE: cannot read {self.redis_url_file}: {error.strerror}"
                ) from error
        try:
            return self.local_url_file.read_text(encoding="utf-8").strip()
        except OSError:
            return DEFAULT_REDIS_URL


def load_settings(kind: type[S], **overrides: object) -> S:
    """Build settings from the environment; what the command line gave goes before it.

    Args:
        kind: `Settings`, or a role's own that extends it.
        overrides: Values that were given; None stands for not given.

    Raises:
        SettingsError: A value is out of range; names the variable and the rule, not the value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = "; ".join(
            f"{ENVIRONMENT_PREFIX}{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise SettingsError(faults) from None
