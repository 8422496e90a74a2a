"""Telling the processor which memory will be wanted soon, which it cannot guess where every row is on another page."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

cgutils: Any = untyped_cgutils

_FOR_READING, _INTO_FIRST_LEVEL, _DATA = 0, 3, 1


def _prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> tuple[Any, Any]:
    """Type and lower `prefetch` to LLVM's instruction of that name."""
    del typing_context

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, array_type, view, arguments[1:], wraparound=False)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        hints = [ir.Constant(number, hint) for hint in (_FOR_READING, _INTO_FIRST_LEVEL, _DATA)]
        builder.call(function, [builder.bitcast(place, byte), *hints])
        return context.get_dummy_value()

    return types.void(array, row, column), lower


#: Within a kernel: fetch the cache line of `array[row, column]`, which need not lie inside the array.
prefetch = cast("Callable[[NDArray[np.float64], int, int], None]", intrinsic(_prefetch))
