"""The EfficientNets: built without any download, recognised by their tensors, run with the activation to explain them.

Tan and Le 2019, arXiv:1905.11946, as ``efficientnet_pytorch`` builds them, since the published weights are of that
library. Each network keeps the library's own padding, which belongs to the network's native square size and not to the
size that it is fed: the published networks were trained that way, and another padding gives other answers.

Several networks of one kind may answer together (`Ensemble`). The tensors of its members then stand side by side, each
name behind its member's number: ``0._fc.bias``, ``1._fc.bias``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from torch import nn
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

#: A tensor's name in an ensemble: its member's number, a dot, its name in the member.
_MEMBER: Final = re.compile(r"(0|[1-9]\d{0,2})\.(.+)")


class Ensemble(nn.Module):
    """Several networks as one, whose logits are the mean of theirs.

    With A_m what the last convolution of member m of M puts out, and W_m, b_m its head, the mean of the logits is
    Σ_m W_m/M · pool(A_m) + Σ_m b_m/M. That is one network: its activation is the A_m side by side along the channels,
    its head the W_m/M side by side. Built as that network, it has what `forward_with_activation` and `head_weight` ask
    for, and `panoramic.grad_cam.closed_form` explains the mean exactly.

    The head is a copy, made when the ensemble is: members that change afterwards are not followed.
    """

    def __init__(self, members: Sequence[EfficientNet]):
        """Join networks of one kind and one number of outputs, in evaluation mode, at least two."""
        super().__init__()
        self.members = nn.ModuleList(members)
        heads = [member.get_submodule("_fc") for member in members]
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Identity()
        weight = torch.cat([head.get_parameter("weight").detach() for head in heads], dim=1) / len(heads)
        bias = torch.stack([head.get_parameter("bias").detach() for head in heads]).mean(dim=0)
        with torch.device("meta"):
            self._fc = nn.Linear(weight.shape[1], weight.shape[0])
        self._fc.load_state_dict({"weight": weight, "bias": bias}, assign=True)

    def extract_features(self, x: torch.Tensor) -> torch.Tensor:
        """The activations of all members for x, (N, 3, H, W): (N, M·K, h, w)."""
        members: Iterable[EfficientNet] = self.members
        return torch.cat([member.extract_features(x) for member in members], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the members' logits for x, (N, 3, H, W): (N, outputs)."""
        return forward_with_activation(self, x)[0]


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


def restore(network: str, state_dict: Mapping[str, torch.Tensor]) -> EfficientNet | Ensemble:
    """A network with these weights, or an ensemble of several, in evaluation mode, its parameters frozen.

    The tensors are used as they are, not copied.

    Args:
        network: One of `NETWORKS`.
        state_dict: What `check_tensors` accepts.
    """
    members = []
    for tensors in split_members(state_dict):
        with torch.device("meta"):  # 64 million random numbers need not be drawn only to be replaced
            net = build(network, outputs=outputs_of(tensors))
        net.load_state_dict(tensors, strict=True, assign=True)
        members.append(net)
    whole = members[0] if len(members) == 1 else Ensemble(members)
    return whole.eval().requires_grad_(False)


def join_members(members: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of an ensemble: those of its members, each name behind the member's number.

    Args:
        members: State dicts; a single one stays as it is, for it is no ensemble.
    """
    if len(members) == 1:
        return dict(members[0])
    return {f"{index}.{name}": tensor for index, member in enumerate(members) for name, tensor in member.items()}


def split_members(state_dict: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, torch.Tensor], ...]:
    """The state dicts that `join_members` joined: one where the tensors are those of a single network.

    Raises:
        ModelFileError: Some tensors have a member's number and others none, or the numbers are not 0 to M - 1.
    """
    found = {name: _MEMBER.fullmatch(name) for name in state_dict}
    if not any(found.values()):
        return (state_dict,)
    members: dict[int, dict[str, torch.Tensor]] = {}
    for name, match in found.items():
        if match is None:
            raise ModelFileError(
                f"the weights are of an ensemble, but {name} lacks its member's number, such as 0.{name}"
            )
        members.setdefault(int(match[1]), {})[match[2]] = state_dict[name]
    if len(members) < 2 or set(members) != set(range(len(members))):
        numbers = ", ".join(map(str, sorted(members)))
        raise ModelFileError(
            f"the ensemble's members are numbered {numbers}; they must be 0, 1 and so on, at least two"
        )
    return tuple(members[index] for index in range(len(members)))


def members_of(net: EfficientNet | Ensemble) -> list[EfficientNet]:
    """The networks that answer together: of a single one, itself."""
    return list(net.members) if isinstance(net, Ensemble) else [net]


def fuse_for_inference(net: EfficientNet | Ensemble) -> EfficientNet | Ensemble:
    """Make what `restore` gives faster: batch norms become part of their convolutions, swish runs in place.

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
        state_dict: Tensors by the names that ``efficientnet_pytorch`` gives them, or an ensemble's.

    Returns:
        One of `NETWORKS`.

    Raises:
        ModelFileError: None of them fits; the message lists what was found. Or the members of an ensemble differ.
    """
    members = split_members(state_dict)
    networks = {}  # of the members by their number
    for index, member in enumerate(members):
        try:
            networks[index] = _network_of_one(member)
        except ModelFileError as exc:
            raise ModelFileError(f"member {index}: {exc}" if len(members) > 1 else str(exc)) from exc
    for index, network in networks.items():
        if network != networks[0]:
            raise ModelFileError(
                f"the ensemble's member 0 is of {networks[0]} and member {index} of {network}; all must be of one"
            )
    return networks[0]


def _network_of_one(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Which of `NETWORKS` the tensors of a single network are of."""
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
    """The number of outputs of weights that `network_of` knows; of an ensemble's first member, as all must have it."""
    return _channels(split_members(state_dict)[0][_HEAD])


def check_tensors(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Compare every name and shape with the network that `network_of` names, and of an ensemble with its first member.

    Raises:
        ModelFileError: One is missing, too many or of another shape.
    """
    network = network_of(state_dict)
    with torch.device("meta"):
        one = build(network, outputs=max(1, outputs_of(state_dict))).state_dict()
    expected = join_members([one] * len(split_members(state_dict)))
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


def forward_with_activation(net: EfficientNet | Ensemble, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the network once; what comes out is ``net(x)`` and the activation that its explanation needs.

    Args:
        net: From `build` or `restore`.
        x: (N, 3, H, W).

    Returns:
        Logits (N, outputs), and A (N, K, h, w) after the last convolution, its batch norm and its swish, with h and w
        about a thirty-second of H and W, and K the channels of all members of an ensemble.
    """
    activation: torch.Tensor = net.extract_features(x)  # (N, K, h, w)
    pooled = net.get_submodule(EXPLAINED_MODULE)(activation).flatten(start_dim=1)  # (N, K)
    logits: torch.Tensor = net.get_submodule("_fc")(net.get_submodule("_dropout")(pooled))  # (N, outputs)
    return logits, activation


def head_weight(net: EfficientNet | Ensemble) -> torch.Tensor:
    """The weight of the last linear layer, (outputs, K)."""
    weight: torch.Tensor = net.get_parameter(_HEAD)
    return weight


def _channels(tensor: torch.Tensor) -> int:
    """The first dimension, which is the number of output channels; 0 for a scalar."""
    return tensor.shape[0] if tensor.ndim else 0
