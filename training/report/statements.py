"""Sentences that a report can say of itself: how it was done, what came out, and what it cannot tell."""

from typing import Final

from training.predictions import Predictions
from training.report.bootstrap import LEVEL, Assessment, Estimate
from training.report.context import ReportContext

#: Decimals of numbers in report.json: more than any sample supports, fewer than the order of a sum can change.
DECIMALS: Final = 6

_LEVEL: Final = f"{LEVEL * 100:.0f} %"


def number(value: float | None) -> str:
    """A value for a person to read: that of report.json, to three decimals."""
    return "undefined" if value is None else f"{round(value, DECIMALS):.3f}".replace("-", "−")


def interval(found: Estimate) -> str:
    """The interval for a person to read, without its value."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"{number(found.low)} to {number(found.high)}"


def with_interval(found: Estimate) -> str:
    """A value and its interval in a line."""
    return number(found.value) + ("" if found.value is None else f" ({_LEVEL} interval {interval(found)})")


def statements(assessment: Assessment, predictions: Predictions, context: ReportContext) -> dict[str, str]:
    """What the run knows, by the names that `training.report.checklists` asks for; empty where it knows nothing."""
    finding = predictions.classes[predictions.finding_index].label
    n, with_finding = len(predictions.names), int(predictions.positives.sum())
    n_folds = len(assessment.folds)
    crossed = n_folds > 1
    auc = assessment.pooled["auc"]
    folds_auc = [found["auc"].value for found in assessment.folds.values()]
    spread = [value for value in folds_auc if value is not None]
    return {
        "kind": "A convolutional neural network (deep learning) that classifies panoramic radiographs.",
        "use": "Research only; not for diagnosis, triage or treatment.",
        "goal": (
            f"Development of a classifier, judged by {n_folds}-fold cross-validation."
            if crossed
            else "Evaluation of a saved classifier on a data set."
        ),
        "privacy": "This report names pictures by digests of their pixels, not by file names.",
        "missing data": "Every picture of the chosen folders was judged; unreadable ones stop the run.",
        "truth": "The class of a picture is the folder in which it was filed.",
        "partitions": (
            f"{n_folds} folds; each picture was judged once, by a network that had not seen its patient."
            if crossed
            else "No part of this data set was used for training or for any choice."
        ),
        "disjoint": "Patient: all pictures of a patient are in the same part." if crossed else "",
        "size": f"{n} pictures of {assessment.patients} patients, {with_finding} of the pictures with the finding.",
        "counts": f"Judged: {n} pictures of {assessment.patients} patients; {with_finding} with {finding}, "
        f"{n - with_finding} without.",
        "output": f"A probability for each of {len(predictions.classes)} classes; {finding} is diagnosed from the "
        f"threshold on (rule: {context.threshold_rule}).",
        "predictors": "The pixels of the radiograph alone; no age, sex or other clinical data.",
        "measures": "Discrimination (AUC, average precision), diagnosis at the threshold (sensitivity, specificity, "
        "predictive values, accuracy, F1, MCC) and calibration (Brier score, ECE, slope, intercept), with ROC, "
        "precision-recall and calibration curves.",
        "intervals": f"{_LEVEL} percentile intervals from {assessment.resamples} bootstrap resamples of patients, "
        f"drawn within folds, seed {assessment.seed}.",
        "shortcuts": _shortcuts(assessment),
        "explanation": "Grad-CAM (Selvaraju et al. 2017) of the last convolutional layer, shown for the hardest cases."
        if context.explain
        else "",
        "internal": f"Pooled AUC of the cross-validation {with_interval(auc)}." if crossed else "",
        "external": ""
        if crossed
        else "A saved model was judged on this data set; whether sites and devices differ from those of its training "
        "is for the authors to say.",
        "performance": f"AUC {with_interval(auc)}, Brier score {with_interval(assessment.pooled['brier'])}.",
        "diagnostic": f"Sensitivity {with_interval(assessment.pooled['sensitivity'])}, specificity "
        f"{with_interval(assessment.pooled['specificity'])}.",
        "failures": "The most wrong pictures of either kind are listed under hardest cases.",
        "clusters": f"AUC of the folds from {number(min(spread))} to {number(max(spread))}."
        if crossed and spread
        else "",
        "limits": "The intervals speak of the patients tested, not of another training run; predictive values hold for "
        "this set's share of the finding only.",
        "bad input": "Files that are no plausible panoramic radiograph are refused with a reason.",
    }


def _shortcuts(assessment: Assessment) -> str:
    if not assessment.shortcuts:
        return ""
    told = ", ".join(f"{name} {number(found.auc.value)}" for name, found in assessment.shortcuts.items())
    return f"AUC of shortcuts, judged like the network: {told}."
