"""The EfficientNets: built without any download, recognised by their tensors, run with the activation to explain them.

Tan and Le 2019, arXiv:1905.11946, as ``efficientnet_pytorch`` builds them, since the published weights are of that
library. Each network keeps the library's own padding, which belongs to the network's native square size and not to the
size that it is fed: the published networks were trained that way, and another padding gives other answers.
"""

from collections.abc import Mapping
from typing import Final

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from torch.nn.utils.fusion import fuse_conv_bn_eval

from panoramic.errors import ModelFileError

#: (channels of the stem, channels of the last convolution, number of blocks): together they tell the networks apart.
_FORM: Final = {
    "efficientnet-b0": (32, 1280, 16),
    "efficientnet-b1": (32, 1280, 23),
    "efficientnet-b2": (32, 1408, 23),
    "efficientnet-b3": (40, 1536, 26),
    "efficientnet-b4": (48, 1792, 32),
    "efficientnet-b5": (48, 2048, 39),
    "efficientnet-b6": (56, 2304, 45),
    "efficientnet-b7": (64, 2560, 55),
}

#: The networks that weights may be of.
NETWORKS: Final = tuple(_FORM)

#: The module whose input is explained: what the last convolution, its batch norm and its swish put out.
EXPLAINED_MODULE: Final = "_avg_pooling"

#: What results call that layer.
EXPLAINED_LAYER: Final = "_conv_head/_bn1/_swish"

_STEM: Final = "_conv_stem.weight"
_LAST_CONVOLUTION: Final = "_conv_head.weight"
_HEAD: Final = "_fc.weight"


def build(network: str, *, outputs: int) -> EfficientNet:
    """A network with random weights, ready to train.

    Args:
        network: One of `NETWORKS`.
        outputs: Width of the last linear layer.

    Raises:
        ValueError: Not one of `NETWORKS`, or no output.
    """
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}; it must be one of {', '.join(NETWORKS)}")
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; a network needs at least 1 output")
    return EfficientNet.from_name(network, num_classes=outputs)


def restore(network: str, state_dict: Mapping[str, torch.Tensor]) -> EfficientNet:
    """A network with these weights, in evaluation mode, its parameters frozen.

    The tensors are used as they are, not copied.

    Args:
        network: One of `NETWORKS`.
        state_dict: What `check_tensors` accepts.
    """
    with torch.device("meta"):  # 64 million random numbers need not be drawn only to be replaced
        net = build(network, outputs=state_dict[_HEAD].shape[0])
    net.load_state_dict(state_dict, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def fuse_for_inference(net: EfficientNet) -> EfficientNet:
    """Make a network from `restore` faster: batch norms become part of their convolutions, swish runs in place.

    The answers are those of the network as it was but for rounding: the same sums in another order.

    Args:
        net: In evaluation mode; changed and returned.
    """
    for module in net.modules():
        if isinstance(module, EfficientNet):
            pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
        elif isinstance(module, MBConvBlock):
            expansion = [("_expand_conv", "_bn0")] if hasattr(module, "_expand_conv") else []
            pairs = [*expansion, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        else:
            continue
        for convolution, norm in pairs:
            fused = fuse_conv_bn_eval(module.get_submodule(convolution), module.get_submodule(norm))
            setattr(module, convolution, fused.requires_grad_(False))
            setattr(module, norm, torch.nn.Identity())
        # The library's own swish keeps what a backward pass would need.
        module._swish = torch.nn.SiLU(inplace=True)  # noqa: SLF001
    return net


def network_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Which network these weights are of, told from their shapes; file names are not trusted with that.

    Args:
        state_dict: Tensors by the names that ``efficientnet_pytorch`` gives them.

    Returns:
        One of `NETWORKS`.

    Raises:
        ModelFileError: None of them fits; the message lists what was found.
    """
    missing = [name for name in (_STEM, _LAST_CONVOLUTION, _HEAD) if name not in state_dict]
    if missing:
        raise ModelFileError(
            f"the weights are of no network that efficientnet_pytorch builds: {', '.join(missing)} is missing among "
            f"{len(state_dict)} tensors. Convert them, or train one of {', '.join(NETWORKS)}."
        )
    blocks = {name.split(".")[1] for name in state_dict if name.startswith("_blocks.")}
    found = (_channels(state_dict[_STEM]), _channels(state_dict[_LAST_CONVOLUTION]), len(blocks))
    for network, form in _FORM.items():
        if form == found:
            return network
    raise ModelFileError(
        f"the weights are of no known network: the stem has {found[0]} channels, the last convolution {found[1]}, and "
        f"there are {found[2]} blocks. Known are " + "; ".join(f"{n}: {f[0]}, {f[1]}, {f[2]}" for n, f in _FORM.items())
    )


def outputs_of(state_dict: Mapping[str, torch.Tensor]) -> int:
    """The number of outputs of weights that `network_of` knows."""
    return _channels(state_dict[_HEAD])


def check_tensors(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Compare every name and shape with the network that `network_of` names.

    Raises:
        ModelFileError: One is missing, too many or of another shape.
    """
    network = network_of(state_dict)
    with torch.device("meta"):
        expected = build(network, outputs=max(1, outputs_of(state_dict))).state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state_dict]
    faults += [f"{name} is not part of it" for name in state_dict if name not in expected]
    faults += [
        f"{name} is {tuple(tensor.shape)} and must be {tuple(expected[name].shape)}"
        for name, tensor in state_dict.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelFileError(f"the weights are not those of {network}: {'; '.join(faults[:3])}{more}")


def forward_with_activation(net: EfficientNet, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the network once; what comes out is ``net(x)`` and the activation that its explanation needs.

    Args:
        net: From `build` or `restore`.
        x: (N, 3, H, W).

    Returns:
        Logits (N, outputs), and A (N, K, h, w) after the last convolution, its batch norm and its swish, with h and w
        about a thirty-second of H and W.
    """
    activation: torch.Tensor = net.extract_features(x)  # (N, K, h, w)
    pooled = net.get_submodule(EXPLAINED_MODULE)(activation).flatten(start_dim=1)  # (N, K)
    logits: torch.Tensor = net.get_submodule("_fc")(net.get_submodule("_dropout")(pooled))  # (N, outputs)
    return logits, activation


def head_weight(net: EfficientNet) -> torch.Tensor:
    """The weight of the last linear layer, (outputs, K)."""
    weight: torch.Tensor = net.get_parameter(_HEAD)
    return weight


def _channels(tensor: torch.Tensor) -> int:
    """The first dimension, which is the number of output channels; 0 for a scalar."""
    return tensor.shape[0] if tensor.ndim else 0
