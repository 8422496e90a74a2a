"""The one result of a job, from what the engine found or what went wrong."""

from __future__ import annotations

from datetime import UTC, datetime

from contract.errors import JobError
from contract.jobs import ErrorInfo, Explanation, JobResult, ModelInfo, RuntimeReport
from contract.records import Claim
from worker.screening import Screening


def make_result(claim: Claim, outcome: Screening | JobError, *, node: str, engine_ms: float) -> JobResult:
    """Put a result together.

    Args:
        claim: The job in hand.
        outcome: What the engine found, or why it found nothing.
        node: Name of this node.
        engine_ms: Milliseconds since the job was taken up.
    """
    timings_ms = {"queued": round(claim.waited_ms, 3)}
    common = {
        "job_id": claim.job_id,
        "attempts": claim.attempts,
        "submitted_at": claim.submitted_at,
        "finished_at": datetime.now(UTC),
        "worker": node,
        "metadata": claim.request.metadata,
    }
    if isinstance(outcome, JobError):
        timings_ms["engine"] = round(engine_ms, 3)
        return JobResult.model_validate(
            {
                "result": "fail",
                "error": ErrorInfo(code=outcome.code, message=outcome.message),
                "timings_ms": timings_ms,
                **common,
            }
        )
    timings_ms |= outcome.timings_ms
    timings_ms["engine"] = round(engine_ms, 3)
    manifest, classification, runtime = outcome.manifest, outcome.classification, outcome.runtime
    return JobResult.model_validate(
        {
            "result": "ok",
            "diagnosis": classification.diagnosis,
            "saliency_img_path": outcome.saliency_img_path,
            "overlay_img_path": outcome.overlay_img_path,
            "probability": classification.probability,
            "threshold": manifest.threshold,
            "model": ModelInfo(
                name=manifest.name,
                version=manifest.version,
                sha256=manifest.sha256,
                intended_use=manifest.intended_use,
                runtime=RuntimeReport(
                    name=runtime.name.value,
                    library=runtime.library,
                    precision=runtime.precision.value,
                    device=runtime.device,
                    max_probability_difference=runtime.max_probability_difference,
                    max_map_difference=runtime.max_map_difference,
                ),
            ),
            "explanation": Explanation(
                method=classification.method, class_label=classification.diagnosis, layer=classification.layer
            ),
            "warnings": outcome.warnings,
            "timings_ms": timings_ms,
            **common,
        }
    )
