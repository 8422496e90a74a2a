"""Batch norm's statistics: taken anew, so that a network can be judged after few steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panoramic.view import View
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Picture
from training.fit.config import TrainingConfig
from training.fit.hardware import Hardware
from training.fit.norm import settle_norms, settling_count
from training.fit.train import Feed, train_one
from training.fit.weights import starting_weights

SIZE = (64, 160)


class Stripes(PictureCache):
    """Pictures that a network tells apart within some fifty steps: wide stripes or narrow ones."""

    def load(self, prepared: Prepared) -> NDArray[np.uint8]:
        rng = np.random.default_rng(int(prepared.key))
        waves = 14 if prepared.picture.class_index else 4
        columns = np.arange(SIZE[1]) / SIZE[1] * 2 * np.pi * waves + rng.uniform(0, 6)
        pixels: NDArray[np.uint8] = np.clip(rng.normal(90, 25, SIZE) + 50 * np.sin(columns), 0, 255).astype(np.uint8)
        return pixels


def test_evaluation_mode_works_after_a_few_short_epochs(tmp_path: Path) -> None:
    # With the library's own running means the validation loss stays at ln 2 = 0.693 in all of these epochs, while the
    # training loss falls just the same.
    torch.set_num_threads(1)
    pictures = [Picture(tmp_path, str(place), place % 2, str(place)) for place in range(88)]
    feed = Feed(
        Stripes(tmp_path, view=View.FULL, input_size=SIZE),
        [Prepared(picture, "", SIZE, {}, picture.name) for picture in pictures],
        np.array([picture.class_index for picture in pictures]),
    )
    trained = train_one(
        tmp_path / "fold",
        feed,
        train=range(64),
        validation=range(64, 88),
        outputs=2,
        config=TrainingConfig(network="efficientnet-b0", epochs=4, input_size=SIZE, workers=0, augmentation="none"),
        starting=starting_weights("none", network="efficientnet-b0", view=View.FULL),
        hardware=Hardware(),
        progress_bar=False,
    )
    losses = [epoch.validation_loss for epoch in trained.history.epochs]
    assert min(loss for loss in losses if loss is not None) < 0.4


def test_statistics_are_those_of_the_pictures_with_the_weights_as_they_are() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5))
    net.train()
    norm = net.get_submodule("1")
    norm.load_state_dict({"running_mean": torch.full((4,), 9.0), "running_var": torch.ones(4)}, strict=False)
    batches = [torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8) + 1]
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    state = torch.get_rng_state()
    settle_norms(net, batches)
    with torch.no_grad():
        values = [net.get_submodule("0")(x).transpose(0, 1).flatten(1) for x in batches]  # (4, 5 h w) each
    assert torch.allclose(norm.get_buffer("running_mean"), torch.stack([v.mean(1) for v in values]).mean(0))
    assert torch.allclose(norm.get_buffer("running_var"), torch.stack([v.var(1) for v in values]).mean(0))
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    assert torch.equal(torch.get_rng_state(), state), "a resumed run must not depend on it"
    assert net.training
    assert norm.training
    assert norm.momentum == 0.1


@pytest.mark.parametrize(("pictures", "batch_size", "count"), [(50, 4, 50), (5000, 4, 128), (5000, 64, 512)])
def test_statistics_take_a_part_of_a_large_training_part(pictures: int, batch_size: int, count: int) -> None:
    assert settling_count(pictures, batch_size=batch_size) == count
