"""The faults of steps.py in our decode step, as a plugin: the real Triton kernel, and a fault.

The default runs the kernel many times on copies before it runs it once for good, so that each fault
is faster than it. `race` changes y and changes it back without an atomic operation; `out_of_bounds`
writes past a slice of the layer's projection; the others are as their names say.
"""

from dataclasses import dataclass, replace

import triton
import triton.language as tl

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.triton import decode

FAULTS = (
    *("zeros", "wrong_tail", "skipped_state", "race", "out_of_bounds", "clobbered_input"),
    *("illegal_access", "hang"),
)
SLOWLY = 8


@dataclass(frozen=True)
class Config:
    """again: runs on copies before the one that counts; fault: by its name."""

    again: int
    fault: str = ""


@triton.jit
def change(p, offset, by, MANY: tl.constexpr):
    """p[offset] += by, MANY times, by all programs at once."""
    for _ in range(MANY):
        value = tl.load(p + offset, volatile=True).to(tl.float32) + by
        tl.store(p + offset, value.to(p.dtype.element_ty))


@triton.jit
def zero(p, offset):
    """p[offset] = 0."""
    tl.store(p + offset, 0.0)


@triton.jit
def wait(p):
    """Never ends."""
    while tl.load(p, volatile=True) == tl.load(p, volatile=True):
        pass


def run(call, config):
    """The kernel of the suite, with its default config, and the fault."""
    own = registry.get("decode", "triton")
    honest = own.default(call.problem, call.y.device)
    for _ in range(config.again):
        own.run(call.clone(), honest)
    if config.fault == "zeros":
        call.y.zero_()
        return
    if config.fault == "wrong_tail":
        positional, constants = decode.arguments(call, honest)
        decode.decode_kernel[(call.problem.B * call.problem.H - 1,)](*positional, **constants)
        return
    if config.fault == "skipped_state":
        state = call.state.map(lambda _, tensor: tensor.clone())
        own.run(replace(call, state=state, final=state), honest)
        return
    own.run(call, honest)
    match config.fault:
        case "race":
            change[(256,)](call.y, 0, 1.0, 8)
            change[(256,)](call.y, 0, -1.0, 8)
        case "out_of_bounds":
            dt = call.inputs.dt
            zero[(1,)](dt, dt.shape[-1])  # where another slice could lie
        case "clobbered_input":
            zero[(1,)](call.inputs.b, 0)
        case "illegal_access":
            zero[(1,)](call.y, 1 << 45)
        case "hang":
            wait[(1,)](call.state.h)


registry.implements(
    "decode",
    "planted",
    supports=lambda problem, device: registry.get("decode", "triton").supports(problem, device),
    configs=lambda problem, device: [Config(SLOWLY), *(Config(0, fault) for fault in FAULTS)],
)(run)
