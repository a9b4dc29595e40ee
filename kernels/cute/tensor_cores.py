"""The products of a decode step on tensor cores, for 16-bit activations, a state like them, R >= 4.

A warp owns 16 rows of h at a time. Both products are mma.sync with float32 accumulators:

    h    <- alpha h + X K        X (16, 2R): beta x'_r, gamma x_r     K (2R, N): k'_r, k_r
    y^T  =  h Q                  Q (N, R): q_r

What was computed in float32 is split in two 16-bit numbers, v = high + low, and X K is taken as
high high + low high + high low: 2^-16 of each term is lost. k' is stored in 16 bits, and exact. y
is taken from h as it is stored: one rounding to the output's own dtype on the way.

    R = 8    m16n8k16: high of X by high of K; low of X by high of K
             m16n8k8:  high of gamma x_r by low of k_r
             m16n8k16: h by high of Q; h by low of Q
    R = 4    m16n8k16: (high, low) of X by high of K, twice the same
             m16n8k8:  (0, high of gamma x_r) by (k_r, low of k_r)
             m16n8k16: h by (high, low) of Q, whose two halves are added at the end

Accumulators of tile j of 32 columns hold columns 2t, 2t + 1 of 8 in lane 4g + t. A lane should have
8 neighbouring columns of h, 16 bytes: so the columns of K and Q stand permuted (`place`), and what
lane 4g + t has of tile j are columns 8t + 2j, 8t + 2j + 1. The accumulators, rounded and packed for
the store, are then the operand of h Q as they are.

Eight lanes load two rows of h at a time, g and g + 1, 64 bytes of each. So even rows of a product
are from the first eight of a warp's rows and odd ones from the others, which lie 64 bytes off in
shared memory: in the other half of the banks.
"""

from typing import Any

import cutlass
from cutlass import Float32, Uint32, const_expr, cute
from cutlass.cute import arch

from .memory import at, load, put, store
from .step import WARP, Facts, Step

ROWS = 16  # of h in one product
COLUMNS = 32  # of h that a warp has at once: 4 tiles of 8
PAD = 8  # elements beside a row: eight rows of 16 bytes then lie in different banks


class TensorCoreStep(Step):
    """Matrix products of 16-bit operands, accumulated in float32."""

    def __init__(self, facts: Facts, config: Any) -> None:
        super().__init__(facts, config)
        self.pieces = self.P // ROWS
        self.tile = self.P * self.N + 2 * COLUMNS
        self.row_of_x = 4 * self.R + PAD  # high of beta x', gamma x; then their low
        self.row_of_keys = self.N + PAD
        self.buffers = [
            (self.type, 3 * self.R * self.row_of_keys),  # high of k', k; then low of k
            (self.type, 2 * self.R * self.row_of_keys),
            (self.type, self.P * self.row_of_x),
            (Float32, self.R * self.P),
        ]

    def copies(self, i_piece) -> list[tuple[int, int, int]]:
        """A piece comes in two parts, for even and for odd rows of its product."""
        half = ROWS // 2 * self.N
        odd = self.P // 2 * self.N + COLUMNS
        return [
            (2 * i_piece * half, i_piece * half, half),
            ((2 * i_piece + 1) * half, odd + i_piece * half, half),
        ]

    def index_of_row(self, i_p):
        """Rows stand in the order of products."""
        return i_p - i_p % ROWS + i_p % 4 * 2 + i_p // 8 % 2 + i_p // 4 % 2 * 8

    def index_of_output(self, i_p):
        """Outputs stand there, too."""
        return self.index_of_row(i_p)

    def split(self, value):
        """value = high + low, two numbers of the activations' dtype."""
        high = value.to(self.type)
        return high, (value - Float32(high)).to(self.type)

    def put_rows(self, s_operands, i_p, first, befores, nows):
        """Keep one row of X for some ranks: its high numbers, then its low ones."""
        for half, values in ((0, befores), (1, nows)):
            pairs = [self.split(value) for value in values]
            for low, part in enumerate(zip(*pairs, strict=True)):
                o_x = self.index_of_row(i_p) * self.row_of_x + ((2 * low + half) * self.R + first)
                store(s_operands[2] + o_x, list(part))

    def place(self, n):
        """Where column n stands: of its five low bits, those of j before those of t."""
        return n + ((n >> 1) & 3) * 8 + ((n >> 3) & 3) * 2 + (n & 1) - (n & 31)

    def put_split(self, pointer, high_row, low_row, pairs, offsets):
        """Keep a lane's pairs of a float32 row as two rows."""
        for pair, places in zip(pairs, offsets, strict=True):
            for value, n in zip(pair, places, strict=True):
                high, low = self.split(value)
                put(pointer, high_row * self.row_of_keys + self.place(n), high)
                put(pointer, low_row * self.row_of_keys + self.place(n), low)

    def put_key(self, s_operands, r, before, keys, offsets):
        """Keep a lane's pairs of k'_r and k_r."""
        s_keys = s_operands[0]
        places = [(self.place(one), self.place(other)) for one, other in offsets]
        self.put_pairs(s_keys + r * self.row_of_keys, before, places)
        self.put_split(s_keys, self.R + r, 2 * self.R + r, keys, offsets)

    def put_query(self, s_operands, r, queries, offsets):
        """Keep a lane's pairs of q_r."""
        self.put_split(s_operands[1], r, self.R + r, queries, offsets)

    @cute.jit
    def products(
        self, g_h, s_h, arrived, s_operands, s_weight, s_skip, alpha, out_norm, y, row, head, H
    ):
        """Advance h by 16 rows a warp, as they arrive, and write the outputs."""
        tid = arch.thread_idx()[0]
        lane, warp = tid % WARP, arch.make_warp_uniform(tid // WARP)
        s_y, P = s_operands[3], self.P
        for m in cutlass.range(self.pieces // self.warps, unroll=1):
            tile = warp + self.warps * m
            arch.mbarrier_wait(arrived + tile, 0)
            sums = self.update(tile, lane, alpha, g_h, s_h, s_operands)
            if lane % 4 < self.R // 2:
                for i, value in enumerate(sums):
                    o_y = (lane % 4 * 2 + i % 2) * P + tile * ROWS + lane // 4 + i // 2 * 8
                    put(s_y, o_y, value + at(s_skip, o_y) if self.normed else value)
        arch.sync_threads()
        if const_expr(self.normed):
            self.norm_outputs(out_norm, y, s_y, s_weight, row, head, H)
        elif tid < P:
            i_x = self.index_of_row(tid)
            outs = [at(s_weight, r * P + i_x) * at(s_y, r * P + i_x) for r in range(self.R)]
            if const_expr(self.reduced):
                out = sum(outs, self.skip_of(s_skip, 0, i_x))
                self.put_output(y, None, row, head, H, 0, tid, out)
            else:
                for r, out in enumerate(outs):
                    out = out + self.skip_of(s_skip, r, i_x)
                    self.put_output(y, None, row, head, H, r, tid, out)

    def update(self, tile, lane, alpha, g_h, s_h, s_operands) -> list[Any]:
        """Advance 16 rows; y of rows g, g + 8 and ranks 2t, 2t + 1 in lane 4g + t."""
        s_keys, s_q, s_x, _ = s_operands
        i_row, matrix = lane % 8, lane // 8  # of the four 8 x 8 matrices: one row of one
        o_x = (tile * ROWS + i_row + matrix % 2 * 8) * self.row_of_x + matrix // 2 * 8
        x = matrices(s_x + o_x)  # R = 4: high and low; R = 8: high
        x_low = matrices(s_x + (o_x + 2 * self.R)) if self.R == 8 else None
        now = x[2:]  # high of gamma x_r, to be taken by low of k_r
        if self.R < 8:
            now = [Uint32(cutlass.select_(lane % 4 < 2, Uint32(0), word)) for word in x[:2]]
        odd = lane // 4 % 2
        o_even = lane // 8 * self.N + lane % 4 * 8
        o_shared = odd * (self.P // 2 * self.N + COLUMNS) + tile * ROWS // 2 * self.N + o_even
        o_h = (tile * ROWS + odd * 8) * self.N + o_even
        y = [Float32(0.0)] * 4
        for o_n in range(0, self.N, COLUMNS):
            o_column = o_n + matrix * 8
            rows = [
                [alpha * v for v in load(s_h + (o_shared + o_n + u * 4 * self.N), 8)]
                for u in (0, 1)
            ]
            lows = matrices(s_keys + ((3 * self.R - 8 + i_row) * self.row_of_keys + o_column), True)
            highs = self.high_keys(s_keys, i_row, matrix, o_n)
            for j in range(4):
                h = [row[2 * j + e] for row in rows for e in (0, 1)]
                h = self.product(x, highs[j], h)
                if x_low is not None:
                    h = self.product(x_low, highs[j], h)
                h = self.product(now, [lows[j]], h)
                for u, row in enumerate(rows):
                    row[2 * j], row[2 * j + 1] = h[2 * u], h[2 * u + 1]
            words = [
                store_words(g_h + (o_h + o_n + u * 4 * self.N), row) for u, row in enumerate(rows)
            ]
            o_q = i_row * self.row_of_keys + o_column
            queries = [matrices(s_q + o_q)]
            if self.R == 8:
                queries.append(matrices(s_q + (o_q + 8 * self.row_of_keys)))
            for i in (0, 2):
                h = [words[0][i], words[1][i], words[0][i + 1], words[1][i + 1]]
                for q in queries:
                    y = self.product(h, q[i : i + 2], y)
        if self.R < 8:
            y = [v + arch.shuffle_sync_bfly(v, 2) for v in y]
        return y

    def high_keys(self, s_keys, i_row, matrix, o_n) -> list[list[Any]]:
        """The high numbers of K for 4 tiles of columns."""
        if self.R < 8:
            found = matrices(s_keys + (i_row * self.row_of_keys + o_n + matrix * 8), True)
            return [[word, word] for word in found]
        o_key = (i_row + matrix % 2 * 8) * self.row_of_keys + o_n + matrix // 2 * 8
        found = [*matrices(s_keys + o_key, True), *matrices(s_keys + (o_key + 16), True)]
        return [found[i : i + 2] for i in range(0, 8, 2)]

    def product(self, a, b, accumulators) -> list[Any]:
        """accumulators + a b, by one mma of 8 k for each word of b."""
        kind = "bf16" if self.type is cutlass.BFloat16 else "f16"
        names = [f"{{$r{i}}}" for i in range(len(a) + len(b) + 4)]
        at_b, at_c = len(a), len(a) + len(b)
        return list(
            arch.inline_ptx(
                f"mma.sync.aligned.m16n8k{8 * len(b)}.row.col.f32.{kind}.{kind}.f32 "
                "{{$w0}, {$w1}, {$w2}, {$w3}}, "
                f"{{{', '.join(names[:at_b])}}}, {{{', '.join(names[at_b:at_c])}}}, "
                f"{{{', '.join(names[at_c:])}}};",
                write_only_types=[Float32] * 4,
                read_only_args=[*a, *b, *accumulators],
            )
        )


def matrices(pointer, transposed: bool = False) -> list[Any]:
    """Four 8 x 8 matrices of 16-bit numbers; lane 8 i + j says where row j of matrix i lies."""
    return list(
        arch.inline_ptx(
            f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16 "
            "{{$w0}, {$w1}, {$w2}, {$w3}}, [{$r0}];",
            write_only_types=[Uint32] * 4,
            read_only_args=[pointer],
        )
    )


def store_words(pointer, values: list[Any]) -> list[Any]:
    """Store neighbouring values rounded to the pointer's 16-bit type; returns them in pairs.

    As words: the halves of a vector that are also operands would be stored one by one.
    """
    rounded = cute.make_rmem_tensor(len(values), pointer.dtype)
    for i, value in enumerate(values):
        rounded[i] = value.to(pointer.dtype)
    halves = cute.recast_tensor(rounded, Uint32)
    words = [halves[i] for i in range(len(values) // 2)]
    gmem = cute.AddressSpace.gmem
    store(cute.make_ptr(Uint32, pointer.toint(), gmem, assumed_align=2 * len(values)), words)
    return words
