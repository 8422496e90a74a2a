"""How kernels are compiled: without the interpreter's lock, cached where possible, exact.

numba compiles on first use and keeps the result in ``__pycache__`` beside the kernel's file, or in the user's cache
folder where the installation is read-only, or in ``NUMBA_CACHE_DIR`` if that is set; where none can be written, each
process compiles again. numba notices a change of a kernel's own file only: no kernel calls one of another file, and one
that is made of another file's intrinsics says so (`compiled_from`).
"""

import hashlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile on first call, without the interpreter's lock; no fast-math, whose reordering would change results."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("_Function", njit(cache=True, **options)(function))
    except RuntimeError:  # numba found no folder to write its cache to: a slower start is better than none
        return cast("_Function", njit(**options)(function))


def compiled_from(module: ModuleType, *numbers: int) -> Callable[[_Function], _Function]:
    """What is `compiled` for kernels with intrinsics of a module: where the module changes, they are compiled anew.

    Their name in the cache ends in a digest of the module's source, and of numbers that it found on this machine.
    """
    digest = hashlib.sha256(f"{inspect.getsource(module)}{numbers}".encode()).hexdigest()[:12]

    def decorate(function: _Function) -> _Function:
        function.__qualname__ += f"_{digest}"
        return compiled(function)

    return decorate
