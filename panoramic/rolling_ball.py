"""Background subtraction by the sliding paraboloid ("rolling ball"), compiled.

The grey values are a relief; a paraboloid whose apex has the ball's radius of curvature is pushed against its underside
wherever it can reach, and what it reaches is the background (S. R. Sternberg, "Biomedical image processing", IEEE
Computer 16(1), 1983). As in ImageJ's ``BackgroundSubtracter`` (M. Schmid) the paraboloid is replaced by parabolas that
slide along lines: rows, columns, rows again, then one family of diagonals, the other, and the first again.

Under one line the answer is a lower envelope. A parabola z(d) = -c d² touches two points d apart, of heights v1 and v2,
if its slope at the first is (v2 - v1)/d + c d; from the line's first point onwards, the next point touched is the one
that asks for the smallest slope. Between the two, the background is that parabola.

Every expression that reaches the result is evaluated in float64 and in the order of the PyPI package
``opencv-rolling-ball`` 1.0.1, and is equal to it in every pixel: networks were trained on that package's pictures.

numba compiles on first use (seconds; `warm_up` does it ahead of time) and keeps the result beside this file, or in the
user's cache folder where the installation is read-only, or in ``NUMBA_CACHE_DIR`` if that is set; where none can be
written, each process compiles again.

The kernels release the interpreter's lock and run in plain threads that live for one call. numba's ``parallel=True`` is
avoided: its layers end the process when two threads enter at once (workqueue) or when it is used again after a fork
(GNU OpenMP). `subtract_background` may be called from several threads at once, and before and after a fork.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any, Final, TypeVar, cast

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

#: Largest accepted radius, in pixels: far flatter than any radiograph needs, and exact in every expression below.
MAX_RADIUS_PX: Final = 2**31 - 1

#: Columns (or diagonals) copied together into contiguous lines: four cache lines of float64 from each row, and for the
#: usual 1300 rows a third of a megabyte, which stays in the second-level cache.
_BLOCK: Final = 32

#: Least number of lines worth handing to a thread at a time.
_MIN_BAND: Final = 32

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile on first call, without the interpreter's lock; no fast-math, whose reordering would change results."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("_Function", njit(cache=True, **options)(function))
    except RuntimeError:  # numba found no folder to write its cache to: a slower start is better than none
        return cast("_Function", njit(**options)(function))


@_compiled
def _find_knots(
    line: NDArray[np.float64], curvature: float, knots: NDArray[np.float64], heights: NDArray[np.float64]
) -> tuple[int, float, float]:
    """List the points that the parabola might touch: both ends, and where the line is less concave than the parabola.

    Args:
        line: (n,) grey values, n >= 2.
        curvature: The parabola's c, in grey values per squared step.
        knots: (>= n,) takes the points, in order; whole numbers, as float64 to spare conversions.
        heights: (>= n,) takes the line's values there.

    Returns:
        The number of knots, the line's lowest and its highest value.
    """
    n = line.size
    # Not 2: after an earlier pass many points lie on a parabola of exactly this curvature; its ends are knots enough.
    concavity = 1.999 * curvature
    lowest = min(line[0], line[n - 1])
    highest = max(line[0], line[n - 1])
    knots[0] = 0
    heights[0] = line[0]
    count = 1
    for i in range(1, n - 1):
        value = line[i]
        lowest = min(lowest, value)
        highest = max(highest, value)
        knots[count] = i
        heights[count] = value
        if value + value - line[i - 1] - line[i + 1] < concavity:
            count += 1
    knots[count] = n - 1
    heights[count] = line[n - 1]
    return count + 1, lowest, highest


@_compiled
def _find_support(
    knots: NDArray[np.float64],
    heights: NDArray[np.float64],
    curvature: float,
    support: NDArray[np.float64],
    link: NDArray[np.float64],
) -> None:
    """Find for each knot the slope of the line through it that all later knots lie on or above, once c x² is added.

    With c x² added to the heights parabolas become straight lines, and the envelope the lower convex hull. The monotone
    chain (A. M. Andrew, Inf. Process. Lett. 9(5), 1979), built from the right, gives these slopes in linear time.

    Args:
        knots: (m,) as from `_find_knots`.
        heights: (m,) as from `_find_knots`.
        curvature: The parabola's c.
        support: (m,) takes the slopes; infinity for the last knot.
        link: (m,) scratch: the hull's next knot, seen from each.
    """
    last = knots.size - 1
    support[last] = np.inf
    for k in range(last - 1, -1, -1):
        x = knots[k]
        value = heights[k]
        top = k + 1
        slope = (heights[top] - value) / (knots[top] - x) + curvature * (knots[top] + x)
        while slope >= support[top]:
            top = int(link[top])
            slope = (heights[top] - value) / (knots[top] - x) + curvature * (knots[top] + x)
        support[k] = slope
        link[k] = top


@_compiled
def _slide(line: NDArray[np.float64], curvature: float, scratch: NDArray[np.float64]) -> tuple[int, int]:
    """Replace a line by the surface that a parabola reaches from below.

    ImageJ looks for the smallest slope among all later knots, to far beyond the answer. `_find_support` tells when to
    stop, and only that: the slope itself, and which of two nearly equal ones wins, come from ImageJ's expressions.

    Args:
        line: (n,) grey values; changed in place. The ends stay as they are.
        curvature: The parabola's c, in grey values per squared step.
        scratch: (4, >= n) of any content.

    Returns:
        The touching points next to the line's first and last point; (n - 1, 0) if it touches nowhere between.
    """
    n = line.size
    if n < 3:
        return n - 1, 0
    knots, heights, support = scratch[0], scratch[1], scratch[2]
    count, lowest, highest = _find_knots(line, curvature, knots, heights)
    _find_support(knots[:count], heights[:count], curvature, support, scratch[3])
    # Rounding: a slope's error times its distance is below 4 half-ulps of (highest - lowest + 3 c n²), and along the
    # hull at most n of them add up. This is more than six times that sum.
    margin = 1e-14 * n * (highest - lowest + curvature * n * n)

    first_touch, last_touch = n - 1, 0
    start = 0
    while start < count - 1:
        x1 = knots[start]
        v1 = heights[start]
        slope = np.inf
        touch = start
        search_end = float(n)
        limit_at = 0
        k = start + 1
        while 0 <= k < count:  # the lower bound spares the compiler the handling of negative indices
            x2 = knots[k]
            if x2 >= search_end:
                break
            candidate = (heights[k] - v1) / (x2 - x1) + curvature * (x2 - x1)
            if candidate < slope:
                slope = candidate
                touch = k
                if slope + 2 * curvature * x1 + margin < support[k]:
                    break  # every later knot lies above this parabola, and asks for a larger slope
                limit_at = k + 3  # ImageJ's rule: bound the search three knots after the last improvement
            if k == limit_at:
                # Where this parabola has fallen to the line's lowest value nothing further can be touched.
                apex = 0.5 * slope / curvature
                reach = np.floor(apex + np.sqrt(apex * apex + (v1 - lowest) / curvature) + 1)
                if 0 < x1 + reach < search_end:
                    search_end = x1 + reach
            k += 1

        if start == 0:
            first_touch = int(knots[touch])
        if touch == count - 1:
            last_touch = int(x1)
        for i in range(int(x1) + 1, int(knots[touch])):
            d = i - x1
            line[i] = v1 + d * (slope - d * curvature)
        start = touch
    return first_touch, last_touch


@_compiled
def _extrapolate_ends(
    line: NDArray[np.float64], curvature: float, first_touch: int, last_touch: int
) -> tuple[float, float]:
    """Estimate the background at both ends of a line from its middle, should a bright object sit at an end.

    A straight line through the two touching points, lowered by a sixth-order polynomial where the line's middle third
    lies below it. A touching point further than a quarter of the line from its end counts as none.

    Args:
        line: (n,) grey values before `_slide`, n >= 2.
        curvature: As in `_slide`.
        first_touch: As `_slide` returned it.
        last_touch: As `_slide` returned it.

    Returns:
        Grey values of the background at the first and the last point.
    """
    n = line.size
    if 4 * first_touch >= n:
        first_touch = 0
    if 4 * (n - 1 - last_touch) >= n:
        last_touch = n - 1
    distance = last_touch - first_touch
    slope = (line[last_touch] - line[first_touch]) / distance
    intercept = line[first_touch] - slope * first_touch
    sixth = 0.0
    middle = 0.5 * (last_touch + first_touch)
    for i in range((n + 2) // 3, 2 * n // 3 + 1):
        x = (i - middle) * 2 / distance
        polynomial = x * x * x * x * x * x - 1
        if line[i] < intercept + slope * i + sixth * polynomial:
            sixth = -(intercept + slope * i - line[i]) / polynomial
    x = (first_touch - middle) * 2 / distance
    start = intercept + sixth * (x * x * x * x * x * x - 1) + curvature * first_touch * first_touch
    x = (last_touch - middle) * 2 / distance
    beyond = n - 1 - last_touch
    end = intercept + (n - 1) * slope + sixth * (x * x * x * x * x * x - 1) + curvature * beyond * beyond
    return start, end


@_compiled
def _lower_corners(surface: NDArray[np.float64], curvature: float) -> None:
    """Lower each corner, which no line passes from side to side, to the mean of what its three lines foretell there.

    Args:
        surface: (H, W) C-contiguous, H and W at least 2; changed in place, also along the four sides and the diagonals.
        curvature: The parabola's c along rows and columns, in grey values per squared pixel.
    """
    height, width = surface.shape
    pixels = surface.reshape(-1)
    diagonal = min(height, width)
    last_row = (height - 1) * width
    last = height * width - 1
    foretold = np.zeros(4)  # top left, top right, bottom left, bottom right
    scratch = np.empty((4, max(height, width)))
    # (first pixel, step, length, curvature's factor, the corner at its start, the corner at its end); a diagonal is
    # believed at its start only. Each line sees what the lines before it have left.
    for first, step, length, factor, start_corner, end_corner in (
        (0, 1, width, 1, 0, 1),
        (last_row, 1, width, 1, 2, 3),
        (0, width, height, 1, 0, 2),
        (width - 1, width, height, 1, 1, 3),
        (0, width + 1, diagonal, 2, 0, -1),
        (width - 1, width - 1, diagonal, 2, 1, -1),
        (last_row, 1 - width, diagonal, 2, 2, -1),
        (last, -1 - width, diagonal, 2, 3, -1),
    ):
        line = np.empty(length)
        for i in range(length):
            line[i] = pixels[first + i * step]
        slid = line.copy()
        first_touch, last_touch = _slide(slid, factor * curvature, scratch)
        for i in range(length):
            pixels[first + i * step] = slid[i]
        start, end = _extrapolate_ends(line, factor * curvature, first_touch, last_touch)
        foretold[start_corner] += start
        if end_corner >= 0:
            foretold[end_corner] += end
    for corner, pixel in enumerate((0, width - 1, last_row, last)):
        if foretold[corner] / 3 < pixels[pixel]:  # false for the NaN that a line of two pixels can give
            pixels[pixel] = foretold[corner] / 3


@_compiled
def _filter_rows(surface: NDArray[np.float64], curvature: float, first: int, last: int) -> None:
    """Slide along the rows from `first` up to, not including, `last` of the (H, W) surface, in place."""
    width = surface.shape[1]
    scratch = np.empty((4, width))
    for row in range(first, last):
        _slide(surface[row], curvature, scratch)


@_compiled
def _filter_columns(surface: NDArray[np.float64], curvature: float, shear: int, first: int, last: int) -> None:
    """Slide along columns or diagonals of the (H, W) surface, downwards, in place.

    A line is named by the column in which it meets, or would meet, row 0; in row y it is `shear` · y columns further
    right. Neighbouring lines are neighbours in every row: a block of them is copied into contiguous lines and back.

    Args:
        surface: (H, W) C-contiguous; changed in place.
        curvature: The parabola's c, in grey values per squared step.
        shear: 0 for columns, 1 for diagonals that run down to the right, -1 down to the left.
        first: The first line.
        last: One past the last line.
    """
    height, width = surface.shape
    lines = np.empty((_BLOCK, height + 8))  # 8: a power of two as stride would send all lines to the same cache sets
    scratch = np.empty((4, height))
    for block in range(first, last, _BLOCK):
        block_end = min(block + _BLOCK, last)
        for row in range(height):
            left = block + shear * row
            for i in range(max(0, -left), min(block_end - block, width - left)):
                lines[i, row] = surface[row, left + i]
        for name in range(block, block_end):
            top, bottom = 0, height
            if shear > 0:
                top, bottom = max(0, -name), min(height, width - name)
            elif shear < 0:
                top, bottom = max(0, name - width + 1), min(height, name + 1)
            _slide(lines[name - block, top:bottom], curvature, scratch)
            # ImageJ reaches the line through the top right corner from the top and again from the right side. In exact
            # arithmetic the second time would change nothing; in its last bits it may.
            if shear < 0 and name == width - 1:
                _slide(lines[name - block, top:bottom], curvature, scratch)
        for row in range(height):
            left = block + shear * row
            for i in range(max(0, -left), min(block_end - block, width - left)):
                surface[row, left + i] = lines[i, row]


@_compiled
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
        threads: Number of threads; the CPUs that this process may use if None. The result does not depend on it.

    Returns:
        (H, W) uint8, C-contiguous, a new array.

    Raises:
        ValueError: If the image is not two-dimensional, not uint8 or empty, or a number is out of its range.
    """
    if image.ndim != 2:
        raise ValueError(
            f"image has {image.ndim} dimensions (shape {image.shape}); it must have 2, (height, width): make it grey"
        )
    if image.dtype != np.uint8:
        raise ValueError(f"image has dtype {image.dtype}; it must be uint8: scale its grey values to 0–255 first")
    if image.size == 0:
        raise ValueError(f"image is empty (shape {image.shape}); its height and width must be at least 1")
    _require_whole("radius_px", radius_px, MAX_RADIUS_PX)
    if threads is None:
        threads = _usable_cpus()
    _require_whole("threads", threads, 1024)

    # The same call as the reference's: whichever way OpenCV rounds on this machine, both round alike.
    smooth = cast("NDArray[np.uint8]", cv2.filter2D(np.ascontiguousarray(image), -1, np.ones((3, 3), np.float64) / 9))
    surface = smooth.astype(np.float64)
    height, width = surface.shape
    along = 0.5 / int(radius_px)
    across = 1.0 / int(radius_px)  # a diagonal's step is √2 pixels long
    if min(height, width) >= 2:
        _lower_corners(surface, along)

    with ThreadPoolExecutor(threads, thread_name_prefix="rolling_ball") as pool:

        def in_bands(kernel: Callable[[int, int], None], first: int, last: int) -> None:
            """Run the kernel over the lines from first up to last: more bands than threads, since lines differ."""
            step = max(_MIN_BAND, -(-(last - first) // (4 * threads)))
            starts = range(first, last, step)
            for _ in pool.map(lambda start: kernel(start, min(start + step, last)), starts):
                pass

        def rows(first: int, last: int) -> None:
            _filter_rows(surface, along, first, last)

        def columns(first: int, last: int) -> None:
            _filter_columns(surface, along, 0, first, last)

        def falling(first: int, last: int) -> None:
            _filter_columns(surface, across, 1, first, last)

        def rising(first: int, last: int) -> None:
            _filter_columns(surface, across, -1, first, last)

        in_bands(rows, 0, height)
        in_bands(columns, 0, width)
        in_bands(rows, 0, height)
        # Diagonals shorter than three pixels have nothing between their ends.
        in_bands(falling, 3 - height, width - 2)
        in_bands(rising, 2, width + height - 3)
        in_bands(falling, 3 - height, width - 2)
        in_bands(lambda first, last: _subtract(smooth, surface, first, last), 0, height)
    return smooth


def warm_up() -> None:
    """Compile everything, or load it from numba's cache, so that the first radiograph does not wait for it."""
    subtract_background(np.zeros((3, 3), np.uint8), 1, threads=1)


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: honours taskset and the CPU sets of containers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_whole(name: str, value: int, highest: int) -> None:
    """Raise ValueError unless the value is a whole number from 1 to highest."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= highest:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {highest}")
