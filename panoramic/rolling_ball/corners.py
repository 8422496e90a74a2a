"""The correction of the picture's corners, which no line passes from side to side."""

import numpy as np
from numpy.typing import NDArray

from panoramic.rolling_ball.imagej import extrapolate_ends, slide


def lower_corners(surface: NDArray[np.float64], curvature: float) -> None:
    """Lower each corner to the mean of what its row, its column and its diagonal foretell there.

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
        (0, width + 1, diagonal, 2, 0, None),
        (width - 1, width - 1, diagonal, 2, 1, None),
        (last_row, 1 - width, diagonal, 2, 2, None),
        (last, -1 - width, diagonal, 2, 3, None),
    ):
        places = first + step * np.arange(length)
        line = pixels[places]
        slid = line.copy()
        first_touch, last_touch = slide(slid, factor * curvature, scratch)
        pixels[places] = slid
        start, end = extrapolate_ends(line, factor * curvature, first_touch, last_touch)
        foretold[start_corner] += start
        if end_corner is not None:
            foretold[end_corner] += end
    corners = np.array([0, width - 1, last_row, last])
    lower = foretold / 3 < pixels[corners]  # false for the NaN that a line of two pixels can give
    pixels[corners[lower]] = foretold[lower] / 3
