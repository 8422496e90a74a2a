"""The innermost loops of a network as vector instructions: a tile of a matrix product, a tile of a convolution.

A tile's sums stay in the processor's registers from the first product to the last, and the activation is applied before
they leave it. That is more than a compiler finds by itself, so the tiles are written in LLVM's language, for vectors of
`LANES` numbers; numba puts them into the kernels that call them. Addresses and distances are bytes.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba import types as untyped_types
from numba.core import cgutils as untyped_cgutils
from numba.core import codegen as untyped_codegen
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial

from panoramic.errors import PanoramicError

cgutils: Any = untyped_cgutils
codegen: Any = untyped_codegen
types: Any = untyped_types

#: A function of addresses, distances and counts that kernels may call.
Tile: TypeAlias = Callable[[tuple[int, ...]], None]


def _lanes() -> int:
    """Numbers of float32 in a vector of the processor that numba compiles for; 0 where the tiles do not run."""
    if sys.platform != "linux":
        return 0
    chosen = getattr(numba.config, "CPU_FEATURES")  # noqa: B009  # from NUMBA_CPU_FEATURES
    features = codegen.get_host_cpu_features() if chosen is None else str(chosen)
    if "+avx512f" in features:
        return 16
    return 8 if "+avx2" in features and "+fma" in features else 0


LANES: Final = _lanes()

#: Rows and vectors of a tile of a product: as many sums as there are registers, 32 in AVX-512 and 16 in AVX2, save
#: those for the factors. Outputs of a tile of a convolution: fewer, since those at its ends are computed one by one.
ROWS: Final = 14 if LANES == 16 else 6
VECTORS: Final = 2
OUTPUTS: Final = 6 if LANES == 16 else 4

#: Channels that are worked on together.
CHUNK: Final = VECTORS * max(LANES, 1)

_FLOAT_BYTES: Final = 4
_CACHE_LINE_BYTES: Final = 64
_FLOAT, _INT64, _INT32 = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, max(LANES, 1)), ir.VectorType(_INT32, max(LANES, 1))

#: 2^f for f from -1/2 to 1/2, from the constant upwards, right within 1e-7 of it.
_POWER_OF_TWO: Final = Chebyshev.interpolate(np.exp2, 5, domain=(-0.5, 0.5)).convert(kind=Polynomial).coef.tolist()
#: Beyond this SiLU is nearly 0 or the number itself, and float32 has room for its exponential until here.
_FAR: Final = 87.0
#: Added to a number below 2²², this rounds it to an integer, which then stands in the sum's last bits.
_ROUNDING: Final = 1.5 * 2.0**23
_MANTISSA_BITS: Final = 23

_FOR_READING, _INTO_FIRST_LEVEL, _DATA = 0, 3, 1

#: futex(2): its number on this architecture, its operations within one process, and how many are woken.
_FUTEX_X86_64, _FUTEX_WAIT, _FUTEX_WAKE, _EVERYONE = 202, 128, 129, 2**31 - 1


def check_processor() -> None:
    """Raise PanoramicError unless the tiles are made for this machine."""
    if LANES == 0:
        raise PanoramicError(
            "our kernels need Linux and a processor with AVX-512, or AVX2 and FMA; use the runtime auto or onnx"
        )


def product_tile(vectors: int, *, activated: bool) -> Tile:
    """Make a tile of a product of matrices, of `ROWS` rows and so many vectors of columns.

    The tile takes ``(x, x_row, weights, k, bias, result, result_row, residual, residual_row)``: of x, `ROWS` rows of k
    numbers, ``x_row`` apart; of weights, k times the columns' numbers, one after the other; the bias of each column.
    It writes silu(x · weights + bias) if activated, else x · weights + bias + residual.
    """

    def lower(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        x, x_row, weights, k, bias, result, result_row, residual, residual_row = cgutils.unpack_tuple(b, arguments[0])
        sums = _sums(b, ROWS, vectors, bias)
        rows = [_plus(b, x, x_row, row) for row in range(ROWS)]
        # The next tile's rows lie behind these, and take a cache line for each step of k at most.
        next_rows = _plus(b, x, x_row, ROWS)
        with cgutils.for_range(b, k) as loop:
            _prefetch(b, _plus(b, next_rows, loop.index, _CACHE_LINE_BYTES))
            factors = _load_vectors(b, _plus(b, weights, loop.index, _FLOAT_BYTES * LANES * vectors), vectors)
            for row in range(ROWS):
                number = _broadcast(b, _load(b, _plus(b, rows[row], loop.index, _FLOAT_BYTES), _FLOAT))
                _add_products(b, sums[row], [number] * vectors, factors)
        for row in range(ROWS):
            totals = [b.load(total) for total in sums[row]]
            if activated:
                totals = [_silu(b, total) for total in totals]
            else:
                added = _load_vectors(b, _plus(b, residual, residual_row, row), vectors)
                totals = [b.fadd(total, other) for total, other in zip(totals, added, strict=True)]
            _store_vectors(b, totals, _plus(b, result, result_row, row))
        return context.get_dummy_value()

    tile: Tile = _intrinsic(9, lower)
    return tile


def convolution_tile(vectors: int, outputs: int) -> Tile:
    """Make a tile of a depthwise convolution: so many outputs of a row, of so many vectors of channels.

    The tile takes ``(x, x_row, x_pixel, x_output, rows, columns, weights, weights_row, bias, result, result_output,
    sums)``: x, the first number under the kernel, with the distances of rows, pixels, and what neighbouring outputs
    begin with; the kernel's rows and columns, and its weights, column after column. It writes silu(x * weights + bias),
    and adds what it writes to the sums of the channels.
    """

    def lower(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        x, x_row, x_pixel, x_output, rows, columns, weights, weights_row, bias, result, result_output, sums = (
            cgutils.unpack_tuple(b, arguments[0])
        )
        totals = _sums(b, outputs, vectors, bias)
        with cgutils.for_range(b, rows) as down:
            x_of_row = b.add(x, b.mul(down.index, x_row))
            weights_of_row = b.add(weights, b.mul(down.index, weights_row))
            with cgutils.for_range(b, columns) as along:
                x_here = b.add(x_of_row, b.mul(along.index, x_pixel))
                factors = _load_vectors(
                    b, _plus(b, weights_of_row, along.index, _FLOAT_BYTES * LANES * vectors), vectors
                )
                for output in range(outputs):
                    numbers = _load_vectors(b, _plus(b, x_here, x_output, output), vectors)
                    _add_products(b, totals[output], numbers, factors)
        sums_so_far = _load_vectors(b, sums, vectors)
        for output in range(outputs):
            activated = [_silu(b, b.load(total)) for total in totals[output]]
            sums_so_far = [b.fadd(total, number) for total, number in zip(sums_so_far, activated, strict=True)]
            _store_vectors(b, activated, _plus(b, result, result_output, output))
        _store_vectors(b, sums_so_far, sums)
        return context.get_dummy_value()

    tile: Tile = _intrinsic(12, lower)
    return tile


def _lower_fetch_add(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    address, increment = cgutils.unpack_tuple(b, arguments[0])
    return b.atomic_rmw("add", b.inttoptr(address, _INT64.as_pointer()), increment, "seq_cst")


def _lower_wait(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    address, seen = cgutils.unpack_tuple(b, arguments[0])
    return _futex(b, address, _FUTEX_WAIT, seen)


def _lower_wake(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    (address,) = cgutils.unpack_tuple(b, arguments[0])
    return _futex(b, address, _FUTEX_WAKE, ir.Constant(_INT64, _EVERYONE))


def _futex(b: Any, address: Any, operation: int, value: Any) -> Any:
    """Linux's system call of that name, on the lower half of an int64."""
    kind = ir.FunctionType(_INT64, [_INT64], var_arg=True)
    nothing = ir.Constant(_INT64, 0)
    numbers = [ir.Constant(_INT64, number) for number in (_FUTEX_X86_64, operation)]
    call = cgutils.get_or_insert_function(b.module, kind, "syscall")
    return b.call(call, [numbers[0], address, numbers[1], value, nothing, nothing, nothing])


def _intrinsic(count: int, lower: Callable[..., Any], *, gives: Any = None) -> Any:
    """What a kernel can call with a tuple of so many int64."""

    def typed(_typing_context: Any, numbers: Any) -> tuple[Any, Callable[..., Any]]:  # noqa: ARG001  # numba asks for it
        return (gives or types.void)(types.UniTuple(types.int64, count)), lower

    return intrinsic(typed)


#: Within a kernel, of (address, increment): add to an int64 that other threads add to as well; gives what it was.
fetch_add: Callable[[tuple[int, int]], int] = _intrinsic(2, _lower_fetch_add, gives=types.int64)


#: Within a kernel, of (address, seen): sleep until woken, unless the number there is another than was seen.
sleep_while: Callable[[tuple[int, int]], int] = _intrinsic(2, _lower_wait, gives=types.int64)

#: Within a kernel, of (address,): wake all threads that sleep there.
wake: Callable[[tuple[int]], int] = _intrinsic(1, _lower_wake, gives=types.int64)


def _plus(b: Any, address: Any, distance: Any, times: int) -> Any:
    return b.add(address, b.mul(distance, ir.Constant(_INT64, times)))


def _load(b: Any, address: Any, kind: Any) -> Any:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=_FLOAT_BYTES)


def _load_vectors(b: Any, address: Any, vectors: int) -> list[Any]:
    return [_load(b, place, _VECTOR) for place in _neighbours(b, address, vectors)]


def _store_vectors(b: Any, values: Sequence[Any], address: Any) -> None:
    for value, place in zip(values, _neighbours(b, address, len(values)), strict=True):
        b.store(value, b.inttoptr(place, _VECTOR.as_pointer()), align=_FLOAT_BYTES)


def _neighbours(b: Any, address: Any, vectors: int) -> list[Any]:
    """The addresses of vectors that lie one behind the other."""
    return [b.add(address, ir.Constant(_INT64, _FLOAT_BYTES * LANES * vector)) for vector in range(vectors)]


def _sums(b: Any, rows: int, vectors: int, bias: Any) -> list[list[Any]]:
    """Variables for the sums of a tile, which begin with the bias; the compiler keeps them in registers."""
    first = _load_vectors(b, bias, vectors)
    sums = [[cgutils.alloca_once(b, _VECTOR) for _ in first] for _ in range(rows)]
    for row in sums:
        for total, value in zip(row, first, strict=True):
            b.store(value, total)
    return sums


def _add_products(b: Any, sums: Sequence[Any], numbers: Sequence[Any], factors: Sequence[Any]) -> None:
    for total, number, factor in zip(sums, numbers, factors, strict=True):
        b.store(_call(b, "fma", number, factor, b.load(total)), total)


def _broadcast(b: Any, number: Any) -> Any:
    """A number in all places of a vector."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = b.insert_element(nothing, number, ir.Constant(_INT32, 0))
    return b.shuffle_vector(first, nothing, ir.Constant(_INTEGERS, [0] * LANES))


def _constant(number: float) -> Any:
    return ir.Constant(_VECTOR, [number] * LANES)


def _silu(b: Any, x: Any) -> Any:
    """SiLU, x / (1 + exp(-x)), right within 5e-6 of itself down to -87, and x · 2e-38 below.

    exp(-x) is 2^n times 2^f, n an integer, which goes into the exponent's bits, and f from -1/2 to 1/2.
    """
    near = _call(b, "maxnum", _call(b, "minnum", x, _constant(_FAR)), _constant(-_FAR))
    scale = _constant(-math.log2(math.e))
    rounded = _call(b, "fma", near, scale, _constant(_ROUNDING))
    n = b.fsub(rounded, _constant(_ROUNDING))
    f = _call(b, "fma", near, scale, b.fneg(n))
    power = _constant(_POWER_OF_TWO[-1])
    for factor in _POWER_OF_TWO[-2::-1]:
        power = _call(b, "fma", power, f, _constant(factor))
    exponent = b.shl(b.bitcast(rounded, _INTEGERS), ir.Constant(_INTEGERS, [_MANTISSA_BITS] * LANES))
    exponential = b.bitcast(b.add(b.bitcast(power, _INTEGERS), exponent), _VECTOR)
    return b.fdiv(x, b.fadd(exponential, _constant(1.0)))


def _prefetch(b: Any, address: Any) -> None:
    """Have a cache line fetched that need not exist."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    hints = [ir.Constant(_INT32, hint) for hint in (_FOR_READING, _INTO_FIRST_LEVEL, _DATA)]
    b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), [b.inttoptr(address, byte), *hints])


def _call(b: Any, name: str, *arguments: Any) -> Any:
    """LLVM's function of that name, of vectors."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.{name}.v{LANES}f32"), arguments)
