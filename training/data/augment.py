"""Altered copies of prepared pictures to train on: the same jaw as another day's film might show it."""

import math
from enum import StrEnum
from statistics import NormalDist
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

#: Widest alterations of `augment`; each is drawn evenly, gain and gamma on a logarithmic scale.
MAX_ROTATION_DEG: Final = 4.0
SCALE: Final = (0.93, 1.05)
#: Of the width and of the height.
MAX_SHIFT: Final = 0.03
#: Grey levels are multiplied by it, and so is their contrast to the background that was removed.
MAX_GAIN: Final = 1.25
MAX_GAMMA: Final = 1.25
#: Standard deviation of the noise, grey levels.
MAX_NOISE: Final = 2.0

#: The predecessor's rotation, degrees either way.
PREDECESSOR_ROTATION_DEG: Final = (10.0, 30.0)

# Corners of what stays in the picture, as shares of width and height: the mandible's lower border from angle to angle,
# and below it, at the chin, all there is, since many radiographs end right there.
_KEPT: Final = np.array(
    [(0.03, 0.5), (0.03, 0.8), (0.15, 0.9), (0.35, 1), (0.65, 1), (0.85, 0.9), (0.97, 0.8), (0.97, 0.5)]
)

#: Standard normal deviates, one for each value of a random byte.
_DEVIATES: Final = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


class Augmentation(StrEnum):
    """What happens to the pictures of a training part."""

    ON_THE_FLY = "on-the-fly"
    """`augment`, drawn anew for each picture in each epoch."""
    PREDECESSOR = "predecessor"
    """The part is doubled once, as in the published training: half of the copies are `predecessor_copy` upside down,
    the other half rotated."""
    NONE = "none"
    """Pictures as the worker will see them."""


def augment(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror, rotate, scale and shift a picture a little, and change its exposure and its noise.

    What comes in from outside is black. The mandible's lower border stays in the picture: where turning would push it
    out, the picture is shifted back.

    Args:
        pixels: (h, w) grey levels, background removed.
        rng: Decides everything.

    Returns:
        (h, w) grey levels, a new array.
    """
    height, width = pixels.shape
    mirrored = rng.random() < 0.5
    angle_deg = rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG)
    scale = rng.uniform(*SCALE)
    shift_px = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * (width, height)
    moved = cv2.warpAffine(pixels, _movement(width, height, mirrored, angle_deg, scale, shift_px), (width, height))

    gain = math.exp(rng.uniform(-1, 1) * math.log(MAX_GAIN))
    gamma = math.exp(rng.uniform(-1, 1) * math.log(MAX_GAMMA))
    levels = np.rint(255 * np.minimum(gain * np.linspace(0, 1, 256) ** gamma, 1)).astype(np.uint8)
    noise = np.rint(rng.uniform(0, MAX_NOISE) * _DEVIATES).astype(np.int8)
    # A byte a pixel is enough for noise that is rounded to grey levels, and ten times as fast as normal deviates.
    words = rng.integers(0, 2**64, -(-pixels.size // 8), np.uint64)
    grains = cv2.LUT(words.astype("<u8", copy=False).view(np.uint8)[: pixels.size].reshape(pixels.shape), noise)
    return np.asarray(cv2.add(cv2.LUT(moved, levels, dst=moved), grains, dst=moved, dtype=cv2.CV_8U), np.uint8)


def predecessor_copy(
    pixels: NDArray[np.uint8], rng: np.random.Generator, *, flip: bool, size_px: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """A picture upside down, or rotated by 10 to 30 degrees either way about its centre, outside black.

    So the published training doubled its data (Dias et al. 2025, Biomed. Signal Process. Control 100:107031; its
    ``apply_augmentation``): it rotated radiographs before it resized them, with the nearest pixel's value. Here the
    resized picture is rotated as it would look had that been done, interpolated.

    Args:
        pixels: (h, w) grey levels, background removed.
        rng: Decides the angle.
        flip: Upside down instead of rotated.
        size_px: (height, width) of the radiograph before it was resized; by default it had the proportions of `pixels`.

    Returns:
        (h, w) grey levels, a new array.
    """
    if flip:
        return np.ascontiguousarray(pixels[::-1])
    angle_deg = rng.uniform(*PREDECESSOR_ROTATION_DEG) * rng.choice((-1, 1))
    height, width = pixels.shape
    before_height, before_width = size_px or pixels.shape
    stretch = np.diag([before_width / width, before_height / height, 1])
    rotation = _about_centre(before_width, before_height, angle_deg, 1.0)
    return np.asarray(
        cv2.warpAffine(pixels, _of_pixels(np.linalg.inv(stretch) @ rotation @ stretch), (width, height)), np.uint8
    )


def _movement(
    width: int, height: int, mirrored: bool, angle_deg: float, scale: float, shift_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`augment`'s movement as (2, 3) for OpenCV, shifted back as far as the kept corners ask."""
    movement = _about_centre(width, height, angle_deg, scale)
    if mirrored:
        movement = movement @ np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]])
    corners = np.column_stack([_KEPT * (width, height), np.ones(len(_KEPT))]) @ movement.T  # (8, 3)
    lowest = -corners[:, :2].min(axis=0)
    highest = (width, height) - corners[:, :2].max(axis=0)
    # Where not everything fits, as in a square crop that is enlarged, both sides lose alike.
    movement[:2, 2] += np.where(lowest > highest, (lowest + highest) / 2, np.clip(shift_px, lowest, highest))
    return _of_pixels(movement)


def _about_centre(width: int, height: int, angle_deg: float, scale: float) -> NDArray[np.float64]:
    """Rotation against the clock, and scaling, of the plane in which the picture's corners are (0, 0) and (w, h)."""
    return np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, scale), (0, 0, 1)])


def _of_pixels(movement: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same (3, 3) movement as (2, 3) for OpenCV, to which the first pixel's centre is (0, 0)."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.asarray((np.linalg.inv(half) @ movement @ half)[:2])
