"""The two passes over the chunks of a sequence, in TileLang.

h is kept as the products need it, (P, N) in the accumulators of one warp group for 64 rows. Those
of a chunk, with X = x mimo_x (P, C R) from registers:

    scores = k q^T (C R, C R)      y = h q^T + X (mask scores)      h = e^{s_C} h + (w X) k

so that only k, q and the masked scores go through shared memory.
"""

import tilelang.language as T
from tilelang.layout import Fragment, make_swizzled_layout

from .chunk import advance, fetch, load_bias, turn_tiles
from .facts import COLUMNS, Facts
from .functions import LOG2_E, RADIANS, TURNS, radians_of, sequence, turns_of
from .order import column_of, dim_of, place_of, thread_of, token_of

ROWS = T.GemmWarpPolicy.FullRow  # every warp group its own 64 rows
WIDE = 128  # columns of h that are rounded at a time: 32 registers


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


def states_kernel(facts: Facts, blocks: int, stages: int):
    """One block per (head, piece before a sequence's last segment): dS, its angle, its decay.

    seg_h (pieces, H, P, N), dims by position; seg_turns (pieces, H, S); seg_decay (pieces, H),
    log2. Keys are rotated by the angles accumulated since the piece's start.
    """
    R, P, N, S, C, dtype = facts.R, facts.P, facts.N, facts.S, facts.C, facts.dtype
    has_bias = "b_bias" in facts.optional
    spread = min(facts.threads // S, C, 32)
    tokens, offsets, slots = T.dynamic("tokens"), T.dynamic("offsets"), T.dynamic("slots")
    pieces, x_stride = T.dynamic("pieces"), T.dynamic("x_stride")
    H, G, RATES = T.dynamic("H"), T.dynamic("G"), T.dynamic("RATES")

    @T.prim_func
    def segment_states(
        x: T.StridedTensor((tokens, H * P), (x_stride, 1), dtype),
        bc: T.Tensor((2, slots, G, COLUMNS, N), dtype),
        rate: T.Tensor((slots, RATES, C, S), "float32"),
        gates: T.Tensor((slots, H, 4, C), "float32"),
        b_bias: T.Tensor((H, R, N) if has_bias else (1,), "float32"),
        mimo_x: T.Tensor((H, R, P) if "mimo_x" in facts.optional else (1,), "float32"),
        cu_seqlens: T.Tensor((offsets,), "int32"),
        seg_h: T.Tensor((pieces, H, P, N), "float32"),
        seg_turns: T.Tensor((pieces, H, S), "int32"),
        seg_decay: T.Tensor((pieces, H), "float32"),
        L: T.int32,
        packed: T.int32,
        piece: T.int32,
        segment: T.int32,
        per_sequence: T.int32,
        sequences: T.int32,
    ):
        with T.Kernel(H, per_sequence, sequences, threads=facts.threads) as (i_h, i_piece, i_seq):
            T.annotate_min_blocks_per_sm(blocks)
            k_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            x_shared = T.alloc_shared((stages, C, P), dtype)
            rate_shared = T.alloc_shared((stages, C, S), "float32")
            gate_shared = T.alloc_shared((stages, 4, C), "float32")
            angle_shared = T.alloc_shared((C, S, 2), "float32")
            bias_shared = T.alloc_shared((1, R, N), "float32")
            full = T.alloc_barrier([facts.threads] * stages)
            h_frag = T.alloc_fragment((facts.rows, N), "float32")
            w_frag = T.alloc_fragment((facts.rows, COLUMNS), dtype)
            in_frag = T.alloc_fragment((facts.rows, C), "float32")
            up_frag = T.alloc_fragment((facts.rows, R), "float32")
            T.annotate_layout({
                in_frag: by_token(facts),
                up_frag: by_rank(facts),
                x_shared: make_swizzled_layout(x_shared),
            })  # fmt: skip
            turns = T.alloc_local((1,), "int32")
            decay = T.alloc_local((1,), "float32")
            i_g = T.alloc_local((1,), "int32")
            i_r = T.alloc_local((1,), "int32")
            tid = T.get_thread_binding(0)

            i_g[0] = T.truncdiv(i_h, T.truncdiv(H, G))
            i_r[0] = T.truncmod(i_h, RATES)
            first, stop = sequence(cu_seqlens, i_seq, L, packed)
            start = first + i_piece * piece
            if first + (T.truncdiv(i_piece * piece, segment) + 1) * segment < stop:
                if has_bias:
                    load_bias(facts, b_bias, bias_shared, 0, i_h)
                project(facts, "mimo_x", mimo_x, i_h, 1.0, up_frag)
                T.clear(h_frag)
                turns[0] = 0
                decay[0] = 0.0
                slot = first // C + i_seq + i_piece * piece // C
                fetch(
                    facts, bc, rate, gates, x, x, k_shared, k_shared, rate_shared, gate_shared,
                    x_shared, x_shared, full, slot, start, i_h, i_g[0], i_r[0], 0, False, False,
                )  # fmt: skip
                T.sync_threads()
                for i in T.serial(piece // C):
                    stage, ahead = i % stages, i + stages - 1
                    T.mbarrier_wait_parity(full[stage], i // stages % 2)
                    advance(facts, gate_shared, stage, rate_shared, turns, angle_shared)
                    T.sync_threads()
                    if stages > 1 and ahead < piece // C:
                        fetch(
                            facts, bc, rate, gates, x, x, k_shared, k_shared, rate_shared,
                            gate_shared, x_shared, x_shared, full, slot + ahead,
                            start + ahead * C, i_h, i_g[0], i_r[0], ahead % stages, False, False,
                        )  # fmt: skip
                    turn_tiles(facts, (k_shared,), stage, bias_shared, (has_bias,), angle_shared)
                    T.fence_proxy_async()
                    T.sync_threads()
                    inputs(facts, x_shared, stage, piece, in_frag)
                    weigh(facts, in_frag, gate_shared, stage, up_frag, w_frag)
                    # h = e^{s_C} h + sum_j e^{s_C - s_j} w_j x_j k_j^T
                    for p, n in T.Parallel(facts.rows, N):
                        h_frag[p, n] *= T.exp2(gate_shared[stage, 3, C - 1])
                    T.wgmma_gemm(w_frag, k_shared[stage, 0:COLUMNS, 0:N], h_frag, policy=ROWS)
                    decay[0] += gate_shared[stage, 3, C - 1]
                    T.wait_wgmma(0)
                    if stages == 1 and i + 1 < piece // C:
                        T.sync_threads()
                        fetch(
                            facts, bc, rate, gates, x, x, k_shared, k_shared, rate_shared,
                            gate_shared, x_shared, x_shared, full, slot + i + 1,
                            start + (i + 1) * C, i_h, i_g[0], i_r[0], 0, False, False,
                        )  # fmt: skip
                slot_out = T.truncdiv(first, piece) + i_seq + i_piece
                for p, n in T.Parallel(facts.rows, N):
                    if p < P:
                        seg_h[slot_out, i_h, p, n] = h_frag[p, n]
                if tid < S * spread:
                    if tid % spread == 0:
                        seg_turns[slot_out, i_h, tid // spread] = turns[0]
                if tid == 0:
                    seg_decay[slot_out, i_h] = decay[0]

    return segment_states


@T.macro
def begin(
    facts, gates, phi_in, h_in, k_in, x_in, mimo_x, h_frag, turns,
    i_seq, i_h, slot, empty, has_state,
):  # fmt: skip
    """The state before a sequence: S_0 = h_init + D_0 (1 - lam_0) sum_r x_init,r k_init,r^T."""
    R, P, N, S = facts.R, facts.P, facts.N, facts.S
    spread = min(facts.threads // S, facts.C, 32)
    tid = T.get_thread_binding(0)
    T.clear(h_frag)
    turns[0] = 0
    ahead = T.alloc_var("float32", init=0.0)
    if has_state != 0:
        if tid < S * spread:
            turns[0] = turns_of(phi_in[i_seq, i_h, tid // spread] * TURNS)
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


@T.macro
def carry(facts, seg_h, seg_turns, seg_decay, angle_shared, h_frag, turns, i_h, slot, pieces):
    """The state before a segment: S = e^{s} S + dS Rot(phi)^T over the pieces before it."""
    P, N, S = facts.P, facts.N, facts.S
    spread, pairs = min(facts.threads // S, facts.C, 32), 8 * S // N
    tid = T.get_thread_binding(0)
    for j in T.serial(pieces):
        T.sync_threads()
        if tid < S * spread:
            angle = T.cast(turns[0], "float32") * RADIANS
            angle_shared[0, tid // spread, 0] = T.cos(angle)
            angle_shared[0, tid // spread, 1] = T.sin(angle)
            turns[0] += seg_turns[slot + j, i_h, tid // spread]
        T.sync_threads()
        scale = T.exp2(seg_decay[slot + j, i_h])
        for p, n in T.Parallel(facts.rows, N):
            if p < P:
                pair = n // 8 * pairs + T.min(n % 8 // 2, pairs - 1)
                sign = T.cast(n % 2 * 2 - 1, "float32")
                turned = n % 8 < 2 * pairs
                cos = T.if_then_else(turned, angle_shared[0, pair, 0], 1.0)
                sin = T.if_then_else(turned, angle_shared[0, pair, 1] * sign, 0.0)
                own, other = seg_h[slot + j, i_h, p, n], seg_h[slot + j, i_h, p, n + 1 - n % 2 * 2]
                h_frag[p, n] = h_frag[p, n] * scale + (own * cos + other * sin)


@T.macro
def finish(
    facts, x, k_shared, stage, phi_in, k_in, x_in, phi_out, h_out, k_out, x_out, h_frag, turns,
    i_seq, i_h, first, stop, has_state,
):  # fmt: skip
    """The state after a sequence's last token; a sequence of no tokens keeps its own."""
    R, P, N, S, C = facts.R, facts.P, facts.N, facts.S, facts.C
    spread = min(facts.threads // S, C, 32)
    tid = T.get_thread_binding(0)
    for p, n in T.Parallel(facts.rows, N):
        if p < P:
            h_out[i_seq, i_h, p, dim_of(n, N, S, facts.half)] = h_frag[p, n]
    zero = T.cast(0.0, facts.dtype)
    if first < stop:
        last = (stop - 1 - first) % C
        for r, n in T.Parallel(R, N):
            k_out[i_seq, r, i_h, dim_of(n, N, S, facts.half)] = k_shared[
                stage, column_of(last, r, R), n
            ]
        for p in T.Parallel(P):
            x_out[i_seq, i_h, p] = x[stop - 1, i_h * P + p]
        if tid < S * spread:
            if tid % spread == 0:
                phi_out[i_seq, i_h, tid // spread] = radians_of(turns[0])
    elif has_state != 0:
        for r, n in T.Parallel(R, N):
            k_out[i_seq, r, i_h, n] = k_in[i_seq, r, i_h, n]
        for p in T.Parallel(P):
            x_out[i_seq, i_h, p] = x_in[i_seq, i_h, p]
        for s in T.Parallel(S):
            phi_out[i_seq, i_h, s] = phi_in[i_seq, i_h, s]
    else:
        for r, n in T.Parallel(R, N):
            k_out[i_seq, r, i_h, n] = zero
        for p in T.Parallel(P):
            x_out[i_seq, i_h, p] = zero
        for s in T.Parallel(S):
            phi_out[i_seq, i_h, s] = 0.0


@T.macro
def mask(facts, gate_shared, stage, score_frag):
    """score_frag (C R of k, C R of q) *= M: w_j e^{s_i - s_j} for j < i, gamma_i for j = i."""
    for m, n in T.Parallel(COLUMNS, COLUMNS):
        j, i = token_of(m, facts.R), token_of(n, facts.R)
        fall = T.exp2(gate_shared[stage, 3, i] - gate_shared[stage, 3, j])
        same = T.if_then_else(i == j, gate_shared[stage, 1, j], 0.0)
        score_frag[m, n] *= T.if_then_else(i > j, gate_shared[stage, 2, j] * fall, same)


@T.macro
def put_y(facts, y, y_shared, i_h, start, left, rank):
    """Copy y_shared (C, P) to the tokens of a chunk that there are."""
    P, vectors = facts.P, facts.P // 8  # 16 bytes each
    tid = T.get_thread_binding(0)
    for step in T.unroll(T.ceildiv(facts.C * vectors, facts.threads)):
        i = step * facts.threads + tid
        if i < T.min(left, facts.C) * vectors:
            for e in T.vectorized(8):
                y[start + i // vectors, rank, i_h, i % vectors * 8 + e] = y_shared[
                    i // vectors, i % vectors * 8 + e
                ]


def prefill_kernel(facts: Facts, blocks: int, stages: int):
    """One block per (head, segment): the output of its tokens, and a sequence's final state."""
    R, P, N, S, C, dtype = facts.R, facts.P, facts.N, facts.S, facts.C, facts.dtype
    optional, rows, wide = facts.optional, facts.rows, min(N, WIDE)
    has_z, has_d, has_norm = "z" in optional, "d" in optional, "out_norm" in optional
    ranks = 1 if facts.reduced else R  # of y
    tokens, offsets, slots = T.dynamic("tokens"), T.dynamic("offsets"), T.dynamic("slots")
    pieces, count = T.dynamic("pieces"), T.dynamic("count")
    x_stride, z_stride = T.dynamic("x_stride"), T.dynamic("z_stride")
    H, G, RATES = T.dynamic("H"), T.dynamic("G"), T.dynamic("RATES")

    def size(name, *dims):
        return dims if name in optional else (1,)

    @T.prim_func
    def prefill(
        x: T.StridedTensor((tokens, H * P), (x_stride, 1), dtype),
        z: T.StridedTensor((tokens, H * P), (z_stride, 1), dtype),
        bc: T.Tensor((2, slots, G, COLUMNS, N), dtype),
        rate: T.Tensor((slots, RATES, C, S), "float32"),
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
        with T.Kernel(H, segments, count, threads=facts.threads) as (i_h, i_seg, i_seq):
            T.annotate_min_blocks_per_sm(blocks)
            k_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            q_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            score_shared = T.alloc_shared((COLUMNS, COLUMNS), dtype)
            x_shared = T.alloc_shared((stages, C, P), dtype)
            z_shared = T.alloc_shared((stages, C, P), dtype)
            y_shared = T.alloc_shared((C, P), dtype)
            rate_shared = T.alloc_shared((stages, C, S), "float32")
            gate_shared = T.alloc_shared((stages, 4, C), "float32")
            angle_shared = T.alloc_shared((C, S, 2), "float32")
            bias_shared = T.alloc_shared((2, R, N), "float32")
            norm_shared = T.alloc_shared((COLUMNS,), "float32")
            full = T.alloc_barrier([facts.threads] * stages)
            h_frag = T.alloc_fragment((rows, N), "float32")
            h_operand = T.alloc_fragment((rows, wide), dtype)
            y_frag = T.alloc_fragment((rows, COLUMNS), "float32")
            score_frag = T.alloc_fragment((COLUMNS, COLUMNS), "float32")
            x_frag = T.alloc_fragment((rows, COLUMNS), dtype)
            w_frag = T.alloc_fragment((rows, COLUMNS), dtype)
            out_frag = T.alloc_fragment((rows, C), "float32")
            square_frag = T.alloc_fragment((rows, COLUMNS), "float32")
            norm_frag = T.alloc_fragment((COLUMNS,), "float32")
            in_frag = T.alloc_fragment((rows, C), "float32")
            up_frag = T.alloc_fragment((rows, R), "float32")
            gate_frag = T.alloc_fragment((rows, R), "float32")
            down_frag = T.alloc_fragment((rows, R), "float32")
            T.annotate_layout({
                in_frag: by_token(facts),
                out_frag: by_token(facts),
                up_frag: by_rank(facts),
                gate_frag: by_rank(facts),
                down_frag: by_rank(facts),
                x_shared: make_swizzled_layout(x_shared),
                z_shared: make_swizzled_layout(z_shared),
                y_shared: make_swizzled_layout(y_shared),
            })  # fmt: skip
            turns = T.alloc_local((1,), "int32")
            i_g = T.alloc_local((1,), "int32")
            i_r = T.alloc_local((1,), "int32")

            i_g[0] = T.truncdiv(i_h, T.truncdiv(H, G))
            i_r[0] = T.truncmod(i_h, RATES)
            first, stop = sequence(cu_seqlens, i_seq, L, packed)
            start = first + i_seg * segment
            end = T.min(start + segment, stop)
            if T.Or(start < stop, i_seg == 0):
                if "b_bias" in optional:
                    load_bias(facts, b_bias, bias_shared, 0, i_h)
                if "c_bias" in optional:
                    load_bias(facts, c_bias, bias_shared, 1, i_h)
                project(facts, "mimo_x", mimo_x, i_h, 1.0, up_frag)
                project(facts, "mimo_z", mimo_z, i_h, -LOG2_E, gate_frag)
                project(facts, "mimo_o", mimo_o, i_h, -1.0 / LOG2_E if has_z else 1.0, down_frag)
                slot = first // C + i_seq
                left = end - start  # tokens not yet done
                chunks = T.ceildiv(left, C)
                T.sync_threads()
                if left > 0:
                    fetch(
                        facts, bc, rate, gates, x, z, k_shared, q_shared, rate_shared, gate_shared,
                        x_shared, z_shared, full, slot + i_seg * (segment // C), start,
                        i_h, i_g[0], i_r[0], 0, True, has_z,
                    )  # fmt: skip
                begin(
                    facts, gates, phi_in, h_in, k_in, x_in, mimo_x, h_frag, turns,
                    i_seq, i_h, slot, first >= stop, has_state,
                )  # fmt: skip
                carry(
                    facts, seg_h, seg_turns, seg_decay, angle_shared, h_frag, turns, i_h,
                    T.truncdiv(first, piece) + i_seq, T.truncdiv(i_seg * segment, piece),
                )  # fmt: skip
                T.sync_threads()
                for i in T.serial(chunks):
                    stage, ahead = i % stages, i + stages - 1
                    T.mbarrier_wait_parity(full[stage], i // stages % 2)
                    advance(facts, gate_shared, stage, rate_shared, turns, angle_shared)
                    T.sync_threads()
                    if stages > 1 and ahead < chunks:
                        fetch(
                            facts, bc, rate, gates, x, z, k_shared, q_shared, rate_shared,
                            gate_shared, x_shared, z_shared, full,
                            slot + i_seg * (segment // C) + ahead, start + ahead * C,
                            i_h, i_g[0], i_r[0], ahead % stages, True, has_z,
                        )  # fmt: skip
                    turn_tiles(
                        facts, (k_shared, q_shared), stage, bias_shared,
                        ("b_bias" in optional, "c_bias" in optional), angle_shared,
                    )  # fmt: skip
                    T.fence_proxy_async()
                    T.sync_threads()
                    # q_i . k_j, and q_i S
                    for p, n in T.Parallel(rows, wide):
                        h_operand[p, n] = h_frag[p, n]
                    T.wgmma_gemm(
                        k_shared[stage, 0:COLUMNS, 0:N], q_shared[stage, 0:COLUMNS, 0:N],
                        score_frag, transpose_B=True, clear_accum=True,
                        policy=T.GemmWarpPolicy.Square,
                    )  # fmt: skip
                    for part in tuple(range(N // wide)):
                        if part > 0:
                            T.wait_wgmma(0)
                            for p, n in T.Parallel(rows, wide):
                                h_operand[p, n] = h_frag[p, part * wide + n]
                        T.wgmma_gemm(
                            h_operand,
                            q_shared[stage, 0:COLUMNS, part * wide : (part + 1) * wide],
                            y_frag, transpose_B=True, clear_accum=part == 0, policy=ROWS,
                        )  # fmt: skip
                    inputs(facts, x_shared, stage, left - i * C, in_frag)
                    scale(facts, in_frag, up_frag, x_frag)
                    T.wait_wgmma(1)
                    mask(facts, gate_shared, stage, score_frag)
                    T.copy(score_frag, score_shared)
                    T.fence_proxy_async()
                    weigh(facts, in_frag, gate_shared, stage, up_frag, w_frag)
                    T.wait_wgmma(0)
                    T.sync_threads()
                    # y_i = e^{s_i} q_i S + sum_j M_ij (q_i . k_j) x_j
                    for p, n in T.Parallel(rows, COLUMNS):
                        y_frag[p, n] *= T.exp2(gate_shared[stage, 3, token_of(n, R)])
                    T.wgmma_gemm(x_frag, score_shared, y_frag, policy=ROWS)
                    # S = e^{s_C} S + sum_j e^{s_C - s_j} w_j x_j k_j^T
                    for p, n in T.Parallel(rows, N):
                        h_frag[p, n] *= T.exp2(gate_shared[stage, 3, C - 1])
                    T.wgmma_gemm(w_frag, k_shared[stage, 0:COLUMNS, 0:N], h_frag, policy=ROWS)
                    T.wait_wgmma(1)
                    if has_d:
                        for p, t in T.Parallel(rows, C):
                            skip = d[i_h] * in_frag[p, t]
                            for r in T.unroll(R):
                                y_frag[p, column_of(t, r, R)] += skip * up_frag[p, r]
                    if has_norm:
                        for p, n in T.Parallel(rows, COLUMNS):
                            square_frag[p, n] = y_frag[p, n] * y_frag[p, n]
                        T.reduce_sum(square_frag, norm_frag, dim=0)
                        T.sync_threads()
                        T.copy(norm_frag, norm_shared)
                        T.sync_threads()
                        for p, n in T.Parallel(rows, COLUMNS):
                            weight = out_norm[i_h, p % P]
                            y_frag[p, n] *= T.rsqrt(norm_shared[n] / P + 1e-5) * weight
                    for rank in tuple(range(ranks)):
                        for p, t in T.Parallel(rows, C):
                            out_frag[p, t] = 0.0
                            for r in T.unroll(R // ranks):
                                v = T.alloc_var("float32")
                                v = y_frag[p, column_of(t, rank + r, R)] * down_frag[p, rank + r]
                                if has_z:
                                    # silu(u) = v / (1 + 2^v) / -log2(e) with v = -log2(e) u
                                    u = T.cast(z_shared[stage, t, p % P], "float32")
                                    u = u * gate_frag[p, rank + r]
                                    v *= u / (1.0 + T.exp2(u))
                                out_frag[p, t] += v
                        if rank > 0:
                            T.sync_threads()
                        for p, t in T.Parallel(rows, C):
                            if p < P:
                                y_shared[t, p] = out_frag[p, t]
                        T.sync_threads()
                        put_y(facts, y, y_shared, i_h, start + i * C, left - i * C, rank)
                    T.wait_wgmma(0)
                    if stages == 1 and i + 1 < chunks:
                        T.sync_threads()
                        fetch(
                            facts, bc, rate, gates, x, z, k_shared, q_shared, rate_shared,
                            gate_shared, x_shared, z_shared, full,
                            slot + i_seg * (segment // C) + i + 1, start + (i + 1) * C,
                            i_h, i_g[0], i_r[0], 0, True, has_z,
                        )  # fmt: skip
                if end >= stop:
                    finish(
                        facts, x, k_shared, (chunks - 1) % stages, phi_in, k_in, x_in, phi_out, h_out,
                        k_out, x_out, h_frag, turns, i_seq, i_h, first, stop, has_state,
                    )  # fmt: skip

    return prefill
