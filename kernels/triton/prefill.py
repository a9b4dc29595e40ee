"""SISO prefill in Triton: the chunked form of the recurrence, two or three launches.

1. `activate`: activations of dt, a, lam and theta, RMSNorm of b and c: small, once per token.
2. `_segment_states`: only when sequences are cut for parallelism. One program per (head, piece):
   what the piece adds to the state, in the frame of its first token's angles.
3. `_prefill`: one program per (head, segment): the state before the segment (from the initial state
   and the pieces before it), then chunk by chunk the output, with the state in registers.

Angles are kept as int32 in units of 2^-32 turns: a sum wraps exactly where an angle does, so it is
associative, as accurate after a million tokens as after one, and the same wherever it is cut.
Inside, the dims of b and c are ordered in pairs (u_0, v_0, u_1, v_1, ...), rotated ones first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..call import Call, token_stride
from ..cases import make_call
from ..config import check_choice, check_multiple
from ..problem import Problem
from ..registry import COMPILE_ONLY, Resources, implements, multiprocessors
from . import compile
from .activate import activate, sequence
from .functions import (
    INTERPRETED,
    cast,
    cos_sin,
    dim_of,
    dot,
    exp2,
    operand,
    radians_of,
    rotate,
    silu,
    turns_of,
)

ACTIVATE_HEADS = 16  # heads of one program of `activate`
MOST_SEQUENCES = 65535  # the second and third dims of a grid
RUN_TIME = ("B", "L", "T", "piece", "segment")  # another value compiles nothing


@dataclass(frozen=True, slots=True)
class Config:
    """How the work is cut: tokens, each length a multiple of the one before, 0 for all."""

    chunk: int = 64  # one step of the main loop
    piece: int = 0  # one program of `_segment_states`
    segment: int = 0  # one program of `_prefill`
    num_warps: int = 4
    num_stages: int = 2

    def __post_init__(self) -> None:
        check_choice("chunk", self.chunk, (16, 32, 64, 128))
        check_multiple("piece", self.piece, self.chunk)
        check_multiple("segment", self.segment, self.piece or self.chunk)
        check_choice("num_warps", self.num_warps, (1, 2, 4, 8, 16))
        check_choice("num_stages", self.num_stages, (1, 2, 3, 4, 5))


def supports(problem: Problem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.R != 1 or any(name.startswith("mimo") for name in problem.optional):
        return "SISO only: R = 1 and no mimo_x, mimo_z, mimo_o"
    if problem.N not in (16, 32, 64, 128, 256):
        return f"N = {problem.N} is not 16, 32, 64, 128 or 256"
    if problem.P not in (32, 64, 128):
        return f"P = {problem.P} is not 32, 64 or 128"
    if problem.dtype == torch.float64:
        return "no float64: bfloat16, float16 or float32"
    if problem.sequences > MOST_SEQUENCES:
        return f"{problem.sequences} sequences are more than {MOST_SEQUENCES}"
    if device.type not in ("cuda", COMPILE_ONLY.type) and not INTERPRETED:
        return "needs a CUDA device (or TRITON_INTERPRET=1 set before the import)"
    return None


def configs(problem: Problem, device: torch.device) -> Iterator[Config]:
    """Legal configurations, best guess first."""
    # h is P x N float32 in registers: four warps hold 64 x 128 without spilling much
    small = problem.P * problem.N <= 64 * 128
    num_warps = 4 if small else 8
    if problem.dtype == torch.float32:
        # chunks of 64 spill 1.7 KB: 3.7 ms against 3.4 (8 x 2048, N = 128, H100). One stage takes
        # 3 % longer for N = 128 and 13 to 20 % for 64; two of the largest tiles do not fit an SM.
        chunk, num_stages = 32, 2 if small or problem.options.matmul == "tf32" else 1
    else:
        # 3 stages leave one block per SM: 731 us against 472 (8 x 2048, N = 128, H100)
        chunk, num_stages = 64, 2
    yield Config(chunk, *_cuts(problem, device, chunk), num_warps, num_stages)


def space(problem: Problem, device: torch.device) -> dict[str, Config]:
    """What tuning tries: chunks, cuts for so many blocks per SM (0: none), warps and stages.

    A chunk of 128 is for 8 warps alone: its scores and h take all registers of 4. Chunks of float32
    end at 64: their three tiles take more than an SM's shared memory beyond. Four stages are for
    chunks up to 64 of a tile up to 64 x 64: those of larger ones leave one block an SM.
    """
    found = {}
    small = problem.P * problem.N <= 64 * 64
    for chunk in (32, 64) if problem.dtype == torch.float32 else (32, 64, 128):
        for fill in (0, 1, 2, 4):
            cuts = _cuts(problem, device, chunk, fill)
            if fill and cuts == (0, 0):
                continue  # the heads fill the GPU, or the sequences are too short to be cut
            for num_warps in (8,) if chunk == 128 else (4, 8):
                for num_stages in (1, 2, 3, 4) if small and chunk <= 64 else (1, 2, 3):
                    name = f"chunk={chunk} fill={fill} warps={num_warps} stages={num_stages}"
                    found[name] = Config(chunk, *cuts, num_warps, num_stages)
    return found


def _cuts(problem: Problem, device: torch.device, chunk: int, fill: int = 2) -> tuple[int, int]:
    """Tokens per piece and per segment that fill the GPU once with `fill` blocks per SM."""
    longest = max(problem.lengths) if problem.lengths else problem.L
    segments = fill * multiprocessors(device) // (problem.H * problem.sequences)
    if segments < 2 or longest <= 2 * chunk:
        return 0, 0
    piece = triton.cdiv(longest, 2 * segments * chunk) * chunk
    return piece, 2 * piece


@triton.jit
def _tile(desc, i_b, t, column, C: tl.constexpr, WIDTH: tl.constexpr):
    """Tokens t to t + C of some columns, by TMA: (C, WIDTH), zero past the end of the batch row."""
    return tl.reshape(desc.load([i_b, t, column]), (C, WIDTH))


@triton.jit
def _bias(bias, i_h, dims, WIDTH: tl.constexpr, N: tl.constexpr):
    """A head's bias of b or c at some dims; zero if there is none."""
    b = tl.zeros((WIDTH,), tl.float32)
    if bias is not None:
        b += tl.load(bias + i_h * N + dims)
    return b


@triton.jit(do_not_specialize=RUN_TIME)
def _segment_states(
    x, bc, rate, gates, b_bias, cu_seqlens, seg_h, seg_turns, seg_decay,
    B, L, T, piece, segment,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    W: tl.constexpr, RATES: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program per (head, piece before a sequence's last segment): dS, its angle, its decay.

    seg_h (slots, H, P, N), seg_turns (slots, H, W), seg_decay (slots, H), log2; keys are rotated by
    the angles accumulated since the piece's start.
    """
    i_h, i_piece, i_seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, stop = sequence(cu_seqlens, i_seq, L)
    start = first + i_piece * piece
    if first + (i_piece * piece // segment + 1) * segment >= stop:
        return
    PACKED: tl.constexpr = cu_seqlens is not None
    i_b = 0 if PACKED else i_seq  # batch row of the tiles, and its first token
    origin = 0 if PACKED else first
    HT = tl.cast(T, tl.int64) * H
    PASS: tl.constexpr = N - 2 * W
    dtype = x.dtype
    o_c, o_s, o_p = tl.arange(0, C), tl.arange(0, W), tl.arange(0, P)
    o_r = tl.arange(0, 2 * W)
    column = (i_h // (H // G)) * N
    bias_r = _bias(b_bias, i_h, dim_of(o_r, S, N, HALF), 2 * W, N)
    h_r = tl.zeros((P, 2 * W), tl.float32)
    if PASS > 0:
        o_q = 2 * W + tl.arange(0, PASS)
        bias_q = _bias(b_bias, i_h, dim_of(o_q, S, N, HALF), PASS, N)
        h_q = tl.zeros((P, PASS), tl.float32)
    turns = tl.zeros((W,), tl.int32)
    decay = 0.0
    gates += i_h * tl.cast(T, tl.int64) + start
    t_0 = (start - origin).to(tl.int32)
    for t in tl.range(0, piece, C, num_stages=STAGES):
        step = tl.load(gates + t + o_c)
        b_rate = _tile(rate, i_b, t_0 + t, (i_h % RATES) * W, C, W)
        step_turns = turns_of(step[:, None] * b_rate)  # [C, W]
        cos, sin = cos_sin(turns[None, :] + tl.cumsum(step_turns, 0), FAST)
        turns += tl.sum(step_turns, 0)

        k_r = _tile(bc, i_b, t_0 + t, column, C, 2 * W).to(tl.float32)
        k_r = operand(rotate(k_r + bias_r[None, :], cos, sin, C, W), dtype, PRECISION)
        # dS = e^{s_C} dS + sum_j e^{s_C - s_j} w_j x_j k_j^T
        total = tl.load(gates + t + 3 * HT + C - 1)
        weight = tl.load(gates + t + 2 * HT + o_c)
        weight *= exp2(total - tl.load(gates + t + 3 * HT + o_c), FAST)
        b_x = _tile(x, i_b, t_0 + t, i_h * P, C, P).to(tl.float32)
        x_w = tl.trans(operand(b_x * weight[:, None], dtype, PRECISION))  # [P, C]
        h_r = dot(x_w, k_r, h_r * exp2(total, FAST), PRECISION)
        if PASS > 0:
            k_q = _tile(bc, i_b, t_0 + t, column + 2 * W, C, PASS).to(tl.float32)
            k_q = operand(k_q + bias_q[None, :], dtype, PRECISION)
            h_q = dot(x_w, k_q, h_q * exp2(total, FAST), PRECISION)
        decay += total
    slot = (first // piece + i_seq + i_piece) * H + i_h
    p_h = seg_h + (slot * P + o_p[:, None]) * N
    tl.store(p_h + o_r[None, :], h_r)
    if PASS > 0:
        tl.store(p_h + o_q[None, :], h_q)
    tl.store(seg_turns + slot * W + o_s, turns)
    tl.store(seg_decay + slot, decay)


@triton.jit(do_not_specialize=RUN_TIME)
def _prefill(
    x, z, bc, rate, gates, b_bias, c_bias, d, out_norm, cu_seqlens,
    phi_in, h_in, k_in, x_in, seg_h, seg_turns, seg_decay,
    y, y_tiles, phi_out, h_out, k_out, x_out,
    B, L, T, piece, segment,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    W: tl.constexpr, RATES: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program per (head, segment): the output of its tokens, and a sequence's final state."""
    i_h, i_seg, i_seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, stop = sequence(cu_seqlens, i_seq, L)
    start = first + i_seg * segment
    if start >= stop and i_seg > 0:
        return
    end = tl.minimum(start + segment, stop)
    PACKED: tl.constexpr = cu_seqlens is not None
    i_b = 0 if PACKED else i_seq  # batch row of the tiles, and its first token
    origin = 0 if PACKED else first
    HT = tl.cast(T, tl.int64) * H
    PASS: tl.constexpr = N - 2 * W
    dtype = x.dtype
    o_c, o_s, o_p = tl.arange(0, C), tl.arange(0, W), tl.arange(0, P)
    o_r = tl.arange(0, 2 * W)
    d_r = dim_of(o_r, S, N, HALF)
    row = i_seq.to(tl.int64) * H + i_h
    column = (i_h // (H // G)) * N
    b_bias_r = _bias(b_bias, i_h, d_r, 2 * W, N)
    c_bias_r = _bias(c_bias, i_h, d_r, 2 * W, N)
    h_r = tl.zeros((P, 2 * W), tl.float32)
    if PASS > 0:
        o_q = 2 * W + tl.arange(0, PASS)
        d_q = dim_of(o_q, S, N, HALF)
        b_bias_q = _bias(b_bias, i_h, d_q, PASS, N)
        c_bias_q = _bias(c_bias, i_h, d_q, PASS, N)
        h_q = tl.zeros((P, PASS), tl.float32)
    turns = tl.zeros((W,), tl.int32)
    gates += i_h * tl.cast(T, tl.int64) + start

    # S_0 = h_init + D_0 (1 - lam_0) x_init k_init^T
    if h_in is not None:
        phi = tl.load(phi_in + row * S + o_s, mask=o_s < S, other=0.0)
        turns = turns_of(phi * 0.15915494309189535)  # 1 / (2 pi)
        p_first = gates - i_seg * segment
        m_first = first < stop
        ahead = tl.load(p_first, mask=m_first, other=0.0)
        ahead -= tl.load(p_first + HT, mask=m_first, other=0.0)
        ahead += tl.where(m_first, 0.0 * tl.sum(phi, 0), 0.0)  # turns cannot be NaN
        b_x0 = ahead * tl.load(x_in + row * P + o_p).to(tl.float32)
        p_h0 = h_in + (row * P + o_p[:, None]) * N
        h_r = tl.load(p_h0 + d_r[None, :]).to(tl.float32)
        h_r += b_x0[:, None] * tl.load(k_in + row * N + d_r).to(tl.float32)[None, :]
        if PASS > 0:
            h_q = tl.load(p_h0 + d_q[None, :]).to(tl.float32)
            h_q += b_x0[:, None] * tl.load(k_in + row * N + d_q).to(tl.float32)[None, :]

    # S = e^{s} S + dS Rot(phi)^T over the pieces before this segment
    if seg_h is not None:
        # unrolled, four loads are in flight, and the main loop spills less: 447 us for 500 (H100)
        for j in tl.range(i_seg * segment // piece, loop_unroll_factor=4):
            slot = (first // piece + i_seq + j) * H + i_h
            cos, sin = cos_sin(turns[None, :], FAST)
            scale = exp2(tl.load(seg_decay + slot), FAST)
            p_h = seg_h + (slot * P + o_p[:, None]) * N
            h_r = h_r * scale + rotate(tl.load(p_h + o_r[None, :]), cos, sin, P, W)
            if PASS > 0:
                h_q = h_q * scale + tl.load(p_h + o_q[None, :])
            turns += tl.load(seg_turns + slot * W + o_s)

    if d is not None:
        skip = tl.load(d + i_h)
    if out_norm is not None:
        b_norm = tl.load(out_norm + i_h * P + o_p)
    t_0 = (start - origin).to(tl.int32)
    tokens = (end - start).to(tl.int32)
    for t in tl.range(0, tokens, C, num_stages=STAGES):
        m_t = o_c < tokens - t
        step = tl.load(gates + t + o_c, mask=m_t, other=0.0)
        b_rate = _tile(rate, i_b, t_0 + t, (i_h % RATES) * W, C, W)
        if PACKED:  # the tokens of the next sequence may be anything, NaN too
            b_rate = tl.where(m_t[:, None], b_rate, 0.0)
        step_turns = turns_of(step[:, None] * b_rate)  # [C, W]
        cos, sin = cos_sin(turns[None, :] + tl.cumsum(step_turns, 0), FAST)
        turns += tl.sum(step_turns, 0)

        k_r = _tile(bc, i_b, t_0 + t, column, C, 2 * W)
        if PACKED:
            k_r = tl.where(m_t[:, None], k_r, 0.0)
        k_r = rotate(k_r.to(tl.float32) + b_bias_r[None, :], cos, sin, C, W)
        k_r = operand(k_r, dtype, PRECISION)  # [C, 2W]
        q_r = _tile(bc, B + i_b, t_0 + t, column, C, 2 * W)
        q_r = rotate(q_r.to(tl.float32) + c_bias_r[None, :], cos, sin, C, W)
        q_r = operand(q_r, dtype, PRECISION)

        # q_i . k_j, and q_i S
        scores = tl.zeros((C, C), tl.float32)
        scores = dot(q_r, tl.trans(k_r), scores, PRECISION)  # [C, C]
        b_y = tl.zeros((C, P), tl.float32)
        b_y = dot(q_r, tl.trans(operand(h_r, dtype, PRECISION)), b_y, PRECISION)  # [C, P]
        if PASS > 0:
            k_q = _tile(bc, i_b, t_0 + t, column + 2 * W, C, PASS)
            if PACKED:
                k_q = tl.where(m_t[:, None], k_q, 0.0)
            k_q = operand(k_q.to(tl.float32) + b_bias_q[None, :], dtype, PRECISION)  # [C, PASS]
            q_q = _tile(bc, B + i_b, t_0 + t, column + 2 * W, C, PASS)
            q_q = operand(q_q.to(tl.float32) + c_bias_q[None, :], dtype, PRECISION)
            scores = dot(q_q, tl.trans(k_q), scores, PRECISION)
            b_y = dot(q_q, tl.trans(operand(h_q, dtype, PRECISION)), b_y, PRECISION)

        # y_i = e^{s_i} q_i S + sum_j M_ij (q_i . k_j) x_j, M = w_j e^{s_i - s_j} below the
        # diagonal and gamma_i on it
        gamma = tl.load(gates + t + HT + o_c, mask=m_t, other=0.0)
        weight = tl.load(gates + t + 2 * HT + o_c, mask=m_t, other=0.0)
        s = tl.load(gates + t + 3 * HT + o_c, mask=m_t, other=0.0)
        diagonal = tl.where(o_c[:, None] == o_c[None, :], gamma[None, :], 0.0)
        mask = exp2(s[:, None] - s[None, :], FAST) * weight[None, :]
        mask = tl.where(o_c[:, None] > o_c[None, :], mask, diagonal)
        b_y *= exp2(s, FAST)[:, None]
        b_x = _tile(x, i_b, t_0 + t, i_h * P, C, P)
        if PACKED:
            b_x = tl.where(m_t[:, None], b_x, 0.0)
        b_y = dot(operand(scores * mask, dtype, PRECISION), b_x, b_y, PRECISION)

        # S = e^{s_C} S + sum_j e^{s_C - s_j} w_j x_j k_j^T
        total = tl.load(gates + t + 3 * HT + tl.minimum(tokens - t, C) - 1)
        weight *= exp2(total - s, FAST)
        x_w = tl.trans(operand(b_x.to(tl.float32) * weight[:, None], dtype, PRECISION))  # [P, C]
        h_r = dot(x_w, k_r, h_r * exp2(total, FAST), PRECISION)
        if PASS > 0:
            h_q = dot(x_w, k_q, h_q * exp2(total, FAST), PRECISION)

        if d is not None:
            b_y += skip * b_x.to(tl.float32)
        if out_norm is not None:
            b_y *= tl.rsqrt(tl.sum(b_y * b_y, 1) / P + 1e-5)[:, None]
            b_y *= b_norm[None, :]
        if z is not None:
            b_y *= silu(_tile(z, i_b, t_0 + t, i_h * P, C, P).to(tl.float32), FAST)
        if not PACKED:
            y_tiles.store([i_b, t_0 + t, i_h * P], tl.reshape(cast(b_y, dtype), (1, C, P)))
        else:
            p_y = y + ((start + t) * H + i_h) * P + o_c[:, None] * (H * P) + o_p[None, :]
            tl.store(p_y, cast(b_y, dtype), mask=m_t[:, None])

    if end < stop:
        return
    # the state after the last token; a sequence of no tokens keeps its own
    p_h1 = h_out + (row * P + o_p[:, None]) * N
    tl.store(p_h1 + d_r[None, :], cast(h_r, h_out.dtype.element_ty))
    if PASS > 0:
        tl.store(p_h1 + d_q[None, :], cast(h_q, h_out.dtype.element_ty))
    if first < stop:
        cos, sin = cos_sin(turns[None, :], FAST)
        last = (stop - 1 - origin).to(tl.int32)
        k_r1 = _tile(bc, i_b, last, column, C, 2 * W)
        k_r1 = tl.sum(tl.where(o_c[:, None] == 0, k_r1.to(tl.float32), 0.0), 0) + b_bias_r
        k_r1 = cast(rotate(k_r1[None, :], cos, sin, 1, W), dtype)
        tl.store(k_out + row * N + d_r[None, :], k_r1)
        if PASS > 0:
            k_q1 = _tile(bc, i_b, last, column + 2 * W, C, PASS)
            k_q1 = tl.sum(tl.where(o_c[:, None] == 0, k_q1.to(tl.float32), 0.0), 0) + b_bias_q
            tl.store(k_out + row * N + d_q, cast(k_q1, dtype))
        b_x1 = _tile(x, i_b, last, i_h * P, C, P).to(tl.float32)
        b_x1 = tl.sum(tl.where(o_c[:, None] == 0, b_x1, 0.0), 0)
        tl.store(x_out + row * P + o_p, cast(b_x1, dtype))
        tl.store(phi_out + row * S + o_s, radians_of(turns), mask=o_s < S)
    else:
        o_n = tl.arange(0, N)
        k_last, x_last = tl.zeros((N,), dtype), tl.zeros((P,), dtype)
        phi = tl.zeros((W,), tl.float32)
        if h_in is not None:
            k_last = tl.load(k_in + row * N + o_n)
            x_last = tl.load(x_in + row * P + o_p)
            phi = tl.load(phi_in + row * S + o_s, mask=o_s < S, other=0.0)
        tl.store(k_out + row * N + o_n, k_last)
        tl.store(x_out + row * P + o_p, x_last)
        tl.store(phi_out + row * S + o_s, phi, mask=o_s < S)


class Launch(NamedTuple):
    """One kernel launch, to run on a GPU or to compile without one."""

    kernel: Any
    grid: tuple[int, ...]
    args: list[Any]
    options: dict[str, Any]


def launches(call: Call, config: Config) -> Iterator[Launch]:
    """The two or three launches of a prefill, in order; allocates what they hand to each other."""
    p, inputs, params = call.problem, call.inputs, call.params
    device, T, C = inputs.x.device, p.B * p.L, config.chunk
    sequences, longest = p.sequences, max(p.lengths) if p.lengths else p.L
    rates = p.H if p.theta_per_head else 1
    half = p.options.pairing == "half"
    W = max(p.S, 8)  # pairs rotated, some by nothing: a product takes 16 dims at least
    bc = torch.empty(2 * p.B, p.L, p.G * p.N, dtype=p.dtype, device=device)
    gates = torch.empty(4, p.H, T, dtype=torch.float32, device=device)
    rate = torch.empty(p.B, p.L, rates * W, dtype=torch.float32, device=device)
    dims = {"H": p.H, "G": p.G, "N": p.N, "S": p.S, "W": W, "RATES": rates, "C": C, "HALF": half}

    raw = [inputs.b, inputs.c, inputs.dt, inputs.a, inputs.lam, inputs.theta]
    strides = [token_stride(tensor) for tensor in raw]
    norms = [params.dt_bias, params.b_norm, params.c_norm]
    yield Launch(
        activate,
        (triton.cdiv(longest, C), sequences, p.G + rates + triton.cdiv(p.H, ACTIVATE_HEADS)),
        [*raw, *norms, call.cu_seqlens, bc, gates, rate, *strides, p.L, T],
        {
            **dims,
            "BLOCK_H": ACTIVATE_HEADS,
            "STEP": p.options.step,
            "DECAY": p.options.decay,
            "RMS": p.options.norm == "rms",
        },
    )

    segment = config.segment or triton.cdiv(longest, C) * C
    piece = config.piece or segment
    segments = triton.cdiv(longest, segment)
    options = {
        **dims,
        "P": p.P,
        "FAST": p.dtype != torch.float32 and not INTERPRETED,
        "PRECISION": "tf32" if p.options.matmul == "tf32" else "tf32x3",
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
    }
    x = _tiles(inputs.x, C, p.P)
    tiles = [_tiles(bc, C, 2 * W), _tiles(rate, C, W), gates]
    carried: list[Tensor | None] = [None, None, None]
    if segments > 1:
        slots = T // piece + sequences
        carried = [
            torch.empty(slots, p.H, p.P, p.N, dtype=torch.float32, device=device),
            torch.empty(slots, p.H, W, dtype=torch.int32, device=device),
            torch.empty(slots, p.H, dtype=torch.float32, device=device),
        ]
        yield Launch(
            _segment_states,
            (p.H, (segments - 1) * segment // piece, sequences),
            [x, *tiles, params.b_bias, call.cu_seqlens, *carried, p.B, p.L, T, piece, segment],
            options,
        )
    z = None if inputs.z is None else _tiles(inputs.z, C, p.P)
    biases = [params.b_bias, params.c_bias, params.d, params.out_norm]
    old = [None] * 4 if call.state is None else [tensor for _, tensor in call.state.items()]
    new = [tensor for _, tensor in call.final.items()]
    yield Launch(
        _prefill,
        (p.H, segments, sequences),
        [x, z, *tiles, *biases, call.cu_seqlens, *old, *carried, call.y, _tiles(call.y, C, p.P),
         *new, p.B, p.L, T, piece, segment],
        options,
    )  # fmt: skip


def _tiles(tensor: Tensor, tokens: int, width: int) -> TensorDescriptor:
    """A TMA descriptor of a (B, L, ...) tensor in tiles of (1, tokens, width).

    The copy engine needs rows on 16 bytes; a tensor that has others is copied once.
    """
    row = tensor[0, 0].numel()
    stride = token_stride(tensor)
    if tensor.data_ptr() % 16 or stride * tensor.itemsize % 16:
        tensor, stride = tensor.clone(memory_format=torch.contiguous_format), row
    B, L = tensor.shape[:2]
    return TensorDescriptor(tensor, [B, L, row], [L * stride, stride, 1], [1, tokens, width])


def resources(problem: Problem, config: Config) -> list[Resources]:
    """Registers, spills and shared memory of each launch on sm_90a; needs no GPU."""
    call = make_call(problem, 0, "cpu" if problem.lengths else "meta")  # lengths are read
    return [
        compile.resources(kernel, *args, **options)
        for kernel, _, args, options in launches(call, config)
    ]


@implements(
    "prefill", "triton", supports=supports, configs=configs, resources=resources, space=space
)
def prefill(call: Call, config: Config) -> None:
    """Launch the kernels on the current stream."""
    for kernel, grid, args, options in launches(call, config):
        kernel[grid](*args, **options)
