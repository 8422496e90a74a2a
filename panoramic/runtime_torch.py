"""PyTorch as a runtime: the reference in float32, and a faster one with batch norms folded, on a CPU or a CUDA card."""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from panoramic.classification import Classification, answers, answers_with_maps, check_batch
from panoramic.errors import PanoramicError
from panoramic.explained_network import ExplainedNetwork
from panoramic.grad_cam import closed_form
from panoramic.model_file import Model
from panoramic.network import forward_with_activation, head_weight, restore
from panoramic.runtime import Runtime

_Net = TypeVar("_Net", bound=nn.Module)


class Classifier(Runtime):
    """A model run by PyTorch in float32 as its weights are, and what all others are compared with.

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
        super().__init__(model)
        self._net = _put(restore(model.manifest.network, model.state_dict), device)
        self._device = torch.device(device)

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain a batch, (N, 3, h, w); see `Runtime.classify` for the rule and the errors."""
        check_batch(self.model, batch)
        with torch.inference_mode(), _full_precision(self._device):
            logits, activation = forward_with_activation(self._net, _moved(batch, self._device))
            weight = head_weight(self._net)

            def cam_of(diagnosed: NDArray[np.intp]) -> NDArray[np.float32]:
                cams: NDArray[np.float32] = (
                    closed_form(activation, weight, class_index=torch.from_numpy(diagnosed)).cpu().numpy()
                )
                return cams

            of_classes = logits[:, : len(self.model.manifest.classes)].cpu().numpy()
            return answers(self.model, of_classes, cam_of=cam_of, where=str(self._device))


class FusedClassifier(Runtime):
    """A model run by PyTorch with batch norms folded and channels innermost, in float32 or float16.

    Its answers differ from the reference's by rounding, which in float16 is not little: `panoramic.runtime_choice`
    compares them before it relies on them.
    """

    def __init__(self, model: Model, *, device: str = "cpu", half: bool = False):
        """Put the model on its device.

        Args:
            model: From `panoramic.model_file.load_model`.
            device: ``cpu``, ``cuda`` or ``cuda:0`` and so on.
            half: Run in float16, which cards are several times faster in, and processors slower.

        Raises:
            PanoramicError: There is no such device.
        """
        super().__init__(model)
        self._net = _put(ExplainedNetwork(model, half=half), device)
        self._device = torch.device(device)
        self._where = f"{device} in float16" if half else device

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain a batch, (N, 3, h, w); see `Runtime.classify` for the rule and the errors."""
        check_batch(self.model, batch)
        with torch.inference_mode(), _full_precision(self._device):
            logits, maps = self._net(_moved(batch, self._device))
            return answers_with_maps(self.model, logits.cpu().numpy(), maps.cpu().numpy(), where=self._where)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        PanoramicError: It is neither ``cpu`` nor a CUDA card that PyTorch can use.
    """
    _put(nn.Linear(1, 1), device)


def _put(net: _Net, device: str) -> _Net:
    """Move a network, or say which devices there are."""
    fault = (
        f"the model cannot be put on device {device!r}; use cpu, or cuda:N with a PyTorch for CUDA and a free card "
        "numbered N"
    )
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise PanoramicError(fault)
    try:
        # Depthwise convolutions, which these networks are made of, run fastest with the channels innermost.
        net.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError) as exc:  # PyTorch built without CUDA asserts
        raise PanoramicError(fault) from exc
    return net


def _moved(batch: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    # The copy is PyTorch's to own: it warns of arrays that may not be written to.
    return torch.from_numpy(np.array(batch)).to(device, memory_format=torch.channels_last)


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Keep cuDNN from TensorFloat-32, which has ten bits of mantissa, and from algorithms that vary."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    return flags
