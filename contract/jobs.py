"""What is asked and what is answered: the request and the result of one job, as JSON.

Both are frozen and versioned, and refuse fields that they do not know. A message of theirs names the field
and the rule, never the value: a value may be a patient's name.
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from contract.errors import ErrorCode, InvalidRequestError

#: Version of both models; a consumer may rely on the fields of its major number.
SCHEMA_VERSION = "1.0"

#: Ids are opaque; a DICOM SOP Instance UID (PS3.5 section 9.1: at most 64 digits and dots) fits.
JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

#: Largest `metadata`, in bytes of JSON. It is for a reference, not for a document.
METADATA_MAX_BYTES = 4096

#: PATH_MAX of Linux.
PATH_MAX_CHARACTERS = 4096

RESEARCH_USE = "For research use only. Not a medical device; not for diagnosis, triage or treatment."


def _no_nul(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL character")
    return path


def _small(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
    if size > METADATA_MAX_BYTES:
        raise ValueError(f"is {size} bytes of JSON, at most {METADATA_MAX_BYTES} are allowed")
    return metadata


JobId = Annotated[str, StringConstraints(pattern=JOB_ID_PATTERN)]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=PATH_MAX_CHARACTERS), AfterValidator(_no_nul)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_small)]


class Priority(StrEnum):
    """Which of the two queues: every urgent job is taken before any routine one."""

    ROUTINE = "routine"
    URGENT = "urgent"


class JobState(StrEnum):
    """Where a job stands in the ledger."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended, and so has its one result."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class _Message(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, ser_json_inf_nan="null", allow_inf_nan=False
    )


class JobRequest(_Message):
    """One radiograph to screen.

    Attributes:
        img_path: The radiograph, as the worker sees the file system. Absolute.
        destination_path: Folder for the two pictures; made if it is missing. Absolute.
        job_id: Chosen by the client so that a repeated request is not run twice; else one is made up.
        model: Name of one of the models that the workers have loaded; else their first.
        priority: `routine` or `urgent`.
        metadata: Small and opaque; returned unchanged in the result.
    """

    img_path: FilePath
    destination_path: FilePath
    job_id: JobId | None = None
    model: ModelName | None = None
    priority: Priority = Priority.ROUTINE
    metadata: Metadata = Field(default_factory=dict)

    @classmethod
    def parse(cls, document: str | bytes | dict[str, Any]) -> Self:
        """Read a request from JSON text or from a dictionary.

        Raises:
            InvalidRequestError: It is not JSON, not an object, or does not fit; says which field and why.
        """
        try:
            if isinstance(document, dict):
                return cls.model_validate(document)
            return cls.model_validate_json(document)
        except ValidationError as error:
            raise InvalidRequestError(describe_validation_error(error)) from None

    def with_id(self) -> JobRequest:
        """This request with an id: its own, or a new one that means nothing."""
        return self if self.job_id else self.model_copy(update={"job_id": uuid.uuid4().hex})


class RuntimeReport(_Message):
    """What the weights were run by, and how far its answers were from the reference's when it was loaded.

    Attributes:
        name: `native`, `onnx`, `pytorch` or `reference`.
        library: Name and version.
        precision: `float32` or `float16`.
        device: `cpu` or `cuda:0`.
        max_probability_difference: Largest over the probe pictures and the classes.
        max_map_difference: Largest over the probe pictures, as a share of the map's range.
    """

    name: str
    library: str
    precision: str
    device: str
    max_probability_difference: float
    max_map_difference: float


class ModelInfo(_Message):
    """Which weights answered.

    Attributes:
        name: Name in the model file.
        version: Version in the model file.
        sha256: Digest of the weights, hexadecimal.
        intended_use: What the model may be used for, from its file.
        runtime: What ran them.
    """

    name: str
    version: str
    sha256: str
    intended_use: str
    runtime: RuntimeReport | None = None


class Explanation(_Message):
    """What the map shows.

    Attributes:
        method: `Grad-CAM`.
        class_label: The label of the class whose evidence is drawn (JSON: `class`).
        layer: The layer whose activation is weighted.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    method: str
    class_label: str = Field(alias="class")
    layer: str


class ErrorInfo(_Message):
    """Why a job failed: a code for programs, a sentence for people."""

    code: ErrorCode
    message: str


class JobResult(_Message):
    """The answer to one job. The first four keys are the predecessor's, with its values and meaning.

    Attributes:
        result: `ok` or `fail`.
        diagnosis: Label of the diagnosed class; empty on failure.
        saliency_img_path: The coloured map; empty on failure.
        overlay_img_path: The map on the radiograph; empty on failure.
        job_id: The job's id.
        schema_version: Version of this document.
        probability: Of the finding (osteoporosis), 0 to 1; null on failure.
        threshold: Probability from which the finding is diagnosed; null on failure.
        model: Which weights answered; null if none did.
        explanation: What the map shows; null on failure.
        warnings: Codes, in the order in which they arose.
        error: Null when `result` is `ok`.
        attempts: How often a worker took the job up.
        timings_ms: Milliseconds by stage.
        submitted_at: UTC.
        finished_at: UTC.
        worker: Name of the node that answered; null if none did.
        metadata: As it came in the request.
    """

    result: Literal["ok", "fail"]
    diagnosis: str = ""
    saliency_img_path: str = ""
    overlay_img_path: str = ""
    job_id: str
    schema_version: str = SCHEMA_VERSION
    probability: float | None = Field(default=None, ge=0, le=1)
    threshold: float | None = Field(default=None, ge=0, le=1)
    model: ModelInfo | None = None
    explanation: Explanation | None = None
    warnings: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    attempts: int = Field(default=0, ge=0)
    timings_ms: dict[str, float] = Field(default_factory=dict)
    submitted_at: datetime
    finished_at: datetime
    worker: str | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _failure_is_explained(self) -> Self:
        if (self.result == "fail") != (self.error is not None):
            raise ValueError("`error` is given exactly when `result` is `fail`")
        pictures = (self.diagnosis, self.saliency_img_path, self.overlay_img_path)
        if any(pictures) != (self.result == "ok") or not all(pictures) == (self.result == "ok"):
            raise ValueError("diagnosis and both picture paths are given exactly when `result` is `ok`")
        return self

    @property
    def state(self) -> JobState:
        """The terminal state that goes with this result (never `dead`, which the ledger alone decides)."""
        if self.error is None:
            return JobState.DONE
        return JobState.CANCELLED if self.error.code is ErrorCode.CANCELLED else JobState.FAILED


def describe_validation_error(error: ValidationError) -> str:
    """Say in one sentence which fields do not fit and why, without repeating any value."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        if fault["type"] in ("json_invalid", "json_type"):
            return "not JSON: send one JSON object with `img_path` and `destination_path`"
        if fault["type"] in ("model_type", "model_attributes_type"):
            return "not a JSON object: send one with `img_path` and `destination_path`"
        if fault["type"] in ("extra_forbidden", "invalid_key"):
            # The name of an unknown field is the sender's text, and might be anything.
            faults.append("a field that the contract does not know")
            continue
        where = ".".join(str(part) for part in fault["loc"][:1]) or "request"
        faults.append(f"`{where}`: {fault['msg']}")
    known = ", ".join(f"`{name}`" for name in JobRequest.model_fields)
    return f"{'; '.join(dict.fromkeys(faults))} (known fields: {known})"
