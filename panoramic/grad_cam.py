"""Grad-CAM: which places of the last convolution's activation speak for a class.

Selvaraju et al. 2017, arXiv:1610.02391. With A the activation of K channels (h × w places, Z = h·w) and y^c the logit
of class c:

- eq. 1: α_k^c = 1/Z · Σ_ij ∂y^c/∂A_k,ij
- eq. 2: L^c = ReLU(Σ_k α_k^c · A_k)

Where all that follows A is a global average and a linear layer W, ∂y^c/∂A_k,ij = W[c, k]/Z everywhere, so α_k^c is
W[c, k]/Z and the map needs no backward pass: it is the class activation map of Zhou et al. 2016, arXiv:1512.04150,
divided by Z, with its negative part cut off. `closed_form` computes that; `general_form` asks autograd and takes any
network.

A map shows what the network's answer rests on. It is no localisation of disease (Saporta et al. 2022; Arun et al.,
arXiv:2008.02766).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def closed_form(
    activation: torch.Tensor, head_weight: torch.Tensor, *, class_index: int | torch.Tensor
) -> torch.Tensor:
    """Grad-CAM of a network that ends in global average pooling and one linear layer, from its forward pass alone.

    Args:
        activation: A, (N, K, h, w): what goes into the pooling.
        head_weight: W, (C, K), of the linear layer.
        class_index: The class to explain, or one for each of the batch, (N,) of integers.

    Returns:
        (N, h, w), not negative, in logits a place: where nothing is cut off, its sum is y^c without the bias.

    Raises:
        ValueError: The shapes do not belong together, or a class does not exist.
    """
    if activation.ndim != 4 or head_weight.ndim != 2 or activation.shape[1] != head_weight.shape[1]:
        raise ValueError(
            f"activation is {tuple(activation.shape)} and head_weight {tuple(head_weight.shape)}; they must be "
            "(N, K, h, w) and (C, K), with the same K"
        )
    n, _, height, width = activation.shape
    classes = _classes(class_index, n=n, outputs=head_weight.shape[0], device=activation.device)
    weighted = torch.einsum("nkhw,nk->nhw", activation, head_weight[classes])
    return torch.relu(weighted) / (height * width)


def general_form(
    net: nn.Module, layer: nn.Module, x: torch.Tensor, *, class_index: int | torch.Tensor, at_input: bool = False
) -> torch.Tensor:
    """Grad-CAM of any network at any convolutional layer, by autograd (eq. 1 and 2).

    Neither the parameters' ``.grad`` nor their ``requires_grad`` is touched, and frozen parameters do no harm. Put the
    network in evaluation mode first: batch norm and dropout otherwise explain some other network.

    Args:
        net: Maps x to logits (N, C).
        layer: A module of the network, used once in a pass, whose output is (N, K, h, w).
        x: A batch of inputs, (N, ...), not made in inference mode.
        class_index: The class to explain, or one for each of the batch, (N,) of integers.
        at_input: Explain what goes into the layer instead. EfficientNet needs it: its last activation comes out of a
            module that it uses at its beginning too, but goes into ``_avg_pooling`` alone.

    Returns:
        (N, h, w), not negative, detached.

    Raises:
        ValueError: The layer was not used exactly once, does not put out (N, K, h, w), or a class does not exist.
    """
    with torch.enable_grad():
        with _recording(layer, at_input=at_input) as recorded:
            logits: torch.Tensor = net(x)  # (N, C)
        if len(recorded) != 1 or recorded[0].ndim != 4:
            shapes = [tuple(tensor.shape) for tensor in recorded]
            raise ValueError(
                f"the layer gave {len(recorded)} activations in one pass, of shapes {shapes}; Grad-CAM needs one of "
                "(N, K, h, w). Choose a convolutional layer that the network uses once."
            )
        (activation,) = recorded
        classes = _classes(class_index, n=logits.shape[0], outputs=logits.shape[1], device=logits.device)
        # The members of a batch do not mix, so the gradient of their sum is the gradient of each.
        score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, activation)  # (N, K, h, w)
    alpha = gradient.mean(dim=(2, 3))  # (N, K), eq. 1
    return torch.relu(torch.einsum("nkhw,nk->nhw", activation.detach(), alpha))  # eq. 2


@contextmanager
def _recording(layer: nn.Module, *, at_input: bool) -> Iterator[list[torch.Tensor]]:
    """Collect what the layer puts out (or takes in) as tensors that a gradient can be asked for."""
    recorded: list[torch.Tensor] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.requires_grad:  # nothing before this layer is trainable
            tensor = tensor.detach().requires_grad_()
        recorded.append(tensor)
        # A copy goes on, for what follows may work in place, and the gradient would then be of something else.
        return tensor.clone()

    def after(_layer: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return record(output)

    def before(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (record(args[0]), *args[1:])

    handle = layer.register_forward_pre_hook(before) if at_input else layer.register_forward_hook(after)
    try:
        yield recorded
    finally:
        handle.remove()


def _classes(class_index: int | torch.Tensor, *, n: int, outputs: int, device: torch.device) -> torch.Tensor:
    """One class for each of the batch, (N,), each of them an output of the network."""
    classes = torch.as_tensor(class_index, device=device)
    if classes.is_floating_point() or classes.shape not in {(), (n,)}:
        raise ValueError(f"class_index is {class_index}; it must be one integer, or one for each of the batch of {n}")
    if bool(((classes < 0) | (classes >= outputs)).any()):
        raise ValueError(f"class_index is {class_index}; the network has classes 0 to {outputs - 1}")
    return classes.expand(n)
