"""How sure a measure is: intervals from resampling patients, with all of a patient's pictures together.

Percentile intervals of the cluster bootstrap (Efron and Tibshirani 1993, ch. 13; Field and Welsh 2007): in each
resample the patients of every fold are drawn with replacement. Patients who share identical pictures count as one, as
they do where folds are drawn: a copy is no further knowledge. The networks stay as they are, so the intervals speak
of which patients happened to be tested, not of how another training might have gone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.folds import patient_groups
from training.errors import RunError
from training.predictions import Predictions
from training.report.calibration import bin_sums
from training.report.metrics import Judged, confusion_matrix, measure
from training.report.ranking import Floats, Ranking, ratio

#: Share of resamples that an interval covers.
LEVEL: Final = 0.95
#: How many resamples are drawn where nothing else is said.
RESAMPLES: Final = 2000
#: False positive rates at which the band of the ROC curve is drawn.
ROC_GRID: Final = np.linspace(0, 1, 101)

_QUANTILES: Final = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
#: Pictures times resamples that are held in memory at a time.
_MAX_CELLS: Final = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A measure with its interval; None is undefined.

    Attributes:
        value: Of the sample itself.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Pictures that the measure is a mean over.
        undefined: Resamples in which it was undefined, and which the interval leaves out.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    undefined: int = 0


@dataclass(frozen=True)
class CalibrationBin:
    """One point of the calibration curve: mean predicted probability, and the observed share with its interval."""

    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Baseline:
    """A shortcut judged like the network: its AUC, and by how much the network's is larger on the same resamples."""

    auc: Estimate
    network_leads_by: Estimate


@dataclass(frozen=True, eq=False)
class Assessment:
    """Everything that is computed from a set of predictions.

    Attributes:
        judged: What was judged.
        folds_of: (N,) the fold of each picture.
        patients: How many there are; those who share identical pictures are one.
        resamples: How many were drawn.
        seed: Of their drawing.
        pooled: Each measure over all pictures.
        folds: The same of each fold.
        fold_mean: Mean over the folds; empty where there is one.
        confusion: (C, C), rows are the truth.
        roc_band: (2, len(ROC_GRID)) lowest and highest true positive rate; None where it is undefined.
        calibration: From low to high probability.
        shortcuts: By name.
    """

    judged: Judged
    folds_of: NDArray[np.int64]
    patients: int
    resamples: int
    seed: int
    pooled: dict[str, Estimate]
    folds: dict[int, dict[str, Estimate]]
    fold_mean: dict[str, Estimate]
    confusion: NDArray[np.int64]
    roc_band: Floats | None
    calibration: tuple[CalibrationBin, ...]
    shortcuts: dict[str, Baseline]


def assess(
    predictions: Predictions,
    *,
    shortcuts: Mapping[str, Floats] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Assessment:
    """Measure predictions, pooled and by fold, and the shortcuts beside them.

    Args:
        predictions: N pictures, at least one.
        shortcuts: Scores of baselines, (N,) each.
        seed: The same seed gives the same intervals.
        resamples: How many to draw, at least 1.

    Raises:
        RunError: There are no predictions, or a patient is in two folds.
    """
    if not predictions.names:
        raise RunError("there are no predictions to report on; at least one picture must have been judged")
    others = dict(shortcuts or {})
    judged = Judged(
        predictions.scores,
        predictions.truths,
        predictions.diagnoses(),
        len(predictions.classes),
        finding=predictions.finding_index,
    )
    groups = patient_groups(predictions.patients, predictions.digests)
    clusters, cluster_folds = cluster_patients(groups, predictions.folds)
    parts = {int(fold): predictions.folds == fold for fold in np.unique(predictions.folds)}
    once = np.ones((1, len(judged.truths)))
    sample = _Tally(judged, parts, others)
    sample.add(once)
    drawn = _Tally(judged, parts, others)
    for weights in draw_weights(clusters, cluster_folds, seed=seed, resamples=resamples):
        drawn.add(weights)
    value, spread = sample.collected(), drawn.collected()

    def summary(key: str, *, n: int, patients: int) -> Estimate:
        return estimate(float(value[key][0]), spread[key], n=n, patients=patients)

    n_patients = {fold: int((cluster_folds == fold).sum()) for fold in parts}
    everyone = len(cluster_folds)
    folds = {
        fold: {
            key: summary(f"{fold}/{key}", n=n, patients=n_patients[fold])
            for key, n in judged.part(chosen).sizes().items()
        }
        for fold, chosen in parts.items()
    }
    mean = {key: summary(f"mean/{key}", n=n, patients=everyone) for key, n in judged.sizes().items()}
    mass, predicted, _ = bin_sums(judged.scores, judged.positives.astype(np.float64), weights=once)
    calibration = tuple(
        CalibrationBin(float(predicted[0, b] / n), summary(f"bin/{b}", n=round(n), patients=everyone))
        for b, n in enumerate(mass[0])
    )
    n = len(judged.truths)
    baselines = {
        name: Baseline(
            summary(f"shortcut/{name}", n=n, patients=everyone), summary(f"lead/{name}", n=n, patients=everyone)
        )
        for name in others
    }
    return Assessment(
        judged=judged,
        folds_of=predictions.folds,
        patients=everyone,
        resamples=resamples,
        seed=seed,
        pooled={key: summary(f"pooled/{key}", n=n, patients=everyone) for key, n in judged.sizes().items()},
        folds=folds,
        fold_mean=mean if len(parts) > 1 else {},
        confusion=confusion_matrix(judged),
        roc_band=_band(drawn.roc),
        calibration=calibration,
        shortcuts=baselines,
    )


def cluster_patients(patients: Sequence[str], folds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the patients.

    Returns:
        (N,) the patient of each picture, and (P,) the fold of each patient.

    Raises:
        RunError: A patient is in two folds, so that one fold's network was trained on what the other's was tested on.
    """
    _, firsts, clusters = np.unique(np.array(patients, object).astype(str), return_index=True, return_inverse=True)
    cluster_folds = folds[firsts]
    torn = int(np.unique(clusters[cluster_folds[clusters] != folds]).size)
    if torn:
        raise RunError(
            f"patients with pictures in more than one fold: {torn}; a patient's pictures must stay together. Draw the "
            "folds again, grouped by patient"
        )
    return clusters.astype(np.int64), cluster_folds


def draw_weights(
    clusters: NDArray[np.int64], cluster_folds: NDArray[np.int64], *, seed: int, resamples: int
) -> Iterator[Floats]:
    """Draw how often each picture counts in each resample.

    Args:
        clusters: (N,) the patient of each picture.
        cluster_folds: (P,) the fold of each patient; as many patients are drawn from each fold as it has.
        seed: The same seed gives the same resamples.
        resamples: How many there are together.

    Yields:
        (r, N), some of the resamples at a time.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(cluster_folds == fold) for fold in np.unique(cluster_folds)]
    at_a_time = max(1, _MAX_CELLS // len(clusters))
    for start in range(0, resamples, at_a_time):
        rows = min(at_a_time, resamples - start)
        counts = np.empty((rows, len(cluster_folds)))
        for group in groups:
            counts[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=rows)
        yield counts[:, clusters]


def estimate(value: float, drawn: Floats, *, n: int, patients: int) -> Estimate:
    """Put a value and its resamples together.

    There is no interval for a single patient, nor where half of the resamples or more are undefined.

    Args:
        value: Of the sample; NaN is undefined.
        drawn: (R,) of the resamples.
        n: Pictures behind the value.
        patients: Patients behind it.
    """
    defined = drawn[np.isfinite(drawn)]
    undefined = len(drawn) - len(defined)
    if not np.isfinite(value):
        return Estimate(None, None, None, n, undefined)
    if patients < 2 or 2 * undefined >= len(drawn):
        return Estimate(value, None, None, n, undefined)
    low, high = np.quantile(defined, _QUANTILES)
    return Estimate(value, float(low), float(high), n, undefined)


class _Tally:
    """Collects every quantity over portions of the resamples, so that all of them come from the same draws."""

    def __init__(self, judged: Judged, parts: Mapping[int, NDArray[np.bool_]], others: Mapping[str, Floats]) -> None:
        self._judged = judged
        self._parts = parts
        self._others = others
        self._positives = judged.positives.astype(np.float64)
        self._ranking = Ranking.of(judged.scores)
        self._rankings = {name: Ranking.of(scores) for name, scores in others.items()}
        self._columns: dict[str, list[Floats]] = {}
        self.roc: list[Floats] = []

    def add(self, weights: Floats) -> None:
        """Take in some resamples, (r, N)."""
        pooled = measure(self._judged, weights)
        folds = {
            fold: pooled if chosen.all() else measure(self._judged.part(chosen), weights[:, chosen])
            for fold, chosen in self._parts.items()
        }
        for key, values in pooled.items():
            self._put(f"pooled/{key}", values)
            self._put(f"mean/{key}", np.mean([found[key] for found in folds.values()], axis=0))
            for fold, found in folds.items():
                self._put(f"{fold}/{key}", found[key])
        for name, ranking in self._rankings.items():
            auc = ranking.auc(weights, self._positives)
            self._put(f"shortcut/{name}", auc)
            self._put(f"lead/{name}", pooled["auc"] - auc)
        mass, _, observed = bin_sums(self._judged.scores, self._positives, weights=weights)
        for index, values in enumerate(ratio(observed, mass).T):
            self._put(f"bin/{index}", values)
        for false_rate, true_rate in zip(*self._ranking.roc(weights, self._positives), strict=True):
            if np.isfinite(false_rate[-1]) and np.isfinite(true_rate[-1]):
                self.roc.append(np.interp(ROC_GRID, false_rate, true_rate))

    def collected(self) -> dict[str, Floats]:
        """(R,) of each quantity."""
        return {key: np.concatenate(parts) for key, parts in self._columns.items()}

    def _put(self, key: str, values: Floats) -> None:
        self._columns.setdefault(key, []).append(values)


def _band(curves: Sequence[Floats]) -> Floats | None:
    return np.quantile(np.stack(curves), _QUANTILES, axis=0) if curves else None
