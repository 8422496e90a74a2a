"""The classifier: the network's own numbers, one rule for the diagnosis, one map with each answer."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from bench.untrained import untrained_network
from panoramic.errors import PanoramicError
from panoramic.grad_cam import general_form
from panoramic.manifest import DiagnosisClass, ModelDescription
from panoramic.model_file import Model, load_model, save_model
from panoramic.runtime import Runtime
from panoramic.runtime_torch import Classifier

MakeModel = Callable[..., Model]

SIZE = (96, 160)
THREE = tuple(DiagnosisClass(name=f"C{i}", label=f"Class {i}", finding=i == 3) for i in (1, 2, 3))


def batch_of(n: int, *, seed: int = 11) -> np.ndarray:
    """Clouds in the range of normalised radiographs, (n, 3, h, w)."""
    coarse = torch.rand(n, 1, 12, 20, generator=torch.Generator().manual_seed(seed))
    clouds = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    return (4 * clouds.repeat(1, 3, 1, 1) - 2).numpy()


@pytest.fixture(scope="module")
def body() -> dict[str, torch.Tensor]:
    """Weights without a head, of a network whose signal neither dies nor explodes."""
    weights = untrained_network().state_dict()
    return {name: tensor for name, tensor in weights.items() if not name.startswith("_fc")}


@pytest.fixture
def make_model(body: dict[str, torch.Tensor], tmp_path: Path) -> MakeModel:
    def make(
        *,
        outputs: int = 2,
        bias: list[float] | None = None,
        scale: float = 1.0,
        activation: float = 1.0,
        **description: object,
    ) -> Model:
        generator = torch.Generator().manual_seed(12)
        head = {
            "_fc.weight": scale * torch.randn(outputs, 1280, generator=generator) / 2,
            "_fc.bias": torch.tensor(bias) if bias else torch.zeros(outputs),
        }
        norm = {name: activation * body[name] for name in ("_bn1.weight", "_bn1.bias")}
        described = ModelDescription(
            name="test", version="1", network="efficientnet-b0", outputs=outputs, input_size=SIZE, **description
        )
        save_model(tmp_path / "m.safetensors", described, state_dict=body | norm | head)
        return load_model(tmp_path / "m.safetensors")

    return make


def library_network(model: Model) -> torch.nn.Module:
    net = EfficientNet.from_name(model.manifest.network, num_classes=model.manifest.outputs)
    net.load_state_dict(dict(model.state_dict))
    return net.eval()


@pytest.mark.parametrize(("outputs", "temperature"), [(2, 1.0), (2, 2.5), (1000, 1.0)])
def test_the_networks_probabilities_and_map(make_model: MakeModel, outputs: int, temperature: float) -> None:
    model = make_model(outputs=outputs, temperature=temperature)
    classifier: Runtime = Classifier(model)
    batch = batch_of(3)

    answers = classifier.classify(batch)

    net = library_network(model)
    with torch.no_grad():
        logits = net(torch.from_numpy(batch)).numpy().astype(np.float64)[:, :2] / temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert expected.std() > 0.01, "pictures that all look alike would test little"
    np.testing.assert_allclose([[*a.probabilities.values()] for a in answers], expected, atol=1e-6)
    for answer, p, x in zip(answers, expected, torch.from_numpy(batch), strict=True):
        assert answer.probability == answer.probabilities["C3"]
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert answer.class_index == p.argmax()
        assert answer.class_name == ["C1", "C3"][answer.class_index]
        assert answer.diagnosis == ["Healthy Patient", "Patient with Osteoporosis"][answer.class_index]
        assert (answer.layer, answer.method) == ("_conv_head/_bn1/_swish", "Grad-CAM")
        cam = general_form(net, net._avg_pooling, x[None], class_index=answer.class_index, at_input=True)[0].numpy()
        assert answer.cam.dtype == np.float32
        assert cam.max() > 0
        np.testing.assert_allclose(answer.cam, cam, rtol=0, atol=1e-4 * cam.max())


def test_same_bits_every_time_and_for_every_kind_of_array(make_model: MakeModel) -> None:
    classifier = Classifier(make_model())
    batch = batch_of(2)
    read_only = batch.copy()
    read_only.setflags(write=False)
    fortran = np.asfortranarray(batch)
    mirrored = batch[:, :, :, ::-1].copy()[:, :, :, ::-1]
    classifier.warm_up()

    first = classifier.classify(batch)

    for other in (batch, read_only, fortran, mirrored):
        for a, b in zip(first, classifier.classify(other), strict=True):
            assert a.probability == b.probability
            np.testing.assert_array_equal(a.cam, b.cam)
    assert batch.tobytes() == batch_of(2).tobytes(), "the caller's array is left alone"


@pytest.mark.parametrize(
    ("threshold", "bias", "diagnosis"),
    [
        (0.5, [0.0, 0.1], "Patient with Osteoporosis"),
        (0.5, [0.1, 0.0], "Healthy Patient"),
        (0.5, [0.0, 0.0], "Patient with Osteoporosis"),  # the threshold is reached
        (0.5, [1e-7, 0.0], "Healthy Patient"),  # float32 alone would call it a tie
        (0.2, [1.0, 0.0], "Patient with Osteoporosis"),  # 0.27
        (0.3, [1.0, 0.0], "Healthy Patient"),
        (0.0, [50.0, 0.0], "Patient with Osteoporosis"),
        (1.0, [0.0, 5.0], "Healthy Patient"),
    ],
)
def test_the_threshold_decides(make_model: MakeModel, threshold: float, bias: list[float], diagnosis: str) -> None:
    model = make_model(scale=0.0, bias=bias, threshold=threshold)

    (answer,) = Classifier(model).classify(batch_of(1))

    assert answer.diagnosis == diagnosis
    assert answer.probability == pytest.approx(1 / (1 + np.exp(bias[0] - bias[1])), abs=1e-7)


@pytest.mark.parametrize(
    ("threshold", "probabilities", "name"),
    [
        (0.5, [0.2, 0.2, 0.6], "C3"),
        (0.5, [0.1, 0.6, 0.3], "C2"),
        (0.5, [0.3, 0.25, 0.45], "C1"),  # the finding is the most probable, but not at the threshold
        (0.25, [0.1, 0.6, 0.3], "C3"),  # and here the other way round
    ],
)
def test_with_three_classes_the_threshold_means_the_same(
    make_model: MakeModel, threshold: float, probabilities: list[float], name: str
) -> None:
    bias = np.log(probabilities).tolist()
    model = make_model(scale=0.0, outputs=3, bias=bias, classes=THREE, threshold=threshold)

    (answer,) = Classifier(model).classify(batch_of(1))

    assert answer.class_name == name
    assert list(answer.probabilities) == ["C1", "C2", "C3"]
    assert [*answer.probabilities.values()] == pytest.approx(probabilities, abs=1e-6)
    assert answer.probability == answer.probabilities["C3"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 3, 96, 161), np.float32), r"shape \(1, 3, 96, 161\) .* model test takes \(N, 3, 96, 160"),
        (np.zeros((3, *SIZE), np.float32), r"shape \(3, 96, 160\)"),
        (np.zeros((0, 3, *SIZE), np.float32), r"N at least 1"),
        (np.zeros((1, 3, *SIZE)), r"type float64"),
        (np.full((1, 3, *SIZE), np.nan, np.float32), "batch has values that are infinite or not a number"),
    ],
)
def test_refuses_other_batches(make_model: MakeModel, batch: np.ndarray, message: str) -> None:
    classifier = Classifier(make_model())

    with pytest.raises(ValueError, match=message):
        classifier.classify(batch)


def test_an_answer_that_is_no_number_is_an_error(make_model: MakeModel) -> None:
    classifier = Classifier(make_model(activation=1e30, scale=1e30))

    with pytest.raises(PanoramicError, match="model test version 1 put out something infinite or not a number on cpu"):
        classifier.classify(batch_of(1))
    with pytest.raises(PanoramicError, match="infinite or not a number"):
        classifier.warm_up()


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_refuses_devices_that_are_not_there(make_model: MakeModel, device: str) -> None:
    with pytest.raises(PanoramicError, match=f"cannot be put on device '{device}'; use cpu, or cuda:N"):
        Classifier(make_model(), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_gives_the_cpus_answers(make_model: MakeModel) -> None:
    model = make_model()
    on_cpu = Classifier(model).classify(batch_of(2))

    on_card = Classifier(model, device="cuda:0").classify(batch_of(2))

    for a, b in zip(on_cpu, on_card, strict=True):
        assert a.probability == pytest.approx(b.probability, abs=1e-4)
        np.testing.assert_allclose(a.cam, b.cam, rtol=0, atol=1e-3 * a.cam.max())


def test_only_what_runs_networks_imports_pytorch() -> None:
    package = Path(__file__).resolve().parents[2] / "panoramic"
    runs_networks = {"classification", "demonstration", "explained_network", "grad_cam", "model_file", "network"}
    runs_networks |= {"onnx_graph", "runtime", "runtime_choice", "runtime_native", "runtime_onnx", "runtime_torch"}
    modules = sorted({path.stem for path in package.glob("*.py")} - runs_networks - {"__init__"})
    code = (
        "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]];"
        "print('rolling_ball' in str(sys.modules), 'torch' in sys.modules)"
    )

    names = ["panoramic", *(f"panoramic.{module}" for module in modules)]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "False"], done.stderr
