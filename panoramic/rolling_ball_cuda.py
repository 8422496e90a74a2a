"""The rolling ball on a CUDA GPU: several pictures at once, equal in every pixel to `panoramic.rolling_ball`.

One thread slides along one line, and neighbouring threads along neighbouring lines: the grey values that they read
together lie together in memory for columns and for both families of diagonals, and for rows in a transposed copy.
Along its line each thread does what `panoramic.rolling_ball.imagej` does; `panoramic.rolling_ball.gpu_line` says how
its last bits are kept. Smoothing, the corners, transposition and subtraction are kernels too, so that only 8-bit
pictures travel to the GPU and back.

The first call compiles the kernels, which takes seconds. Under ``NUMBA_ENABLE_CUDASIM=1`` they run in numba's
simulator, in Python, for tests on small pictures.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from panoramic.rolling_ball import check_picture
from panoramic.rolling_ball.gpu_line import add, config, cuda, div, extrapolate_ends, least, most, slide

#: Threads of a block along a line's neighbours: two warps, so that few lines still spread over many processors.
_THREADS: Final = 64

#: Side of the square tiles that a block takes where points are independent, and rows of threads that share a tile: one
#: in the simulator, where each is a thread of the operating system.
_TILE: Final = 32
_PADDED: Final = _TILE + 1
_TILE_ROWS: Final = 1 if config.ENABLE_CUDASIM else 8

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _kernel(function: _Function) -> Any:
    """Compile a kernel on its first launch."""
    return cuda.jit(function)


@_kernel
def _smooth(pictures: Any, sizes: Any, smooth: Any, surface: Any) -> None:
    """Take the 3×3 mean of every picture, mirrored at its edges, rounded (a ninth is never half way).

    Args:
        pictures: (N, H, W) uint8.
        sizes: (N, 2) int32: heights and widths within H and W.
        smooth: (N, H, W) uint8, takes the means.
        surface: (N, H, W) float64, takes the means.
    """
    picture = cuda.blockIdx.z
    height, width = sizes[picture, 0], sizes[picture, 1]
    column = cuda.blockIdx.x * _TILE + cuda.threadIdx.x
    if column >= width:
        return
    for i in range(cuda.threadIdx.y, _TILE, _TILE_ROWS):
        row = cuda.blockIdx.y * _TILE + i
        if row >= height:
            return
        total = 0
        for down in range(-1, 2):
            y = abs(row + down)
            y = least(y, most(0, 2 * height - 2 - y))
            for right in range(-1, 2):
                x = abs(column + right)
                x = least(x, most(0, 2 * width - 2 - x))
                total += int(pictures[picture, y, x])
        mean = (2 * total + 9) // 18
        smooth[picture, row, column] = mean
        surface[picture, row, column] = float(mean)


@_kernel
def _lower_corners(
    surfaces: Any, sides: Any, foretold: Any, curvature: float, scratches: Any, links: Any, supports: Any
) -> None:
    """Correct every picture's corners, a thread a picture: `panoramic.rolling_ball.corners.lower_corners`.

    Args:
        surfaces: (N, H · W) float64, changed in place.
        sides: (N, 8, 5) int32, as from `_sides`.
        foretold: (N, 4) float64, zeros.
        curvature: The parabola's c along rows and columns.
        scratches: (N, H · W) float64.
        links: (N, H · W) int32, scratch.
        supports: (N, H · W) float64, scratch.
    """
    picture = cuda.grid(1)
    if picture >= sides.shape[0]:
        return
    surface, line, sums = surfaces[picture], scratches[picture], foretold[picture]
    for side in range(8):
        first, step, length = sides[picture, side, 0], sides[picture, side, 1], sides[picture, side, 2]
        start_corner, end_corner = sides[picture, side, 3], sides[picture, side, 4]
        if length == 0:
            return
        c = curvature if end_corner >= 0 else 2.0 * curvature
        # One after the other in the scratch array: what the line was, which the estimate needs, and what it becomes.
        for i in range(length):
            line[i] = surface[first + i * step]
            line[length + i] = line[i]
        first_touch, last_touch = slide(line, length, 1, length, c, links[picture], supports[picture])
        for i in range(length):
            surface[first + i * step] = line[length + i]
        start, end = extrapolate_ends(line, length, c, first_touch, last_touch)
        sums[start_corner] = add(sums[start_corner], start)
        if end_corner >= 0:
            sums[end_corner] = add(sums[end_corner], end)
    for corner in range(4):
        pixel = sides[picture, 4 + corner, 0]
        mean = div(sums[corner], 3.0)
        if mean < surface[pixel]:  # false for the NaN that a line of two pixels can give
            surface[pixel] = mean


@_kernel
def _slide_columns(
    surfaces: Any, sizes: Any, axis: int, stride: int, shear: int, curvature: float, links: Any, supports: Any
) -> None:
    """Slide along the columns or diagonals of every picture, a thread a line.

    A line is named by the column in which it meets, or would meet, row 0, as in `panoramic.rolling_ball.envelope`.

    Args:
        surfaces: (N, H · W) float64, changed in place.
        sizes: (N, 2) int32: heights and widths.
        axis: Which of them is the height here: 0, or 1 for transposed pictures.
        stride: Elements from one row to the next.
        shear: 0 for columns, 1 for diagonals that run down to the right, -1 down to the left.
        curvature: The parabola's c.
        links: (N, H · W) int32, scratch.
        supports: (N, H · W) float64, scratch.
    """
    picture = cuda.blockIdx.y
    height, width = sizes[picture, axis], sizes[picture, 1 - axis]
    name = cuda.grid(1)
    top, bottom = 0, height
    if shear > 0:
        name -= height
        top, bottom = most(0, -name), least(height, width - name)
    elif shear < 0:
        top, bottom = most(0, name - width + 1), least(height, name + 1)
    elif name >= width:
        return
    length = bottom - top
    if length < 3:
        return
    first = top * stride + name + shear * top
    # ImageJ reaches the line through the top right corner from the top and again from the right side.
    times = 2 if shear < 0 and name == width - 1 else 1
    for _ in range(times):
        slide(surfaces[picture], first, stride + shear, length, curvature, links[picture], supports[picture])


@_kernel
def _transpose(source: Any, target: Any) -> None:
    """Transpose every picture, by tiles in shared memory, so that reading and writing are both along rows.

    Args:
        source: (N, H, W) float64.
        target: (N, W, H) float64.
    """
    tile = cuda.shared.array((_TILE, _PADDED), np.float64)  # one more: a column then lies in all memory banks
    picture = cuda.blockIdx.z
    across, down = cuda.threadIdx.x, cuda.threadIdx.y
    left, top = cuda.blockIdx.x * _TILE, cuda.blockIdx.y * _TILE
    for i in range(down, _TILE, _TILE_ROWS):
        if top + i < source.shape[1] and left + across < source.shape[2]:
            tile[i, across] = source[picture, top + i, left + across]
    cuda.syncthreads()
    for i in range(down, _TILE, _TILE_ROWS):
        if left + i < source.shape[2] and top + across < source.shape[1]:
            target[picture, left + i, top + across] = tile[across, i]


@_kernel
def _subtract(smooth: Any, surface: Any) -> None:
    """Subtract the background from every picture, rounding half up, clipped to 0–255.

    Args:
        smooth: (N, H, W) uint8, changed in place.
        surface: (N, H, W) float64, the background.
    """
    picture = cuda.blockIdx.z
    column = cuda.blockIdx.x * _TILE + cuda.threadIdx.x
    for i in range(cuda.threadIdx.y, _TILE, _TILE_ROWS):
        row = cuda.blockIdx.y * _TILE + i
        if row < smooth.shape[1] and column < smooth.shape[2]:
            value = float(smooth[picture, row, column]) - surface[picture, row, column] + 0.5
            smooth[picture, row, column] = int(least(most(value, 0.0), 255.0))


def _sides(height: int, width: int, stride: int) -> list[tuple[int, int, int, int, int]]:
    """List the lines that foretell a picture's corners, in ImageJ's order; of length 0 where it has no corners.

    Returns:
        First pixel, step, length, the corner at the start, the corner at the end; the last is -1 for a diagonal, which
        is believed at its start only. Corners are numbered top left, top right, bottom left, bottom right.
    """
    if min(height, width) < 2:
        return [(0, 0, 0, 0, 0)] * 8
    right, bottom = width - 1, (height - 1) * stride
    diagonal = min(height, width)
    return [
        (0, 1, width, 0, 1),
        (bottom, 1, width, 2, 3),
        (0, stride, height, 0, 2),
        (right, stride, height, 1, 3),
        (0, stride + 1, diagonal, 0, -1),
        (right, stride - 1, diagonal, 1, -1),
        (bottom, 1 - stride, diagonal, 2, -1),
        (bottom + right, -1 - stride, diagonal, 3, -1),
    ]


def is_available() -> bool:
    """Return whether numba finds a CUDA GPU that this process may use."""
    return bool(cuda.is_available())


def subtract_background_batch(pictures: Sequence[NDArray[np.uint8]], radius_px: int = 180) -> list[NDArray[np.uint8]]:
    """Smooth radiographs with a 3×3 mean and subtract their background, all at once on the current GPU.

    Equal in every pixel to `panoramic.rolling_ball.subtract_background`, picture by picture. It takes thirty
    bytes of the GPU's memory for every pixel of as many pictures of the largest height and the largest width: 0.9 GB
    for eight of 1270×2800.

    Args:
        pictures: (H, W) grey values, uint8, each of its own size; any memory layout; not modified.
        radius_px: As for `panoramic.rolling_ball.subtract_background`.

    Returns:
        The pictures' foregrounds in the same order, (H, W) uint8.

    Raises:
        ValueError: If a picture or the radius is not one that `panoramic.rolling_ball.subtract_background` takes.
        RuntimeError: If there is no GPU.
    """
    for picture in pictures:
        check_picture(picture, radius_px)
    if not is_available():
        raise RuntimeError(
            "numba finds no CUDA GPU and driver; use panoramic.rolling_ball.subtract_background, which needs none"
        )
    if not pictures:
        return []
    along, across = 0.5 / int(radius_px), 1.0 / int(radius_px)
    heights, widths = zip(*(picture.shape for picture in pictures), strict=True)
    count, height, width = len(pictures), max(heights), max(widths)
    batch = np.zeros((count, height, width), np.uint8)
    for place, picture in zip(batch, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
    sizes = cuda.to_device(np.array([heights, widths], np.int32).T.copy())
    smooth = cuda.to_device(batch)
    surface = cuda.device_array((count, height, width), np.float64)
    turned = cuda.device_array((count, width, height), np.float64)
    links = cuda.device_array((count, height * width), np.int32)
    supports = cuda.device_array((count, height * width), np.float64)
    rows, columns = turned.reshape(count, height * width), surface.reshape(count, height * width)

    tiles = (-(-width // _TILE), -(-height // _TILE), count)
    tiles_turned = (tiles[1], tiles[0], count)
    threads = (_TILE, _TILE_ROWS)

    def slide(surfaces: Any, lines: int, axis: int, stride: int, shear: int, curvature: float) -> None:
        _slide_columns[(-(-lines // _THREADS), count), _THREADS](
            surfaces, sizes, axis, stride, shear, curvature, links, supports
        )

    def slide_along_rows() -> None:
        _transpose[tiles, threads](surface, turned)
        slide(rows, height, 1, height, 0, along)
        _transpose[tiles_turned, threads](turned, surface)

    means = cuda.device_array((count, height, width), np.uint8)
    _smooth[tiles, threads](smooth, sizes, means, surface)
    sides = np.array([_sides(*shape, width) for shape in zip(heights, widths, strict=True)], np.int32)
    foretold = cuda.to_device(np.zeros((count, 4)))
    _lower_corners[count, 1](columns, cuda.to_device(sides), foretold, along, rows, links, supports)
    slide_along_rows()
    slide(columns, width, 0, width, 0, along)
    slide_along_rows()
    for shear in (1, -1, 1):
        slide(columns, width + height, 0, width, shear, across)
    _subtract[tiles, threads](means, surface)
    result = means.copy_to_host()
    return [result[i, : heights[i], : widths[i]].copy() for i in range(count)]
