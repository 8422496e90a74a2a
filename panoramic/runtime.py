"""A loaded model that classifies batches and explains each answer, in one forward pass.

`Runtime` is what callers rely on; `Classifier` is it in PyTorch, on a CPU or a CUDA card.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from panoramic.errors import PanoramicError
from panoramic.grad_cam import closed_form
from panoramic.model_file import Model
from panoramic.network import EXPLAINED_LAYER, forward_with_activation, head_weight, restore

#: What results call the explanation; `panoramic.grad_cam` has its source.
METHOD = "Grad-CAM"


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


class Runtime(Protocol):
    """A model made ready to run on some device by some library."""

    @property
    def model(self) -> Model:
        """The model that answers."""

    def warm_up(self) -> None:
        """Run once on an empty picture, so that the first radiograph does not pay for allocation and set-up."""

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain pictures from `panoramic.preprocess.prepare`, (N, 3, h, w); one answer each, in order.

        **The diagnosis is the finding if its probability reaches the model's threshold; otherwise it is the most
        probable of the other classes.** With two classes and a threshold of 0.5 that is the larger logit, as in the
        predecessor (save for an exact tie, which counts as the finding). With more classes it is not always the
        largest probability, on purpose: a threshold chosen for its sensitivity must mean the same in every result.

        Raises:
            ValueError: The batch is not of the model's input size, or not of finite float32.
            PanoramicError: The network put out something infinite or not a number.
        """


class Classifier:
    """A model run by PyTorch in float32; a `Runtime`.

    On the CPU the same batch gives the same bits every time (with the same number of threads on the same machine).
    """

    def __init__(self, model: Model, *, device: str = "cpu"):
        """Put the model on its device.

        Args:
            model: From `panoramic.model_file.load_model`.
            device: ``cpu``, ``cuda`` or ``cuda:0`` and so on.

        Raises:
            PanoramicError: There is no such device.
        """
        self._model = model
        fault = (
            f"the model cannot be put on device {device!r}; use cpu, or cuda:N with a PyTorch for CUDA and a free card "
            "numbered N"
        )
        if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
            raise PanoramicError(fault)
        net = restore(model.manifest.network, model.state_dict)
        try:
            self._device = torch.device(device)
            # Depthwise convolutions, which these networks are made of, run fastest with the channels innermost.
            self._net = net.to(self._device, memory_format=torch.channels_last)
        except (RuntimeError, AssertionError) as exc:  # PyTorch built without CUDA asserts
            raise PanoramicError(fault) from exc

    @property
    def model(self) -> Model:
        """The model that answers."""
        return self._model

    def warm_up(self) -> None:
        """Run once on an empty picture; see `Runtime.warm_up`."""
        self.classify(np.zeros((1, 3, *self._model.manifest.input_size), np.float32))

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain a batch, (N, 3, h, w); see `Runtime.classify` for the rule and the errors."""
        self._check(batch)
        manifest = self._model.manifest
        with torch.inference_mode(), self._full_precision():
            # The copy is PyTorch's to own: it warns of arrays that may not be written to.
            x = torch.from_numpy(np.array(batch)).to(self._device, memory_format=torch.channels_last)
            logits, activation = forward_with_activation(self._net, x)  # (N, outputs), (N, K, h', w')
            logits = logits[:, : len(manifest.classes)]
            # In float32 two logits that differ in their last bits could tie, and the finding would win.
            probabilities = torch.softmax(logits.double() / manifest.temperature, dim=1)  # (N, C)
            finding = manifest.finding_index
            others = probabilities.clone()
            others[:, finding] = -1
            is_finding = probabilities[:, finding] >= manifest.threshold
            diagnosed = torch.where(is_finding, finding, others.argmax(dim=1))  # (N,)
            cams = closed_form(activation, head_weight(self._net), class_index=diagnosed)  # (N, h', w')
        if not all(bool(torch.isfinite(numbers).all()) for numbers in (logits, probabilities, cams)):
            raise PanoramicError(
                f"model {manifest.name} version {manifest.version} put out something infinite or not a number on "
                f"{self._device}; its weights do not suit its input, so train or export it again"
            )
        return [
            self._classification(p, class_index=i, cam=cam)
            for p, i, cam in zip(probabilities.tolist(), diagnosed.tolist(), cams.cpu().numpy(), strict=True)
        ]

    def _classification(
        self, probabilities: list[float], *, class_index: int, cam: NDArray[np.float32]
    ) -> Classification:
        manifest = self._model.manifest
        diagnosed = manifest.classes[class_index]
        return Classification(
            probability=probabilities[manifest.finding_index],
            probabilities={c.name: p for c, p in zip(manifest.classes, probabilities, strict=True)},
            class_index=class_index,
            class_name=diagnosed.name,
            diagnosis=diagnosed.label,
            cam=cam,
            layer=EXPLAINED_LAYER,
            method=METHOD,
        )

    def _check(self, batch: NDArray[np.float32]) -> None:
        expected = (3, *self._model.manifest.input_size)
        if batch.ndim != 4 or batch.shape[0] < 1 or batch.shape[1:] != expected or batch.dtype != np.float32:
            raise ValueError(
                f"batch has shape {batch.shape} and type {batch.dtype}; model {self._model.manifest.name} takes "
                f"(N, {', '.join(map(str, expected))}) of float32 with N at least 1, from panoramic.preprocess.prepare"
            )
        if not np.isfinite(batch).all():
            raise ValueError("batch has values that are infinite or not a number; prepare it from 8-bit grey levels")

    def _full_precision(self) -> AbstractContextManager[None]:
        """Keep cuDNN from TensorFloat-32, which has ten bits of mantissa, and from algorithms that vary."""
        if self._device.type != "cuda":
            return nullcontext()
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=True, deterministic=True, allow_tf32=False
        )
        return flags
