"""MIMO and SISO prefill in TileLang: the chunked form of the recurrence, two or three launches.

1. `activate`: activations of dt, a, lam and theta, RMSNorm of b and c: small, once per token.
2. `segment_states`: only when sequences are cut for parallelism. One block per (head, piece):
   what the piece adds to the state, in the frame of its last token's angles.
3. `scan`: one block per (head, segment): the state before the segment (from the initial state and
   the pieces before it), then chunk by chunk the output, with the state in registers.

A chunk is 64 columns, (token, rank) pairs. Angles are int32 in units of 2^-32 turns: a sum wraps
exactly where an angle does, and is the same wherever a sequence is cut. They cannot be NaN: that of
theta or phi reaches no output, that of any other input does.
Batch, length, heads and groups are run-time values: one compilation serves all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call import Call, token_stride
from ..cases import make_call
from ..config import check_choice, check_multiple
from ..problem import Problem
from ..registry import COMPILE_ONLY, Resources, implements, multiprocessors
from . import compile
from .activate import THREADS, activate_kernel
from .chunk import MOVERS
from .facts import Facts, facts_of
from .scan import scan_kernel
from .states import states_kernel

MOST_SEQUENCES = 65535  # the third dim of a grid
REGISTERS = (0, *range(128, 241, 8))


@dataclass(frozen=True, slots=True)
class Config:
    """How the work is cut: tokens, multiples of a chunk, `segment` one of `piece`; 0 for all."""

    piece: int = 0  # one block of `segment_states`
    segment: int = 0  # one block of `scan`
    blocks: int = 2  # of `scan` that an SM should hold
    stages: int = 2  # chunks in shared memory at a time
    registers: int = 160  # of a thread that multiplies, the others share the rest; 0: all alike

    def __post_init__(self) -> None:
        check_choice("blocks", self.blocks, (1, 2, 3, 4))
        check_choice("stages", self.stages, (1, 2, 3, 4))
        check_choice("registers", self.registers, REGISTERS)


def supports(problem: Problem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.R not in (1, 2, 4, 8):
        return f"R = {problem.R} is not 1, 2, 4 or 8"
    if problem.N not in (32, 64, 128, 256):
        return f"N = {problem.N} is not 32, 64, 128 or 256"
    if problem.P not in (32, 64, 128):
        return f"P = {problem.P} is not 32, 64 or 128"
    if problem.dtype not in (torch.bfloat16, torch.float16):
        return "bfloat16 or float16: its products are those of 16-bit tensor cores"
    if problem.sequences > MOST_SEQUENCES:
        return f"{problem.sequences} sequences are more than {MOST_SEQUENCES}"
    if not compile.has_nvcc():
        return "TileLang needs nvcc: install the extra `tilelang`, or set CUDA_HOME"
    if device == COMPILE_ONLY:
        return None
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "needs compute capability 9.0: its products are wgmma"
    return None


def configs(problem: Problem, device: torch.device) -> Iterator[Config]:
    """Legal configurations, best guess first."""
    if _small(problem):
        # 160: with more, the others spill; what these spill is loaded once a chunk. With 152,
        # N = 64 takes 1 to 4 % less for R = 2, 2 to 8 % more for R = 1 (H100).
        registers = 152 if (problem.N, problem.R) == (64, 2) else 160
        # one stage: under 99 KB for the published shapes
        shapes = [(2, 2, registers), (2, 1, registers)]
        if _long_chunks(problem):  # two stages take 119 KB and more: one block an SM
            shapes = [(1, 2, 0), (2, 1, 160)]
    elif problem.N <= 128:  # 384 threads: one block an SM
        shapes = [(1, 2, 208), (1, 1, 208)]
    else:  # h takes 128 registers; two stages do not fit for R = 1
        shapes = [(1, 1, 216 if problem.P == 128 else 0)]
    for blocks, stages, registers in shapes:
        yield Config(*_cuts(problem, device, _fill(problem, blocks)), blocks, stages, registers)


def _fill(problem: Problem, blocks: int) -> int:
    """Blocks of `scan` an SM that sequences are cut for, 0 for none.

    Up to 16 chunks a cut costs more than it gains: 1 x 512, N = 128, R = 2 took 49 us for 47, 1 x
    128, R = 4 46 us for 28. For R = 1 the pieces of twice the segments cost 8 to 10 % (H100).
    """
    if _longest(problem) <= 16 * facts_of(problem).C:
        return 0
    return 1 if problem.R == 1 else blocks


def _longest(problem: Problem) -> int:
    """Tokens of the longest sequence."""
    return max(problem.lengths) if problem.lengths else problem.L


def _small(problem: Problem) -> bool:
    """Whether an SM can hold two blocks of `scan`, or three of `segment_states`."""
    return problem.P <= 64 and problem.N <= 128


def _long_chunks(problem: Problem) -> bool:
    """Whether chunks have so many tokens that so many blocks leave room for one stage only."""
    return _small(problem) and problem.N == 128 and problem.R <= 2


def _states_blocks(problem: Problem) -> int:
    """Blocks of `segment_states` that an SM should hold."""
    return 3 if _small(problem) else 1


def space(problem: Problem, device: torch.device) -> dict[str, Config]:
    """What tuning tries: one departure from the default at a time.

    blocks, stages: another of `configs`. fill: the cut is for so many blocks an SM, 0 for none.
    registers: more or less for a thread that multiplies, so less or more for the others.
    """
    default, *others = configs(problem, device)
    found = {f"blocks={other.blocks} stages={other.stages}": other for other in others}
    for fill in (0, 1, 2, 3, 4):
        piece, segment = _cuts(problem, device, fill)
        if (piece, segment) != (default.piece, default.segment) and (segment or not fill):
            found[f"fill={fill}"] = replace(default, piece=piece, segment=segment)
    if default.registers:
        for more in (-16, -8, 8):
            found[f"registers={more:+}"] = replace(default, registers=default.registers + more)
    return found


def _cuts(problem: Problem, device: torch.device, blocks: int) -> tuple[int, int]:
    """Tokens per piece and per segment that fill the GPU once with so many blocks of `scan` an SM,
    and with those of `segment_states`, if a segment has 2 to 6 pieces."""
    chunk = facts_of(problem).C
    longest = _longest(problem)
    sms = multiprocessors(device)
    heads = problem.H * problem.sequences
    segments = blocks * sms // heads
    if segments < 2 or longest <= 4 * chunk:
        return 0, 0
    slots = _states_blocks(problem) * sms
    pieces = min(max(slots // (heads * (segments - 1)), 2), 6)  # of a segment
    piece = -(-longest // (pieces * segments * chunk)) * chunk
    return piece, pieces * piece


class Launch(NamedTuple):
    """One kernel launch, to run on a GPU or to compile without one."""

    name: str
    build: Any
    facts: Facts
    options: tuple[int, ...]
    threads: int
    fast: bool
    args: list[Any]

    def kernel(self) -> Any:
        """The compiled kernel."""
        return compile.compiled(self.build, self.facts, self.options, self.fast)


def launches(call: Call, config: Config) -> Iterator[Launch]:
    """The two or three launches of a prefill, in order; allocates what they hand to each other."""
    p, inputs, params = call.problem, call.inputs, call.params
    facts, device, tokens = facts_of(p), inputs.x.device, p.B * p.L
    C, sequences = facts.C, p.sequences
    longest = _longest(p)
    check_multiple("piece", config.piece, C)
    check_multiple("segment", config.segment, config.piece or C)
    rates = p.H if p.theta_per_head else 1
    slots = tokens // C + sequences

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    one = new(1)  # for what is absent
    offsets = new(1, dtype=torch.int32) if call.cu_seqlens is None else call.cu_seqlens
    packed = int(call.cu_seqlens is not None)
    params_of = dict(params.items())

    def present(*names: str) -> list[Tensor]:
        return [params_of.get(name, one) for name in names]

    bc = new(2, slots, p.G, C * p.R, p.N, dtype=p.dtype)
    rate, gates = new(slots, rates, p.S, C), new(slots, p.H, 4, C)
    raw = [inputs.dt, inputs.a, inputs.lam, inputs.theta]
    yield Launch(
        "activate", activate_kernel, facts, (), THREADS, False,
        [aligned(inputs.b), aligned(inputs.c), *map(flat, raw),
         *present("dt_bias", "b_norm", "c_norm"), offsets, bc, rate, gates,
         p.L, packed, -(-longest // C), sequences],
    )  # fmt: skip

    segment = config.segment or -(-longest // C) * C
    piece = config.piece or segment
    segments = -(-longest // segment)
    x, z = aligned(inputs.x), aligned(inputs.x if inputs.z is None else inputs.z)
    pieces = tokens // piece + sequences if segments > 1 else 1
    carried = [
        new(pieces, p.H, p.P, p.N),
        new(pieces, p.H, p.S, dtype=torch.int32),
        new(pieces, p.H),
    ]
    if segments > 1:
        stages = 1 if _long_chunks(p) else config.stages
        yield Launch(
            "segment_states", states_kernel, facts, (_states_blocks(p), stages),
            facts.multipliers, True,
            [x, bc, rate, gates, *present("b_bias", "mimo_x"), offsets, *carried,
             p.L, packed, piece, segment, (segments - 1) * segment // piece, sequences],
        )  # fmt: skip
    old = call.final if call.state is None else call.state
    weights = present("b_bias", "c_bias", "d", "mimo_x", "mimo_z", "mimo_o", "out_norm")
    ranks = 1 if p.reduced else p.R
    yield Launch(
        "scan", scan_kernel, facts, (config.blocks, config.stages, config.registers),
        facts.multipliers + MOVERS, True,
        [x, z, bc, rate, gates, *weights, offsets, *(tensor for _, tensor in old.items()),
         *carried, call.y.view(tokens, ranks, p.H, p.P),
         *(tensor for _, tensor in call.final.items()),
         p.L, packed, int(call.state is not None), piece, segment, segments],
    )  # fmt: skip


def flat(tensor: Tensor) -> Tensor:
    """A (B, L, ...) input as (B L, width)."""
    B, L, *dims = tensor.shape
    width = 1
    for size in dims:
        width *= size
    return tensor.as_strided((B * L, width), (token_stride(tensor), 1))


def aligned(tensor: Tensor) -> Tensor:
    """The same, for the copy engine and loads of vectors: they need rows on 16 bytes; a tensor that
    has others is copied once."""
    if tensor.data_ptr() % 16 or token_stride(tensor) * tensor.itemsize % 16:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return flat(tensor)


def resources(problem: Problem, config: Config) -> list[Resources]:
    """Registers, spills and shared memory of each launch on sm_90a; needs nvcc but no GPU."""
    call = make_call(problem, 0, "cpu" if problem.lengths else "meta")  # lengths are read
    return [
        compile.resources(launch.kernel(), launch.name, launch.threads)
        for launch in launches(call, config)
    ]


@implements(
    "prefill", "tilelang", supports=supports, configs=configs, resources=resources, space=space
)
def prefill(call: Call, config: Config) -> None:
    """Launch the kernels on the current stream."""
    for launch in launches(call, config):
        launch.kernel()(*launch.args)
