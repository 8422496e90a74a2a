"""The predecessor's answers from the predecessor's weights, its whole path written again from its description."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cv2_rolling_ball import subtract_background_rolling_ball
from efficientnet_pytorch import EfficientNet
from PIL import Image

from bench.untrained import untrained_network
from panoramic.model_file import load_model
from panoramic.preprocess import prepare
from panoramic.runtime_torch import Classifier


def small_radiograph(*, seed: int) -> np.ndarray:
    """An arch, teeth and noise on 52×110 pixels: the predecessor's rolling ball takes 40 µs for each of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:52, 0:110].astype(np.float64)
    arch = np.exp(-(((y - 44 + 0.009 * (x - 55) ** 2) / rng.uniform(3, 6)) ** 2))
    teeth = np.exp(-(((y - 22) / 8) ** 2)) * (np.sin(x / rng.uniform(1.5, 3)) > -0.4)
    grey = 35 + rng.uniform(60, 120) * arch + 90 * teeth + rng.normal(0, 1.5, y.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)


def predecessors_answer(path: Path, grey: np.ndarray, *, outputs: int) -> tuple[np.ndarray, str]:
    """Probabilities of the first two outputs, and the label that the largest of all the logits stands for."""
    background_removed, _ = subtract_background_rolling_ball(
        grey.copy(), 180, light_background=False, use_paraboloid=True, do_presmooth=True
    )
    picture = Image.fromarray(background_removed).convert("RGB").resize((954, 449), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    tensor.sub_(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
    tensor.div_(torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    net = EfficientNet.from_name("efficientnet-b0", num_classes=outputs)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net.eval()
    with torch.no_grad():
        logits = net(tensor[None])[0]
    label = {0: "Healthy Patient", 1: "Patient with Osteoporosis"}[int(logits.argmax())]
    return torch.softmax(logits[:2], dim=0).numpy(), label


@pytest.mark.parametrize("outputs", [2, 1000])
def test_same_answers_as_the_predecessor(tmp_path: Path, outputs: int) -> None:
    weights = untrained_network().state_dict()
    if outputs == 1000:  # trained with two classes, the rest of the head has learnt never to answer
        weights["_fc.weight"] = torch.cat([weights["_fc.weight"], torch.zeros(998, 1280)])
        weights["_fc.bias"] = torch.cat([weights["_fc.bias"], torch.full((998,), -9.0)])
    path = tmp_path / "efficientnet-b0_weights.pth"
    torch.save(weights, path)
    classifier = Classifier(load_model(path))

    for seed in range(3):
        grey = small_radiograph(seed=seed)
        probabilities, label = predecessors_answer(path, grey, outputs=outputs)
        (answer,) = classifier.classify(prepare(grey)[None])

        assert answer.diagnosis == label
        assert [*answer.probabilities.values()] == pytest.approx(probabilities, abs=1e-6)
