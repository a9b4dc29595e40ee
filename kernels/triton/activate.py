"""The per-token part of prefill in Triton: activations, norms, and decays summed within chunks.

Its results are small: b and c are shared by the heads of a group, the rest is one number per token
and head. Computed once here, they cost the main kernel no barriers.
"""

import triton
import triton.language as tl

from .functions import cast, decay_log, dim_of, greatest, softplus, tanh


@triton.jit
def sequence(cu_seqlens, i_seq, L):
    """First token and end of a sequence."""
    if cu_seqlens is None:
        first = i_seq.to(tl.int64) * L
        stop = first + L
    else:
        first = tl.load(cu_seqlens + i_seq).to(tl.int64)
        stop = tl.load(cu_seqlens + i_seq + 1).to(tl.int64)
    return first, stop


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
def _step(dt, bias, m, STEP: tl.constexpr):
    """The step sizes D at some addresses; zero outside."""
    step = tl.load(dt, mask=m, other=0.0).to(tl.float32)
    if STEP == "softplus":
        step = tl.where(m, softplus(step + bias), 0.0)
    return step


@triton.jit
def _lost(
    theta, m_t, h_0, S: tl.constexpr, W: tl.constexpr, C: tl.constexpr, RATES: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """How many numbers of theta are NaN, for each token and head: (C, BLOCK_H)."""
    o_s, o_h = tl.arange(0, W), tl.arange(0, BLOCK_H)
    m = m_t[:, None] & (o_s < S)[None, :]
    lost = tl.zeros((C, BLOCK_H), tl.int32)
    for i in range(1 if RATES == 1 else BLOCK_H):
        i_r = tl.minimum(h_0 + i, RATES - 1)
        b_theta = tl.load(theta[:, None] + i_r * S + o_s[None, :], mask=m, other=0.0)
        of_rate = tl.sum((b_theta != b_theta).to(tl.int32), 1)[:, None]
        lost += tl.where((o_h == i)[None, :] | (RATES == 1), of_rate, 0)
    return lost


@triton.jit(do_not_specialize=("L", "T"))
def activate(
    b, c, dt, a, lam, theta, dt_bias, b_norm, c_norm, cu_seqlens,
    bc, gates, rate,
    b_stride, c_stride, dt_stride, a_stride, lam_stride, theta_stride, L, T,
    H: tl.constexpr, G: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    W: tl.constexpr, RATES: tl.constexpr, C: tl.constexpr, BLOCK_H: tl.constexpr,
    STEP: tl.constexpr, DECAY: tl.constexpr, RMS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program per (chunk of a sequence, part): a group of b and c, a rate, or BLOCK_H heads.

    bc (2, T, G, N): normalised b and c, in pairwise order.
    rate (T, RATES, W): tanh(theta) / 2, the turns per unit of step size, zero from S to W.
    gates (4, H, T): D, gamma = lam D, the column weight w, and log2 of the decay since the chunk's
    start.
    """
    i_seq, i_part = tl.program_id(1), tl.program_id(2)
    first, stop = sequence(cu_seqlens, i_seq, L)
    o_t = first + tl.program_id(0) * C + tl.arange(0, C)
    m_t = o_t < stop
    if i_part < G:
        o_n = tl.arange(0, N)
        d_n = dim_of(o_n, S, N, HALF)
        row = (o_t * G + i_part) * N
        _normalise(b + o_t * b_stride + i_part * N, bc + row, b_norm, o_n, d_n, m_t, N, RMS)
        row += tl.cast(T, tl.int64) * (G * N)
        _normalise(c + o_t * c_stride + i_part * N, bc + row, c_norm, o_n, d_n, m_t, N, RMS)
    elif i_part < G + RATES:
        i_r = i_part - G
        o_s = tl.arange(0, W)
        m_s = m_t[:, None] & (o_s < S)[None, :]
        p_theta = theta + o_t[:, None] * theta_stride + i_r * S + o_s[None, :]
        b_theta = tl.load(p_theta, mask=m_s, other=0.0).to(tl.float32)
        p_rate = rate + (o_t[:, None] * RATES + i_r) * W + o_s[None, :]
        tl.store(p_rate, 0.5 * tanh(b_theta), mask=m_t[:, None])
    else:
        h_0 = (i_part - G - RATES) * BLOCK_H
        o_h = h_0 + tl.arange(0, BLOCK_H)
        m_h = (o_h < H)[None, :]
        m = m_t[:, None] & m_h
        bias = tl.zeros((BLOCK_H,), tl.float32)
        if dt_bias is not None:
            bias += tl.load(dt_bias + o_h, mask=o_h < H, other=0.0)
        p_dt = dt + o_t[:, None] * dt_stride + o_h[None, :]
        p_lam = lam + o_t[:, None] * lam_stride + o_h[None, :]
        step = _step(p_dt, bias[None, :], m, STEP)
        b_lam = tl.load(p_lam, mask=m, other=0.0).to(tl.float32)
        gamma = step / (1.0 + tl.exp(-b_lam))
        # w_t = lam_t D_t + (1 - lam_{t+1}) D_{t+1}, without the second term at the last token
        m_next = (o_t + 1 < stop)[:, None] & m_h
        ahead = _step(p_dt + dt_stride, bias[None, :], m_next, STEP)
        b_lam = tl.load(p_lam + lam_stride, mask=m_next, other=0.0).to(tl.float32)
        weight = gamma + ahead / (1.0 + tl.exp(b_lam))
        b_a = tl.load(a + o_t[:, None] * a_stride + o_h[None, :], mask=m, other=0.0).to(tl.float32)
        # e^-100 is zero in float32; the floor keeps differences of sums accurate after it
        log_decay = greatest(decay_log(b_a, step, DECAY), -100.0) * 1.4426950408889634
        # angles are integers, which cannot be NaN: the decay is, in their place
        lost = _lost(theta + o_t * theta_stride, m_t, h_0, S, W, C, RATES, BLOCK_H)
        log_decay = tl.where(lost > 0, float("nan"), log_decay)
        HT = tl.cast(T, tl.int64) * H
        p_gate = gates + o_h[None, :] * tl.cast(T, tl.int64) + o_t[:, None]
        tl.store(p_gate, step, mask=m)
        tl.store(p_gate + HT, gamma, mask=m)
        tl.store(p_gate + 2 * HT, weight, mask=m)
        tl.store(p_gate + 3 * HT, tl.cumsum(tl.where(m, log_decay, 0.0), 0), mask=m)
