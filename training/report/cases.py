"""The hardest cases: pictures without the finding that score highest, and with it that score lowest."""

import base64
import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from training.predictions import Predictions
from training.report.context import CaseImages

#: How many of each kind are shown.
CASES_OF_A_KIND: Final = 6
#: Hex digits of a digest that name a picture.
NAME_DIGITS: Final = 8

#: Width of the embedded pictures: what a page shows, and small enough for a dozen pairs to be sent by mail.
_WIDTH_PX: Final = 720
_JPEG_QUALITY: Final = 88


@dataclass(frozen=True)
class Case:
    """One picture that the network got wrong, or nearly.

    Attributes:
        index: Into the predictions.
        digest: First digits of its pixel digest; a file name may be a patient's.
        truth: Label of the true class.
        diagnosis: Label of the diagnosed class.
        probability: Of the finding.
        threshold: That applied to it.
        wrong: Whether the diagnosis differs from the truth.
    """

    index: int
    digest: str
    truth: str
    diagnosis: str
    probability: float
    threshold: float
    wrong: bool


def hardest_cases(predictions: Predictions) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Most wrong first: up to `CASES_OF_A_KIND` without the finding, and as many with it; equal scores by digest."""
    diagnoses = predictions.diagnoses()

    def case(index: int) -> Case:
        truth, diagnosis = int(predictions.truths[index]), int(diagnoses[index])
        return Case(
            index=index,
            digest=predictions.digests[index][:NAME_DIGITS],
            truth=predictions.classes[truth].label,
            diagnosis=predictions.classes[diagnosis].label,
            probability=float(predictions.scores[index]),
            threshold=float(predictions.thresholds[int(predictions.folds[index])]),
            wrong=truth != diagnosis,
        )

    positives = predictions.positives
    high = sorted(np.flatnonzero(~positives), key=lambda i: (-predictions.scores[i], predictions.digests[i]))
    low = sorted(np.flatnonzero(positives), key=lambda i: (predictions.scores[i], predictions.digests[i]))
    return (
        tuple(case(int(i)) for i in high[:CASES_OF_A_KIND]),
        tuple(case(int(i)) for i in low[:CASES_OF_A_KIND]),
    )


def data_uris(images: CaseImages) -> tuple[str, str]:
    """The original and the overlay as they are embedded: JPEG, at most as wide as a page shows them."""
    with Image.open(io.BytesIO(images.overlay_png)) as overlay:
        return _data_uri(Image.fromarray(images.original)), _data_uri(overlay.convert("RGB"))


def _data_uri(image: Image.Image) -> str:
    if image.width > _WIDTH_PX:
        height = max(1, round(image.height * _WIDTH_PX / image.width))
        image = image.resize((_WIDTH_PX, height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
