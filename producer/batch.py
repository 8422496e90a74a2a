"""The requests of one call of `producer submit`, on their way to the queue."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from contract.errors import BrokerUnavailableError, InvalidRequestError, JobConflictError, OsteopanError
from contract.jobs import JobRequest
from producer.output import OutputClosedError, emit, note
from producer.requests_from import RequestReader, UndecodableNameError, request_for, requests_in

if TYPE_CHECKING:
    from producer.client import Client
    from producer.waiting import Wait


def requests_for(
    pictures: Iterable[Path], *, destination: Path, options: dict[str, str | None]
) -> tuple[list[JobRequest], int]:
    """The requests for pictures, and how many pictures were refused for their names, which standard error tells.

    Raises:
        InvalidRequestError: An option does not fit.
    """
    requests: list[JobRequest] = []
    refused = 0
    for picture in pictures:
        try:
            requests.append(request_for(picture, destination=destination, **options))
        except UndecodableNameError as error:
            note(str(error))
            refused += 1
    return requests, refused


class Batch:
    """Submits requests one by one and keeps count.

    Args:
        client: The queue.
        waiting: Where to add the jobs that are to be waited for; None prints each job's id instead.
        as_json: Print ids as JSON.

    Attributes:
        names: The picture's file name, by job id, of what is queued.
        refused: How many JSON lines were refused.
    """

    def __init__(self, client: Client, waiting: Wait | None, *, as_json: bool) -> None:
        self.names: dict[str, str] = {}
        self.refused = 0
        self._under_way: str | None = None
        self._lines: deque[tuple[int, JobRequest | InvalidRequestError]] = deque()
        self._client = client
        self._waiting = waiting
        self._as_json = as_json

    def submit(self, requests: Iterable[JobRequest]) -> None:
        """Queue requests. The first that is refused ends it."""
        with self._telling_how_far():
            for request in requests:
                self._submit(request)

    def submit_lines(self, stream: BinaryIO) -> None:
        """Queue JSON lines as they come. A line that is refused is reported with its number, and the rest go on."""
        with self._telling_how_far():
            for number, request in requests_in(stream):
                self._submit_line(number, request)

    def submit_from(self, reader: RequestReader, wait_s: float) -> bool:
        """Queue JSON lines, as `submit_lines` does, but only those that have been read.

        Args:
            reader: The lines.
            wait_s: How long to wait for the next, in seconds.

        Returns:
            Whether there may be more to come.

        Raises:
            BrokerUnavailableError: Redis does not answer; the next call goes on with the line at which it happened.
        """
        if not self._lines:
            self._lines += reader.take(wait_s)
        with self._telling_how_far(passing=BrokerUnavailableError):
            while self._lines:
                number, request = self._lines[0]
                if isinstance(request, JobRequest):
                    # Whether it was queued before Redis went is not known: under one id it does not matter.
                    request = request.with_id()
                    self._lines[0] = (number, request)
                self._submit_line(number, request)
                self._lines.popleft()
        return not reader.at_end

    def open_ids(self) -> list[str]:
        """Ids of the jobs that are not known to have ended, one that may or may not have been queued included."""
        queued = list(self.names) if self._waiting is None else list(self._waiting.open)
        return list(dict.fromkeys([*queued, self._under_way])) if self._under_way else queued

    @contextmanager
    def _telling_how_far(self, *, passing: type[OsteopanError] | None = None) -> Iterator[None]:
        try:
            yield
        except (OsteopanError, OutputClosedError) as error:
            if self.names and type(error) is not passing:
                note(f"queued so far: {len(self.names)}; the remaining requests are not queued")
            raise

    def _submit_line(self, number: int, request: JobRequest | InvalidRequestError) -> None:
        try:
            if isinstance(request, InvalidRequestError):
                raise request
            self._submit(request)
        except (InvalidRequestError, JobConflictError) as error:
            note(f"line {number}: {error}")
            self.refused += 1
            self._under_way = None

    def _submit(self, request: JobRequest) -> None:
        request = request.with_id()
        self._under_way = request.job_id
        submission = self._client.submit(request)
        if self._waiting is not None:
            self._waiting.add([submission.job_id])
        self.names[submission.job_id] = Path(request.img_path).name
        self._under_way = None
        if self._waiting is None:
            job = {"job_id": submission.job_id, "state": submission.state, "created": submission.created}
            emit(json.dumps(job) if self._as_json else submission.job_id)
