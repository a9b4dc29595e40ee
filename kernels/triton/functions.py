"""Device functions of the Triton kernels, right both compiled and under Triton's interpreter.

The interpreter (3.7.1) truncates when it rounds to bfloat16 and multiplies the bit patterns of
bfloat16 operands; `cast` rounds to nearest even and `dot` multiplies the values.
FAST picks the hardware's approximations, good to 2^-20 and so enough for 16-bit activations.
Maxima and minima hand NaN on: the hardware's would take the other number and hide it.
"""

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

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
def operand(v, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Round v (float32) to an operand of `dot`: to dtype, or to tf32 (10 mantissa bits)."""
    if PRECISION == "tf32":
        bits = v.to(tl.uint32, bitcast=True)
        v = ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return cast(v, dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a @ b + acc in float32. PRECISION: how float32 operands are multiplied."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def exp2(v, FAST: tl.constexpr):
    """2^v; fast flushes denormals, which costs one instruction and not four."""
    if FAST:
        e = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        e = tl.exp2(v)
    return e


@triton.jit
def silu(v, FAST: tl.constexpr):
    """v / (1 + e^-v)."""
    if FAST:
        w = 1.0 + exp2(v * -1.4426950408889634, FAST)
        out = v * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [w], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        out = v / (1.0 + tl.exp(-v))
    return out


@triton.jit
def greatest(u, floor):
    """max(u, floor); NaN if u is."""
    return tl.maximum(u, floor, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def least(u, ceiling):
    """min(u, ceiling); NaN if u is."""
    return tl.minimum(u, ceiling, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(u):
    """e^u to one ulp: 2^n e^r with u = n log(2) + r. tl.exp loses a bit for each bit of n."""
    u = least(greatest(u, -150.0), 150.0)  # 0 and infinity beyond
    n = tl.floor(u * 1.4426950408889634 + 0.5)
    r = (u - n * 0.693115234375) - n * 3.194618329871446e-05  # log(2), 12 bits and the rest
    return tl.exp2(r * 1.4426950408889634) * tl.exp2(n)


@triton.jit
def softplus(u):
    """log(1 + e^u), with the relative accuracy of float32 for small results too."""
    e = exp(-tl.abs(u))
    w = 1.0 + e
    # log1p(e): the error of w cancels in log(w) / (w - 1)
    log1p = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.maximum(u, 0.0) + log1p


@triton.jit
def tanh(u):
    """tanh, with the relative accuracy of float32."""
    e = exp(-2.0 * tl.abs(u))
    # rounded to nearest: what `/` is off on one side adds up over the angles of a sequence
    far = tl.where(u < 0, -1.0, 1.0) * tl.div_rn(1.0 - e, 1.0 + e)
    # 1 - e cancels for small u; its series there leaves 2^-26
    near = u * (1.0 - u * u * (1.0 / 3.0 - u * u * (2.0 / 15.0 - u * u * (17.0 / 315.0))))
    return tl.where(tl.abs(u) < 0.15, near, far)


@triton.jit
def decay_log(u, step, DECAY: tl.constexpr):
    """A D from the raw decay input u and the step size D; never positive."""
    if DECAY == "log_decay":
        log_decay = u
    elif DECAY == "heavy_tail":
        f = tl.where(u >= 0, 1.0 + u, 1.0 / (1.0 - least(u, 0.0)))
        log_decay = -greatest(f, 1e-4) * step
    else:
        log_decay = -greatest(softplus(u), 1e-4) * step
    return log_decay


@triton.jit
def turns_of(t):
    """t turns -> int32 in units of 2^-32 turns, whole turns dropped; NaN -> some number."""
    t = (t - tl.floor(t + 0.5)) * 4294967296.0
    return tl.minimum(t, 2147483520.0).to(tl.int32)  # the largest float32 below 2^31


@triton.jit
def radians_of(turns):
    """int32 in units of 2^-32 turns -> radians in [0, 2 pi), to the nearest of 2^-24 turns."""
    # what rounds up to a whole turn wraps to none; 24 bits are exact in float32
    high = (turns.to(tl.uint32, bitcast=True) + 128) >> 8
    return high.to(tl.float32) * 3.7450703e-07  # 2 pi / 2^24


@triton.jit
def cos_sin(turns, FAST: tl.constexpr):
    """Cosine and sine of int32 turns, taken in [-pi, pi)."""
    angle = turns.to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    if FAST:
        cos, sin = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        cos, sin = tl.cos(angle), tl.sin(angle)
    return cos, sin


@triton.jit
def rotate(v, cos, sin, ROWS: tl.constexpr, S: tl.constexpr):
    """Rotate the pairs (2i, 2i + 1) of v (ROWS, 2S) by angles that broadcast to (ROWS, S)."""
    u, w = tl.split(tl.reshape(v, (ROWS, S, 2)))
    return tl.reshape(tl.join(u * cos - w * sin, u * sin + w * cos), (ROWS, 2 * S))


@triton.jit
def dim_of(o, S: tl.constexpr, N: tl.constexpr, HALF: tl.constexpr):
    """The dim of b, c, k and h at position o of the pairwise order (u_0, v_0, u_1, ..., rest)."""
    if HALF:
        i = o // 2 + (o % 2) * (N // 2)
        dim = tl.where(o < 2 * S, i, tl.where(o < N // 2 + S, o - S, o))
    else:
        dim = o
    return dim
