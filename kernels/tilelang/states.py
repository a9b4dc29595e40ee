"""What a piece of a sequence adds to the state, in TileLang: the first pass of cut sequences."""

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from .chunk import (
    advance,
    fetch,
    fetch_times,
    holds_turns,
    keep_bias,
    pair_of,
    put_angles,
    ranks_of,
    tokens_of,
    turn_tiles,
)
from .facts import COLUMNS, Facts
from .fragments import ROWS, by_pair, by_rank, by_token, inputs, project, weigh, weights
from .functions import sequence


@T.macro
def follow(facts, gate_shared, half, factor_shared, decay, tid):
    """factor_shared[0, 1] (C): w_j e^{s_P - s_j}. decay (1): from the chunk's end to the piece's,
    then from its start."""
    end = gate_shared[half, 3, facts.C - 1] + decay[0]
    if tid < facts.C:
        fall = T.exp2(end - gate_shared[half, 3, tid])
        factor_shared[0, 1, tid] = gate_shared[half, 2, tid] * fall
    decay[0] = end


def states_kernel(facts: Facts, blocks: int, stages: int):
    """One block per (head, piece before a sequence's last segment): dS, its angle, its decay.

    seg_h (pieces, H, P, N), dims by position; seg_turns (pieces, H, S); seg_decay (pieces, H),
    log2. From the last chunk to the first: then the decay of all that follows is a factor of x, and
    dS is only added to. So keys are rotated by their angle from the piece's end.
    """
    R, P, N, S, C, dtype = facts.R, facts.P, facts.N, facts.S, facts.C, facts.dtype
    has_bias, threads = "b_bias" in facts.optional, facts.multipliers
    ranks = ranks_of(facts, threads)
    tokens, offsets, slots = T.dynamic("tokens"), T.dynamic("offsets"), T.dynamic("slots")
    pieces, x_stride = T.dynamic("pieces"), T.dynamic("x_stride")
    H, G, RATES = T.dynamic("H"), T.dynamic("G"), T.dynamic("RATES")

    @T.prim_func
    def segment_states(
        x: T.StridedTensor((tokens, H * P), (x_stride, 1), dtype),
        bc: T.Tensor((2, slots, G, COLUMNS, N), dtype),
        rate: T.Tensor((slots, RATES, S, C), "float32"),
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
        with T.Kernel(H, per_sequence, sequences, threads=threads) as (i_h, i_piece, i_seq):
            T.annotate_min_blocks_per_sm(blocks)
            k_shared = T.alloc_shared((stages, COLUMNS, N), dtype)
            x_shared = T.alloc_shared((stages, C, P), dtype)
            rate_shared = T.alloc_shared((1, S, C), "float32")
            gate_shared = T.alloc_shared((2, 4, C), "float32")
            factor_shared = T.alloc_shared((1, 2, C), "float32")  # the second of two
            mimo_shared = T.alloc_shared((1, facts.rows, R), "float32")
            angle_shared = T.alloc_shared((C, 2 * S + 4), "float32")  # a pad for the banks
            bias_local = T.alloc_local((1, ranks, 8), "float32")
            passing_local = T.alloc_local((1, ranks, 8), dtype)
            full = T.alloc_barrier([threads] * stages)  # k and x are there
            known = T.alloc_barrier([threads] * 2)  # gates and rates are
            h_frag = T.alloc_fragment((facts.rows, N), "float32")
            w_frag = T.alloc_fragment((facts.rows, COLUMNS), dtype)
            raw_frag = T.alloc_fragment((facts.rows, C), dtype)
            in_frag = T.alloc_fragment((facts.rows, C), "float32")
            up_frag = T.alloc_fragment((facts.rows, R), "float32")
            T.annotate_layout({
                raw_frag: by_pair(facts),
                in_frag: by_token(facts),
                up_frag: by_rank(facts),
                x_shared: make_swizzled_layout(x_shared),
            })  # fmt: skip
            turns = T.alloc_local((1,), "int32")
            run = T.alloc_local((tokens_of(facts, threads),), "int32")
            decay = T.alloc_local((1,), "float32")
            i_g = T.alloc_local((1,), "int32")
            i_r = T.alloc_local((1,), "int32")
            tid = T.get_thread_binding(0)

            i_g[0] = T.truncdiv(i_h, T.truncdiv(H, G))
            i_r[0] = T.truncmod(i_h, RATES)
            first, stop = sequence(cu_seqlens, i_seq, L, packed)
            start = first + i_piece * piece
            if first + (T.truncdiv(i_piece * piece, segment) + 1) * segment < stop:
                project(facts, "mimo_x", mimo_x, i_h, 1.0, 0, mimo_shared, tid, threads)
                T.clear(h_frag)
                turns[0] = 0
                decay[0] = 0.0
                chunks = piece // C
                last = first // C + i_seq + i_piece * chunks + chunks - 1  # slot
                token = start + piece - C
                fetch_times(
                    facts, rate, gates, rate_shared, gate_shared, known, last, i_h, i_r[0], 0
                )
                for i in T.unroll(stages - 1):
                    if i < chunks:
                        fetch(
                            facts, bc, x, x, k_shared, k_shared, x_shared, x_shared, full,
                            last - i, token - i * C, i_h, i_g[0], i, False, False,
                        )  # fmt: skip
                T.sync_threads()
                weights(facts, mimo_shared, 0, up_frag)
                keep_bias(
                    facts, (b_bias,), (has_bias,), bias_local, passing_local, i_h, tid, threads
                )
                T.mbarrier_wait_parity(known[0], 0)
                advance(facts, gate_shared, rate_shared, turns, run, 0, tid, threads, True)
                put_angles(facts, run, angle_shared, tid, threads)
                follow(facts, gate_shared, 0, factor_shared, decay, tid)
                T.sync_threads()
                for i in T.serial(chunks):
                    stage, ahead = i % stages, i + stages - 1
                    if ahead < chunks:
                        fetch(
                            facts, bc, x, x, k_shared, k_shared, x_shared, x_shared, full,
                            last - ahead, token - ahead * C, i_h, i_g[0], ahead % stages, False,
                            False,
                        )  # fmt: skip
                    if i + 1 < chunks:
                        fetch_times(
                            facts, rate, gates, rate_shared, gate_shared, known, last - i - 1, i_h,
                            i_r[0], i + 1,
                        )  # fmt: skip
                    # dS += sum_j e^{s_P - s_j} w_j x_j k_j^T, s_P the decay up to the piece's end
                    T.mbarrier_wait_parity(full[stage], i // stages % 2)
                    inputs(facts, x_shared, stage, C, tid, raw_frag, in_frag)
                    weigh(facts, in_frag, factor_shared, 0, up_frag, w_frag)
                    turn_tiles(
                        facts, (k_shared,), stage, (has_bias,), bias_local, passing_local,
                        angle_shared, tid, threads,
                    )  # fmt: skip
                    T.fence_proxy_async()
                    T.sync_threads()
                    T.wgmma_gemm(w_frag, k_shared[stage, 0:COLUMNS, 0:N], h_frag, policy=ROWS)
                    if i + 1 < chunks:  # under the product
                        T.mbarrier_wait_parity(known[(i + 1) % 2], (i + 1) // 2 % 2)
                        advance(
                            facts, gate_shared, rate_shared, turns, run, i + 1, tid, threads, True
                        )
                        put_angles(facts, run, angle_shared, tid, threads)
                        follow(facts, gate_shared, (i + 1) % 2, factor_shared, decay, tid)
                    T.wait_wgmma(0)
                    T.sync_threads()
                slot_out = T.truncdiv(first, piece) + i_seq + i_piece
                for p, n in T.Parallel(facts.rows, N):
                    if p < P:
                        seg_h[slot_out, i_h, p, n] = h_frag[p, n]
                if holds_turns(facts, tid, threads):
                    i_s, i_spread = pair_of(facts, tid, threads)
                    if i_spread == 0:
                        seg_turns[slot_out, i_h, i_s] = -turns[0]
                if tid == 0:
                    seg_decay[slot_out, i_h] = decay[0]

    return segment_states
