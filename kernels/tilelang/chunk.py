"""What brings a chunk's k and q, in TileLang: copies, angles, bias and rotation.

`threads` share the work of a macro; `tid` numbers them from 0.
"""

import tilelang.language as T

from .facts import COLUMNS
from .functions import RADIANS, turns_of
from .order import column_of, dim_of, token_of

EIGHT = tuple(range(8))
MOVERS = 128  # threads of `scan` that bring and turn k and q


def spread_of(facts, threads):
    """Threads that share the tokens of one angle; they are lanes of one warp."""
    return min(threads // facts.S, facts.C, 32)


def pair_of(facts, tid, threads):
    """The pair that a thread turns, and its place among those that share it.

    Neighbouring lanes turn neighbouring pairs, so that what they store lies in distinct banks.
    """
    lanes = 32 // spread_of(facts, threads)
    return tid // 32 * lanes + tid % lanes, tid % 32 // lanes


def holds_turns(facts, tid, threads):
    """Whether a thread turns a pair at all."""
    return tid < facts.S * spread_of(facts, threads)


@T.macro
def load_bias(facts, source, target, part, i_h, tid, threads):
    """A head's bias of b or c into target[part], ranks by dims by position."""
    group = facts.N // 8
    for step in T.serial(T.ceildiv(facts.R * group, threads)):
        i = step * threads + tid
        if i < facts.R * group:
            for e in EIGHT:
                dim = dim_of(i % group * 8 + e, facts.N, facts.S, facts.half)
                target[part, i // group, i % group * 8 + e] = source[i_h, i // group, dim]


@T.macro
def advance(facts, gate_shared, stage, rate_shared, turns, angle_shared, tid, threads):
    """Angles of a chunk's tokens: angle_shared (C, 2 S + 4) gets pairs of cosine and sine.

    gate_shared (stages, 4, C), rate_shared (S, C). turns (1), a register: the angle before the
    chunk, then after it.
    """
    spread = spread_of(facts, threads)
    length, lanes = facts.C // spread, 32 // spread  # tokens of a thread
    run = T.alloc_local((length,), "int32")
    before = T.alloc_local((1,), "int32")
    other = T.alloc_local((1,), "int32")
    i_s, i_spread = pair_of(facts, tid, threads)
    i_t = i_spread * length
    if holds_turns(facts, tid, threads):
        before[0] = 0
        for j in T.unroll(length):
            before[0] += turns_of(gate_shared[stage, 0, i_t + j] * rate_shared[i_s, i_t + j])
            run[j] = before[0]
        for e in tuple(range(spread.bit_length() - 1)):
            other[0] = T.shfl_up(before[0], lanes << e)
            before[0] = T.if_then_else(i_spread >= 1 << e, before[0] + other[0], before[0])
        other[0] = T.shfl_sync(before[0], tid % lanes + lanes * (spread - 1))
        before[0] += turns[0] - run[length - 1]
        turns[0] += other[0]
        for j in T.unroll(length):
            angle = T.cast(before[0] + run[j], "float32") * RADIANS
            angle_shared[i_t + j, 2 * i_s] = T.cos(angle)
            angle_shared[i_t + j, 2 * i_s + 1] = T.sin(angle)


@T.macro
def prepare(facts, gate_shared, stage, factor_shared, tid):
    """factor_shared (stages, 2, C): e^{s_i}, and w_j e^{s_C - s_j}."""
    C = facts.C
    if tid < C:
        s = gate_shared[stage, 3, tid]
        fall = T.exp2(gate_shared[stage, 3, C - 1] - s)
        factor_shared[stage, 0, tid] = T.exp2(s)
        factor_shared[stage, 1, tid] = gate_shared[stage, 2, tid] * fall


@T.macro
def mask(facts, gate_shared, stage, score_frag):
    """score_frag (C R of k, C R of q) *= M: w_j e^{s_i - s_j} for j < i, gamma_i for j = i."""
    for m, n in T.Parallel(COLUMNS, COLUMNS):
        j, i = token_of(m, facts.R), token_of(n, facts.R)
        # all loaded, then chosen from: no branches
        fall = T.exp2(gate_shared[stage, 3, i] - gate_shared[stage, 3, j])
        before = gate_shared[stage, 2, j] * fall
        gamma = gate_shared[stage, 1, j]
        same = T.if_then_else(i == j, gamma, 0.0)
        score_frag[m, n] *= T.if_then_else(i > j, before, same)


@T.macro
def widen(facts, raw_local, wide_local):
    """Eight 16-bit numbers to float32: for bfloat16 one shift or one mask each, not two."""
    if facts.dtype == "bfloat16":
        words = T.view(raw_local, (4,), "uint32")
        for i in tuple(range(4)):
            wide_local[2 * i] = T.reinterpret(T.shift_left(words[i], T.uint32(16)), "float32")
            wide_local[2 * i + 1] = T.reinterpret(words[i] & T.uint32(0xFFFF0000), "float32")
    else:
        for e in T.vectorized(8):
            wide_local[e] = raw_local[e]


@T.macro
def turn(facts, tile_shared, stage, column, i_8, bias_local, part, has_bias, cos_sin):
    """16 bytes of a column of k or q: bias and rotation, in place."""
    raw_local = T.alloc_local((8,), facts.dtype)
    wide_local = T.alloc_local((8,), "float32")
    for e in T.vectorized(8):
        raw_local[e] = tile_shared[stage, column, i_8 * 8 + e]
    widen(facts, raw_local, wide_local)
    if has_bias:
        for e in EIGHT:
            wide_local[e] += bias_local[part, e]
    for i in tuple(range(8 * facts.S // facts.N)):
        u = wide_local[2 * i] * cos_sin[2 * i] - wide_local[2 * i + 1] * cos_sin[2 * i + 1]
        v = wide_local[2 * i] * cos_sin[2 * i + 1] + wide_local[2 * i + 1] * cos_sin[2 * i]
        wide_local[2 * i] = u
        wide_local[2 * i + 1] = v
    for e in T.vectorized(8):
        raw_local[e] = wide_local[e]
    for e in T.vectorized(8):
        tile_shared[stage, column, i_8 * 8 + e] = raw_local[e]


def keeps_bias(facts, threads):
    """Whether all columns that a thread turns are of one rank."""
    return threads * 8 // facts.N % facts.R == 0


@T.macro
def keep_bias(facts, bias_shared, biased, bias_local, tid, threads):
    """The biases of a thread that turns columns of one rank, into registers."""
    group = facts.N // 8
    for part in tuple(range(len(biased))):
        if biased[part] and keeps_bias(facts, threads):
            for e in T.vectorized(8):
                bias_local[part, e] = bias_shared[part, tid // group % facts.R, tid % group * 8 + e]


@T.macro
def turn_tiles(facts, tiles, stage, bias_shared, biased, bias_local, angle_shared, tid, threads):
    """Bias and rotation of a chunk's tiles in shared memory: k, or k and q."""
    R, group, pairs = facts.R, facts.N // 8, 8 * facts.S // facts.N
    rows = threads // group  # of one step
    cos_sin = T.alloc_local((2 * pairs,), "float32")
    i_8 = tid % group
    for step in T.unroll(COLUMNS // rows):
        row = step * rows + tid // group
        column = column_of(row // R, row % R, R)
        for e in T.vectorized(2 * pairs):
            cos_sin[e] = angle_shared[row // R, i_8 * 2 * pairs + e]
        for part in tuple(range(len(tiles))):
            if biased[part] and not keeps_bias(facts, threads):
                for e in T.vectorized(8):
                    bias_local[part, e] = bias_shared[part, row % R, i_8 * 8 + e]
            turn(
                facts, tiles[part], stage, column, i_8, bias_local, part, biased[part], cos_sin
            )  # fmt: skip


@T.macro
def fetch(
    facts, bc, rate, gates, x, z, k_shared, q_shared, rate_shared, gate_shared, x_shared, z_shared,
    full, slot, start, i_h, i_g, i_r, stage, has_q, has_z,
):  # fmt: skip
    """Ask for a chunk's slot and inputs by TMA; full[stage] completes when all have come."""
    C, P, N, S = facts.C, facts.P, facts.N, facts.S
    at = i_h * P
    T.tma_copy(gates[slot, i_h, 0:4, 0:C], gate_shared[stage, 0:4, 0:C], barrier=full[stage])
    T.tma_copy(rate[slot, i_r, 0:S, 0:C], rate_shared, barrier=full[stage])
    T.tma_copy(
        bc[0, slot, i_g, 0:COLUMNS, 0:N], k_shared[stage, 0:COLUMNS, 0:N], barrier=full[stage]
    )
    if has_q:
        T.tma_copy(
            bc[1, slot, i_g, 0:COLUMNS, 0:N], q_shared[stage, 0:COLUMNS, 0:N], barrier=full[stage]
        )
    T.tma_copy(x[start : start + C, at : at + P], x_shared[stage, 0:C, 0:P], barrier=full[stage])
    if has_z:
        T.tma_copy(
            z[start : start + C, at : at + P], z_shared[stage, 0:C, 0:P], barrier=full[stage]
        )
    T.barrier_arrive(full[stage])
