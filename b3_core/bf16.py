"""Numbers in bf16 compared by their bits: whole numbers in the floats' order."""

import numpy as np
import numpy.typing as npt
from numba import njit

Bits = npt.NDArray[np.int16]


@njit(cache=True)  # type: ignore[untyped-decorator]
def key(bits: np.int16) -> np.int16:
    """Return the whole number that stands where the float of these bits stands; -0 before 0."""
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))


def keys(bits: Bits) -> Bits:
    """Return the keys of bits, and so the bits of keys: it is its own inverse."""
    found: Bits = np.where(bits < 0, bits ^ np.int16(0x7FFF), bits)
    return found
