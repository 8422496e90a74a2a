"""The way to Redis: one client as the settings ask for it, and redis-py's errors in one kind of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from contract.errors import BrokerUnavailableError
from contract.settings import Settings

#: Seconds to wait for a connection, and for an answer (longer than any blocking read that we make).
CONNECT_TIMEOUT_S = 5
SOCKET_TIMEOUT_S = 15


def connect(settings: Settings) -> redis.Redis:
    """A client of the Redis that the settings name; it connects when it is first used.

    Raises:
        BrokerUnavailableError: The URL is not one of Redis.
    """
    url = settings.broker_url()
    options: dict[str, Any] = {} if url.startswith("unix://") else {"socket_keepalive": True}
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            health_check_interval=10,
            **options,
        )
        # redis-py looks at the options and at the host's name only when it connects, and then raises as it likes.
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
        str(pool.connection_kwargs.get("host", "")).encode("idna")
    except (ValueError, TypeError, redis.RedisError):
        raise BrokerUnavailableError(
            "the URL of Redis (OSTEOPAN_REDIS_URL) is not valid: "
            "it begins with redis://, rediss:// or unix:// and has the form redis://user:password@host:port/0"
        ) from None
    return client


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what redis-py raises into `BrokerUnavailableError`, without the password in the URL.

    Raises:
        BrokerUnavailableError: Redis is away, full, loading, or does not let us in.
    """
    try:
        yield
    except redis.AuthenticationError as error:
        raise BrokerUnavailableError("Redis refuses the user or the password in OSTEOPAN_REDIS_URL") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BrokerUnavailableError(
            "Redis does not answer. Is it running, and is OSTEOPAN_REDIS_URL right? "
            "On one machine `osteopan up` starts it together with a worker"
        ) from error
    except redis.ResponseError as error:
        raise BrokerUnavailableError(f"Redis refuses the command: {error}") from error
