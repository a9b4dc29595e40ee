"""The decode step's angles: advanced and turned into cosines to about one ulp of float32.

Constants are split so that every product that must be exact is, with no fused multiply-add:
Triton's interpreter has none. Triton's own sin and cos carry a slow path for huge arguments.
"""

import triton
import triton.language as tl

from .functions import tanh

TWO_PI = tl.constexpr(6.2831854820251465)
TWO_PI_LOW = tl.constexpr(-1.7484556025237907e-07)
HALF_PI_HIGH = tl.constexpr(1.5703125)  # 11 bits
HALF_PI_MID = tl.constexpr(0.0004837512969970703)  # 11 bits
HALF_PI_LOW = tl.constexpr(7.549790126404332e-08)


@triton.jit
def head(v):
    """v cut to 12 bits: the product of two such numbers is exact in float32."""
    return (v.to(tl.uint32, bitcast=True) & 0xFFFFF000).to(tl.float32, bitcast=True)


@triton.jit
def advance(phi, step, theta):
    """(phi + D pi tanh(theta)) mod 2 pi, in [0, 2 pi), from phi there.

    The product is taken in turns, exactly, and its whole turns are dropped. 2 pi comes in two
    parts: one float32 would turn every angle 2.8e-8 too far, which adds up over a sequence.
    """
    rate = 0.5 * tanh(theta)  # turns per unit of D
    step_head, rate_head = head(step), head(rate)
    turns = step_head * rate_head
    rest = step_head * (rate - rate_head) + (step - step_head) * rate
    turns = (turns - tl.floor(turns + 0.5)) + rest
    turns -= tl.floor(turns + 0.5)  # a step of thousands leaves whole turns in the rest
    phi = phi + (turns * TWO_PI + turns * TWO_PI_LOW)  # in [-pi, 3 pi)
    phi = tl.where(phi >= TWO_PI, (phi - TWO_PI) - TWO_PI_LOW, phi)
    phi = tl.where(phi < 0.0, (phi + TWO_PI) + TWO_PI_LOW, phi)
    return tl.where(phi >= TWO_PI, 0.0, phi)


@triton.jit
def cos_sin(phi):
    """(cos, sin) of phi in [0, 2 pi], by quadrants of polynomials (Cephes) on [-pi/4, pi/4]."""
    quadrant = tl.floor(phi * 0.6366197723675814 + 0.5)  # 2/pi
    r = (phi - quadrant * HALF_PI_HIGH) - quadrant * HALF_PI_MID - quadrant * HALF_PI_LOW
    s = r * r
    sin = ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1) * s * r + r
    cos = ((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2) * s * s
    cos = cos - 0.5 * s + 1.0
    # quadrants 0 and 4: (cos, sin); 1: (-sin, cos); 2: (-cos, -sin); 3: (sin, -cos)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    c = tl.where(odd, sin, cos)
    s = tl.where(odd, cos, sin)
    c = tl.where((quadrant == 1.0) | (quadrant == 2.0), -c, c)
    s = tl.where((quadrant == 2.0) | (quadrant == 3.0), -s, s)
    return c, s
