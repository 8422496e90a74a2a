"""Altered copies keep the mandible in the picture, alter everything they promise, and obey their random numbers."""

import cv2
import numpy as np
import pytest
from PIL import Image

from training.data.augment import augment, predecessor_copy
from training.phantoms.phantom import cortex_mask, draw_phantom, draw_truth


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, number]) for number in range(count)]


def chin_at_the_bottom(seed: int) -> np.ndarray:
    """The inferior cortex of a phantom, the lowest of it in the picture's last row, as on many real radiographs."""
    mask = cortex_mask(draw_truth(seed, "C1", size_px=(180, 436)))
    lowest = int(np.flatnonzero(mask.any(axis=1)).max())
    return np.roll(mask, len(mask) - 1 - lowest, axis=0)


@pytest.mark.parametrize("size", [(449, 954), (180, 436), (224, 224)])
def test_the_lower_border_stays_in_the_picture(size: tuple[int, int]) -> None:
    height, width = size
    for seed in range(6):
        cortex = chin_at_the_bottom(seed)
        cortex = cv2.resize(cortex.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        columns = np.flatnonzero(cortex.any(axis=0))
        marked = np.zeros(size, np.uint8)
        for column in np.linspace(columns[2], columns[-3], 9).astype(int):
            row = int(np.flatnonzero(cortex[:, column]).max())
            cv2.circle(marked, (int(column), row), 4, 255, cv2.FILLED)
        for rng in rngs(60):
            found = cv2.connectedComponents((augment(marked, rng) > 80).astype(np.uint8))[0] - 1
            assert found == 9


def test_the_same_random_numbers_give_the_same_picture_and_others_another() -> None:
    pixels = draw_phantom(draw_truth(1, "C1", size_px=(121, 292)))
    before = pixels.copy()

    first, again, other = (augment(pixels, np.random.default_rng(seed)) for seed in (3, 3, 4))

    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5
    np.testing.assert_array_equal(pixels, before)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == (pixels.shape, np.uint8, True)


def test_about_half_are_mirrored() -> None:
    pixels = np.zeros((60, 120), np.uint8)
    pixels[20:40, 80:100] = 200
    on_the_left = [augment(pixels, rng)[:, :60].sum() > augment(pixels, rng)[:, 60:].sum() for rng in rngs(200)]

    assert 70 <= sum(on_the_left) <= 130


def test_rotation_scale_and_shift_are_small_and_go_both_ways() -> None:
    pixels = np.zeros((300, 600), np.uint8)
    pixels[98:103, 150:451] = 255
    slopes_deg, lengths, places = [], [], []
    for rng in rngs(200):
        y, x = np.nonzero(augment(pixels, rng) > 100)
        slopes_deg.append(np.degrees(np.arctan(np.polyfit(x, y, 1)[0])))
        lengths.append(np.hypot(np.ptp(x), np.ptp(y)) / 300)
        places.append((x.mean() - 299.5) / 600)

    assert 3.5 < max(slopes_deg) < 4.2
    assert -4.2 < min(slopes_deg) < -3.5
    assert 0.92 < min(lengths) < 0.95
    assert 1.03 < max(lengths) < 1.07
    assert 0.02 < max(places) < 0.06
    assert -0.06 < min(places) < -0.02


def test_exposure_and_noise_vary_within_bounds() -> None:
    middles = [augment(np.full((200, 400), 100, np.uint8), rng)[60:140, 100:300] for rng in rngs(200)]
    means = [float(middle.mean()) for middle in middles]
    deviations = [float(middle.std()) for middle in middles]

    # 255 · 1.25 · (100/255)^(1/1.25) = 151 and its counterpart, 255 / 1.25 · (100/255)^1.25 = 63.
    assert 62 < min(means) < 75
    assert 130 < max(means) < 152
    assert min(deviations) < 0.3
    assert 1.7 < max(deviations) < 2.1


def test_noise_is_like_the_normal_distribution_and_does_not_wrap_around() -> None:
    middle = max((augment(np.full((400, 800), 100, np.uint8), rng)[100:300, 200:600] for rng in rngs(20)), key=np.std)
    noise = (middle - middle.mean()) / middle.std()
    shares = [np.mean(np.abs(noise) < bound) for bound in (1, 2)]
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]

    np.testing.assert_allclose(shares, (0.683, 0.954), atol=0.12)
    assert abs(neighbours) < 0.02
    for rng in rngs(20):
        assert augment(np.zeros((50, 100), np.uint8), rng).max() < 10
        assert augment(np.full((50, 100), 255, np.uint8), rng)[20:30, 30:70].min() > 190


def test_what_comes_in_from_outside_is_black() -> None:
    for rng in rngs(100):
        altered = augment(np.full((200, 400), 255, np.uint8), rng)
        dark = altered < 10
        assert np.mean(dark | (altered > 190)) > 0.97, "nothing in between but the seam"
        inside = cv2.erode((~dark).astype(np.uint8), np.ones((5, 5), np.uint8))
        assert cv2.connectedComponents(inside)[0] == 2
        assert dark.mean() < 0.25


def test_upside_down_is_upside_down() -> None:
    pixels = draw_phantom(draw_truth(1, "C1", size_px=(121, 292)))
    copy = predecessor_copy(pixels, np.random.default_rng(0), flip=True)

    np.testing.assert_array_equal(copy, np.flipud(pixels))
    assert copy.flags.c_contiguous


def test_rotation_is_pillows_before_the_resize() -> None:
    # Pillow rotates by a given angle; which one was drawn is found by trying.
    radiograph = cv2.GaussianBlur(draw_phantom(draw_truth(1, "C1", size_px=(242, 584))), (0, 0), 3)
    size = (100, 200)  # other proportions than the radiograph's

    def resized(picture: Image.Image) -> np.ndarray:
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))

    prepared = resized(Image.fromarray(radiograph))
    angles = np.arange(-32, 32.25, 0.25)
    as_pillow = np.stack([resized(Image.fromarray(radiograph).rotate(angle)) for angle in angles]).astype(int)
    found = []
    for rng in rngs(40):
        copy = predecessor_copy(prepared, rng, flip=False, size_px=radiograph.shape)
        differences = np.abs(as_pillow - copy).mean(axis=(1, 2))
        assert differences.min() < 1.0
        found.append(angles[differences.argmin()])

    assert (np.abs(found) >= 9.75).all()
    assert (np.abs(found) <= 30.25).all()
    assert 10 <= np.sum(np.array(found) > 0) <= 30
    assert np.ptp(np.abs(found)) > 15
