"""The background along many lines at once, by convex hulls, where rounding cannot change which points are touched.

With c x² added to the grey values the parabolas of `panoramic.rolling_ball` become straight lines and the background
the lower convex hull, which is far cheaper to find than to search for each next touching point as ImageJ does. But
ImageJ's choice between two nearly equal slopes hangs on their last bits, and must be met. So the hull only proposes:

1. *Knots*, the points that ImageJ may touch, are told apart by its own test.
2. Knots above the chord of their neighbours are dropped, all at once and a few times over; Andrew's monotone chain
   (A. M. Andrew, Inf. Process. Lett. 9(5), 1979) finishes the hull.
3. Between the hull's vertices the background is evaluated by ImageJ's expression.
4. Where every other knot lies clearly above that, and the hull bends clearly at every vertex, each slope of ImageJ's
   from a vertex to the next is smaller than its slopes to all other knots by more than their rounding errors: it
   touches the same points. `tolerance` says what is clear. Around each vertex and knot of which this is not true,
   its own search is repeated, over the few knots that can come into question.

A line where even that leaves a doubt is refused, and left for `panoramic.rolling_ball.imagej`.

Steps 1, 3 and 4 are the same for all points, without a branch, so that the compiler turns them into vector
instructions. Columns and diagonals are taken `BLOCK` at a time, side by side as they lie in memory: point r of lane q
is row r, column q of a small array that stays in the second-level cache, and nothing is transposed.
"""

import numpy as np
from numpy.typing import NDArray

from panoramic.compiling import compiled_from
from panoramic.rolling_ball import prefetching
from panoramic.rolling_ball.prefetching import prefetch

_compiled = compiled_from(prefetching)

#: Columns or diagonals taken together: four cache lines of float64 from each row. Half as many leave most of a cache
#: line unused where a diagonal's lines do not begin on its border; twice as many outgrow the second-level cache.
BLOCK = 32

#: Points along a row evaluated together; the last of them may lie beyond the next vertex, and are written again.
_CHUNK = 8

#: How many rows ahead memory is fetched: half as many and twice as many do as well.
_ROWS_AHEAD = 8

#: Marks of a point: it is a knot; it is one that, were it not for rounding, might be touched though no vertex.
_KNOT, _NEAR = 1, 2


def tolerance(length: int, curvature: float, lowest: float, highest: float) -> float:
    """Return how far a knot must be above the background, and a slope above another, to be clearly so.

    Rounding, with n the length, R and M the values' range and largest magnitude, and u = 2⁻⁵³: the hull's vertices and
    the knots dropped for it are right within 5 n u (M + c n²), a slope times its distance within 4 u (R + c n²).
    ImageJ bounds its search where the parabola has fallen to the line's lowest value; it finds that place within
    12 u ((R + c n) / 2c + n), which moves the parabola there by that times its greatest slope, R + 3 c n. The factors
    below are more than ten times these.

    Args:
        length: The longest line, in points.
        curvature: The parabola's c, in grey values per squared step.
        lowest: Lower bound of all values on the lines.
        highest: Upper bound of them.

    Returns:
        Grey values, or grey values per step.
    """
    spread, magnitude = highest - lowest, max(abs(lowest), abs(highest))
    bound_of_search = (spread + curvature * length) / (2 * curvature) + length
    return (
        1e-14 * length * (magnitude + curvature * length * length)
        + 1.6e-14 * (spread + 3 * curvature * length) * bound_of_search
    )


@_compiled
def _mark_knots(values: NDArray[np.float64], stride: int, curvature: float, marks: NDArray[np.uint8]) -> None:
    """Mark the points, but for the first and last of each line, where the line is less concave than the parabola.

    Args:
        values: (n · stride,) grey values of `stride` lines of n points, side by side.
        stride: The number of lines.
        curvature: The parabola's c.
        marks: (n · stride,) takes `_KNOT` or 0; its first and last `stride` entries stay as they are.
    """
    # Not 2: after an earlier pass many points lie on a parabola of exactly this curvature; its ends are knots enough.
    concavity = 1.999 * curvature
    for i in range(values.size - 2 * stride):
        value = values[i + stride]
        marks[i + stride] = value + value - values[i] - values[i + 2 * stride] < concavity


@_compiled
def _find_hull(places: NDArray[np.float64], lifted: NDArray[np.float64], count: int, kept: NDArray[np.uint8]) -> int:
    """Keep the vertices of the lower convex hull of some points.

    Args:
        places: (>= count,) the points' abscissae, ascending; the vertices' on return.
        lifted: (>= count,) their ordinates, c x² added; the vertices' on return.
        count: The number of points, at least 2.
        kept: (>= count,) scratch.

    Returns:
        The number of vertices.
    """
    while True:
        # A point above a chord between others cannot be a vertex, whatever becomes of those: look at the chords
        # between its two neighbours on either side.
        for i in range(count - 4):
            place, value = places[i + 2], lifted[i + 2]
            d1, z1 = place - places[i + 1], value - lifted[i + 1]
            d2, z2 = place - places[i], value - lifted[i]
            d3, z3 = places[i + 3] - place, lifted[i + 3] - value
            d4, z4 = places[i + 4] - place, lifted[i + 4] - value
            kept[i + 2] = (z1 * d3 < z3 * d1) & (z2 * d4 < z4 * d2) & (z1 * d4 < z4 * d1) & (z2 * d3 < z3 * d2)
        kept[1] = 1
        kept[count - 2] = 1
        kept[count - 1] = 1
        before, count = count, 1
        for i in range(1, before):
            places[count] = places[i]
            lifted[count] = lifted[i]
            count += kept[i]
        if 4 * (before - count) < before:
            break
    top = 0
    for i in range(1, count):
        place, value = places[i], lifted[i]
        while top > 0 and (lifted[top] - lifted[top - 1]) * (place - places[top]) >= (value - lifted[top]) * (
            places[top] - places[top - 1]
        ):
            top -= 1
        top += 1
        places[top] = place
        lifted[top] = value
    return top + 1


@_compiled
def _search(
    lines: NDArray[np.float64],
    marks: NDArray[np.uint8],
    lane: int,
    start: int,
    stop: int,
    end: int,
    lowest: float,
    curvature: float,
) -> tuple[int, float]:
    """Find the next touching point as ImageJ does, if it is known to be no later than `stop`.

    Args:
        lines: (n, lanes) grey values.
        marks: (n, lanes) as from `_mark_knots`.
        lane: The line's column.
        start: The touching point to start from.
        stop: The last point to look at, a knot or the line's last point.
        end: One past the line's last point.
        lowest: The line's lowest value.
        curvature: The parabola's c.

    Returns:
        The point and ImageJ's slope to it.
    """
    v1 = lines[start, lane]
    slope = np.inf
    touch = start
    search_end = end
    since = 0
    for i in range(start + 1, stop + 1):
        if i >= search_end:
            break
        if marks[i, lane] & _KNOT == 0 and i != end - 1:
            continue
        d = float(i - start)
        candidate = (lines[i, lane] - v1) / d + curvature * d
        if candidate < slope:
            slope = candidate
            touch = i
            since = -3  # ImageJ's rule: bound the search three knots after the last improvement
        if since == 0:
            # Where this parabola has fallen to the line's lowest value nothing further can be touched.
            apex = 0.5 * slope / curvature
            reach = np.floor(apex + np.sqrt(apex * apex + (v1 - lowest) / curvature) + 1)
            if 0 < start + reach < search_end:
                search_end = int(start + reach)
        since += 1
    return touch, slope


@_compiled
def _furthest_rival(
    lines: NDArray[np.float64],
    lane: int,
    vertices: NDArray[np.float64],
    ahead: int,
    start: int,
    curvature: float,
    clear: float,
) -> tuple[int, float]:
    """Find the first vertex beyond which the hull rises clearly faster: no later knot asks for a smaller slope.

    Args:
        lines: (n, lanes) grey values.
        lane: The line's column.
        vertices: (m,) the hull's, as rows of `lines`.
        ahead: The number of the first vertex after `start`.
        start: The touching point to search from.
        curvature: The parabola's c.
        clear: As from `tolerance`.

    Returns:
        The vertex's row, and the hull's slope beyond it, c x² added with x counted from `start`; infinity at the end.
    """
    d = vertices[ahead] - start
    slope = (lines[int(vertices[ahead]), lane] - lines[start, lane]) / d + curvature * d
    for k in range(ahead, vertices.size - 1):
        here, there = vertices[k], vertices[k + 1]
        rise = (lines[int(there), lane] - lines[int(here), lane]) / (there - here)
        rise += curvature * ((there - start) + (here - start))
        if rise > slope + 2 * clear:
            return int(here), rise
    return int(vertices[vertices.size - 1]), np.inf


@_compiled
def _settle_doubts(
    lines: NDArray[np.float64],
    marks: NDArray[np.uint8],
    background: NDArray[np.float64],
    lane: int,
    vertices: NDArray[np.float64],
    doubtful: NDArray[np.uint8],
    curvature: float,
    clear: float,
) -> bool:
    """Repeat ImageJ's search wherever rounding might decide it, and evaluate the background there again.

    Args:
        lines: (n, lanes) grey values.
        marks: (n, lanes) as from `_mark_knots`; other bits are ignored.
        background: (n, lanes) as the hull gives it; corrected in place.
        lane: The line's column.
        vertices: (m,) the hull's, as rows of `lines`; the first and last are the line's ends.
        doubtful: (m,) 1 for each vertex from which the next touching point may be another than the next vertex.
        curvature: The parabola's c.
        clear: As from `tolerance`.

    Returns:
        Whether all doubts were settled; if not, the background is worthless.
    """
    last = vertices.size - 1
    doubts = 0
    for k in range(last):
        doubts += doubtful[k]
    if doubts > 16 + last // 8:  # so flat a parabola that nothing is clear
        return False
    lowest = lines[int(vertices[last]), lane]
    for k in range(last):  # the line's lowest point is among the vertices: a parabola's apex reaches it
        lowest = min(lowest, lines[int(vertices[k]), lane])

    k = 0
    start = int(vertices[0])
    end = int(vertices[last]) + 1
    while start < end - 1:
        while vertices[k] < start:
            k += 1
        ahead = k
        if vertices[k] == start:
            while k < last and not doubtful[k]:
                k += 1
            if k == last:
                break
            start = int(vertices[k])
            ahead = k + 1
        stop, rise = _furthest_rival(lines, lane, vertices, ahead, start, curvature, clear)
        touch, slope = _search(lines, marks, lane, start, stop, end, lowest, curvature)
        if not rise > slope + clear:
            return False
        v1 = lines[start, lane]
        for i in range(start, touch):
            d = float(i - start)
            background[i, lane] = v1 + d * (slope - d * curvature)
        start = touch
    return True


@_compiled
def slide_along_rows(surface: NDArray[np.float64], curvature: float, clear: float, first: int, last: int) -> list[int]:
    """Slide along the rows from `first` up to, not including, `last`, in place.

    Args:
        surface: (H, W) C-contiguous grey values; W at least 3.
        curvature: The parabola's c, in grey values per squared step.
        clear: As from `tolerance`.
        first: The first row.
        last: One past the last row.

    Returns:
        The rows that were refused, and are as before.
    """
    width = surface.shape[1]
    places = np.empty(width)
    lifted = np.empty(width)
    background = np.empty(width + _CHUNK)
    marks = np.zeros(width, np.uint8)
    scratch = np.empty(width, np.uint8)
    doubtful = np.empty(width, np.uint8)
    only_lane = int(np.int64(0))  # for a literal 0 numba would compile everything that takes a lane once more
    refused = [first for _ in range(0)]
    for row in range(first, last):
        line = surface[row]
        _mark_knots(line, 1, curvature, marks)
        marks[width - 1] = _KNOT  # the last point is on the hull; unmarked again below
        count = 1
        places[0] = 0
        lifted[0] = line[0]
        for i in range(1, width):
            d = float(i)
            places[count] = d
            lifted[count] = line[i] + curvature * d * d
            count += marks[i]
        marks[width - 1] = 0
        count = _find_hull(places, lifted, count, scratch)

        doubts = 0
        slope_before = -np.inf
        for k in range(count - 1):
            x1 = places[k]
            d = places[k + 1] - x1
            here, there = int(x1), int(places[k + 1])
            v1 = line[here]
            slope = (line[there] - v1) / d + curvature * d
            doubtful[k] = 0
            straight = not slope > slope_before
            doubtful[max(k - 1, 0)] |= straight
            doubts += straight
            slope_before = slope - 2 * curvature * d + clear
            for i in range(here, there, _CHUNK):
                for j in range(_CHUNK):
                    d = float(i + j) - x1
                    background[i + j] = v1 + d * (slope - d * curvature)
        background[width - 1] = line[width - 1]

        near = 0
        for i in range(width):
            near += marks[i] & (line[i] - background[i] <= clear)
        if near != count - 2:  # not the inner vertices alone
            for k in range(count - 1):
                for i in range(int(places[k]) + 1, int(places[k + 1])):
                    doubtful[k] |= marks[i] & (line[i] - background[i] <= clear)
        if (doubts > 0 or near != count - 2) and not _settle_doubts(
            line.reshape(-1, 1),
            marks.reshape(-1, 1),
            background.reshape(-1, 1),
            only_lane,
            places[:count],
            doubtful[:count],
            curvature,
            clear,
        ):
            refused.append(row)
            continue
        for i in range(width):
            line[i] = background[i]
    return refused


@_compiled
def _spread_pieces(
    lines: NDArray[np.float64],
    pieces: NDArray[np.float64],
    heights: NDArray[np.float64],
    steps: NDArray[np.float64],
    marks: NDArray[np.uint8],
    curvature: float,
    clear: float,
) -> None:
    """Evaluate the background of `BLOCK` lines side by side, each piece from its vertex on.

    Args:
        lines: (n · `BLOCK`,) grey values.
        pieces: (n · `BLOCK`,) at each vertex the slope from there on, elsewhere NaN; takes the background.
        heights: (n · `BLOCK`,) scratch.
        steps: (n · `BLOCK`,) scratch.
        marks: (n · `BLOCK`,) as from `_mark_knots`; takes `_NEAR` at knots near the background that are no vertices.
        curvature: The parabola's c.
        clear: As from `tolerance`.
    """
    for i in range(BLOCK):
        heights[i] = lines[i]
        steps[i] = 0.0
    for i in range(lines.size - BLOCK):
        slope = pieces[i + BLOCK]
        within = np.isnan(slope)
        pieces[i + BLOCK] = pieces[i] if within else slope
        heights[i + BLOCK] = heights[i] if within else lines[i + BLOCK]
        steps[i + BLOCK] = steps[i] + 1.0 if within else 0.0
    for i in range(lines.size):
        d = steps[i]
        value = heights[i] + d * (pieces[i] - d * curvature)
        pieces[i] = value
        marks[i] += (marks[i] & (d > 0) & (lines[i] - value <= clear)) * _NEAR


@_compiled
def _ends(name: int, shear: int, height: int, width: int) -> tuple[int, int]:
    """Return the first row of a line, named as in `slide_along_columns`, and one past its last."""
    if shear > 0:
        return max(0, -name), min(height, width - name)
    if shear < 0:
        return max(0, name - width + 1), min(height, name + 1)
    return 0, height


@_compiled
def _copy_block(
    surface: NDArray[np.float64], lines: NDArray[np.float64], block: int, lanes: int, shear: int, back: bool
) -> None:
    """Copy the lines `block`, `block` + 1, … between the surface and an array, where each is a column.

    Args:
        surface: (H, W) grey values.
        lines: (H, `BLOCK`); rows that the lines do not reach, and columns beyond `lanes`, are of any content.
        block: The first line's name.
        lanes: The number of lines, at most `BLOCK`.
        shear: As in `slide_along_columns`.
        back: Whether to copy to the surface.
    """
    height, width = surface.shape
    one_end, other_end = _ends(block, shear, height, width), _ends(block + lanes - 1, shear, height, width)
    for row in range(min(one_end[0], other_end[0]), max(one_end[1], other_end[1])):
        left = block + shear * row
        line = lines[row]
        if 0 <= left <= width - BLOCK and lanes == BLOCK:
            ahead = min(row + _ROWS_AHEAD, height - 1)
            for lane in range(0, BLOCK, _CHUNK):
                prefetch(surface, ahead, left + shear * _ROWS_AHEAD + lane)
            prefetch(surface, ahead, left + shear * _ROWS_AHEAD + BLOCK - 1)
            pixels = surface[row, left : left + BLOCK]
            if back:
                for lane in range(BLOCK):
                    pixels[lane] = line[lane]
            else:
                for lane in range(BLOCK):
                    line[lane] = pixels[lane]
        else:
            for lane in range(max(0, -left), min(lanes, width - left)):
                if back:
                    surface[row, left + lane] = line[lane]
                else:
                    line[lane] = surface[row, left + lane]


@_compiled
def _any_near(marks: NDArray[np.uint8]) -> bool:
    """Return whether any of `BLOCK` marks has `_NEAR`."""
    either = 0
    for lane in range(BLOCK):
        either |= marks[lane]
    return either & _NEAR != 0


@_compiled
def _find_pieces(
    lines: NDArray[np.float64],
    marks: NDArray[np.uint8],
    pieces: NDArray[np.float64],
    lane: int,
    begin: int,
    end: int,
    curvature: float,
    clear: float,
    vertices: NDArray[np.float64],
    doubtful: NDArray[np.uint8],
    lifted: NDArray[np.float64],
) -> tuple[int, int]:
    """Find the hull of one of several lines side by side, and ImageJ's slope from each vertex to the next.

    Args:
        lines: (H, `BLOCK`) grey values.
        marks: (H, `BLOCK`) as from `_mark_knots`.
        pieces: (H, `BLOCK`) takes the slopes, at the vertices.
        lane: The line's column.
        begin: The line's first row.
        end: One past the line's last row.
        curvature: The parabola's c.
        clear: As from `tolerance`.
        vertices: (H,) takes the vertices' rows.
        doubtful: (H,) takes, for each vertex, 1 where the hull is almost straight at the next vertex.
        lifted: (H,) scratch.

    Returns:
        The numbers of vertices and of doubtful ones.
    """
    vertices[0] = begin
    count = 1
    for row in range(begin + 1, end - 1):
        vertices[count] = row
        count += marks[row, lane]
    vertices[count] = end - 1
    count += 1
    for k in range(count):
        d = vertices[k] - begin
        lifted[k] = lines[int(vertices[k]), lane] + curvature * d * d
    count = _find_hull(vertices, lifted, count, doubtful)
    doubts = 0
    slope_before = -np.inf
    v1 = lines[begin, lane]
    for k in range(count - 1):
        d = vertices[k + 1] - vertices[k]
        v2 = lines[int(vertices[k + 1]), lane]
        slope = (v2 - v1) / d + curvature * d
        pieces[int(vertices[k]), lane] = slope
        doubtful[k] = 0
        straight = not slope > slope_before
        doubtful[max(k - 1, 0)] |= straight
        doubts += straight
        slope_before = slope - 2 * curvature * d + clear
        v1 = v2
    pieces[end - 1, lane] = 0.0
    return count, doubts


@_compiled
def slide_along_columns(
    surface: NDArray[np.float64], curvature: float, clear: float, shear: int, first: int, last: int
) -> list[int]:
    """Slide along columns or diagonals of the (H, W) surface, downwards, in place.

    A line is named by the column in which it meets, or would meet, row 0; in row y it is `shear` · y columns further
    right. Neighbouring lines are neighbours in every row.

    Args:
        surface: (H, W) C-contiguous grey values.
        curvature: The parabola's c, in grey values per squared step.
        clear: As from `tolerance`.
        shear: 0 for columns, 1 for diagonals that run down to the right, -1 down to the left.
        first: The first line. Every line is at least three points long.
        last: One past the last line.

    Returns:
        The lines that were refused, and are as before.
    """
    height, width = surface.shape
    lines = np.zeros((height, BLOCK))
    pieces = np.empty((height, BLOCK))
    heights = np.empty(height * BLOCK)
    steps = np.empty(height * BLOCK)
    marks = np.zeros((height, BLOCK), np.uint8)
    vertices = np.empty((BLOCK, height))
    doubtful = np.empty((BLOCK, height), np.uint8)
    counts = np.zeros(BLOCK, np.int64)
    doubts = np.zeros(BLOCK, np.int64)
    lifted = np.empty(height)
    refused = [first for _ in range(0)]
    for block in range(first, last, BLOCK):
        lanes = min(BLOCK, last - block)
        one_end, other_end = _ends(block, shear, height, width), _ends(block + lanes - 1, shear, height, width)
        top, bottom = min(one_end[0], other_end[0]), max(one_end[1], other_end[1])
        part = slice(top * BLOCK, bottom * BLOCK)
        all_lines, all_pieces, all_marks = lines.reshape(-1)[part], pieces.reshape(-1)[part], marks.reshape(-1)[part]
        _copy_block(surface, lines, block, lanes, shear, False)
        all_pieces[:] = np.nan
        _mark_knots(all_lines, BLOCK, curvature, all_marks)

        for lane in range(BLOCK):
            begin, end = top, top
            if lane < lanes:
                begin, end = _ends(block + lane, shear, height, width)
            marks[top : begin + 1, lane] = 0
            marks[max(top, end - 1) : bottom, lane] = 0
            if lane < lanes:
                counts[lane], doubts[lane] = _find_pieces(
                    lines, marks, pieces, lane, begin, end, curvature, clear, vertices[lane], doubtful[lane], lifted
                )
        _spread_pieces(all_lines, all_pieces, heights[part], steps[part], all_marks, curvature, clear)
        for row in range(top, bottom):
            if _any_near(marks[row]):
                for lane in range(lanes):
                    if marks[row, lane] & _NEAR:
                        doubtful[lane, np.searchsorted(vertices[lane][: counts[lane]], row) - 1] = 1
                        doubts[lane] += 1
        for lane in range(lanes):
            count = counts[lane]
            if doubts[lane] > 0 and not _settle_doubts(
                lines, marks, pieces, lane, vertices[lane][:count], doubtful[lane][:count], curvature, clear
            ):
                refused.append(block + lane)
                pieces[top:bottom, lane] = lines[top:bottom, lane]
        _copy_block(surface, pieces, block, lanes, shear, True)
    return refused
