"""Times Grad-CAM in closed form against its general form, Captum's, and the predecessor's gradient at the input."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerGradCam

from bench.scale import Scale
from bench.summary import Row, Spread, shown, spread
from bench.untrained import untrained_network
from panoramic.grad_cam import closed_form, general_form
from panoramic.network import EXPLAINED_MODULE, forward_with_activation, fuse_for_inference, head_weight

#: b7 forward and backward takes up to half a minute.
MOST_REPETITIONS = 3

#: What gives an answer with its map otherwise than in closed form, by the name of its time.
WITH_BACKWARD = {
    "captum_ms": "Captum's LayerGradCam",
    "general_form_ms": "general form",
    "saliency_frozen_ms": "the predecessor's input gradient",
    "saliency_trainable_ms": "the same, parameters not frozen",
}


def measure(scale: Scale) -> dict[str, Any]:
    """Time one picture through the network, with and without explanations, each in turn in every repetition.

    Everything runs in PyTorch on the CPU, and the network that the ratios are of in the package's own layout, so that
    what is compared is the method and neither library nor layout. For all but the closed form PyTorch must keep a
    record: the general form and Captum's go back from the logit to the last activation, the predecessor's map to the
    input. ``forward_ms`` is that of the worker's fused PyTorch: batch norms folded, channels-last.

    Args:
        scale: Which network and input, and how often, `MOST_REPETITIONS` at most, after one run to warm up.

    Returns:
        ``threads``; times in milliseconds: ``forward_ms`` (ours, with the activation kept), ``closed_form_ms`` (our map
        from it), ``library_forward_ms``, and those of `WITH_BACKWARD`; ``closed_form_share_percent`` of the forward
        pass; ``ratios`` by the names of `WITH_BACKWARD`: how many times as long as ``library_forward_ms`` with our map.
    """
    network, repetitions = scale.large_network, min(MOST_REPETITIONS, scale.repetitions)
    x = torch.randn(1, 3, *scale.input_size, generator=torch.Generator().manual_seed(1)).clamp(-2, 2.6)
    plain = untrained_network(network).requires_grad_(requires_grad=False)
    pooling = plain.get_submodule(EXPLAINED_MODULE)
    ours = fuse_for_inference(untrained_network(network).requires_grad_(requires_grad=False))
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's types lack it
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

    def captum() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of hooks that it sets itself
            LayerGradCam(plain, pooling).attribute(
                x.clone().requires_grad_(), 1, attribute_to_layer_input=True, relu_attributions=True
            )

    def saliency(*, trainable: bool) -> None:
        plain.requires_grad_(trainable)
        asked = x.clone().requires_grad_()
        plain(asked).max().backward()
        if asked.grad is None:
            raise RuntimeError("no gradient reached the input")
        asked.grad.abs().amax(dim=1)
        plain.zero_grad(set_to_none=True)
        plain.requires_grad_(requires_grad=False)

    steps: dict[str, Callable[[], object]] = {
        "forward_ms": forward,
        "closed_form_ms": explain,
        "library_forward_ms": library_forward,
        "captum_ms": captum,
        "general_form_ms": lambda: general_form(plain, pooling, x, class_index=1, at_input=True),
        "saliency_frozen_ms": lambda: saliency(trainable=False),
        "saliency_trainable_ms": lambda: saliency(trainable=True),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repetition > 0:
                times_ms[name].append((time.perf_counter() - began) * 1000)
    found: dict[str, Spread] = {name: spread(values) for name, values in times_ms.items()}
    with_map_ms = found["library_forward_ms"]["median"] + found["closed_form_ms"]["median"]
    return {
        "network": network,
        "size": scale.input_size,
        "threads": torch.get_num_threads(),
        **found,
        "closed_form_share_percent": 100 * found["closed_form_ms"]["median"] / found["forward_ms"]["median"],
        "ratios": {name: round(found[name]["median"] / with_map_ms, 2) for name in WITH_BACKWARD},
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """For the table."""
    return [
        (f"{found['network']} in PyTorch, forward", shown(found["forward_ms"], "ms"), ""),
        ("  closed form on top", shown(found["closed_form_ms"], "ms"), ""),
        ("    share of the forward pass", f"{found['closed_form_share_percent']:.2f} %", "3 %"),
        ("  forward in the package's own layout", shown(found["library_forward_ms"], "ms"), ""),
        *((f"  {title}, with its passes", shown(found[name], "ms"), "") for name, title in WITH_BACKWARD.items()),
        *((f"    ratio, {title}", f"{found['ratios'][name]:.1f} times", "") for name, title in WITH_BACKWARD.items()),
    ]
