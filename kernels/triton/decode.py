"""Decode: everything between a layer's two projections in one launch.

One program owns one (batch row, head): it reads the head's old phi, k, x and its whole (P, N) tile
of h, and nobody else reads or writes them, so the state is updated in place without a race. The
tile is requested first; activations, norms, angles and rotations are computed while it is on its
way. b and c are normalised again by every head that shares them: they are N values each, and come
from L2.

    phi  = (phi + D theta) mod 2 pi
    k_r  = Rot(phi) (bn_r + b_bias_r)                  q_r = Rot(phi) (cn_r + c_bias_r)
    h    = alpha h + sum_r beta x'_r k'_r^T + gamma x_r k_r^T          (', the token before)
    y_r  = h q_r + d x_r,     o = sum_r mimo_o_r norm(y_r) silu(z mimo_z_r)
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from ..call import Call, row_strides
from ..cases import make_call
from ..config import check_choice
from ..pointers import Inputs, Params, State
from ..problem import Problem
from ..registry import COMPILE_ONLY, Resources, config_name, implements, multiprocessors
from . import compile
from .angles import advance, cos_sin
from .functions import INTERPRETED, cast, decay_log, exp, silu, softplus

WARPS = (1, 2, 4, 8, 16)
RANKS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Config:
    """warps that share the (P, N) tile of one head; ranks whose loops are unrolled together."""

    warps: int
    unroll: int

    def __post_init__(self) -> None:
        check_choice("warps", self.warps, WARPS)
        check_choice("unroll", self.unroll, RANKS)


def configs(problem: Problem, device: torch.device) -> Iterable[Config]:
    """128 elements of h a thread: few warps, for each loads k and q of every rank for itself.

    With 32 elements R = 4 takes 2.4 times as long (B >= 8, N = 128, float32 state, H100), R = 1
    with 64 up to 1.2 times. Where each program has an SM to itself, more warps hide what it waits
    for: 32 elements and unrolled ranks take 13.6 us for 18.0 (R = 4), 64 take 7.4 for 7.7 (R = 1),
    within 4 % of the best with any dtype. Tiles beyond 64 x 128 with R > 1 and h in float32 would
    spill 200 bytes of it, and have 32.
    """
    elements, programs = problem.P * problem.N, problem.B * problem.H
    few, more, many = (max(1, elements // (32 * each)) for each in (128, 64, 32))
    if many > max(WARPS):
        return [Config(few, 1)]
    found = [Config(few, 1), Config(more, 1), Config(many, 1)]
    if few > 2 and problem.R > 1 and problem.state_dtype == torch.float32:
        found.reverse()
    elif programs <= multiprocessors(device):
        best = Config(more, 1) if problem.R == 1 else Config(many, min(problem.R, 4))
        found.insert(0, best)
    return dict.fromkeys(found)  # the smallest tiles have fewer to choose from


def space(problem: Problem, device: torch.device) -> dict[str, Config]:
    """What tuning tries: 8 to 128 elements of h a thread, and every way to unroll the ranks.

    Fewer than 8 leave loads of less than 16 bytes; more than 128 do not fit its 255 registers
    beside k and q.
    """
    elements = problem.P * problem.N
    found = [
        Config(warps, unroll)
        for warps in WARPS
        if 8 <= elements // (32 * warps) <= 128
        for unroll in RANKS
        if unroll <= problem.R
    ]
    return {config_name(config): config for config in found}


def supports(problem: Problem, device: torch.device) -> str | None:
    """float16, bfloat16 and float32 on a GPU, at the tile sizes that were tested."""
    if problem.dtype == torch.float64:
        return "float64: Triton's kernel computes in float32"
    if problem.N not in (16, 32, 64, 128, 256):
        return f"N = {problem.N}: N in 16, 32, 64, 128, 256"
    if problem.P not in (32, 64, 128):
        return f"P = {problem.P}: P in 32, 64, 128"
    if problem.R not in RANKS:
        return f"R = {problem.R}: R in 1, 2, 4, 8"
    if device.type not in ("cuda", COMPILE_ONLY.type) and not INTERPRETED:
        return "needs a CUDA device (or TRITON_INTERPRET=1 set before the import)"
    return None


@triton.jit
def normalised(v, o_n, o_pair, weight, N: tl.constexpr, RMS: tl.constexpr):
    """One row of b or c (N) in float32, RMS-normalised over N, and the same row by partner."""
    b_v = tl.load(v + o_n).to(tl.float32)
    b_pair = tl.load(v + o_pair).to(tl.float32)
    if RMS:
        scale = tl.rsqrt(tl.sum(b_v * b_v, 0) / N + 1e-5)
        b_v *= scale
        b_pair *= scale
        if weight is not None:
            b_v *= tl.load(weight + o_n)
            b_pair *= tl.load(weight + o_pair)
    return b_v, b_pair


@triton.jit
def rotated(v, bias, o_bias, o_n, o_pair, weight, cos, sin, N: tl.constexpr, RMS: tl.constexpr):
    """Rot(phi) (norm(v) + bias): v cos + partner(v) sin, sin signed by the place in the pair."""
    b_v, b_pair = normalised(v, o_n, o_pair, weight, N, RMS)
    if bias is not None:
        b_v += tl.load(bias + o_bias + o_n)
        b_pair += tl.load(bias + o_bias + o_pair)
    return b_v * cos + b_pair * sin


@triton.jit(
    do_not_specialize=[
        "stride_x", "stride_b", "stride_c", "stride_dt", "stride_a", "stride_lam", "stride_theta",
        "stride_z", "H", "G",
    ]
)  # fmt: skip
def decode_kernel(
    inputs, parameters, state, y, state_indices,
    stride_x, stride_b, stride_c, stride_dt, stride_a, stride_lam, stride_theta, stride_z,
    H, G,
    P: tl.constexpr, N: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STEP: tl.constexpr, DECAY: tl.constexpr, NORM: tl.constexpr, PAIRING: tl.constexpr,
    THETA_PER_HEAD: tl.constexpr, REDUCED: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    i_row = (tl.program_id(0) // H).to(tl.int64)
    i_head = tl.program_id(0) % H
    i_group = i_head // (H // G)
    i_state = i_row
    if state_indices is not None:
        i_state = tl.load(state_indices + i_row).to(tl.int64)
        if i_state < 0:
            return
    o_p, o_n = tl.arange(0, P), tl.arange(0, N)

    # the (P, N) tile and every other load are on their way before the first is waited for
    p_h = state.h + (i_state * H + i_head) * (P * N) + o_p[:, None] * N + o_n[None, :]
    h = tl.load(p_h).to(tl.float32)
    p_x_state = state.x + (i_state * H + i_head) * P + o_p
    x_before = tl.load(p_x_state).to(tl.float32)
    p_x = inputs.x + i_row * stride_x + i_head * P + o_p
    raw_x = tl.load(p_x)
    x = raw_x.to(tl.float32)

    # D, alpha, beta, gamma
    step = tl.load(inputs.dt + i_row * stride_dt + i_head).to(tl.float32)
    decay = tl.load(inputs.a + i_row * stride_a + i_head).to(tl.float32)
    lam = tl.load(inputs.lam + i_row * stride_lam + i_head).to(tl.float32)
    if STEP == "softplus":
        if parameters.dt_bias is not None:
            step += tl.load(parameters.dt_bias + i_head)
        step = softplus(step)
    lam = 1.0 / (1.0 + exp(-lam))
    alpha = exp(decay_log(decay, step, DECAY))
    beta = (1.0 - lam) * step * alpha
    gamma = lam * step

    # every dim n of k and q: its partner, its angle, and which of the pair it is
    if PAIRING == "interleaved":
        o_s = o_n // 2
        o_pair = o_n ^ 1
        m_first = o_n % 2 == 0
    else:
        o_s = o_n % (N // 2)
        o_pair = o_n ^ (N // 2)
        m_first = o_n < N // 2
    m_rotated = o_s < S
    p_phi = state.phi + (i_state * H + i_head) * S + o_s
    p_theta = inputs.theta + i_row * stride_theta + o_s
    if THETA_PER_HEAD:
        p_theta += i_head * S
    theta = tl.load(p_theta, mask=m_rotated, other=0.0).to(tl.float32)
    phi = advance(tl.load(p_phi, mask=m_rotated, other=0.0), step, theta)
    cos, sin = cos_sin(phi)
    cos = tl.where(m_rotated, cos, 1.0)
    sin = tl.where(m_rotated, sin, 0.0)
    sin = tl.where(m_first, -sin, sin)

    # h = alpha h + sum_r beta x'_r k'_r^T + gamma x_r k_r^T
    h *= alpha
    RMS: tl.constexpr = NORM == "rms"
    p_b = inputs.b + i_row * stride_b + i_group * N
    p_c = inputs.c + i_row * stride_c + i_group * N
    p_k = state.k + (i_state * R * H + i_head) * N + o_n
    o_param = i_head * R
    k = tl.zeros((N,), tl.float32)
    for r in tl.range(R, loop_unroll_factor=UNROLL):
        k_before = tl.load(p_k + r * H * N).to(tl.float32)
        k = rotated(
            p_b + r * G * N, parameters.b_bias, (o_param + r) * N, o_n, o_pair,
            parameters.b_norm, cos, sin, N, RMS,
        )  # fmt: skip
        x_r, x_before_r = gamma * x, beta * x_before
        if parameters.mimo_x is not None:
            scale = tl.load(parameters.mimo_x + (o_param + r) * P + o_p)
            x_r *= scale
            x_before_r *= scale
        h += x_before_r[:, None] * k_before[None, :]
        h += x_r[:, None] * k[None, :]

    # the old state has been read by every thread of the program: it may be overwritten
    tl.debug_barrier()
    tl.store(p_h, cast(h, state.h.dtype.element_ty))
    tl.store(p_phi, phi, mask=m_rotated & m_first)
    tl.store(p_x_state, raw_x)

    # y_r = h q_r + d x_r, norm, gate, sum over the ranks
    out = tl.zeros((P,), tl.float32)
    for r in tl.range(R, loop_unroll_factor=UNROLL):
        if R > 1:  # once more, because R rows of k do not fit the registers
            k = rotated(
                p_b + r * G * N, parameters.b_bias, (o_param + r) * N, o_n, o_pair,
                parameters.b_norm, cos, sin, N, RMS,
            )  # fmt: skip
        tl.store(p_k + r * H * N, cast(k, state.k.dtype.element_ty))
        q = rotated(
            p_c + r * G * N, parameters.c_bias, (o_param + r) * N, o_n, o_pair,
            parameters.c_norm, cos, sin, N, RMS,
        )  # fmt: skip
        y_r = tl.sum(h * q[None, :], 1)
        o_rp = (o_param + r) * P + o_p
        if parameters.d is not None:
            skip = x * tl.load(parameters.d + i_head)
            if parameters.mimo_x is not None:
                skip *= tl.load(parameters.mimo_x + o_rp)
            y_r += skip
        if parameters.out_norm is not None:
            y_r *= tl.rsqrt(tl.sum(y_r * y_r, 0) / P + 1e-5)
            y_r *= tl.load(parameters.out_norm + i_head * P + o_p)
        if inputs.z is not None:
            gate = tl.load(inputs.z + i_row * stride_z + i_head * P + o_p).to(tl.float32)
            if parameters.mimo_z is not None:
                gate *= tl.load(parameters.mimo_z + o_rp)
            y_r *= silu(gate, False)
        if parameters.mimo_o is not None:
            y_r *= tl.load(parameters.mimo_o + o_rp)
        if REDUCED:
            out += y_r
        else:
            p_y = y + ((i_row * R + r) * H + i_head) * P + o_p
            tl.store(p_y, cast(y_r, y.dtype.element_ty))
    if REDUCED:
        tl.store(y + (i_row * H + i_head) * P + o_p, cast(out, y.dtype.element_ty))


def arguments(call: Call, config: Config) -> tuple[list[Any], dict[str, Any]]:
    """What `decode_kernel` is launched with."""
    p, inputs, params, state = call.problem, call.inputs, call.params, call.state
    assert state is not None
    positional = [
        Inputs(*inputs.every()), Params(*params.every()), State(*state.every()),
        call.y, call.state_indices, *row_strides(inputs), p.H, p.G,
    ]  # fmt: skip
    constants = {
        "P": p.P, "N": p.N, "R": p.R, "S": p.S,
        "STEP": p.options.step, "DECAY": p.options.decay,
        "NORM": p.options.norm, "PAIRING": p.options.pairing,
        "THETA_PER_HEAD": p.theta_per_head, "REDUCED": p.reduced,
        "UNROLL": config.unroll, "num_warps": config.warps,
    }  # fmt: skip
    return positional, constants


def resources(problem: Problem, config: Config) -> list[Resources]:
    """What the kernel of a problem costs; the batch does not matter to it."""
    pool = None if problem.pool is None else 1
    positional, constants = arguments(make_call(replace(problem, B=1, pool=pool), seed=0), config)
    return [compile.resources(decode_kernel, *positional, **constants)]


@implements(
    "decode", "triton", supports=supports, configs=configs, resources=resources, space=space
)
def decode(call: Call, config: Config) -> None:
    """Launch one program per batch row and head."""
    grid = (call.problem.B * call.problem.H,)
    if grid[0] == 0:
        return
    positional, constants = arguments(call, config)
    decode_kernel[grid](*positional, **constants)
