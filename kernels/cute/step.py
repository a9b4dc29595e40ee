"""What every decode kernel does around its products: one block for each (batch row, head).

Nobody else reads or writes the phi, h, k and x of a (row, head), so the state is updated in place
without a race. The (P, N) tile of h is contiguous: one thread requests it as bulk copies into
shared memory, piece by piece, and the block computes activations, norms, angles and rotations while
they are on their way. The products, which are left, are a subclass's.

Global memory is read by the thread that overwrites it, before it does; other threads may read the
same place for a value that they do not use.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import torch
from cutlass import Float32, Int32, Int64, Uint32, const_expr, cute
from cutlass.cute import arch

from ..pointers import Inputs, Params, State
from ..problem import Options
from .functions import EPS, advance, cos_sin, decay_log, sigmoid, softplus, where
from .memory import Scalars, at, put, shift

WARP = 32
ALIGN = 128  # bytes, of each buffer in shared memory


@dataclass(frozen=True, slots=True)
class Facts:
    """What one compiled kernel is made for; everything else is a run-time value."""

    N: int
    P: int
    R: int
    S: int
    dtype: torch.dtype
    state_dtype: torch.dtype
    options: Options
    optional: tuple[str, ...]
    theta_per_head: bool
    pooled: bool


TYPES = {
    torch.float32: cutlass.Float32,
    torch.bfloat16: cutlass.BFloat16,
    torch.float16: cutlass.Float16,
}


class Step:
    """The device code for some facts and a config, but for the products.

    A subclass says in `buffers` what shared memory its products need, keeps their operands there
    (`put_rows`, `put_key`, `put_query`), and computes them (`products`).
    """

    pieces: int  # of h, each with a barrier of its own
    tile: int  # elements of shared memory that h takes
    buffers: list[tuple[Any, int]]  # type and size of what `products` gets

    def __init__(self, facts: Facts, config: Any) -> None:
        self.facts, self.config = facts, config
        self.N, self.P, self.R, self.S = facts.N, facts.P, facts.R, facts.S
        self.warps = config.threads // WARP
        self.h_type, self.type = TYPES[facts.state_dtype], TYPES[facts.dtype]
        self.pairs = self.N // 2
        self.normed = "out_norm" in facts.optional
        self.reduced = self.R == 1 or "mimo_o" in facts.optional
        # ranks whose skips stay apart: without a norm they are summed
        self.apart = 1 if self.reduced and not self.normed else self.R
        # threads that share the ranks of one p of x
        self.shares = min(self.R, config.threads // self.P)

    def all_buffers(self) -> list[tuple[Any, int]]:
        """Type and size of every buffer in shared memory: h, weights, skips, cos, sin, barriers."""
        xs = (Float32, self.R * self.P)
        turns = (Float32, self.pairs)
        own = [(self.h_type, self.tile), xs, xs, turns, turns, (Int64, self.pieces)]
        return own + self.buffers

    def index_of_row(self, i_p):
        """Where row p of P stands among weights and skips."""
        return i_p

    def index_of_output(self, i_p):
        """Where row p stands among the outputs that are in shared memory."""
        return i_p

    def put_rows(self, s_operands, i_p, first, befores, nows):
        """Keep beta x'_r and gamma x_r of one row, for some r from `first`."""
        raise NotImplementedError

    def put_key(self, s_operands, r, before, keys, offsets):
        """Keep a lane's pairs of k'_r and k_r."""
        raise NotImplementedError

    def put_query(self, s_operands, r, queries, offsets):
        """Keep a lane's pairs of q_r."""
        raise NotImplementedError

    def products(
        self, g_h, s_h, arrived, s_operands, s_weight, s_skip, alpha, out_norm, y, row, head, H
    ):
        """Advance h as its pieces arrive, and write the outputs."""
        raise NotImplementedError

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        sizes = [-(-n * kind.width // 8 // ALIGN) * ALIGN for kind, n in self.all_buffers()]
        return sum(sizes)

    @cute.jit
    def __call__(
        self,
        x: Int64, b: Int64, c: Int64, dt: Int64, a: Int64, lam: Int64, theta: Int64,
        z: Int64 | None,
        dt_bias: Int64 | None, b_norm: Int64 | None, c_norm: Int64 | None,
        b_bias: Int64 | None, c_bias: Int64 | None, d: Int64 | None,
        mimo_x: Int64 | None, mimo_z: Int64 | None, mimo_o: Int64 | None,
        out_norm: Int64 | None,
        phi: Int64, h: Int64, k: Int64, x_state: Int64,
        y: Int64, state_indices: Int64 | None,
        stride_x: Int64, stride_b: Int64, stride_c: Int64, stride_dt: Int64, stride_a: Int64,
        stride_lam: Int64, stride_theta: Int64, stride_z: Int64,
        B: Int32, H: Int32, G: Int32, stream,
    ):  # fmt: skip
        """Addresses (None: absent), row strides of the inputs in elements, and dims."""
        gmem = cute.AddressSpace.gmem
        small = self.type.width // 8
        inputs = [
            None if v is None else cute.make_ptr(self.type, v, gmem, assumed_align=small)
            for v in (x, b, c, dt, a, lam, theta, z)
        ]
        params = [
            None if v is None else cute.make_ptr(Float32, v, gmem, assumed_align=4)
            for v in (
                dt_bias, b_norm, c_norm, b_bias, c_bias, d, mimo_x, mimo_z, mimo_o, out_norm,
            )
        ]  # fmt: skip
        state = State(
            cute.make_ptr(Float32, phi, gmem, assumed_align=4),
            cute.make_ptr(self.h_type, h, gmem, assumed_align=16),
            cute.make_ptr(self.type, k, gmem, assumed_align=small),
            cute.make_ptr(self.type, x_state, gmem, assumed_align=small),
        )
        indices = None
        if const_expr(state_indices is not None):
            indices = cute.make_ptr(Int32, state_indices, gmem, assumed_align=4)
        strides = Inputs(
            stride_x, stride_b, stride_c, stride_dt, stride_a, stride_lam, stride_theta, stride_z
        )
        self.kernel(
            Inputs(*inputs), Params(*params), state,
            cute.make_ptr(self.type, y, gmem, assumed_align=small), indices,
            strides, H, G, H // G,
        ).launch(grid=[B * H, 1, 1], block=[self.config.threads, 1, 1], stream=stream)  # fmt: skip

    @cute.kernel
    def kernel(
        self,
        inputs: Inputs, params: Params, state: State, y: cute.Pointer,
        state_indices: cute.Pointer | None, strides: Inputs,
        H: Int32, G: Int32, heads_per_group: Int32,
    ):  # fmt: skip
        """Find the block's row and head; a padding row is left alone."""
        block = arch.block_idx()[0]
        row = Int32(Uint32(block) // Uint32(H))
        head = block - row * H
        row_of_state = row
        if const_expr(state_indices is not None):
            row_of_state = at(state_indices, row)
        if row_of_state >= 0:
            self.step(
                inputs, params, state, y, strides, H, G, Int64(row), head,
                Int32(Uint32(head) // Uint32(heads_per_group)), Int64(row_of_state),
            )  # fmt: skip

    @cute.jit
    def step(
        self, inputs, params, state, y, strides, H, G, row, head, group, row_of_state
    ):  # fmt: skip
        """One token of one head."""
        N, P, R, S = self.N, self.P, self.R, self.S
        tid = arch.thread_idx()[0]
        lane, warp = tid % WARP, arch.make_warp_uniform(tid // WARP)
        head_of_state = row_of_state * H + head

        smem = cutlass.memory.SmemAllocator()
        s_h, s_weight, s_skip, s_cos, s_sin, arrived, *s_operands = [
            smem.allocate_tensor(kind, n, ALIGN).iterator for kind, n in self.all_buffers()
        ]

        # the whole tile of h is on its way before anything else is waited for
        g_h = state.h + head_of_state * (P * N)
        if tid == 0:
            self.request(g_h, s_h, arrived)

        # every other load
        dt = at(inputs.dt, row * strides.dt + head)
        a = at(inputs.a, row * strides.a + head)
        lam = at(inputs.lam, row * strides.lam + head)
        dt_bias = at(params.dt_bias, head)
        skip = at(params.d, head)

        i_p, share = tid % P, tid // P % self.shares
        first = share * (R // self.shares)
        g_x_state = state.x + head_of_state * P
        x_before = at(g_x_state, i_p)
        x = at(inputs.x, row * strides.x + head * P + i_p)
        z = at(inputs.z, row * strides.z + head * P + i_p)
        scales = [
            [at(v, (head * R + first + r) * P + i_p) for r in range(R // self.shares)]
            for v in (params.mimo_x, params.mimo_z, params.mimo_o)
        ]

        # angles belong to the last warps, x to the first
        i_pair = self.config.threads - 1 - tid
        i_s = i_pair % S
        g_phi = state.phi + head_of_state * S
        phi = at(g_phi, i_s)
        o_theta = row * strides.theta + i_s
        if const_expr(self.facts.theta_per_head):
            o_theta = o_theta + head * S
        theta = at(inputs.theta, o_theta)

        # rows of b by ascending warps, rows of c by descending ones
        g_b = inputs.b + (row * strides.b + group * N)
        g_c = inputs.c + (row * strides.c + group * N)
        g_k = state.k + (row_of_state * (R * H) + head) * N
        o_pairs = self.offsets_of_pairs(lane)
        turns = -(-R // self.warps)
        ranks_b = [(warp + self.warps * m) % R for m in range(turns)]
        ranks_c = [(self.warps - 1 - warp + self.warps * m) % R for m in range(turns)]
        bs = [self.pairs_at(g_b + r * (G * N), o_pairs) for r in ranks_b]
        cs = [self.pairs_at(g_c + r * (G * N), o_pairs) for r in ranks_c]
        k_before = [self.pairs_at(g_k + Int64(r) * (H * N), o_pairs) for r in ranks_b]
        b_norm, c_norm = self.weights(params.b_norm, o_pairs), self.weights(params.c_norm, o_pairs)
        b_biases = [
            self.weights(shift(params.b_bias, (head * R + r) * N), o_pairs) for r in ranks_b
        ]
        c_biases = [
            self.weights(shift(params.c_bias, (head * R + r) * N), o_pairs) for r in ranks_c
        ]

        # the compiler may not move a load down past this, to where its value is used
        arch.sync_warp()
        scalars = self.scalars(dt, dt_bias, a, lam)
        if tid < P * self.shares:
            self.rows_of_x(
                i_p, share, x, x_before, z, scales, skip, scalars, s_operands, s_weight, s_skip
            )
        if i_pair < self.pairs:
            angle = advance(phi, scalars.step, Float32(theta))
            cos, sin = cos_sin(angle)
            if const_expr(self.pairs > S):
                cos = where(i_pair < S, cos, Float32(1.0))
                sin = where(i_pair < S, sin, Float32(0.0))
                if i_pair < S:
                    put(g_phi, i_s, angle)
            else:
                put(g_phi, i_s, angle)
            put(s_cos, i_pair, cos)
            put(s_sin, i_pair, sin)
        bs = [self.normalised(v, b_norm, bias) for v, bias in zip(bs, b_biases, strict=True)]
        cs = [self.normalised(v, c_norm, bias) for v, bias in zip(cs, c_biases, strict=True)]
        arch.sync_threads()

        if tid < P:  # now that every thread has its x'
            put(g_x_state, i_p, x)
        turn = [(at(s_cos, i), at(s_sin, i)) for i in self.indices_of_pairs(lane)]
        owns = lane < self.pairs  # of N = 32 the second half of a warp repeats the first
        for m in cutlass.range_constexpr(turns):
            if owns and (warp + self.warps * m < R):
                keys = self.rotated(bs[m], turn)
                self.put_pairs(g_k + Int64(ranks_b[m]) * (H * N), keys, o_pairs)
                self.put_key(s_operands, ranks_b[m], k_before[m], keys, o_pairs)
            if owns and (self.warps - 1 - warp + self.warps * m < R):
                self.put_query(s_operands, ranks_c[m], self.rotated(cs[m], turn), o_pairs)
        arch.sync_threads()
        self.products(
            g_h, s_h, arrived, s_operands, s_weight, s_skip, scalars.alpha, params.out_norm,
            y, row, head, H,
        )  # fmt: skip

    @cute.jit
    def request(self, g_h, s_h, arrived):
        """Ask for the tile of h, a barrier for each piece; one thread does."""
        for i in cutlass.range_constexpr(self.pieces):
            arch.mbarrier_init(arrived + i, 1)
        arch.mbarrier_init_fence()
        size_of_h = self.P * self.N * self.h_type.width // 8
        for i in cutlass.range_constexpr(self.pieces):
            arch.mbarrier_arrive_and_expect_tx(arrived + i, size_of_h // self.pieces)
            for source, to, elements in self.copies(i):
                size = Int32(elements * self.h_type.width // 8)
                arch.inline_ptx(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                    "[{$r0}], [{$r1}], {$r2}, [{$r3}];",
                    read_only_args=[s_h + to, g_h + source, size, arrived + i],
                )

    def copies(self, i_piece) -> list[tuple[int, int, int]]:
        """What is copied at once: where from in h, where to in shared memory, how many elements."""
        elements = self.P * self.N // self.pieces
        return [(i_piece * elements, i_piece * elements, elements)]

    def scalars(self, dt, dt_bias, a, lam) -> Scalars:
        """D, alpha, beta, gamma."""
        step = Float32(dt)
        if self.facts.options.step == "softplus":
            step = softplus(step if dt_bias is None else step + dt_bias)
        lam = sigmoid(Float32(lam))
        alpha = cute.math.exp(decay_log(Float32(a), step, self.facts.options.decay))
        return Scalars(step, alpha, (1.0 - lam) * step * alpha, lam * step)

    def rows_of_x(
        self, i_p, share, x, x_before, z, scales, skip, scalars, s_operands, s_weight, s_skip
    ):
        """One p of x, of the output weights mimo_o silu(z mimo_z), and of what they make of d x.

        For a share of the ranks.
        """
        P, i_x = self.P, self.index_of_row(i_p)
        first = share * (self.R // self.shares)
        x, x_before = Float32(x), Float32(x_before)
        total = Float32(0.0)
        befores, nows = [], []
        for r, (mimo_x, mimo_z, mimo_o) in enumerate(zip(*scales, strict=True)):
            x_r = x if mimo_x is None else x * mimo_x
            x_before_r = x_before if mimo_x is None else x_before * mimo_x
            befores.append(scalars.beta * x_before_r)
            nows.append(scalars.gamma * x_r)
            weight = Float32(1.0)
            if z is not None:
                gate = Float32(z) if mimo_z is None else Float32(z) * mimo_z
                weight = gate * sigmoid(gate)
            if mimo_o is not None:
                weight = weight * mimo_o
            put(s_weight, (first + r) * P + i_x, weight)
            through = Float32(0.0) if skip is None else skip * x_r
            if not self.normed:
                through = weight * through
            total = total + through
            if self.apart > 1:
                put(s_skip, (first + r) * P + i_x, through)
        if self.apart == 1:
            put(s_skip, share * P + i_x, total)
        self.put_rows(s_operands, i_p, first, befores, nows)

    def indices_of_pairs(self, lane) -> list[Any]:
        """The pairs of a lane."""
        width = min(WARP, self.pairs)
        return [lane % width + width * i for i in range(self.pairs // width)]

    def offsets_of_pairs(self, lane) -> list[Any]:
        """The two dims of each pair of a lane."""
        if self.facts.options.pairing == "interleaved":
            return [(2 * i, 2 * i + 1) for i in self.indices_of_pairs(lane)]
        return [(i, i + self.pairs) for i in self.indices_of_pairs(lane)]

    def pairs_at(self, pointer, offsets) -> list[Any]:
        """A lane's pairs of a row (N), as they are stored."""
        return [(at(pointer, one), at(pointer, other)) for one, other in offsets]

    def put_pairs(self, pointer, pairs, offsets) -> None:
        """Store a lane's pairs of a row (N)."""
        for (u, v), (one, other) in zip(pairs, offsets, strict=True):
            put(pointer, one, u)
            put(pointer, other, v)

    def weights(self, pointer, offsets) -> list[Any] | None:
        """A lane's pairs of a parameter (N), or None if it is absent."""
        return None if pointer is None else self.pairs_at(pointer, offsets)

    def normalised(self, stored, weight, bias) -> list[Any]:
        """A row of b or c (N), by pairs: RMS-normalised over N, weighted, with its bias."""
        pairs: list[Any] = [(Float32(u), Float32(v)) for u, v in stored]
        if self.facts.options.norm == "rms":
            total = sum((u * u + v * v for u, v in pairs), Float32(0.0))
            total = arch.warp_reduction_sum(total, threads_in_group=min(WARP, self.pairs))
            scale = cute.math.rsqrt(total * (1.0 / self.N) + EPS)
            pairs = [(u * scale, v * scale) for u, v in pairs]
            if weight is not None:
                pairs = [
                    (u * one, v * other) for (u, v), (one, other) in zip(pairs, weight, strict=True)
                ]
        if bias is not None:
            pairs = [(u + one, v + other) for (u, v), (one, other) in zip(pairs, bias, strict=True)]
        return pairs

    def rotated(self, pairs, turn) -> list[Any]:
        """(u cos - v sin, u sin + v cos) of each pair."""
        return [
            (u * cos - v * sin, u * sin + v * cos)
            for (u, v), (cos, sin) in zip(pairs, turn, strict=True)
        ]

    @cute.jit
    def norm_outputs(self, out_norm, y, s_y, s_weight, row, head, H):
        """RMS-normalise y_r over P, a warp for each rank, weigh, and sum over the ranks."""
        P, R, width = self.P, self.R, self.P // WARP
        tid = arch.thread_idx()[0]
        lane, warp = tid % WARP, arch.make_warp_uniform(tid // WARP)
        o_p = [lane + WARP * i for i in range(width)]
        for m in cutlass.range_constexpr(-(-R // self.warps)):
            r = warp + self.warps * m
            if r < R:
                values = [at(s_y, r * P + self.index_of_output(i)) for i in o_p]
                total = arch.warp_reduction_sum(sum((v * v for v in values), Float32(0.0)))
                scale = cute.math.rsqrt(total * (1.0 / P) + EPS)
                for value, i in zip(values, o_p, strict=True):
                    weight = at(s_weight, r * P + self.index_of_row(i))
                    value = value * scale * (weight * at(out_norm, head * P + i))
                    if const_expr(self.reduced and R > 1):
                        put(s_y, r * P + self.index_of_output(i), value)
                    else:
                        self.put_output(y, None, row, head, H, r, i, value)
        if const_expr(self.reduced and R > 1):
            arch.sync_threads()
            if tid < P:
                i_y = self.index_of_output(tid)
                out = sum((at(s_y, r * P + i_y) for r in range(R)), Float32(0.0))
                self.put_output(y, None, row, head, H, 0, tid, out)

    def skip_of(self, s_skip, r, i_x):
        """What d x adds to rank r of a row, or to the sum of the ranks where they are not apart."""
        if self.apart > 1:
            return at(s_skip, r * self.P + i_x)
        return sum(at(s_skip, share * self.P + i_x) for share in range(self.shares))

    def put_output(self, y, s_y, row, head, H, r, i_p, value):
        """Store one output: in s_y (R, P) if it is still to be normalised, else in y."""
        if s_y is not None:
            put(s_y, r * self.P + i_p, value)
        elif self.reduced:
            put(y, (row * H + head) * self.P + i_p, value)
        else:
            put(y, ((row * self.R + r) * H + head) * self.P + i_p, value)
