"""What brings a chunk's k and q, in TileLang: copies, angles, bias and rotation.

`threads` share the work of a macro; `tid` numbers them from 0.
"""

import tilelang.language as T

from .facts import COLUMNS
from .functions import RADIANS, turns_of
from .order import column_of, dim_of, rate_of, token_of

EIGHT = tuple(range(8))
MOVERS = 128  # threads of `scan` that turn k and q and make the scores


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


def tokens_of(facts, threads):
    """Tokens whose angle one thread makes."""
    return facts.C // spread_of(facts, threads)


@T.macro
def advance(facts, gate_shared, rate_shared, turns, run, i, tid, threads, backward=False):
    """The angles of a thread's tokens of chunk i: run (`tokens_of`), registers, turns in int32.

    gate_shared (4, C), rate_shared (S, C), of which each keeps some chunks in turns. turns (1), a
    register: the angle before the chunk, then after it; backward, the angle after the chunk, then
    before it.
    """
    gate, rate = i % gate_shared.shape[0], i % rate_shared.shape[0]
    spread = spread_of(facts, threads)
    length, lanes = tokens_of(facts, threads), 32 // spread
    before = T.alloc_local((1,), "int32")
    other = T.alloc_local((1,), "int32")
    i_s, i_spread = pair_of(facts, tid, threads)
    i_t = i_spread * length
    if holds_turns(facts, tid, threads):
        before[0] = 0
        for j in T.unroll(length):
            place = rate_of(i_s, i_t + j, facts.C)
            before[0] += turns_of(gate_shared[gate, 0, i_t + j] * rate_shared[rate, i_s, place])
            run[j] = before[0]
        for e in tuple(range(spread.bit_length() - 1)):
            other[0] = T.shfl_up(before[0], lanes << e)
            before[0] = T.if_then_else(i_spread >= 1 << e, before[0] + other[0], before[0])
        other[0] = T.shfl_sync(before[0], tid % lanes + lanes * (spread - 1))
        if backward:
            turns[0] -= other[0]
        before[0] += turns[0] - run[length - 1]
        if not backward:
            turns[0] += other[0]
        for j in T.unroll(length):
            run[j] += before[0]


@T.macro
def put_angles(facts, run, angle_shared, tid, threads):
    """angle_shared (C, 2 S + 4) gets pairs of cosine and sine. run: what `advance` made."""
    length = tokens_of(facts, threads)
    i_s, i_spread = pair_of(facts, tid, threads)
    if holds_turns(facts, tid, threads):
        for j in T.unroll(length):
            phi = T.cast(run[j], "float32") * RADIANS
            angle_shared[i_spread * length + j, 2 * i_s] = T.cos(phi)
            angle_shared[i_spread * length + j, 2 * i_s + 1] = T.sin(phi)


def deferred(facts):
    """By how many powers of two h may fall before its decay is carried out.

    What is deferred makes x and h larger, so float16 has little room for it.
    """
    return 64.0 if facts.dtype == "bfloat16" else 2.0


def falls_far(facts, gate_shared, gate):
    """Whether a chunk alone falls by more than can be deferred."""
    return gate_shared[gate, 3, facts.C - 1] < -deferred(facts)


@T.macro
def prepare(facts, gate_shared, i, factor_shared, stage, scale, falls, tid):
    """factor_shared (stages, 3, C): e^{S + s_i}, by which y_i is multiplied, what x_j is, and
    e^{-S - s_i}, of chunk i.

    Registers: scale (1), S in powers of two; falls (2), what h is multiplied by before and after it
    is read.
    """
    C, gate = facts.C, i % gate_shared.shape[0]
    fall = T.alloc_var("float32", init=gate_shared[gate, 3, C - 1])
    far = falls_far(facts, gate_shared, gate)
    falls[0] = 1.0
    if scale[0] + fall < -deferred(facts):
        falls[0] = T.exp2(scale[0])
        scale[0] = 0.0
    falls[1] = T.if_then_else(far, T.exp2(fall), 1.0)
    if tid < C:
        s = T.alloc_var("float32", init=scale[0] + gate_shared[gate, 3, tid])
        back = T.alloc_var("float32", init=T.exp2(-s))
        late = gate_shared[gate, 2, tid] * back
        factor_shared[stage, 0, tid] = T.if_then_else(far, 1.0, T.exp2(s))
        factor_shared[stage, 1, tid] = T.if_then_else(far, 1.0, late)
        factor_shared[stage, 2, tid] = T.if_then_else(far, 1.0, back)
    scale[0] = T.if_then_else(far, 0.0, scale[0] + fall)


@T.macro
def mask(facts, gate_shared, gate, mask_frag):
    """mask_frag (C R of k, C of q) = 1 for j < i, gamma_i / w_i for j = i."""
    for m, i in T.Parallel(COLUMNS, facts.C):
        j = token_of(m, facts.R)
        same = gate_shared[gate, 1, j] / T.max(gate_shared[gate, 2, j], T.float32(1e-37))
        mask_frag[m, i] = T.Select(i > j, T.float32(1), T.Select(i == j, same, T.float32(0)))


@T.macro
def mask_far(facts, gate_shared, gate, mask_frag):
    """mask_frag (C R of k, C of q) = M: w_j e^{s_i - s_j} for j < i, gamma_i for j = i."""
    for m, i in T.Parallel(COLUMNS, facts.C):
        j = token_of(m, facts.R)
        fall = T.exp2(gate_shared[gate, 3, i] - gate_shared[gate, 3, j])
        same = T.Select(i == j, gate_shared[gate, 1, j], T.float32(0))
        mask_frag[m, i] = T.Select(i > j, gate_shared[gate, 2, j] * fall, same)


@T.macro
def fade(facts, k_shared, q_shared, stage, gate_shared, gate, tid, threads):
    """q_i *= e^{s_i}, k_j *= w_j e^{s_C - s_j}, in place: for a chunk that falls far."""
    group = facts.N // 8
    raw_local = T.alloc_local((2, 8), facts.dtype)
    for step in T.serial(COLUMNS * group // threads):
        row = step * (threads // group) + tid // group
        i_8 = tid % group
        token = token_of(row, facts.R)
        s = T.alloc_var("float32", init=gate_shared[gate, 3, token])
        late = T.alloc_var("float32", init=T.exp2(gate_shared[gate, 3, facts.C - 1] - s))
        late = late * gate_shared[gate, 2, token]
        for e in T.vectorized(8):
            raw_local[0, e] = q_shared[stage, row, i_8 * 8 + e]
        for e in T.vectorized(8):
            raw_local[1, e] = k_shared[stage, row, i_8 * 8 + e]
        for e in EIGHT:
            raw_local[0, e] = T.cast(raw_local[0, e], "float32") * T.exp2(s)
            raw_local[1, e] = T.cast(raw_local[1, e], "float32") * late
        for e in T.vectorized(8):
            q_shared[stage, row, i_8 * 8 + e] = raw_local[0, e]
        for e in T.vectorized(8):
            k_shared[stage, row, i_8 * 8 + e] = raw_local[1, e]


@T.macro
def widen(facts, raw_local, slot, wide_local):
    """The pairs of eight 16-bit numbers to float32: for bfloat16 one shift or one mask each."""
    if facts.dtype == "bfloat16":
        words = T.view(raw_local, (raw_local.shape[0], 4), "uint32")
        for i in tuple(range(facts.pairs)):
            word = words[slot, i]
            wide_local[2 * i] = T.reinterpret(T.shift_left(word, T.uint32(16)), "float32")
            wide_local[2 * i + 1] = T.reinterpret(word & T.uint32(0xFFFF0000), "float32")
    else:
        for e in T.vectorized(2 * facts.pairs):
            wide_local[e] = raw_local[slot, e]


def ranks_of(facts, threads):
    """Ranks of the columns that one thread turns, in turns."""
    return max(facts.R * facts.N // (8 * threads), 1)


@T.macro
def keep_bias(facts, sources, biased, bias_local, passing_local, i_h, tid, threads):
    """The biases of what a thread turns, in registers: in float32 and, of dims that pass, rounded.

    bias_local (tiles, ranks, 8) in float32, passing_local the same in the tiles' dtype.
    """
    group = facts.N // 8
    for part in tuple(range(len(biased))):
        if biased[part]:
            for r in tuple(range(ranks_of(facts, threads))):
                rank = (r * (threads // group) + tid // group) % facts.R
                for e in EIGHT:
                    dim = dim_of(tid % group * 8 + e, facts.N, facts.S, facts.half)
                    bias_local[part, r, e] = sources[part][i_h, rank, dim]
                for e in T.vectorized(8):
                    passing_local[part, r, e] = bias_local[part, r, e]


@T.macro
def turn(facts, raw_local, slot, bias_local, passing_local, part, rank, has_bias, cos_sin, angle):
    """16 bytes of a column of k or q, in registers: pairs get their bias and turn in float32, dims
    that pass get theirs in 16 bits, two at a time."""
    wide_local = T.alloc_local((2 * facts.pairs,), "float32")
    widen(facts, raw_local, slot, wide_local)
    if has_bias:
        for e in tuple(range(2 * facts.pairs)):
            wide_local[e] += bias_local[part, rank, e]
    for i in tuple(range(facts.pairs)):
        cos, sin = cos_sin[angle, 2 * i], cos_sin[angle, 2 * i + 1]
        u = wide_local[2 * i] * cos - wide_local[2 * i + 1] * sin
        v = wide_local[2 * i] * sin + wide_local[2 * i + 1] * cos
        wide_local[2 * i] = u
        wide_local[2 * i + 1] = v
    for e in T.vectorized(2 * facts.pairs):
        raw_local[slot, e] = wide_local[e]
    if has_bias:
        twos = T.view(raw_local, (raw_local.shape[0], 4), f"{facts.dtype}x2")
        passing = T.view(passing_local, (*passing_local.shape[:2], 4), f"{facts.dtype}x2")
        for i in tuple(range(facts.pairs, 4)):
            twos[slot, i] = T.add2(twos[slot, i], passing[part, rank, i])


@T.macro
def load_step(
    facts, tiles, stage, part, row, i_8, angle_shared, raw_local, item, cos_sin, step
):  # fmt: skip
    """What a thread's next turn needs: 16 bytes of a tile, and in each step the angles."""
    slots, width = cos_sin.shape
    if part == 0:
        for e in T.vectorized(width):
            cos_sin[step % slots, e] = angle_shared[row // facts.R, i_8 * width + e]
    column = column_of(row // facts.R, row % facts.R, facts.R)
    for e in T.vectorized(8):
        raw_local[item % 3, e] = tiles[part][stage, column, i_8 * 8 + e]


@T.macro
def turn_tiles(
    facts, tiles, stage, biased, bias_local, passing_local, angle_shared, tid, threads
):  # fmt: skip
    """Bias and rotation of a chunk's tiles in shared memory: k, or k and q.

    A thread turns 16 bytes of each tile in each step, and loads them two turns before: in place, no
    compiler would load past a store.
    """
    R, group, width = facts.R, facts.N // 8, 2 * facts.pairs
    rows, count = threads // group, len(tiles)  # rows of one step
    steps, ranks = COLUMNS // rows, ranks_of(facts, threads)
    ahead = min(2 // count, steps)
    raw_local = T.alloc_local((3, 8), facts.dtype)
    cos_sin = T.alloc_local((ahead + 1, width), "float32")
    i_row, i_8 = tid // group, tid % group
    for step in tuple(range(ahead)):
        for part in tuple(range(count)):
            load_step(
                facts, tiles, stage, part, step * rows + i_row, i_8, angle_shared, raw_local,
                step * count + part, cos_sin, step,
            )  # fmt: skip
    for step in T.unroll(steps):
        row = step * rows + i_row
        for part in tuple(range(count)):
            if step + ahead < steps:
                load_step(
                    facts, tiles, stage, part, (step + ahead) * rows + i_row, i_8, angle_shared,
                    raw_local, (step + ahead) * count + part, cos_sin, step + ahead,
                )  # fmt: skip
            slot = (step * count + part) % 3
            turn(
                facts, raw_local, slot, bias_local, passing_local, part, step % ranks,
                biased[part], cos_sin, step % (ahead + 1),
            )  # fmt: skip
            for e in T.vectorized(8):
                tiles[part][stage, column_of(row // R, row % R, R), i_8 * 8 + e] = raw_local[
                    slot, e
                ]


@T.macro
def fetch_times(facts, rate, gates, rate_shared, gate_shared, known, slot, i_h, i_r, i):
    """Ask for the gates and angle rates of chunk i, in this slot, by TMA; known[i % 2] completes
    when both have come."""
    C, S = facts.C, facts.S
    i_gate, i_rate = i % gate_shared.shape[0], i % rate_shared.shape[0]
    T.tma_copy(gates[slot, i_h, 0:4, 0:C], gate_shared[i_gate, 0:4, 0:C], barrier=known[i % 2])
    T.tma_copy(rate[slot, i_r, 0:S, 0:C], rate_shared[i_rate, 0:S, 0:C], barrier=known[i % 2])
    T.barrier_arrive(known[i % 2])


@T.macro
def fetch(
    facts, bc, x, z, k_shared, q_shared, x_shared, z_shared,
    full, slot, start, i_h, i_g, stage, has_q, has_z,
):  # fmt: skip
    """Ask for a chunk's k, q, x and z by TMA; full[stage] completes when all have come."""
    C, P, N = facts.C, facts.P, facts.N
    at = i_h * P
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
