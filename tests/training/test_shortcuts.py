"""What gives a class away without looking at bone, judged against scikit-learn and scikit-image."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.filters import laplace
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.data.shortcut_aucs import ShortcutAuc, enough_patients, shortcut_aucs
from training.data.shortcuts import ALL_TOGETHER, SHORTCUTS, shortcut_measures, shortcut_scores


def some_measures(count: int, *, seed: int, leak: NDArray[np.float64] | float = 0.0) -> list[dict[str, float]]:
    """Measures drawn independently of any class, but for the brightness, to which `leak` is added."""
    rng = np.random.default_rng(seed)
    table = {name: rng.normal(100, 10, count) for name in SHORTCUTS}
    table["brightness"] = table["brightness"] + leak
    return [{name: float(values[i]) for name, values in table.items()} for i in range(count)]


def singles(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_measures_are_those_of_other_packages() -> None:
    pixels = np.zeros((120, 300), np.uint8)
    # An empty margin, since packages differ in how they go on beyond the border.
    pixels[2:-2, 2:-2] = np.random.default_rng(0).integers(0, 256, (116, 296))
    measured = shortcut_measures(pixels)
    assert measured.keys() == SHORTCUTS.keys()
    assert measured["brightness"] == pytest.approx(pixels.mean())
    assert measured["contrast"] == pytest.approx(pixels.std())
    assert measured["sharpness"] == pytest.approx(laplace(pixels.astype(float), ksize=3).std())
    assert (measured["height"], measured["width"], measured["aspect"]) == (120, 300, 0.4)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((0, 5), np.uint8), np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.float32)],
    ids=["empty", "colour", "float"],
)
def test_measures_refuse_what_is_no_picture(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"they must be \(H, W\) and uint8"):
        shortcut_measures(pixels)


def test_scores_are_those_of_scikit_learns_cross_validation() -> None:
    rng = np.random.default_rng(1)
    positives, folds = rng.random(60) < 0.4, rng.integers(0, 4, 60)
    measures = some_measures(60, seed=2, leak=8.0 * positives)
    scores = shortcut_scores(measures, positives, singles(60), folds=folds)
    assert list(scores) == [*SHORTCUTS, ALL_TOGETHER]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    for name in SHORTCUTS:
        table = [[measured[name]] for measured in measures]
        expected = cross_val_predict(model, table, positives, cv=PredefinedSplit(folds), method="predict_proba")
        np.testing.assert_allclose(scores[name], expected[:, 1], atol=1e-6)
    table = [list(measured.values()) for measured in measures]
    expected = cross_val_predict(model, table, positives, cv=PredefinedSplit(folds), method="predict_proba")
    np.testing.assert_allclose(scores[ALL_TOGETHER], expected[:, 1], atol=1e-6)


def test_a_folds_labels_do_not_reach_its_scores() -> None:
    positives, folds = np.arange(40) % 3 == 0, np.arange(40) % 5
    measures = some_measures(40, seed=3, leak=10.0 * positives)
    before = shortcut_scores(measures, positives, singles(40), folds=folds)
    tested = folds == 2
    after = shortcut_scores(measures, np.where(tested, ~positives, positives), singles(40), folds=folds)
    for name in before:
        np.testing.assert_array_equal(before[name][tested], after[name][tested])
        assert (before[name][~tested] != after[name][~tested]).any()


def test_a_constant_measure_scores_chance_however_uneven_the_folds_are() -> None:
    positives = np.r_[np.ones(20, bool), np.zeros(20, bool)]
    folds = np.r_[np.zeros(15, int), np.ones(5, int), np.ones(15, int), np.zeros(5, int)]
    scores = shortcut_scores([dict.fromkeys(SHORTCUTS, 7.0)] * 40, positives, singles(40), folds=folds)
    for name in scores:
        assert roc_auc_score(positives, scores[name]) == 0.5


def test_where_nothing_can_be_fitted_nothing_is_claimed() -> None:
    positives = np.array([True, True, False, True])
    scores = shortcut_scores(some_measures(4, seed=4), positives, singles(4), folds=np.array([0, 0, 1, 0]))
    assert scores["width"][2] == 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"folds": np.array([0, 1, 1])}, "there are 4 measures, 4 truths, 4 patients and 3 folds"),
        ({"groups": ["a", "a", "b", "c"]}, "a patient has pictures in fold 0 and in fold 1"),
        ({"folds": np.zeros(4, int)}, "at least 2 are needed"),
        ({"measures": [{"width": 1.0}] * 4}, "measures lack brightness, contrast, sharpness, height, aspect"),
    ],
)
def test_scores_refuse_what_does_not_fit(change: dict[str, object], sentence: str) -> None:
    given = {
        "measures": some_measures(4, seed=5),
        "positives": np.array([True, False, True, False]),
        "groups": singles(4),
        "folds": np.array([0, 1, 0, 1]),
    } | change
    with pytest.raises(ValueError, match=sentence):
        shortcut_scores(given["measures"], given["positives"], given["groups"], folds=given["folds"])


def by_name(found: tuple[ShortcutAuc, ...]) -> dict[str, ShortcutAuc]:
    return {shortcut.name: shortcut for shortcut in found}


def test_a_leak_is_found_and_the_rest_is_left_alone() -> None:
    positives = np.arange(80) % 2 == 0
    measures = some_measures(80, seed=6, leak=15.0 * positives)
    file_kinds = np.where(np.arange(80) % 10 == 0, ~positives, positives).astype(np.float64)
    answer = shortcut_aucs(measures, positives, singles(80), others={"PNG": ("whether it is PNG", file_kinds)})
    found = by_name(answer)
    assert {name for name, shortcut in found.items() if shortcut.tells} == {"PNG", "brightness", ALL_TOGETHER}
    assert [shortcut.tells for shortcut in answer] == [True] * 3 + [False] * 5
    for name in SHORTCUTS:
        assert found[name].auc == pytest.approx(roc_auc_score(positives, [one[name] for one in measures]))
    assert found["brightness"].low < found["brightness"].auc < found["brightness"].high
    assert found["PNG"].auc == pytest.approx(roc_auc_score(positives, file_kinds))


def test_a_low_value_tells_as_much_as_a_high_one() -> None:
    positives = np.arange(80) % 2 == 0
    found = by_name(shortcut_aucs(some_measures(80, seed=6, leak=-15.0 * positives), positives, singles(80), others={}))
    assert found["brightness"].auc < 0.5
    assert found["brightness"].tells
    assert found[ALL_TOGETHER].auc > 0.5


def test_harmless_data_sets_pass() -> None:
    positives = np.arange(60) % 2 == 0
    tells = suspicious = 0
    for seed in range(6):
        found = shortcut_aucs(some_measures(60, seed=100 + seed), positives, singles(60), others={}, seed=seed)
        tells += any(shortcut.tells for shortcut in found)
        suspicious += sum(shortcut.suspicious for shortcut in found)
    # Expected are 5 % of 6 data sets and of 42 measures; the bootstrap's intervals are a little narrow at this size.
    assert tells <= 1
    assert 1 <= suspicious <= 6


def test_several_pictures_of_a_patient_are_not_more_evidence() -> None:
    positives = np.arange(60) % 2 == 0
    measures = some_measures(60, seed=8, leak=5.0 * positives)
    once = by_name(shortcut_aucs(measures, positives, singles(60), others={}))["brightness"]
    fourfold = by_name(shortcut_aucs(measures * 4, np.tile(positives, 4), singles(60) * 4, others={}))["brightness"]
    assert fourfold.auc == pytest.approx(once.auc)
    assert fourfold.high - fourfold.low == pytest.approx(once.high - once.low)


def test_few_patients_are_not_judged() -> None:
    positives = np.array([True] * 10 + [False] * 20)
    assert enough_patients(positives, singles(30))
    assert not enough_patients(positives, ["same"] * 2 + singles(28))
    assert not enough_patients(np.array([], np.bool_), [])
