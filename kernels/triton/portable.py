"""Casts and products that mean the same compiled and under Triton's interpreter.

The interpreter (3.7.1) truncates when it rounds to bfloat16 and multiplies the bit patterns of
bfloat16 operands; these helpers round to nearest even and multiply the values.
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def cast(v, dtype: tl.constexpr):
    """Round v (float32) to dtype, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = v.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        v = bits.to(tl.float32, bitcast=True)
    return v.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc in float32. PRECISION: how float32 operands are multiplied."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
