"""Times Grad-CAM in closed form against what it saves: a backward pass through the network.

``python -m bench.network`` takes about three minutes for the published network, b7 at 449×954; ``--network
efficientnet-b0`` takes seconds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet

from panoramic.grad_cam import closed_form
from panoramic.network import NETWORKS, build, forward_with_activation, fuse_for_inference, head_weight
from panoramic.preprocess import FULL_INPUT_SIZE

#: (height, width) on which the batch norms are set; any that leaves a few places in the last activation will do.
_CALIBRATION_SIZE = (160, 320)


def random_network(network: str) -> EfficientNet:
    """A network of seeded random weights whose signal does not die out.

    The batch norms' statistics are taken from noise. With the library's initial values activations shrink over the
    blocks to denormal numbers, which processors work on many times more slowly than on a trained network's.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build(network, outputs=2)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        net(torch.randn(2, 3, *_CALIBRATION_SIZE))
    return net.eval()


def measure(
    *, network: str = "efficientnet-b7", size: tuple[int, int] = FULL_INPUT_SIZE, repetitions: int = 3
) -> dict[str, Any]:
    """Time one picture through the network, with and without explanations, each in turn in every repetition.

    Ours runs as the worker does: batch norms fused, channels-last, in inference mode. The predecessor's runs in the
    library's own layout: forward, then backward from the largest logit to the input, whose absolute gradient is its
    map; once with frozen parameters, as the predecessor has them, and once with trainable ones, PyTorch's default.

    Args:
        network: One of `panoramic.network.NETWORKS`.
        size: (height, width) of the input.
        repetitions: How often each is timed, after one run to warm up.

    Returns:
        ``threads``; medians in seconds: ``forward_s`` (ours, with the activation kept), ``closed_form_s`` (our map
        from it), ``library_forward_s``, ``backward_frozen_s`` and ``backward_default_s`` (each forward and backward
        together); ``closed_form_share_percent`` of the forward pass; ``ratio_frozen`` and ``ratio_default``: how many
        times as long as our answer with its map the predecessor's takes.
    """
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)).clamp(-2, 2.6)
    plain = random_network(network)
    ours = fuse_for_inference(random_network(network).requires_grad_(False)).to(memory_format=torch.channels_last)
    ours_x = x.to(memory_format=torch.channels_last)
    kept: dict[str, torch.Tensor] = {}

    def forward() -> None:
        with torch.inference_mode():
            kept["logits"], kept["activation"] = forward_with_activation(ours, ours_x)

    def explain() -> None:
        with torch.inference_mode():
            closed_form(kept["activation"], head_weight(ours), class_index=kept["logits"].argmax(dim=1))

    def library_forward() -> None:
        with torch.inference_mode():
            plain(x)

    def backward(*, trainable: bool) -> None:
        plain.requires_grad_(trainable)
        asked = x.clone().requires_grad_()
        plain(asked).max().backward()
        if asked.grad is None:
            raise RuntimeError("no gradient reached the input")
        asked.grad.abs().amax(dim=1)
        plain.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], None]] = {
        "forward_s": forward,
        "closed_form_s": explain,
        "library_forward_s": library_forward,
        "backward_frozen_s": lambda: backward(trainable=False),
        "backward_default_s": lambda: backward(trainable=True),
    }
    times_s: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repetition > 0:
                times_s[name].append(time.perf_counter() - began)
    medians_s = {name: statistics.median(values) for name, values in times_s.items()}
    with_map_s = medians_s["forward_s"] + medians_s["closed_form_s"]
    return {
        "network": network,
        "size": size,
        "threads": torch.get_num_threads(),
        **medians_s,
        "closed_form_share_percent": 100 * medians_s["closed_form_s"] / medians_s["forward_s"],
        "ratio_frozen": medians_s["backward_frozen_s"] / with_map_s,
        "ratio_default": medians_s["backward_default_s"] / with_map_s,
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="efficientnet-b7")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(measure(network=options.network, repetitions=options.repetitions)))


if __name__ == "__main__":
    main()
