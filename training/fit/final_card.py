"""What a finished run knows for the card of the model that comes of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.errors import RunError
from training.fit.decision import Decision
from training.fit.model_card import CardFacts
from training.fit.run_folder import RunFolder
from training.report.bootstrap import Estimate
from training.report.metrics import ALL_CLASS_MEASURES, MEASURES
from training.report.page import JSON_NAME
from training.report.statements import pictures_of_patients, unseen_by_network, with_interval

_RETRAINED = (
    "The figures are of the folds' networks, each trained on a part of the pictures. The network in this file was "
    "trained on all of them, so that none is left to judge it on: the figures are what to expect of it, not what was "
    "measured."
)
_TOGETHER = (
    "The figures are of the folds' networks, one at a time. Every picture had a part in some member of this ensemble, "
    "so that none is left to judge it on; ensembles usually do a little better than their members, and are less sure."
)
_OTHERS_VALIDATION = (
    "Temperature and threshold come from the folds' networks on their validation parts, and are carried over to this "
    "model. Check its calibration on pictures of your own before relying on a probability."
)
_PHANTOMS = "Trained on phantoms: synthetic pictures of known truth. Its figures say nothing of patients."
#: Rows that speak of the networks of the cross-validation and not of this one.
_OF_THE_FOLDS = ("Model files", "Ensemble")


def card_facts(
    run: RunFolder, decision: Decision, *, ensemble: bool, demonstration: bool, commands: Sequence[str]
) -> CardFacts:
    """Everything that the card says besides the manifest and how the final weights were made.

    Args:
        run: Finished.
        decision: Taken from it.
        ensemble: Whether the model is the folds' networks together, rather than one trained anew.
        demonstration: Whether it was trained on phantoms.
        commands: That made the data set before the run, and the model after it.

    Raises:
        RunError: The report is missing or damaged.
    """
    path = run.path / JSON_NAME
    try:
        report = json.loads(path.read_bytes())
        return _facts(run, report, decision, ensemble=ensemble, demonstration=demonstration, commands=commands)
    except OSError as exc:
        raise RunError(f"{path} cannot be read: {exc.strerror}; finish the run by `training kfold` --resume") from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise RunError(f"{path} is damaged or of another version; write it anew by `training kfold` --resume") from exc


def _facts(
    run: RunFolder,
    report: Mapping[str, Any],
    decision: Decision,
    *,
    ensemble: bool,
    demonstration: bool,
    commands: Sequence[str],
) -> CardFacts:
    record = run.configuration()
    by_class = ", ".join(f"{count} {name}" for name, count in report["pictures_by_class"].items())
    known = bool(record.config.patients)
    of_patients = pictures_of_patients(report["pictures"], report["patients"], known=known)
    unseen = unseen_by_network(
        patients_known=known, training_known=report["training_known"], pretrained=report["pretrained"]
    )
    model = {row: text for row, text in report["facts"]["Model"].items() if row not in _OF_THE_FOLDS}
    intervals = report["intervals"]
    caveats = [_TOGETHER if ensemble else _RETRAINED, _OTHERS_VALIDATION]
    return CardFacts(
        commands=[*commands[:-1], record.command, *commands[-1:]],
        training_data=report["facts"]["Data"],
        training=model | report["facts"]["Training"],
        evaluation_data=[
            (
                f"{record.config.folds}-fold cross-validation on {record.dataset}"
                f"{', synthetic radiographs (phantoms)' if demonstration else ''}: {of_patients} ({by_class}), each "
                f"judged once, by a network that {unseen}."
            ),
            *report["notes"],
        ],
        metrics=[
            (
                f"Intervals hold {intervals['level']:.0%}: {intervals['method']}, {intervals['resamples']} resamples, "
                f"seed {intervals['seed']}."
            ),
            *_decided(decision, classes=len(record.classes)),
        ],
        performance={
            "Cross-validation, all test parts pooled": _measures(report["pooled"]),
            "Cross-validation, mean of the folds": _measures(report["mean_of_folds"]),
            "AUC of shortcuts, judged like the network": {
                name: with_interval(Estimate(**found["auc"])) for name, found in report["shortcuts"].items()
            },
            "Thresholds of the folds": {
                f"Fold {fold.fold}": f"{fold.chosen:.4f}, after temperature scaling {fold.scaled:.4f}"
                for fold in decision.folds
            },
        },
        software=report["facts"]["Software"],
        caveats=[_PHANTOMS, *caveats] if demonstration else caveats,
    )


def _decided(decision: Decision, *, classes: int) -> list[str]:
    fitted = decision.temperature
    carried = "then carried over to scaled probabilities" if classes == 2 else "on scaled probabilities"
    return [
        (
            f"Temperature {fitted.value:.4f}, fitted by maximum likelihood on {fitted.pictures} validation predictions "
            f"of all folds: mean negative log-likelihood {fitted.nll_before:.4f} before, {fitted.nll_after:.4f} after. "
            f"{fitted.remark}"
        ),
        f"Threshold {decision.threshold:.4f}, chosen by the rule {decision.rule} on the same predictions, {carried}.",
        "Brier score and calibration below are of the folds' probabilities before temperature scaling.",
    ]


def _measures(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    names = {measure.key: measure.name for measure in (*MEASURES, *ALL_CLASS_MEASURES)}
    return {names[key]: with_interval(Estimate(**value)) for key, value in found.items()}
