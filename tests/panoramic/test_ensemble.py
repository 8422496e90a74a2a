"""Ensembles: the mean of the members' logits, explained exactly, in one model file."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from captum.attr import LayerGradCam
from efficientnet_pytorch import EfficientNet

from bench.untrained import untrained_network
from panoramic.errors import ModelFileError
from panoramic.grad_cam import closed_form, general_form
from panoramic.manifest import ModelDescription
from panoramic.model_file import MANIFEST_KEY, load_model, save_model
from panoramic.network import (
    check_tensors,
    forward_with_activation,
    fuse_for_inference,
    head_weight,
    join_members,
    network_of,
    outputs_of,
    restore,
    split_members,
)
from panoramic.runtime_torch import Classifier

Weights = dict[str, torch.Tensor]

SIZE = (96, 160)
DESCRIPTION = ModelDescription(
    name="three", version="1", network="efficientnet-b0", members=3, outputs=4, input_size=SIZE, temperature=1.5
)


@pytest.fixture(scope="module")
def members() -> list[Weights]:
    """Three networks that differ in their heads, biases and last batch norms, and whose signal is alive."""
    body = untrained_network().state_dict()
    networks = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        networks.append(
            body
            | {
                "_bn1.weight": body["_bn1.weight"] * (0.5 + torch.rand(1280, generator=generator)),
                "_bn1.bias": body["_bn1.bias"] + 0.3 * torch.randn(1280, generator=generator),
                "_fc.weight": 0.3 * torch.randn(4, 1280, generator=generator),
                "_fc.bias": torch.randn(4, generator=generator),
            }
        )
    return networks


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    coarse = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(5))
    return 4 * torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear") - 2


def mean_of_the_librarys_logits(members: list[Weights], x: torch.Tensor) -> torch.Tensor:
    logits = []
    for weights in members:
        net = EfficientNet.from_name("efficientnet-b0", num_classes=4)
        net.load_state_dict(weights)
        with torch.inference_mode():
            logits.append(net.eval()(x))
    assert float(torch.stack(logits).std(dim=0).min()) > 0.1, "members that agree would test little"
    return torch.stack(logits).mean(dim=0)


def test_the_logits_are_the_mean_of_the_members(members: list[Weights], pictures: torch.Tensor) -> None:
    ensemble = restore("efficientnet-b0", join_members(members))
    expected = mean_of_the_librarys_logits(members, pictures)

    with torch.inference_mode():
        logits, activation = forward_with_activation(ensemble, pictures)
        called = ensemble(pictures)

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(called, logits)
    assert activation.shape == (2, 3 * 1280, 3, 5)
    assert head_weight(ensemble).shape == (4, 3 * 1280)
    assert not ensemble.training
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


@pytest.mark.parametrize("class_index", [0, 3])
def test_grad_cam_of_the_mean_is_exact(members: list[Weights], pictures: torch.Tensor, class_index: int) -> None:
    ensemble = restore("efficientnet-b0", join_members(members))
    layer = ensemble._avg_pooling

    with torch.inference_mode():
        _, activation = forward_with_activation(ensemble, pictures)
        closed = closed_form(activation, head_weight(ensemble), class_index=class_index)
    general = general_form(ensemble, layer, pictures, class_index=class_index, at_input=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum warns of hooks that it sets itself
        captum = LayerGradCam(ensemble, layer).attribute(
            pictures, class_index, attribute_to_layer_input=True, relu_attributions=True
        )

    assert general.max() > 0, "an empty map would equal any other empty map"
    tolerance = 1e-5 * float(general.max())
    torch.testing.assert_close(closed, general, rtol=0, atol=tolerance)
    torch.testing.assert_close(closed, captum.squeeze(1).detach(), rtol=0, atol=tolerance)


def test_fusing_reaches_every_member(members: list[Weights], pictures: torch.Tensor) -> None:
    expected = mean_of_the_librarys_logits(members, pictures)

    fused = fuse_for_inference(restore("efficientnet-b0", join_members(members)))

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    with torch.inference_mode():
        torch.testing.assert_close(forward_with_activation(fused, pictures)[0], expected, rtol=1e-3, atol=1e-4)


def test_one_file_holds_them_and_the_classifier_runs_it(
    tmp_path: Path, members: list[Weights], pictures: torch.Tensor
) -> None:
    save_model(tmp_path / "m.safetensors", DESCRIPTION, state_dict=join_members(members))

    model = load_model(tmp_path / "m.safetensors")
    answers = Classifier(model).classify(pictures.numpy())

    assert model.manifest.members == 3
    stored = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert len(stored) == 3 * len(members[0])
    assert all(torch.equal(stored[f"2.{name}"], tensor) for name, tensor in members[2].items())
    logits = mean_of_the_librarys_logits(members, pictures).double()[:, :2] / 1.5
    expected = torch.softmax(logits, dim=1).numpy()
    np.testing.assert_allclose([[*answer.probabilities.values()] for answer in answers], expected, atol=1e-5)


def test_joining_and_splitting_are_each_others_inverse(members: list[Weights]) -> None:
    joined = join_members(members)

    assert network_of(joined) == "efficientnet-b0"
    assert outputs_of(joined) == 4
    check_tensors(joined)
    for found, expected in zip(split_members(joined), members, strict=True):
        assert set(found) == set(expected)
        assert all(found[name] is expected[name] for name in expected)
    assert join_members(members[:1]) == members[0]
    assert split_members(members[0]) == (members[0],)


def meta_weights(network: str = "efficientnet-b0", *, outputs: int = 4) -> Weights:
    with torch.device("meta"):
        return dict(EfficientNet.from_name(network, num_classes=outputs).state_dict())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            join_members([meta_weights(), meta_weights("efficientnet-b1")]),
            "member 0 is of efficientnet-b0 and member 1 of efficientnet-b1; all must be of one",
        ),
        (
            join_members([meta_weights(), meta_weights(outputs=3)]),
            r"1._fc.weight is \(3, 1280\) and must be \(4, 1280\)",
        ),
        (
            {n: t for n, t in join_members([meta_weights()] * 2).items() if n != "1._bn0.bias"},
            "1._bn0.bias is missing",
        ),
        (
            {n: t for n, t in join_members([meta_weights()] * 2).items() if n != "1._fc.weight"},
            "member 1: the weights are of no network .* _fc.weight is missing",
        ),
        (
            {n: t for n, t in join_members([meta_weights()] * 3).items() if not n.startswith("1.")},
            "members are numbered 0, 2; they must be 0, 1 and so on",
        ),
        ({f"0.{n}": t for n, t in meta_weights().items()}, "members are numbered 0; .* at least two"),
        (
            join_members([meta_weights()] * 2) | {"_fc.bias": torch.zeros(4)},
            r"_fc.bias lacks its member's number, such as 0._fc.bias",
        ),
    ],
)
def test_names_what_does_not_fit(tensors: Weights, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        check_tensors(tensors)


@pytest.mark.parametrize(("named", "held"), [(1, 3), (2, 3), (3, 1)])
def test_the_manifest_must_say_how_many_there_are(
    tmp_path: Path, members: list[Weights], named: int, held: int
) -> None:
    path = tmp_path / "m.safetensors"
    tensors = join_members(members[:held])
    wrong = DESCRIPTION.model_copy(update={"members": named})
    message = f"the manifest names {named} members, but the weights are of {held}"

    with pytest.raises(ModelFileError, match=f"m.safetensors was not written: {message}"):
        save_model(path, wrong, state_dict=tensors)
    save_model(path, DESCRIPTION.model_copy(update={"members": held}), state_dict=tensors)
    right = load_model(path).manifest
    text = right.model_copy(update={"members": named}).model_dump_json()
    apart = {name: tensor.clone() for name, tensor in tensors.items()}  # the library writes none that share memory
    path.write_bytes(safetensors.torch.save(apart, metadata={MANIFEST_KEY: text}))
    with pytest.raises(ModelFileError, match=f"m.safetensors cannot be used as a model: {message}"):
        load_model(path)


def test_a_file_without_a_manifest_holds_one_network(tmp_path: Path, members: list[Weights]) -> None:
    torch.save(join_members(members), tmp_path / "m.pth")

    with pytest.raises(ModelFileError, match="an ensemble of 3 networks, and a file without a manifest holds one"):
        load_model(tmp_path / "m.pth")


def test_refuses_to_write_what_would_be_too_large_to_read(tmp_path: Path) -> None:
    # Every tensor shows the same four bytes, so that five b7 cost no memory here.
    largest = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in meta_weights("efficientnet-b7").items()}
    description = DESCRIPTION.model_copy(update={"network": "efficientnet-b7", "members": 5})

    with pytest.raises(
        ModelFileError, match=r"would have 12\d{8} bytes, and a model file has at most 1073741824; store"
    ):
        save_model(tmp_path / "m.safetensors", description, state_dict=join_members([largest] * 5))

    assert not list(tmp_path.iterdir())
