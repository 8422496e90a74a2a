"""A network that was never trained and behaves as if it had been, for measurements and tests.

It is an EfficientNet with seeded random weights, made presentable in two steps, since with the library's initial
values alone the signal dies out over the blocks (the last activation's deviation is about 1e-12) and every picture gets
the same answer and an empty map:

1. The batch norms' statistics are measured on seeded clouds of noise that range from dark to bright.
2. The head is a random direction, freed from what all those clouds have in common, and the same with the opposite sign
   for the other class. So the logits are opposite too, the diagnosed class's is not negative, and as it is the mean of
   what its map is made of, the map is not empty.
"""

from typing import Final

import torch
from efficientnet_pytorch import EfficientNet
from torch.nn import functional as F

from panoramic.network import build
from panoramic.preprocess import CHANNEL_MEAN, CHANNEL_STD

_SEED: Final = 1
#: (height, width) of the clouds of noise: half of a radiograph's at the network, for a quarter of the time.
_CLOUD_SIZE: Final = (225, 477)
#: Deviation, from place to place over the clouds, of what is averaged into the difference of the two logits. With 1 the
#: probabilities of radiographs lie between about 0.3 and 0.8, on both sides of the threshold.
_LOGIT_SPREAD: Final = 1.0


def untrained_network(network: str = "efficientnet-b0") -> EfficientNet:
    """The network in evaluation mode; the same weights every time on one kind of machine.

    The caller's random numbers are not disturbed.

    Args:
        network: One of `panoramic.network.NETWORKS`.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        net = build(network, outputs=2).eval()
        clouds = _clouds()
        _measure_batch_norms(net, clouds)
        _set_head(net, clouds)
    return net


def _clouds() -> torch.Tensor:
    """Three pictures of noise, dark to bright, normalised as radiographs are.

    There must be structure of every size, down to the pixel: channels that answer to what the clouds lack would be
    amplified without measure on the first radiograph that has it.
    """
    noise = torch.zeros(3, 1, *_CLOUD_SIZE)
    for octave in range(2, 9):
        grid = torch.randn(3, 1, 2**octave, 2 ** (octave + 1))
        noise += F.interpolate(grid, size=_CLOUD_SIZE, mode="bilinear") * 2 ** (-0.3 * octave)
    noise /= noise.std(dim=(2, 3), keepdim=True)
    noise += 0.2 * torch.randn(noise.shape)
    grey = torch.sigmoid(noise - torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1))
    mean = torch.tensor(CHANNEL_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(CHANNEL_STD).view(1, 3, 1, 1)
    return (grey - mean) / std  # (3, 3, h, w)


def _measure_batch_norms(net: EfficientNet, x: torch.Tensor) -> None:
    """Take each batch norm's mean and variance from one pass over x; all else stays in evaluation mode."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the statistics become those of this pass, not a blend with the initial ones
        norm.reset_running_stats()
        norm.train()
    net.extract_features(x)
    net.eval()


def _set_head(net: EfficientNet, x: torch.Tensor) -> None:
    """Make the head's two rows opposite, indifferent to the mean activation over x, and of moderate size."""
    activation = net.extract_features(x)  # (N, K, h, w)
    mean = activation.mean(dim=(0, 2, 3))  # (K,)
    direction = torch.randn(len(mean))
    direction -= (direction @ mean) / (mean @ mean) * mean
    spread = torch.einsum("nkhw,k->nhw", activation, direction).std()
    direction *= _LOGIT_SPREAD / spread
    head = net.get_submodule("_fc")
    head.weight.copy_(torch.stack([-direction / 2, direction / 2]))
    head.bias.zero_()
