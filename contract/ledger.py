"""The ledger: every job's state in Redis, changed only by atomic scripts. It is the truth; Celery only wakes workers.

States::

    submit ──> queued ──claim──> running ──finish──> done | failed | cancelled | dead
                 ^                  │
                 └──────release─────┘   (or the lease runs out, and the next claim takes the job over)

A claim hands out a *fencing token*. Whoever comes later with an older token (a worker that was frozen, or cut off
from Redis) is told that the job is lost to it, and changes nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final, cast

import redis

from contract.connection import translated_errors
from contract.errors import (
    ErrorCode,
    InvalidRequestError,
    JobConflictError,
    LeaseLostError,
    TooManyOpenJobsError,
    UnknownJobError,
)
from contract.jobs import ErrorInfo, JobRequest, JobResult, JobState
from contract.names import QUEUE_ROUTINE, QUEUE_URGENT, STREAM_JOB_ID, TASK_PROCESS, Keys
from contract.records import Claim, Heartbeat, JobStatus, Submission, status_of, utc
from contract.settings import Settings

#: From so many percent of Redis' `maxmemory` on no job is accepted. An open job takes some 2.0 kB, and 2.4 kB when it
#: has ended, so that what is left is enough to end all that are open.
MAX_MEMORY_PERCENT: Final = 80

#: At most so many messages are looked at in one step, whatever they lead to; each takes Redis about 9 µs.
_MOST_LOOKS: Final = 5000


class Ledger:
    """Jobs in one Redis, under one prefix. Safe to share between threads.

    Args:
        client: A client that decodes responses, as `connect` makes it.
        settings: Key prefix, lifetimes and limits.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.key_prefix)
        scripts = files("contract") / "lua"
        self._scripts = {
            name: client.register_script((scripts / f"{name}.lua").read_text(encoding="utf-8"))
            for name in ("submit", "claim", "take", "heartbeat", "note", "finish", "release", "cancel", "bury", "hold")
        }

    def _run(self, script: str, keys: list[str], args: list[str | int]) -> Any:
        with translated_errors():
            return self._scripts[script](keys=keys, args=args)

    @property
    def _lease_ms(self) -> int:
        return round(self.settings.lease_s * 1000)

    def submit(self, request: JobRequest) -> Submission:
        """Enter a job in one atomic step. The same id with the same request answers with the job that is there.

        Two requests are the same if they are equal as JSON: the order of the keys of their metadata does not count.

        Raises:
            JobConflictError: The id belongs to another request.
            TooManyOpenJobsError: `max_open_jobs` are open, or Redis is nearly full.
            BrokerUnavailableError: Redis does not answer; whether the job was entered is not known, so submit it
                again under the same id.
        """
        request = request.with_id()
        job_id = cast("str", request.job_id)
        keys = self.keys
        document = json.dumps(request.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)
        outcome, detail = self._run(
            "submit",
            [keys.job(job_id), keys.queued, keys.running],
            [job_id, document, request.priority.value, self.settings.max_open_jobs, MAX_MEMORY_PERCENT],
        )
        if outcome == "conflict":
            raise JobConflictError(
                f"job id {job_id} belongs to another request (it is {detail}); "
                "choose another id, or send the same request"
            )
        if outcome == "full":
            raise TooManyOpenJobsError(
                f"{detail} jobs are open and at most {self.settings.max_open_jobs} may be; "
                "submit again when some have ended"
            )
        if outcome == "memory":
            raise TooManyOpenJobsError(
                f"{detail} % of the memory that Redis may take is used, and from {MAX_MEMORY_PERCENT} % on no job is "
                "accepted, so that those which were can be ended; submit again when results have expired, or have "
                "`maxmemory` raised"
            )
        return Submission(job_id, JobState(detail), created=outcome == "created")

    def claim(self, job_id: str, worker: str, *, nonce: str | None = None) -> Claim | JobState | None:
        """Take a job that is queued, or whose worker has been silent for longer than its lease.

        Args:
            job_id: The job's id.
            worker: Name of the node.
            nonce: Of this attempt. Who claims a second time with the same one, because no answer came to the first,
                is given what was given to him then.

        Returns:
            The claim; or the state that forbids one; or None if no such job is known.
        """
        keys = self.keys
        outcome, *details = self._run(
            "claim",
            [keys.job(job_id), keys.queued, keys.running, keys.returned],
            [job_id, worker, self._lease_ms, self.settings.max_attempts, nonce or secrets.token_hex(8)],
        )
        if outcome == "unknown":
            return None
        if outcome not in ("claimed", "exhausted"):
            return JobState(outcome)
        return self._claim(job_id, *details, exhausted=outcome == "exhausted")

    def take(self, worker: str, *, count: int) -> list[Claim]:
        """Claim what waits at the head of the queues, urgent jobs first, and remove the messages that announce it.

        Left out are jobs that were tried before, or that somebody wants ended: they come one at a time. If the answer
        is lost, their leases run out, and they are announced again.

        Args:
            worker: Name of the node.
            count: At most so many.
        """
        keys = self.keys
        found = self._run(
            "take",
            [keys.celery + QUEUE_URGENT, keys.celery + QUEUE_ROUTINE, keys.queued, keys.running, keys.returned],
            [keys.job(""), TASK_PROCESS, worker, self._lease_ms, count, secrets.token_hex(8), _MOST_LOOKS],
        )
        claims = [self._claim(*details) for details in found]
        return [claim for claim in claims if isinstance(claim, Claim)]

    def _claim(
        self,
        job_id: str,
        token: str,
        attempts: str,
        document: str,
        submitted_ms: str,
        now_ms: str,
        left_behind: str = "",
        *,
        exhausted: bool = False,
    ) -> Claim | JobState:
        try:
            request = JobRequest.parse(document)
        except InvalidRequestError as error:
            return self._end_unreadable(job_id, token, str(error), attempts=int(attempts), submitted_ms=submitted_ms)
        return Claim(
            job_id,
            token,
            int(attempts),
            request,
            utc(submitted_ms),
            waited_ms=float(now_ms) - float(submitted_ms),
            exhausted=exhausted,
            left_behind=left_behind,
        )

    def _end_unreadable(self, job_id: str, token: str, reason: str, *, attempts: int, submitted_ms: str) -> JobState:
        """End a job whose request this version cannot read, as one of a later version: no worker ever could."""
        result = JobResult(
            result="fail",
            job_id=job_id,
            error=ErrorInfo(
                code=ErrorCode.INVALID_REQUEST,
                message=f"this worker's version cannot read the request ({reason}); upgrade the workers, or mend it",
            ),
            attempts=attempts,
            submitted_at=utc(submitted_ms),
            finished_at=datetime.now(UTC),
        )
        self._finish(job_id, token, JobState.FAILED, result)
        return JobState.FAILED

    def heartbeat(self, claim: Claim, stage: str = "") -> Heartbeat:
        """Extend the lease and, unless it is empty, note the stage for whoever asks after the job."""
        answer = self._run(
            "heartbeat",
            [self.keys.job(claim.job_id), self.keys.running],
            [claim.job_id, claim.token, self._lease_ms, stage],
        )
        return Heartbeat(answer)

    def note_pictures(self, claim: Claim, note: str) -> None:
        """Write down which files are about to be made, so that whoever takes the job over can take them away.

        Raises:
            LeaseLostError: Another worker has the job by now; make none.
        """
        if self._run("note", [self.keys.job(claim.job_id)], [claim.token, note]) != "noted":
            raise _lost(claim)

    def finish(self, claim: Claim, result: JobResult, *, dead: bool = False) -> None:
        """End a claimed job: result, stream entry and state in one step. Saying it twice does no harm.

        Args:
            claim: The job in hand.
            result: Its one result.
            dead: Keep the job, with its request, among those given up.

        Raises:
            LeaseLostError: Another worker has the job by now.
        """
        state = JobState.DEAD if dead else result.state
        if self._finish(claim.job_id, claim.token, state, result) != "finished":
            raise _lost(claim)

    def release(self, claim: Claim, *, pause_s: float = 0.0, counted: bool = False) -> bool:
        """Give a claimed job back to the queue, from which it is announced as urgent.

        Args:
            claim: The job in hand.
            pause_s: How long to leave it alone, in seconds.
            counted: Whether this attempt counts, as after a fault that may pass; else it is as if never made.

        Returns:
            False if the job is not held any more.
        """
        keys = self.keys
        answer = self._run(
            "release",
            [keys.job(claim.job_id), keys.queued, keys.running, keys.returned],
            [claim.job_id, claim.token, round(pause_s * 1000), int(counted)],
        )
        return bool(answer == "released")

    def cancel(self, job_id: str) -> JobState:
        """Ask for a job to be ended: a running one at its next stage, a queued one within a second or so.

        Returns:
            The state in which the job is: if it is a terminal one, it stays so.

        Raises:
            UnknownJobError: No such job.
        """
        answer = self._run("cancel", [self.keys.job(job_id), self.keys.cancelling], [job_id])
        if answer == "unknown":
            raise _unknown(job_id)
        return JobState(answer)

    def end_cancelled(self) -> list[str]:
        """End the queued jobs that somebody wants ended; the work of a node, not of a producer.

        Returns:
            Ids of the jobs that this call has ended.
        """
        with translated_errors():
            wanted = cast("set[str]", self.client.smembers(self.keys.cancelling))
        ended = []
        for job_id in wanted:
            try:
                record = self._record(job_id)
            except UnknownJobError:
                state = "unknown"
            else:
                status = status_of(job_id, record)
                result = JobResult(
                    result="fail",
                    job_id=job_id,
                    error=ErrorInfo(code=ErrorCode.CANCELLED, message="the job was cancelled while it was queued"),
                    attempts=status.attempts,
                    submitted_at=status.submitted_at,
                    finished_at=datetime.now(UTC),
                    # A request of a later version, whose other fields we might not know, can be cancelled as well.
                    metadata=json.loads(record["request"]).get("metadata", {}),
                )
                state = self._finish(job_id, "", JobState.CANCELLED, result)
                ended += [job_id] if state == "finished" else []
            if state != JobState.RUNNING:
                with translated_errors():
                    self.client.srem(self.keys.cancelling, job_id)
        return ended

    def dead(self, *, limit: int = 100) -> list[JobStatus]:
        """The jobs that were given up, newest first, at most `limit`."""
        with translated_errors():
            ids = cast("list[str]", self.client.zrevrange(self.keys.dead, 0, limit - 1))
        return self._statuses(ids)

    def request(self, job_id: str) -> JobRequest:
        """What was asked.

        Raises:
            UnknownJobError: No such job.
        """
        return JobRequest.parse(self._record(job_id)["request"])

    def bury(self, job_id: str) -> bool:
        """Let go of a job that was given up, so that its record expires; False if it is not among the dead."""
        keys = self.keys
        return bool(
            self._run("bury", [keys.job(job_id), keys.dead, keys.finished], [job_id, self.settings.result_ttl_s])
        )

    def _finish(self, job_id: str, token: str, state: JobState, result: JobResult) -> str:
        keys = self.keys
        return cast(
            "str",
            self._run(
                "finish",
                [
                    keys.job(job_id),
                    keys.queued,
                    keys.running,
                    keys.finished,
                    keys.dead,
                    keys.result(job_id),
                    keys.results,
                    keys.returned,
                ],
                [
                    job_id,
                    token,
                    state.value,
                    result.model_dump_json(),
                    self.settings.result_ttl_s,
                    self.settings.results_stream_length,
                ],
            ),
        )

    def _record(self, job_id: str) -> dict[str, str]:
        with translated_errors():
            record = cast("dict[str, str]", self.client.hgetall(self.keys.job(job_id)))
        if not record:
            raise _unknown(job_id)
        return record

    def status(self, job_id: str) -> JobStatus:
        """Where the job stands.

        Raises:
            UnknownJobError: No such job.
        """
        return status_of(job_id, self._record(job_id))

    def result(self, job_id: str) -> JobResult | None:
        """The job's result, or None if it has none (yet, or any more)."""
        with translated_errors():
            document = cast("str | None", self.client.get(self.keys.result(job_id)))
        return None if document is None else JobResult.model_validate_json(document)

    def jobs(self, *, limit: int = 100) -> list[JobStatus]:
        """The jobs that are running, queued, given up and ended, each group newest first; at most `limit` of each."""
        with translated_errors():
            pipeline = self.client.pipeline(transaction=False)
            for key in (self.keys.running, self.keys.queued, self.keys.dead, self.keys.finished):
                pipeline.zrevrange(key, 0, limit - 1)
            ids = list(dict.fromkeys(job_id for group in pipeline.execute() for job_id in group))
        return self._statuses(ids)

    def _statuses(self, ids: list[str]) -> list[JobStatus]:
        with translated_errors():
            pipeline = self.client.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hgetall(self.keys.job(job_id))
            records = pipeline.execute()
        return [status_of(job_id, record) for job_id, record in zip(ids, records, strict=True) if record]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are queued, running and dead."""
        with translated_errors():
            pipeline = self.client.pipeline(transaction=False)
            for key in (self.keys.queued, self.keys.running, self.keys.dead):
                pipeline.zcard(key)
            queued, running, dead = pipeline.execute()
        return {JobState.QUEUED: queued, JobState.RUNNING: running, JobState.DEAD: dead}

    def hold(self, key: str, value: str, *, lifetime_s: float, take: bool = False) -> bool:
        """Set a key for a while, unless it has another value and is not to be taken; whether it is ours now.

        Args:
            key: `Keys.ready` or `Keys.reconciler`.
            value: Who holds it.
            lifetime_s: From now, in seconds.
            take: Overwrite another's.
        """
        return bool(self._run("hold", [key], [value, round(lifetime_s * 1000), int(take)]))

    def ready_nodes(self) -> list[str]:
        """Names of the nodes that have their model loaded and warm."""
        first = len(self.keys.ready(""))
        with translated_errors():
            return sorted(key[first:] for key in self.client.scan_iter(match=self.keys.ready("*"), count=1000))

    def is_ready(self, node: str) -> bool:
        """Whether this node has its model loaded and warm."""
        with translated_errors():
            return bool(self.client.exists(self.keys.ready(node)))

    def last_entry(self) -> str:
        """Id of the newest entry of the results stream, from which to follow what comes after."""
        with translated_errors():
            newest = cast("list[tuple[str, Any]]", self.client.xrevrange(self.keys.results, count=1))
        return newest[0][0] if newest else "0-0"

    def ended_since(self, entry: str, *, block_s: float, count: int = 1000) -> list[tuple[str, str]]:
        """Jobs that have ended after a stream entry, oldest first: pairs of entry id and job id.

        Args:
            entry: Id of the last entry seen.
            block_s: How long to wait if there is none yet, in seconds; below the socket's time-out.
            count: At most so many.
        """
        with translated_errors():
            answer = cast(
                "list[tuple[str, list[tuple[str, Mapping[str, str]]]]] | None",
                self.client.xread({self.keys.results: entry}, count=count, block=max(1, round(block_s * 1000))),
            )
        if not answer:
            return []
        entries = answer[0][1] if isinstance(answer, list) else next(iter(cast("dict[str, Any]", answer).values()))
        return [(entry_id, fields[STREAM_JOB_ID]) for entry_id, fields in entries]


def _unknown(job_id: str) -> UnknownJobError:
    return UnknownJobError(f"no job {job_id} is known: the id is wrong, or its record has expired")


def _lost(claim: Claim) -> LeaseLostError:
    return LeaseLostError(f"job {claim.job_id} is no longer held under token {claim.token}")
