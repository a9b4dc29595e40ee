"""Mamba-2 by mamba-ssm: the SSD prefill and the step of the state, both in Triton.

What is timed is the library's function on contiguous inputs: step sizes, skip and gate are inside,
as in our op. The chunk of 256 is its layer's; its own kernels are tuned for each problem.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

from ...kernels.bound import Arguments, Stages
from ...kernels.plain import PlainCall, PlainProblem
from ...kernels.registry import adapts
from .steps import step_arguments
from .tuners import forget


@dataclass(frozen=True, slots=True)
class Config:
    """What the caller of the prefill chooses."""

    chunk_size: int  # tokens


def configs(problem: PlainProblem, device: torch.device) -> Iterator[Config]:
    """The layer's own chunk, then smaller ones."""
    yield from (Config(256), Config(128), Config(64))


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    return None if device.type == "cuda" else "needs a CUDA device"


def prepare_prefill(call: PlainCall, config: Config) -> Arguments:
    """The function's own names; the call's own tensors."""
    t = call.inputs
    return {
        "x": t["x"],
        "dt": t["dt"],
        "A": t["decay"],
        "B": t["b"],
        "C": t["c"],
        "chunk_size": config.chunk_size,
        "D": t["d"],
        "z": t["z"],
        "dt_bias": t["dt_bias"],
        "initial_states": None if call.state is None else call.state["h"],
        "dt_softplus": True,
        "return_final_states": True,
    }


def collect_prefill(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y and the state."""
    y, h = results
    call.store(y, h=h)


def prepare_decode(call: PlainCall, config: None) -> Arguments:
    """The function's own names; the call's own tensors."""
    return step_arguments(call)


def collect_decode(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y; the state is the call's own."""
    call.store(results)


def prefill(**arguments: Any) -> Any:
    """SSD over whole sequences."""
    return mamba_chunk_scan_combined(**arguments)


def decode(**arguments: Any) -> Any:
    """One step of the state."""
    return selective_state_update(**arguments)


adapts(
    "mamba2.prefill",
    "mamba_ssm",
    Stages(prepare_prefill, prefill, collect_prefill),
    supports=supports,
    configs=configs,
    forget=partial(forget, "mamba_ssm"),
)
adapts(
    "mamba2.decode",
    "mamba_ssm",
    Stages(prepare_decode, decode, collect_decode),
    supports=supports,
)
