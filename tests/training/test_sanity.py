"""The sanity check: similarity of maps, the cascade that makes weights random, and a verdict that can fail."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy.stats import spearmanr
from typer.testing import CliRunner

from bench.untrained import untrained_network
from panoramic.manifest import RESEARCH_USE, ModelDescription
from panoramic.model_file import Model, load_model, save_model
from panoramic.network import join_members
from panoramic.preprocess import prepare
from panoramic.view import View
from training.errors import DatasetError, RunError
from training.explain.cli import exit_code, register
from training.explain.sanity import compare, judge, map_ssim, randomise, rank_correlation, step_names
from training.explain.sanity_report import draw_pictures
from training.phantoms.phantom import draw_phantom, draw_truth
from training.phantoms.phantom_set import write_set

INPUT_SIZE = (96, 224)  # a grid of 3×7
B0_STEPS = ["as trained", "head", "last convolution", *(f"block {i}" for i in range(16, 0, -1)), "stem"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return untrained_network().state_dict()


def model_of(weights: dict[str, torch.Tensor], path: Path, **description: object) -> Model:
    described = ModelDescription(
        name="tried", version="1", network="efficientnet-b0", **{"input_size": INPUT_SIZE, **description}
    )
    save_model(path, described, state_dict=weights)
    return load_model(path)


@pytest.fixture(scope="module")
def model(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_of(weights, tmp_path_factory.mktemp("model") / "tried.safetensors")


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    pictures = [draw_phantom(draw_truth(seed, cls, size_px=(121, 292))) for seed, cls in ((1, "C1"), (2, "C3"))]
    return np.stack([prepare(pixels, input_size=INPUT_SIZE) for pixels in pictures])


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = np.maximum(rng.normal(size=(14, 29)), 0).astype(np.float32)  # half of the places are tied at 0
    b = np.maximum(0.5 * a + rng.normal(size=a.shape), 0).round(1).astype(np.float32)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)


def test_rank_correlation_at_its_ends() -> None:
    ramp = np.arange(21, dtype=np.float32).reshape(3, 7)
    assert rank_correlation(ramp, ramp**2) == pytest.approx(1)
    assert rank_correlation(ramp, 20 - ramp) == pytest.approx(-1)
    assert rank_correlation(ramp, np.zeros_like(ramp)) == 0


@pytest.mark.parametrize(("shape", "window"), [((14, 29), 7), ((6, 9), 5), ((3, 7), 3)])
def test_ssim_is_the_formula_over_a_square_window(shape: tuple[int, int], window: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(shape, np.float32), rng.random(shape, np.float32)
    x, y = (
        np.lib.stride_tricks.sliding_window_view(map_.astype(float) / map_.max(), (window, window)) for map_ in (a, b)
    )
    n = window**2
    ux, uy = x.mean((2, 3)), y.mean((2, 3))
    vx, vy = x.var((2, 3)) * n / (n - 1), y.var((2, 3)) * n / (n - 1)
    vxy = ((x * y).mean((2, 3)) - ux * uy) * n / (n - 1)
    c1, c2 = 0.01**2, 0.03**2  # Wang et al. 2004, eq. 13, with K1 = 0.01, K2 = 0.03, L = 1
    expected = ((2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))).mean()
    assert map_ssim(a, b) == pytest.approx(expected, abs=1e-5)


def test_ssim_does_not_see_strength_but_emptiness() -> None:
    a = np.random.default_rng(2).random((14, 29), np.float32)
    assert map_ssim(a, 1e-6 * a) == pytest.approx(1)
    assert map_ssim(a, np.zeros_like(a)) < 0.1


def test_cascade_goes_from_head_to_stem_and_is_seeded(model: Model, batch: np.ndarray) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict.items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    calls: list[int] = []

    first = randomise(model, batch, seed=3, on_step=lambda: calls.append(1))

    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are not disturbed"
    assert all(torch.equal(tensor, model.state_dict[name]) for name, tensor in before.items())
    assert [step.name for step in first.steps] == B0_STEPS == step_names(model)
    assert len(calls) == len(B0_STEPS)
    assert first.used == (0, 1)
    np.testing.assert_array_equal(first.steps[0].spearman, [pytest.approx(1)] * 2)
    np.testing.assert_array_equal(first.steps[0].ssim, [pytest.approx(1)] * 2)
    again, other = randomise(model, batch, seed=3), randomise(model, batch, seed=4)
    for a, b, c in zip(first.steps[1:], again.steps[1:], other.steps[1:], strict=True):
        np.testing.assert_array_equal(a.first_map, b.first_map)
        np.testing.assert_array_equal(a.ssim, b.ssim)
        assert not np.array_equal(a.first_map, c.first_map)


def test_at_the_end_nothing_is_left_of_the_weights(
    weights: dict[str, torch.Tensor], model: Model, batch: np.ndarray, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(6)
    disturbed = {
        name: tensor * (1 + 0.3 * torch.rand(tensor.shape, generator=generator))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
    a = randomise(model, batch, seed=1).steps
    b = randomise(model_of(disturbed, tmp_path / "other.safetensors"), batch, seed=1).steps
    for one, other in zip(a[:-1], b[:-1], strict=True):
        assert not np.array_equal(one.first_map, other.first_map), f"{one.name}: the stem at least is still trained"
    np.testing.assert_array_equal(a[-1].first_map, b[-1].first_map)


def test_members_of_an_ensemble_become_random_together(
    weights: dict[str, torch.Tensor], batch: np.ndarray, tmp_path: Path
) -> None:
    model = model_of(join_members([weights, weights]), tmp_path / "two.safetensors", members=2)
    cascade = randomise(model, batch[:1])
    assert [step.name for step in cascade.steps] == B0_STEPS
    assert cascade.steps[-1].spearman.mean() < 0.5


def test_maps_of_a_network_change(model: Model, batch: np.ndarray) -> None:
    steps = randomise(model, batch).steps
    verdict = judge([s.spearman.mean() for s in steps], [s.ssim.mean() for s in steps])
    assert verdict.changes
    assert "The map changes as the weights do" in verdict.sentence


@pytest.mark.parametrize(
    ("spearman", "ssim", "changes"),
    [
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], False),
        ([1.0, 0.2, 0.9], [1.0, 0.2, 0.9], False),  # the end counts
        ([1.0, 0.1, 0.1], [1.0, 0.9, 0.8], False),  # both must be low
        ([1.0, 0.9, 0.8], [1.0, 0.1, 0.1], False),
        ([1.0, 0.5], [1.0, 0.1], False),
        ([1.0, 0.49], [1.0, 0.49], True),
        ([1.0, -0.2], [1.0, 0.0], True),
    ],
)
def test_the_criterion(spearman: list[float], ssim: list[float], changes: bool) -> None:
    verdict = judge(spearman, ssim)
    assert verdict.changes is changes
    assert ("do not rely on it" in verdict.sentence) is not changes
    assert f"{spearman[-1]:.2f}" in verdict.sentence
    assert exit_code(verdict.changes) == (0 if changes else 1)


def test_a_map_of_the_picture_alone_fails(batch: np.ndarray) -> None:
    """The negative control: edges of the picture, which no weight has a part in, up to a random sign and some noise."""
    grey = batch[:, 0]
    edges = np.hypot(*np.gradient(grey, axis=(1, 2)))[:, ::16, ::16].astype(np.float32)  # (N, h, w)
    rng = np.random.default_rng(7)
    steps = [compare("as trained", edges, edges[None, None])]
    for name in B0_STEPS[1:]:
        noisy = edges + 0.05 * edges.max() * rng.random((4, *edges.shape), np.float32)  # (R, N, h, w)
        flipped = noisy.max() - noisy
        signs = np.stack([noisy, flipped] if rng.random() < 0.5 else [flipped, noisy], axis=1)  # (R, S, N, h, w)
        steps.append(compare(name, edges, signs.astype(np.float32)))
    verdict = judge([s.spearman.mean() for s in steps], [s.ssim.mean() for s in steps])
    assert not verdict.changes
    assert "The map does not change" in verdict.sentence


def test_nothing_to_compare(weights: dict[str, torch.Tensor], batch: np.ndarray, tmp_path: Path) -> None:
    blind = weights | {"_fc.weight": torch.zeros_like(weights["_fc.weight"])}
    with pytest.raises(DatasetError, match="maps of all 2 pictures are empty or the same everywhere"):
        randomise(model_of(blind, tmp_path / "blind.safetensors"), batch)
    tiny = model_of(weights, tmp_path / "tiny.safetensors", input_size=(64, 160))
    with pytest.raises(RunError, match="maps have 2x5 places, and at least 3x3 are needed"):
        randomise(tiny, np.zeros((1, 3, 64, 160), np.float32))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_on_a_folder(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model_of(weights, tmp_path / "m.safetensors", notices=("model_not_trained",))
    folder = write_set(tmp_path / "set", 6, 2, size_px=(121, 292), processes=1).parent / "C3"
    (folder / "Maria-Silva.png").write_bytes(b"")
    out = tmp_path / "out"
    code, stdout, stderr = run("sanity", tmp_path / "m.safetensors", folder, "--n", "3", "--out", out)

    assert (code, stdout.strip()) == (0, str(out / "sanity.png"))
    assert "The map changes as the weights do" in stderr
    assert "skipped as unusable: 1" in stderr
    text = (out / "sanity.json").read_text()
    numbers = json.loads(text)
    assert numbers["notice"] == RESEARCH_USE
    assert numbers["changes"] is True
    assert [step["random_so_far"] for step in numbers["steps"]] == B0_STEPS
    assert len(numbers["pictures"]) == 2
    assert "Maria" not in text + stderr
    for step in numbers["steps"]:
        assert step["spearman"] == pytest.approx(np.mean(step["spearman_by_picture"]))
    with Image.open(out / "sanity.png") as curve:
        assert curve.width > 1000
    code, _, stderr = run("sanity", tmp_path / "m.safetensors", folder, "--out", out)
    assert code == 2
    assert "exists and is not an empty folder" in stderr


def test_command_draws_phantoms_itself(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model_of(weights, tmp_path / "m.safetensors")
    code, stdout, _ = run("sanity", tmp_path / "m.safetensors", "--n", "1", "--out", tmp_path / "out")
    assert (code, stdout.strip()) == (0, str(tmp_path / "out" / "sanity.png"))


def test_phantoms_suit_the_view() -> None:
    (crop,) = draw_pictures(1, seed=3, view=View.CROP)
    (full,) = draw_pictures(1, seed=3, view=View.FULL)
    assert crop.shape == (600, 600)
    assert full.shape == (1210, 2925)
    with pytest.raises(DatasetError, match="n is 0"):
        draw_pictures(0, seed=3, view=View.FULL)
