"""The per-token part of prefill in TileLang: activations, norms, and decays summed in chunks.

Its results are small: b and c are shared by the heads of a group, the rest is one number per token
and head. They lie in slots, one for each chunk of each sequence and zero past its end: the main
kernels copy whole slots and need no masks.
"""

import tilelang.language as T

from .facts import Facts
from .functions import LOG2_E, sequence, sigmoid, softplus
from .order import column_of, dim_of, rate_of, runs_of

THREADS = 128
HEADS = 32  # of one block that computes gates
EIGHT = tuple(range(8))
FLYING = 2  # rows of b or c that a thread has asked for at a time
LOADS = {2: (T.ldg32, "uint32"), 4: (T.ldg64, "uint32x2"), 8: (T.ldg128, "uint32x4")}


@T.macro
def normalise(facts, source, weight, target, weighted, part, slot, i_g, G, start, stop):
    """One group's rows of b or c in a slot: RMSNorm over N, dims by position; zero past stop.

    What lies past stop is read as the last token, so that no load waits behind a branch. The
    loads and the store are explicit: nvcc splits those of TileLang's vectors into 4 bytes each.
    """
    N, R, S = facts.N, facts.R, facts.S
    group = N // 8  # threads of a row, 16 bytes each
    steps = facts.C * R * group // THREADS
    flying = min(steps, FLYING)
    raw_local = T.alloc_local((flying, 8), "float32")
    weight_local = T.alloc_local((8,), "float32")
    out_local = T.alloc_local((8,), facts.dtype)
    words_local = T.view(out_local, (1,), "uint32x4")
    square = T.alloc_local((1,), "float32")
    tid = T.get_thread_binding(0)
    i_row, i_8 = tid // group, tid % group
    if weighted:
        for e in EIGHT:
            weight_local[e] = weight[dim_of(i_8 * 8 + e, N, S, facts.half)]
    for step in T.serial(steps // flying):
        for u in tuple(range(flying)):
            row = (step * flying + u) * (THREADS // group) + i_row
            for run in runs_of(N, S, facts.half):
                load, words = LOADS[len(run)]
                run_local = T.alloc_local((len(run),), facts.dtype)
                run_words = T.view(run_local, (1,), words)
                n = (row % R * G + i_g) * N + dim_of(i_8 * 8 + run[0], N, S, facts.half)
                run_words[0] = load(source[T.min(start + row // R, stop - 1), n])
                for e in tuple(range(len(run))):
                    raw_local[u, run[e]] = T.cast(run_local[e], "float32")
        for u in tuple(range(flying)):
            row = (step * flying + u) * (THREADS // group) + i_row
            if facts.options.norm == "rms":
                square[0] = 0.0
                for e in EIGHT:
                    square[0] += raw_local[u, e] * raw_local[u, e]
                for e in range(group.bit_length() - 1):
                    square[0] += T.shfl_xor(square[0], 1 << e)
                square[0] = T.rsqrt(square[0] / N + 1e-5)
                for e in EIGHT:
                    raw_local[u, e] *= square[0]
                    if weighted:
                        raw_local[u, e] *= weight_local[e]
            for e in T.vectorized(8):
                out_local[e] = T.if_then_else(start + row // R < stop, raw_local[u, e], 0.0)
            column = column_of(row // R, row % R, R)
            T.stg128(target[part, slot, i_g, column, i_8 * 8], words_local[0])


def activate_kernel(facts: Facts):
    """One block per (chunk of a sequence, part): a group of b or c, a rate, or HEADS heads.

    bc (2, slots, G, C R, N): normalised b and c, rows by column, dims by position.
    rate (slots, RATES, S, C): tanh(theta) / 2, the turns per unit of step size, tokens by
    `rate_of`.
    gates (slots, H, 4, C): D, gamma = lam D, the column weight w, and log2 of the decay since the
    chunk's start.
    """
    N, R, S, C, dtype = facts.N, facts.R, facts.S, facts.C, facts.dtype
    options, optional = facts.options, facts.optional
    gate_steps = C * HEADS // THREADS
    together = min(gate_steps, 4)  # steps whose loads are in flight at a time
    tokens, offsets, slots = T.dynamic("tokens"), T.dynamic("offsets"), T.dynamic("slots")
    H, G, RATES = T.dynamic("H"), T.dynamic("G"), T.dynamic("RATES")
    strides = [T.dynamic(f"{name}_stride") for name in ("b", "c", "dt", "a", "lam", "theta")]

    def size(name, n):
        return (n if name in optional else 1,)

    def step_of(raw, bias):
        """The step size D."""
        return softplus(raw + bias) if options.step == "softplus" else raw

    def decay_of(u, step):
        """A D; never positive."""
        if options.decay == "log_decay":
            return u
        if options.decay == "heavy_tail":
            rate = T.if_then_else(u >= 0.0, 1.0 + u, 1.0 / (1.0 - T.min(u, 0.0)))
        else:
            rate = softplus(u)
        return -T.max(rate, 1e-4) * step

    @T.prim_func
    def activate(
        b: T.StridedTensor((tokens, R * G * N), (strides[0], 1), dtype),
        c: T.StridedTensor((tokens, R * G * N), (strides[1], 1), dtype),
        dt: T.StridedTensor((tokens, H), (strides[2], 1), dtype),
        a: T.StridedTensor((tokens, H), (strides[3], 1), dtype),
        lam: T.StridedTensor((tokens, H), (strides[4], 1), dtype),
        theta: T.StridedTensor((tokens, RATES * S), (strides[5], 1), dtype),
        dt_bias: T.Tensor(size("dt_bias", H), "float32"),
        b_norm: T.Tensor(size("b_norm", N), "float32"),
        c_norm: T.Tensor(size("c_norm", N), "float32"),
        cu_seqlens: T.Tensor((offsets,), "int32"),
        bc: T.Tensor((2, slots, G, C * R, N), dtype),
        rate: T.Tensor((slots, RATES, S, C), "float32"),
        gates: T.Tensor((slots, H, 4, C), "float32"),
        L: T.int32,
        packed: T.int32,
        chunks: T.int32,
        sequences: T.int32,
    ):
        with T.Kernel(chunks, 2 * G + RATES + T.ceildiv(H, HEADS), sequences, threads=THREADS) as (
            i_chunk, i_part, i_seq,
        ):  # fmt: skip
            T.annotate_min_blocks_per_sm(10)  # 48 registers
            tid = T.get_thread_binding(0)
            first, stop = sequence(cu_seqlens, i_seq, L, packed)
            start = first + i_chunk * C
            slot = first // C + i_seq + i_chunk
            gate_shared = T.alloc_shared((4, HEADS, C + 1), "float32")  # a pad for the banks
            raw_local = T.alloc_local((together, 5), "float32")  # dt, lam, a; dt, lam ahead
            total = T.alloc_local((1,), "float32")
            if start < stop:
                if i_part < G:
                    normalise(
                        facts, b, b_norm, bc, "b_norm" in optional,
                        0, slot, i_part, G, start, stop,
                    )  # fmt: skip
                elif i_part < 2 * G:
                    normalise(
                        facts, c, c_norm, bc, "c_norm" in optional,
                        1, slot, i_part - G, G, start, stop,
                    )  # fmt: skip
                elif i_part < 2 * G + RATES:
                    i_r = i_part - 2 * G
                    for s, i in T.Parallel(S, C):
                        u = T.if_then_else(
                            start + i < stop, T.cast(theta[start + i, i_r * S + s], "float32"), 0.0
                        )
                        rate[slot, i_r, s, rate_of(s, i, C)] = 0.5 * T.tanh(u)
                else:
                    i_h0 = (i_part - 2 * G - RATES) * HEADS
                    j = tid % HEADS
                    i_h, known = i_h0 + j, T.min(i_h0 + j, H - 1)
                    for step in T.serial(gate_steps // together):
                        for u in tuple(range(together)):  # past the ends too: no branches
                            t = start + (step * together + u) * (THREADS // HEADS) + tid // HEADS
                            t_0, t_1 = T.min(t, stop - 1), T.min(t + 1, stop - 1)
                            raw_local[u, 0] = T.cast(dt[t_0, known], "float32")
                            raw_local[u, 1] = T.cast(lam[t_0, known], "float32")
                            raw_local[u, 2] = T.cast(a[t_0, known], "float32")
                            raw_local[u, 3] = T.cast(dt[t_1, known], "float32")
                            raw_local[u, 4] = T.cast(lam[t_1, known], "float32")
                        for u in tuple(range(together)):
                            i = (step * together + u) * (THREADS // HEADS) + tid // HEADS
                            t = start + i
                            for e in range(4):
                                gate_shared[e, j, i] = 0.0
                            if i_h < H and t < stop:
                                bias = dt_bias[i_h] if "dt_bias" in optional else 0.0
                                step_size = step_of(raw_local[u, 0], bias)
                                gamma = step_size * sigmoid(raw_local[u, 1])
                                gate_shared[0, j, i] = step_size
                                gate_shared[1, j, i] = gamma
                                gate_shared[2, j, i] = gamma
                                # w_t = lam_t D_t + (1 - lam_{t+1}) D_{t+1}, without the second term
                                # at the last token
                                if t + 1 < stop:
                                    ahead = step_of(raw_local[u, 3], bias) * sigmoid(
                                        -raw_local[u, 4]
                                    )
                                    gate_shared[2, j, i] = gamma + ahead
                                # e^-100 is zero in float32; the floor keeps differences of sums
                                # accurate after it, and a maximum would hide NaN
                                raw = raw_local[u, 2]
                                decay = T.max(decay_of(raw, step_size), -100.0) * LOG2_E
                                gate_shared[3, j, i] = T.if_then_else(T.isnan(raw), raw, decay)
                    T.sync_threads()
                    if tid < HEADS:
                        total[0] = 0.0
                        for i in T.serial(C):
                            total[0] += gate_shared[3, tid, i]
                            gate_shared[3, tid, i] = total[0]
                    T.sync_threads()
                    for step in T.serial(HEADS * 4 * C // THREADS):
                        e = step * THREADS + tid
                        j = e // (4 * C)
                        if i_h0 + j < H:
                            gates[slot, i_h0 + j, e // C % 4, e % C] = gate_shared[
                                e // C % 4, j, e % C
                            ]

    return activate
