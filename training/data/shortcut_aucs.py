"""How well each shortcut tells the finding from the rest of a data set, before any network is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.shortcuts import ALL_TOGETHER, SHORTCUTS, shortcut_scores
from training.report.bootstrap import LEVEL, RESAMPLES, cluster_patients, draw_weights
from training.report.ranking import Ranking

#: With fewer patients on either side chance alone separates them too often, and nothing is judged.
LEAST_PATIENTS: Final = 10

#: Folds of the classifier that knows all the measures.
FOLDS: Final = 5


@dataclass(frozen=True)
class ShortcutAuc:
    """A measure judged as a classifier of the finding.

    Attributes:
        name: Of the measure.
        description: What it is.
        auc: Area under the ROC curve; below 0.5 a low value of a single measure speaks for the finding.
        low: Lower end of the 95 % interval.
        high: Upper end.
        suspicious: The interval excludes 0.5, which also happens to one harmless measure in twenty.
        tells: So does the wider interval that all measures together stay inside of in 95 % of harmless data sets
            (Bonferroni).

    All measures together are judged out of fold, and then only more than 0.5 counts: which way to read them was fitted,
    and where they tell nothing, what was fitted on the other folds tends to be mistaken in the one left out.
    """

    name: str
    description: str
    auc: float
    low: float
    high: float
    suspicious: bool
    tells: bool


def enough_patients(positives: NDArray[np.bool_], patients: Sequence[str]) -> bool:
    """Whether there are `LEAST_PATIENTS` with the finding and as many without it."""
    owners = np.asarray(patients, str)
    return all(len(np.unique(owners[side])) >= LEAST_PATIENTS for side in (positives, ~positives))


def shortcut_aucs(
    measures: Sequence[Mapping[str, float]],
    positives: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    others: Mapping[str, tuple[str, NDArray[np.float64]]],
    seed: int = 0,
) -> tuple[ShortcutAuc, ...]:
    """Judge the measures of N pictures, each as it stands, and all of `SHORTCUTS` together out of fold.

    Args:
        measures: As `training.data.shortcuts.shortcut_measures` gives them.
        positives: (N,) whether the class is the finding; see `enough_patients`.
        patients: (N,) whose each picture is.
        others: Further measures by name, each a description and (N,) values.
        seed: Of the folds and of the bootstrap.

    Returns:
        Those that tell first, then by their AUC's distance from 0.5.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.zeros(len(measures), np.int64)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, tested) in enumerate(splitter.split(folds, positives, list(patients))):
        folds[tested] = fold
    together = shortcut_scores(measures, positives, patients, folds=folds)[ALL_TOGETHER]
    candidates = {
        name: (description, np.array([measured[name] for measured in measures]))
        for name, description in SHORTCUTS.items()
    }
    candidates |= others
    candidates[ALL_TOGETHER] = (f"{', '.join(SHORTCUTS)} in a logistic regression, out of fold", together)
    chances = (1 - LEVEL, (1 - LEVEL) / len(candidates))
    found = []
    for name, (description, values) in candidates.items():
        auc, drawn = _bootstrapped(values, positives, patients, seed=seed)
        (low, high), (lowest, highest) = (np.quantile(drawn, [c / 2, 1 - c / 2]).tolist() for c in chances)
        found.append(
            ShortcutAuc(
                name=name,
                description=description,
                auc=auc,
                low=low,
                high=high,
                suspicious=low > 0.5 or (high < 0.5 and name != ALL_TOGETHER),
                tells=lowest > 0.5 or (highest < 0.5 and name != ALL_TOGETHER),
            )
        )
    return tuple(sorted(found, key=lambda shortcut: (not shortcut.tells, -abs(shortcut.auc - 0.5))))


def _bootstrapped(
    values: NDArray[np.float64], positives: NDArray[np.bool_], patients: Sequence[str], *, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """AUC of a measure, and (R,) those of the resamples of patients that hold both sides."""
    ranking, truths = Ranking.of(values), positives.astype(np.float64)
    clusters, cluster_folds = cluster_patients(patients, np.zeros(len(patients), np.int64))
    draws = draw_weights(clusters, cluster_folds, seed=seed, resamples=RESAMPLES)
    drawn = np.concatenate([ranking.auc(weights, truths) for weights in draws])
    return float(ranking.auc(np.ones((1, len(values))), truths)[0]), drawn[np.isfinite(drawn)]
