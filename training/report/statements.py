"""Sentences that a report can say of itself: how it was done, what came out, and what it cannot tell."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from panoramic.preprocess import BALL_RADIUS_PX
from training.predictions import Predictions
from training.report.bootstrap import LEVEL, Assessment, Estimate
from training.report.cases import NAME_DIGITS
from training.report.context import ReportContext

#: Decimals of numbers in report.json: more than any sample supports, fewer than the order of a sum can change.
DECIMALS: Final = 6

_LEVEL: Final = f"{LEVEL * 100:.0f} %"
_NOT_OF_PATIENTS: Final = "Phantoms are not patients: this says nothing of patients."


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


def title(context: ReportContext) -> str:
    """The heading of the page; it says where the pictures are synthetic."""
    return context.title + (", synthetic radiographs (phantoms)" if context.phantoms else "")


def notes(context: ReportContext, *, pictures: int) -> list[str]:
    """The sentences that a reader must see first; phantoms before all others."""
    if not context.phantoms:
        return list(context.notes)
    return [f"{synthetic(context.phantoms, pictures=pictures)}. {_NOT_OF_PATIENTS}", *context.notes]


def synthetic(phantoms: int, *, pictures: int) -> str:
    """How many of the pictures are no radiographs."""
    share = "All" if phantoms == pictures else f"{phantoms} of"
    return f"{share} {pictures} pictures are synthetic radiographs (phantoms), drawn by a program"


def repeated(digests: Sequence[str], class_indices: Sequence[int]) -> list[str]:
    """A sentence on pictures that are there more than once, if any are.

    Args:
        digests: (N,) `panoramic.radiograph.pixel_digest` of each picture.
        class_indices: (N,) of the class in which it was filed.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for digest, class_index in zip(digests, class_indices, strict=True):
        found[digest].append(class_index)
    several = {digest: classes for digest, classes in found.items() if len(classes) > 1}
    if not several:
        return []
    torn = sum(len(set(classes)) > 1 for classes in several.values())
    listed = ", ".join(digest[:NAME_DIGITS] for digest in list(several)[:12])
    sentence = (
        f"Pictures that are in the data set more than once: {len(several)} ({listed}); in more than one class: {torn}. "
        "Each copy was counted, and the patients of identical pictures counted as one."
    )
    return [sentence]


def pictures_of_patients(pictures: int, patients: int, *, known: bool) -> str:
    """How many pictures of how many patients, where that is known."""
    if known:
        return f"{pictures} pictures of {patients} patients"
    return f"{pictures} pictures (each counted as a patient of its own; patients unknown)"


def lacking(assessment: Assessment, context: ReportContext) -> dict[str, str]:
    """By name of a statement, what the authors must add since the program was not told."""
    who = "" if context.patients_known else "who is on which picture"
    crossed = len(assessment.folds) > 1
    trained = "starting weights were" if crossed else "model was"
    seen = "" if context.training_known else f"what the {trained} trained on"
    return {"partitions": "; ".join(filter(None, (seen, who))), "disjoint": who, "counts": who, "size": who}


def statements(assessment: Assessment, predictions: Predictions, context: ReportContext) -> dict[str, str]:
    """What the run knows, by the names that `training.report.checklists` asks for; empty where it knows nothing."""
    finding = predictions.classes[predictions.finding_index].label
    n, with_finding = len(predictions.names), int(predictions.positives.sum())
    of_patients = pictures_of_patients(n, assessment.patients, known=context.patients_known)
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
        "preprocessing": "Every picture, whatever its class: the background is removed (rolling ball of radius "
        f"{BALL_RADIUS_PX} px), then the picture is resized (bilinear) and normalised as ImageNet's were.",
        "partitions": _partitions(context, n_folds=n_folds),
        "disjoint": _disjoint(context) if crossed else "",
        "size": f"{of_patients}, {with_finding} of the pictures with the finding.",
        "counts": f"Judged: {of_patients}; {with_finding} with {finding}, {n - with_finding} without.",
        "output": f"A probability for each of {len(predictions.classes)} classes; {finding} is diagnosed from the "
        f"threshold on (rule: {context.threshold_rule}).",
        "predictors": "The pixels of the radiograph alone; no age, sex or other clinical data.",
        "measures": "Discrimination (AUC, average precision), diagnosis at the threshold (sensitivity, specificity, "
        "predictive values, accuracy, F1, MCC) and calibration (Brier score, ECE, slope, intercept), with ROC, "
        "precision-recall and calibration curves.",
        "intervals": f"{_LEVEL} percentile intervals from {assessment.resamples} bootstrap resamples of "
        f"{'patients' if context.patients_known else 'pictures (patients unknown)'}, drawn within "
        f"folds, seed {assessment.seed}.",
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
        "limits": (f"{_NOT_OF_PATIENTS} " if context.phantoms else "")
        + "The intervals speak of the patients tested, not of another training run; predictive values hold for "
        "this set's share of the finding only.",
        "bad input": "Files that are no plausible panoramic radiograph are refused with a reason.",
    }


def unseen_by_network(*, patients_known: bool, training_known: bool, pretrained: bool) -> str:
    """What can be said of the network that judged a picture in a cross-validation; the end of a sentence.

    Args:
        patients_known: As in `ReportContext`, and so are the others.
        training_known: Of the starting weights.
        pretrained: Of the starting weights.
    """
    if not training_known:
        return (
            "was not trained on it in this run; whether its starting weights had seen it is unknown, since they do not "
            "say what they were trained on"
        )
    if pretrained:
        return (
            "had not seen it; whether its starting weights had seen other pictures of the same patient cannot be told"
        )
    if patients_known:
        return "had not seen its patient"
    return "had not seen it; whether it had seen other pictures of the same patient is unknown"


def _partitions(context: ReportContext, *, n_folds: int) -> str:
    if n_folds > 1:
        unseen = unseen_by_network(
            patients_known=context.patients_known, training_known=context.training_known, pretrained=context.pretrained
        )
        return f"{n_folds} folds; each picture was judged once, by a network that {unseen}."
    if context.training_known:
        return (
            "No picture with identical pixels had a part in the model's training or in any choice; re-encoded or "
            "resized copies, and other pictures of the same patients, cannot be recognised."
        )
    return (
        "Whether the model was trained on these pictures cannot be checked: the model does not say what it was trained "
        "on."
    )


def _disjoint(context: ReportContext) -> str:
    if context.patients_known:
        return "Patient: all pictures of a patient are in the same part."
    return "Picture: each picture was counted as a patient of its own; patients unknown."


def _shortcuts(assessment: Assessment) -> str:
    if not assessment.shortcuts:
        return ""
    told = ", ".join(f"{name} {number(found.auc.value)}" for name, found in assessment.shortcuts.items())
    return f"AUC of shortcuts, judged like the network: {told}."
