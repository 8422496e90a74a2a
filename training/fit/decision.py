"""Temperature and threshold of the model that a cross-validation comes to: from validation parts alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.errors import RunError
from training.fit.run_folder import RunFolder
from training.fit.temperature import Temperature, fit_temperature, scale, scale_threshold
from training.predictions import Predictions
from training.report.metrics import choose_threshold


@dataclass(frozen=True)
class FoldThreshold:
    """What a fold decided by.

    Attributes:
        fold: Its number.
        chosen: As its own model file has it.
        scaled: What means the same once the probabilities are scaled.
    """

    fold: int
    chosen: float
    scaled: float


@dataclass(frozen=True)
class Decision:
    """How probabilities are made, and from which on the finding is reported.

    Attributes:
        temperature: Fitted on the pooled validation predictions.
        threshold: For scaled probabilities.
        rule: By which it was chosen.
        folds: For comparison.
    """

    temperature: Temperature
    threshold: float
    rule: str
    folds: tuple[FoldThreshold, ...]


def decide(run: RunFolder) -> Decision:
    """Fit the temperature and choose the threshold on the validation predictions of all folds, pooled.

    A picture can be in the validation parts of several folds and then counts for each, always judged by a network
    whose weights it had no part in. No test part is looked at.

    Raises:
        RunError: Not all folds are done, or a file of the run is missing or damaged.
    """
    record = run.configuration()
    done = run.folds_done()
    if len(done) < record.config.folds:
        raise RunError(
            f"{run.path} has {len(done)} of {record.config.folds} folds done: finish it by the same `training kfold` "
            "with --resume"
        )
    parts = {fold: run.validation(fold) for fold in done}
    probabilities = np.concatenate([part.probabilities for part in parts.values()])
    truths = np.concatenate([part.truths for part in parts.values()])
    temperature = fit_temperature(probabilities, truths)
    rule = record.config.threshold_rule
    folds = tuple(
        FoldThreshold(fold, part.thresholds[fold], threshold_after([part], temperature.value, rule=rule))
        for fold, part in parts.items()
    )
    threshold = threshold_after(list(parts.values()), temperature.value, rule=rule)
    return Decision(temperature, threshold, rule, folds)


def threshold_after(parts: Sequence[Predictions], temperature: float, *, rule: str) -> float:
    """The threshold that the rule chooses, for probabilities scaled by a temperature.

    With two classes it is chosen on the probabilities as they are and carried over, so that every picture is decided as
    before, even where the rule is a plain number. With more classes no threshold does that, and the rule chooses on the
    scaled probabilities.

    Args:
        parts: Validation predictions as they came, at least one part.
        temperature: Of the scaling.
        rule: See `training.report.metrics.choose_threshold`.
    """
    probabilities = np.concatenate([part.probabilities for part in parts])
    positives = np.concatenate([part.positives for part in parts])
    finding = parts[0].finding_index
    if probabilities.shape[1] == 2:
        chosen = choose_threshold(probabilities[:, finding], positives, rule=rule)
        return scale_threshold(chosen, temperature)
    return choose_threshold(scale(probabilities, temperature)[:, finding], positives, rule=rule)
