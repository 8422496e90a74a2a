"""One line under the sliding parabola, by ImageJ's own search for the next touching point, in its own arithmetic.

A parabola z(d) = -c d² touches two points d apart, of heights v1 and v2, if its slope at the first is
(v2 - v1)/d + c d; from the line's first point onwards, the next point touched is the one that asks for the smallest
slope. Between the two, the background is that parabola.

Every expression that reaches the result is evaluated in float64 and in the order of the PyPI package
``opencv-rolling-ball`` 1.0.1. This is the slow and certain way: the few lines at the picture's corners go through it,
and those that `panoramic.rolling_ball.envelope` refuses.
"""

import numpy as np
from numpy.typing import NDArray

from panoramic.compiling import compiled


@compiled
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


@compiled
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


@compiled
def slide(line: NDArray[np.float64], curvature: float, scratch: NDArray[np.float64]) -> tuple[int, int]:
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


@compiled
def extrapolate_ends(
    line: NDArray[np.float64], curvature: float, first_touch: int, last_touch: int
) -> tuple[float, float]:
    """Estimate the background at both ends of a line from its middle, should a bright object sit at an end.

    A straight line through the two touching points, lowered by a sixth-order polynomial where the line's middle third
    lies below it. A touching point further than a quarter of the line from its end counts as none.

    Args:
        line: (n,) grey values before `slide`, n >= 2.
        curvature: As in `slide`.
        first_touch: As `slide` returned it.
        last_touch: As `slide` returned it.

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


@compiled
def slide_along(
    pixels: NDArray[np.float64],
    curvature: float,
    firsts: NDArray[np.int64],
    step: int,
    lengths: NDArray[np.int64],
) -> None:
    """Slide along several lines of a picture, in place.

    Args:
        pixels: (H · W,) grey values, row after row.
        curvature: The parabola's c, in grey values per squared step.
        firsts: (k,) each line's first pixel.
        step: From each pixel of a line to its next.
        lengths: (k,) each line's number of pixels, at least 1.
    """
    for k in range(firsts.size):
        length = lengths[k]
        line = np.empty(length)
        for i in range(length):
            line[i] = pixels[firsts[k] + i * step]
        slide(line, curvature, np.empty((4, length)))
        for i in range(length):
            pixels[firsts[k] + i * step] = line[i]
