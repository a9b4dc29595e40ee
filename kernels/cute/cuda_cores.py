"""The products of a decode step on CUDA cores: each thread takes a slice of N for some rows of P.

Keys and queries (R, N) and the scaled rows of x (R, P) lie in shared memory in float32. A thread
advances `rows` rows of h at a time in registers, writes them, and adds up its part of the outputs;
the lanes of a row add theirs by shuffles.
"""

from typing import Any

import cutlass
from cutlass import Float32, const_expr, cute
from cutlass.cute import arch

from .functions import scatter_sums
from .memory import load, put, store
from .step import WARP, Facts, Step


class CudaCoreStep(Step):
    """Multiply-adds in float32, for every state and rank."""

    def __init__(self, facts: Facts, config: Any) -> None:
        super().__init__(facts, config)
        # a row of h lies in `lanes` lanes, `vector` elements each, `parts` times over
        self.vector = config.bytes // facts.state_dtype.itemsize
        self.lanes = min(WARP, self.N // self.vector)
        self.parts = self.N // (self.lanes * self.vector)
        self.groups = config.threads // self.lanes  # rows that a block has side by side
        self.rows = config.rows
        self.per_thread = self.P // self.groups
        self.pieces = self.per_thread // self.rows
        self.tile = self.P * self.N
        keys, xs = (Float32, self.R * self.N), (Float32, self.R * self.P)
        self.buffers = [*[keys] * 3, *[xs] * 2, xs if self.normed else (Float32, 1)]

    def index_of_row(self, i_p):
        """The rows of a thread stand together."""
        return (i_p % self.groups) * self.per_thread + i_p // self.groups

    def put_rows(self, s_operands, i_p, first, befores, nows):
        """Keep beta x'_r and gamma x_r of one row, for some r from `first`."""
        _, _, _, s_x_before, s_x, _ = s_operands
        i_x = self.index_of_row(i_p)
        for r, (before, now) in enumerate(zip(befores, nows, strict=True)):
            put(s_x_before, (first + r) * self.P + i_x, before)
            put(s_x, (first + r) * self.P + i_x, now)

    def put_key(self, s_operands, r, before, keys, offsets):
        """Keep a lane's pairs of k'_r and k_r."""
        s_k_before, s_k, *_ = s_operands
        self.put_pairs(s_k_before + r * self.N, before, offsets)
        self.put_pairs(s_k + r * self.N, keys, offsets)

    def put_query(self, s_operands, r, queries, offsets):
        """Keep a lane's pairs of q_r."""
        self.put_pairs(s_operands[2] + r * self.N, queries, offsets)

    @cute.jit
    def products(
        self, g_h, s_h, arrived, s_operands, s_weight, s_skip, alpha, out_norm, y, row, head, H
    ):
        """Advance h chunk by chunk, as it arrives, and write the outputs."""
        tid = arch.thread_idx()[0]
        s_y = s_operands[5] if self.normed else None
        lane, i_group = tid % self.lanes, tid // self.lanes
        for chunk in cutlass.range(self.pieces, unroll=1):
            arch.mbarrier_wait(arrived + chunk, 0)
            sums = self.update(chunk, lane, i_group, alpha, g_h, s_h, s_operands, s_weight)
            sums, first = scatter_sums(sums, lane, self.lanes)
            if lane % max(1, self.lanes // (self.rows * self.apart)) == 0:
                for i, value in enumerate(sums):
                    r, u = (first + i) // self.rows, (first + i) % self.rows
                    i_row = chunk * self.rows + u
                    i_x = i_group * self.per_thread + i_row
                    value = value + self.skip_of(s_skip, r, i_x)
                    i_out = i_row * self.groups + i_group
                    self.put_output(y, s_y, row, head, H, r, i_out, value)
        if const_expr(self.normed):
            arch.sync_threads()
            self.norm_outputs(out_norm, y, s_y, s_weight, row, head, H)

    def update(self, chunk, lane, i_group, alpha, g_h, s_h, s_operands, s_weight) -> list[Any]:
        """Advance a chunk of h; this thread's parts of the outputs, by rank (if apart) and row."""
        N, P, vector = self.N, self.P, self.vector
        s_k_before, s_k, s_q, s_x_before, s_x, _ = s_operands
        columns = [(lane + part * self.lanes) * vector for part in range(self.parts)]
        o_x = i_group * self.per_thread + chunk * self.rows
        o_rows = [((chunk * self.rows + u) * self.groups + i_group) * N for u in range(self.rows)]
        h = [[v for o_n in columns for v in load(s_h + (o_row + o_n), vector)] for o_row in o_rows]
        h = [[alpha * v for v in row] for row in h]
        for r in range(self.R):
            k_before = [v for o_n in columns for v in load(s_k_before + (r * N + o_n), vector)]
            k = [v for o_n in columns for v in load(s_k + (r * N + o_n), vector)]
            x_before = load(s_x_before + (r * P + o_x), self.rows)
            x = load(s_x + (r * P + o_x), self.rows)
            for u, row in enumerate(h):
                for n, value in enumerate(row):
                    row[n] = value + x_before[u] * k_before[n] + x[u] * k[n]
        for o_row, row in zip(o_rows, h, strict=True):
            for part, o_n in enumerate(columns):
                store(g_h + (o_row + o_n), row[part * vector : (part + 1) * vector])
        sums: list[Any] = [None] * (self.apart * self.rows)
        for r in range(self.R):
            q = [v for o_n in columns for v in load(s_q + (r * N + o_n), vector)]
            weight = None if self.normed else load(s_weight + (r * P + o_x), self.rows)
            for u, row in enumerate(h):
                dot = row[0] * q[0]
                for n in range(1, len(q)):
                    dot = dot + row[n] * q[n]
                i = r * self.rows + u if self.apart > 1 else u
                dot = dot if weight is None else weight[u] * dot
                sums[i] = dot if sums[i] is None else sums[i] + dot
        return sums
