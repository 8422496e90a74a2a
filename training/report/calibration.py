"""Do probabilities mean what they say? Bins of equal mass, calibration error, slope and intercept.

As in `training.report.metrics`, weights are (R, N) and results (R,), NaN where undefined. Slope and intercept: Van
Calster et al. 2019, BMC Medicine 17:230; calibration error: Naeini et al. 2015, AAAI, with the bins of equal mass of
Nguyen and O'Connor 2015, EMNLP.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.report.ranking import Floats, Ranking, ratio

#: Bins of a calibration curve where there are pictures enough.
MAX_BINS: Final = 10
#: Fewer pictures than this in a bin say nothing.
MIN_PER_BIN: Final = 10
#: With fewer bins the calibration error is undefined: within broad bins too high and too low probabilities cancel out.
MIN_BINS: Final = 5
#: Probabilities are kept this far from 0 and 1 before their logit is taken.
CLIP: Final = 1e-6

_MAX_STEPS: Final = 60
#: Largest change of a coefficient in one step of Newton's method, against overshooting.
_MAX_CHANGE: Final = 3.0
_CONVERGED: Final = 1e-6


def bin_of(scores: Floats) -> NDArray[np.int64]:
    """Sort pictures into bins of equal mass; equal scores share a bin.

    Args:
        scores: (N,).

    Returns:
        (N,) indices of bins, 0 for the lowest scores; at most `MAX_BINS` of them, of at least about `MIN_PER_BIN`.
    """
    n = len(scores)
    bins = max(1, min(MAX_BINS, n // MIN_PER_BIN))
    firsts = np.sort(scores)[[n * index // bins for index in range(1, bins)]]
    found = np.searchsorted(np.unique(firsts), scores, side="right")
    # A score so frequent that it fills the lowest bin leaves a number unused.
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def bin_sums(scores: Floats, positives: Floats, *, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight, sum of probabilities and number of positives in each of the B bins of `bin_of`, (R, B) each."""
    bins = bin_of(scores)
    member = np.equal(bins[:, None], np.arange(bins.max() + 1)).astype(np.float64)  # (N, B)
    return weights @ member, weights @ (member * scores[:, None]), weights @ (member * positives[:, None])


def logit(scores: Floats) -> Floats:
    """Logarithm of the odds, of probabilities kept `CLIP` away from 0 and 1."""
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def calibration_error(scores: Floats, positives: Floats, *, weights: Floats) -> Floats:
    """(R,) expected calibration error over the bins that the unweighted sample gives; NaN below `MIN_BINS` of them."""
    mass, predicted, observed = bin_sums(scores, positives, weights=weights)
    if mass.shape[1] < MIN_BINS:
        return np.full(len(weights), np.nan)
    return ratio(np.abs(predicted - observed).sum(axis=1), mass.sum(axis=1))


def calibration_slope(scores: Floats, positives: Floats, *, weights: Floats) -> Floats:
    """(R,) slope b of logit P(finding) = a + b logit(score); NaN where the two kinds do not overlap in score."""
    x = logit(scores)
    spread = float(x.std())
    slope = np.full(len(weights), np.nan)
    overlap = _overlapping(x, positives, weights=weights)
    if spread > 0 and overlap.any():
        z = (x - x.mean()) / spread
        design = np.stack([np.ones_like(z), z], axis=1)
        slope[overlap] = _fit(design, np.zeros_like(z), positives, weights=weights[overlap])[:, 1] / spread
    return slope


def calibration_intercept(scores: Floats, positives: Floats, *, weights: Floats) -> Floats:
    """(R,) a of logit P(finding) = a + logit(score), the calibration in the large; NaN without both kinds."""
    x = logit(scores)
    intercept = np.full(len(weights), np.nan)
    both = (weights @ positives > 0) & (weights @ (1 - positives) > 0)
    if both.any():
        intercept[both] = _fit(np.ones((len(x), 1)), x, positives, weights=weights[both])[:, 0]
    return intercept


def _overlapping(x: Floats, positives: Floats, *, weights: Floats) -> NDArray[np.bool_]:
    """(R,) whether a logistic regression on x has a finite answer (Albert and Anderson 1984)."""
    with_finding, without = (mass > 0 for mass in Ranking.of(x).masses(weights, positives))
    last = with_finding.shape[1] - 1
    lowest_with, highest_with = with_finding.argmax(axis=1), last - with_finding[:, ::-1].argmax(axis=1)
    lowest_without, highest_without = without.argmax(axis=1), last - without[:, ::-1].argmax(axis=1)
    both = with_finding.any(axis=1) & without.any(axis=1)
    overlap: NDArray[np.bool_] = both & (highest_without > lowest_with) & (highest_with > lowest_without)
    return overlap


def _fit(design: Floats, offset: Floats, positives: Floats, *, weights: Floats) -> Floats:
    """Maximum likelihood of R weighted logistic regressions by Newton's method.

    Args:
        design: (N, K), about of unit scale.
        offset: (N,) added to the linear predictor.
        positives: (N,) 0 or 1.
        weights: (R, N).

    Returns:
        (R, K), NaN where it did not converge.
    """
    n_columns = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)  # (N, K * K)
    found = np.zeros((len(weights), n_columns))
    active = np.arange(len(weights))
    for _ in range(_MAX_STEPS):
        w = weights[active]
        # The logistic function, in the form that cannot overflow.
        p = (1 + np.tanh((found[active] @ design.T + offset) / 2)) / 2
        gradient = (w * (positives - p)) @ design
        curvature = ((w * p * (1 - p)) @ products).reshape(-1, n_columns, n_columns)
        # The addition keeps flat regions solvable; it changes the way, not where it ends.
        step = np.linalg.solve(curvature + 1e-9 * np.eye(n_columns), gradient[:, :, None])[:, :, 0]
        step = np.clip(step, -_MAX_CHANGE, _MAX_CHANGE)
        found[active] += step
        active = active[np.abs(step).max(axis=1) > _CONVERGED]
        if not active.size:
            break
    found[active] = np.nan
    return found
