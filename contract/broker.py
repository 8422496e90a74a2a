"""The Celery app that both ends build: it carries job ids, and nothing else, from producers to workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from contract.errors import BrokerUnavailableError, SettingsError
from contract.jobs import Priority
from contract.names import QUEUE_ROUTINE, QUEUE_URGENT, TASK_PROCESS, Keys
from contract.settings import Settings

QUEUE_OF_PRIORITY: Mapping[Priority, str] = {Priority.URGENT: QUEUE_URGENT, Priority.ROUTINE: QUEUE_ROUTINE}

#: Seconds after which a task is told to stop, and after which its process is ended.
SOFT_TIME_LIMIT_S = 60
HARD_TIME_LIMIT_S = 90


def _kombu_url(url: str) -> str:
    """The URL as kombu spells it, which calls a Unix socket `redis+socket://` and its database `virtual_host`.

    Without an `ssl_…` option kombu takes any certificate for good, where redis-py verifies it; here both verify.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "unix":
        return f"redis+socket://{rest.replace('db=', 'virtual_host=')}"
    if separator and scheme == "rediss" and "ssl_cert_reqs=" not in rest:
        return f"{url}{'&' if '?' in rest else '?'}ssl_cert_reqs=required"
    return url


def celery_configuration(settings: Settings) -> dict[str, Any]:
    """Celery's and kombu's settings. `docs/architecture.md` gives the reason for those that look odd."""
    return {
        "broker_url": _kombu_url(settings.broker_url()),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            # Celery's own keys go under our prefix too, so that systems on one server do not empty each other's queues.
            "global_keyprefix": Keys(settings.key_prefix).celery,
            # Queues are emptied in the order in which the node names them: urgent before routine.
            "queue_order_strategy": "priority",
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "task_queues": [Queue(name, routing_key=name) for name in (QUEUE_URGENT, QUEUE_ROUTINE)],
        "task_default_queue": QUEUE_ROUTINE,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_extended": False,
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_soft_time_limit": SOFT_TIME_LIMIT_S,
        "task_time_limit": HARD_TIME_LIMIT_S,
        "worker_pool": "prefork",
        # CUDA must never cross a fork.
        "worker_pool_start_method": "spawn",
        # With two children, Celery 5.7.0 ends the node when Redis restarts under a running job.
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": 120,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Whoever may publish an event could else send a `shutdown`: Redis cannot tell the two apart.
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def make_app(settings: Settings, *, include: tuple[str, ...] = ()) -> celery.Celery:
    """A Celery app for the broker of the settings.

    Args:
        settings: Where Redis is.
        include: Modules that a worker imports, in its children as well.

    Raises:
        SettingsError: Celery's own environment variables name another broker, and would win.
    """
    rivals = [name for name in os.environ if name.startswith("CELERY_BROKER_") and name.endswith("URL")]
    if rivals:
        raise SettingsError(f"unset {', '.join(rivals)}: Celery would follow it; osteopan follows OSTEOPAN_REDIS_URL")
    app = celery.Celery("osteopan", include=list(include), set_as_current=False)
    app.conf.update(celery_configuration(settings))
    return app


def wake_worker(app: celery.Celery, job_id: str, priority: Priority) -> None:
    """Queue the message that makes some worker claim the job. To send it twice costs a glance at the ledger.

    Raises:
        BrokerUnavailableError: Redis does not answer. The job is in the ledger all the same.
    """
    try:
        app.send_task(
            TASK_PROCESS,
            args=(job_id,),
            task_id=job_id,
            queue=QUEUE_OF_PRIORITY[priority],
            retry=True,
            retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5},
        )
    except OperationalError as error:
        raise BrokerUnavailableError(
            "Redis stopped answering while the job was being announced to the workers"
        ) from error
