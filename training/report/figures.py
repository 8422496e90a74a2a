"""The report's figures, drawn as SVG that takes the colour of the text around it, on a light page or a dark one."""

import io
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.report.bootstrap import LEVEL, ROC_GRID, Assessment, Estimate
from training.report.ranking import Floats, Ranking

#: Told apart with every kind of colour vision (after Okabe and Ito 2008), and on white as on black.
WITH_FINDING: Final = "#d9730d"
WITHOUT_FINDING: Final = "#2f83c5"
_GREY: Final = "#8a8f98"
#: Stands for the page's own colour of text until the drawing is done.
_INK: Final = "#010203"
_PERCENT: Final = f"{LEVEL:.0%}".replace("%", " %")

_STYLE: Final[Mapping[Any, Any]] = MappingProxyType(
    {
        "svg.fonttype": "path",
        "font.size": 10.5,
        "axes.labelsize": 10.5,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
)
_SQUARE: Final = (4.6, 4.4)


def roc_figure(assessment: Assessment) -> str:
    """ROC curve of all pictures with its band, the folds' curves, and where the diagnoses lie."""
    judged, positives = assessment.judged, assessment.judged.positives
    with mpl.rc_context(dict(_STYLE)):
        figure, axes = _axes(_SQUARE)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")
        if assessment.roc_band is not None:
            low, high = assessment.roc_band
            axes.fill_between(
                ROC_GRID, low, high, color=WITHOUT_FINDING, alpha=0.22, linewidth=0, label=f"{_PERCENT} band"
            )
        if len(assessment.folds) > 1:
            for index, fold in enumerate(assessment.folds):
                chosen = assessment.folds_of == fold
                if positives[chosen].any() and not positives[chosen].all():
                    x, y = curve_points(judged.scores[chosen], positives[chosen])
                    axes.plot(x, y, color=_GREY, linewidth=0.8, alpha=0.8, label=None if index else "each fold")
        x, y = curve_points(judged.scores, positives)
        axes.plot(x, y, color=WITHOUT_FINDING, linewidth=2.2, label="all pictures")
        sensitivity, specificity = assessment.pooled["sensitivity"].value, assessment.pooled["specificity"].value
        if sensitivity is not None and specificity is not None:
            axes.plot(
                1 - specificity, sensitivity, "o", markersize=8, color=WITH_FINDING, label="at the chosen threshold"
            )
        _unit_square(axes, "1 − specificity (false positive rate)", "Sensitivity (true positive rate)")
        axes.legend(loc="lower right")
        return _svg(figure, "roc")


def precision_recall_figure(assessment: Assessment) -> str:
    """Precision against recall, and the level that chance would reach."""
    judged, positives = assessment.judged, assessment.judged.positives
    with mpl.rc_context(dict(_STYLE)):
        figure, axes = _axes(_SQUARE)
        axes.axhline(
            positives.mean(),
            color=_GREY,
            linewidth=0.9,
            linestyle=(0, (4, 3)),
            label=f"chance: {positives.mean():.2f} have the finding",
        )
        recall, precision = precision_recall_points(judged.scores, positives)
        axes.step(recall, precision, where="pre", color=WITHOUT_FINDING, linewidth=2.2, label="all pictures")
        sensitivity, ppv = assessment.pooled["sensitivity"].value, assessment.pooled["precision"].value
        if sensitivity is not None and ppv is not None:
            axes.plot(sensitivity, ppv, "o", markersize=8, color=WITH_FINDING, label="at the chosen threshold")
        _unit_square(axes, "Recall (sensitivity)", "Precision (PPV)")
        axes.legend(loc="lower left")
        return _svg(figure, "precision-recall")


def calibration_figure(assessment: Assessment) -> str:
    """Observed share against predicted probability, by bins of equal mass, with intervals."""
    with mpl.rc_context(dict(_STYLE)):
        figure, axes = _axes(_SQUARE)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="perfect calibration")
        predicted = [point.predicted for point in assessment.calibration]
        observed = [point.observed.value or 0.0 for point in assessment.calibration]
        axes.plot(predicted, observed, color=WITHOUT_FINDING, linewidth=1.2, alpha=0.7)
        axes.errorbar(
            predicted,
            observed,
            yerr=_bars([point.observed for point in assessment.calibration]),
            fmt="o",
            color=WITHOUT_FINDING,
            markersize=6,
            linewidth=1.4,
            capsize=3,
            label=f"pictures in {len(predicted)} bins, {_PERCENT} intervals",
        )
        _unit_square(axes, "Mean predicted probability", "Observed share with the finding")
        axes.legend(loc="upper left")
        return _svg(figure, "calibration")


def histogram_figure(assessment: Assessment, *, names: Sequence[str], thresholds: Sequence[float]) -> str:
    """Scores by true class: the finding filled, the others as lines."""
    judged = assessment.judged
    edges = np.linspace(0, 1, 26).tolist()
    dashes = ("-", (0, (5, 1.5)), (0, (1, 1)))
    with mpl.rc_context(dict(_STYLE)):
        figure, axes = _axes(_SQUARE)
        others = 0
        for index, name in enumerate(names):
            scores = judged.scores[judged.truths == index]
            label = f"{name} (n = {len(scores)})"
            if index == judged.finding:
                axes.hist(scores, edges, color=WITH_FINDING, alpha=0.45, label=label)
                axes.hist(scores, edges, histtype="step", color=WITH_FINDING, linewidth=1.6)
            else:
                style = dashes[others % len(dashes)]
                axes.hist(
                    scores, edges, histtype="step", color=WITHOUT_FINDING, linewidth=1.8, linestyle=style, label=label
                )
                others += 1
        for index, threshold in enumerate(sorted(set(thresholds))):
            axes.axvline(
                threshold,
                color=_INK,
                linewidth=0.9,
                linestyle=(0, (4, 3)),
                label=None if index else "threshold" + ("s of the folds" if len(set(thresholds)) > 1 else ""),
            )
        axes.set(xlim=(0, 1), xlabel="Predicted probability of the finding", ylabel="Pictures")
        axes.margins(y=0.12)
        # Probabilities crowd at both ends, so that the legend belongs above.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return _svg(figure, "histogram")


def dot_figure(rows: Mapping[str, Estimate], *, emphasised: str, axis: str, chance: float | None = 0.5) -> str:
    """Estimates below each other, each a dot with its interval; the emphasised one is filled and larger."""
    with mpl.rc_context(dict(_STYLE)):
        figure, axes = _axes((6.6, 0.75 + 0.34 * len(rows)))
        places = range(len(rows))[::-1]
        if chance is not None:
            axes.axvline(chance, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                "chance", (chance, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=_GREY
            )
        for place, (name, found) in zip(places, rows.items(), strict=True):
            if found.value is None:
                axes.annotate("undefined", (0.02, place), xycoords=("axes fraction", "data"), va="center", color=_GREY)
                continue
            main = name == emphasised
            colour = WITH_FINDING if main else WITHOUT_FINDING
            axes.errorbar(
                found.value,
                place,
                xerr=_bars([found]),
                fmt="o" if main else "s",
                color=colour,
                markersize=9 if main else 6,
                markerfacecolor=colour if main else "none",
                linewidth=2 if main else 1.4,
                capsize=3,
            )
        axes.set_yticks(places, list(rows))
        axes.set(xlabel=axis, ylim=(-0.6, len(rows) - 0.4))
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
        return _svg(figure, re.sub(r"\W+", "-", f"dots-{emphasised}-{axis}"))


def curve_points(scores: Floats, positives: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """False and true positive rates, (G + 1,) each, over falling thresholds."""
    once = np.ones((1, len(scores)))
    false_rate, true_rate = Ranking.of(scores).roc(once, positives.astype(np.float64))
    return false_rate[0], true_rate[0]


def precision_recall_points(scores: Floats, positives: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Recall and precision, (G,) each, over falling thresholds."""
    once = np.ones((1, len(scores)))
    with_finding, without = (
        mass[0, ::-1].cumsum() for mass in Ranking.of(scores).masses(once, positives.astype(np.float64))
    )
    return with_finding / max(with_finding[-1], 1), with_finding / (with_finding + without)


def _axes(size_in: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size_in, layout="constrained")
    return figure, figure.add_subplot()


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")


def _bars(estimates: Sequence[Estimate]) -> Floats:
    """(2, M) distances to the ends of the intervals, 0 where there is none."""
    ends = [
        (0.0, 0.0)
        if e.value is None or e.low is None or e.high is None
        # The error of ECE can lie outside its own percentile interval, and a bar cannot be negative.
        else (max(0.0, e.value - e.low), max(0.0, e.high - e.value))
        for e in estimates
    ]
    return np.array(ends, np.float64).T


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for use inside a page; the same figure gives the same text."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = text.getvalue()
    element = drawing[drawing.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    # Identities are shared by a whole page, on which other figures have theirs.
    element = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", element)
    return element.replace(_INK, "currentColor").strip()
