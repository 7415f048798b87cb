"""Kernels: functions of arrays that numba compiles at their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
F = TypeVar("F", bound=Callable[..., Any])
EXACT = 1e-9
"""Bounds that are no further apart count as met."""
TINY = 1e-12
"""Less residual capacity than that is none."""


def compiled(function: F) -> F:
    """Return the function compiled at its first call, without the interpreter's lock.

    The code is kept beside this package, or in the user's cache where the package cannot be written
    to. Where neither can be, each process compiles anew.
    """
    fast = {"contract", "reassoc", "nsz"}  # but nan stays nan
    try:
        built: Any = numba.njit(function, cache=True, nogil=True, fastmath=fast)
    except RuntimeError:  # numba found no folder to keep the code in
        built = numba.njit(function, nogil=True, fastmath=fast)
    return cast(F, built)
