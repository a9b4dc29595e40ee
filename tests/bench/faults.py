"""Kernels with one planted fault each, as a plugin: the torch backend, and then something wrong.

`honest` is the same without a fault, so whatever tells the others from it is the fault itself.
"""

import ctypes
import os
import time
from pathlib import Path

import torch

from mamba3_bench.bench.buffers import whole_storage
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call

WAIT = "MAMBA3_BENCH_TEST_WAIT"  # names a folder: while it holds `go-slow`, waiters wait


def honest(call: Call) -> None:
    """The torch backend."""
    implementation = registry.get(call.problem.op, "torch")
    implementation.run(call, implementation.default(call.problem, call.y.device))


def plant(op, name, deterministic=True, refuses=None):
    """Register a function of a call as a backend."""

    def register(function):
        @registry.implements(
            op, name, supports=lambda problem, device: refuses, deterministic=deterministic
        )
        def run(call, config):
            function(call)

        return function

    return register


for op in ("prefill", "decode"):
    plant(op, "honest")(honest)


plant("prefill", "refuses_in_silence", refuses="")(honest)


@plant("prefill", "skips_tail")
def skips_tail(call):
    """Leaves the last tokens, those of a ragged last tile, as they were."""
    tail = call.y[:, -3:].clone()
    honest(call)
    call.y[:, -3:] = tail


@plant("prefill", "zeros_tail")
def zeros_tail(call):
    """Writes zeros for the last token alone."""
    honest(call)
    call.y[:, -1:] = 0


def skips_state(op, name):
    """Computes everything and leaves one tensor of the state as it was."""

    def function(call):
        tensor = getattr(call.final, name)
        before = tensor.clone()
        honest(call)
        tensor.copy_(before)

    plant(op, f"skips_{name}")(function)


for op in ("prefill", "decode"):
    for name in ("phi", "h", "k", "x"):
        skips_state(op, name)


@plant("prefill", "hands_back_state")
def hands_back_state(call):
    """Returns the state that it was given, where it was given one."""
    honest(call)
    if call.state is not None:
        call.final.h.copy_(call.state.h)


@plant("prefill", "skips_head")
def skips_head(call):
    """Leaves the last head of y as it was."""
    head = call.y[..., -1, :].clone()
    honest(call)
    call.y[..., -1, :] = head


@plant("prefill", "repeats_head")
def repeats_head(call):
    """Gives the second head the first one's output."""
    honest(call)
    call.y[..., 1, :] = call.y[..., 0, :]


@plant("prefill", "zeros")
def zeros(call):
    """Returns zeros everywhere."""
    for tensor in call.outputs().values():
        tensor.zero_()


@plant("prefill", "writes_nothing")
def writes_nothing(call):
    """Returns at once."""


@plant("prefill", "writes_once")
def writes_once(call, calls=[0]):  # noqa: B006 - counts its calls
    """Writes in its first call, and then leaves what it finds."""
    calls[0] += 1
    if calls[0] == 1:
        honest(call)


@plant("prefill", "remembers")
def remembers(call, memory={}):  # noqa: B006 - remembers its answers
    """Solves each problem once, and gives that answer again whatever the inputs are."""
    if call.problem not in memory:
        honest(call)
        memory[call.problem] = {name: tensor.clone() for name, tensor in call.outputs().items()}
    for name, tensor in call.outputs().items():
        tensor.copy_(memory[call.problem][name])


@plant("prefill", "remembers_the_last")
def remembers_the_last(call, memory={}):  # noqa: B006 - remembers its answer
    """Gives the answer of the call before where the inputs are those of the call before."""
    outputs = call.outputs()
    inputs = [tensor for name, tensor in call.tensors().items() if name not in outputs]
    last, answer = memory.get(call.problem, ([], {}))
    if not last or not all(map(torch.equal, inputs, last)):
        honest(call)
        answer = {name: tensor.clone() for name, tensor in outputs.items()}
        memory[call.problem] = [tensor.clone() for tensor in inputs], answer
    for name, tensor in outputs.items():
        tensor.copy_(answer[name])


@plant("prefill", "tires")
def tires(call, calls={}):  # noqa: B006 - counts its calls
    """Right twice on each problem, as often as a gate asks, and wrong from then on."""
    honest(call)
    calls[call.problem] = calls.get(call.problem, 0) + 1
    if calls[call.problem] > 2:
        call.y[0, 0] = 0


@plant("prefill", "clobbers_input")
def clobbers_input(call):
    """Changes an input by one element once it has read it."""
    honest(call)
    call.inputs.b[-1, -1, -1, -1, -1].neg_()


@plant("prefill", "clobbers_param")
def clobbers_param(call):
    """Changes a parameter."""
    honest(call)
    call.params.d[0] += 1


@plant("prefill", "clobbers_state")
def clobbers_state(call):
    """Uses the state that it was given as its own buffer."""
    honest(call)
    if call.state is not None:
        call.state.h.copy_(call.final.h)


@plant("prefill", "writes_gap")
def writes_gap(call):
    """Writes one element past a slice of the projection, where another slice could lie."""
    honest(call)
    dt = call.inputs.dt
    past = dt.storage_offset() + dt.shape[-1]
    whole_storage(dt).view(dt.dtype)[past] = 0


@plant("decode", "writes_other_rows")
def writes_other_rows(call):
    """Writes a row of the pool that no batch row names."""
    honest(call)
    if call.state_indices is not None:
        named = call.state_indices.tolist()
        other = next(row for row in range(call.problem.pool) if row not in named)
        call.state.x[other] = 0


def wavers(call, calls=[0]):  # noqa: B006 - counts its calls
    """Right, but for the last bit of one element in every other call."""
    honest(call)
    calls[0] += 1
    call.y.view(torch.int16).view(-1)[0] ^= calls[0] % 2


plant("prefill", "wavers")(wavers)
plant("prefill", "wavers_admittedly", deterministic=False)(wavers)


@plant("prefill", "raises")
def raises(call):
    """Raises."""
    raise ValueError("a planted error")


@plant("prefill", "out_of_memory")
def out_of_memory(call):
    """Raises what torch raises on a full GPU."""
    raise torch.OutOfMemoryError("tried to allocate 2 TiB")


class CompilationError(Exception):
    """Named as the DSLs name theirs."""


@plant("prefill", "does_not_compile")
def does_not_compile(call):
    """Raises what a DSL raises."""
    raise CompilationError("at 3:1: no such thing")


@plant("prefill", "exits")
def exits(call):
    """Ends the process."""
    os._exit(7)


@plant("prefill", "segfaults")
def segfaults(call):
    """Reads address 0."""
    ctypes.string_at(0)


@plant("prefill", "hangs")
def hangs(call):
    """Never returns."""
    time.sleep(1e6)


@plant("prefill", "exits_when_timed")
def exits_when_timed(call, calls={}):  # noqa: B006 - counts its calls
    """Right twice on each problem, as often as a gate asks, and then ends the process."""
    honest(call)
    calls[call.problem] = calls.get(call.problem, 0) + 1
    if calls[call.problem] > 2:
        os._exit(8)


@plant("prefill", "raises_when_timed")
def raises_when_timed(call, calls={}):  # noqa: B006 - counts its calls
    """Right twice on each problem, as often as a gate asks, and then out of memory."""
    honest(call)
    calls[call.problem] = calls.get(call.problem, 0) + 1
    if calls[call.problem] > 2:
        raise MemoryError("workspace exhausted")


def waits(call):
    """On two batch rows, leaves its process's id in the folder and waits there."""
    honest(call)
    folder = Path(os.environ[WAIT])
    while call.problem.B == 2 and call.problem.L == 9 and (folder / "go-slow").exists():
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(0.02)


plant("prefill", "waits")(waits)
plant("prefill", "waits_too")(waits)
