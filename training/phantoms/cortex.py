"""The inferior cortex of the mandible: the only part of a phantom that is told the class.

It is drawn straightened, as an image of depth against length along the lower border, and then bent onto the jaw.
Texture by class (Klemetti et al. 1994): C1 one even band; C2 semilunar bites in the endosteal margin, or one thin
lamella; C3 broken lamellae, many lacunae and a ragged margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from training.phantoms.canvas import Canvas, gaussian_blur, remap
from training.phantoms.jaw import Jaw
from training.phantoms.truth import CorticalClass, PhantomTruth, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.phantoms.canvas import Image, Points

#: Side of a pixel of the straightened image, mm.
_CELL_MM = 0.1
#: Depth of the straightened image's first row, mm (negative: outside the bone), and its number of rows.
_TOP_MM = -2.0
_ROWS = 140
#: Beyond this distance from the midline the cortex has thinned out towards the angle, mm at the mean size.
_REACH_MM = 114.0
#: Grey of the ridge over the marrow.
_RIDGE_GREY = 25.0


def draw_cortex(canvas: Canvas, jaw: Jaw, truth: PhantomTruth) -> Image:
    """Grey that the inferior cortex adds (H, W)."""
    rng = stream(truth.seed, "cortex", list(CorticalClass).index(truth.cls))
    width = _width(jaw, truth)
    inner = _margin(rng, width, truth)
    depth = _depths()[:, None]
    sharp_mm = 0.16 + 0.30 * truth.porosity
    band = 1.0 / (1.0 + np.exp(np.clip((depth - inner[None, :]) / sharp_mm, -30, 30)))
    # The beam crosses more cortex a little inside the border than at its very edge.
    band *= np.clip((depth + 0.3) / 2.2, 0.0, 1.0) ** 0.7 * _fade(jaw, truth)
    band *= 1.0 - np.clip(_holes(rng, width, truth), 0.0, 0.75)
    grain = gaussian_blur(rng.standard_normal(band.shape).astype(np.float32), 1.5)
    band *= 1.0 + (0.05 + 0.12 * truth.porosity) * grain / grain.std()
    return _bend(canvas, jaw, (_RIDGE_GREY * band).astype(np.float32))


def cortex_of(canvas: Canvas, jaw: Jaw, truth: PhantomTruth) -> NDArray[np.bool_]:
    """Where the cortex is (H, W): between the lower border and the endosteal margin as it would be without defects."""
    width = _width(jaw, truth)
    depth = _depths()[:, None]
    band = (depth >= 0) & (depth <= width[None, :]) & (_fade(jaw, truth) > 0.5)
    return _bend(canvas, jaw, band.astype(np.float32)) > 0.5


def _depths() -> Points:
    return np.asarray(_TOP_MM + _CELL_MM * np.arange(_ROWS), np.float64)


def _width(jaw: Jaw, truth: PhantomTruth) -> Points:
    """Cortical width along the border, mm (n,): the truth's below the mental foramina, thinner towards the angles."""
    x = np.abs(_stations(jaw)) / truth.patient.head_scale
    return truth.cortical_width_mm * np.interp(x, [0, 25, 45, 70, 90, 110], [1.03, 1.02, 1.0, 0.88, 0.68, 0.45])


def _fade(jaw: Jaw, truth: PhantomTruth) -> Points:
    x = np.abs(_stations(jaw)) / truth.patient.head_scale
    return np.clip((_REACH_MM - x) / 12.0, 0.0, 1.0)[None, :]


def _stations(jaw: Jaw) -> Points:
    """Position x of each column of the straightened image: even steps of length along the border (n,)."""
    length = _length(jaw)
    return np.interp(np.arange(0, length[-1], _CELL_MM), length, jaw.border_x)


def _length(jaw: Jaw) -> Points:
    steps = np.hypot(np.diff(jaw.border_x), np.diff(jaw.border_y))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _margin(rng: np.random.Generator, width: Points, truth: PhantomTruth) -> Points:
    """Depth of the endosteal margin, mm (n,): smooth, bitten or ragged."""
    n = len(width)
    margin = width * (1.0 + 0.03 * _along(rng, n, 8.0))
    if truth.cls is CorticalClass.C2:
        for _ in range(_bites(truth)):
            bite_mm, centre = rng.uniform(0.3, 1.0), rng.uniform(0.06, 0.94) * n
            half = bite_mm * rng.uniform(0.9, 1.6) / _CELL_MM
            arc = np.sqrt(np.clip(1.0 - ((np.arange(n) - centre) / half) ** 2, 0.0, 1.0))
            margin = np.minimum(margin, width - bite_mm * arc)
    if truth.cls is CorticalClass.C3:
        ragged_mm = 0.25 + 0.45 * truth.porosity
        margin = margin - ragged_mm * np.abs(_along(rng, n, 1.7)) + 0.3 * ragged_mm * _along(rng, n, 3.0)
    return np.maximum(margin, 0.35 * width)


def _bites(truth: PhantomTruth) -> int:
    """5 to 20 bites, more with porosity."""
    return int(np.clip(round(5 + 15 * (truth.porosity - 0.2) / 0.45), 5, 20))


def _holes(rng: np.random.Generator, width: Points, truth: PhantomTruth) -> Image:
    """What is missing inside the band, 0–1 (rows, n): lamellae of resorption and lacunae."""
    holes = np.zeros((_ROWS, len(width)), np.float32)
    if truth.cls is CorticalClass.C2 and rng.random() < 0.5:
        holes += _lamella(rng, width, share=rng.uniform(0.55, 0.8), thick_mm=0.28, unbroken=0.65)
    if truth.cls is CorticalClass.C3:
        shares = np.linspace(0.3, 0.88, int(rng.integers(2, 5))) + rng.uniform(-0.05, 0.05)
        for share in shares:
            holes += _lamella(rng, width, share=float(share), thick_mm=rng.uniform(0.25, 0.42), unbroken=0.5)
        holes += _lacunae(rng, width, count=int(60 + 260 * truth.porosity))
    return gaussian_blur(holes, 0.8)


def _lamella(rng: np.random.Generator, width: Points, *, share: float, thick_mm: float, unbroken: float) -> Image:
    """A dark layer at a share of the width, broken where it has healed."""
    n = len(width)
    at = width * share + 0.12 * _along(rng, n, 6.0)
    there = np.clip(1.6 * (_along(rng, n, 5.0) + 2.2 * (unbroken - 0.5) + 0.4), 0.0, 1.0)
    profile = np.exp(-(((_depths()[:, None] - at[None, :]) / thick_mm) ** 2))
    return np.asarray(0.62 * profile * there[None, :], np.float32)


def _lacunae(rng: np.random.Generator, width: Points, *, count: int) -> Image:
    """Small elongated holes, more of them towards the marrow."""
    image = np.zeros((_ROWS, len(width)), np.uint8)
    for _ in range(count):
        column = int(rng.uniform(0.05, 0.95) * len(width))
        depth_mm = width[column] * np.sqrt(rng.uniform(0.08, 1.0))
        row = (depth_mm - _TOP_MM) / _CELL_MM
        axes = rng.uniform(0.3, 0.8) / _CELL_MM, rng.uniform(0.15, 0.32) / _CELL_MM
        centre = (column * 16, int(row * 16))
        size = (int(axes[0] * 16), int(axes[1] * 16))
        level = int(rng.uniform(90, 190))
        cv2.ellipse(image, centre, size, float(rng.normal(0, 12)), 0, 360, level, -1, cv2.LINE_AA, 4)
    return np.asarray(image, np.float32) / np.float32(255)


def _along(rng: np.random.Generator, n: int, grain_mm: float) -> Points:
    """Smooth noise along the border (n,), of unit deviation."""
    knots = rng.standard_normal(max(4, round(n * _CELL_MM / grain_mm)) + 2)
    at = np.linspace(0, len(knots) - 1, n)
    fine = np.interp(at, np.arange(len(knots)), knots)
    step = max(1, round(grain_mm / _CELL_MM / 2))
    return np.convolve(np.pad(fine, step, mode="edge"), np.ones(2 * step + 1) / (2 * step + 1), mode="valid") / 0.65


def _bend(canvas: Canvas, jaw: Jaw, straight: Image) -> Image:
    """Lay a straightened image (rows, n) along the lower border, onto the canvas (H, W)."""
    low = np.stack([jaw.border_x, jaw.border_y], axis=1)
    part, where = canvas.window(np.concatenate([low, low - [0, _ROWS * _CELL_MM]]), 2.0)
    x, y = part.x_mm().astype(np.float64), part.y_mm()
    border = jaw.border(x)
    slope = np.interp(x, jaw.border_x, np.gradient(jaw.border_y, jaw.border_x))
    rise = border - y
    cosine = 1.0 / np.hypot(1.0, slope)
    # The foot of the normal, to first order: the band is thin against the border's radius of curvature.
    foot = x + rise * slope * cosine**2
    depth = rise * cosine
    column = np.interp(foot, jaw.border_x, _length(jaw)) / _CELL_MM
    row = np.clip((depth - _TOP_MM) / _CELL_MM, 0, _ROWS - 1)
    bent = remap(straight, column.astype(np.float32), row.astype(np.float32))
    out = np.zeros(canvas.shape, np.float32)
    out[where] = np.where((depth > _TOP_MM) & (depth < (_ROWS - 2) * _CELL_MM + _TOP_MM), bent, 0)
    return out
