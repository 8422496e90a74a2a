"""The JSON forms of requests and results."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from contract.errors import ErrorCode, InvalidRequestError
from contract.jobs import (
    METADATA_MAX_BYTES,
    PATH_MAX_CHARACTERS,
    ErrorInfo,
    Explanation,
    JobRequest,
    JobResult,
    JobState,
    ModelInfo,
    Priority,
)

MINIMAL = {"img_path": "/in/a.png", "destination_path": "/out"}
CANARY = "Jane-Doe-1950"


def test_two_fields_are_enough() -> None:
    request = JobRequest.parse(MINIMAL)
    assert (request.priority, request.model, request.job_id, request.metadata) == (Priority.ROUTINE, None, None, {})


@pytest.mark.parametrize("form", [dict, json.dumps, lambda fields: json.dumps(fields).encode()])
def test_a_request_is_read_from_a_dictionary_text_or_bytes(form: Any) -> None:
    fields = {**MINIMAL, "job_id": "1.2.840.1", "model": "b7", "priority": "urgent", "metadata": {"case": [1, None]}}
    request = JobRequest.parse(form(fields))
    assert json.loads(request.model_dump_json()) == fields


def test_an_id_is_made_up_only_if_there_is_none() -> None:
    request = JobRequest.parse(MINIMAL)
    assert request.with_id().job_id != request.with_id().job_id
    assert JobRequest.parse({**MINIMAL, "job_id": "mine"}).with_id().job_id == "mine"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "`img_path`: Field required; `destination_path`: Field required"),
        ({**MINIMAL, CANARY: 1}, "a field that the contract does not know"),
        ({**MINIMAL, CANARY.encode(): 1}, "a field that the contract does not know"),
        ({**MINIMAL, "img_path": ""}, "`img_path`: String should have at least 1 character"),
        ({**MINIMAL, "img_path": f"{CANARY}\0"}, "`img_path`: .*NUL"),
        ({**MINIMAL, "img_path": f"{CANARY}\udcff"}, "`img_path`: .*unicode"),
        ({**MINIMAL, "img_path": CANARY * PATH_MAX_CHARACTERS}, "`img_path`: .*at most 4096 characters"),
        ({**MINIMAL, "img_path": 7}, "`img_path`: Input should be a valid string"),
        ({**MINIMAL, "destination_path": None}, "`destination_path`: Input should be a valid string"),
        ({**MINIMAL, "job_id": f"/{CANARY}"}, "`job_id`: String should match pattern"),
        ({**MINIMAL, "job_id": "a" * 65}, "`job_id`: String should match pattern"),
        ({**MINIMAL, "job_id": "a\n"}, "`job_id`: String should match pattern"),
        ({**MINIMAL, "model": f"../{CANARY}"}, "`model`: String should match pattern"),
        ({**MINIMAL, "priority": CANARY}, "`priority`: Input should be 'routine' or 'urgent'"),
        ({**MINIMAL, "metadata": [CANARY]}, "`metadata`: Input should be a valid dictionary"),
        ({**MINIMAL, "metadata": {CANARY: "x" * METADATA_MAX_BYTES}}, "`metadata`: .*at most 4096 are allowed"),
        ({**MINIMAL, "metadata": {CANARY: float("nan")}}, "`metadata`: Input should be a finite number"),
        ({**MINIMAL, "metadata": {CANARY: object()}}, "`metadata`: "),
        (f'"{CANARY}"', "not a JSON object"),
        (f'["{CANARY}"]', "not a JSON object"),
        (f"{{{CANARY}", "not JSON"),
        (f"{CANARY}\udcff", "`request`: .*unicode"),
        (CANARY.encode() + b"\xff", "not JSON"),
        ('{"img_path": "\\udcff' + CANARY + '", "destination_path": "/out"}', "not JSON"),
        (
            f'{{"img_path": "a", "destination_path": "b", "metadata": {{"{CANARY}": NaN}}}}',
            "`metadata`: .*not JSON compliant",
        ),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_does_not_fit_is_said_without_repeating_it(document: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        JobRequest.parse(document)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_metadata_may_be_as_large_as_the_limit() -> None:
    metadata = {"k": "x" * (METADATA_MAX_BYTES - len('{"k": ""}'))}
    assert len(json.dumps(metadata)) == METADATA_MAX_BYTES
    assert JobRequest.parse({**MINIMAL, "metadata": metadata}).metadata == metadata


def test_requests_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JobRequest.parse(MINIMAL).img_path = "/other"  # type: ignore[misc]


def result(**changes: Any) -> JobResult:
    fields: dict[str, Any] = {
        "result": "ok",
        "diagnosis": "Patient with Osteoporosis",
        "saliency_img_path": "/out/s.png",
        "overlay_img_path": "/out/o.png",
        "job_id": "a",
        "probability": 0.8125,
        "threshold": 0.5,
        "model": ModelInfo(name="b7", version="1", sha256="0" * 64, intended_use="research"),
        "explanation": Explanation(method="grad_cam", class_label="Patient with Osteoporosis", layer="_bn1"),
        "warnings": ("low_contrast",),
        "attempts": 1,
        "timings_ms": {"read": 12.5},
        "submitted_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "finished_at": datetime(2026, 1, 2, 3, 4, 6, 500_000, tzinfo=UTC),
        "worker": "gpu0@host",
        "metadata": {"case": 7},
    }
    return JobResult.model_validate(fields | changes)


FAILED = {"result": "fail", "diagnosis": "", "saliency_img_path": "", "overlay_img_path": ""}


def test_a_result_begins_with_the_four_keys_of_the_predecessor() -> None:
    document = json.loads(result().model_dump_json())
    assert list(document)[:4] == ["result", "diagnosis", "saliency_img_path", "overlay_img_path"]
    assert list(document.values())[:4] == ["ok", "Patient with Osteoporosis", "/out/s.png", "/out/o.png"]


def test_a_failure_begins_as_the_predecessors_did() -> None:
    error = ErrorInfo(code=ErrorCode.IMAGE_NOT_FOUND, message="there is no such file")
    document = json.loads(result(**FAILED, error=error, probability=None).model_dump_json())
    assert list(document.items())[:4] == list(FAILED.items())
    assert document["error"] == {"code": "image_not_found", "message": "there is no such file"}


def test_a_result_is_the_same_after_json_and_names_the_class_class() -> None:
    document = result().model_dump_json()
    assert JobResult.model_validate_json(document) == result()
    assert JobResult.model_validate_json(document).model_dump_json() == document
    fields = json.loads(document)
    assert fields["explanation"] == {"method": "grad_cam", "class": "Patient with Osteoporosis", "layer": "_bn1"}
    assert fields["submitted_at"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    "changes",
    [
        {"result": "fail"},
        {**FAILED},
        {"error": ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="x")},
        {"saliency_img_path": ""},
        {"result": "fail", "error": ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="x")},
    ],
)
def test_a_result_is_a_success_or_a_failure_and_not_a_bit_of_both(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly when `result` is"):
        result(**changes)


@pytest.mark.parametrize("probability", [-0.01, 1.01, float("nan")])
def test_a_probability_is_one(probability: float) -> None:
    with pytest.raises(ValidationError, match="probability"):
        result(probability=probability)


@pytest.mark.parametrize(
    ("code", "state"),
    [(None, JobState.DONE), (ErrorCode.CANCELLED, JobState.CANCELLED), (ErrorCode.MODEL_UNAVAILABLE, JobState.FAILED)],
)
def test_a_result_knows_its_state(code: ErrorCode | None, state: JobState) -> None:
    failed = {**FAILED, "error": ErrorInfo(code=code, message="x")} if code else {}
    assert result(**failed).state is state


def test_terminal_states_are_all_but_queued_and_running() -> None:
    assert {state.value for state in JobState if not state.is_terminal} == {"queued", "running"}
