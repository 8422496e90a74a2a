"""Kernels of our own as a runtime: the fastest on a CPU.

Milliseconds a picture in float32 on two cores of an AMD EPYC (Zen 4), the medians of both in turns: b7 at 449×954 in
our kernels 471 and in ONNX Runtime 571, b0 at 320×680 25 and 33, b0 at 224×224 7.6 and 9.9, b3 at 300×300 29 and 36;
b7 on one core 919 and 1038. With the kernels for AVX2 (``NUMBA_CPU_NAME=haswell``, and ONNX Runtime still with AVX-512)
b7 took 552 and 621, b0 55 and 61. ``python -m bench --only runtimes`` measures them on a machine;
`panoramic.runtime_onnx` compares ONNX Runtime with others.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from panoramic.classification import Classification, answers_with_maps, check_batch
from panoramic.model_file import Model
from panoramic.native.network import NativeNetwork
from panoramic.native.plan import plan
from panoramic.native.tiles import check_processor
from panoramic.network import fuse_for_inference, head_weight, members_of, restore
from panoramic.runtime import Runtime


class NativeClassifier(Runtime):
    """A model run by `panoramic.native` in float32 on the CPU."""

    def __init__(self, model: Model, *, threads: int = 0):
        """Arrange the model's weights for the kernels, which are compiled with the first picture, or found compiled.

        Args:
            model: From `panoramic.model_file.load_model`.
            threads: CPU threads; 0 for as many as PyTorch uses in this process.

        Raises:
            PanoramicError: The kernels are not for this machine.
        """
        super().__init__(model)
        check_processor()
        threads = threads or torch.get_num_threads()
        net = fuse_for_inference(restore(model.manifest.network, model.state_dict))
        plans = [plan(member, input_size=model.manifest.input_size, threads=threads) for member in members_of(net)]
        self._network = NativeNetwork(plans, threads=threads)
        classes = len(model.manifest.classes)
        self._weight = head_weight(net)[:classes].numpy()  # (C, K)
        self._bias = net.get_parameter("_fc.bias")[:classes].numpy()

    def classify(self, batch: NDArray[np.float32]) -> list[Classification]:
        """Classify and explain a batch, (N, 3, h, w); see `Runtime.classify` for the rule and the errors."""
        check_batch(self.model, batch)
        logits, maps = zip(*(self.explain(picture) for picture in batch), strict=True)
        return answers_with_maps(self.model, np.stack(logits), np.stack(maps), where="cpu")

    def explain(self, picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the network on one picture, (3, H, W), without checks: logits (C,), and maps before ReLU (C, h, w)."""
        activation = self._network.activation(picture)  # (h, w, K)
        height, width, _ = activation.shape
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            maps = activation @ self._weight.T / np.float32(height * width)  # (h, w, C)
            return maps.sum(axis=(0, 1)) + self._bias, np.moveaxis(maps, 2, 0)
