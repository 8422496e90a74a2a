"""Drawing in millimetres: antialiased shapes, blur and noise that look alike at every size of picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from training.phantoms.truth import FIELD_MM

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Image: TypeAlias = NDArray[np.float32]
    Points: TypeAlias = NDArray[np.float64]

#: OpenCV draws at a sixteenth of a pixel.
_SHIFT = 4


class Canvas:
    """A pixel grid laid over the field of view: x in mm from the midline, y in mm down from the top.

    The field of 292.5×121 mm always fits into the picture; a picture of another shape sees more around it.

    Args:
        shape: height and width in pixels.
        px_per_mm: scale; by default the largest at which the field fits.
        origin_px: pixel position (x, y) of the field's top centre; by default the field is centred.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        px_per_mm: float | None = None,
        origin_px: tuple[float, float] | None = None,
    ) -> None:
        height, width = shape
        self.shape = shape
        self.px_per_mm = px_per_mm if px_per_mm is not None else min(width / FIELD_MM[0], height / FIELD_MM[1])
        self.origin_px = origin_px or (width / 2, (height - FIELD_MM[1] * self.px_per_mm) / 2)

    def coarse(self, px_per_mm: float) -> Canvas:
        """The same view with fewer pixels, for what is soft anyway; `enlarge` brings it back."""
        factor = min(1.0, px_per_mm / self.px_per_mm)
        height, width = (max(1, round(side * factor)) for side in self.shape)
        x, y = self.origin_px
        return Canvas((height, width), px_per_mm=self.px_per_mm * factor, origin_px=(x * factor, y * factor))

    def enlarge(self, image: Image) -> Image:
        """Resize a coarse (h, w) image to this canvas's (H, W)."""
        height, width = self.shape
        return _f32(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))

    def window(self, points: Points, margin_mm: float) -> tuple[Canvas, tuple[slice, slice]]:
        """The part of the canvas around some points, as a canvas of its own and the slices that cut it out."""
        pixels = self._pixels(points)
        margin = margin_mm * self.px_per_mm
        low = np.clip(np.floor(pixels.min(axis=0) - margin), 0, [self.shape[1] - 1, self.shape[0] - 1]).astype(int)
        high = np.clip(np.ceil(pixels.max(axis=0) + margin), low + 1, [self.shape[1], self.shape[0]]).astype(int)
        origin = (self.origin_px[0] - low[0], self.origin_px[1] - low[1])
        part = Canvas((int(high[1] - low[1]), int(high[0] - low[0])), px_per_mm=self.px_per_mm, origin_px=origin)
        return part, (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))

    def x_mm(self) -> Image:
        """Row vector (1, W) of the pixels' x."""
        return _f32((np.arange(self.shape[1]) + 0.5 - self.origin_px[0])[None, :] / self.px_per_mm)

    def y_mm(self) -> Image:
        """Column vector (H, 1) of the pixels' y."""
        return _f32((np.arange(self.shape[0]) + 0.5 - self.origin_px[1])[:, None] / self.px_per_mm)

    def fill(self, *outlines: ArrayLike) -> Image:
        """Coverage (H, W), 0–1, of the union of closed outlines, each (n, 2) in mm."""
        mask = np.zeros(self.shape, np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
        return _f32(mask) / np.float32(255)

    def stroke(self, line: ArrayLike, width_mm: float) -> Image:
        """Coverage (H, W), 0–1, of an open line (n, 2) in mm; thinner than a pixel it is drawn fainter."""
        mask = np.zeros(self.shape, np.uint8)
        width_px = width_mm * self.px_per_mm
        level = int(255 * min(1.0, width_px))
        cv2.polylines(mask, [self._fixed(line)], False, level, max(1, round(width_px)), cv2.LINE_AA, _SHIFT)
        return _f32(mask) / np.float32(255)

    def blur(self, image: Image, sd_mm: float) -> Image:
        """Gaussian blur of an (H, W) image."""
        return gaussian_blur(image, sd_mm * self.px_per_mm)

    def noise(self, rng: np.random.Generator, grain_mm: float, *, stretch: float = 1.0) -> Image:
        """Smooth noise (H, W) of about unit deviation, the same pattern at every size.

        Args:
            rng: random stream.
            grain_mm: height of a grain.
            stretch: width of a grain over its height.
        """
        height = max(4, round(1.2 * FIELD_MM[1] / grain_mm))
        width = max(4, round(1.2 * FIELD_MM[0] / (grain_mm * stretch)))
        grains = _f32(cv2.GaussianBlur(_f32(rng.standard_normal((height, width))), (0, 0), 0.7, borderType=2))
        grains /= grains.std()
        column = (self.x_mm() / (grain_mm * stretch) + np.float32(width / 2)).astype(np.float32)
        row = (self.y_mm() / grain_mm + np.float32(0.1 * height)).astype(np.float32)
        return remap(grains, np.broadcast_to(column, self.shape), np.broadcast_to(row, self.shape))

    def _pixels(self, points: ArrayLike) -> Points:
        return np.asarray(np.asarray(points, np.float64) * self.px_per_mm + self.origin_px, np.float64)

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        # OpenCV counts from the centre of the first pixel, this canvas from its corner.
        return np.round((self._pixels(points) - 0.5) * (1 << _SHIFT)).astype(np.int32)


def gaussian_blur(image: Image, sd_px: float) -> Image:
    """Gaussian blur that leaves an image alone where the deviation is far below a pixel."""
    return _f32(cv2.GaussianBlur(image, (0, 0), sd_px)) if sd_px > 0.15 else image


def remap(image: Image, column: Image, row: Image) -> Image:
    """Sample an image at fractional columns and rows; outside it, its border goes on."""
    return _f32(cv2.remap(image, column, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))


def smooth(points: ArrayLike, *, closed: bool = False, samples: int = 12) -> Points:
    """A centripetal Catmull-Rom curve through (n, 2) control points, with `samples` points a segment.

    Source: Barry and Goldman 1988; the centripetal knots give neither cusps nor loops (Yuksel et al. 2011).
    """
    p = np.asarray(points, np.float64)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([before, p, after])
    p0, p1, p2, p3 = (p[i : len(p) - 3 + i, None] for i in range(4))

    def span(a: Points, b: Points) -> Points:
        return np.asarray(np.maximum(np.sqrt(np.linalg.norm(b - a, axis=-1, keepdims=True)), 1e-6), np.float64)

    t1 = span(p0, p1)
    t2 = t1 + span(p1, p2)
    t3 = t2 + span(p2, p3)
    t = t1 + (t2 - t1) * np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    a1 = (t1 - t) / t1 * p0 + t / t1 * p1
    a2 = (t2 - t) / (t2 - t1) * p1 + (t - t1) / (t2 - t1) * p2
    a3 = (t3 - t) / (t3 - t2) * p2 + (t - t2) / (t3 - t2) * p3
    b1 = (t2 - t) / t2 * a1 + t / t2 * a2
    b2 = (t3 - t) / (t3 - t1) * a2 + (t - t1) / (t3 - t1) * a3
    curve = ((t2 - t) / (t2 - t1) * b1 + (t - t1) / (t2 - t1) * b2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def _f32(array: ArrayLike) -> Image:
    return np.asarray(array, np.float32)
