"""One phantom: reproducible, of known truth, and with nothing but the bone that knows the class."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp, mannwhitneyu, spearmanr

from training.phantoms.phantom import PhantomTruth, cortex_mask, draw_phantom, draw_truth
from training.phantoms.truth import ALL_TEETH, MEAN_SIZE_PX, CorticalClass

ROOT = Path(__file__).parents[2]
SMALL = (160, 340)
TINY = (100, 240)
HALF = (605, 1462)


def digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@cache
def truths(cls: str) -> list[PhantomTruth]:
    """2,000 patients of a class; no two classes share a seed."""
    first = 10_000 * int(cls[1])
    return [draw_truth(seed, cls) for seed in range(first, first + 2000)]


def auc(positive: list[float], negative: list[float]) -> float:
    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def auc_deviation(n: int, m: int) -> float:
    """Deviation of the AUC of a classifier that knows nothing (Mann and Whitney 1947)."""
    return float(np.sqrt((n + m + 1) / (12 * n * m)))


def test_same_truth_same_bytes_in_another_process() -> None:
    truth = draw_truth(11, "C3", size_px=SMALL)
    here = digest(draw_phantom(truth))
    program = (
        "import hashlib; from training.phantoms.phantom import draw_phantom, draw_truth;"
        "print(hashlib.sha256(draw_phantom(draw_truth(11, 'C3', size_px=(160, 340))).tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    assert digest(draw_phantom(draw_truth(12, "C3", size_px=SMALL))) != here


def test_drawing_needs_no_torch() -> None:
    program = "import sys, training.phantoms.phantom_set, training.cli; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("size_px", [MEAN_SIZE_PX, (605, 1462), SMALL, (200, 340), (300, 1000)])
def test_picture_has_the_size_mean_and_spacing_of_its_truth(size_px: tuple[int, int]) -> None:
    truth = draw_truth(5, "C1", size_px=size_px)
    image = draw_phantom(truth)
    assert image.shape == size_px
    assert image.dtype == np.uint8
    assert image.mean() == pytest.approx(truth.exposure.mean_grey, abs=1.0)
    # The field of 292.5 x 121 mm fits into every picture.
    assert truth.spacing_mm * size_px[1] >= 292.5 - 1e-6
    assert truth.spacing_mm * size_px[0] >= 121.0 - 1e-6


def test_mean_size_has_a_tenth_of_a_millimetre_a_pixel() -> None:
    assert draw_truth(0, "C1").spacing_mm == pytest.approx(0.10, abs=1e-4)


def test_small_picture_looks_like_the_large_one_reduced() -> None:
    truth = draw_truth(8, "C2")
    large = cv2.resize(draw_phantom(truth), (1462, 605), interpolation=cv2.INTER_AREA)
    small = draw_phantom(replace(truth, size_px=HALF))
    assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_classes_of_one_seed_differ_in_the_bone_alone(seed: int) -> None:
    one, three = draw_truth(seed, "C1"), draw_truth(seed, "C3")
    assert one.patient == three.patient
    assert one.exposure == three.exposure
    assert one.cortical_width_mm != three.cortical_width_mm


def test_classes_of_one_seed_are_drawn_alike_away_from_the_border() -> None:
    """With the exposure and noise of both fixed, the class changes pixels near the inferior cortex alone."""
    one, three = (draw_truth(3, cls, size_px=HALF) for cls in ("C1", "C3"))
    three = replace(three, cortical_width_mm=one.cortical_width_mm)
    change = np.abs(draw_phantom(one).astype(int) - draw_phantom(three).astype(int))
    near = cv2.dilate(cortex_mask(one).astype(np.uint8), np.ones((31, 31), np.uint8)) > 0
    # The mean is held, so that what the cortex loses is spread thinly over all the rest of the picture.
    assert change[~near].mean() < 0.5
    assert change[~near].max() <= 4
    assert change[near].max() >= 10


def test_second_visit_is_the_same_patient_exposed_anew() -> None:
    first, second = draw_truth(21, "C2", visit=0), draw_truth(21, "C2", visit=1)
    assert first.patient == second.patient
    assert (first.cortical_width_mm, first.porosity) == (second.cortical_width_mm, second.porosity)
    assert first.exposure != second.exposure


def test_width_alone_separates_as_published() -> None:
    """Normal widths one millimetre apart with a deviation of 0.7 mm: AUC = Φ(1.0 / (0.7·√2)) = 0.844."""
    widths = {cls: [truth.cortical_width_mm for truth in truths(cls)] for cls in CorticalClass}
    score = auc(widths[CorticalClass.C1], widths[CorticalClass.C3])
    assert 0.80 <= score <= 0.87
    assert score == pytest.approx(NormalDist().cdf(1.0 / (0.7 * 2**0.5)), abs=0.015)
    for cls, mean in (("C1", 3.9), ("C2", 3.4), ("C3", 2.9)):
        assert np.mean(widths[CorticalClass(cls)]) == pytest.approx(mean, abs=0.06)
        assert np.std(widths[CorticalClass(cls)]) == pytest.approx(0.7, abs=0.05)


def test_porosity_and_width_are_correlated_not_identical() -> None:
    for cls in CorticalClass:
        rho = spearmanr([t.cortical_width_mm for t in truths(cls)], [t.porosity for t in truths(cls)]).statistic
        assert -0.9 < rho < -0.3
    means = [np.mean([t.porosity for t in truths(cls)]) for cls in CorticalClass]
    assert means == sorted(means)


INDEPENDENT = {
    "mean_grey": lambda t: t.exposure.mean_grey,
    "noise_sd": lambda t: t.exposure.noise_sd,
    "blur_px": lambda t: t.exposure.blur_px,
    "step_grey": lambda t: t.exposure.step_grey,
    "spine_grey": lambda t: t.exposure.spine_grey,
    "airway": lambda t: t.exposure.airway,
    "bite_gap_mm": lambda t: t.exposure.bite_gap_mm,
    "marker_x_mm": lambda t: t.exposure.marker_xy_mm[0],
    "marker_y_mm": lambda t: t.exposure.marker_xy_mm[1],
    "head_scale": lambda t: t.patient.head_scale,
    "depth_z": lambda t: t.patient.depth_z,
    "teeth": lambda t: len(t.patient.teeth),
    "metal": lambda t: len(t.patient.metal),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_is_not_bone_does_not_tell_the_class(name: str) -> None:
    values = {cls: [float(INDEPENDENT[name](truth)) for truth in truths(cls)] for cls in CorticalClass}
    one, three = values[CorticalClass.C1], values[CorticalClass.C3]
    # 13 properties are tested: 3.3 deviations keep the chance of one false alarm near 1 %.
    assert auc(one, three) == pytest.approx(0.5, abs=3.3 * auc_deviation(len(one), len(three)))
    assert ks_2samp(one, three).pvalue > 1e-3


def test_no_tooth_is_commoner_in_a_class() -> None:
    for tooth in ALL_TEETH:
        share = [np.mean([tooth in t.patient.teeth for t in truths(cls)]) for cls in CorticalClass]
        assert max(share) - min(share) < 0.06


def test_brightness_alone_scores_chance_on_drawn_pictures() -> None:
    """Interval of Mann and Whitney under chance, and a sign test on pairs that differ in the class alone."""
    means = {
        cls: [draw_phantom(draw_truth(seed, cls, size_px=TINY)).mean() for seed in range(first, first + 30)]
        for cls, first in (("C1", 0), ("C3", 500))
    }
    score = auc(means["C1"], means["C3"])
    reach = 1.96 * auc_deviation(30, 30)
    assert score - reach <= 0.5 <= score + reach
    pairs = [(draw_phantom(draw_truth(seed, "C3", size_px=TINY)).mean(), means["C1"][seed]) for seed in range(12)]
    assert max(abs(three - one) for three, one in pairs) < 0.1
    assert binomtest(sum(three > one for three, one in pairs), len(pairs)).pvalue > 0.01


def test_range_of_scenes() -> None:
    everyone = [truth for cls in CorticalClass for truth in truths(cls)]
    counts = {len(truth.patient.teeth) for truth in everyone}
    assert {0, 32} <= counts <= set(range(33))
    greys = [truth.exposure.mean_grey for truth in everyone]
    assert 37 <= min(greys) < 50
    assert 130 < max(greys) <= 141


def test_metal_is_on_teeth_and_implants_are_in_gaps() -> None:
    kinds = set()
    for truth in truths("C1"):
        for tooth, kind in truth.patient.metal:
            kinds.add(str(kind))
            assert (tooth in truth.patient.teeth) is (kind != "implant")
    assert kinds == {"filling", "crown", "root_filling", "implant"}


def test_metal_saturates_whatever_the_exposure() -> None:
    truth = next(t for t in truths("C1") if any(kind == "crown" for _, kind in t.patient.metal))
    truth = replace(truth, size_px=HALF)
    for mean_grey in (45.0, 120.0):
        image = draw_phantom(replace(truth, exposure=replace(truth.exposure, mean_grey=mean_grey)))
        assert np.count_nonzero(image >= 250) > 250


@pytest.mark.parametrize("cls", CorticalClass)
def test_cortex_mask_lies_along_the_lower_border_with_the_true_width(cls: CorticalClass) -> None:
    truth = draw_truth(17, cls)
    mask = cortex_mask(truth)
    assert mask.shape == truth.size_px
    assert mask.dtype == np.bool_
    middle = mask.shape[1] // 2
    # At the midline the border is level, and the profile of the width is 1.03 of that at the foramina.
    thickness_mm = np.count_nonzero(mask[:, middle - 40 : middle + 40], axis=0).mean() * truth.spacing_mm
    assert thickness_mm == pytest.approx(1.03 * truth.cortical_width_mm, abs=0.15)
    lowest = np.flatnonzero(mask.any(axis=1)).max() / mask.shape[0]
    assert 0.85 < lowest < 1.0
    assert np.flatnonzero(mask.any(axis=0)).size > 0.6 * mask.shape[1]


def test_cortex_is_a_ridge_over_the_marrow_and_fades_with_the_class() -> None:
    """Facts of 115 radiographs: outside dark, a weak ridge, marrow near 78 grey levels."""
    ridge = {}
    for cls in ("C1", "C3"):
        contrast = []
        for seed in range(60, 64):
            truth = draw_truth(seed, cls, size_px=HALF)
            truth = replace(truth, exposure=replace(truth.exposure, mean_grey=95.0), cortical_width_mm=3.4)
            image, mask = draw_phantom(truth).astype(float), cortex_mask(truth).astype(np.uint8)
            columns = np.zeros(mask.shape[1], bool)
            columns[480:540] = columns[-540:-480] = True
            border = mask.shape[0] - 1 - np.argmax(mask[::-1], axis=0)
            rows = np.arange(mask.shape[0])[:, None]
            outside = image[(rows > border + 8) & (rows < border + 16) & columns].mean()
            marrow = image[(rows < border - 28) & (rows > border - 40) & columns].mean()
            band = image[(rows < border - 6) & (rows > border - 14) & columns].mean()
            assert outside < marrow < 140
            contrast.append(band - marrow)
        ridge[cls] = np.mean(contrast)
    assert ridge["C1"] > 4
    assert ridge["C3"] < ridge["C1"]


def test_noise_has_the_deviation_of_its_truth() -> None:
    """What is left when the same phantom without noise is taken away."""
    truth = draw_truth(2, "C1", size_px=HALF)
    quiet = replace(truth, exposure=replace(truth.exposure, noise_sd=0.0))
    difference = draw_phantom(truth).astype(float) - draw_phantom(quiet).astype(float)
    inside = difference[150:450, 300:1150]
    assert inside.std() == pytest.approx(truth.exposure.noise_sd, abs=0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1, "cls": "C1"}, "seed and visit must be 0 or more, not -1 and 0"),
        ({"seed": 0, "cls": "C1", "visit": -2}, "seed and visit must be 0 or more, not 0 and -2"),
        ({"seed": 0, "cls": "C4"}, "class is 'C4', but must be one of C1, C2, C3"),
        ({"seed": 0, "cls": "C1", "size_px": (20, 50)}, "size is 20x50 px, but each side must have 96 to 6000"),
        ({"seed": 0, "cls": "C1", "size_px": (3000, 9000)}, "each side must have 96 to 6000 px"),
        ({"seed": 0, "cls": "C1", "size_px": (1000, 1000)}, "a panoramic radiograph's height is 0.3 to 0.6"),
    ],
)
def test_impossible_truths_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_truth(**arguments)  # type: ignore[arg-type]
