"""A backend with configs to tune, as a plugin: torch, slower by so many runs, and planted faults.

The faults are those of faults.py; without the extra runs of the default, each is faster than it.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import faults  # noqa: E402 - beside this file

from mamba3_bench.kernels import registry  # noqa: E402

SPACE = "MAMBA3_BENCH_TEST_SPACE"  # names the configs beside the default: `more:fault`, by commas
FAULTS = (
    *("zeros", "zeros_tail", "skips_h", "wavers", "writes_gap", "clobbers_input", "tires"),
    *("raises", "segfaults", "exits_when_timed", "loses_device"),
)


@dataclass(frozen=True)
class Config:
    """more: runs of torch before the one that counts; fault: of faults.py."""

    more: int
    fault: str = ""


def configs(problem, device):
    """The default alone is shipped."""
    return [Config(2)]


def space(problem, device):
    """What the variable names."""
    found = [one.split(":") for one in os.environ.get(SPACE, "0:,4:").split(",")]
    return {f"more={more} {fault}".strip(): Config(int(more), fault) for more, fault in found}


def loses_device(call):
    """What an illegal access does to a CUDA context: whatever runs next in the process fails."""
    from mamba3_bench.bench.worker import Worker

    Worker._healthy = lambda self: False
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@registry.implements(
    "prefill",
    "tunable",
    supports=lambda problem, device: None,
    configs=configs,
    space=space,
)
def prefill(call, config):
    """The torch backend, or a fault."""
    for _ in range(config.more):
        faults.honest(call.clone())
    if config.fault == "loses_device":
        loses_device(call)
    getattr(faults, config.fault or "honest")(call) if config.fault != "skips_h" else skip(call)


def skip(call):
    """Leaves h as it was."""
    before = call.final.h.clone()
    faults.honest(call)
    call.final.h.copy_(before)


assert torch
