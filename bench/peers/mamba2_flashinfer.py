"""Mamba-2's step of the state by FlashInfer, in CUDA: on Hopper the fastest public one."""

from typing import Any

import torch
from flashinfer.mamba import selective_state_update
from torch import Tensor

from ...kernels.bound import Arguments, Stages
from ...kernels.plain import PlainCall, PlainProblem
from ...kernels.registry import adapts
from .steps import step_arguments


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.dtype != torch.bfloat16:
        return "bfloat16 activations"
    if problem.P not in (64, 128) or problem.N not in (64, 128, 256):
        return "P in 64, 128; N in 64, 128, 256"
    return None if device.type == "cuda" else "needs a CUDA device"


def prepare(call: PlainCall, config: None) -> Arguments:
    """The function's own names; the call's own tensors, but dt, whose dtype must be that of D."""
    return step_arguments(call) | {"dt": call.inputs["dt"].float()}


def decode(dt: Tensor, **arguments: Any) -> Any:
    """One step of the state."""
    return selective_state_update(dt=dt.unsqueeze(-1).expand_as(arguments["x"]), **arguments)


def collect(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y; the state is the call's own."""
    call.store(results)


adapts("mamba2.decode", "flashinfer", Stages(prepare, decode, collect), supports=supports)
