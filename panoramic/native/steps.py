"""The steps of a network, and how threads share the work of each.

A step is divided into tasks, which write to different places. Every thread goes through all steps, and of each takes
the next task that nobody has, until there are none; it waits until all are done before it takes one of the next step.
So a thread that comes late, or whose core is busy with something else, holds up nobody for longer than its one task,
and the result does not depend on who did what.

Tensors lie in one array of float32, `memory`, and weights in another; a step names its own by where they begin, in
numbers. Channels are padded to whole vectors, with weights of zero. A product is computed for `tiles.ROWS` rows at a
time: the last tile of a tensor may run over its end, so each has room for that.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from panoramic.compiling import compiled_from
from panoramic.native import tiles
from panoramic.native.tiles import (
    CHUNK,
    OUTPUTS,
    ROWS,
    VECTORS,
    convolution_tile,
    fetch_add,
    product_tile,
    sleep_while,
    wake,
)

#: What a step does.
STEM: Final = 0
DEPTHWISE: Final = 1
EXCITATION: Final = 2
POINTWISE: Final = 3

#: In the place of a tensor that a step does not have.
NONE: Final = -1

#: A step: what it does, in how many tasks, and of what. All that are not named by `panoramic.native.plan` are 0.
STEP: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "kind",
            "tasks",
            # What goes in and what comes out, in memory.
            "source",
            "result",
            "residual",
            "height",
            "width",
            "channels",
            "result_height",
            "result_width",
            "result_channels",
            # A convolution's square kernel, and how many pixels it begins above and to the left of the picture.
            "kernel",
            "stride",
            "above",
            "left",
            # Weights: of products (an expansion, if there is one), and of the depthwise convolution.
            "weight",
            "bias",
            "depthwise_weight",
            "depthwise_bias",
            # How it is divided: pixels of a task and groups of chunks; bands of rows, and rows of a band.
            "pixels",
            "groups",
            "segments",
            "band",
            # Squeeze-and-excitation: sums over the pixels for each segment, and gates, in memory; its two layers.
            "sums",
            "gates",
            "squeezed",
            "squeeze_weight",
            "squeeze_bias",
            "excite_weight",
            "excite_bias",
        )
    ]
)

#: Distance of the counters of tasks taken and tasks done, so that no two lie in one cache line: in int64.
COUNTER_DISTANCE: Final = 8

#: Gates of a task of an excitation.
GATES: Final = 256

#: How often a thread looks whether the others are done before it sleeps, and leaves its core to whoever needs it.
_LOOKS: Final = 50

_PICTURE_CHANNELS: Final = 3
_FLOAT_BYTES: Final = 4
_COUNTER_BYTES: Final = 8 * COUNTER_DISTANCE

_activated_wide = product_tile(VECTORS, activated=True)
_activated_narrow = product_tile(1, activated=True)
_plain_wide = product_tile(VECTORS, activated=False)
_plain_narrow = product_tile(1, activated=False)
_outputs_wide = convolution_tile(VECTORS, OUTPUTS)
_outputs_narrow = convolution_tile(1, OUTPUTS)
_output_wide = convolution_tile(VECTORS, 1)
_output_narrow = convolution_tile(1, 1)


_compiled = compiled_from(tiles, tiles.LANES)


@_compiled
def _multiply_activated(
    x: int, x_row: int, rows: int, k: int, weights: int, bias: int, channels: int, result: int, result_row: int
) -> None:
    """Write silu(x · weights + bias): addresses and distances in bytes, channels at most `CHUNK`."""
    for row in range(0, rows, ROWS):
        numbers = (x + row * x_row, x_row, weights, k, bias, result + row * result_row, result_row, 0, 0)
        if channels == CHUNK:
            _activated_wide(numbers)
        else:
            _activated_narrow(numbers)


@_compiled
def _multiply(
    x: int,
    x_row: int,
    rows: int,
    k: int,
    weights: int,
    bias: int,
    channels: int,
    result: int,
    result_row: int,
    residual: int,
    residual_row: int,
) -> None:
    """Write x · weights + bias + residual: addresses and distances in bytes, channels at most `CHUNK`."""
    for row in range(0, rows, ROWS):
        of_result, of_residual = result + row * result_row, residual + row * residual_row
        numbers = (x + row * x_row, x_row, weights, k, bias, of_result, result_row, of_residual, residual_row)
        if channels == CHUNK:
            _plain_wide(numbers)
        else:
            _plain_narrow(numbers)


@_compiled
def _convolve_row(
    x: int,
    x_row: int,
    x_pixel: int,
    step: Any,
    row: int,
    channels: int,
    weights: int,
    bias: int,
    result: int,
    sums: int,
) -> None:
    """Write one row of a depthwise convolution, with SiLU, and add it to the sums.

    Args:
        x: Address of the picture's first row, whether or not that is in memory.
        x_row: From a row to the next, in bytes.
        x_pixel: From a pixel to the next, in bytes.
        step: A `STEP`.
        row: Of the result.
        channels: At most `CHUNK`.
        weights: Address of the kernel's first weight.
        bias: Address of the first channel's.
        result: Address of the row.
        sums: Address of the first channel's.
    """
    kernel, stride = step.kernel, step.stride
    weights_row = kernel * channels * _FLOAT_BYTES
    result_pixel = step.result_channels * _FLOAT_BYTES
    top = row * stride - step.above
    cut = max(0, -top)  # rows of the kernel that are above the picture
    rows = min(kernel, step.height - top) - cut
    x += (top + cut) * x_row
    weights += cut * weights_row
    inside_from = -(-step.left // stride)
    inside_to = (step.width - kernel + step.left) // stride + 1
    column = 0
    while column < step.result_width:
        left = column * stride - step.left
        to = result + column * result_pixel
        if inside_from <= column and column + OUTPUTS <= inside_to:
            of_x = x + left * x_pixel
            apart = x_pixel * stride
            whole = (of_x, x_row, x_pixel, apart, rows, kernel, weights, weights_row, bias, to, result_pixel, sums)
            if channels == CHUNK:
                _outputs_wide(whole)
            else:
                _outputs_narrow(whole)
            column += OUTPUTS
        else:
            cut = max(0, -left)  # columns of the kernel that are to the left of the picture
            columns = min(kernel, step.width - left) - cut
            of_x = x + (left + cut) * x_pixel
            of_weights = weights + cut * channels * _FLOAT_BYTES
            part = (of_x, x_row, x_pixel, 0, rows, columns, of_weights, weights_row, bias, to, 0, sums)
            if channels == CHUNK:
                _output_wide(part)
            else:
                _output_narrow(part)
            column += 1


@_compiled
def _stem(
    step: Any, task: int, picture: NDArray[np.float32], weights: int, memory: int, scratch: NDArray[np.float32]
) -> None:
    """The first convolution, of a picture (3, height, width), as a product: a row for each pixel of the result."""
    first = task * step.pixels
    pixels = min(step.pixels, step.result_height * step.result_width - first)
    kernel = step.kernel
    taps = _PICTURE_CHANNELS * kernel * kernel
    at = 0
    for pixel in range(first, first + pixels):
        top = pixel // step.result_width * step.stride - step.above
        left = pixel % step.result_width * step.stride - step.left
        for channel in range(_PICTURE_CHANNELS):
            for row in range(top, top + kernel):
                for column in range(left, left + kernel):
                    inside = 0 <= row < step.height and 0 <= column < step.width
                    scratch[at] = picture[channel, row, column] if inside else np.float32(0)
                    at += 1
    for chunk in range(0, step.result_channels, CHUNK):
        _multiply_activated(
            scratch.ctypes.data,
            taps * _FLOAT_BYTES,
            pixels,
            taps,
            weights + (step.weight + chunk * taps) * _FLOAT_BYTES,
            weights + (step.bias + chunk) * _FLOAT_BYTES,
            min(CHUNK, step.result_channels - chunk),
            memory + (step.result + first * step.result_channels + chunk) * _FLOAT_BYTES,
            step.result_channels * _FLOAT_BYTES,
        )


@_compiled
def _copy(rows: NDArray[np.float32], length: int, source: int, result: int) -> None:
    """Copy one row to the place of another; a row at a time: two rows do not overlap, longer stretches might."""
    begin, to = source * length, result * length
    for number in range(length):
        rows[to + number] = rows[begin + number]


@_compiled
def _depthwise(
    step: Any,
    task: int,
    weights: int,
    memory: NDArray[np.float32],
    scratch: NDArray[np.float32],
    row_sums: NDArray[np.float32],
) -> None:
    """An expansion, if there is one, and a depthwise convolution, for `CHUNK` channels of a segment of rows.

    What is expanded stays in `scratch`, a band of rows at a time; the rows that the next band needs too are kept.
    """
    chunks = -(-step.result_channels // CHUNK)
    chunk, segment = task % chunks * CHUNK, task // chunks
    channels = min(CHUNK, step.result_channels - chunk)
    last = step.result_height * (segment + 1) // step.segments
    base = memory.ctypes.data
    kernel_weights = weights + (step.depthwise_weight + chunk * step.kernel * step.kernel) * _FLOAT_BYTES
    kernel_bias = weights + (step.depthwise_bias + chunk) * _FLOAT_BYTES
    expanded = step.weight != NONE
    pixel = (channels if expanded else step.channels) * _FLOAT_BYTES
    x_row = step.width * pixel
    x = base + (step.source + chunk) * _FLOAT_BYTES  # unless expanded
    sums = memory[step.sums + segment * step.result_channels + chunk :][:channels]
    sums[:] = 0
    begin = end = 0  # the rows in scratch
    for band in range(step.result_height * segment // step.segments, last, step.band):
        to = min(band + step.band, last)
        if expanded:
            first = max(band * step.stride - step.above, 0)
            beyond = min((to - 1) * step.stride - step.above + step.kernel, step.height)
            end = max(end, first)
            for row in range((end - first) if first > begin else 0):
                _copy(scratch, step.width * channels, source=row + first - begin, result=row)
            begin = first
            _multiply_activated(
                base + (step.source + end * step.width * step.channels) * _FLOAT_BYTES,
                step.channels * _FLOAT_BYTES,
                (beyond - end) * step.width,
                step.channels,
                weights + (step.weight + chunk * step.channels) * _FLOAT_BYTES,
                weights + (step.bias + chunk) * _FLOAT_BYTES,
                channels,
                scratch.ctypes.data + (end - begin) * x_row,
                pixel,
            )
            end = beyond
            x = scratch.ctypes.data - begin * x_row
        for row in range(band, to):
            row_sums[:] = 0  # of one row first: a single sum over all pixels would lose digits
            result = step.result + row * step.result_width * step.result_channels + chunk
            _convolve_row(
                x,
                x_row,
                pixel,
                step,
                row,
                channels,
                kernel_weights,
                kernel_bias,
                base + result * _FLOAT_BYTES,
                row_sums.ctypes.data,
            )
            for channel in range(channels):
                sums[channel] += row_sums[channel]


@_compiled
def _squeeze(step: Any, weights: NDArray[np.float32], memory: NDArray[np.float32], hidden: NDArray[np.float32]) -> None:
    """The hidden layer of a squeeze-and-excitation: silu of a linear layer of the channels' means."""
    squeezed = step.squeezed
    hidden[:squeezed] = weights[step.squeeze_bias :][:squeezed]
    for channel in range(step.channels):
        total = np.float32(0)
        for segment in range(step.segments):
            total += memory[step.sums + segment * step.channels + channel]
        mean = total / np.float32(step.result_height * step.result_width)
        row = step.squeeze_weight + channel * squeezed
        for unit in range(squeezed):
            hidden[unit] += mean * weights[row + unit]
    for unit in range(squeezed):
        hidden[unit] /= np.float32(1) + np.exp(-hidden[unit])


@_compiled
def _excite(
    step: Any, task: int, weights: NDArray[np.float32], memory: NDArray[np.float32], hidden: NDArray[np.float32]
) -> None:
    """Some of the gates: the sigmoid of a linear layer of what `_squeeze` gives."""
    first = task * GATES
    count = min(GATES, step.channels - first)
    gates = memory[step.gates + first :][:count]
    gates[:] = weights[step.excite_bias + first :][:count]
    own = weights[step.excite_weight + first * step.squeezed :]
    for unit in range(step.squeezed):
        for channel in range(count):
            gates[channel] += hidden[unit] * own[unit * count + channel]
    for channel in range(count):
        gates[channel] = np.float32(1) / (np.float32(1) + np.exp(-gates[channel]))


@_compiled
def _multiply_rows(
    matrix: NDArray[np.float32], factors: NDArray[np.float32], columns: int, result: NDArray[np.float32]
) -> None:
    """Multiply each row of a matrix, columns together, by its factor."""
    rows = len(matrix) // columns
    if columns == CHUNK:  # a number that the compiler knows makes this several times as fast
        for row in range(rows):
            for at in range(row * CHUNK, (row + 1) * CHUNK):
                result[at] = matrix[at] * factors[row]
    else:
        for row in range(rows):
            for at in range(row * columns, (row + 1) * columns):
                result[at] = matrix[at] * factors[row]


@_compiled
def _pointwise(
    step: Any,
    task: int,
    weights: NDArray[np.float32],
    memory: NDArray[np.float32],
    scratch: NDArray[np.float32],
    zeros: int,
) -> None:
    """A 1×1 convolution of some pixels to some of the channels.

    Where there are gates, what comes in should be multiplied by them, channel by channel. The weights are instead: the
    products are the same, and there are fewer numbers to multiply.
    """
    blocks = -(-(step.result_height * step.result_width) // step.pixels)
    first, group = task % blocks * step.pixels, task // blocks
    pixels = min(step.pixels, step.result_height * step.result_width - first)
    chunks = -(-step.result_channels // CHUNK)
    base, k = memory.ctypes.data, step.channels
    x, x_row = base + (step.source + first * k) * _FLOAT_BYTES, k * _FLOAT_BYTES
    result_row = step.result_channels * _FLOAT_BYTES
    for number in range(chunks * group // step.groups, chunks * (group + 1) // step.groups):
        chunk = number * CHUNK
        channels = min(CHUNK, step.result_channels - chunk)
        own = weights[step.weight + chunk * k :][: k * channels]
        bias = weights.ctypes.data + (step.bias + chunk) * _FLOAT_BYTES
        to = (first * step.result_channels + chunk) * _FLOAT_BYTES
        result = base + step.result * _FLOAT_BYTES + to
        if step.gates == NONE:
            _multiply_activated(x, x_row, pixels, k, own.ctypes.data, bias, channels, result, result_row)
            continue
        _multiply_rows(own, memory[step.gates :], channels, scratch)
        residual, residual_row = zeros, 0
        if step.residual != NONE:
            residual, residual_row = base + step.residual * _FLOAT_BYTES + to, result_row
        _multiply(x, x_row, pixels, k, scratch.ctypes.data, bias, channels, result, result_row, residual, residual_row)


@_compiled
def run(
    steps: NDArray[np.void],
    weights: NDArray[np.float32],
    memory: NDArray[np.float32],
    picture: NDArray[np.float32],
    counters: NDArray[np.int64],
    scratch: NDArray[np.float32],
) -> None:
    """Do one thread's share of all steps; every thread calls this, with the same arrays but for its own scratch.

    Args:
        steps: (S,) of `STEP`.
        weights: (W,).
        memory: (M,), written.
        picture: (3, height, width), C-contiguous.
        counters: (S, 2, `COUNTER_DISTANCE`), zero before the first thread begins.
        scratch: (K,), of this thread.
    """
    zeros = np.zeros(CHUNK, np.float32)
    row_sums = np.empty(CHUNK, np.float32)
    hidden = np.empty(_most_squeezed(steps), np.float32)
    base = weights.ctypes.data
    for number in range(len(steps)):
        step = steps[number]
        taken = counters.ctypes.data + 2 * number * _COUNTER_BYTES
        done = taken + _COUNTER_BYTES
        task = fetch_add((taken, 1))
        if step.kind == EXCITATION and task < step.tasks:
            _squeeze(step, weights, memory, hidden)
        while task < step.tasks:
            if step.kind == STEM:
                _stem(step, task, picture, base, memory.ctypes.data, scratch)
            elif step.kind == DEPTHWISE:
                _depthwise(step, task, base, memory, scratch, row_sums)
            elif step.kind == EXCITATION:
                _excite(step, task, weights, memory, hidden)
            else:
                _pointwise(step, task, weights, memory, scratch, zeros.ctypes.data)
            if fetch_add((done, 1)) == step.tasks - 1:
                wake((done,))
            task = fetch_add((taken, 1))
        looks = 0
        seen = fetch_add((done, 0))
        while seen < step.tasks:
            looks += 1
            if looks > _LOOKS:
                sleep_while((done, seen))
            seen = fetch_add((done, 0))


@_compiled
def _most_squeezed(steps: NDArray[np.void]) -> int:
    most = 1
    for number in range(len(steps)):
        most = max(most, steps[number].squeezed)
    return most
