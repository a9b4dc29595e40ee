"""The main pass over a sequence or a segment of one, in TileLang.

h is kept as the products need it, (P, N) in the accumulators of one warp group for 64 rows. Its
decay is deferred: what is kept is e^{-S} h, S the decay since some chunk before, and what a token
adds is made larger to match. So the products of a chunk need nothing between them. With
X_j = w_j e^{-S - s_j} x_j mimo_x, (P, C R) from registers:

    scores = k q^T (C R, C R)     y_i = e^{S + s_i} (h q^T + X (mask scores))_i     h = h + X k

mask is 1 for j < i, gamma_i / w_i for j = i. Only k, q and the masked scores go through shared
memory. Another warp group turns k and q and makes the scores, one chunk ahead. It has the longer
chain of work, so copies are asked for, and factors made, by those who multiply.

S is not let below what can be deferred: h is multiplied by e^S before it would fall there. Of a
chunk that falls by more than that alone, e^{s_i} goes into q, w_j e^{s_C - s_j} into k and the
whole M into the scores; S is 0 then, and X = x mimo_x.
"""

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from .chunk import (
    MOVERS,
    advance,
    fade,
    falls_far,
    fetch,
    fetch_times,
    holds_turns,
    keep_bias,
    mask,
    mask_far,
    pair_of,
    prepare,
    put_angles,
    ranks_of,
    tokens_of,
    turn_tiles,
)
from .facts import COLUMNS, Facts
from .fragments import (
    ROWS,
    by_column,
    by_half,
    by_pair,
    by_rank,
    by_token,
    inputs,
    project,
    put_output,
    put_scores,
    transpose,
    weigh,
    weights,
)
from .functions import LOG2_E, RADIANS, TURNS, radians_of, sequence, turns_of
from .order import column_of, dim_of, token_of

SCORES, OUTPUT, TURNED = 1, 2, 3  # named barriers


@T.macro
def begin(facts, gates, h_in, k_in, x_in, mimo_x, h_frag, i_seq, i_h, slot, empty, has_state):
    """The state before a sequence: S_0 = h_init + D_0 (1 - lam_0) sum_r x_init,r k_init,r^T."""
    R, P, N, S = facts.R, facts.P, facts.N, facts.S
    T.clear(h_frag)
    ahead = T.alloc_var("float32", init=0.0)
    if has_state != 0:
        if not empty:
            ahead = gates[slot, i_h, 0, 0] - gates[slot, i_h, 1, 0]
        for p, n in T.Parallel(facts.rows, N):
            if p < P:
                dim = dim_of(n, N, S, facts.half)
                h_frag[p, n] = T.cast(h_in[i_seq, i_h, p, dim], "float32")
        for r in T.serial(R):
            for p, n in T.Parallel(facts.rows, N):
                if p < P:
                    x = ahead * T.cast(x_in[i_seq, i_h, p], "float32")
                    if "mimo_x" in facts.optional:
                        x = x * mimo_x[i_h, r, p]
                    dim = dim_of(n, N, S, facts.half)
                    h_frag[p, n] += x * T.cast(k_in[i_seq, r, i_h, dim], "float32")


def turns_before(phi_in, i_seq, i_h, i_s, has_state):
    """The angle before a sequence."""
    return T.if_then_else(has_state != 0, turns_of(phi_in[i_seq, i_h, i_s] * TURNS), 0)


@T.macro
def carry(
    facts, phi_in, seg_h, seg_turns, seg_decay, scratch_shared, h_frag,
    i_seq, i_h, slot, pieces, has_state, tid,
):  # fmt: skip
    """The state before a segment: S = e^{s} S + dS Rot(phi)^T over the pieces before it."""
    P, N, S = facts.P, facts.N, facts.S
    pairs = facts.pairs
    turns = T.alloc_local((1,), "int32")
    if pieces > 0:
        if tid < S:
            turns[0] = turns_before(phi_in, i_seq, i_h, tid, has_state)
        for j in T.serial(pieces):
            T.sync_threads(SCORES, facts.multipliers)
            if tid < S:
                turns[0] += seg_turns[slot + j, i_h, tid]
                angle = T.cast(turns[0], "float32") * RADIANS
                scratch_shared[2 * tid] = T.cos(angle)
                scratch_shared[2 * tid + 1] = T.sin(angle)
            T.sync_threads(SCORES, facts.multipliers)
            fall = T.exp2(seg_decay[slot + j, i_h])
            for p, n in T.Parallel(facts.rows, N):
                if p < P:
                    pair = n // 8 * pairs + T.min(n % 8 // 2, pairs - 1)
                    turned = n % 8 < 2 * pairs
                    sign = T.cast(n % 2 * 2 - 1, "float32")
                    cos = T.if_then_else(turned, scratch_shared[2 * pair], 1.0)
                    sin = T.if_then_else(turned, scratch_shared[2 * pair + 1] * sign, 0.0)
                    own = seg_h[slot + j, i_h, p, n]
                    other = seg_h[slot + j, i_h, p, n + 1 - n % 2 * 2]
                    h_frag[p, n] = h_frag[p, n] * fall + (own * cos + other * sin)


@T.macro
def put_key(facts, k_shared, stage, k_out, i_seq, i_h, last, tid):
    """The key of a chunk's token, the last of its sequence."""
    R, N = facts.R, facts.N
    for step in T.serial(T.ceildiv(R * N, MOVERS)):
        i = step * MOVERS + tid
        if i < R * N:
            column = column_of(last, i // N, R)
            dim = dim_of(i % N, N, facts.S, facts.half)
            k_out[i_seq, i // N, i_h, dim] = k_shared[stage, column, i % N]


@T.macro
def finish(
    facts, x, phi_in, k_in, x_in, phi_out, k_out, x_out, turns,
    i_seq, i_h, first, stop, has_state, tid,
):  # fmt: skip
    """The last angles and input of a sequence; one of no tokens keeps its own, and its key."""
    R, P, N, S = facts.R, facts.P, facts.N, facts.S
    if first < stop:
        if tid < P:
            x_out[i_seq, i_h, tid] = x[stop - 1, i_h * P + tid]
        if holds_turns(facts, tid, MOVERS):
            i_s, i_spread = pair_of(facts, tid, MOVERS)
            if i_spread == 0:
                phi_out[i_seq, i_h, i_s] = radians_of(turns[0])
    else:
        for step in T.serial(T.ceildiv(R * N, MOVERS)):
            i = step * MOVERS + tid
            if i < R * N:
                k_out[i_seq, i // N, i_h, i % N] = T.cast(0.0, facts.dtype)
                if has_state != 0:
                    k_out[i_seq, i // N, i_h, i % N] = k_in[i_seq, i // N, i_h, i % N]
        if tid < P:
            x_out[i_seq, i_h, tid] = T.cast(0.0, facts.dtype)
            if has_state != 0:
                x_out[i_seq, i_h, tid] = x_in[i_seq, i_h, tid]
        if tid < S:
            phi_out[i_seq, i_h, tid] = 0.0
            if has_state != 0:
                phi_out[i_seq, i_h, tid] = phi_in[i_seq, i_h, tid]


def gate_units(facts):
    """What `gate` wants mimo_z and mimo_o multiplied by."""
    if "z" not in facts.optional:
        return 1.0, 1.0
    return (0.5, 1.0) if facts.dtype == "bfloat16" else (-LOG2_E, -1.0 / LOG2_E)


@T.macro
def gate(facts, z_frag, gate_frag, down_frag, product_frag):
    """product_frag (P, C R) = mimo_o silu(z mimo_z), of those that there are.

    For bfloat16, u = v / 2: mimo_o silu(v) = mimo_o (u + u tanh u), one instruction of the special
    units for two; its tanh is good to 2^-11. Else u = -log2(e) v and
    mimo_o silu(v) = -mimo_o / log2(e) u / (1 + 2^u). gate_frag and down_frag hold the factors.
    """
    for p, t in T.Parallel(facts.rows, facts.C):
        for r in T.unroll(facts.R):
            column = column_of(t, r, facts.R)
            if "z" in facts.optional:
                u = T.cast(z_frag[p, t], "float32") * gate_frag[p, r]
                if facts.dtype == "bfloat16":
                    w = down_frag[p, r] * u
                    product_frag[p, column] = w + w * T.tanh(u)
                else:
                    product_frag[p, column] = down_frag[p, r] * (u / (1.0 + T.exp2(u)))
            else:
                product_frag[p, column] = down_frag[p, r]


@T.macro
def normalise(facts, out_norm, scratch_shared, square_frag, y_frag, i_h):
    """y_frag (P, C R) over its root mean square over P, times out_norm.

    square_frag (P / 2, C R). scratch_shared (P / 16 C R): the sums of each warp's 16 rows.
    """
    T.clear(square_frag)
    for p, n in T.Parallel(facts.rows, COLUMNS):
        square_frag[p // 16 * 8 + p % 8, n] += y_frag[p, n] * y_frag[p, n]
    for e in (4, 8, 16):
        for q, n in T.Parallel(facts.rows // 2, COLUMNS):
            square_frag[q, n] += T.shfl_xor(square_frag[q, n], e)
    for q, n in T.Parallel(facts.rows // 2, COLUMNS):
        if q % 8 == 0:
            scratch_shared[q // 8 * COLUMNS + n] = square_frag[q, n]
    T.sync_threads(SCORES, facts.multipliers)
    for p, n in T.Parallel(facts.rows, COLUMNS):
        total = scratch_shared[n]
        for warp in tuple(range(1, facts.rows // 16)):
            total = total + scratch_shared[warp * COLUMNS + n]
        y_frag[p, n] *= T.rsqrt(total / facts.P + 1e-5) * out_norm[i_h, p % facts.P]


@T.macro
def let_fall(facts, h_frag, fall):
    """The decay of h, where it is not deferred."""
    if fall != 1.0:
        for p, n in T.Parallel(facts.rows, facts.N):
            h_frag[p, n] *= fall


@T.macro
def put_y(facts, y, y_shared, i_h, start, left, rank, tid):
    """Copy y_shared (C, P) to the tokens of a chunk that there are."""
    vectors = facts.P // 8  # 16 bytes each
    for step in T.unroll(T.ceildiv(facts.C * vectors, facts.multipliers)):
        i = step * facts.multipliers + tid
        if i < T.min(left, facts.C) * vectors:
            for e in T.vectorized(8):
                y[start + i // vectors, rank, i_h, i % vectors * 8 + e] = y_shared[
                    i // vectors, i % vectors * 8 + e
                ]


def scan_kernel(facts: Facts, blocks: int, stages: int, registers: int):
    """One block per (head, segment): the output of its tokens, and a sequence's final state."""
    R, P, N, S, C, dtype = facts.R, facts.P, facts.N, facts.S, facts.C, facts.dtype
    optional, rows = facts.optional, facts.rows
    wide = min(N, 64 if blocks > 1 else 128)  # columns of h rounded at a time: few registers
    has_z, has_d, has_norm = "z" in optional, "d" in optional, "out_norm" in optional
    biased = ("b_bias" in optional, "c_bias" in optional)
    multipliers = facts.multipliers
    threads = multipliers + MOVERS
    pool = 65536 // (blocks * threads) // 8 * 8 * threads  # registers that a block starts with
    rest = (pool - multipliers * registers) // MOVERS // 8 * 8  # for a mover
    ranks = 1 if facts.reduced else R  # of y
    sums = rows // 16 * COLUMNS if has_norm else 0  # of squares, of a warp's rows
    ranks_kept = ranks_of(facts, MOVERS)
    # chunks whose rates are asked for before they are read; one where two would not fit
    lead = 2 if 4 * S * C <= 8192 else 1
    tokens, offsets, slots = T.dynamic("tokens"), T.dynamic("offsets"), T.dynamic("slots")
    pieces, count = T.dynamic("pieces"), T.dynamic("count")
    x_stride, z_stride = T.dynamic("x_stride"), T.dynamic("z_stride")
    H, G, RATES = T.dynamic("H"), T.dynamic("G"), T.dynamic("RATES")

    def size(name, *dims):
        return dims if name in optional else (1,)

    @T.prim_func
    def scan(
        x: T.StridedTensor((tokens, H * P), (x_stride, 1), dtype),
        z: T.StridedTensor((tokens, H * P), (z_stride, 1), dtype),
        bc: T.Tensor((2, slots, G, COLUMNS, N), dtype),
        rate: T.Tensor((slots, RATES, S, C), "float32"),
        gates: T.Tensor((slots, H, 4, C), "float32"),
        b_bias: T.Tensor(size("b_bias", H, R, N), "float32"),
        c_bias: T.Tensor(size("c_bias", H, R, N), "float32"),
        d: T.Tensor(size("d", H), "float32"),
        mimo_x: T.Tensor(size("mimo_x", H, R, P), "float32"),
        mimo_z: T.Tensor(size("mimo_z", H, R, P), "float32"),
        mimo_o: T.Tensor(size("mimo_o", H, R, P), "float32"),
        out_norm: T.Tensor(size("out_norm", H, P), "float32"),
        cu_seqlens: T.Tensor((offsets,), "int32"),
        phi_in: T.Tensor((count, H, S), "float32"),
        h_in: T.Tensor((count, H, P, N), facts.state_dtype),
        k_in: T.Tensor((count, R, H, N), dtype),
        x_in: T.Tensor((count, H, P), dtype),
        seg_h: T.Tensor((pieces, H, P, N), "float32"),
        seg_turns: T.Tensor((pieces, H, S), "int32"),
        seg_decay: T.Tensor((pieces, H), "float32"),
        y: T.Tensor((tokens, ranks, H, P), dtype),
        phi_out: T.Tensor((count, H, S), "float32"),
        h_out: T.Tensor((count, H, P, N), facts.state_dtype),
        k_out: T.Tensor((count, R, H, N), dtype),
        x_out: T.Tensor((count, H, P), dtype),
        L: T.int32,
        packed: T.int32,
        has_state: T.int32,
        piece: T.int32,
        segment: T.int32,
        segments: T.int32,
    ):
        with T.Kernel(H, segments, count, threads=threads) as (i_h, i_seg, i_seq):
            T.annotate_min_blocks_per_sm(blocks)
            k_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            q_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            score_shared = T.alloc_shared((stages, COLUMNS, COLUMNS), dtype)
            x_shared = T.alloc_shared((stages, C, P), dtype)
            z_shared = T.alloc_shared((stages, C, P), dtype)
            y_shared = T.alloc_shared((C, P), dtype)
            rate_shared = T.alloc_shared((lead, S, C), "float32")
            gate_shared = T.alloc_shared((4, 4, C), "float32")
            factor_shared = T.alloc_shared((stages, 3, C), "float32")
            mimo_shared = T.alloc_shared((3, rows, R), "float32")
            angle_shared = T.alloc_shared((C, 2 * S + 4), "float32")  # a pad for the banks
            scratch_shared = T.alloc_shared((max(2 * S, sums),), "float32")
            full = T.alloc_barrier([multipliers] * stages)  # k, q, x and z are there
            known = T.alloc_barrier([multipliers] * 2)  # gates and rates are
            begun = T.alloc_barrier([MOVERS])  # the first rates are read
            angled = T.alloc_barrier([MOVERS])  # a chunk's angles are made
            ready = T.alloc_barrier([MOVERS] * stages)  # turned, and the scores
            T.annotate_layout({
                x_shared: make_swizzled_layout(x_shared),
                z_shared: make_swizzled_layout(z_shared),
                y_shared: make_swizzled_layout(y_shared),
            })  # fmt: skip
            tid = T.get_thread_binding(0)

            first, stop = sequence(cu_seqlens, i_seq, L, packed)
            start = first + i_seg * segment
            end = T.min(start + segment, stop)
            left = end - start  # tokens
            chunks = T.max(T.ceildiv(left, C), 0)
            slot = first // C + i_seq + i_seg * (segment // C)
            if T.Or(start < stop, i_seg == 0):
                with T.ws(multipliers // 128):
                    if registers > 0:
                        T.dec_max_nreg(rest)
                    mover = tid - multipliers
                    turns = T.alloc_local((1,), "int32")
                    run = T.alloc_local((tokens_of(facts, MOVERS),), "int32")
                    bias_local = T.alloc_local((2, ranks_kept, 8), "float32")
                    passing_local = T.alloc_local((2, ranks_kept, 8), dtype)
                    score_frag = T.alloc_fragment((COLUMNS, COLUMNS), "float32")
                    half_frag = T.alloc_fragment((COLUMNS, COLUMNS), dtype)
                    mask_frag = T.alloc_fragment((COLUMNS, C), "float32")
                    keep_bias(
                        facts, (b_bias, c_bias), biased, bias_local, passing_local, i_h, mover,
                        MOVERS,
                    )  # fmt: skip
                    if holds_turns(facts, mover, MOVERS):
                        i_s, _ = pair_of(facts, mover, MOVERS)
                        turns[0] = turns_before(phi_in, i_seq, i_h, i_s, has_state)
                        for j in T.serial(T.truncdiv(i_seg * segment, piece)):
                            turns[0] += seg_turns[T.truncdiv(first, piece) + i_seq + j, i_h, i_s]
                    if chunks > 0:
                        T.mbarrier_wait_parity(known[0], 0)
                        advance(facts, gate_shared, rate_shared, turns, run, 0, mover, MOVERS)
                        T.barrier_arrive(begun[0])
                        put_angles(facts, run, angle_shared, mover, MOVERS)
                        T.barrier_arrive(angled[0])
                    for i in T.serial(chunks):
                        stage, ahead, i_gate = i % stages, i + 1, i % gate_shared.shape[0]
                        if ahead < chunks:
                            T.mbarrier_wait_parity(known[ahead % 2], ahead // 2 % 2)
                        T.mbarrier_wait_parity(full[stage], i // stages % 2)
                        T.mbarrier_wait_parity(angled[0], i % 2)
                        far = T.alloc_var("bool", init=falls_far(facts, gate_shared, i_gate))
                        if ahead < chunks:
                            advance(
                                facts, gate_shared, rate_shared, turns, run, ahead, mover, MOVERS
                            )
                        turn_tiles(
                            facts, (k_shared, q_shared), stage, biased, bias_local, passing_local,
                            angle_shared, mover, MOVERS,
                        )  # fmt: skip
                        T.fence_proxy_async()
                        T.sync_threads(TURNED, MOVERS)
                        if T.And(ahead == chunks, end >= stop):
                            put_key(
                                facts, k_shared, stage, k_out, i_seq, i_h, (stop - 1 - first) % C,
                                mover,
                            )  # fmt: skip
                        T.wgmma_gemm(
                            k_shared[stage, 0:COLUMNS, 0:N], q_shared[stage, 0:COLUMNS, 0:N],
                            score_frag, transpose_B=True, clear_accum=True, policy=ROWS,
                        )  # fmt: skip
                        if far:
                            mask_far(facts, gate_shared, i_gate, mask_frag)
                        else:
                            mask(facts, gate_shared, i_gate, mask_frag)
                        put_angles(facts, run, angle_shared, mover, MOVERS)
                        T.barrier_arrive(angled[0])
                        T.wait_wgmma(0)
                        for m, t in T.Parallel(COLUMNS, C):
                            for r in T.unroll(R):
                                score_frag[m, column_of(t, r, R)] *= mask_frag[m, t]
                        T.copy(score_frag, half_frag)
                        put_scores(half_frag, score_shared, stage, mover)
                        if far:
                            T.sync_threads(TURNED, MOVERS)  # all have read k and q
                            fade(
                                facts, k_shared, q_shared, stage, gate_shared, i_gate, mover, MOVERS
                            )
                        T.fence_proxy_async()
                        T.barrier_arrive(ready[stage])
                    if end >= stop:
                        finish(
                            facts, x, phi_in, k_in, x_in, phi_out, k_out, x_out, turns,
                            i_seq, i_h, first, stop, has_state, mover,
                        )  # fmt: skip
                with T.ws(*range(multipliers // 128)):
                    if registers > 0:
                        T.inc_max_nreg(registers)
                    i_g = T.alloc_local((1,), "int32")
                    i_g[0] = T.truncdiv(i_h, T.truncdiv(H, G))
                    i_r = T.alloc_local((1,), "int32")
                    i_r[0] = T.truncmod(i_h, RATES)
                    falls = T.alloc_local((2,), "float32")
                    scale = T.alloc_local((1,), "float32")
                    scale[0] = 0.0
                    for i in T.unroll(lead):
                        if i < chunks:
                            fetch_times(
                                facts, rate, gates, rate_shared, gate_shared, known, slot + i, i_h,
                                i_r[0], i,
                            )  # fmt: skip
                    for i in T.unroll(stages):
                        if i < chunks:
                            fetch(
                                facts, bc, x, z, k_shared, q_shared, x_shared, z_shared, full,
                                slot + i, start + i * C, i_h, i_g[0], i, True, has_z,
                            )  # fmt: skip
                    h_frag = T.alloc_fragment((rows, N), "float32")
                    h_operand = T.alloc_fragment((rows, wide), dtype)
                    y_frag = T.alloc_fragment((rows, COLUMNS), "float32")
                    x_frag = T.alloc_fragment((rows, COLUMNS), dtype)
                    raw_frag = T.alloc_fragment((rows, C), dtype)  # x, z, then y
                    in_frag = T.alloc_fragment((rows, C), "float32")
                    out_frag = T.alloc_fragment((rows, C), "float32")
                    fall_frag = T.alloc_fragment((rows, C), "float32")
                    up_frag = T.alloc_fragment((rows, R), "float32")
                    gate_frag = T.alloc_fragment((rows, R), "float32")
                    down_frag = T.alloc_fragment((rows, R), "float32")
                    product_frag = T.alloc_fragment((rows, COLUMNS), "float32")
                    square_frag = T.alloc_fragment((rows // 2, COLUMNS), "float32")
                    T.annotate_layout({
                        raw_frag: by_pair(facts),
                        in_frag: by_token(facts),
                        out_frag: by_token(facts),
                        fall_frag: by_token(facts),
                        up_frag: by_rank(facts),
                        gate_frag: by_rank(facts),
                        down_frag: by_rank(facts),
                        product_frag: by_column(facts),
                        square_frag: by_half(facts),
                    })  # fmt: skip
                    skip = T.alloc_var("float32", init=0.0)
                    if has_d:
                        skip = d[i_h]
                    begin(
                        facts, gates, h_in, k_in, x_in, mimo_x, h_frag, i_seq, i_h,
                        first // C + i_seq, first >= stop, has_state,
                    )  # fmt: skip
                    carry(
                        facts, phi_in, seg_h, seg_turns, seg_decay, scratch_shared, h_frag,
                        i_seq, i_h, T.truncdiv(first, piece) + i_seq,
                        T.truncdiv(i_seg * segment, piece), has_state, tid,
                    )  # fmt: skip
                    gate_unit, down_unit = gate_units(facts)
                    project(facts, "mimo_x", mimo_x, i_h, 1.0, 0, mimo_shared, tid, multipliers)
                    project(
                        facts, "mimo_z", mimo_z, i_h, gate_unit, 1, mimo_shared, tid, multipliers
                    )
                    project(
                        facts, "mimo_o", mimo_o, i_h, down_unit, 2, mimo_shared, tid, multipliers
                    )
                    if chunks > 0:
                        T.mbarrier_wait_parity(known[0], 0)
                        T.mbarrier_wait_parity(begun[0], 0)
                        prepare(facts, gate_shared, 0, factor_shared, 0, scale, falls, tid)
                    if chunks > lead:
                        fetch_times(
                            facts, rate, gates, rate_shared, gate_shared, known, slot + lead, i_h,
                            i_r[0], lead,
                        )  # fmt: skip
                    T.sync_threads(SCORES, multipliers)
                    T.fence_proxy_async()  # TileLang would, in the loop
                    for i in T.serial(chunks):
                        stage, ahead = i % stages, i + 1
                        let_fall(facts, h_frag, falls[0])
                        for p, n in T.Parallel(rows, wide):
                            h_operand[p, n] = h_frag[p, n]
                        T.mbarrier_wait_parity(ready[stage], i // stages % 2)
                        if ahead + lead < chunks:  # the others have read the rates of chunk i + 1
                            fetch_times(
                                facts, rate, gates, rate_shared, gate_shared, known,
                                slot + ahead + lead, i_h, i_r[0], ahead + lead,
                            )  # fmt: skip
                        if wide == N:  # here, where no product runs: ptxas would wait for them
                            let_fall(facts, h_frag, falls[1])
                        for part in tuple(range(N // wide)):
                            if part > 0:
                                T.wait_wgmma(0)
                                for p, n in T.Parallel(rows, wide):
                                    h_operand[p, n] = h_frag[p, part * wide + n]
                                if part + 1 == N // wide:
                                    let_fall(facts, h_frag, falls[1])
                            T.wgmma_gemm(
                                h_operand,
                                q_shared[stage, 0:COLUMNS, part * wide : (part + 1) * wide],
                                y_frag, transpose_B=True, clear_accum=part == 0, policy=ROWS,
                            )  # fmt: skip
                        inputs(facts, x_shared, stage, left - i * C, tid, raw_frag, in_frag)
                        weights(facts, mimo_shared, 0, up_frag)
                        weigh(facts, in_frag, factor_shared, stage, up_frag, x_frag)
                        T.wgmma_gemm(
                            x_frag, score_shared[stage, 0:COLUMNS, 0:COLUMNS], y_frag, policy=ROWS
                        )
                        T.wgmma_gemm(x_frag, k_shared[stage, 0:COLUMNS, 0:N], h_frag, policy=ROWS)
                        if has_z:
                            transpose(facts, z_shared, stage, tid, raw_frag)
                        T.wait_wgmma(0)
                        T.sync_threads(OUTPUT, multipliers)
                        if i + stages < chunks:  # all are done with the stage
                            fetch(
                                facts, bc, x, z, k_shared, q_shared, x_shared, z_shared, full,
                                slot + i + stages, start + (i + stages) * C, i_h, i_g[0],
                                stage, True, has_z,
                            )  # fmt: skip
                        weights(facts, mimo_shared, 1, gate_frag)
                        weights(facts, mimo_shared, 2, down_frag)
                        gate(facts, raw_frag, gate_frag, down_frag, product_frag)
                        if has_d:  # d x, as y is
                            weights(facts, mimo_shared, 0, up_frag)
                            for p, t in T.Parallel(rows, C):
                                past = skip * in_frag[p, t] * factor_shared[stage, 2, t]
                                for r in T.unroll(R):
                                    y_frag[p, column_of(t, r, R)] += past * up_frag[p, r]
                        if has_norm:
                            for p, n in T.Parallel(rows, COLUMNS):
                                y_frag[p, n] *= factor_shared[stage, 0, token_of(n, R)]
                            normalise(facts, out_norm, scratch_shared, square_frag, y_frag, i_h)
                        for p, t in T.Parallel(rows, C):  # asked for before the sums that need it
                            fall_frag[p, t] = factor_shared[stage, 0, t]
                        for rank in tuple(range(ranks)):
                            if rank > 0:
                                T.sync_threads(OUTPUT, multipliers)
                            for p, t in T.Parallel(rows, C):
                                out_frag[p, t] = 0.0
                                for r in T.unroll(R // ranks):
                                    column = column_of(t, rank + r, R)
                                    out_frag[p, t] += y_frag[p, column] * product_frag[p, column]
                                if not has_norm:
                                    out_frag[p, t] *= fall_frag[p, t]
                            for p, t in T.Parallel(rows, C):
                                raw_frag[p, t] = out_frag[p, t]
                            put_output(facts, raw_frag, y_shared, tid)
                            T.sync_threads(OUTPUT, multipliers)
                            put_y(
                                facts, y, y_shared, i_h, start + i * C, left - i * C, rank,
                                tid,
                            )  # fmt: skip
                        if ahead < chunks:  # the others are at work on its scores
                            prepare(
                                facts, gate_shared, ahead, factor_shared, ahead % stages, scale,
                                falls, tid,
                            )  # fmt: skip
                        T.sync_threads(SCORES, multipliers)
                        T.fence_proxy_async()  # TileLang would, where more waits for it
                    if end >= stop:
                        fall = T.alloc_var("float32", init=1.0)
                        if chunks > 0:
                            fall = factor_shared[(chunks - 1) % stages, 0, C - 1]
                        for p, n in T.Parallel(rows, N):
                            if p < P:
                                dim = dim_of(n, N, S, facts.half)
                                h_out[i_seq, i_h, p, dim] = h_frag[p, n] * fall

    return scan
