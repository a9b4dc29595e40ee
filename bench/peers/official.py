"""What the official Mamba-3 layer does in PyTorch around its kernels, launch for launch.

From `mamba_ssm/modules/mamba3.py` of state-spaces/mamba: `forward` before its prefill kernel,
`_preprocess` before its decode kernels. Options that the layer lacks leave a step out.
"""

from dataclasses import asdict
from typing import Any

import torch
from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from torch import Tensor
from torch.nn.functional import softplus

from ...kernels.call import Call
from ...kernels.problem import Problem

A_FLOOR = 1e-4
EPS = 1e-5
NEEDED = ("z", "b_bias", "c_bias", "d")
MIMO = ("mimo_x", "mimo_z", "mimo_o")


def refusal(problem: Problem, device: torch.device) -> str | None:
    """Why the official layer does not compute a problem, or None."""
    missing = [name for name in NEEDED if name not in problem.optional]
    if problem.R > 1:
        missing += [name for name in MIMO if name not in problem.optional]
    if missing:
        return f"the layer always has {', '.join(missing)}"
    if problem.R == 1 and any(name in problem.optional for name in MIMO):
        return "R = 1 has no MIMO projections"
    if "out_norm" in problem.optional:
        return "no out_norm"
    if problem.lengths is not None or problem.pool is not None:
        return "sequences of one length, and no pool of states"
    if problem.dtype != torch.bfloat16:
        return "bfloat16 activations"
    if problem.R not in (1, 2, 4, 8):
        return "R in 1, 2, 4, 8"
    expected = "interleaved" if problem.R == 1 else "half"
    if problem.options.pairing != expected:
        return f"{expected} pairs for R = {problem.R}"
    return None if device.type == "cuda" else "needs a CUDA device"


def raw(call: Call) -> dict[str, Any]:
    """The slices of the projection and the parameters, as the layer holds them: views."""
    p, params, N = call.problem, call.params, call.problem.N
    ones = torch.ones(N, device=call.y.device)  # an absent weight means the identity
    return {
        **dict(call.inputs.items()),
        "dt_bias": params.dt_bias,
        "b_norm": ones if params.b_norm is None else params.b_norm,
        "c_norm": ones if params.c_norm is None else params.c_norm,
        "b_bias": params.b_bias,
        "c_bias": params.c_bias,
        "d": params.d,
        "mimo_x": params.mimo_x,
        "mimo_z": params.mimo_z,
        "mimo_o": params.mimo_o,
        "options": {name: value for name, value in asdict(p.options).items() if name != "matmul"},
    }


def step_size(dt: Tensor, dt_bias: Tensor | None, step: str) -> Tensor:
    """DT, float32: softplus(dd_dt + dt_bias)."""
    if step == "activated":
        return dt.float()
    return softplus(dt.float() if dt_bias is None else dt + dt_bias)


def decay_rate(a: Tensor, decay: str) -> Tensor:
    """_A, float32: -max(heavy_tail(dd_A), 1e-4); softplus in the layer before June 2026."""
    a = a.to(torch.float32)
    if decay == "softplus":
        return torch.clamp(-softplus(a), max=-A_FLOOR)
    rate = a.clamp_min(0) + torch.reciprocal(1 - a.clamp_max(0))
    return torch.clamp(-rate, max=-A_FLOOR)


def normalised(v: Tensor, weight: Tensor, norm: str) -> Tensor:
    """B_norm or C_norm, by the layer's own Triton kernel."""
    return v if norm == "normalised" else rmsnorm_fn(v, weight, None, eps=EPS)
