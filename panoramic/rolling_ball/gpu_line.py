"""One line under the sliding parabola, for a thread of a CUDA GPU: what `panoramic.rolling_ball.imagej` does.

A GPU's compiler joins a product and a sum into one instruction that rounds once (fused multiply-add), and numba has no
option against it (numba issue 2834). That would change last bits, and with them pixels. Every product, quotient and sum
that reaches the result is therefore written with libdevice's ``__nv_dmul_rn`` and its like, which the CUDA
documentation promises never to join, and which round as IEEE 754 says and a CPU does. What only bounds a search is not.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba.cuda.libdevice as untyped_libdevice
import numpy as np
from numba import config as untyped_config
from numba import cuda as untyped_cuda

# numba's modules claim to be typed, and are not.
config: Any = untyped_config
cuda: Any = untyped_cuda
libdevice: Any = untyped_libdevice

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _device(function: _Function) -> _Function:
    """Compile a function that kernels call."""
    return cast("_Function", cuda.jit(device=True)(function))


def _simulated_div(a: float, b: float) -> float:
    """Divide as a GPU does: by zero too."""
    with np.errstate(all="ignore"):
        return float(np.float64(a) / b)


#: Sum, product, quotient and square root, each rounded once to the nearest float64.
add: Callable[[float, float], float] = operator.add if config.ENABLE_CUDASIM else libdevice.dadd_rn
mul: Callable[[float, float], float] = operator.mul if config.ENABLE_CUDASIM else libdevice.dmul_rn
div: Callable[[float, float], float] = _simulated_div if config.ENABLE_CUDASIM else libdevice.ddiv_rn
root: Callable[[float], float] = math.sqrt if config.ENABLE_CUDASIM else libdevice.dsqrt_rn


# numba 0.68 cannot compile `min` and `max` of two numbers for a GPU.
@_device
def least(a: Any, b: Any) -> Any:
    """Return the smaller of two numbers."""
    return a if a < b else b  # noqa: FURB136


@_device
def most(a: Any, b: Any) -> Any:
    """Return the larger of two numbers."""
    return a if a > b else b  # noqa: FURB136


@_device
def _touching_slope(rise: float, distance: float, curvature: float) -> float:
    """Return the slope at its start of a parabola that touches two points `distance` apart."""
    return add(div(rise, distance), mul(curvature, distance))


@_device
def _find_support(
    line: Any, first: int, step: int, length: int, curvature: float, link: Any, support: Any
) -> tuple[float, float]:
    """Find the knots, and for each the slope of its supporting line, as `panoramic.rolling_ball.imagej` does.

    Args:
        line: Grey values; the line's points are at `first`, `first` + `step`, …
        first: Index of the line's first point, here and in `link` and `support`.
        step: From one point to the next.
        length: Number of points, at least 3.
        curvature: The parabola's c.
        link: Takes the number of the hull's next point; 0 for a point that is no knot.
        support: Takes the slopes; infinity for the last point.

    Returns:
        The line's lowest and highest value.
    """
    concavity = mul(1.999, curvature)
    ahead = length - 1
    after = line[first + ahead * step]
    value = line[first + (ahead - 1) * step]
    lowest = least(after, value)
    highest = most(after, value)
    support[first + ahead * step] = math.inf
    link[first + ahead * step] = ahead
    for back in range(2, length + 1):
        i = length - back
        before = value
        if i > 0:
            before = line[first + (i - 1) * step]
            lowest = least(lowest, before)
            highest = most(highest, before)
        if i > 0 and not value + value - before - after < concavity:
            link[first + i * step] = 0
        else:
            top = ahead
            slope = 0.0
            while True:
                rise = line[first + top * step] - value
                slope = add(div(rise, float(top - i)), mul(curvature, float(top + i)))
                if slope < support[first + top * step]:
                    break
                top = link[first + top * step]
            support[first + i * step] = slope
            link[first + i * step] = top
            ahead = i
        after = value
        value = before
    return lowest, highest


@_device
def slide(line: Any, first: int, step: int, length: int, curvature: float, link: Any, support: Any) -> tuple[int, int]:
    """Replace a line by the surface that a parabola reaches from below: `panoramic.rolling_ball.imagej.slide`.

    Args:
        line: Grey values, as for `_find_support`; changed in place.
        first: As for `_find_support`.
        step: As for `_find_support`.
        length: Number of points, at least 1.
        curvature: The parabola's c.
        link: Scratch.
        support: Scratch.

    Returns:
        The touching points next to the line's first and last point; (length - 1, 0) if it touches nowhere between.
    """
    first_touch, last_touch = length - 1, 0
    if length < 3:
        return first_touch, last_touch
    lowest, highest = _find_support(line, first, step, length, curvature, link, support)
    # Only bounds, here and where it is added: how they are rounded changes no result.
    margin = 1e-14 * length * (highest - lowest + curvature * length * length)
    start = 0
    while start < length - 1:
        v1 = line[first + start * step]
        slope = math.inf
        touch = start
        search_end = length
        since = 0
        i = start + 1
        while i < search_end:
            at = first + i * step
            if link[at] > 0:
                d = float(i - start)
                candidate = _touching_slope(line[at] - v1, d, curvature)
                if candidate < slope:
                    slope = candidate
                    touch = i
                    if slope + 2 * curvature * start + margin < support[at]:
                        break
                    since = -3
                if since == 0:
                    apex = div(0.5 * slope, curvature)
                    half_width = root(add(mul(apex, apex), div(v1 - lowest, curvature)))
                    reach = math.floor(add(add(apex, half_width), 1.0))
                    if 0 < start + reach < search_end:
                        search_end = int(start + reach)
                since += 1
            i += 1
        if start == 0:
            first_touch = touch
        if touch == length - 1:
            last_touch = start
        for i in range(start + 1, touch):
            d = float(i - start)
            line[first + i * step] = add(v1, mul(d, add(slope, -mul(d, curvature))))
        start = touch
    return first_touch, last_touch


@_device
def _sixth_power_less_one(x: float) -> float:
    """Return x⁶ - 1 in the reference's order."""
    power = mul(mul(mul(mul(mul(x, x), x), x), x), x)
    return add(power, -1.0)


@_device
def extrapolate_ends(
    line: Any, length: int, curvature: float, first_touch: int, last_touch: int
) -> tuple[float, float]:
    """Estimate the background at both ends of a line: `panoramic.rolling_ball.imagej.extrapolate_ends`."""
    if 4 * first_touch >= length:
        first_touch = 0
    if 4 * (length - 1 - last_touch) >= length:
        last_touch = length - 1
    distance = float(last_touch - first_touch)
    slope = div(line[last_touch] - line[first_touch], distance)
    intercept = add(line[first_touch], -mul(slope, float(first_touch)))
    sixth = 0.0
    middle = mul(0.5, float(last_touch + first_touch))
    for i in range((length + 2) // 3, 2 * length // 3 + 1):
        polynomial = _sixth_power_less_one(div((i - middle) * 2, distance))
        straight = add(intercept, mul(slope, float(i)))
        if line[i] < add(straight, mul(sixth, polynomial)):
            sixth = div(-(straight - line[i]), polynomial)
    bent = _sixth_power_less_one(div((first_touch - middle) * 2, distance))
    arc = mul(mul(curvature, float(first_touch)), float(first_touch))
    start = add(add(intercept, mul(sixth, bent)), arc)
    bent = _sixth_power_less_one(div((last_touch - middle) * 2, distance))
    beyond = float(length - 1 - last_touch)
    arc = mul(mul(curvature, beyond), beyond)
    end = add(add(add(intercept, mul(float(length - 1), slope)), mul(sixth, bent)), arc)
    return start, end
