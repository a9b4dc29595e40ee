"""SISO prefill in Triton: the chunked form of the recurrence, two or three launches.

1. `_activate`: activations of dt, a, lam and theta, RMSNorm of b and c: small, once per token.
2. `_segment_states`: only when sequences are cut for parallelism. One program per (head, segment):
   what the segment adds to the state, in the frame of its first token's angles.
3. `_prefill`: one program per (head, segment): the state before the segment (from the initial state
   and the segments before it), then chunk by chunk the output and the state in registers.

Angles are kept as int32 in units of 2^-32 turns: the sum wraps exactly where an angle does, so it is
associative, as accurate after a million tokens as after one, and the same however a sequence is cut.
Inside, the dims of b and c are ordered in pairs (u_0, v_0, u_1, v_1, ...), rotated ones first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ..call import Call, token_stride
from ..cases import make_call
from ..problem import Problem
from ..registry import Resources, implements
from . import compile
from .portable import INTERPRETED, cast, dot

ACTIVATE_TOKENS = 16  # tokens of one program of `_activate`


@dataclass(frozen=True, slots=True)
class Config:
    """chunk: tokens of one chunk. segment: tokens of one program, a multiple of chunk; 0 = all."""

    chunk: int = 64
    segment: int = 0
    num_warps: int = 4
    num_stages: int = 2


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
    if device.type != "cuda" and not INTERPRETED:
        return "needs a CUDA device (or TRITON_INTERPRET=1 set before the import)"
    return None


def configs(problem: Problem, device: torch.device) -> Iterator[Config]:
    """Legal configurations, best guess first."""
    chunk = 64
    yield Config(chunk, _segment(problem, device, chunk))


def _segment(problem: Problem, device: torch.device, chunk: int) -> int:
    """Tokens per segment, so that the programs fill the GPU about twice; 0 if the heads alone do."""
    longest = max(problem.lengths) if problem.lengths else problem.L
    rows = problem.H * problem.sequences
    sms = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 132
    )
    wanted = triton.cdiv(4 * sms, rows)
    if wanted < 2 or longest <= 2 * chunk:
        return 0
    chunks = max(2, triton.cdiv(longest, wanted * chunk))
    return chunks * chunk


@triton.jit
def _dim(o, S: tl.constexpr, N: tl.constexpr, HALF: tl.constexpr):
    """The dim of b, c, k and h at position o of the pairwise order."""
    if HALF:
        i = o // 2 + (o % 2) * (N // 2)
        dim = tl.where(o < 2 * S, i, tl.where(o < N // 2 + S, o - S, o))
    else:
        dim = o
    return dim


@triton.jit
def _normalise(source, target, weight, o_n, d_n, m_t, N: tl.constexpr, RMS: tl.constexpr):
    """RMSNorm of some rows of b or c, stored in pairwise order."""
    b_v = tl.load(source[:, None] + d_n[None, :], mask=m_t[:, None], other=0.0).to(tl.float32)
    if RMS:
        b_v *= tl.rsqrt(tl.sum(b_v * b_v, 1) / N + 1e-5)[:, None]
        if weight is not None:
            b_v *= tl.load(weight + d_n)[None, :]
    tl.store(target[:, None] + o_n[None, :], cast(b_v, target.dtype.element_ty), mask=m_t[:, None])


@triton.jit
def _softplus(u):
    return tl.maximum(u, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(u)))


@triton.jit
def _activate(
    b, c, dt, a, lam, theta, dt_bias, b_norm, c_norm,
    bc, gates, rate,
    b_stride, c_stride, dt_stride, a_stride, lam_stride, theta_stride, T,
    H: tl.constexpr, G: tl.constexpr, N: tl.constexpr, S: tl.constexpr, RATES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
    STEP: tl.constexpr, DECAY: tl.constexpr, RMS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program per BLOCK_T tokens.

    bc (2, T, G, N): normalised b and c. rate (T, RATES, S): turns per unit of step size.
    gates (3, H, T): lam D, (1 - lam) D, and log2 of the decay.
    """
    o_t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    m_t = o_t < T
    o_n = tl.arange(0, N)
    d_n = _dim(o_n, S, N, HALF)
    for i_g in range(G):
        row = (o_t * G + i_g) * N
        _normalise(b + o_t * b_stride + i_g * N, bc + row, b_norm, o_n, d_n, m_t, N, RMS)
        _normalise(
            c + o_t * c_stride + i_g * N, bc + T * G * N + row, c_norm, o_n, d_n, m_t, N, RMS
        )

    # theta_t = pi tanh(theta) per unit of step size: tanh(theta) / 2 turns
    o_s = tl.arange(0, S)
    for i_r in range(RATES):
        p_theta = theta + o_t[:, None] * theta_stride + i_r * S + o_s[None, :]
        u = tl.load(p_theta, mask=m_t[:, None], other=0.0).to(tl.float32)
        e = tl.exp(-2.0 * tl.abs(u))
        # 1 - e cancels for small u: there the series of tanh is exact to float32
        small = u * (1.0 - u * u * (1.0 / 3.0 - u * u * (2.0 / 15.0 - u * u * (17.0 / 315.0))))
        tanh = tl.where(tl.abs(u) < 0.15, small, tl.where(u < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e))
        p_rate = rate + (o_t[:, None] * RATES + i_r) * S + o_s[None, :]
        tl.store(p_rate, 0.5 * tanh, mask=m_t[:, None])

    for i_h in range(0, H, BLOCK_H):
        o_h = i_h + tl.arange(0, BLOCK_H)
        m = m_t[:, None] & (o_h < H)[None, :]
        step = tl.load(dt + o_t[:, None] * dt_stride + o_h[None, :], mask=m, other=0.0).to(
            tl.float32
        )
        if STEP == "softplus":
            if dt_bias is not None:
                step += tl.load(dt_bias + o_h, mask=o_h < H, other=0.0)[None, :]
            step = _softplus(step)
        u = tl.load(a + o_t[:, None] * a_stride + o_h[None, :], mask=m, other=0.0).to(tl.float32)
        if DECAY == "log_decay":
            log_decay = u
        elif DECAY == "heavy_tail":
            f = tl.where(u >= 0, 1.0 + u, 1.0 / (1.0 - tl.minimum(u, 0.0)))
            log_decay = -tl.maximum(f, 1e-4) * step
        else:
            log_decay = -tl.maximum(_softplus(u), 1e-4) * step
        # e^-100 is zero in float32; the floor keeps differences of sums accurate after it
        log_decay = tl.maximum(log_decay, -100.0) * 1.4426950408889634
        v = tl.load(lam + o_t[:, None] * lam_stride + o_h[None, :], mask=m, other=0.0).to(
            tl.float32
        )
        p_gate = gates + o_h[None, :].to(tl.int64) * T + o_t[:, None]
        tl.store(p_gate, step / (1.0 + tl.exp(-v)), mask=m)
        tl.store(p_gate + H * T, step / (1.0 + tl.exp(v)), mask=m)
        tl.store(p_gate + 2 * H * T, log_decay, mask=m)


@triton.jit
def _turns(step, rate):
    """step (C), rate (C, S) -> the angle increments in units of 2^-32 turns, int32."""
    t = step[:, None] * rate
    t = (t - tl.floor(t + 0.5)) * 4294967296.0
    return tl.minimum(t, 2147483520.0).to(tl.int32)  # the largest float32 below 2^31


@triton.jit
def _exp2(v, FAST: tl.constexpr):
    """2^v; fast flushes denormals, which costs one instruction and not four."""
    if FAST:
        e = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        e = tl.exp2(v)
    return e


@triton.jit
def _silu(v, FAST: tl.constexpr):
    """v / (1 + e^-v)."""
    if FAST:
        denominator = 1.0 + _exp2(v * -1.4426950408889634, FAST)
        out = v * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [denominator], dtype=tl.float32, is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        out = v / (1.0 + tl.exp(-v))
    return out


@triton.jit
def _cos_sin(turns, FAST: tl.constexpr):
    angle = turns.to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    if FAST:
        cos, sin = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        cos, sin = tl.cos(angle), tl.sin(angle)
    return cos, sin


@triton.jit
def _rotate(v, cos, sin, ROWS: tl.constexpr, S: tl.constexpr):
    """Rotate the pairs of v (ROWS, 2S) by angles that broadcast to (ROWS, S)."""
    u, w = tl.split(tl.reshape(v, (ROWS, S, 2)))
    return tl.reshape(tl.join(u * cos - w * sin, u * sin + w * cos), (ROWS, 2 * S))


@triton.jit
def _sequence(cu_seqlens, i_seq, L):
    """First token and end of a sequence."""
    if cu_seqlens is None:
        first = i_seq.to(tl.int64) * L
        stop = first + L
    else:
        first = tl.load(cu_seqlens + i_seq).to(tl.int64)
        stop = tl.load(cu_seqlens + i_seq + 1).to(tl.int64)
    return first, stop


@triton.jit
def _gates(gates, o_c, left, HT):
    """lam_t D_t, (1 - lam_t) D_t, the column weight w_t, and log2 of the decay; zero past `left`."""
    m_t = o_c < left
    gamma = tl.load(gates + o_c, mask=m_t, other=0.0)
    rest = tl.load(gates + HT + o_c, mask=m_t, other=0.0)
    ahead = tl.load(gates + HT + 1 + o_c, mask=o_c + 1 < left, other=0.0)
    log_decay = tl.load(gates + 2 * HT + o_c, mask=m_t, other=0.0)
    return gamma, rest, gamma + ahead, log_decay


@triton.jit
def _segment_states(
    x, bc, gates, rate, b_bias, cu_seqlens, seg_h, seg_turns, seg_decay,
    x_stride, L, T, segment,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    RATES: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per (head, segment but a sequence's last): dS, its angle and its log2 decay.

    seg_h (slots, H, P, N), seg_turns (slots, H, S), seg_decay (slots, H); keys are rotated by the
    angles accumulated since the segment's start.
    """
    i_h, i_seg, i_seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, stop = _sequence(cu_seqlens, i_seq, L)
    start = first + i_seg * segment
    end = start + segment
    if end >= stop:
        return
    PASS: tl.constexpr = N - 2 * S
    dtype = bc.dtype.element_ty
    o_c, o_s, o_p = tl.arange(0, C), tl.arange(0, S), tl.arange(0, P)
    o_r = tl.arange(0, 2 * S)
    bias_r = tl.zeros((2 * S,), tl.float32)
    if b_bias is not None:
        bias_r += tl.load(b_bias + i_h * N + _dim(o_r, S, N, HALF))
    h_r = tl.zeros((P, 2 * S), tl.float32)
    if PASS > 0:
        o_q = 2 * S + tl.arange(0, PASS)
        bias_q = tl.zeros((PASS,), tl.float32)
        if b_bias is not None:
            bias_q += tl.load(b_bias + i_h * N + _dim(o_q, S, N, HALF))
        h_q = tl.zeros((P, PASS), tl.float32)
    turns = tl.zeros((S,), tl.int32)
    decay = 0.0
    rate += (i_h % RATES) * S
    gates += i_h * T
    for t in range(start, end, C):
        left = (stop - t).to(tl.int32)
        gamma, rest, weight, log_decay = _gates(gates + t, o_c, left, H * T)
        b_rate = tl.load(rate + t * (RATES * S) + o_c[:, None] * (RATES * S) + o_s[None, :])
        step_turns = _turns(gamma + rest, b_rate)  # [C, S]
        cos, sin = _cos_sin(turns[None, :] + tl.cumsum(step_turns, 0), FAST)
        turns += tl.sum(step_turns, 0)

        p_b = bc + (t * G + i_h // (H // G)) * N + o_c[:, None] * (G * N)
        k_r = tl.load(p_b + o_r[None, :]).to(tl.float32) + bias_r[None, :]
        k_r = cast(_rotate(k_r, cos, sin, C, S), dtype)  # [C, 2S]
        b_x = tl.load(x + t * x_stride + i_h * P + o_c[:, None] * x_stride + o_p[None, :])  # [C, P]
        total = tl.sum(log_decay, 0)
        # dS = e^{s_C} dS + sum_j e^{s_C - s_j} w_j x_j k_j^T
        column = weight * _exp2(total - tl.cumsum(log_decay, 0), FAST)
        x_w = tl.trans(cast(b_x.to(tl.float32) * column[:, None], dtype))  # [P, C]
        h_r = dot(x_w, k_r, h_r * _exp2(total, FAST), PRECISION)
        if PASS > 0:
            k_q = cast(tl.load(p_b + o_q[None, :]).to(tl.float32) + bias_q[None, :], dtype)
            h_q = dot(x_w, k_q, h_q * _exp2(total, FAST), PRECISION)
        decay += total
    slot = (first // segment + i_seq + i_seg) * H + i_h
    p_h = seg_h + (slot * P + o_p[:, None]) * N
    tl.store(p_h + o_r[None, :], h_r)
    if PASS > 0:
        tl.store(p_h + o_q[None, :], h_q)
    tl.store(seg_turns + slot * S + o_s, turns)
    tl.store(seg_decay + slot, decay)


@triton.jit
def _prefill(
    x, z, bc, gates, rate, b_bias, c_bias, d, out_norm, cu_seqlens,
    phi_in, h_in, k_in, x_in, seg_h, seg_turns, seg_decay,
    y, phi_out, h_out, k_out, x_out,
    x_stride, z_stride, L, T, segment,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    RATES: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per (head, segment): the output of its tokens; a sequence's last one ends its state."""
    i_h, i_seg, i_seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, stop = _sequence(cu_seqlens, i_seq, L)
    start = first + i_seg * segment
    if start >= stop and i_seg > 0:
        return
    end = tl.minimum(start + segment, stop)
    PASS: tl.constexpr = N - 2 * S
    dtype = bc.dtype.element_ty
    o_c, o_s, o_p = tl.arange(0, C), tl.arange(0, S), tl.arange(0, P)
    o_r = tl.arange(0, 2 * S)
    d_r = _dim(o_r, S, N, HALF)
    row = i_seq.to(tl.int64) * H + i_h
    bias_b, bias_c = tl.zeros((2 * S,), tl.float32), tl.zeros((2 * S,), tl.float32)
    if b_bias is not None:
        bias_b += tl.load(b_bias + i_h * N + d_r)
    if c_bias is not None:
        bias_c += tl.load(c_bias + i_h * N + d_r)
    h_r = tl.zeros((P, 2 * S), tl.float32)
    if PASS > 0:
        o_q = 2 * S + tl.arange(0, PASS)
        d_q = _dim(o_q, S, N, HALF)
        bias_b_q, bias_c_q = tl.zeros((PASS,), tl.float32), tl.zeros((PASS,), tl.float32)
        if b_bias is not None:
            bias_b_q += tl.load(b_bias + i_h * N + d_q)
        if c_bias is not None:
            bias_c_q += tl.load(c_bias + i_h * N + d_q)
        h_q = tl.zeros((P, PASS), tl.float32)
    turns = tl.zeros((S,), tl.int32)
    gates += i_h * T

    # S_0 = h_init + D_0 (1 - lam_0) x_init k_init^T
    if h_in is not None:
        b_phi = tl.load(phi_in + row * S + o_s) * 0.15915494309189535  # turns
        turns = _turns(tl.full((1,), 1.0, tl.float32), b_phi[None, :]).reshape((S,))
        ahead = tl.load(gates + H * T + first, mask=first < stop, other=0.0)
        b_x0 = ahead * tl.load(x_in + row * P + o_p).to(tl.float32)
        p_h0 = h_in + (row * P + o_p[:, None]) * N
        h_r = tl.load(p_h0 + d_r[None, :]).to(tl.float32)
        h_r += b_x0[:, None] * tl.load(k_in + row * N + d_r).to(tl.float32)[None, :]
        if PASS > 0:
            h_q = tl.load(p_h0 + d_q[None, :]).to(tl.float32)
            h_q += b_x0[:, None] * tl.load(k_in + row * N + d_q).to(tl.float32)[None, :]

    # S = e^{s} S + dS Rot(phi)^T over the segments before this one
    if seg_h is not None:
        for j in range(i_seg):
            slot = (first // segment + i_seq + j) * H + i_h
            cos, sin = _cos_sin(turns[None, :], FAST)
            scale = _exp2(tl.load(seg_decay + slot), FAST)
            p_h = seg_h + (slot * P + o_p[:, None]) * N
            h_r = h_r * scale + _rotate(tl.load(p_h + o_r[None, :]), cos, sin, P, S)
            if PASS > 0:
                h_q = h_q * scale + tl.load(p_h + o_q[None, :])
            turns += tl.load(seg_turns + slot * S + o_s)

    rate += (i_h % RATES) * S
    i_g = i_h // (H // G)
    for t in range(start, end, C):
        left = (stop - t).to(tl.int32)
        m_t = (o_c < left)[:, None]
        gamma, rest, weight, log_decay = _gates(gates + t, o_c, left, H * T)
        s = tl.cumsum(log_decay, 0)
        p_rate = rate + t * (RATES * S) + o_c[:, None] * (RATES * S) + o_s[None, :]
        b_rate = tl.load(p_rate, mask=m_t, other=0.0)
        step_turns = _turns(gamma + rest, b_rate)  # [C, S]
        cos, sin = _cos_sin(turns[None, :] + tl.cumsum(step_turns, 0), FAST)
        turns += tl.sum(step_turns, 0)

        # q_i . k_j, and e^{s_i} q_i S_in
        p_b = bc + (t * G + i_g) * N + o_c[:, None] * (G * N)
        p_c = bc + (T + t) * (G * N) + i_g * N + o_c[:, None] * (G * N)
        k_r = tl.load(p_b + o_r[None, :], mask=m_t, other=0.0).to(tl.float32)
        k_r = cast(_rotate(k_r + bias_b[None, :], cos, sin, C, S), dtype)  # [C, 2S]
        q_r = tl.load(p_c + o_r[None, :], mask=m_t, other=0.0).to(tl.float32)
        q_r = cast(_rotate(q_r + bias_c[None, :], cos, sin, C, S), dtype)
        scores = tl.zeros((C, C), tl.float32)
        scores = dot(q_r, tl.trans(k_r), scores, PRECISION)  # [C, C]
        b_y = tl.zeros((C, P), tl.float32)
        b_y = dot(q_r, tl.trans(cast(h_r, dtype)), b_y, PRECISION)  # [C, P]
        if PASS > 0:
            k_q = tl.load(p_b + o_q[None, :], mask=m_t, other=0.0).to(tl.float32)
            k_q = cast(k_q + bias_b_q[None, :], dtype)  # [C, PASS]
            q_q = tl.load(p_c + o_q[None, :], mask=m_t, other=0.0).to(tl.float32)
            q_q = cast(q_q + bias_c_q[None, :], dtype)
            scores = dot(q_q, tl.trans(k_q), scores, PRECISION)
            b_y = dot(q_q, tl.trans(cast(h_q, dtype)), b_y, PRECISION)

        # y_i = e^{s_i} q_i S + sum_j M_ij (q_i . k_j) x_j, M = w_j e^{s_i - s_j} below the
        # diagonal and gamma_i on it
        diagonal = tl.where(o_c[:, None] == o_c[None, :], gamma[None, :], 0.0)
        mask = _exp2(s[:, None] - s[None, :], FAST) * weight[None, :]
        mask = tl.where(o_c[:, None] > o_c[None, :], mask, diagonal)
        b_x = tl.load(
            x + t * x_stride + i_h * P + o_c[:, None] * x_stride + o_p[None, :], mask=m_t, other=0.0
        )
        b_y *= _exp2(s, FAST)[:, None]
        b_y = dot(cast(scores * mask, dtype), b_x, b_y, PRECISION)

        # S = e^{s_C} S + sum_j e^{s_C - s_j} w_j x_j k_j^T
        total = tl.sum(log_decay, 0)
        column = weight * _exp2(total - s, FAST)
        x_w = tl.trans(cast(b_x.to(tl.float32) * column[:, None], dtype))  # [P, C]
        h_r = dot(x_w, k_r, h_r * _exp2(total, FAST), PRECISION)
        if PASS > 0:
            h_q = dot(x_w, k_q, h_q * _exp2(total, FAST), PRECISION)

        if d is not None:
            b_y += tl.load(d + i_h) * b_x.to(tl.float32)
        if out_norm is not None:
            b_y *= tl.rsqrt(tl.sum(b_y * b_y, 1) / P + 1e-5)[:, None]
            b_y *= tl.load(out_norm + i_h * P + o_p)[None, :]
        if z is not None:
            b_z = tl.load(
                z + t * z_stride + i_h * P + o_c[:, None] * z_stride + o_p[None, :],
                mask=m_t,
                other=0.0,
            )
            b_z = b_z.to(tl.float32)
            b_y *= _silu(b_z, FAST)
        tl.store(
            y + (t * H + i_h) * P + o_c[:, None] * (H * P) + o_p[None, :],
            cast(b_y, dtype),
            mask=m_t,
        )

    if end < stop:
        return
    # the state after the last token; a sequence of no tokens keeps its own
    p_h1 = h_out + (row * P + o_p[:, None]) * N
    tl.store(p_h1 + d_r[None, :], cast(h_r, h_out.dtype.element_ty))
    if PASS > 0:
        tl.store(p_h1 + d_q[None, :], cast(h_q, h_out.dtype.element_ty))
    phi = (turns.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 3.7450704e-07  # 2 pi / 2^24
    if first < stop:
        cos, sin = _cos_sin(turns[None, :], FAST)
        p_b = bc + ((stop - 1) * G + i_g) * N
        k_r1 = (tl.load(p_b + o_r).to(tl.float32) + bias_b)[None, :]
        tl.store(k_out + row * N + d_r[None, :], cast(_rotate(k_r1, cos, sin, 1, S), dtype))
        if PASS > 0:
            tl.store(
                k_out + row * N + d_q, cast(tl.load(p_b + o_q).to(tl.float32) + bias_b_q, dtype)
            )
        tl.store(x_out + row * P + o_p, tl.load(x + (stop - 1) * x_stride + i_h * P + o_p))
        tl.store(phi_out + row * S + o_s, phi)
    else:
        o_n = tl.arange(0, N)
        k_last, x_last = tl.zeros((N,), dtype), tl.zeros((P,), dtype)
        phi = tl.zeros((S,), tl.float32)
        if h_in is not None:
            k_last = tl.load(k_in + row * N + o_n)
            x_last = tl.load(x_in + row * P + o_p)
            phi = tl.load(phi_in + row * S + o_s)
        tl.store(k_out + row * N + o_n, k_last)
        tl.store(x_out + row * P + o_p, x_last)
        tl.store(phi_out + row * S + o_s, phi)


class Launch(NamedTuple):
    """One kernel launch, to run on a GPU or to compile without one."""

    kernel: Any
    grid: tuple[int, ...]
    args: list[Any]
    options: dict[str, Any]


def launches(call: Call, config: Config) -> Iterator[Launch]:
    """The two or three launches of a prefill, in order; allocates what they hand to each other."""
    p, inputs, params = call.problem, call.inputs, call.params
    device, T = inputs.x.device, p.B * p.L
    sequences, longest = p.sequences, max(p.lengths) if p.lengths else p.L
    rates = p.H if p.theta_per_head else 1
    half = p.options.pairing == "half"
    bc = torch.empty(2, T, p.G, p.N, dtype=p.dtype, device=device)
    gates = torch.empty(3, p.H, T, dtype=torch.float32, device=device)
    rate = torch.empty(T, rates, p.S, dtype=torch.float32, device=device)
    dims = {"H": p.H, "G": p.G, "N": p.N, "S": p.S, "RATES": rates, "HALF": half}

    raw = [inputs.b, inputs.c, inputs.dt, inputs.a, inputs.lam, inputs.theta]
    strides = [token_stride(tensor) for tensor in raw]
    yield Launch(
        _activate,
        (triton.cdiv(T, ACTIVATE_TOKENS),),
        [*raw, params.dt_bias, params.b_norm, params.c_norm, bc, gates, rate, *strides, T],
        {
            **dims,
            "BLOCK_T": ACTIVATE_TOKENS,
            "BLOCK_H": min(64, triton.next_power_of_2(p.H)),
            "STEP": p.options.step,
            "DECAY": p.options.decay,
            "RMS": p.options.norm == "rms",
        },
    )

    segment = config.segment or triton.cdiv(longest, config.chunk) * config.chunk
    segments = triton.cdiv(longest, segment)
    options = {
        **dims,
        "P": p.P,
        "C": config.chunk,
        "FAST": p.dtype != torch.float32 and not INTERPRETED,
        "PRECISION": "tf32" if p.options.matmul == "tf32" else "tf32x3",
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    carried: list[Tensor | None] = [None, None, None]
    if segments > 1:
        slots = T // segment + sequences
        carried = [
            torch.empty(slots, p.H, p.P, p.N, dtype=torch.float32, device=device),
            torch.empty(slots, p.H, p.S, dtype=torch.int32, device=device),
            torch.empty(slots, p.H, dtype=torch.float32, device=device),
        ]
        yield Launch(
            _segment_states,
            (p.H, segments - 1, sequences),
            [inputs.x, bc, gates, rate, params.b_bias, call.cu_seqlens, *carried,
             token_stride(inputs.x), p.L, T, segment],
            options,
        )  # fmt: skip
    old = [None] * 4 if call.state is None else [tensor for _, tensor in call.state.items()]
    new = [tensor for _, tensor in call.final.items()]
    z_stride = 0 if inputs.z is None else token_stride(inputs.z)
    yield Launch(
        _prefill,
        (p.H, segments, sequences),
        [inputs.x, inputs.z, bc, gates, rate, params.b_bias, params.c_bias, params.d,
         params.out_norm, call.cu_seqlens, *old, *carried, call.y, *new,
         token_stride(inputs.x), z_stride, p.L, T, segment],
        options,
    )  # fmt: skip


def resources(problem: Problem, config: Config) -> list[Resources]:
    """Registers, spills and shared memory of each launch on sm_90a; needs no GPU."""
    call = make_call(problem, 0, "meta")
    return [
        compile.resources(kernel, *args, **options)
        for kernel, _, args, options in launches(call, config)
    ]


@implements("prefill", "triton", supports=supports, configs=configs, resources=resources)
def prefill(call: Call, config: Config) -> None:
    """Launch the kernels on the current stream."""
    for kernel, grid, args, options in launches(call, config):
        kernel[grid](*args, **options)
