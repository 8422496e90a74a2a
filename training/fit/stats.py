"""The two files in which the predecessor reports a cross-validation: its measures as text, its pairs as JSON."""

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from panoramic.manifest import RESEARCH_USE
from training.predictions import Predictions
from training.report.metrics import Judged, measure

#: As the predecessor names and orders them; each is of the finding against all other classes.
_ROWS: Final = (
    ("Precision", "precision"),
    ("Recall", "sensitivity"),
    ("F1-score", "f1"),
    ("Accuracy", "accuracy"),
    ("AUC", "auc"),
    ("Specificity", "specificity"),
)


def stats_text(predictions: Predictions) -> str:
    """``stats.txt``: the measures of each fold, their mean and deviation over folds, and of all pictures pooled.

    Unlike the predecessor's, the AUC is that of the probabilities. What is undefined reads "nan".
    """
    folds = sorted(predictions.thresholds)
    columns = {f"fold_{fold}": _measures(predictions, np.equal(predictions.folds, fold)) for fold in folds}
    table = np.array(list(columns.values()))  # (folds, measures)
    pooled = _measures(predictions, np.ones(len(predictions.names), bool))
    finding = predictions.classes[predictions.finding_index]
    lines = [
        RESEARCH_USE,
        "",
        f"Finding: {finding.name} ({finding.label}), against all other classes.",
        f"Out-of-fold predictions of {len(predictions.names)} pictures in {len(folds)} folds.",
        "The AUC is that of the probabilities; the pooled one compares probabilities of different networks.",
        "",
        _line("", [*columns, "mean", "deviation", "pooled"]),
    ]
    for place, (name, _) in enumerate(_ROWS):
        of_folds = table[:, place]
        values = [*of_folds, of_folds.mean(), of_folds.std(ddof=1) if len(folds) > 1 else np.nan, pooled[place]]
        lines.append(_line(name, [f"{value:.4f}" for value in values]))
    lines.append(_line("Threshold", [f"{predictions.thresholds[fold]:.4f}" for fold in folds]))
    return "\n".join(lines) + "\n"


def pairs_json(predictions: Predictions) -> str:
    """``GT_vs_Predictions.json``: class indices of truth and diagnosis of every picture, in one order."""
    pairs = {"GT": predictions.truths.tolist(), "Predictions": predictions.diagnoses().tolist()}
    return json.dumps(pairs) + "\n"


def _measures(predictions: Predictions, chosen: NDArray[np.bool_]) -> list[float]:
    judged = Judged(
        predictions.scores,
        predictions.truths,
        predictions.diagnoses(),
        len(predictions.classes),
        finding=predictions.finding_index,
    ).part(chosen)
    found = measure(judged)
    return [float(found[key][0]) for _, key in _ROWS]


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<12}" + "".join(f"{cell:>11}" for cell in cells)).rstrip()
