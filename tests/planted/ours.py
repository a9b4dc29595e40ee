"""The faults of steps.py in kernels of the suite, as a plugin: a real kernel, and a fault.

The default runs the kernel many times on copies before it runs it once for good, so that each fault
is faster than it. `race` adds and takes away the same from y, in no atomic operation;
`out_of_bounds` writes past a slice of the layer's projection; the others are as their names say.
What is done beside the kernel is done in its DSL.
"""

import importlib
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mamba3_bench.kernels import registry

sys.path.append(str(Path(__file__).parent))  # where a worker finds the files beside this one
steps = importlib.import_module("steps")

SLOWLY = 8


@dataclass(frozen=True)
class Config:
    """again: runs on copies before the one that counts; fault: by its name."""

    again: int
    fault: str = ""


def run(dsl, call, config):
    """The kernel of the suite, with its default config, and the fault."""
    own = registry.get(call.problem.op, dsl)
    honest = partial(own.run, config=own.default(call.problem, call.y.device))
    for _ in range(config.again):
        honest(call.clone())
    match config.fault:
        case "zeros":
            call.y.zero_()
            return
        case "wrong_tail":  # as of a grid that is one block short
            made = call.clone()
            honest(made)
            call.y[..., :-1, :] = made.y[..., :-1, :]
            call.final.map(lambda name, tensor: tensor.copy_(getattr(made.final, name)))
            return
        case "skipped_state":
            final = call.final.map(lambda _, tensor: tensor.clone())
            state = final if call.state is call.final else call.state
            honest(replace(call, state=state, final=final))
            return
    honest(call)
    strike = importlib.import_module(f"strike_{dsl}")
    match config.fault:
        case "race":
            strike.race(call.y)
        case "out_of_bounds":
            dt = call.inputs.dt
            strike.write(dt, dt.shape[-1])  # where another slice could lie
        case "clobbered_input":
            strike.write(call.inputs.b, 0)
        case "illegal_access":
            strike.write(call.y, 1 << 45)
        case "hang":
            strike.hang(call.inputs.x)


def plant(dsl, op):
    """Register the backend `planted_DSL`."""

    @registry.implements(
        op,
        f"planted_{dsl}",
        supports=lambda problem, device: registry.refusal(op, dsl, problem, device),
        configs=lambda problem, device: [Config(SLOWLY), *(Config(0, one) for one in steps.FAULTS)],
    )
    def run_planted(call, config):
        run(dsl, call, config)


for dsl, op in steps.OPS.items():
    plant(dsl, op)
