"""A few pictures for comparing runtimes: what the network sees of a radiograph, drawn roughly, the same every time.

Nobody is meant to take them for radiographs. They have what moves a network's numbers: a dark ground, a bright jaw with
a cortex, teeth, metal in saturation, texture down to the pixel, and exposures from dark to bright.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.preprocess import to_tensor

#: (mean grey of the bone, teeth a row, defects of the cortex) of each picture, after background removal.
_PICTURES: Final = ((25.0, 14, 0), (50.0, 8, 25), (90.0, 0, 60))
#: Pixels of a picture for one of the network's input: radiographs are about three times as large.
_SCALE: Final = 2


def probe_batch(input_size: tuple[int, int]) -> NDArray[np.float32]:
    """The probe pictures as the network takes them, from `panoramic.preprocess.to_tensor`.

    Args:
        input_size: (h, w) of the network's input.

    Returns:
        (3, 3, h, w).
    """
    height, width = input_size
    size = (_SCALE * height, _SCALE * width)
    pictures = [
        _draw(size, bone=bone, teeth=teeth, defects=defects, seed=seed)
        for seed, (bone, teeth, defects) in enumerate(_PICTURES)
    ]
    return np.stack([to_tensor(picture, input_size=input_size) for picture in pictures])


def _draw(size: tuple[int, int], *, bone: float, teeth: int, defects: int, seed: int) -> NDArray[np.uint8]:
    """One picture, (H, W)."""
    height, width = size
    random = np.random.Generator(np.random.PCG64(seed))
    scene = np.full(size, bone / 4, np.float32)
    across = np.linspace(-1.1, 1.1, 200)
    jaw = np.stack([(across + 1.1) / 2.2 * width, height * (0.9 - 0.45 * across**2)], axis=1)
    _line(scene, jaw - (0, 0.12 * height), bone, thickness=0.24 * height)
    _line(scene, jaw, 1.6 * bone, thickness=0.035 * height)
    for place in random.uniform(0.1, 0.9, defects):
        x, y = jaw[int(place * len(jaw))] - (0, 0.015 * height)
        cv2.circle(scene, (round(x), round(y)), max(1, round(0.008 * height)), 0.7 * bone, -1)
    for row, top in ((-1, 0.38), (1, 0.52)):
        for number in range(teeth):
            x = width * (0.2 + 0.6 * (number + 0.5) / teeth)
            y = height * (top + 0.06 * row * random.uniform(0.8, 1.2))
            axes = (max(1, round(0.018 * width)), max(1, round(0.075 * height)))
            filled = 255.0 if random.random() < 0.2 else 2.2 * bone
            cv2.ellipse(scene, (round(x), round(y)), axes, 0, 0, 360, filled, -1)
    cv2.GaussianBlur(scene, (0, 0), 1.2, dst=scene)
    for octave in range(2, 9):
        grid = random.standard_normal((2**octave, 2 ** (octave + 1)), dtype=np.float32)
        scene += 0.12 * bone * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    scene += 1.5 * random.standard_normal(size, dtype=np.float32)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def _line(scene: NDArray[np.float32], points: NDArray[np.float64], grey: float, *, thickness: float) -> None:
    cv2.polylines(scene, [np.rint(points).astype(np.int32)], False, grey, max(1, round(thickness)))
