"""Measures of a classifier, each over many weightings of the pictures at once, and the choice of a threshold.

A weighting counts each picture so many times: all ones is the sample itself, and a resample of the bootstrap is another
row. Every measure takes weights (R, N) and gives (R,) values, NaN where it is undefined: never 0 in its place.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.errors import RunError
from training.report.calibration import calibration_error, calibration_intercept, calibration_slope
from training.report.ranking import Floats, Ranking, ratio


@dataclass(frozen=True)
class Measure:
    """What a measure is called and how it is defined.

    Attributes:
        key: In ``report.json``.
        name: On the page.
        meaning: Its definition, and where it is undefined.
    """

    key: str
    name: str
    meaning: str


MEASURES: Final = (
    Measure(
        "auc",
        "AUC",
        "Area under the ROC curve: how often a picture with the finding has the higher probability of a pair, a tie "
        "counting half (Hanley and McNeil 1982). Undefined without pictures of both kinds.",
    ),
    Measure(
        "average_precision",
        "Average precision",
        "Area under the precision-recall curve as a sum of steps. Its chance level is the share of pictures with the "
        "finding. Undefined without such pictures.",
    ),
    Measure("sensitivity", "Sensitivity (recall)", "Pictures with the finding that were diagnosed with it."),
    Measure("specificity", "Specificity", "Pictures without the finding that were not diagnosed with it."),
    Measure("accuracy", "Accuracy", "Right answers to the question: finding or not."),
    Measure(
        "precision",
        "Precision (PPV)",
        "Diagnosed pictures that have the finding; changes with how frequent the finding is in this set. Undefined "
        "where nothing was diagnosed.",
    ),
    Measure(
        "npv",
        "Negative predictive value",
        "Pictures not diagnosed that are without the finding; changes with how frequent the finding is in this set.",
    ),
    Measure("f1", "F1", "2 TP / (2 TP + FP + FN). Undefined without pictures with the finding."),
    Measure(
        "mcc",
        "MCC",
        "Matthews correlation coefficient, -1 to 1. Undefined where a row or column of the confusion matrix is empty.",
    ),
    Measure("brier", "Brier score", "Mean squared difference of probability and truth; 0 is perfect, lower is better."),
    Measure(
        "ece",
        "Calibration error (ECE)",
        "Mean absolute difference of predicted and observed share over bins of equal mass; lower is better. Chance "
        "alone makes it larger than 0, the more so in a small sample and in resamples of it, so that its interval lies "
        "too high. Undefined with fewer than 5 bins, which would flatter.",
    ),
    Measure(
        "calibration_slope",
        "Calibration slope",
        "Of a logistic regression of the truth on the logit of the probability: 1 is ideal, less means probabilities "
        "that are too extreme. Undefined where the two kinds are perfectly separated.",
    ),
    Measure(
        "calibration_intercept",
        "Calibration intercept",
        "Calibration in the large: the same regression with the slope held at 1. 0 is ideal, more means probabilities "
        "that are too low.",
    ),
)

#: Besides `MEASURES`, where there are more than two classes.
ALL_CLASS_MEASURES: Final = (
    Measure("overall_accuracy", "Accuracy over all classes", "Pictures whose diagnosed class is the true one."),
    Measure(
        "macro_f1",
        "Macro F1",
        "Unweighted mean of the classes' F1, each class against the rest. Undefined where a class has no pictures.",
    ),
)


@dataclass(frozen=True, eq=False)
class Judged:
    """N pictures with truth and answer.

    Attributes:
        scores: (N,) probability of the finding.
        truths: (N,) class indices.
        diagnosed: (N,) class indices.
        n_classes: How many classes there are.
        finding: Index of the class that the screening looks for.
    """

    scores: Floats
    truths: NDArray[np.int64]
    diagnosed: NDArray[np.int64]
    n_classes: int = 2
    finding: int = 1

    def part(self, chosen: NDArray[np.bool_]) -> "Judged":
        """Some of the pictures."""
        return Judged(
            self.scores[chosen], self.truths[chosen], self.diagnosed[chosen], self.n_classes, finding=self.finding
        )

    @property
    def positives(self) -> NDArray[np.bool_]:
        """(N,) whether the truth is the finding."""
        return np.equal(self.truths, self.finding)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """(N,) whether the finding was diagnosed."""
        return np.equal(self.diagnosed, self.finding)

    def measures(self) -> tuple[Measure, ...]:
        """Which measures `measure` gives."""
        return (*MEASURES, *ALL_CLASS_MEASURES) if self.n_classes > 2 else MEASURES

    def sizes(self) -> dict[str, int]:
        """By measure, over how many pictures it is a mean; `sensitivity`, for example, over those with the finding."""
        n = len(self.truths)
        sizes = {measure.key: n for measure in self.measures()}
        sizes["sensitivity"] = int(self.positives.sum())
        sizes["specificity"] = n - sizes["sensitivity"]
        sizes["precision"] = int(self.flagged.sum())
        sizes["npv"] = n - sizes["precision"]
        return sizes


def measure(judged: Judged, weights: Floats | None = None) -> dict[str, Floats]:
    """Every measure under every weighting.

    Args:
        judged: N pictures.
        weights: (R, N), how often each picture counts; by default once, with R = 1.

    Returns:
        By key of `Judged.measures`, (R,), NaN where undefined.
    """
    w = np.ones((1, len(judged.truths))) if weights is None else weights
    positives = judged.positives.astype(np.float64)
    ranking = Ranking.of(judged.scores)
    found = {
        **_of_counts(judged, w),
        "auc": ranking.auc(w, positives),
        "average_precision": ranking.average_precision(w, positives),
        "brier": ratio(w @ (judged.scores - positives) ** 2, w.sum(axis=1)),
        "ece": calibration_error(judged.scores, positives, weights=w),
        "calibration_slope": calibration_slope(judged.scores, positives, weights=w),
        "calibration_intercept": calibration_intercept(judged.scores, positives, weights=w),
    }
    if judged.n_classes > 2:
        found |= _of_all_classes(judged, w)
    return {m.key: found[m.key] for m in judged.measures()}


def _of_counts(judged: Judged, w: Floats) -> dict[str, Floats]:
    """Whatever follows from the 2 x 2 table of finding or not."""
    truth, answer = judged.positives, judged.flagged
    cells = np.stack([truth & answer, ~truth & answer, truth & ~answer, ~truth & ~answer], axis=1)
    tp, fp, fn, tn = (w @ cells.astype(np.float64)).T  # (R,) each
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    f1 = ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "precision": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": np.where(tp + fn > 0, f1, np.nan),
        "mcc": ratio(tp * tn - fp * fn, np.sqrt(margins)),
    }


def _of_all_classes(judged: Judged, w: Floats) -> dict[str, Floats]:
    each = []
    for index in range(judged.n_classes):
        truth, answer = judged.truths == index, judged.diagnosed == index
        there = w @ truth.astype(np.float64)
        f1 = ratio(2 * (w @ (truth & answer).astype(np.float64)), there + w @ answer.astype(np.float64))
        each.append(np.where(there > 0, f1, np.nan))
    right = np.equal(judged.truths, judged.diagnosed).astype(np.float64)
    return {"overall_accuracy": ratio(w @ right, w.sum(axis=1)), "macro_f1": np.mean(each, axis=0)}


def confusion_matrix(judged: Judged) -> NDArray[np.int64]:
    """(C, C) counts: rows are the truth, columns the diagnosis."""
    counts = np.zeros((judged.n_classes, judged.n_classes), np.int64)
    np.add.at(counts, (judged.truths, judged.diagnosed), 1)
    return counts


def choose_threshold(scores: Floats, positives: NDArray[np.bool_], *, rule: str) -> float:
    """Choose from which probability on the finding is diagnosed; only validation data may go in.

    A threshold lies half way between the lowest probability that is diagnosed and the next one below, so that it does
    not sit on a picture of the validation part.

    Args:
        scores: (N,) probability of the finding.
        positives: (N,) whether the truth is the finding.
        rule: A number from 0 to 1, taken as it is; ``youden``, the largest sensitivity + specificity - 1 (Youden 1950),
            of several the one with the highest sensitivity; or ``sensitivity=0.9``, the highest specificity among
            thresholds with at least that sensitivity.

    Raises:
        RunError: Another rule, or pictures of one kind only where the rule needs both.
    """
    kind, number = parse_rule(rule)
    if kind == "fixed":
        return number
    if positives.all() or not positives.any():
        kinds = "only pictures with" if positives.any() else "no pictures with"
        raise RunError(f"threshold rule {rule!r} needs pictures with and without the finding, but there are {kinds} it")
    cuts, groups = np.unique(scores, return_inverse=True)  # ascending
    with_finding = np.bincount(groups, weights=positives, minlength=len(cuts))
    without = np.bincount(groups, weights=~positives, minlength=len(cuts))
    # Diagnosed are all from a cut on.
    sensitivity = with_finding[::-1].cumsum()[::-1] / with_finding.sum()
    specificity = 1 - without[::-1].cumsum()[::-1] / without.sum()
    if kind == "youden":
        gain = np.round(sensitivity + specificity, 12)  # equal sums that rounding makes differ
        best = int(np.argmax(gain))
    else:
        best = int(np.flatnonzero(sensitivity >= number - 1e-12)[-1])
    if best == 0:
        return float(cuts[0])
    between = float(cuts[best - 1] + cuts[best]) / 2
    return between if between > cuts[best - 1] else float(cuts[best])


def parse_rule(rule: str) -> tuple[str, float]:
    """Take a threshold rule apart, so that a mistake shows before anything is trained.

    Returns:
        ``fixed``, ``youden`` or ``sensitivity``, and its number (0 for ``youden``).

    Raises:
        RunError: The rule is none of these, or its number lies outside 0 to 1.
    """
    text = rule.strip().lower()
    if text == "youden":
        return text, 0.0
    kind, is_named, number_text = text.rpartition("=")
    try:
        number = float(number_text)
    except ValueError:
        number = np.nan
    if (is_named and kind.strip() != "sensitivity") or not 0 <= number <= 1:
        raise RunError(
            f"threshold rule is {rule!r}; it must be a number from 0 to 1 such as 0.5, youden, or sensitivity=0.9"
        )
    return ("sensitivity" if is_named else "fixed"), number
