"""What the products take from registers, in TileLang: x and the projections, beside accumulators.

A thread holds all ranks of the tokens and rows that it has accumulators of (`order.py`), so nothing
here needs another thread.
"""

import tilelang.language as T
from tilelang.layout import Fragment

from .order import column_of, place_of, thread_of

ROWS = T.GemmWarpPolicy.FullRow  # every warp group its own 64 rows


def by_token(facts):
    """The layout of a (P, C) fragment: a number beside the columns of its token."""
    return Fragment(
        (facts.rows, facts.C),
        forward_thread_fn=lambda p, t: thread_of(p, t, facts.R),
        forward_index_fn=lambda p, t: place_of(p, t, facts.R),
    )


def by_rank(facts):
    """The layout of a (P, R) fragment: every thread keeps all ranks of its two rows."""
    return Fragment(
        (facts.rows, facts.R),
        forward_thread_fn=lambda p, r, lane: p // 16 * 32 + p % 8 * 4 + lane,
        forward_index_fn=lambda p, r: r * 2 + p % 16 // 8,
        replicate=4,
    )


@T.macro
def project(facts, name, source, i_h, unit, target_frag):
    """A head's weights of one projection, times a unit; ones if there is none."""
    for p, r in T.Parallel(facts.rows, facts.R):
        target_frag[p, r] = unit
        if name in facts.optional:
            target_frag[p, r] = source[i_h, r, p % facts.P] * unit


@T.macro
def inputs(facts, x_shared, stage, left, in_frag):
    """x in float32: zero past the sequence's end and past row P."""
    for p, t in T.Parallel(facts.rows, facts.C):
        x = T.cast(x_shared[stage, t, p % facts.P], "float32")
        in_frag[p, t] = T.if_then_else(T.And(t < left, p < facts.P), x, 0.0)


@T.macro
def scale(facts, in_frag, up_frag, x_frag):
    """x_frag (P, C R) = X, rounded."""
    for p, t in T.Parallel(facts.rows, facts.C):
        for r in T.unroll(facts.R):
            x_frag[p, column_of(t, r, facts.R)] = in_frag[p, t] * up_frag[p, r]


@T.macro
def weigh(facts, in_frag, gate_shared, stage, up_frag, w_frag):
    """w_frag (P, C R) = w_j e^{s_C - s_j} X, rounded."""
    for p, t in T.Parallel(facts.rows, facts.C):
        fall = gate_shared[stage, 3, facts.C - 1] - gate_shared[stage, 3, t]
        x = in_frag[p, t] * (gate_shared[stage, 2, t] * T.exp2(fall))
        for r in T.unroll(facts.R):
            w_frag[p, column_of(t, r, facts.R)] = x * up_frag[p, r]
