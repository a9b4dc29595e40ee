# ruff: noqa: INP001 - a plugin, loaded by its path
"""The Triton decode, in a process that is killed at batch 8: a worker is lost, a row is lost.

The plugin of `lost.jsonl`.
"""

import os
import signal
from typing import Any

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call

OWN = registry.get("decode", "triton")


def run(call: Call, config: Any) -> None:
    """Run the step, or die."""
    if call.problem.B == 8 and call.problem.H == 64:  # not in the hard cases, which are smaller
        os.kill(os.getpid(), signal.SIGKILL)
    OWN.run(call, config)


registry.implements("decode", "dies", supports=OWN.supports, configs=OWN.configs)(run)
