"""Temperature scaling: the temperature of maximum likelihood, and the same decisions after it as before."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from training.errors import RunError
from training.fit.temperature import BOUNDS, fit_temperature, scale, scale_threshold


def drawn(n: int, classes: int, *, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities too extreme by a factor of the logits, (n, classes), and truths drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(1.5 * rng.standard_normal((n, classes)))
    honest = torch.softmax(logits, dim=1).numpy()
    truths = np.array([rng.choice(classes, p=p) for p in honest])
    return torch.softmax(sharpness * logits, dim=1).numpy(), truths


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_two_classes_agree_with_logistic_regression(sharpness: float) -> None:
    probabilities, truths = drawn(400, 2, sharpness=sharpness)
    difference = np.log(probabilities[:, 1:] / probabilities[:, :1])
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(difference, truths).coef_[0, 0]

    found = fit_temperature(probabilities, truths)

    assert found.value == pytest.approx(1 / slope, rel=1e-4)
    assert found.value == pytest.approx(sharpness, rel=0.25)
    assert (found.pictures, found.remark) == (400, "")


def test_three_classes_agree_with_pytorchs_loss_on_a_fine_grid() -> None:
    probabilities, truths = drawn(300, 3, sharpness=2.0)
    logits, target = torch.from_numpy(np.log(probabilities)), torch.from_numpy(truths)
    grid = np.exp(np.linspace(np.log(0.5), np.log(5), 2000))
    losses = [float(torch.nn.functional.cross_entropy(logits / t, target)) for t in grid]

    found = fit_temperature(probabilities, truths)

    assert found.value == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert found.nll_after == pytest.approx(min(losses), abs=1e-6)
    assert found.nll_before == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target)), abs=1e-9)
    assert found.nll_after < found.nll_before - 0.05


def test_separable_predictions_leave_the_temperature_at_one() -> None:
    probabilities = np.array([[0.9, 0.1], [0.51, 0.49], [0.3, 0.7]])

    found = fit_temperature(probabilities, np.array([0, 0, 1]))

    assert found.value == 1
    assert found.nll_after == found.nll_before
    assert "names no temperature" in found.remark


def test_hopeless_predictions_end_at_the_bound() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])

    found = fit_temperature(probabilities, np.array([1, 1, 0]))

    assert found.value == BOUNDS[1]
    assert "end of the range 0.2 to 10" in found.remark


def test_nearly_separable_predictions_end_at_the_other_bound() -> None:
    sure, unsure = [0.45, 0.55], [0.5001, 0.4999]

    found = fit_temperature(np.array([sure] * 200 + [unsure]), np.array([1] * 201))

    assert found.value == BOUNDS[0]
    assert "end of the range" in found.remark


def test_certainties_that_are_wrong_do_not_break_it() -> None:
    probabilities, truths = drawn(200, 2, sharpness=1.0)
    probabilities[0], truths[0] = [1.0, 0.0], 1

    found = fit_temperature(probabilities, truths)

    assert BOUNDS[0] < found.value <= BOUNDS[1]
    assert np.isfinite(found.nll_before)
    assert np.isfinite(scale(probabilities, found.value)).all()


def test_scaling_divides_the_logits() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    scaled = scale(torch.softmax(logits, dim=1).numpy(), 1.7)

    np.testing.assert_allclose(scaled, torch.softmax(logits / 1.7, dim=1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("threshold", [0.0, 0.07, 0.5, 0.93, 1.0])
def test_a_scaled_threshold_makes_the_same_decisions(threshold: float, temperature: float) -> None:
    probabilities, _ = drawn(500, 2, sharpness=1.5)

    decided = scale(probabilities, temperature)[:, 1] >= scale_threshold(threshold, temperature)

    np.testing.assert_array_equal(decided, probabilities[:, 1] >= threshold)


def test_needs_predictions() -> None:
    with pytest.raises(RunError, match="no validation predictions to fit a temperature on"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64))
