"""The model that ships is sound, and has a map to show of a picture that is a radiograph or nearly one."""

import numpy as np

from panoramic.demonstration import DEMONSTRATION_NAME, demonstration_model
from panoramic.model_file import load_model
from panoramic.probe import probe_batch
from panoramic.runtime_torch import Classifier


def test_its_file_is_whole_and_named_after_it() -> None:
    model = load_model(demonstration_model())
    assert demonstration_model().stem == model.manifest.name == DEMONSTRATION_NAME
    assert model.manifest.network == "efficientnet-b0"


def test_it_has_a_map_to_show() -> None:
    model = load_model(demonstration_model())
    for answer in Classifier(model).classify(probe_batch(model.manifest.input_size)):
        assert 0 <= answer.probability <= 1
        assert np.isfinite(answer.cam).all()
        assert answer.cam.max() > 0
