"""Every runtime gives the answers of the library's own network, and what does not is not used."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from bench.untrained import untrained_network
from panoramic.classification import Classification
from panoramic.errors import PanoramicError
from panoramic.grad_cam import general_form
from panoramic.manifest import DiagnosisClass, ModelDescription
from panoramic.model_file import Model, load_model, save_model
from panoramic.native.tiles import LANES
from panoramic.network import join_members
from panoramic.onnx_graph import export
from panoramic.probe import probe_batch
from panoramic.runtime import Runtime
from panoramic.runtime_choice import differences, load_runtime
from panoramic.runtime_info import Precision, RuntimeChoice
from panoramic.runtime_native import NativeClassifier
from panoramic.runtime_onnx import OnnxClassifier
from panoramic.runtime_torch import Classifier, FusedClassifier

needs_vectors = pytest.mark.skipif(LANES == 0, reason="needs Linux and a processor with AVX-512, or AVX2 and FMA")

SIZE = (96, 160)
THREE = tuple(DiagnosisClass(name=f"C{i}", label=f"Class {i}", finding=i == 3) for i in (1, 2, 3))
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small pictures gain nothing from more, and on a busy machine the threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def body() -> Weights:
    """Weights of a network whose signal neither dies nor explodes."""
    return untrained_network().state_dict()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exporting takes seconds; the tests share what was exported."""
    return tmp_path_factory.mktemp("graphs")


def model_of(weights: Weights, folder: Path, **description: object) -> Model:
    described = ModelDescription(
        **({"name": "test", "version": "1", "network": "efficientnet-b0", "input_size": SIZE} | description)
    )
    path = folder / f"{described.name}.safetensors"
    save_model(path, described, state_dict=weights)
    return load_model(path)


@pytest.fixture(scope="module")
def model(body: Weights, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three classes of seven outputs, a temperature, and answers that differ from picture to picture."""
    generator = torch.Generator().manual_seed(3)
    head = {"_fc.weight": torch.randn(7, 1280, generator=generator) / 3, "_fc.bias": torch.zeros(7)}
    folder = tmp_path_factory.mktemp("model")
    return model_of(body | head, folder, outputs=7, classes=THREE, temperature=1.5, threshold=0.4)


def make_onnx(model: Model, graphs: Path) -> Runtime:
    return OnnxClassifier(model, cache_dir=graphs, threads=1)


def make_native(model: Model, graphs: Path) -> Runtime:
    return NativeClassifier(model, threads=2)


def make_fused(model: Model, graphs: Path) -> Runtime:
    return FusedClassifier(model)


NATIVE = pytest.param(make_native, marks=needs_vectors)
MAKERS = pytest.mark.parametrize("make", [NATIVE, make_onnx, make_fused])
Make = Callable[[Model, Path], Runtime]


def assert_the_librarys_answers(runtime: Runtime, batch: np.ndarray) -> None:
    """Compare with the library's network and autograd's Grad-CAM."""
    manifest = runtime.model.manifest
    net = EfficientNet.from_name(manifest.network, num_classes=manifest.outputs)
    net.load_state_dict(dict(runtime.model.state_dict))
    net.eval()
    x = torch.from_numpy(batch)
    with torch.no_grad():
        logits = net(x).numpy().astype(np.float64)[:, : len(manifest.classes)] / manifest.temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert expected.std(axis=0).max() > 0.01, "pictures that all look alike would test little"
    for answer, p, picture in zip(runtime.classify(batch), expected, x, strict=True):
        np.testing.assert_allclose([*answer.probabilities.values()], p, atol=1e-5)
        is_finding = p[manifest.finding_index] >= manifest.threshold
        others = [-1 if c.finding else p_c for c, p_c in zip(manifest.classes, p, strict=True)]
        assert answer.class_index == (manifest.finding_index if is_finding else int(np.argmax(others)))
        cam = general_form(net, net._avg_pooling, picture[None], class_index=answer.class_index, at_input=True)
        assert answer.cam.dtype == np.float32
        np.testing.assert_allclose(answer.cam, cam[0].numpy(), rtol=0, atol=1e-3 * float(cam.max()))


@MAKERS
def test_the_librarys_probabilities_and_maps(make: Make, model: Model, graphs: Path) -> None:
    assert_the_librarys_answers(make(model, graphs), probe_batch(SIZE))


@MAKERS
def test_a_batch_gives_what_its_pictures_give_alone_and_every_time(make: Make, model: Model, graphs: Path) -> None:
    runtime = make(model, graphs)
    batch = np.concatenate([probe_batch(SIZE), probe_batch(SIZE)[::-1, :, :, ::-1]])

    together = runtime.classify(batch)
    alone = [runtime.classify(picture[None])[0] for picture in batch]

    found = differences(together, alone)
    assert found.probability < 1e-5
    assert found.map < 1e-4
    assert found.diagnoses == 0
    batch.setflags(write=False)
    for other in (batch, np.asfortranarray(batch)):
        for a, b in zip(together, runtime.classify(other), strict=True):
            assert a.probabilities == b.probabilities
            np.testing.assert_array_equal(a.cam, b.cam)


@MAKERS
def test_what_is_no_number_is_an_error(make: Make, body: Weights, graphs: Path, tmp_path: Path) -> None:
    huge = {name: 1e30 * body[name] for name in ("_bn1.weight", "_bn1.bias", "_fc.weight")}
    runtime = make(model_of(body | huge, tmp_path), graphs)

    with pytest.raises(PanoramicError, match="model test version 1 put out something infinite or not a number on cpu"):
        runtime.classify(probe_batch(SIZE))
    with pytest.raises(PanoramicError, match="infinite or not a number"):
        runtime.warm_up()


@MAKERS
def test_refuses_other_batches(make: Make, model: Model, graphs: Path) -> None:
    runtime = make(model, graphs)

    with pytest.raises(ValueError, match=r"shape \(1, 3, 96, 161\) .* model test takes \(N, 3, 96, 160"):
        runtime.classify(np.zeros((1, 3, 96, 161), np.float32))
    with pytest.raises(ValueError, match="batch has values that are infinite or not a number"):
        runtime.classify(np.full((1, 3, *SIZE), np.nan, np.float32))


def test_the_models_tensors_stay_as_they_are(model: Model, body: Weights) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict.items()}

    FusedClassifier(model)
    FusedClassifier(model, half=True)
    if LANES:
        NativeClassifier(model, threads=1).warm_up()

    for name, tensor in model.state_dict.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_float16_is_near_the_reference(model: Model) -> None:
    batch = probe_batch(SIZE)

    found = differences(FusedClassifier(model, half=True).classify(batch), Classifier(model).classify(batch))

    assert 1e-6 < found.probability < 1e-2
    assert 1e-5 < found.map < 5e-2


@pytest.mark.parametrize("make", [NATIVE, make_onnx])
def test_an_ensemble_gives_the_references_answers(make: Make, body: Weights, graphs: Path, tmp_path: Path) -> None:
    other = body | {
        "_fc.weight": -0.5 * body["_fc.weight"].roll(1, dims=1),
        "_bn1.weight": 0.7 * body["_bn1.weight"].roll(1),
    }
    model = model_of(join_members([body, other]), tmp_path, members=2)
    batch = probe_batch(SIZE)

    found = differences(make(model, graphs).classify(batch), Classifier(model).classify(batch))

    assert found.fault is None
    assert found.probability < 1e-5


def test_b7(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = EfficientNet.from_name("efficientnet-b7", num_classes=2)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        net(torch.from_numpy(probe_batch(SIZE)))
    model = model_of(net.state_dict(), tmp_path, network="efficientnet-b7")

    loaded = load_runtime(model, cache_dir=tmp_path, threads=1)

    assert loaded.description.name is (RuntimeChoice.NATIVE if LANES else RuntimeChoice.ONNX)
    assert loaded.description.fallback_reason is None
    assert_the_librarys_answers(loaded.runtime, probe_batch(SIZE))


def test_the_graph_says_nothing_of_this_machine(model: Model) -> None:
    graph = onnx.load_from_string(export(model))

    onnx.checker.check_model(graph, full_check=True)
    assert str(Path(__file__).parents[2]) not in str(graph.graph.node)
    assert [output.name for output in graph.graph.output] == ["logits", "maps"]
    assert graph.graph.output[1].type.tensor_type.shape.dim[1].dim_value == 3, "maps of the classes, not of all outputs"


@pytest.mark.parametrize(
    ("request_", "name", "library"),
    [
        pytest.param(RuntimeChoice.AUTO, RuntimeChoice.NATIVE, "numba", marks=needs_vectors),
        pytest.param(RuntimeChoice.NATIVE, RuntimeChoice.NATIVE, "numba", marks=needs_vectors),
        (RuntimeChoice.ONNX, RuntimeChoice.ONNX, "onnxruntime"),
        (RuntimeChoice.PYTORCH, RuntimeChoice.PYTORCH, "torch"),
        (RuntimeChoice.REFERENCE, RuntimeChoice.REFERENCE, "torch"),
    ],
)
def test_what_is_asked_for_is_what_runs(
    model: Model, graphs: Path, request_: RuntimeChoice, name: RuntimeChoice, library: str
) -> None:
    loaded = load_runtime(model, cache_dir=graphs, runtime=request_, threads=1)

    assert loaded.description.name is name
    assert loaded.description.library.split()[0] == library
    assert loaded.description.precision is Precision.FLOAT32
    assert loaded.description.device == "cpu"
    assert loaded.description.fell_back is False
    assert 0 <= loaded.description.max_probability_difference < 1e-5
    assert 0 <= loaded.description.max_map_difference < 1e-3
    assert loaded.runtime.model is model


def test_numbers_too_large_for_float16_run_in_float32(body: Weights, graphs: Path, tmp_path: Path) -> None:
    large = {name: 1e6 * body[name] for name in ("_bn1.weight", "_bn1.bias")}
    model = model_of(body | large | {"_fc.weight": 1e-6 * body["_fc.weight"]}, tmp_path)

    loaded = load_runtime(model, cache_dir=graphs, runtime=RuntimeChoice.PYTORCH, precision=Precision.FLOAT16)

    assert (loaded.description.name, loaded.description.precision) == (RuntimeChoice.PYTORCH, Precision.FLOAT32)
    assert "pytorch in float16: model test version 1 put out something infinite" in str(
        loaded.description.fallback_reason
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:0", "runtime": RuntimeChoice.NATIVE}, "native runs on the CPU, and the device is cuda:0"),
        ({"runtime": RuntimeChoice.NATIVE, "precision": Precision.FLOAT16}, "runtime native has no precision float16"),
        ({"device": "cuda:0", "runtime": RuntimeChoice.ONNX}, "onnx runs on the CPU, and the device is cuda:0"),
        ({"runtime": RuntimeChoice.ONNX, "precision": Precision.FLOAT16}, "runtime onnx has no precision float16"),
        ({"runtime": RuntimeChoice.REFERENCE, "precision": Precision.FLOAT16}, "reference has no precision float16"),
        ({"device": "cuda:99"}, "cannot be put on device 'cuda:99'; use cpu, or cuda:N"),
        ({"device": "nonsense"}, "cannot be put on device 'nonsense'"),
    ],
)
def test_refuses_what_cannot_be(model: Model, graphs: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(PanoramicError, match=message):
        load_runtime(model, cache_dir=graphs, **options)


def test_a_model_whose_own_numbers_are_not_finite_is_refused(body: Weights, graphs: Path, tmp_path: Path) -> None:
    huge = {name: 1e30 * body[name] for name in ("_bn1.weight", "_bn1.bias", "_fc.weight")}
    model = model_of(body | huge, tmp_path)

    with pytest.raises(PanoramicError, match="put out something infinite or not a number on cpu"):
        load_runtime(model, cache_dir=graphs)


def answer(probability: float, *, class_index: int = 1, cam: list[float] | None = None) -> Classification:
    return Classification(
        probability=probability,
        probabilities={"C1": 1 - probability, "C3": probability},
        class_index=class_index,
        class_name="C3",
        diagnosis="",
        cam=np.array([cam or [0, 10]], np.float32),
        layer="",
        method="",
    )


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (answer(0.7), None),
        (answer(0.7009), None),
        (answer(0.7011), "differs by 0.0011 in probability"),
        (answer(0.7, class_index=0), "diagnoses 1 probe pictures otherwise"),
        (answer(0.7, cam=[0, 10.09]), None),
        (answer(0.7, cam=[0.11, 10]), r"differs by 0.011 of the map's range \(allowed 0.01\)"),
        (answer(0.9, cam=[0, 11]), "0.2 in probability .* and differs by 0.1 of the map's range"),
        (answer(0.7, cam=[0, 10, 0]), "differs by inf of the map's range"),
    ],
)
def test_differences_that_are_allowed(found: Classification, fault: str | None) -> None:
    result = differences([answer(0.2), found], [answer(0.2), answer(0.7)]).fault

    if fault is None:
        assert result is None
    else:
        assert result is not None
        assert re.search(fault, result)


def test_a_map_where_there_should_be_none_is_a_fault() -> None:
    nothing, something = answer(0.7, cam=[0, 0]), answer(0.7, cam=[0, 1e-6])

    assert differences([nothing], [nothing]).fault is None
    assert "inf" in str(differences([something], [nothing]).fault)


def printed_elsewhere(code: str, model: Model, folder: Path, **environment: str) -> str:
    """What a program prints in a process of its own, given the paths of the model's file and of a folder."""
    save_model(folder / "m.safetensors", model.manifest, state_dict=model.state_dict)
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "m.safetensors", folder],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    return done.stdout


def test_a_runtime_that_cannot_be_made_is_passed_over_and_named(model: Model, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.modules["onnxruntime"] = None  # as where it is not installed
from panoramic.model_file import load_model
from panoramic.runtime_choice import load_runtime
model = load_model(Path(sys.argv[1]))
for runtime in ("auto", "native", "onnx"):
    about = load_runtime(model, cache_dir=Path(sys.argv[2]), runtime=runtime).description
    print(about.name, about.fell_back, about.fallback_reason)
"""
    printed = printed_elsewhere(code, model, tmp_path, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2")

    native = "native in float32: our kernels need Linux and a processor with AVX-512, or AVX2 and FMA"
    onnx_runtime = "onnx in float32: the package onnxruntime is missing"
    auto, asked_native, asked_onnx = printed.splitlines()
    assert auto.startswith(f"pytorch True {onnx_runtime}"), "kernels that are not for this machine are no fallback"
    assert asked_native.startswith(f"reference True {native}")
    assert asked_onnx.startswith(f"reference True {onnx_runtime}")


@needs_vectors
def test_where_nothing_can_be_written_another_runtime_is_taken(model: Model, tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from panoramic.model_file import load_model
from panoramic.runtime_choice import load_runtime
model = load_model(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a disk that is full
about = load_runtime(model, cache_dir=Path(sys.argv[2])).description
print(about.name, about.fallback_reason)
"""
    printed = printed_elsewhere(code, model, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kernels"))

    assert printed.startswith("pytorch native in float32: OSError ([Errno 27] File too large); onnx in float32: ")


@needs_vectors
def test_the_kernels_for_vectors_of_avx2(model: Model, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from panoramic.model_file import load_model
from panoramic.native.tiles import LANES
from panoramic.runtime_choice import load_runtime
model = load_model(Path(sys.argv[1]))
about = load_runtime(model, cache_dir=Path(sys.argv[2]), threads=2).description
print(LANES, about.name, about.max_probability_difference < 1e-5, about.max_map_difference < 1e-3)
"""
    printed = printed_elsewhere(
        code, model, tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+sse4.2,+avx,+avx2,+fma"
    )

    assert printed.split() == ["8", "native", "True", "True"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_passes(model: Model, graphs: Path) -> None:
    for precision in (Precision.FLOAT32, Precision.FLOAT16):
        loaded = load_runtime(model, cache_dir=graphs, device="cuda:0", precision=precision)

        assert loaded.description.name is RuntimeChoice.PYTORCH
        assert loaded.description.max_probability_difference <= 1e-3
