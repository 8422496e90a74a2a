"""The rebuilt predecessor, which we are measured against, says what our pipeline says: it is the same work."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from bench.predecessor import Predecessor
from bench.untrained import untrained_network
from panoramic.image import load_radiograph
from panoramic.manifest import ModelDescription
from panoramic.model_file import load_model, save_model
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier
from training.phantoms.phantom import draw_phantom, draw_truth

#: Small, for the reference's rolling ball takes 40 µs for each pixel, and more than that on a busy machine.
SIZE_PX = (104, 260)


def test_same_answers_and_two_pictures(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    description = ModelDescription(name="untrained", version="0", network="efficientnet-b0")
    save_model(path, description, state_dict=untrained_network().state_dict())
    model = load_model(path)
    ours = Classifier(model)
    theirs = Predecessor("efficientnet-b0", model.state_dict)
    probabilities = []
    for seed, cortical_class in enumerate(("C1", "C3")):
        path = tmp_path / f"{cortical_class}.png"
        cv2.imwrite(str(path), draw_phantom(draw_truth(seed, cortical_class, size_px=SIZE_PX)))

        answer = theirs.answer(path, tmp_path)

        (expected,) = ours.classify(prepare(load_radiograph(path).pixels)[None])
        assert answer.diagnosis == expected.diagnosis
        assert answer.probability == pytest.approx(expected.probability, abs=1e-6)
        probabilities.append(answer.probability)
        for picture in (answer.saliency_img_path, answer.overlay_img_path):
            assert picture.name.startswith(f"{cortical_class}_")
            pixels = cv2.imread(str(picture))
            assert pixels is not None
            assert pixels.shape == (*SIZE_PX, 3)
            assert pixels.std() > 1
        assert set(answer.timings_s) == {"read", "background", "transforms", "forward and backward", "pictures"}
    assert abs(probabilities[0] - probabilities[1]) > 1e-4, "answers that do not differ prove little"
