"""A network that puts out its logits and the Grad-CAM maps of all its classes, as one graph for any library to run."""

import copy

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from panoramic.model_file import Model
from panoramic.network import Ensemble, forward_with_activation, fuse_for_inference, head_weight, restore


class ExplainedNetwork(nn.Module):
    """A model's network, batch norms folded into their convolutions, with the maps as a second output.

    The maps are those of `panoramic.grad_cam.closed_form` before ReLU, which a 1×1 convolution computes: there are few
    classes, so all of them cost nothing beside the network, and whoever reads the logits picks the diagnosed one.
    """

    def __init__(self, model: Model, *, half: bool = False):
        """Build the network in evaluation mode on the CPU; the model's tensors stay as they are.

        Args:
            model: From `panoramic.model_file.load_model`.
            half: Run all but the head in float16.
        """
        super().__init__()
        net = fuse_for_inference(restore(model.manifest.network, model.state_dict))
        self._classes = len(model.manifest.classes)
        self._net = _HalfBody(net) if half else net
        weight = head_weight(self._net)[: self._classes]  # (C, K)
        self.register_buffer("_map_weight", weight[:, :, None, None].detach().clone())
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and maps (N, C, h, w), in logits a place, for x, (N, 3, H, W) of float32."""
        logits, activation = forward_with_activation(self._net, x)  # (N, outputs), (N, K, h, w)
        height, width = activation.shape[2:]
        maps = nn.functional.conv2d(activation, self.get_buffer("_map_weight")) / (height * width)
        return logits[:, : self._classes], maps


class _HalfBody(nn.Module):
    """A network in float16 up to its last activation, and in float32 from there.

    Near 4 neighbouring numbers of float16 are 0.004 apart: logits of that precision would move a probability by the
    0.001 that is allowed at most. The head's arithmetic is next to nothing, so it keeps float32.
    """

    def __init__(self, net: EfficientNet | Ensemble):
        super().__init__()
        self._avg_pooling = net.get_submodule("_avg_pooling")
        self._dropout = net.get_submodule("_dropout")
        self._fc = copy.deepcopy(net.get_submodule("_fc"))
        self._body = net.half()

    def extract_features(self, x: torch.Tensor) -> torch.Tensor:
        activation: torch.Tensor = self._body.extract_features(x.half())
        return activation.float()
