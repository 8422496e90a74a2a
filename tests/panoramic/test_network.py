"""The networks: the same as the library's, recognised by their tensors."""

import pytest
import torch
from efficientnet_pytorch import EfficientNet

from panoramic.errors import ModelFileError
from panoramic.network import (
    NETWORKS,
    build,
    check_tensors,
    forward_with_activation,
    fuse_for_inference,
    head_weight,
    network_of,
    outputs_of,
    restore,
)


@pytest.fixture(scope="module")
def library_b0() -> EfficientNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return EfficientNet.from_name("efficientnet-b0", num_classes=2).eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_tells_each_of_the_librarys_networks_from_its_tensors(network: str) -> None:
    with torch.device("meta"):
        state_dict = EfficientNet.from_name(network, num_classes=7).state_dict()

    assert network_of(state_dict) == network
    assert outputs_of(state_dict) == 7
    check_tensors(state_dict)


def test_says_what_it_found_when_no_network_fits(library_b0: EfficientNet) -> None:
    state_dict = {name: tensor for name, tensor in library_b0.state_dict().items() if "_blocks.15." not in name}

    with pytest.raises(
        ModelFileError, match=r"stem has 32 channels, the last convolution 1280, and there are 15 block"
    ):
        network_of(state_dict)


def test_says_which_tensors_it_looks_for() -> None:
    with pytest.raises(ModelFileError, match=r"_conv_head.weight, _fc.weight is missing among 1 tensors"):
        network_of({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})


def test_survives_scalars_where_tensors_should_be() -> None:
    scalars = dict.fromkeys(["_conv_stem.weight", "_conv_head.weight", "_fc.weight"], torch.tensor(0.0))

    with pytest.raises(ModelFileError, match="stem has 0 channels"):
        network_of(scalars)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_fc.bias": None}, "_fc.bias is missing"),
        ({"extra": torch.zeros(1)}, "extra is not part of it"),
        ({"_fc.bias": torch.zeros(3)}, r"_fc.bias is \(3,\) and must be \(2,\)"),
        ({"_fc.weight": torch.zeros(0, 1280)}, r"_fc.weight is \(0, 1280\) and must be \(1, 1280\)"),
        ({f"x{i}": torch.zeros(1) for i in range(9)}, "x2 is not part of it, and 6 more"),
    ],
)
def test_names_the_tensors_that_do_not_fit(
    library_b0: EfficientNet, change: dict[str, torch.Tensor | None], message: str
) -> None:
    changed = library_b0.state_dict() | change

    with pytest.raises(ModelFileError, match=message):
        check_tensors({name: tensor for name, tensor in changed.items() if tensor is not None})


@pytest.mark.parametrize("size", [(224, 224), (97, 161)])
def test_one_pass_gives_the_librarys_logits_bit_for_bit(library_b0: EfficientNet, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        logits, activation = forward_with_activation(library_b0, x)
        expected = library_b0(x)
        features = library_b0.extract_features(x)

    assert torch.equal(logits, expected)
    assert torch.equal(activation, features)
    assert activation.shape[:2] == (2, 1280)


def test_restored_weights_give_the_librarys_logits_bit_for_bit(library_b0: EfficientNet) -> None:
    x = torch.randn(1, 3, 97, 161, generator=torch.Generator().manual_seed(3))

    restored = restore("efficientnet-b0", library_b0.state_dict())

    with torch.inference_mode():
        assert torch.equal(restored(x), library_b0(x))
    assert not restored.training
    assert not any(parameter.requires_grad for parameter in restored.parameters())
    assert torch.equal(head_weight(restored), library_b0._fc.weight)


@pytest.mark.parametrize("network", ["efficientnet-b0", "efficientnet-b1"])
def test_fused_networks_differ_by_rounding_alone(network: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        library = EfficientNet.from_name(network, num_classes=2)
        with torch.no_grad():
            for module in library.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    # Statistics, scale and shift that are anything but neutral.
                    module.weight.uniform_(0.5, 2)
                    module.bias.normal_(0, 0.3)
                    module.momentum = None
            library.train()(torch.randn(2, 3, 96, 160))
    library.eval()
    x = torch.randn(1, 3, 97, 161, generator=torch.Generator().manual_seed(3))
    fused = fuse_for_inference(restore(network, library.state_dict()))
    with torch.inference_mode():
        logits, activation = forward_with_activation(fused, x)
        expected, features = library(x), library.extract_features(x)
    assert expected.abs().max() > 0.05
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(activation, features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())


def test_builds_what_training_needs() -> None:
    net = build("efficientnet-b1", outputs=3)

    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net._fc.out_features == 3
    assert net._global_params.image_size == EfficientNet.get_image_size("efficientnet-b1")


def test_refuses_networks_that_no_weights_were_published_for() -> None:
    with pytest.raises(ValueError, match=r"network is 'efficientnet-b8'; it must be one of efficientnet-b0"):
        build("efficientnet-b8", outputs=2)
    with pytest.raises(ValueError, match="outputs is 0"):
        build("efficientnet-b0", outputs=0)
