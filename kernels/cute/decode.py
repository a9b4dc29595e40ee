"""Decode: everything between a layer's two projections in one launch.

One block owns one (batch row, head): nobody else reads or writes its phi, h, k and x, so the state
is updated in place without a race. Its (P, N) tile of h is contiguous: one thread requests it as
bulk copies into shared memory, chunk by chunk, and the block computes activations, norms, angles
and rotations while they are on their way. Then every thread takes a fixed slice of N for some rows
of P, and writes the new h from registers.

    phi  = (phi + D theta) mod 2 pi
    k_r  = Rot(phi) (bn_r + b_bias_r)                  q_r = Rot(phi) (cn_r + c_bias_r)
    h    = alpha h + sum_r beta x'_r k'_r^T + gamma x_r k_r^T          (', the token before)
    y_r  = h q_r + d x_r,     o = sum_r mimo_o_r norm(y_r) silu(z mimo_z_r)

Global memory is read by the thread that overwrites it, before it does; other threads may read the
same place for a value that they do not use.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import cutlass
import torch
from cutlass import Float32, Int32, Int64, Uint32, const_expr, cute
from cutlass.cute import arch

from ..call import Call, row_strides
from ..errors import UnsupportedError
from ..plans import Launch
from ..pointers import Inputs, Params, State
from ..problem import OPTIONAL, Options, Problem
from ..registry import Resources, implements
from . import compile
from .functions import EPS, advance, cos_sin, decay_log, scatter_sums, sigmoid, softplus, where
from .memory import Scalars, at, load, put, shift, store

WARP = 32
ALIGN = 128  # bytes, of each buffer in shared memory


@dataclass(frozen=True, slots=True)
class Config:
    """threads of a block; bytes of h in one access of a thread; rows of P that it has at once.

    rows is also the size of a bulk copy: the rows that all threads have at once.
    """

    threads: int
    bytes: int
    rows: int


def configs(problem: Problem, device: torch.device) -> Iterable[Config]:
    """Every shape of a block that divides the tile, best guess first.

    To N = 128 with P = 64 the guess was measured: 2.1 % above the best of all configs on average
    over N = 64 and 128, R = 1 to 8, B = 1 to 128 and both state dtypes, at most 13 % (H100). Larger
    tiles would spill with it.
    """
    wide = problem.state_dtype == torch.float32
    guess = Config(128, 8, 16 if wide else 8)
    if problem.R == 8:  # twice the warps share twice the products
        guess = Config(256, 16 if wide else 8, 8)
    if problem.P * problem.N > 64 * 128:
        guess = Config(128, 16, 4)
    found = []
    for threads in (128, 256):
        for size in (16, 8):
            vector = size // problem.state_dtype.itemsize
            lanes = min(WARP, problem.N // vector)
            per_thread = problem.P * lanes // threads
            # 16 rows of the largest tile spill 8 bytes with R = 8
            most = min(per_thread, 8 if problem.P * problem.N > 128 * 128 else 16)
            found += [Config(threads, size, rows) for rows in (4, 8, 16) if rows <= most]
            if per_thread in (1, 2):
                found.append(Config(threads, size, per_thread))
    return sorted(found, key=lambda config: config != guess)


def supports(problem: Problem, device: torch.device) -> str | None:
    """float16, bfloat16 and float32 on Hopper and newer, at the tile sizes that were tested."""
    if problem.dtype == torch.float64:
        return "float64: the kernel computes in float32"
    if problem.N not in (32, 64, 128, 256):
        return f"N = {problem.N}: N in 32, 64, 128, 256"
    if problem.P not in (32, 64, 128):
        return f"P = {problem.P}: P in 32, 64, 128"
    if problem.R not in (1, 2, 4, 8):
        return f"R = {problem.R}: R in 1, 2, 4, 8"
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "bulk copies need compute capability 9.0 or newer"
    return None


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


class DecodeKernel:
    """The device code for some facts and a config."""

    def __init__(self, facts: Facts, config: Config) -> None:
        self.facts, self.config = facts, config
        self.N, self.P, self.R, self.S = facts.N, facts.P, facts.R, facts.S
        self.warps = config.threads // WARP
        self.h_type, self.type = TYPES[facts.state_dtype], TYPES[facts.dtype]
        # a row of h lies in `lanes` lanes, `vector` elements each, `parts` times over
        self.vector = config.bytes // facts.state_dtype.itemsize
        self.lanes = min(WARP, self.N // self.vector)
        self.parts = self.N // (self.lanes * self.vector)
        self.groups = config.threads // self.lanes  # rows that a block has side by side
        self.rows = config.rows
        self.per_thread = self.P // self.groups
        self.chunks = self.per_thread // self.rows
        self.pairs = self.N // 2
        self.normed = "out_norm" in facts.optional
        self.reduced = self.R == 1 or "mimo_o" in facts.optional
        # ranks whose outputs leave the main loop apart: without a norm they are summed in it
        self.apart = 1 if self.reduced and not self.normed else self.R
        keys, xs = (Float32, self.R * self.N), (Float32, self.R * self.P)
        self.buffers = [
            (self.h_type, self.P * self.N), *[keys] * 3, *[xs] * 4, *[(Float32, self.pairs)] * 2,
            xs if self.normed else (Float32, 1), (Int64, self.chunks),
        ]  # fmt: skip

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        sizes = [-(-count * kind.width // 8 // ALIGN) * ALIGN for kind, count in self.buffers]
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
        pointers = [
            smem.allocate_tensor(kind, count, ALIGN).iterator for kind, count in self.buffers
        ]
        s_h, s_k_before, s_k, s_q, *pointers = pointers
        s_x_before, s_x, s_weight, s_skip, s_cos, s_sin, s_y, arrived = pointers

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

        i_p = tid % P
        g_x_state = state.x + head_of_state * P
        x_before = at(g_x_state, i_p)
        x = at(inputs.x, row * strides.x + head * P + i_p)
        z = at(inputs.z, row * strides.z + head * P + i_p)
        scales = [
            [at(v, (head * R + r) * P + i_p) for r in range(R)]
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
        if tid < P:
            put(g_x_state, i_p, x)
            self.rows_of_x(
                i_p, x, x_before, z, scales, skip, scalars, s_x, s_x_before, s_weight, s_skip
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

        turn = [(at(s_cos, i), at(s_sin, i)) for i in self.indices_of_pairs(lane)]
        owns = lane < self.pairs  # of N = 32 the second half of a warp repeats the first
        for m in cutlass.range_constexpr(turns):
            if owns and (warp + self.warps * m < R):
                self.put_pairs(s_k_before + ranks_b[m] * N, k_before[m], o_pairs)
                keys = self.rotated(bs[m], turn)
                self.put_pairs(s_k + ranks_b[m] * N, keys, o_pairs)
                self.put_pairs(g_k + Int64(ranks_b[m]) * (H * N), keys, o_pairs)
            if owns and (self.warps - 1 - warp + self.warps * m < R):
                self.put_pairs(s_q + ranks_c[m] * N, self.rotated(cs[m], turn), o_pairs)
        arch.sync_threads()

        lane_of_row, i_group = tid % self.lanes, tid // self.lanes
        for chunk in cutlass.range(self.chunks, unroll=1):
            arch.mbarrier_wait(arrived + chunk, 0)
            sums = self.update(
                chunk, lane_of_row, i_group, scalars.alpha, g_h, s_h,
                s_k_before, s_k, s_q, s_x_before, s_x, s_weight,
            )  # fmt: skip
            sums, first = scatter_sums(sums, lane_of_row, self.lanes)
            if lane_of_row % max(1, self.lanes // (self.rows * self.apart)) == 0:
                for i, value in enumerate(sums):
                    r, u = (first + i) // self.rows, (first + i) % self.rows
                    i_row = chunk * self.rows + u
                    value = value + at(s_skip, r * P + i_group * self.per_thread + i_row)
                    i_out = i_row * self.groups + i_group
                    if const_expr(self.normed):
                        put(s_y, r * P + i_out, value)
                    elif const_expr(self.reduced):
                        put(y, (row * H + head) * P + i_out, value)
                    else:
                        put(y, ((row * R + r) * H + head) * P + i_out, value)
        if const_expr(self.normed):
            arch.sync_threads()
            self.norm_outputs(params.out_norm, y, s_y, s_weight, row, head, H, tid, warp, lane)

    @cute.jit
    def request(self, g_h, s_h, arrived):
        """Ask for the tile of h, a barrier for each chunk; one thread does."""
        for i in cutlass.range_constexpr(self.chunks):
            arch.mbarrier_init(arrived + i, 1)
        arch.mbarrier_init_fence()
        elements = self.P * self.N // self.chunks
        size = elements * self.h_type.width // 8
        for i in cutlass.range_constexpr(self.chunks):
            arch.mbarrier_arrive_and_expect_tx(arrived + i, size)
            arch.inline_ptx(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                "[{$r0}], [{$r1}], {$r2}, [{$r3}];",
                read_only_args=[s_h + i * elements, g_h + i * elements, Int32(size), arrived + i],
            )

    def scalars(self, dt, dt_bias, a, lam) -> Scalars:
        """D, alpha, beta, gamma."""
        step = Float32(dt)
        if self.facts.options.step == "softplus":
            step = softplus(step if dt_bias is None else step + dt_bias)
        lam = sigmoid(Float32(lam))
        alpha = cute.math.exp(decay_log(Float32(a), step, self.facts.options.decay))
        return Scalars(step, alpha, (1.0 - lam) * step * alpha, lam * step)

    def rows_of_x(
        self, i_p, x, x_before, z, scales, skip, scalars, s_x, s_x_before, s_weight, s_skip
    ):
        """One p of x, of the output weights mimo_o silu(z mimo_z), and of what they make of d x."""
        P = self.P
        i_x = (i_p % self.groups) * self.per_thread + i_p // self.groups  # a thread's rows together
        x, x_before = Float32(x), Float32(x_before)
        total = Float32(0.0)
        for r, (mimo_x, mimo_z, mimo_o) in enumerate(zip(*scales, strict=True)):
            x_r = x if mimo_x is None else x * mimo_x
            x_before_r = x_before if mimo_x is None else x_before * mimo_x
            put(s_x, r * P + i_x, scalars.gamma * x_r)
            put(s_x_before, r * P + i_x, scalars.beta * x_before_r)
            weight = Float32(1.0)
            if z is not None:
                gate = Float32(z) if mimo_z is None else Float32(z) * mimo_z
                weight = gate * sigmoid(gate)
            if mimo_o is not None:
                weight = weight * mimo_o
            put(s_weight, r * P + i_x, weight)
            through = Float32(0.0) if skip is None else skip * x_r
            if not self.normed:
                through = weight * through
            total = total + through
            if self.apart > 1:
                put(s_skip, r * P + i_x, through)
        if self.apart == 1:
            put(s_skip, i_x, total)

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

    def update(
        self, chunk, lane, i_group, alpha, g_h, s_h, s_k_before, s_k, s_q, s_x_before, s_x, s_weight
    ) -> list[Any]:
        """Advance a chunk of h; this thread's parts of the outputs, by rank (if apart) and row."""
        N, P, vector = self.N, self.P, self.vector
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

    @cute.jit
    def norm_outputs(self, out_norm, y, s_y, s_weight, row, head, H, tid, warp, lane):
        """RMS-normalise y_r over P, a warp for each rank, weigh, and sum over the ranks."""
        P, R, width = self.P, self.R, self.P // WARP
        o_p = [lane + WARP * i for i in range(width)]
        for m in cutlass.range_constexpr(-(-R // self.warps)):
            r = warp + self.warps * m
            if r < R:
                values = [at(s_y, r * P + i) for i in o_p]
                total = arch.warp_reduction_sum(sum((v * v for v in values), Float32(0.0)))
                scale = cute.math.rsqrt(total * (1.0 / P) + EPS)
                for value, i in zip(values, o_p, strict=True):
                    i_x = (i % self.groups) * self.per_thread + i // self.groups
                    weight = at(s_weight, r * P + i_x) * at(out_norm, head * P + i)
                    value = value * scale * weight
                    if const_expr(R == 1):
                        put(y, (row * H + head) * P + i, value)
                    elif const_expr(self.reduced):
                        put(s_y, r * P + i, value)
                    else:
                        put(y, ((row * R + r) * H + head) * P + i, value)
        if const_expr(self.reduced and R > 1):
            arch.sync_threads()
            if tid < P:
                out = sum((at(s_y, r * P + tid) for r in range(R)), Float32(0.0))
                put(y, (row * H + head) * P + tid, out)


@cache
def facts_of(problem: Problem) -> Facts:
    """The facts of a problem that its kernel is compiled for."""
    p = problem
    return Facts(
        p.N, p.P, p.R, p.S, p.dtype, p.state_dtype, p.options, p.optional, p.theta_per_head,
        p.pool is not None,
    )  # fmt: skip


def fake_arguments(facts: Facts) -> list[Any]:
    """Arguments with the types, and the absences, of a call."""
    absent = {name for name in OPTIONAL if name not in facts.optional}
    return [
        *(None if name in absent else Int64(16) for name in (*Inputs._fields, *Params._fields)),
        *[Int64(16)] * 5,  # state and y
        Int64(16) if facts.pooled else None,
        *[Int64(1)] * 8,  # strides
        *[Int32(1)] * 3,  # B, H, G
    ]


@cache
def compiled(facts: Facts, config: Config) -> Any:
    """The function that launches the kernel on the current device."""
    return compile.host_function(DecodeKernel(facts, config), *fake_arguments(facts))


def addresses(call: Call) -> list[int | None]:
    """Where the tensors of a call lie, in the order of `DecodeKernel.__call__`; None: absent.

    Raises UnsupportedError for a state that a bulk copy cannot fetch.
    """
    assert call.state is not None
    tensors = (
        *call.inputs.every(), *call.params.every(), *call.state.every(), call.y, call.state_indices
    )  # fmt: skip
    found = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    if call.state.h.data_ptr() % 16:
        raise UnsupportedError("decode", "cute", "state.h does not start on 16 bytes")
    return found


def constants(call: Call) -> list[int]:
    """What the compiled function is called with after the addresses: strides and dims."""
    return [*row_strides(call.inputs), call.problem.B, call.problem.H, call.problem.G]


def resources(problem: Problem, config: Config) -> list[Resources]:
    """What the kernel of a problem costs; the batch does not matter to it."""
    facts = facts_of(problem)
    kernel = DecodeKernel(facts, config)
    return [compile.resources(kernel, kernel.shared, config.threads, *fake_arguments(facts))]


def launcher(call: Call, config: Config) -> Launch:
    """Compile, and keep what calls that differ in addresses alone have in common."""
    addresses(call)  # refused before anything is compiled
    function = compiled(facts_of(call.problem), config)
    rest, device = constants(call), call.y.device

    def launch(call: Call) -> None:
        found = addresses(call)
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        if device.index == torch.cuda.current_device():
            function(*found, *rest, stream)
        else:
            with torch.cuda.device(device):
                function(*found, *rest, stream)

    return launch


@implements(
    "decode", "cute", supports=supports, configs=configs, resources=resources, launch=launcher
)
def decode(call: Call, config: Config) -> None:
    """Launch one block per batch row and head, on the current stream."""
    launcher(call, config)(call)
