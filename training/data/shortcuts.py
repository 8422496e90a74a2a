"""What a classifier could go by without looking at bone: brightness, size and the like, and how far each gets.

A network that reads the scanner, the export or the crop instead of the cortex scores well on its own data set and
fails elsewhere: one public set gives 53.8 % of three classes from brightness alone. So each measure is judged here as
a classifier of its own, exactly as the network is: by a model that never saw the patient.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

#: Each measure of `shortcut_measures`, and what it is.
SHORTCUTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "brightness": "mean grey level, 0 to 255",
        "contrast": "standard deviation of the grey levels",
        "sharpness": "standard deviation of the Laplacian: blur lowers it, noise raises it",
        "height": "height in pixels",
        "width": "width in pixels",
        "aspect": "height divided by width",
    }
)

#: Name of the classifier that knows all the measures at once.
ALL_TOGETHER: Final = "all"


def shortcut_measures(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Measure what `SHORTCUTS` lists; nothing here depends on the file that held the picture.

    Args:
        pixels: (H, W) grey levels.

    Raises:
        ValueError: Not a two-dimensional array of 8-bit grey levels, or an empty one.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels have shape {pixels.shape} and type {pixels.dtype}; they must be (H, W) and uint8")
    height, width = pixels.shape
    levels = np.arange(256)
    shares = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    mean = float(shares @ levels)
    return {
        "brightness": mean,
        "contrast": float(np.sqrt(shares @ (levels - mean) ** 2)),
        "sharpness": float(cv2.meanStdDev(cv2.Laplacian(pixels, cv2.CV_16S))[1][0, 0]),
        "height": float(height),
        "width": float(width),
        "aspect": height / width,
    }


def shortcut_scores(
    measures: Sequence[Mapping[str, float]],
    positives: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    folds: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Judge the measures as the network is judged: each fold by a model that was fitted on the others.

    The model is a logistic regression on the standardised measure that weighs both classes equally. With their true
    weights a fold that holds many findings is judged by a model fitted on few, and the pooled AUC of a measure that
    tells nothing falls below 0.5. It can still do so in small data sets, since what is fitted on the other folds then
    tends to be mistaken in the one left out: only an AUC above 0.5 speaks for a shortcut. Where the other folds hold
    one class only, nothing can be fitted: 0.5.

    Args:
        measures: Of N pictures, as `shortcut_measures` gives them.
        positives: (N,) whether the truth is the finding.
        groups: (N,) whose each picture is.
        folds: (N,) the fold in whose test part each picture is.

    Returns:
        (N,) probability of the finding, from each measure of `SHORTCUTS` alone and from all of them (`ALL_TOGETHER`).

    Raises:
        ValueError: Lengths differ, a patient is in two folds, there is one fold only, or a measure is missing.
    """
    count = len(measures)
    if not count == len(positives) == len(groups) == len(folds):
        raise ValueError(
            f"there are {count} measures, {len(positives)} truths, {len(groups)} patients and {len(folds)} folds; "
            "each picture needs one of each"
        )
    fold_of: dict[str, int] = {}
    for group, fold in zip(groups, folds.tolist(), strict=True):
        if fold_of.setdefault(group, fold) != fold:
            raise ValueError(
                f"a patient has pictures in fold {fold_of[group]} and in fold {fold}; a patient's pictures belong "
                "together"
            )
    if len(set(fold_of.values())) < 2:
        raise ValueError("the pictures are in one fold; at least 2 are needed: one to test on, the others to fit")
    missing = [name for name in SHORTCUTS if any(name not in measured for measured in measures)]
    if missing:
        raise ValueError(f"measures lack {', '.join(missing)}; take them from shortcut_measures")
    table = np.array([[measured[name] for name in SHORTCUTS] for measured in measures], np.float64)
    alone = {name: _out_of_fold(table[:, [column]], positives, folds) for column, name in enumerate(SHORTCUTS)}
    return alone | {ALL_TOGETHER: _out_of_fold(table, positives, folds)}


def _out_of_fold(
    table: NDArray[np.float64], positives: NDArray[np.bool_], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(N,) probabilities from (N, M) measures."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.empty(len(table), np.float64)
    for fold in np.unique(folds):
        tested = folds == fold
        known = positives[~tested]
        if known.all() or not known.any():
            scores[tested] = 0.5
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        model.fit(table[~tested], known)
        scores[tested] = model.predict_proba(table[tested])[:, 1]
    return scores
