"""Every string on the wire: task, queues, Redis keys, stream fields."""

from __future__ import annotations

from dataclasses import dataclass

#: The one Celery task. Its only argument is a job id.
TASK_PROCESS = "osteopan.process"

#: Celery queues, in the order in which a node empties them.
QUEUE_URGENT = "osteopan.urgent"
QUEUE_ROUTINE = "osteopan.routine"
QUEUES = (QUEUE_URGENT, QUEUE_ROUTINE)

#: Fields of an entry of the results stream.
STREAM_JOB_ID = "job_id"
STREAM_STATE = "state"


@dataclass(frozen=True)
class Keys:
    """Redis keys under one prefix, so that several systems can share a server.

    Attributes:
        prefix: First part of every key, without the colon.
    """

    prefix: str = "osteopan"

    def job(self, job_id: str) -> str:
        """Hash: the job's record in the ledger, its request included."""
        return f"{self.prefix}:job:{job_id}"

    def result(self, job_id: str) -> str:
        """String: the result as JSON, for any system that can GET."""
        return f"{self.prefix}:result:{job_id}"

    def ready(self, node: str) -> str:
        """String with a lifetime: this node has its model loaded and warm."""
        return f"{self.prefix}:ready:{node}"

    @property
    def celery(self) -> str:
        """What every key of Celery's begins with."""
        return f"{self.prefix}:celery:"

    @property
    def queued(self) -> str:
        """Sorted set: ids of jobs nobody has claimed, by the time (ms) they entered the queue."""
        return f"{self.prefix}:queued"

    @property
    def returned(self) -> str:
        """Sorted set: ids of queued jobs that a worker gave back, by the time (ms) when they are to be announced."""
        return f"{self.prefix}:returned"

    @property
    def running(self) -> str:
        """Sorted set: ids of claimed jobs, by the time (ms) their lease ends."""
        return f"{self.prefix}:running"

    @property
    def finished(self) -> str:
        """Sorted set: ids of ended jobs, by the time (ms) they ended; trimmed as they expire."""
        return f"{self.prefix}:finished"

    @property
    def cancelling(self) -> str:
        """Set: ids of open jobs that somebody wants ended."""
        return f"{self.prefix}:cancelling"

    @property
    def reconciler(self) -> str:
        """String with a lifetime: the node whose turn it is to look after forgotten jobs."""
        return f"{self.prefix}:reconciler"

    @property
    def results(self) -> str:
        """Stream: one entry (id and state, no path) for each ended job; trimmed."""
        return f"{self.prefix}:results"

    @property
    def dead(self) -> str:
        """Sorted set: ids of jobs given up, by the time (ms); their records never expire."""
        return f"{self.prefix}:dead"
