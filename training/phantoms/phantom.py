"""One phantom: a synthetic panoramic radiograph of known truth, so that everything can be shown without a patient.

Built after measurements on 115 real panoramic radiographs: size, lower border, greys along the cortex's normal, noise,
blur and exposure. A phantom looks like a radiograph and is none: what a network learns of it says nothing of patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from training.phantoms.canvas import Canvas
from training.phantoms.cortex import cortex_of, draw_cortex
from training.phantoms.head import draw_head
from training.phantoms.jaw import draw_jaw, shape_jaw
from training.phantoms.teeth import draw_teeth
from training.phantoms.truth import CorticalClass, Exposure, PhantomTruth, draw_truth, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.phantoms.canvas import Image

__all__ = ["CorticalClass", "PhantomTruth", "cortex_mask", "draw_phantom", "draw_truth"]

#: Below this scale a picture is drawn twice as large and reduced, so that fine lines keep their weight.
_FINE_PX_PER_MM = 4.9
#: Pixel of the measured radiographs, mm: the unit of Exposure.blur_px.
_MEASURED_PIXEL_MM = 0.10


def draw_phantom(truth: PhantomTruth) -> NDArray[np.uint8]:
    """Draw a phantom.

    Args:
        truth: what is true of it; see `draw_truth`.

    Returns:
        Grey picture (H, W), uint8, bone bright; the same truth gives the same bytes on every run and in every process.
    """
    scale = _supersampling(truth)
    canvas = Canvas((truth.size_px[0] * scale, truth.size_px[1] * scale))
    jaw = shape_jaw(truth.patient, truth.seed)
    teeth, place, metal = draw_teeth(canvas, truth)
    bone = draw_jaw(canvas, jaw, truth.seed) + draw_cortex(canvas, jaw, truth)
    scene = draw_head(canvas, jaw, truth, 1.0 - 0.6 * place) + bone * (1.0 - 0.6 * place) + teeth
    grain = stream(truth.seed, "grain", truth.visit)
    scene = _film(scene + 1.6 * canvas.noise(grain, 0.28) + 1.3 * canvas.noise(grain, 0.6, stretch=1.5))
    white = np.maximum(metal, _marker(canvas, truth.exposure))
    scene, white = (
        _detect(canvas.blur(image, truth.exposure.blur_px * _MEASURED_PIXEL_MM), truth.size_px)
        for image in (scene, white)
    )
    exposed = _expose(scene, white, truth.exposure.mean_grey)
    noise = stream(truth.seed, "noise", truth.visit).standard_normal(exposed.shape, dtype=np.float32)
    return np.clip(np.rint(exposed + truth.exposure.noise_sd * noise), 0, 255).astype(np.uint8)


def cortex_mask(truth: PhantomTruth) -> NDArray[np.bool_]:
    """Where a phantom's inferior cortex is: the band of its true width, defects included. (H, W), bool."""
    return cortex_of(Canvas(truth.size_px), shape_jaw(truth.patient, truth.seed), truth)


def _supersampling(truth: PhantomTruth) -> int:
    return 1 if Canvas(truth.size_px).px_per_mm > _FINE_PX_PER_MM else 2


def _detect(image: Image, size_px: tuple[int, int]) -> Image:
    """Reduce a drawing to the picture's size."""
    height, width = size_px
    reduced = image if image.shape == size_px else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.float32)


def _film(scene: Image) -> Image:
    """Compress the brightest greys, as a detector's lookup table does: linear below the knee, then a shoulder."""
    knee, room = 150.0, 100.0
    return np.where(scene > knee, knee + room * np.tanh((scene - knee) / room), scene).astype(np.float32)


def _marker(canvas: Canvas, exposure: Exposure) -> Image:
    """Coverage, 0–1, of the outlined 'R' that marks the patient's right side (H, W)."""
    x, y = exposure.marker_xy_mm
    letter = np.array(
        [
            *((0, 7), (0, 0), (4.2, 0), (4.9, 0.7), (4.9, 3.6), (4.2, 4.3), (5.6, 7), (4.1, 7), (2.9, 4.6), (1.4, 4.6)),
            *((1.4, 7), (0, 7)),
        ]
    )
    eye = np.array([(1.4, 1.3), (3.6, 1.3), (3.6, 3.2), (1.4, 3.2), (1.4, 1.3)])
    corner = np.array([x, y])
    ink = np.maximum(canvas.stroke(letter + corner, 0.35), canvas.stroke(eye + corner, 0.35))
    return np.asarray(0.9 * ink, np.float32)


def _expose(scene: Image, white: Image, mean_grey: float) -> Image:
    """Give a picture the mean grey it is to have: half the way by gain, the rest by gamma.

    The mean is set whatever was drawn, so that no class can be told by it.

    Args:
        scene: greys (H, W).
        white: share of each pixel that is saturated whatever the exposure (H, W), 0–1.
        mean_grey: mean of the result.

    Returns:
        Greys (H, W), 0–255.
    """
    dark = 1.0 - np.clip(white, 0.0, 1.0)
    scene = np.clip(scene, 0.0, None)
    gained = np.clip(scene * np.sqrt(mean_grey / scene.mean()) / 255.0, 0.0, 1.0)
    levels = np.linspace(0.0, 1.0, 1024)
    share = np.bincount(np.rint(gained * 1023).astype(np.int32).ravel(), dark.ravel(), minlength=1024) / dark.size
    saturated = 1.0 - float(share.sum())
    low, high = 0.2, 5.0
    for _ in range(30):
        gamma = (low * high) ** 0.5
        low, high = (gamma, high) if 255.0 * (share @ levels**gamma + saturated) > mean_grey else (low, gamma)
    return np.asarray(255.0 * (dark * np.interp(gained, levels, levels**gamma) + 1.0 - dark), np.float32)
