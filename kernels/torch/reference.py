"""The float64 recurrence as a backend: any problem, any device, one step at a time."""

from typing import Any

import torch

from ...reference import mamba3
from ..call import Call
from ..problem import Problem
from ..registry import Config, implements


def supports(problem: Problem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("prefill", "reference", supports=supports, gradients=True)
def prefill(call: Call, config: Config) -> None:
    """Run `reference.mamba3.prefill` and round its results to the call's dtypes."""
    y, final = mamba3.prefill(**_arguments(call), cu_seqlens=call.cu_seqlens)
    call.y.copy_(y)
    for (_, to), result in zip(call.final.items(), mamba3.parts(final), strict=True):
        to.copy_(result)


@implements("decode", "reference", supports=supports, gradients=True)
def decode(call: Call, config: Config) -> None:
    """One step of `reference.mamba3.prefill`, on the pool rows that `state_indices` names."""
    assert call.state is not None
    if call.state_indices is None:
        picked = rows = torch.arange(call.problem.B, device=call.y.device)
    else:
        picked = (call.state_indices >= 0).nonzero()[:, 0]  # padding rows are not touched
        rows = call.state_indices[picked].long()
    arguments = _arguments(call)
    for name, tensor in call.inputs.items():
        arguments[name] = tensor[picked].unsqueeze(1)
    arguments["state"] = mamba3.State(*(tensor[rows] for _, tensor in call.state.items()))
    y, final = mamba3.prefill(**arguments)
    call.y[picked] = y.squeeze(1).to(call.y.dtype)
    for (_, to), result in zip(call.state.items(), mamba3.parts(final), strict=True):
        to[rows] = result.to(to.dtype)


def _arguments(call: Call) -> dict[str, Any]:
    """The keyword arguments of `reference.mamba3.prefill`."""
    options = call.problem.options
    state = None
    if call.state is not None:
        state = mamba3.State(*(tensor for _, tensor in call.state.items()))
    return {
        **dict(call.inputs.items()),
        **dict(call.params.items()),
        "state": state,
        "step": options.step,
        "decay": options.decay,
        "norm": options.norm,
        "pairing": options.pairing,
    }
