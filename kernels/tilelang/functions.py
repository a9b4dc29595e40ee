"""Device functions of the TileLang kernels.

TWO_PI and the units of angles are those of the Triton kernels: int32 in 2^-32 turns.
"""

import tilelang.language as T

LOG2_E = 1.4426950408889634
TURNS = 0.15915494309189535  # 1 / (2 pi)
RADIANS = 1.4629180792671596e-09  # 2 pi / 2^32
RADIANS_HIGH = 3.7450703e-07  # 2 pi / 2^24


def sequence(cu_seqlens, i_seq, L, packed):
    """First token and end of a sequence."""
    first = T.if_then_else(packed != 0, cu_seqlens[i_seq * packed], i_seq * L)
    stop = T.if_then_else(packed != 0, cu_seqlens[(i_seq + 1) * packed], (i_seq + 1) * L)
    return first, stop


def turns_of(turns):
    """Turns (float32) -> int32 in units of 2^-32 turns, whole turns dropped; NaN -> some number."""
    part = (turns - T.floor(turns + 0.5)) * 4294967296.0
    return T.cast(T.min(part, 2147483520.0), "int32")  # the largest float32 below 2^31


def radians_of(turns):
    """int32 in units of 2^-32 turns -> radians in [0, 2 pi), to the nearest of 2^-24 turns."""
    # what rounds up to a whole turn wraps to none; 24 bits are exact in float32
    high = T.shift_right(T.reinterpret(turns, "uint32") + T.uint32(128), T.uint32(8))
    return T.cast(high, "float32") * RADIANS_HIGH


def softplus(u):
    """log(1 + e^u)."""
    return T.max(u, 0.0) + T.log1p(T.exp(-T.abs(u)))


def sigmoid(u):
    """1 / (1 + e^-u)."""
    return 1.0 / (1.0 + T.exp(-u))
