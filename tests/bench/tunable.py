"""A backend with configs to tune, as a plugin: torch, slower by so many runs, and planted faults.

The faults are those of faults.py. Each is faster than the default, which runs torch six times more.
"""

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mamba3_bench.kernels import registry

SPACE = "MAMBA3_BENCH_TEST_SPACE"  # the configs beside the default, `more:fault` by commas

spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
faults = sys.modules["faults"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)


@dataclass(frozen=True)
class Config:
    """more: runs of torch before the one that counts; fault: by its name."""

    more: int
    fault: str = ""


def configs(problem, device):
    """The default alone is shipped."""
    return [Config(6)]


def space(problem, device):
    """What the variable names."""
    found = [one.split(":") for one in os.environ.get(SPACE, "0:,4:").split(",")]
    return {f"more={more} {fault}".strip(): Config(int(more), fault) for more, fault in found}


def loses_device(call):
    """What an illegal access does to a CUDA context: whatever runs next in the process fails."""
    from mamba3_bench.bench.worker import Worker

    Worker._healthy = lambda self: False
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def skips_state(call):
    """Leaves h as it was: what it was given, or nothing."""
    before = call.final.h.clone()
    faults.honest(call)
    call.final.h.copy_(before)


def hangs_when_timed(call, calls={}):  # noqa: B006 - counts its calls
    """Right twice on each problem, as often as a gate asks, and never returns from then on."""
    faults.honest(call)
    calls[call.problem] = calls.get(call.problem, 0) + 1
    if calls[call.problem] > 2:
        time.sleep(1e6)


OWN = {one.__name__: one for one in (loses_device, skips_state, hangs_when_timed)}


def tunable(call, config):
    """The torch backend, or a fault."""
    for _ in range(config.more):
        faults.honest(call.clone())
    run = OWN.get(config.fault) or getattr(faults, config.fault or "honest")
    run(call)


for op in ("prefill", "decode"):
    registry.implements(
        op, "tunable", supports=lambda problem, device: None, configs=configs, space=space
    )(tunable)
