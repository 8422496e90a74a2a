"""A network as a list of steps, with its weights in the order in which the steps read them."""

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from numpy.typing import NDArray
from torch import nn

from panoramic.native import steps
from panoramic.native.tiles import CHUNK, LANES, ROWS

#: Of a second-level cache, which has 512 KiB or more, how much the numbers of one task may take.
_CACHE_BYTES: Final = 500_000
_FLOAT_BYTES: Final = 4

#: Tasks of a step for each thread: so many that none waits long for the last.
_TASKS_PER_THREAD: Final = 5

#: Pixels of a task, at least: beside them, what the task does to its weights must not count.
_LEAST_PIXELS: Final = 128

#: Where tensors and weights may begin, in numbers: a cache line.
_ALIGNMENT: Final = 16

#: Tensors in memory. Blocks read one of the first two and write the other; what is between is in `_INNER`.
_BLOCKS, _INNER, _SUMS, _GATES = ("first", "second"), "inner", "sums", "gates"


@dataclass(frozen=True, eq=False)
class Plan:
    """How one network is run on pictures of one size."""

    steps: NDArray[np.void]
    """(S,) of `panoramic.native.steps.STEP`."""
    weights: NDArray[np.float32]
    """(W,), aligned to cache lines."""
    memory_size: int
    """Numbers that all threads share."""
    scratch_size: int
    """Numbers that each thread needs for itself."""
    activation: tuple[int, int, int, int]
    """Of the last activation: where it begins in memory, its height, width, and channels in memory."""
    channels: int
    """Of the last activation, without those that fill a vector."""


def plan(net: EfficientNet, *, input_size: tuple[int, int], threads: int) -> Plan:
    """Plan a network in evaluation mode whose batch norms are folded into its convolutions.

    Args:
        net: From `panoramic.network.fuse_for_inference`.
        input_size: (height, width) of the pictures.
        threads: That will share the work.
    """
    planner = _Planner(threads)
    shape = planner.stem(_convolution(net, "_conv_stem"), input_size)
    source, result = _BLOCKS
    for block in net.get_submodule("_blocks").children():
        shape = planner.block(block, shape, source=source, result=result)
        source, result = result, source
    return planner.end(_convolution(net, "_conv_head"), shape, source=source)


@dataclass(frozen=True)
class _Shape:
    height: int
    width: int
    channels: int
    """In memory: a multiple of `LANES`."""

    @property
    def pixels(self) -> int:
        return self.height * self.width


class _Planner:
    """Collects steps, weights, and how large each tensor must be."""

    def __init__(self, threads: int) -> None:
        self._least_tasks = _TASKS_PER_THREAD * threads if threads > 1 else 1
        self._steps: list[dict[str, int | str]] = []
        self._weights: list[NDArray[np.float32]] = []
        self._weights_size = 0
        self._sizes = dict.fromkeys((*_BLOCKS, _INNER, _SUMS, _GATES), 0)
        self._scratch_size = 0

    def stem(self, convolution: nn.Conv2d, input_size: tuple[int, int]) -> _Shape:
        """The first convolution, into the first tensor."""
        geometry, shape = _convolved(convolution, *input_size)
        taps = convolution.get_parameter("weight").detach().numpy().reshape(convolution.out_channels, -1).T
        pixels = _rounded(_CACHE_BYTES // _FLOAT_BYTES // len(taps) // 2, ROWS)
        self._need_scratch(pixels * len(taps))
        self._add(
            steps.STEM,
            tasks=-(-shape.pixels // pixels),
            pixels=pixels,
            result=self._tensor(_BLOCKS[0], shape),
            weight=self._product(taps, rows=len(taps), columns=shape.channels),
            bias=self._vector(convolution, shape.channels),
            **geometry,
        )
        return shape

    def block(self, block: MBConvBlock, shape: _Shape, *, source: str, result: str) -> _Shape:
        """An inverted residual: expansion and depthwise convolution, excitation, projection."""
        inner, segments = self._depthwise(block, shape, source=source)
        squeeze, excite = _convolution(block, "_se_reduce"), _convolution(block, "_se_expand")
        squeezed = squeeze.out_channels
        self._sizes[_GATES] = max(self._sizes[_GATES], inner.channels)
        self._add(
            steps.EXCITATION,
            tasks=-(-inner.channels // steps.GATES),
            channels=inner.channels,
            result_height=inner.height,
            result_width=inner.width,
            sums=_SUMS,
            segments=segments,
            gates=_GATES,
            squeezed=squeezed,
            squeeze_weight=self._keep(_padded(_matrix(squeeze), inner.channels, squeezed)),
            squeeze_bias=self._vector(squeeze, squeezed),
            excite_weight=self._product(_matrix(excite), rows=squeezed, columns=inner.channels, at_once=steps.GATES),
            excite_bias=self._vector(excite, inner.channels),
        )
        projection = _convolution(block, "_project_conv")
        projected = _Shape(inner.height, inner.width, _rounded(projection.out_channels, LANES))
        arguments = block._block_args  # noqa: SLF001  # the library has no other name for it
        same = inner.pixels == shape.pixels and arguments.input_filters == arguments.output_filters
        residual = {"residual": source} if block.id_skip and same else {}
        self._pointwise(projection, inner, projected, source=_INNER, result=result, gates=_GATES, **residual)
        return projected

    def end(self, convolution: nn.Conv2d, shape: _Shape, *, source: str) -> Plan:
        """The last convolution, and all of it."""
        last = _Shape(shape.height, shape.width, _rounded(convolution.out_channels, LANES))
        self._pointwise(convolution, shape, last, source=source, result=_INNER)
        begins, at = {}, 0
        for name, size in self._sizes.items():
            begins[name], at = at, at + _rounded(size, _ALIGNMENT)
        table = np.zeros(len(self._steps), steps.STEP)
        for row, fields in zip(table, self._steps, strict=True):
            for name, value in fields.items():
                row[name] = begins[value] if isinstance(value, str) else value
        weights = aligned(self._weights_size)
        np.concatenate(self._weights, out=weights)
        return Plan(
            steps=table,
            weights=weights,
            memory_size=at,
            scratch_size=self._scratch_size,
            activation=(begins[_INNER], last.height, last.width, last.channels),
            channels=convolution.out_channels,
        )

    def _depthwise(self, block: MBConvBlock, shape: _Shape, *, source: str) -> tuple[_Shape, int]:
        convolution = _convolution(block, "_depthwise_conv")
        geometry, inner = _convolved(convolution, shape.height, shape.width)
        kernel, stride = geometry["kernel"], geometry["stride"]
        chunks = -(-inner.channels // CHUNK)
        # The first rows of a segment are expanded for the one before it too, so it should be many times the kernel.
        segments = max(1, min(-(-self._least_tasks // chunks), inner.height // (4 * kernel)))
        row = shape.width * CHUNK  # of what is expanded
        band = max(1, (_CACHE_BYTES // _FLOAT_BYTES // row - kernel) // stride)
        self._need_scratch(((band - 1) * stride + kernel) * row + ROWS * CHUNK)
        self._sizes[_SUMS] = max(self._sizes[_SUMS], segments * inner.channels)
        expansion: dict[str, int] = {"weight": steps.NONE}
        if hasattr(block, "_expand_conv"):
            expand = _convolution(block, "_expand_conv")
            expansion["weight"] = self._product(_matrix(expand), rows=shape.channels, columns=inner.channels)
            expansion["bias"] = self._vector(expand, inner.channels)
        taps = convolution.get_parameter("weight").detach().numpy().reshape(convolution.out_channels, -1).T
        self._add(
            steps.DEPTHWISE,
            tasks=chunks * segments,
            source=source,
            channels=shape.channels,
            result=self._tensor(_INNER, inner),
            sums=_SUMS,
            segments=segments,
            band=band,
            depthwise_weight=self._product(taps, rows=len(taps), columns=inner.channels),
            depthwise_bias=self._vector(convolution, inner.channels),
            **geometry,
            **expansion,
        )
        return inner, segments

    def _pointwise(self, convolution: nn.Conv2d, shape: _Shape, after: _Shape, *, result: str, **fields: str) -> None:
        self._need_scratch(shape.channels * CHUNK)
        # Blocks of pixels that stay in the cache from chunk to chunk; where they are few, a task is one chunk.
        blocks, groups = -(-shape.pixels * shape.channels * _FLOAT_BYTES // _CACHE_BYTES), 1
        if shape.pixels < _LEAST_PIXELS * blocks or blocks < self._least_tasks:
            groups = -(-after.channels // CHUNK)
            blocks = -(-self._least_tasks // groups)
        pixels = _rounded(-(-shape.pixels // blocks), ROWS)
        blocks = -(-shape.pixels // pixels)
        self._add(
            steps.POINTWISE,
            tasks=blocks * groups,
            pixels=pixels,
            groups=groups,
            channels=shape.channels,
            result=self._tensor(result, after),
            result_height=after.height,
            result_width=after.width,
            result_channels=after.channels,
            weight=self._product(_matrix(convolution), rows=shape.channels, columns=after.channels),
            bias=self._vector(convolution, after.channels),
            **({"residual": steps.NONE, "gates": steps.NONE} | fields),
        )

    def _add(self, kind: int, **fields: int | str) -> None:
        """A step; a name of a tensor stands for where it will begin."""
        self._steps.append({"kind": kind, **fields})

    def _tensor(self, name: str, shape: _Shape) -> str:
        """Make sure that the tensor has room for this, and for a tile that runs over its end."""
        self._sizes[name] = max(self._sizes[name], (shape.pixels + ROWS) * shape.channels)
        return name

    def _need_scratch(self, size: int) -> None:
        self._scratch_size = max(self._scratch_size, size)

    def _product(self, matrix: NDArray[np.float32], *, rows: int, columns: int, at_once: int = CHUNK) -> int:
        """Keep the factors of a product, (rows, columns), so many columns at a time; gives where they begin."""
        padded = _padded(matrix, rows, columns)
        return self._keep(np.concatenate([padded[:, at : at + at_once].ravel() for at in range(0, columns, at_once)]))

    def _vector(self, convolution: nn.Conv2d, size: int) -> int:
        """Keep a bias; gives where it begins."""
        bias = convolution.get_parameter("bias").detach().numpy()
        return self._keep(_padded(bias[None], 1, size))

    def _keep(self, numbers: NDArray[np.float32]) -> int:
        begin, size = self._weights_size, _rounded(numbers.size, _ALIGNMENT)
        self._weights.append(_padded(numbers.reshape(1, -1), 1, size)[0])
        self._weights_size += size
        return begin


def aligned(size: int) -> NDArray[np.float32]:
    """So many zeros, the first at the beginning of a cache line."""
    spare = np.zeros(size + _ALIGNMENT, np.float32)
    begin = -spare.ctypes.data // _FLOAT_BYTES % _ALIGNMENT
    return spare[begin : begin + size]


def _convolution(module: nn.Module, name: str) -> nn.Conv2d:
    return cast("nn.Conv2d", module.get_submodule(name))


def _convolved(convolution: nn.Conv2d, height: int, width: int) -> tuple[dict[str, int], _Shape]:
    """The fields of a step that convolves a picture of this size, and what comes out."""
    (kernel, _), (stride, _) = convolution.kernel_size, convolution.stride
    padding: Any = convolution.get_submodule("static_padding")
    left, right, above, below = padding.padding if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)
    shape = _Shape(
        (height + above + below - kernel) // stride + 1,
        (width + left + right - kernel) // stride + 1,
        _rounded(convolution.out_channels, LANES),
    )
    fields = {
        "height": height,
        "width": width,
        "result_height": shape.height,
        "result_width": shape.width,
        "result_channels": shape.channels,
        "kernel": kernel,
        "stride": stride,
        "above": above,
        "left": left,
    }
    return fields, shape


def _matrix(convolution: nn.Conv2d) -> NDArray[np.float32]:
    """A 1×1 convolution's weights as (channels in, channels out)."""
    matrix: NDArray[np.float32] = convolution.get_parameter("weight").detach().numpy()[:, :, 0, 0].T
    return matrix


def _padded(matrix: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    whole = np.zeros((rows, columns), np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole


def _rounded(number: int, multiple: int) -> int:
    """Up to a multiple."""
    return -(-number // multiple) * multiple
