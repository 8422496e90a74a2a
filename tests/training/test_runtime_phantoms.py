"""Phantoms through every runtime: what passes the probe pictures gives the reference's answers to radiographs too."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from panoramic.demonstration import demonstration_model
from panoramic.model_file import load_model
from panoramic.native.tiles import LANES
from panoramic.preprocess import prepare
from panoramic.runtime_choice import differences, load_runtime
from panoramic.runtime_info import RuntimeChoice
from panoramic.runtime_torch import Classifier
from training.phantoms.phantom import CorticalClass, draw_phantom, draw_truth


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More of them wait for each other where others use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    """One of each class, (3, 3, h, w)."""
    size = load_model(demonstration_model()).manifest.input_size
    truths = [draw_truth(7 + i, cls, size_px=(449, 1054)) for i, cls in enumerate(CorticalClass)]
    return np.stack([prepare(draw_phantom(truth), input_size=size) for truth in truths])


@pytest.mark.parametrize("runtime", [RuntimeChoice.NATIVE, RuntimeChoice.ONNX, RuntimeChoice.PYTORCH])
def test_phantoms_get_the_references_answers(phantoms: np.ndarray, runtime: RuntimeChoice, tmp_path: Path) -> None:
    if runtime is RuntimeChoice.NATIVE and LANES == 0:
        pytest.skip("needs Linux and a processor with AVX-512, or AVX2 and FMA")
    model = load_model(demonstration_model())

    loaded = load_runtime(model, cache_dir=tmp_path, runtime=runtime)

    assert loaded.description.name is runtime
    found = differences(loaded.runtime.classify(phantoms), Classifier(model).classify(phantoms))
    assert found.fault is None
    assert found.probability < 1e-4
