"""Pictures in the order of their scores, ties together: what ROC and precision-recall curves are made from."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient, NaN where the denominator is not positive."""
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


@dataclass(frozen=True, eq=False)
class Ranking:
    """N pictures sorted by score, in G groups of equal scores.

    Attributes:
        order: (N,) indices of the pictures, lowest score first.
        starts: (G,) where each group begins in `order`.
        values: (G,) the groups' scores, ascending.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: Floats

    @classmethod
    def of(cls, scores: Floats) -> Self:
        """Sort scores, (N,) with N at least 1."""
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] > ordered[:-1]]))
        return cls(order, starts, ordered[starts])

    def masses(self, weights: Floats, positives: Floats) -> tuple[Floats, Floats]:
        """Weight of pictures with and without the finding in each group.

        Args:
            weights: (R, N).
            positives: (N,) 1 with the finding, 0 without.

        Returns:
            (R, G) twice.
        """
        ordered = weights[:, self.order]
        truth = positives[self.order]
        with_finding = np.add.reduceat(ordered * truth, self.starts, axis=1)
        without = np.add.reduceat(ordered * (1 - truth), self.starts, axis=1)
        return with_finding, without

    def auc(self, weights: Floats, positives: Floats) -> Floats:
        """(R,) area under the ROC curve, ties counting half; NaN without both kinds."""
        with_finding, without = self.masses(weights, positives)
        below = without.cumsum(axis=1) - without / 2
        return ratio((with_finding * below).sum(axis=1), with_finding.sum(axis=1) * without.sum(axis=1))

    def average_precision(self, weights: Floats, positives: Floats) -> Floats:
        """(R,) sum over falling thresholds of (gain in recall) x precision; NaN without pictures with the finding."""
        with_finding, without = (mass[:, ::-1] for mass in self.masses(weights, positives))
        true = with_finding.cumsum(axis=1)
        precision = np.nan_to_num(ratio(true, true + without.cumsum(axis=1)))
        return ratio((with_finding * precision).sum(axis=1), true[:, -1])

    def roc(self, weights: Floats, positives: Floats) -> tuple[Floats, Floats]:
        """False and true positive rates over falling thresholds, (R, G + 1) each, from (0, 0) to (1, 1)."""
        with_finding, without = (mass[:, ::-1] for mass in self.masses(weights, positives))
        start = np.zeros((len(weights), 1))
        false_rate = ratio(without.cumsum(axis=1), without.sum(axis=1, keepdims=True))
        true_rate = ratio(with_finding.cumsum(axis=1), with_finding.sum(axis=1, keepdims=True))
        return np.hstack([start, false_rate]), np.hstack([start, true_rate])
