"""What lies around the mandible and the teeth: soft tissue, air, maxilla, skull base, spine and ghosts.

Nothing here is told the class. Greys are those of an 8-bit picture of mean exposure, before the film curve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.phantoms.canvas import Canvas, smooth
from training.phantoms.jaw import Jaw, occlusal_y
from training.phantoms.truth import PhantomTruth, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from training.phantoms.canvas import Image, Points

_SIDES = (-1, 1)


def draw_head(canvas: Canvas, jaw: Jaw, truth: PhantomTruth, bone: Image) -> Image:
    """Grey of everything but the mandible and the teeth (H, W), with the share of bone that the teeth leave."""
    soft = canvas.coarse(2.0)
    fine = canvas.coarse(5.0)
    grey = _soft_tissue(soft, jaw, truth) + _air(soft, truth) + _spine(soft, truth)
    image = canvas.enlarge(grey)
    image += canvas.enlarge(_ghosts(fine, truth) + _maxilla(fine, truth) + _skull_base(fine, truth))
    image += canvas.enlarge(_upper_alveolus(fine, truth)) * bone
    return image


def _mirror(points: Iterable[tuple[float, float]], side: int, rng: np.random.Generator, jitter_mm: float) -> Points:
    """Control points of one side, each moved a little, so that left and right differ as in a patient."""
    array = np.array(list(points), np.float64)
    array[:, 0] *= side
    return array + rng.normal(0.0, jitter_mm, array.shape)


def _soft_tissue(soft: Canvas, jaw: Jaw, truth: PhantomTruth) -> Image:
    rng = stream(truth.seed, "soft")
    x, y = soft.x_mm(), soft.y_mm()
    below = y - jaw.border(x)
    face = 1.0 / (1.0 + np.exp(np.clip((below + 2.0) / 3.5, -30, 30)))
    sides = 1.0 / (1.0 + np.exp(np.clip((np.abs(x) - 128.0) / 5.0, -30, 30)))
    high = 1.0 / (1.0 + np.exp(np.clip((y - truth.exposure.step_mm + 4.0) / 5.0, -30, 30)))
    grey = 14.0 + face * (15.0 + 34.0 * high * (0.25 + 0.75 * sides)) + 34.0 * np.exp(-(((y - 2) / 24) ** 2))
    # Cheek, lips and tongue are thick where the head is.
    grey = grey + 12.0 * np.exp(-((x / 95) ** 2) - ((y - 45) / 34) ** 2)
    grey = grey + 4.0 * soft.noise(rng, 22.0) + 1.2 * soft.noise(rng, 0.7, stretch=30.0)
    grey = grey + 2.5 * soft.noise(rng, 90.0, stretch=0.035)
    clutter = soft.noise(rng, 9.0, stretch=0.6) + 0.7 * soft.noise(rng, 4.0) + 0.5 * soft.noise(rng, 2.0)
    grey = grey + 5.5 * clutter * np.clip((70.0 - y) / 40.0, 0.15, 1.0)
    for side in _SIDES:
        ear = soft.fill(
            smooth(
                _mirror([(138, 44), (147, 42), (151, 56), (146, 70), (138, 68), (134, 56)], side, rng, 1.5), closed=True
            )
        )
        grey += 15.0 * soft.blur(ear, 0.7)
        spine = soft.fill(_mirror([(141, -40), (240, -40), (240, 160), (150, 135), (144, 80)], side, rng, 2.0))
        grey += 20.0 * soft.blur(spine, 3.0)
        hyoid = smooth(_mirror([(86, 121), (74, 115.5), (64, 114.5), (54, 118), (50, 124)], side, rng, 1.5))
        grey += 9.0 * soft.blur(soft.stroke(hyoid, 3.5), 0.8)
    return np.asarray(grey, np.float32)


def _air(soft: Canvas, truth: PhantomTruth) -> Image:
    """Darkness (negative grey) of the mouth, the nose and the throat."""
    rng = stream(truth.seed, "air", truth.visit)
    x, y = soft.x_mm(), soft.y_mm()
    bite = np.vectorize(lambda at: occlusal_y(truth.patient, at))(x)
    half = 2.5 + 0.5 * truth.exposure.bite_gap_mm * np.clip(1.0 - np.abs(x) / 75, 0, 1)
    mouth = np.exp(-np.clip(((y - bite) / half) ** 2, 0, 30)) * (np.abs(x) < 92)
    grey = -16.0 * soft.blur(mouth.astype(np.float32), 1.5)
    top = 19.0 + 8.0 * (x / 80) ** 2 + 1.5 * soft.noise(rng, 14.0)
    tongue = bite - 9.0 - 5.0 * (x / 60) ** 2 + 2.0 * soft.noise(rng, 18.0)
    between = ((y > top) & (y < np.minimum(tongue, top + 16 + 12 * truth.exposure.airway)) & (np.abs(x) < 66)).astype(
        np.float32
    )
    grey -= (6.0 + 26.0 * truth.exposure.airway) * soft.blur(between, 2.2)
    for side in _SIDES:
        throat = smooth(_mirror([(72, 26), (92, 40), (104, 56), (111, 76), (120, 130)], side, rng, 2.0))
        depth = (7.0 + 9.0 * truth.exposure.airway) * np.clip((80 - y) / 30, 0, 1)
        grey -= depth * soft.blur(soft.stroke(throat, 11.0), 2.2)
        pocket = soft.fill(
            smooth(
                _mirror([(116, 12), (121, 20), (114, 29), (106, 28), (100, 18), (106, 11)], side, rng, 2.0), closed=True
            )
        )
        grey -= rng.uniform(6, 16) * soft.blur(pocket, 2.2)
        nose = soft.fill(smooth(_mirror([(3, -14), (15, -12), (18, 2), (12, 8), (4, 6)], side, rng, 0.8), closed=True))
        grey -= 34.0 * soft.blur(nose, 1.1)
        corner = soft.fill(
            smooth(_mirror([(9, 22), (26, 26), (30, 40), (20, 50), (10, 44)], side, rng, 2.0), closed=True)
        )
        grey -= 12.0 * soft.blur(corner, 4.0)
    return grey


def _spine(soft: Canvas, truth: PhantomTruth) -> Image:
    """The cervical spine's haze over the midline: vertical streaks, denser towards the chin."""
    rng = stream(truth.seed, "spine", truth.visit)
    x, y = soft.x_mm() - np.float32(rng.normal(0, 2.0)), soft.y_mm()
    core, wing = rng.uniform(7, 11), rng.uniform(24, 36)
    edge = rng.uniform(1.2, 3.0)
    wide = _plateau(x, wing, edge)
    narrow = _plateau(x, core, 1.6)
    rise = np.clip(0.3 + 0.7 * (y - 45) / 55, 0.3, 1.0)
    streak = 1.0 + 0.22 * soft.noise(rng, 60.0, stretch=0.05) + 0.12 * soft.noise(rng, 20.0, stretch=0.12)
    blotch = 1.0 + 0.25 * soft.noise(rng, 5.0, stretch=1.2)
    grey = truth.exposure.spine_grey * rise * (0.85 * wide * streak + narrow * streak * blotch)
    return np.asarray(soft.blur(grey.astype(np.float32), 0.6), np.float32)


def _plateau(x: Image, half: float, edge: float) -> Image:
    return np.asarray(1.0 / (1.0 + np.exp(np.clip((np.abs(x) - half) / edge, -30, 30))), np.float32)


def _ghosts(fine: Canvas, truth: PhantomTruth) -> Image:
    """The opposite side of the mandible: a bright field behind each ramus that ends in a horizontal step."""
    rng = stream(truth.seed, "ghost", truth.visit)
    x, y = fine.x_mm(), fine.y_mm()
    grey = np.zeros(fine.shape, np.float32)
    for side in _SIDES:
        step = truth.exposure.step_mm + rng.normal(0, 1.0) + 0.015 * side * x + 0.25 * fine.noise(rng, 30.0)
        points = [
            (150, 112),
            (146, 70),
            (124, 50),
            (102, 36),
            (88, 27),
            (74, 28),
            (60, 44),
            (40, 56),
            (24, 70),
            (20, 112),
        ]
        field = fine.blur(fine.fill(_mirror(points, side, rng, 1.2)), 2.0)
        field = field * np.clip((side * x - 22) / 45, 0.0, 1.0) * np.clip((138 - side * x) / 16, 0.0, 1.0)
        lower = 1.0 / (1.0 + np.exp(np.clip((y - step) / 0.45, -30, 30)))
        streaks = 1.0 + 0.035 * fine.noise(rng, 0.8, stretch=40.0)
        fading = 0.35 * np.exp(-np.clip(y - step, 0, 60) / 6.0) * (y > step)
        grey += 1.45 * truth.exposure.step_grey * field * (lower + 0.25 * fading) * streaks
    return grey


def _maxilla(fine: Canvas, truth: PhantomTruth) -> Image:
    """Hard palate, floor of the nose, septum, sinuses and the bone that carries the upper teeth."""
    rng = stream(truth.seed, "maxilla")
    x, y = fine.x_mm(), fine.y_mm()
    top = rng.uniform(6.0, 11.0)
    grey = _palate(fine, rng, top)
    grey += (
        20.0 * np.exp(-(((y - 2) / 20) ** 2)) * _plateau(x, 98, 5.0) * (1.0 + 0.15 * fine.noise(rng, 6.0, stretch=0.5))
    )
    septum = smooth(np.array([(0, -40), (0, 0), (0, top), (0, top + 9)]) + rng.normal(0, 1.3, (4, 2)))
    grey += 26.0 * fine.blur(fine.stroke(septum, 3.5), 1.5)
    spine_of_nose = fine.fill([(-11, top), (11, top), (3.5, top + 20), (-3.5, top + 20)])
    grey += 20.0 * fine.blur(spine_of_nose, 2.2)
    for side in _SIDES:
        sinus = smooth(
            _mirror(
                [(88, 8), (88, 24), (81, 33), (68, 37.5), (54, 36), (43, 29), (37, 17), (36, 2), (60, -4)],
                side,
                rng,
                1.4,
            ),
            closed=True,
        )
        grey -= 11.0 * fine.blur(fine.fill(sinus), 0.7)
        grey += (
            26.0 * fine.blur(fine.stroke(sinus[12:-14], 0.8), 0.3) * np.clip(0.8 + 0.5 * fine.noise(rng, 8.0), 0.2, 1.3)
        )
        strut = smooth(_mirror([(74, -40), (74.5, 4), (73, 13), (69.5, 19), (66, 21.5)], side, rng, 1.6))
        grey += _tapered(fine, strut, rng.uniform(30, 50), 1.6) * np.clip(0.9 + 0.3 * fine.noise(rng, 6.0), 0.3, 1.3)
        back = smooth(_mirror([(93, -40), (92.5, 8), (91, 22), (88.5, 31), (84, 36)], side, rng, 1.4))
        grey += _tapered(fine, back, rng.uniform(26, 44), 1.1)
        concha = fine.fill(
            smooth(_mirror([(17, -6), (30, -8), (34, 2), (27, 6), (18, 4)], side, rng, 1.2), closed=True)
        )
        grey += 12.0 * fine.blur(concha, 2.0)
    return np.asarray(grey, np.float32)


def _upper_alveolus(fine: Canvas, truth: PhantomTruth) -> Image:
    """The bone between the roots of the upper teeth, up to the palate (H, W)."""
    rng = stream(truth.seed, "alveolus")
    x, y = fine.x_mm(), fine.y_mm()
    bite = truth.patient.occlusal_mm - truth.patient.smile_mm * np.minimum(1.6, (x / 82) ** 2)
    upper = sum(tooth < 30 for tooth in truth.patient.teeth) / 16
    crest = bite - 13.0 - (1 - upper) * 7.0 + 0.8 * fine.noise(rng, 9.0)
    bone = 1.0 / (1.0 + np.exp(np.clip((y - crest) / 0.7, -30, 30))) * _plateau(x, 86, 1.2)
    bone = bone / (1.0 + np.exp(np.clip((22 - y) / 4.0, -30, 30)))
    thick = 0.55 + 0.45 * np.clip((crest - y) / 9.0, 0.0, 1.0)
    mesh = 1.0 + 0.16 * (0.8 - np.abs(fine.noise(rng, 0.9, stretch=0.7))) + 0.08 * fine.noise(rng, 3.0)
    return np.asarray(42.0 * bone * thick * mesh, np.float32)


def _palate(fine: Canvas, rng: np.random.Generator, top: float) -> Image:
    """The hard palate and its ghost: strands that part towards the sides."""
    grey = np.zeros(fine.shape, np.float32)
    at = np.linspace(-1.0, 1.0, 60)
    fade = np.clip(1.15 - np.abs(fine.x_mm()) / 92, 0.0, 1.0)
    for _ in range(8):
        sag = rng.uniform(2.0, 12.0)
        y = top + rng.normal(0, 1.6) + sag * np.abs(at) ** rng.uniform(1.4, 2.0) + 0.3 * np.sin(at * rng.uniform(4, 9))
        line = np.stack([at * rng.uniform(78, 92), y], axis=1)
        width = rng.uniform(0.7, 3.4)
        grey += rng.uniform(18, 46) * fine.blur(fine.stroke(line, width), 0.2 + 0.22 * width) * fade
    return grey


def _tapered(fine: Canvas, line: Points, grey: float, width_mm: float) -> Image:
    """A bony edge seen end on: sharp, and fainter towards its upper end."""
    ramp = np.clip(0.45 + 0.55 * (fine.y_mm() + 5) / 25, 0.3, 1.0)
    return np.asarray(grey * ramp * fine.blur(fine.stroke(line, width_mm), 0.4), np.float32)


def _skull_base(fine: Canvas, truth: PhantomTruth) -> Image:
    """Temporal bone with the articular eminence, and the zygomatic arch, in the upper corners."""
    rng = stream(truth.seed, "skull")
    mesh: Callable[[], Image] = lambda: 1.0 + 0.14 * fine.noise(rng, 5.0) + 0.06 * fine.noise(rng, 1.6)  # noqa: E731
    grey = np.zeros(fine.shape, np.float32)
    for side in _SIDES:
        points = [
            (240, -40),
            (240, 8),
            (150, 5),
            (143, 0),
            (134, -2),
            (126, 2),
            (119.5, 10),
            (114, 11.5),
            (108, 7),
            (98, 4),
            (84, 0),
            (70, -6),
            (66, -40),
        ]
        arch = smooth(_mirror(points, side, rng, 2.0))
        grey += rng.uniform(28, 46) * fine.blur(fine.fill(arch), 0.8) * mesh()
        grey += 24.0 * fine.blur(fine.stroke(arch[24:-24], 1.2), 0.4)
        mastoid = fine.fill(
            smooth(
                _mirror([(122, -40), (240, -40), (240, 30), (152, 26), (144, 13), (134, 9), (124, 4)], side, rng, 1.5),
                closed=True,
            )
        )
        grey += 44.0 * fine.blur(mastoid, 1.2) * mesh()
    return grey
