"""Phantoms through every runtime: what passes the probe pictures gives the reference's answers to radiographs too."""

from pathlib import Path

import numpy as np
import pytest

from panoramic.demonstration import ensure_demonstration_model
from panoramic.model_file import load_model
from panoramic.preprocess import prepare
from panoramic.runtime import Classifier
from panoramic.runtime_choice import differences, load_runtime
from panoramic.runtime_info import RuntimeChoice
from training.phantoms.phantom import CorticalClass, draw_phantom, draw_truth


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    """One of each class, (3, 3, h, w)."""
    truths = [draw_truth(7 + i, cls, size_px=(449, 1054)) for i, cls in enumerate(CorticalClass)]
    return np.stack([prepare(draw_phantom(truth)) for truth in truths])


@pytest.mark.parametrize("runtime", [RuntimeChoice.ONNX, RuntimeChoice.PYTORCH])
def test_phantoms_get_the_references_answers(phantoms: np.ndarray, runtime: RuntimeChoice, tmp_path: Path) -> None:
    model = load_model(ensure_demonstration_model(tmp_path))

    loaded = load_runtime(model, cache_dir=tmp_path, runtime=runtime)

    assert loaded.description.name is runtime
    found = differences(loaded.runtime.classify(phantoms), Classifier(model).classify(phantoms))
    assert found.fault is None
    assert found.probability < 1e-4
