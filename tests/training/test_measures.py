"""Measures, thresholds and intervals, against scikit-learn, published values and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from panoramic.manifest import HEALTHY_OR_OSTEOPOROSIS, DiagnosisClass
from training.errors import RunError
from training.predictions import Predictions
from training.report.bootstrap import assess, cluster_patients, draw_weights, estimate
from training.report.calibration import bin_of
from training.report.figures import curve_points, precision_recall_points
from training.report.metrics import Judged, choose_threshold, confusion_matrix, measure, parse_rule
from training.report.ranking import Ranking


def judged(seed: int, *, n: int = 200, ties: bool = False) -> Judged:
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, 2, n)
    scores = expit(rng.normal(size=n) + 1.3 * truths - 0.5)
    if ties:
        scores = np.round(scores, 1)
    return Judged(scores, truths, (scores >= 0.45).astype(np.int64))


def points(of: Judged) -> dict[str, float]:
    return {key: float(values[0]) for key, values in measure(of).items()}


def predictions(
    scores: NDArray[np.float64],
    truths: NDArray[np.int64],
    *,
    patients: list[str] | None = None,
    folds: NDArray[np.int64] | None = None,
) -> Predictions:
    n = len(scores)
    where = np.zeros(n, np.int64) if folds is None else folds
    return Predictions(
        classes=HEALTHY_OR_OSTEOPOROSIS,
        names=tuple(f"C1/{i}.png" for i in range(n)),
        digests=tuple(f"{i:032x}" for i in range(n)),
        patients=tuple(patients or [f"p{i:04}" for i in range(n)]),
        folds=where,
        truths=truths.astype(np.int64),
        probabilities=np.stack([1 - scores, scores], axis=1),
        thresholds={int(fold): 0.5 for fold in where},
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_values_are_those_of_scikit_learn(seed: int, ties: bool) -> None:
    of = judged(seed, ties=ties)
    found = points(of)
    truth, answer = of.positives, of.flagged
    assert found["auc"] == pytest.approx(oracle.roc_auc_score(truth, of.scores), abs=1e-12)
    assert found["average_precision"] == pytest.approx(oracle.average_precision_score(truth, of.scores), abs=1e-12)
    assert found["sensitivity"] == pytest.approx(oracle.recall_score(truth, answer), abs=1e-12)
    assert found["specificity"] == pytest.approx(oracle.recall_score(~truth, ~answer), abs=1e-12)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, answer), abs=1e-12)
    assert found["precision"] == pytest.approx(oracle.precision_score(truth, answer), abs=1e-12)
    assert found["npv"] == pytest.approx(oracle.precision_score(~truth, ~answer), abs=1e-12)
    assert found["f1"] == pytest.approx(oracle.f1_score(truth, answer), abs=1e-12)
    assert found["mcc"] == pytest.approx(oracle.matthews_corrcoef(truth, answer), abs=1e-12)
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(truth, of.scores), abs=1e-12)
    assert np.array_equal(confusion_matrix(of), oracle.confusion_matrix(of.truths, of.diagnosed))


@pytest.mark.parametrize("seed", range(4))
def test_calibration_is_that_of_a_logistic_regression(seed: int) -> None:
    of = judged(seed)
    found = points(of)
    x = logit(of.scores)
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], of.truths)
    assert found["calibration_slope"] == pytest.approx(float(regression.coef_[0, 0]), abs=1e-4)
    intercept = brentq(lambda a: float((of.truths - expit(a + x)).sum()), -20, 20, xtol=1e-12)
    assert found["calibration_intercept"] == pytest.approx(intercept, abs=1e-8)


def test_calibration_error_is_the_mean_gap_of_bins_of_equal_mass() -> None:
    of = judged(5, n=200)
    share, predicted = calibration_curve(of.truths, of.scores, n_bins=10, strategy="quantile")
    assert points(of)["ece"] == pytest.approx(np.abs(share - predicted).mean(), abs=1e-12)


@pytest.mark.parametrize(("n", "levels", "defined"), [(50, 50, True), (49, 49, False), (200, 5, True), (200, 4, False)])
def test_calibration_error_needs_five_bins(n: int, levels: int, defined: bool) -> None:
    # Ten pictures a bin, and equal scores share one.
    scores = (np.arange(n) % levels + 0.5) / levels
    truths = np.arange(n) % 2
    error = points(Judged(scores, truths, truths))["ece"]
    assert np.isfinite(error) == defined


def test_equal_scores_share_a_bin() -> None:
    scores = np.array([0.1] * 60 + [0.2] * 15 + [0.3] * 25)
    bins = bin_of(scores)
    assert [len(set(bins[scores == value])) for value in (0.1, 0.2, 0.3)] == [1, 1, 1]
    assert set(bins) == set(range(bins.max() + 1))


def test_auc_of_hanley_and_mcneil() -> None:
    # 109 CT images rated from 1, definitely normal, to 5 (Radiology 1982;143:29-36, table I): area 0.893.
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.arange(5.0)
    scores = np.concatenate([np.repeat(ratings, normal), np.repeat(ratings, abnormal)]) / 4
    truths = np.repeat([0, 1], [sum(normal), sum(abnormal)])
    assert round(points(Judged(scores, truths, truths))["auc"], 3) == 0.893


@pytest.mark.parametrize("ties", [False, True])
def test_a_weight_is_that_many_copies_of_a_picture(ties: bool) -> None:
    of = judged(6, n=80, ties=ties)
    weights = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=5).astype(float)
    together = measure(of, weights)
    for row, weight in enumerate(weights):
        copies = np.repeat(np.arange(80), weight.astype(int))
        expected = points(Judged(of.scores[copies], of.truths[copies], of.diagnosed[copies]))
        for key, value in expected.items():
            # The bins of the calibration error are drawn from the sample, not from each resample.
            if key != "ece":
                assert together[key][row] == pytest.approx(value, abs=1e-7), key


def test_several_classes_are_also_judged_together() -> None:
    rng = np.random.default_rng(3)
    truths, diagnosed = rng.integers(0, 3, 150), rng.integers(0, 3, 150)
    found = points(Judged(rng.random(150), truths, diagnosed, 3, finding=1))
    assert found["overall_accuracy"] == pytest.approx(oracle.accuracy_score(truths, diagnosed), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truths, diagnosed, average="macro"), abs=1e-12)
    assert found["sensitivity"] == pytest.approx(oracle.recall_score(truths == 1, diagnosed == 1), abs=1e-12)


def test_what_is_undefined_is_not_zero() -> None:
    scores = np.linspace(0.1, 0.9, 9)
    nobody = points(Judged(scores, np.zeros(9, np.int64), (scores >= 0.5).astype(np.int64)))
    undefined = {key for key, value in nobody.items() if np.isnan(value)}
    assert undefined == {
        *("auc", "average_precision", "sensitivity", "f1", "mcc", "ece", "calibration_slope", "calibration_intercept")
    }
    assert nobody["precision"] == 0.0
    silent = points(Judged(scores, (scores > 0.4).astype(np.int64), np.zeros(9, np.int64)))
    # The scores separate the two perfectly: no finite slope either.
    assert {key for key, value in silent.items() if np.isnan(value)} == {"precision", "mcc", "ece", "calibration_slope"}
    assert silent["f1"] == 0.0


def test_curves_are_those_of_scikit_learn() -> None:
    of = judged(7, ties=True)
    x, y = curve_points(of.scores, of.positives)
    expected_x, expected_y, _ = oracle.roc_curve(of.positives, of.scores, drop_intermediate=False)
    assert np.allclose(x, expected_x)
    assert np.allclose(y, expected_y)
    recall, precision = precision_recall_points(of.scores, of.positives)
    expected_precision, expected_recall, _ = oracle.precision_recall_curve(of.positives, of.scores)
    assert np.allclose(recall, expected_recall[-2::-1])
    assert np.allclose(precision, expected_precision[-2::-1])


@pytest.mark.parametrize("seed", range(6))
def test_youden_finds_the_best_of_all_cuts(seed: int) -> None:
    of = judged(seed, n=60, ties=bool(seed % 2))
    threshold = choose_threshold(of.scores, of.positives, rule="youden")

    def gain(cut: float) -> float:
        answer = of.scores >= cut
        return float(answer[of.positives].mean() + (~answer)[~of.positives].mean())

    assert gain(threshold) == pytest.approx(max(gain(cut) for cut in np.unique(of.scores)), abs=1e-12)
    assert threshold not in of.scores


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9, 1.0])
def test_fixed_sensitivity_takes_the_highest_threshold_that_reaches_it(wanted: float) -> None:
    of = judged(11, n=100)
    threshold = choose_threshold(of.scores, of.positives, rule=f"sensitivity={wanted}")
    with_finding = of.scores[of.positives]
    assert (with_finding >= threshold).mean() >= wanted
    higher = np.min(with_finding[with_finding >= threshold]) + 1e-12
    assert (with_finding >= higher).mean() < wanted


def test_of_equal_cuts_youden_takes_the_more_sensitive() -> None:
    scores, positives = np.array([0.1, 0.3, 0.5, 0.7]), np.array([False, True, False, True])
    assert choose_threshold(scores, positives, rule="youden") == pytest.approx(0.2)


def test_a_number_is_taken_as_it_is() -> None:
    assert choose_threshold(np.array([0.2]), np.array([True]), rule="0.5") == 0.5


@pytest.mark.parametrize("rule", ["best", "1.5", "nan", "sensitivity=2", "specificity=0.9", "=0.5", "sensitivity=", ""])
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(RunError, match=r"it must be a number from 0 to 1 such as 0.5, youden, or sensitivity=0.9"):
        parse_rule(rule)


@pytest.mark.parametrize(("truth", "words"), [(True, "only pictures with it"), (False, "no pictures with it")])
def test_a_rule_needs_both_kinds(truth: bool, words: str) -> None:
    with pytest.raises(RunError, match=rf"needs pictures with and without the finding, but there are {words}"):
        choose_threshold(np.array([0.2, 0.4]), np.array([truth, truth]), rule="youden")


def test_pictures_of_a_patient_stay_together_in_every_resample() -> None:
    # Twice the pictures of the same patients is no more knowledge: the interval must not get narrower.
    of = judged(8, n=60)
    once = assess(predictions(of.scores, of.truths), resamples=300)
    doubled = assess(
        predictions(
            np.repeat(of.scores, 2), np.repeat(of.truths, 2), patients=[f"p{i:04}" for i in range(60) for _ in "ab"]
        ),
        resamples=300,
    )
    assert doubled.patients == once.patients == 60
    for key in ("auc", "sensitivity", "brier", "calibration_slope"):
        assert doubled.pooled[key].low == pytest.approx(once.pooled[key].low, abs=1e-9)
        assert doubled.pooled[key].high == pytest.approx(once.pooled[key].high, abs=1e-9)


def test_patients_with_identical_pictures_are_one_in_the_intervals() -> None:
    # The same 60 pictures filed twice, each copy under another patient's name.
    of = judged(8, n=60)
    once = predictions(of.scores, of.truths)
    twice = predictions(np.repeat(of.scores, 2), np.repeat(of.truths, 2))
    copied = replace(twice, digests=tuple(np.repeat(once.digests, 2).tolist()))
    alone, together = assess(once, resamples=300), assess(copied, resamples=300)
    assert len(set(copied.patients)) == 120
    assert together.patients == alone.patients == 60
    assert assess(twice, resamples=300).patients == 120
    for key in ("auc", "sensitivity", "brier"):
        assert together.pooled[key].low == pytest.approx(alone.pooled[key].low, abs=1e-9)
        assert together.pooled[key].high == pytest.approx(alone.pooled[key].high, abs=1e-9)


def test_every_resample_draws_as_many_patients_from_each_fold_as_it_has() -> None:
    patients = ["a", "a", "b", "c", "d", "d", "d", "e"]
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    clusters, cluster_folds = cluster_patients(patients, folds)
    weights = np.concatenate(list(draw_weights(clusters, cluster_folds, seed=1, resamples=50)))
    assert weights.shape == (50, 8)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 4], weights[:, 6])
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (weights[:, [4, 7]].sum(axis=1) == 2).all()


def test_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    # Two pictures a patient, correlated 0.7; normal scores one deviation and a half apart: AUC Phi(1.5 / sqrt 2).
    truth = float(norm.cdf(1.5 / np.sqrt(2)))
    rng = np.random.default_rng(2024)
    patients = np.repeat(np.arange(80), 2)
    positives = (patients % 2).astype(float)
    clusters, cluster_folds = cluster_patients([f"{p:03}" for p in patients], np.zeros(160, np.int64))
    trials, covered = 250, 0
    for trial in range(trials):
        own, shared = rng.normal(size=160), np.repeat(rng.normal(size=80), 2)
        scores = 1.5 * positives + np.sqrt(0.7) * shared + np.sqrt(0.3) * own
        ranking = Ranking.of(scores)
        drawn = np.concatenate(
            [ranking.auc(w, positives) for w in draw_weights(clusters, cluster_folds, seed=trial, resamples=200)]
        )
        found = estimate(float(ranking.auc(np.ones((1, 160)), positives)[0]), drawn, n=160, patients=80)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    # Three standard errors of a share of 0.95 in 250 trials are 0.041; percentile intervals fall a little short.
    assert 0.90 <= covered / trials <= 0.99


def test_same_seed_same_intervals_and_another_seed_others() -> None:
    of = predictions(judged(9, n=50).scores, judged(9, n=50).truths)
    first, again, other = (assess(of, resamples=200, seed=seed).pooled["auc"] for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_fold_without_the_finding_is_undefined_and_so_is_the_mean() -> None:
    scores = np.array([0.1, 0.6, 0.7, 0.9, 0.2, 0.8, 0.3, 0.4])
    truths = np.array([0, 1, 0, 1, 0, 0, 0, 0])
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = assess(predictions(scores, truths, folds=folds), resamples=100)
    assert found.folds[1]["auc"].value is None
    assert found.folds[1]["auc"].undefined == 100
    assert found.folds[1]["sensitivity"].n == 0
    assert found.fold_mean["auc"].value is None
    assert found.pooled["auc"].value == pytest.approx(oracle.roc_auc_score(truths, scores))
    # Now and then no patient with the finding is drawn; those resamples are left out and counted.
    assert 0 < found.pooled["auc"].undefined < 50
    assert found.pooled["auc"].low is not None


def test_mean_of_folds_ignores_how_their_calibrations_differ() -> None:
    rng = np.random.default_rng(4)
    truths, folds = rng.integers(0, 2, 400), np.repeat([0, 1], 200)
    logits = rng.normal(size=400) + 2 * truths
    found = assess(predictions(expit(logits + 6 * folds - 3), truths, folds=folds), resamples=50)
    each = [oracle.roc_auc_score(truths[folds == k], logits[folds == k]) for k in (0, 1)]
    assert found.fold_mean["auc"].value == pytest.approx(np.mean(each))
    pooled = found.pooled["auc"].value
    assert pooled is not None
    assert pooled < min(each) - 0.1


def test_single_patient_has_no_interval() -> None:
    found = assess(predictions(np.array([0.2, 0.9]), np.array([0, 1]), patients=["a", "a"]), resamples=100)
    assert (found.pooled["auc"].value, found.pooled["auc"].low) == (1.0, None)


def test_patient_in_two_folds_is_refused() -> None:
    of = predictions(np.array([0.2, 0.9]), np.array([0, 1]), patients=["a", "a"], folds=np.array([0, 1]))
    with pytest.raises(RunError, match="patients with pictures in more than one fold: 1;"):
        assess(of)


def test_no_predictions_are_refused() -> None:
    with pytest.raises(RunError, match="there are no predictions to report on"):
        assess(predictions(np.zeros(0), np.zeros(0, np.int64)))


def test_lead_over_a_shortcut_is_measured_on_the_same_resamples() -> None:
    of = judged(10)
    found = assess(predictions(of.scores, of.truths), shortcuts={"same": of.scores}, resamples=100).shortcuts["same"]
    assert (found.network_leads_by.value, found.network_leads_by.low, found.network_leads_by.high) == (0.0, 0.0, 0.0)
    assert found.auc.value == pytest.approx(oracle.roc_auc_score(of.truths, of.scores))


def test_finding_need_not_be_the_last_class() -> None:
    classes = (
        DiagnosisClass(name="sick", label="Sick", finding=True),
        DiagnosisClass(name="well", label="Well", finding=False),
    )
    of = Predictions(
        classes,
        names=("a", "b", "c"),
        digests=("a", "b", "c"),
        patients=("a", "b", "c"),
        folds=np.zeros(3, np.int64),
        truths=np.array([0, 1, 1]),
        probabilities=np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]),
        thresholds={0: 0.5},
    )
    found = assess(of, resamples=100)
    assert found.pooled["auc"].value == 1.0
    assert found.pooled["specificity"].value == 0.5
    assert found.confusion.tolist() == [[1, 0], [1, 1]]
