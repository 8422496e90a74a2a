"""The predecessor's protocol: a JSON object a line in, a JSON object a line out, until end of file. No queue.

In: ``{"img_path": "path/of/your/image.jpg", "destination_path": "path/of/your/outputs"}``.
Out: ``{"result": "ok", "diagnosis": …, "saliency_img_path": …, "overlay_img_path": …}``; on any fault ``result`` is
``fail`` and the other three are empty strings. Why, is said on standard error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from contract.errors import ErrorCode, InvalidRequestError, JobError
from contract.jobs import JobRequest
from worker.screening import Screener

#: What the predecessor says when it is ready; programs wait for it.
LOADED = "Loaded pretrained weights"


def serve(screener: Screener, lines: Iterable[bytes], answers: TextIO, remarks: TextIO) -> None:
    """Answer each line with one line.

    Args:
        screener: The engine, loaded.
        lines: Requests, UTF-8.
        answers: Where answers go, one line each, flushed.
        remarks: Where causes go.
    """
    print(LOADED, file=remarks, flush=True)
    for line in lines:
        try:
            img_path, destination_path = _read_request(line)
            screening = screener.screen(str(Path(img_path).absolute()), str(Path(destination_path).absolute()))
        except Exception as error:  # noqa: BLE001 - on any fault the protocol answers `fail`, and the next line is served
            print(_cause(error), file=remarks, flush=True)
            answer = {"result": "fail", "diagnosis": "", "saliency_img_path": "", "overlay_img_path": ""}
        else:
            answer = {
                "result": "ok",
                "diagnosis": screening.classification.diagnosis,
                "saliency_img_path": str(Path(destination_path) / Path(screening.saliency_img_path).name),
                "overlay_img_path": str(Path(destination_path) / Path(screening.overlay_img_path).name),
            }
        print(json.dumps(answer, ensure_ascii=False), file=answers, flush=True)


def _cause(error: Exception) -> str:
    if isinstance(error, JobError):
        return f"{error.code}: {error}"
    if isinstance(error, InvalidRequestError):
        return f"{ErrorCode.INVALID_REQUEST}: {error}"
    return f"{ErrorCode.INTERNAL_ERROR}: {type(error).__name__}: {error}"


def _read_request(line: bytes) -> tuple[str, str]:
    """The two paths of a line; the predecessor lets other fields pass, and so do we."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the line is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("the line is not a JSON object")
    request = JobRequest.parse({name: document[name] for name in ("img_path", "destination_path") if name in document})
    return request.img_path, request.destination_path
