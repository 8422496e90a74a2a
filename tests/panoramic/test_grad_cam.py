"""Grad-CAM: by hand, by autograd and by Captum the same."""

import warnings

import pytest
import torch
from captum.attr import LayerGradCam
from efficientnet_pytorch import EfficientNet
from torch import nn

from bench.untrained import untrained_network
from panoramic.grad_cam import closed_form, general_form
from panoramic.network import forward_with_activation, head_weight

#: Sums of 1280 float32 products in another order differ by some 1e-6 of the largest; ten times that is allowed.
RELATIVE_TOLERANCE = 1e-5


class TinyCnn(nn.Module):
    """Two convolutions; the second layer works in place, which hooks must survive, and two linear layers follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(5 * 36, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.second(torch.tanh(self.first(x))))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


class Breaks(nn.Module):
    """Fails after its layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        raise ArithmeticError("broken on purpose")


@pytest.fixture(scope="module")
def b0() -> EfficientNet:
    return untrained_network()


@pytest.fixture
def tiny() -> TinyCnn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return TinyCnn().eval()


@pytest.fixture(scope="module")
def radiographs() -> torch.Tensor:
    coarse = torch.rand(2, 3, 20, 32, generator=torch.Generator().manual_seed(5))
    return 4 * nn.functional.interpolate(coarse, size=(160, 256), mode="bilinear") - 2


def by_captum(
    net: nn.Module, layer: nn.Module, x: torch.Tensor, target: torch.Tensor, *, at_input: bool
) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of hooks that it sets itself
        maps = LayerGradCam(net, layer).attribute(x, target, attribute_to_layer_input=at_input, relu_attributions=True)
    return maps.squeeze(1).detach()


def assert_same_map(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.max() > 0, "an empty map would equal any other empty map"
    torch.testing.assert_close(found, expected, rtol=0, atol=RELATIVE_TOLERANCE * expected.max().item())


def test_closed_form_by_hand() -> None:
    activation = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # one picture, two channels of 1×2
    weight = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])

    assert closed_form(activation, weight, class_index=0).tolist() == [[[2.0, 0.5]]]  # (1+3)/2, (2-1)/2
    assert closed_form(activation, weight, class_index=1).tolist() == [[[0.5, 0.0]]]  # (-2+3)/2, (-4-1)/2 cut off


@pytest.mark.parametrize("class_index", [0, 1])
def test_closed_form_is_the_general_form_is_captums_on_efficientnet(
    b0: EfficientNet, radiographs: torch.Tensor, class_index: int
) -> None:
    with torch.inference_mode():
        _, activation = forward_with_activation(b0, radiographs)
        closed = closed_form(activation, head_weight(b0), class_index=class_index)

    general = general_form(b0, b0._avg_pooling, radiographs, class_index=class_index, at_input=True)

    assert closed.shape == (2, 5, 8)
    assert_same_map(closed, general)
    assert_same_map(general, by_captum(b0, b0._avg_pooling, radiographs, torch.full((2,), class_index), at_input=True))


def test_each_of_a_batch_may_have_its_own_class(b0: EfficientNet, radiographs: torch.Tensor) -> None:
    classes = torch.tensor([1, 0])
    with torch.inference_mode():
        _, activation = forward_with_activation(b0, radiographs)
        closed = closed_form(activation, head_weight(b0), class_index=classes)

    assert_same_map(closed, general_form(b0, b0._avg_pooling, radiographs, class_index=classes, at_input=True))
    assert_same_map(closed[:1], general_form(b0, b0._avg_pooling, radiographs[:1], class_index=1, at_input=True))


@pytest.mark.parametrize("class_index", [0, 1, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_general_form_is_captums_at_a_layer_that_is_worked_on_in_place(
    tiny: TinyCnn, class_index: int, frozen: bool
) -> None:
    x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(6))
    safe = TinyCnn().eval()
    safe.load_state_dict(tiny.state_dict())
    safe.relu.inplace = False  # Captum cannot explain the other
    expected = by_captum(safe, safe.second, x, torch.full((4,), class_index), at_input=False)
    tiny.requires_grad_(not frozen)

    assert_same_map(general_form(tiny, tiny.second, x, class_index=class_index), expected)


def test_parameters_are_left_alone(tiny: TinyCnn) -> None:
    x = torch.randn(1, 3, 10, 10)
    tiny.first.weight.requires_grad_(False)

    with torch.no_grad():
        general_form(tiny, tiny.second, x, class_index=0)

    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert [n for n, p in tiny.named_parameters() if not p.requires_grad] == ["first.weight"]
    assert not x.requires_grad


@pytest.mark.parametrize("at_input", [False, True])
def test_hooks_are_released_when_the_network_breaks(at_input: bool) -> None:
    net = Breaks()

    with pytest.raises(ArithmeticError, match="on purpose"):
        general_form(net, net.layer, torch.zeros(1, 3, 5, 5), class_index=0, at_input=at_input)

    assert not net.layer._forward_hooks
    assert not net.layer._forward_pre_hooks


def test_refuses_layers_that_make_no_map(b0: EfficientNet, tiny: TinyCnn, radiographs: torch.Tensor) -> None:
    x = torch.zeros(1, 3, 10, 10)
    with pytest.raises(ValueError, match=r"the layer gave 2 activations in one pass"):  # stem and head share it
        general_form(b0, b0._swish, radiographs[:1], class_index=0)
    with pytest.raises(ValueError, match=r"the layer gave 0 activations"):
        general_form(tiny, nn.Conv2d(3, 3, 1), x, class_index=0)
    with pytest.raises(ValueError, match=r"the layer gave 1 activations in one pass, of shapes \[\(1, 8\)\]"):
        general_form(tiny, tiny.hidden, x, class_index=0)


@pytest.mark.parametrize(
    ("class_index", "message"),
    [
        (2, "class_index is 2; the network has classes 0 to 1"),
        (-1, "class_index is -1; the network has classes 0 to 1"),
        (0.5, "must be one integer"),
        (torch.tensor([0, 1, 0]), "one for each of the batch of 2"),
    ],
)
def test_refuses_classes_that_do_not_exist(class_index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closed_form(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4), class_index=class_index)


def test_refuses_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"activation is \(2, 4, 3, 3\) and head_weight \(2, 5\)"):
        closed_form(torch.zeros(2, 4, 3, 3), torch.zeros(2, 5), class_index=0)
