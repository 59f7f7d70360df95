"""float16 to and from float32 by their bits, as compiled code knows no float16."""

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled


@compiled
def encode_halves(
    values: NDArray[np.float32], bits: NDArray[np.uint32], out: NDArray[np.uint16]
) -> None:
    """float32 -> float16, rounded to nearest even; what is too large becomes infinite.

    Args:
        values: (B,) finite; destroyed.
        bits: (B,) the memory of `values` seen as uint32.
        out: (S,) the bits of float16, S <= B.
    """
    for s in range(len(out)):
        sign = (bits[s] >> np.uint32(16)) & np.uint32(0x8000)
        size = bits[s] & np.uint32(0x7FFFFFFF)
        odd = (size >> np.uint32(13)) & np.uint32(1)
        half = (size + np.uint32(0xFFF) + odd - np.uint32(112 << 23)) >> np.uint32(13)
        out[s] = np.uint16(sign | min(half, np.uint32(0x7C00)))
        bits[s] = size
    for s in range(len(out)):
        values[s] += np.float32(0.5)  # a float16 below 2^-14 is a multiple of 2^-24
    for s in range(len(out)):
        small = bits[s] - np.uint32(0x3F000000)
        if small <= np.uint32(0x400):
            out[s] = np.uint16((out[s] & np.uint16(0x8000)) | small)


@compiled
def decode_halves(
    halves: NDArray[np.uint16], bits: NDArray[np.uint32], out: NDArray[np.float32]
) -> None:
    """float16 -> float32: the bits are moved and the exponent is corrected.

    Args:
        halves: (T, S) the bits of float16; finite numbers only.
        bits: (T, S) the memory of `out` seen as uint32.
        out: (T, S) result.
    """
    for t in range(len(halves)):
        half, bit, value = halves[t], bits[t], out[t]
        for s in range(len(half)):
            bit[s] = (np.uint32(half[s]) & np.uint32(0x7FFF)) << np.uint32(13)
        for s in range(len(half)):
            value[s] *= np.float32(2.0**112)
        for s in range(len(half)):
            bit[s] |= (np.uint32(half[s]) & np.uint32(0x8000)) << np.uint32(16)
