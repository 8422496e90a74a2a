"""Background subtraction by the sliding paraboloid ("rolling ball"), compiled.

The grey values are a relief; a paraboloid whose apex has the ball's radius of curvature is pushed against its underside
wherever it can reach, and what it reaches is the background (S. R. Sternberg, "Biomedical image processing", IEEE
Computer 16(1), 1983). As in ImageJ's ``BackgroundSubtracter`` (M. Schmid) the paraboloid is replaced by parabolas that
slide along lines: rows, columns, rows again, then one family of diagonals, the other, and the first again. Before that
the picture's corners are corrected (`panoramic.rolling_ball.corners`).

The result is equal in every pixel to that of the PyPI package ``opencv-rolling-ball`` 1.0.1, on whose pictures networks
were trained. `panoramic.rolling_ball.imagej` does a line in its way, `panoramic.rolling_ball.envelope` does most of
them several times faster and can tell which; `panoramic.compiling` says when and where kernels are kept.

The kernels release the interpreter's lock and run in plain threads that live for one call. numba's ``parallel=True`` is
avoided: its layers end the process when two threads enter at once (workqueue) or when it is used again after a fork
(GNU OpenMP). `subtract_background` may be called from several threads at once, and before and after a fork.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from panoramic.compiling import compiled
from panoramic.rolling_ball.corners import lower_corners
from panoramic.rolling_ball.envelope import BLOCK, slide_along_columns, slide_along_rows, tolerance
from panoramic.rolling_ball.imagej import slide_along

#: Largest accepted radius, in pixels: far flatter than any radiograph needs, and exact in every expression below.
MAX_RADIUS_PX: Final = 2**31 - 1

#: Above this many grey values of uncertainty (radii beyond a million pixels) hulls would leave too much in doubt.
_MAX_TOLERANCE: Final = 1e-3

#: Calls a function with a first line and one past a last one, until it has been called for all.
_Bands = Callable[[Callable[[int, int], None], int, int], None]


@compiled
def _subtract(image: NDArray[np.uint8], background: NDArray[np.float64], first: int, last: int) -> None:
    """Subtract the background from rows `first` up to `last` of the image, rounding half up, clipped to 0–255."""
    for row in range(first, last):
        for column in range(image.shape[1]):
            value = float(image[row, column]) - background[row, column] + 0.5
            image[row, column] = np.uint8(min(max(value, 0.0), 255.0))


def subtract_background(
    image: NDArray[np.uint8], radius_px: int = 180, *, threads: int | None = None
) -> NDArray[np.uint8]:
    """Smooth a radiograph with a 3×3 mean and subtract its background, dark background assumed.

    Equal in every pixel to ``subtract_background_rolling_ball(image, radius_px, light_background=False,
    use_paraboloid=True, do_presmooth=True)`` of opencv-rolling-ball 1.0.1, which subtracts from the smoothed image.
    That package divides by zero on an image one pixel high or wide; here such an image is filtered as the single line
    that it is, without a correction of its corners.

    Args:
        image: (H, W) grey values, uint8; any memory layout; not modified.
        radius_px: Radius of curvature of the paraboloid at its apex, in pixels, 1 to `MAX_RADIUS_PX`; grey values count
            as pixels of height.
        threads: Number of threads; the CPUs that this process may use if None. With 1 all is done in the caller's own.
            The result does not depend on it.

    Returns:
        (H, W) uint8, C-contiguous, a new array.

    Raises:
        ValueError: If the image is not two-dimensional, not uint8 or empty, or a number is out of its range.
    """
    check_picture(image, radius_px)
    if threads is None:
        threads = _usable_cpus()
    _require_whole("threads", threads, 1024)
    smooth = smoothed(image)
    surface = smooth.astype(np.float64)
    height, width = surface.shape
    if min(height, width) >= 2:
        lower_corners(surface, 0.5 / int(radius_px))

    with ThreadPoolExecutor(threads, thread_name_prefix="rolling_ball") as pool:
        do_each = map if threads == 1 else pool.map  # an executor starts no thread before its first task

        def in_bands(kernel: Callable[[int, int], None], first: int, last: int) -> None:
            """Run the kernel over the lines from first up to last: more bands than threads, since lines differ."""
            bands = 4 * threads if threads > 1 else 1
            step = -(-(last - first) // (bands * BLOCK)) * BLOCK
            for _ in do_each(lambda start: kernel(start, min(start + step, last)), range(first, last, step)):
                pass

        _slide_all_ways(surface, int(radius_px), in_bands)
        in_bands(lambda first, last: _subtract(smooth, surface, first, last), 0, height)
    return smooth


def warm_up() -> None:
    """Compile everything, or load it from numba's cache, so that the first radiograph does not wait for it."""
    for radius_px in (1, MAX_RADIUS_PX):  # by hulls, and by ImageJ's search
        subtract_background(np.zeros((3, 3), np.uint8), radius_px, threads=1)


def check_picture(image: NDArray[np.uint8], radius_px: int) -> None:
    """Raise ValueError as `subtract_background` says, unless it can take this picture and this radius."""
    if image.ndim != 2:
        raise ValueError(
            f"image has {image.ndim} dimensions (shape {image.shape}); it must have 2, (height, width): make it grey"
        )
    if image.dtype != np.uint8:
        raise ValueError(f"image has dtype {image.dtype}; it must be uint8: scale its grey values to 0–255 first")
    if image.size == 0:
        raise ValueError(f"image is empty (shape {image.shape}); its height and width must be at least 1")
    _require_whole("radius_px", radius_px, MAX_RADIUS_PX)


def smoothed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 3×3 mean, by the reference's own call: whichever way OpenCV rounds on this machine, both do alike."""
    return cast("NDArray[np.uint8]", cv2.filter2D(np.ascontiguousarray(image), -1, np.ones((3, 3), np.float64) / 9))


def _slide_all_ways(surface: NDArray[np.float64], radius_px: int, in_bands: _Bands) -> None:
    """Slide along rows, columns, rows and the diagonals of the surface whose corners are corrected, in place."""
    height, width = surface.shape
    along = 0.5 / radius_px
    across = 1.0 / radius_px  # a diagonal's step is √2 pixels long
    # Between its touching points a background is no lower than the lower of them.
    corners = surface[[0, 0, -1, -1], [0, -1, 0, -1]]
    lowest = min(0.0, float(corners.min()))

    def rows(first: int, last: int) -> None:
        clear = tolerance(width, along, lowest, 255.0)
        refused = (
            slide_along_rows(surface, along, clear, first, last) if clear <= _MAX_TOLERANCE else range(first, last)
        )
        if refused:
            names = np.array(refused, np.int64)
            slide_along(surface.reshape(-1), along, names * width, 1, np.full_like(names, width))

    def lines(curvature: float, shear: int, first: int, last: int) -> None:
        clear = tolerance(height, curvature, lowest, 255.0)
        refused = (
            slide_along_columns(surface, curvature, clear, shear, first, last)
            if clear <= _MAX_TOLERANCE
            else range(first, last)
        )
        if refused:
            names = np.array(refused, np.int64)
            tops = np.maximum(0, -names if shear > 0 else names - width + 1) * abs(shear)
            bottoms = np.minimum(height, width - names if shear > 0 else names + 1) if shear else height
            slide_along(surface.reshape(-1), curvature, names + tops * (width + shear), width + shear, bottoms - tops)

    # Lines shorter than three pixels have nothing between their ends.
    if width >= 3:
        in_bands(rows, 0, height)
    if height >= 3:
        in_bands(partial(lines, along, 0), 0, width)
    if width >= 3:
        in_bands(rows, 0, height)
    if min(height, width) >= 3:
        falling, rising = partial(lines, across, 1), partial(lines, across, -1)
        in_bands(falling, 3 - height, width - 2)
        in_bands(rising, 2, width + height - 3)
        # ImageJ reaches the line through the top right corner from the top and again from the right side. In exact
        # arithmetic the second time would change nothing; in its last bits it may.
        rising(width - 1, width)
        in_bands(falling, 3 - height, width - 2)


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: honours taskset and the CPU sets of containers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_whole(name: str, value: int, highest: int) -> None:
    """Raise ValueError unless the value is a whole number from 1 to highest."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= highest:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {highest}")
