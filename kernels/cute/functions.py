"""Device functions of the CuTe kernels: activations, angles and reductions, on float32 scalars.

exp, log1p and tanh are libdevice's, good to two ulp.
"""

import cutlass
from cutlass import Float32, Int32, cute
from cutlass.cute import arch

EPS = 1e-5  # of every RMSNorm
MIN_DECAY = 1e-4  # floor of -A
TWO_PI = 6.2831854820251465
TWO_PI_LOW = -1.7484556025237907e-07
HALF_PI = 1.5707963705062866
HALF_PI_LOW = -4.371139000186241e-08


def where(condition, one, other):
    """one if condition, else other: float32, on the device."""
    return Float32(cutlass.select_(condition, Float32(one), Float32(other)))


def sigmoid(u):
    """1 / (1 + e^-u)."""
    return 1.0 / (1.0 + cute.math.exp(-u))


def softplus(u):
    """log(1 + e^u), with the relative accuracy of float32 for small results too."""
    return cute.math.max(u, Float32(0.0)) + cute.math.log1p(cute.math.exp(-cute.math.abs(u)))


def heavy_tail(u):
    """1 + u from 0 on, else 1 / (1 - u)."""
    return where(u >= 0.0, 1.0 + u, 1.0 / (1.0 - u))


def decay_log(u, step, decay: str):
    """A D from the raw decay input u and the step size D; never positive."""
    if decay == "log_decay":
        return u
    f = heavy_tail(u) if decay == "heavy_tail" else softplus(u)
    return -where(f < MIN_DECAY, MIN_DECAY, f) * step  # NaN stays, which a maximum would hide


def advance(phi, step, theta):
    """(phi + D pi tanh(theta)) mod 2 pi, in [0, 2 pi), from phi there.

    The product is taken in turns, with its rounding error, and its whole turns are dropped. 2 pi
    comes in two parts: one float32 would turn every angle 2.8e-8 too far, which adds up over a
    sequence.
    """
    fma, floor = cute.math.fma, cute.math.floor
    rate = 0.5 * cute.math.tanh(theta)  # turns per unit of D
    turns = step * rate
    rest = fma(step, rate, -turns)
    turns = (turns - floor(turns + 0.5)) + rest
    phi = phi + fma(turns, Float32(TWO_PI), turns * TWO_PI_LOW)  # in [-pi, 3 pi)
    phi = where(phi >= TWO_PI, (phi - TWO_PI) - TWO_PI_LOW, phi)
    phi = where(phi < 0.0, (phi + TWO_PI) + TWO_PI_LOW, phi)
    return where(phi >= TWO_PI, Float32(0.0), phi)


def cos_sin(phi):
    """(cos, sin) of phi in [0, 2 pi], by quadrants of polynomials (Cephes) on [-pi/4, pi/4]."""
    fma = cute.math.fma
    quadrant = cute.math.floor(fma(phi, Float32(0.6366197723675814), Float32(0.5)))  # 2 / pi
    r = fma(quadrant, Float32(-HALF_PI), phi)
    r = fma(quadrant, Float32(-HALF_PI_LOW), r)
    s = r * r
    sin = ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1) * s * r + r
    cos = ((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2) * s * s
    cos = cos - 0.5 * s + 1.0
    # quadrants 0 and 4: (cos, sin); 1: (-sin, cos); 2: (-cos, -sin); 3: (sin, -cos)
    turned = Int32(quadrant) & 3
    odd = (turned & 1) == 1
    c, s = where(odd, sin, cos), where(odd, cos, sin)
    c = where((turned == 1) | (turned == 2), -c, c)
    s = where(turned >= 2, -s, s)
    return c, s


def scatter_sums(values, lane, lanes: int):
    """Sum each of `values` over `lanes` neighbouring lanes, and share the sums out among them.

    Lists of 2^m values. Returns (sums, first): this lane's sums are those of values first,
    first + 1, ... Each step halves either the values a lane still holds or, once one is left, only
    the lanes that hold different parts of it: as many shuffles as values, plus a few.
    """
    first = Int32(0)
    width = lanes // 2
    while width > 0:
        half = len(values) // 2
        if half:
            upper = (lane & width) != 0
            pairs = list(zip(values[:half], values[half:], strict=True))
            sent = [where(upper, low, high) for low, high in pairs]
            kept = [where(upper, high, low) for low, high in pairs]
            values = [
                mine + arch.shuffle_sync_bfly(other, width)
                for mine, other in zip(kept, sent, strict=True)
            ]
            first = first + Int32(cutlass.select_(upper, Int32(half), Int32(0)))
        else:
            values = [values[0] + arch.shuffle_sync_bfly(values[0], width)]
        width //= 2
    return values, first
