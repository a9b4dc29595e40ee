"""Decode: everything between a layer's two projections in one launch.

One block owns one (batch row, head): nobody else reads or writes its phi, h, k and x, so the state
is updated in place without a race (`step.py`). The products that are left, an update of h by 2 R
ranks and R read-outs, are on CUDA cores (`cuda_cores.py`) or, where 16-bit operands are exact
enough, on tensor cores (`tensor_cores.py`).

    phi  = (phi + D theta) mod 2 pi
    k_r  = Rot(phi) (bn_r + b_bias_r)                  q_r = Rot(phi) (cn_r + c_bias_r)
    h    = alpha h + sum_r beta x'_r k'_r^T + gamma x_r k_r^T          (', the token before)
    y_r  = h q_r + d x_r,     o = sum_r mimo_o_r norm(y_r) silu(z mimo_z_r)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cutlass import Int32, Int64

from ..call import Call, row_strides
from ..errors import OptionError, UnsupportedError
from ..plans import Launch
from ..pointers import Inputs, Params
from ..problem import OPTIONAL, Problem
from ..registry import COMPILE_ONLY, Resources, config_name, implements
from . import compile
from .cuda_cores import CudaCoreStep
from .step import WARP, Facts, Step
from .tensor_cores import ROWS, TensorCoreStep


@dataclass(frozen=True, slots=True)
class Config:
    """threads of a block; bytes of h in one access of a thread; rows of P that it has at once.

    On CUDA cores a bulk copy brings the rows that all threads have at once, on tensor cores those
    of a warp.
    """

    threads: int
    bytes: int
    rows: int
    tensor_cores: bool = False


def configs(problem: Problem, device: torch.device) -> Iterable[Config]:
    """Every shape of a block that divides the tile, best guess first.

    The guess was measured for N = 128 and P = 64 (H100): for R = 1 it is 0.4 % above the best of
    these or less, at B = 32 and 128. Larger tiles would spill with it.
    """
    wide = problem.state_dtype == torch.float32
    guess = Config(128, 8, 16 if wide else 8)
    if problem.R == 1:
        guess = Config(128, 16, 8)
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
    threads = problem.P // ROWS * WARP  # on tensor cores: a warp for every 16 rows of h
    fit = threads >= problem.N // 2  # a thread turns one pair of dims
    if problem.R >= 4 and problem.dtype == problem.state_dtype != torch.float32 and fit:
        # against the best on CUDA cores: R = 4 3 % faster, R = 8 11 % (B = 128, bfloat16, H100)
        guess = Config(threads, 16, 2, tensor_cores=True)
        found.append(guess)
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
    if device == COMPILE_ONLY:
        return None
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "bulk copies need compute capability 9.0 or newer"
    return None


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


def kernel_of(facts: Facts, config: Config) -> Step:
    """The device code for some facts and a config."""
    return (TensorCoreStep if config.tensor_cores else CudaCoreStep)(facts, config)


@cache
def legal(problem: Problem) -> frozenset[Config]:
    """What `configs` lists: another shape of a block leaves rows of h out."""
    return frozenset(configs(problem, COMPILE_ONLY))


def check_config(config: Config, problem: Problem) -> None:
    """Raise OptionError for a config that the problem does not have."""
    if config not in legal(problem):
        expected = f"a shape of a block that divides {problem.P} x {problem.N}"
        remedy = "choose one of `configs`, or none"
        raise OptionError("config", expected, config_name(config), remedy)


@cache
def kept(facts: Facts, config: Config, target: str) -> Path:
    """The object file of the kernel for some facts, a config and a GPU."""
    kernel, arguments = kernel_of(facts, config), fake_arguments(facts)
    return compile.kept(kernel, __name__, (facts, config), target, *arguments)


@cache
def compiled(facts: Facts, config: Config, target: str) -> Any:
    """The function that launches the kernel on the current device, of that kind."""
    return compile.loaded(kept(facts, config, target))


def addresses(call: Call) -> list[int | None]:
    """Where the tensors of a call lie, in the order of `Step.__call__`; None: absent.

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
    kernel, path = kernel_of(facts, config), kept(facts, config, compile.H100)
    return [compile.resources(path, type(kernel).__name__, kernel.shared, config.threads)]


def launcher(call: Call, config: Config) -> Launch:
    """Compile, and keep what calls that differ in addresses alone have in common."""
    addresses(call)  # refused before anything is compiled
    check_config(config, call.problem)
    rest, device = constants(call), call.y.device
    function = compiled(facts_of(call.problem), config, compile.target_of(device))

    def launch(call: Call) -> None:
        found = addresses(call)
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        if device.index == torch._C._cuda_getDevice():
            function(*found, *rest, stream)
        else:
            with torch.cuda.device(device):
                function(*found, *rest, stream)

    return launch


@implements(
    "decode", "cute", supports=supports, configs=configs, resources=resources, launcher=launcher
)
def decode(call: Call, config: Config) -> None:
    """Launch one block per batch row and head, on the current stream."""
    launcher(call, config)(call)
