"""From a network's numbers to an answer: one rule, whatever library computed them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import PanoramicError
from panoramic.manifest import Manifest
from panoramic.model_file import Model
from panoramic.network import EXPLAINED_LAYER

#: What results call the explanation; `panoramic.grad_cam` has its source.
METHOD: Final = "Grad-CAM"

#: Grad-CAM of one class for each picture: takes class indices (N,), gives maps (N, h, w).
CamOf = Callable[[NDArray[np.intp]], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Classification:
    """What the network says of one radiograph, and what its answer rests on."""

    probability: float
    """Of the finding, 0 to 1."""
    probabilities: dict[str, float]
    """Of each class by its name, in the order of the model's outputs; they add up to 1."""
    class_index: int
    """The diagnosed class."""
    class_name: str
    diagnosis: str
    """The diagnosed class's label."""
    cam: NDArray[np.float32]
    """Grad-CAM of the diagnosed class, (h, w), not negative: a coarse grid over the whole picture."""
    layer: str
    """The layer whose activation the map weighs."""
    method: str


def check_batch(model: Model, batch: NDArray[np.float32]) -> None:
    """Refuse what the model cannot take.

    Raises:
        ValueError: The batch is not (N, 3, h, w) of the model's input size, or not of finite float32.
    """
    expected = (3, *model.manifest.input_size)
    if batch.ndim != 4 or batch.shape[0] < 1 or batch.shape[1:] != expected or batch.dtype != np.float32:
        raise ValueError(
            f"batch has shape {batch.shape} and type {batch.dtype}; model {model.manifest.name} takes "
            f"(N, {', '.join(map(str, expected))}) of float32 with N at least 1, from panoramic.preprocess.prepare"
        )
    if not np.isfinite(batch).all():
        raise ValueError("batch has values that are infinite or not a number; prepare it from 8-bit grey levels")


def answers(model: Model, logits: NDArray[np.float32], *, cam_of: CamOf, where: str) -> list[Classification]:
    """Turn logits into diagnoses, by the rule of `panoramic.runtime.Runtime.classify`, and explain each.

    Args:
        model: Whose logits they are.
        logits: (N, C), one column for each of the model's classes.
        cam_of: Gives the maps of the diagnosed classes.
        where: Device and precision, for the message of an error: ``cpu``, ``cuda:0 in float16``.

    Raises:
        PanoramicError: Something is infinite or not a number.
    """
    with np.errstate(over="ignore"):
        scaled = logits.astype(np.float64) / model.manifest.temperature
    _check_finite(model, scaled, where=where)
    probabilities = _softmax(scaled)
    diagnosed = _diagnose(model.manifest, probabilities)
    cams = cam_of(diagnosed)  # (N, h, w)
    _check_finite(model, cams, where=where)
    classes = model.manifest.classes
    return [
        Classification(
            probability=p[model.manifest.finding_index],
            probabilities={c.name: value for c, value in zip(classes, p, strict=True)},
            class_index=index,
            class_name=classes[index].name,
            diagnosis=classes[index].label,
            cam=cam,
            layer=EXPLAINED_LAYER,
            method=METHOD,
        )
        for p, index, cam in zip(probabilities.tolist(), diagnosed.tolist(), cams, strict=True)
    ]


def answers_with_maps(
    model: Model, logits: NDArray[np.float32], maps: NDArray[np.float32], *, where: str
) -> list[Classification]:
    """What `answers` gives, from the two outputs of a `panoramic.explained_network.ExplainedNetwork`.

    Args:
        model: Whose outputs they are.
        logits: (N, C).
        maps: Of each class before ReLU, (N, C, h, w).
        where: As in `answers`.

    Raises:
        PanoramicError: Something is infinite or not a number.
    """

    def cam_of(diagnosed: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.maximum(maps[np.arange(len(maps)), diagnosed], np.float32(0))

    return answers(model, logits, cam_of=cam_of, where=where)


def _softmax(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C) to (N, C). In float32 two logits that differ in their last bits could tie, and the finding would win."""
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _diagnose(manifest: Manifest, probabilities: NDArray[np.float64]) -> NDArray[np.intp]:
    """(N, C) to class indices (N,)."""
    finding = manifest.finding_index
    others = probabilities.copy()
    others[:, finding] = -1
    is_finding = probabilities[:, finding] >= manifest.threshold
    return np.where(is_finding, finding, others.argmax(axis=1))


def _check_finite(model: Model, numbers: NDArray[np.floating], *, where: str) -> None:
    if not np.isfinite(numbers).all():
        raise PanoramicError(
            f"model {model.manifest.name} version {model.manifest.version} put out something infinite or not a number "
            f"on {where}; its weights do not suit its input, so train or export it again"
        )
