"""The report: one HTML page that needs nothing else, and the same numbers as JSON.

Besides what a fact of the context says, nothing in either depends on the clock or the machine: the same predictions,
context and seed give the same files.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from panoramic.manifest import RESEARCH_USE
from training.files import write_whole
from training.predictions import Predictions
from training.report import figures
from training.report.bootstrap import LEVEL, ROC_GRID, Assessment, Estimate, assess
from training.report.calibration import MAX_BINS, MIN_BINS, MIN_PER_BIN
from training.report.cases import Case, data_uris, hardest_cases
from training.report.checklists import CLAIM_2024, MISSING, TRIPOD_AI, Answer, fill_in
from training.report.context import CaseImages, ReportContext
from training.report.statements import (
    DECIMALS,
    interval,
    lacking,
    notes,
    number,
    pictures_of_patients,
    statements,
    title,
    with_interval,
)

__all__ = ["HTML_NAME", "JSON_NAME", "CaseImages", "ReportContext", "write_report"]

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
#: Of report.json; changes whenever a reader of it would have to.
SCHEMA_VERSION: Final = 1

_SUMMARY: Final = ("auc", "sensitivity", "specificity", "brier")


def write_report(folder: Path, predictions: Predictions, *, context: ReportContext) -> Path:
    """Judge predictions and write ``report.html`` and ``report.json``, each whole or not at all.

    Args:
        folder: An existing folder.
        predictions: At least one picture.
        context: What the report is told besides.

    Returns:
        The path of the page.

    Raises:
        RunError: No predictions, or a patient in two folds.
        ResourcesError: The disk is full or the folder cannot be written to.
    """
    assessment = assess(predictions, shortcuts=context.shortcuts, seed=context.seed, resamples=context.resamples)
    cases = hardest_cases(predictions)
    known = statements(assessment, predictions, context)
    checklists = {
        name: fill_in(items, known=known, facts=context.facts, lacking=lacking(assessment, context))
        for name, items in (("CLAIM 2024", CLAIM_2024), ("TRIPOD+AI", TRIPOD_AI))
    }
    numbers = report_numbers(assessment, predictions, context, cases=cases, checklists=checklists)
    html = _render(assessment, predictions, context, cases=cases, checklists=checklists)
    write_whole(folder / JSON_NAME, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    path = folder / HTML_NAME
    write_whole(path, html.encode())
    return path


def report_numbers(
    assessment: Assessment,
    predictions: Predictions,
    context: ReportContext,
    *,
    cases: tuple[tuple[Case, ...], tuple[Case, ...]],
    checklists: dict[str, tuple[Answer, ...]],
) -> dict[str, Any]:
    """Everything that the page shows, for programs; undefined is null, numbers are rounded to 6 decimals."""
    judged = assessment.judged
    false_rate, true_rate = figures.curve_points(judged.scores, judged.positives)
    recall, precision = figures.precision_recall_points(judged.scores, judged.positives)
    both_kinds = bool(judged.positives.any() and not judged.positives.all())
    band = assessment.roc_band
    numbers = {
        "schema_version": SCHEMA_VERSION,
        "intended_use": RESEARCH_USE,
        "title": title(context),
        "facts": {section: dict(rows) for section, rows in context.facts.items()},
        "notes": notes(context, pictures=len(predictions.names)),
        "classes": [cls.model_dump() for cls in predictions.classes],
        "pictures": len(predictions.names),
        "phantoms": context.phantoms,
        "patients": assessment.patients,
        "patients_known": context.patients_known,
        "training_known": context.training_known,
        "pretrained": context.pretrained,
        "pictures_by_class": {
            cls.name: int((judged.truths == index).sum()) for index, cls in enumerate(predictions.classes)
        },
        "thresholds": {
            "rule": context.threshold_rule,
            "by_fold": {str(fold): float(predictions.thresholds[fold]) for fold in assessment.folds},
        },
        "intervals": {
            "method": "percentile bootstrap over patients, within folds"
            + ("" if context.patients_known else "; patients unknown, each picture counted as one of its own"),
            "level": LEVEL,
            "resamples": assessment.resamples,
            "seed": assessment.seed,
        },
        "pooled": _estimates(assessment.pooled),
        "mean_of_folds": _estimates(assessment.fold_mean),
        "folds": {str(fold): _estimates(found) for fold, found in assessment.folds.items()},
        "confusion_matrix": {
            "rows": "truth",
            "columns": "diagnosis",
            "classes": [cls.name for cls in predictions.classes],
            "counts": assessment.confusion.tolist(),
        },
        "curves": {
            "roc": {
                "false_positive_rate": false_rate.tolist(),
                "true_positive_rate": true_rate.tolist(),
                "band": {
                    "false_positive_rate": ROC_GRID.tolist(),
                    "low": None if band is None else band[0].tolist(),
                    "high": None if band is None else band[1].tolist(),
                },
            }
            if both_kinds
            else None,
            "precision_recall": {"recall": recall.tolist(), "precision": precision.tolist()}
            if judged.positives.any()
            else None,
            "calibration": [asdict(point) for point in assessment.calibration],
        },
        "shortcuts": {
            name: {"auc": asdict(found.auc), "network_leads_by": asdict(found.network_leads_by)}
            for name, found in assessment.shortcuts.items()
        },
        "hardest_cases": {
            kind: [{key: value for key, value in asdict(case).items() if key != "index"} for case in found]
            for kind, found in zip(("without_finding", "with_finding"), cases, strict=True)
        },
        "checklists": {
            name: [
                {"item": a.item.number, "asks": a.item.asks, "answer": a.answer or None, "lacks": a.lacks or None}
                for a in answers
            ]
            for name, answers in checklists.items()
        },
    }
    rounded: dict[str, Any] = _rounded(numbers)
    return rounded


def _render(
    assessment: Assessment,
    predictions: Predictions,
    context: ReportContext,
    *,
    cases: tuple[tuple[Case, ...], tuple[Case, ...]],
    checklists: dict[str, tuple[Answer, ...]],
) -> str:
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "with_interval": with_interval}
    images = {case.index: data_uris(context.explain(case.index)) for kind in cases for case in kind if context.explain}
    return environment.get_template("report.html.j2").render(
        research_use=RESEARCH_USE,
        title=title(context),
        notes=notes(context, pictures=len(predictions.names)),
        of_patients=pictures_of_patients(len(predictions.names), assessment.patients, known=context.patients_known),
        context=context,
        assessment=assessment,
        predictions=predictions,
        finding=predictions.classes[predictions.finding_index],
        n_positives=int(predictions.positives.sum()),
        measures={m.key: m for m in assessment.judged.measures()},
        summary=_SUMMARY,
        level=f"{LEVEL * 100:.0f} %",
        undefined_somewhere=_undefined_somewhere(assessment),
        without_width=_without_width(assessment),
        max_bins=MAX_BINS,
        min_bins=MIN_BINS,
        min_per_bin=MIN_PER_BIN,
        # Drawn by us, and matplotlib escapes text.
        figures={name: Markup(svg) for name, svg in _draw(assessment, predictions).items()},  # noqa: S704  # nosec B704
        # The matrix with each row's share, since counts alone mislead where classes differ in size.
        shares=assessment.confusion / np.maximum(assessment.confusion.sum(axis=1, keepdims=True), 1),
        cases=cases,
        images=images,
        checklists=checklists,
        missing=MISSING,
    )


def _draw(assessment: Assessment, predictions: Predictions) -> dict[str, str]:
    """SVG by name; a figure is left out where it would show nothing."""
    positives = assessment.judged.positives
    drawn = {
        "histogram": figures.histogram_figure(
            assessment,
            names=[cls.name for cls in predictions.classes],
            thresholds=[predictions.thresholds[fold] for fold in assessment.folds],
        ),
        "calibration": figures.calibration_figure(assessment),
    }
    if positives.any():
        drawn["precision_recall"] = figures.precision_recall_figure(assessment)
    if positives.any() and not positives.all():
        drawn["roc"] = figures.roc_figure(assessment)
    if assessment.fold_mean:
        rows = {f"Fold {fold}": found["auc"] for fold, found in assessment.folds.items()}
        rows |= {"Mean of folds": assessment.fold_mean["auc"], "Pooled": assessment.pooled["auc"]}
        drawn["folds"] = figures.dot_figure(rows, emphasised="Pooled", axis="AUC")
    if assessment.shortcuts:
        rows = {"Network": assessment.pooled["auc"]}
        rows |= {f"Shortcut: {name}": found.auc for name, found in assessment.shortcuts.items()}
        drawn["shortcuts"] = figures.dot_figure(rows, emphasised="Network", axis="AUC (pooled)")
    return drawn


def _undefined_somewhere(assessment: Assessment) -> list[tuple[str, str, int]]:
    """Where resamples had to be left out: which column, which measure, how many."""
    columns = {"pooled": assessment.pooled, "mean of folds": assessment.fold_mean}
    columns |= {f"fold {fold}": found for fold, found in assessment.folds.items() if assessment.fold_mean}
    names = {m.key: m.name for m in assessment.judged.measures()}
    return [
        (column, names[key], found.undefined)
        for column, estimates in columns.items()
        for key, found in estimates.items()
        if found.undefined
    ]


def _without_width(assessment: Assessment) -> bool:
    """Whether an interval shrank to a point, which says more than a sample can."""
    found = [assessment.pooled, *assessment.folds.values()]
    return any(e.low is not None and e.low == e.high for estimates in found for e in estimates.values())


def _estimates(found: dict[str, Estimate]) -> dict[str, Any]:
    return {key: asdict(value) for key, value in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
