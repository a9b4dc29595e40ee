"""Inputs from a seed: a call with realistic or hard values for any problem.

Values are drawn in float32 and then rounded, the same bits on every machine (`draws.py`). The
inputs are slices of one wide projection output, as a layer hands them over.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from .call import Call
from .draws import Draws
from .ops import decode_call, prefill_call
from .problem import Options, Problem
from .tensors import Inputs, Params, State

Regime = Literal["typical", "strong_decay", "weak_decay", "large_angles"]
REGIMES: tuple[Regime, ...] = ("typical", "strong_decay", "weak_decay", "large_angles")

# Mean of the raw step size and of the raw decay, and the standard deviation of the raw angle rate.
# typical: D about 0.02, A about -1. strong: memory of a few tokens. weak: A at its floor.
CENTRES: dict[Regime, tuple[float, float, float]] = {
    "typical": (-4.0, 0.0, 1.0),
    "strong_decay": (1.0, 3.0, 1.0),
    "weak_decay": (-4.0, -2e4, 1.0),
    "large_angles": (1.0, -10.0, 4.0),
}


def make_call(
    problem: Problem,
    seed: int,
    device: torch.device | str = "cpu",
    regime: Regime = "typical",
) -> Call:
    """Build the checked call of a problem from a seed; its problem equals the one given.

    On the device `meta` it has shapes alone, and nothing is drawn.
    """
    device = torch.device(device)
    draws = Draws(seed, device)
    inputs = _inputs(problem, draws, regime)
    params = _params(problem, draws)
    state = _state(problem, draws) if problem.has_state else None
    if problem.op == "decode":
        assert state is not None
        call = decode_call(inputs, params, state, _indices(problem, draws), problem.options)
    else:
        cu_seqlens = None
        if problem.lengths is not None:
            offsets = torch.tensor([0, *problem.lengths]).cumsum(0)
            cu_seqlens = offsets.to(device=device, dtype=torch.int32)
        call = prefill_call(inputs, params, state, cu_seqlens, problem.options, problem.state_dtype)
    assert call.problem == problem, f"asked for {problem}, built {call.problem}"
    return call


def _inputs(p: Problem, draws: Draws, regime: Regime) -> Inputs:
    """Slices of one (B, L, width) projection output, in the official order."""
    theta_heads = (p.H,) if p.theta_per_head else ()
    shapes: dict[str, tuple[int, ...]] = {
        "z": (p.H, p.P),
        "x": (p.H, p.P),
        "b": (p.R, p.G, p.N),
        "c": (p.R, p.G, p.N),
        "dt": (p.H,),
        "a": (p.H,),
        "lam": (p.H,),
        "theta": (*theta_heads, p.S),
    }
    if "z" not in p.optional:
        del shapes["z"]
    lead = (p.B,) if p.op == "decode" else (p.B, p.L)
    widths = [math.prod(shape) for shape in shapes.values()]
    # every slice starts on 16 bytes, as in a layer whose widths are multiples of 8
    padded = [(width + 15) // 16 * 16 for width in widths]
    wide = torch.empty(*lead, sum(padded), dtype=p.dtype, device=draws.device)
    columns = torch.split(wide, padded, dim=-1)
    for (name, shape), width, column in zip(shapes.items(), widths, columns, strict=True):
        value = _activated(name, _raw(name, draws.normal(*lead, *shape), regime), p.options)
        column[..., :width] = value.flatten(len(lead)).to(p.dtype)
        column[..., width:] = torch.nan  # nobody may read the gap
    slices = dict(zip(shapes, torch.split(wide, padded, dim=-1), strict=True))
    return Inputs(
        **{
            name: slices[name][..., :width].view(*lead, *shape)
            for (name, shape), width in zip(shapes.items(), widths, strict=True)
        }
    )


def _raw(name: str, value: Tensor, regime: Regime) -> Tensor:
    """Standard normal numbers -> the raw input of a name in a regime."""
    dt_centre, a_centre, theta_scale = CENTRES[regime]
    centre = {"dt": dt_centre, "a": a_centre}.get(name, 0.0)
    return value * {"lam": 2.0, "theta": theta_scale}.get(name, 1.0) + centre


def _activated(name: str, value: Tensor, options: Options) -> Tensor:
    """What the options say comes activated already; computed on the CPU, alike everywhere."""
    kinds = {"dt": options.step, "a": options.decay, "b": options.norm, "c": options.norm}
    if kinds.get(name) not in ("activated", "log_decay", "normalised") or value.is_meta:
        return value
    value = value.cpu()
    if name == "dt":
        return torch.nn.functional.softplus(value)
    if name == "a":
        return -0.02 * value.exp()
    return value * (value.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def _params(p: Problem, draws: Draws) -> Params:
    """Parameters near their initial values: norms and biases about 1, ranks about 1/R."""
    shapes: dict[str, tuple[tuple[int, ...], float, float]] = {  # shape, mean, spread
        "dt_bias": ((p.H,), 0.0, 0.5),
        "b_norm": ((p.N,), 1.0, 0.1),
        "c_norm": ((p.N,), 1.0, 0.1),
        "b_bias": ((p.H, p.R, p.N), 1.0, 0.3),
        "c_bias": ((p.H, p.R, p.N), 1.0, 0.3),
        "d": ((p.H,), 1.0, 0.3),
        "mimo_x": ((p.H, p.R, p.P), 1.0 / p.R, 0.3 / p.R),
        "mimo_z": ((p.H, p.R, p.P), 1.0, 0.3),
        "mimo_o": ((p.H, p.R, p.P), 1.0 / p.R, 0.3 / p.R),
        "out_norm": ((p.H, p.P), 1.0, 0.1),
    }
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    present = {}
    for name, (shape, mean, spread) in shapes.items():
        value = mean + spread * draws.normal(*shape)  # drawn even if absent: seeds stay aligned
        if name in p.optional:
            present[name] = value.to(dtype)
    return Params(**present)


def _state(p: Problem, draws: Draws) -> State:
    """A state as a previous prefill could have left it."""
    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
    return State(
        phi=(draws.uniform(p.sequences, p.H, p.S) * 2 * math.pi).to(wide),
        h=(0.5 * draws.normal(p.sequences, p.H, p.P, p.N)).to(p.state_dtype),
        k=draws.normal(p.sequences, p.R, p.H, p.N).to(p.dtype),
        x=draws.normal(p.sequences, p.H, p.P).to(p.dtype),
    )


def _indices(p: Problem, draws: Draws) -> Tensor | None:
    """Distinct pool rows in random order; None without a pool."""
    if p.pool is None:
        return None
    return draws.permutation(p.pool)[: p.B].to(device=draws.device, dtype=torch.int32)
