"""What the products take from registers, in TileLang: x and the projections, beside accumulators.

A thread holds all ranks of the tokens and rows that it has accumulators of (`order.py`), so nothing
here needs another thread.
"""

import tilelang.language as T
from tilelang.layout import Fragment

from .facts import COLUMNS
from .order import column_of, pair_place, place_of, thread_of, token_in

WORD = "*(int const *)"  # in C++, what lies at a pointer
ROWS = T.GemmWarpPolicy.FullRow  # every warp group its own 64 rows


def by_token(facts):
    """The layout of a (P, C) fragment: a number beside the columns of its token."""
    return Fragment(
        (facts.rows, facts.C),
        forward_thread_fn=lambda p, t: thread_of(p, t, facts.R),
        forward_index_fn=lambda p, t: place_of(p, t, facts.R),
    )


def by_pair(facts):
    """The layout of a (P, C) fragment that is loaded by matrices of 8 tokens."""
    return Fragment(
        (facts.rows, facts.C),
        forward_thread_fn=lambda p, t: thread_of(p, t, facts.R),
        forward_index_fn=lambda p, t: pair_place(p, t, facts.R),
    )


def by_column(facts):
    """The layout of a (P, C R) accumulator."""
    return Fragment(
        (facts.rows, COLUMNS),
        forward_thread_fn=lambda p, m: thread_of(p, m, 1),
        forward_index_fn=lambda p, m: place_of(p, m, 1),
    )


def by_half(facts):
    """The layout of a (P / 2, C R) fragment: one number for the two rows of a thread."""
    return Fragment(
        (facts.rows // 2, COLUMNS),
        forward_thread_fn=lambda q, m: q * 4 + m % 8 // 2,
        forward_index_fn=lambda q, m: m // 8 * 2 + m % 2,
    )


def by_rank(facts):
    """The layout of a (P, R) fragment: every thread keeps all ranks of its two rows."""
    return Fragment(
        (facts.rows, facts.R),
        forward_thread_fn=lambda p, r, lane: p // 16 * 32 + p % 8 * 4 + lane,
        forward_index_fn=lambda p, r: p % 16 // 8 * facts.R + r,
        replicate=4,
    )


@T.macro
def project(facts, name, source, i_h, unit, part, mimo_shared, tid, threads):
    """A head's weights of one projection, times a unit; ones if there is none. (3, P, R)"""
    for step in T.serial(T.ceildiv(facts.rows * facts.R, threads)):
        i = step * threads + tid
        if i < facts.rows * facts.R:
            p, r = i // facts.R, i % facts.R
            mimo_shared[part, p, r] = unit
            if name in facts.optional:
                mimo_shared[part, p, r] = source[i_h, r, p % facts.P] * unit


@T.macro
def weights(facts, mimo_shared, part, target_frag):
    """One projection's weights of a thread's rows, (P, R), from shared memory."""
    for p, r in T.Parallel(facts.rows, facts.R):
        target_frag[p, r] = mimo_shared[part, p, r]


@T.macro
def transpose(facts, tile_shared, stage, tid, raw_frag):
    """raw_frag (P, C) = a stage of x or z (C, P).

    A load brings two matrices of 8 tokens by 8 rows, lanes 0 to 15 say where each token lies. Lane
    l gets the tokens that lanes 2 (l % 4) and 2 (l % 4) + 1 name, of row l / 4.
    """
    lane = tid % 32
    for part in tuple(range(facts.C // 8)):
        token = part * 8 + token_in(lane % 8, facts.R)
        row = (tid // 32 * 16 + lane // 8 % 2 * 8) % facts.P
        T.call_extern(
            "handle", "tl::ptx_ldmatrix_x2_trans", T.address_of(tile_shared[stage, token, row]),
            T.address_of(raw_frag[0, part * 8]),
        )  # fmt: skip


def word(fragment, row, column):
    """Two 16-bit numbers of a thread that lie side by side in its registers: for thread 0, the
    first of them is the fragment's at such a row and column."""
    at = fragment.access_ptr("r", offset=row * fragment.shape[1] + column)
    return T.call_extern("int32", WORD, at)


@T.macro
def put_scores(half_frag, score_shared, stage, tid):
    """score_shared[stage] = half_frag (C R, C R), of 16-bit numbers.

    A store takes 16 by 16 numbers of a warp: lane l says where row l % 16 of half l / 16 lies.
    """
    row, half = tid // 32 * 16 + tid % 16, tid % 32 // 16 * 8
    for column in tuple(range(0, COLUMNS, 16)):
        T.call_extern(
            "handle", "tl::ptx_stmatrix_m8n8_x4",
            T.address_of(score_shared[stage, row, column + half]),
            word(half_frag, 0, column), word(half_frag, 8, column),
            word(half_frag, 0, column + 8), word(half_frag, 8, column + 8),
        )  # fmt: skip


@T.macro
def put_output(facts, raw_frag, y_shared, tid):
    """y_shared (C, P) = raw_frag (P, C): as `transpose` loads, the other way."""
    row = tid // 32 * 16 + tid // 8 % 2 * 8
    if row < facts.P:
        for first in tuple(range(0, facts.C, 8)):
            token = first + token_in(tid % 8, facts.R)
            T.call_extern(
                "handle", "tl::ptx_stmatrix_m8n8_x2_trans",
                T.address_of(y_shared[token, row]),
                word(raw_frag, 0, first), word(raw_frag, 8, first),
            )  # fmt: skip


@T.macro
def inputs(facts, x_shared, stage, left, tid, raw_frag, in_frag):
    """x in float32: zero past the sequence's end and past row P."""
    transpose(facts, x_shared, stage, tid, raw_frag)
    for p, t in T.Parallel(facts.rows, facts.C):
        x = T.cast(raw_frag[p, t], "float32")
        in_frag[p, t] = T.if_then_else(T.And(t < left, p < facts.P), x, 0.0)


@T.macro
def weigh(facts, in_frag, factor_shared, stage, up_frag, w_frag):
    """w_frag (P, C R) = w_j e^{s_C - s_j} X, rounded."""
    for p, t in T.Parallel(facts.rows, facts.C):
        x = in_frag[p, t] * factor_shared[stage, 1, t]
        for r in T.unroll(facts.R):
            w_frag[p, column_of(t, r, facts.R)] = x * up_frag[p, r]
