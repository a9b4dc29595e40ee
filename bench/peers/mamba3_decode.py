"""The official Mamba-3 decode step (package mamba-ssm): Triton rotation, CuTe DSL state kernel.

Two backends. `mamba_ssm` is all that `Mamba3.step` does between its projections, some 25 launches:
activations in PyTorch, norms, parameters laid out anew for each step, the rotation, the state
kernel, copies of angles, k and x into the cache. `mamba_ssm_kernel` is the state kernel alone, on
rotated keys, formed decays and parameters in its own layout.
"""

from functools import partial
from typing import Any

import torch
from mamba_ssm.ops.cute.mamba3.mamba3_step_fn import mamba3_step_fn
from mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step import apply_rotary_qk_inference_fwd
from torch import Tensor

from ...kernels.bound import Arguments, Stages
from ...kernels.call import Call
from ...kernels.problem import Problem
from ...kernels.registry import adapts
from .official import decay_rate, normalised, raw, refusal, step_size
from .tuners import forget


def supports(problem: Problem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.P % 64:
        return "P in multiples of 64: its tiles are not bounded"
    if problem.N not in (32, 64, 128):
        return "N in 32, 64, 128"
    if problem.G not in (1, problem.H):
        return "G = 1 or G = H"
    if problem.H % 8:
        return "H in multiples of 8: rows of 16 bytes"
    if problem.options.decay == "log_decay":
        return "a decay that it multiplies with the step size itself"
    return refusal(problem, device)


def step_arguments(
    x: Tensor, z: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, lam: Tensor, theta: Tensor,
    dt_bias: Tensor | None, b_norm: Tensor, c_norm: Tensor, b_bias: Tensor, c_bias: Tensor,
    d: Tensor, mimo_x: Tensor | None, mimo_z: Tensor | None, mimo_o: Tensor | None,
    options: dict[str, str], cache: dict[str, Tensor],
) -> tuple[Arguments, Tensor]:  # fmt: skip
    """`Mamba3.step` up to its state kernel: what that is given, and the next angles."""
    H, P, R = *x.shape[1:], b.shape[1]
    rate = decay_rate(a, options["decay"])  # (B, H)
    step = step_size(dt, dt_bias, options["step"])
    lam = torch.sigmoid(lam)
    b, c = normalised(b, b_norm, options["norm"]), normalised(c, c_norm, options["norm"])
    b, c = b.expand(-1, -1, H, -1), c.expand(-1, -1, H, -1)  # (B, R, H, N)
    if theta.ndim == 2:
        theta = theta.unsqueeze(-2).expand(-1, H, -1)
    q, k, phi = apply_rotary_qk_inference_fwd(
        q=c,
        k=b,
        angle_state=cache["phi"],
        angle_proj=theta,
        dt=step,
        bias_q=c_bias.transpose(0, 1),
        bias_k=b_bias.transpose(0, 1),
        conjugate=False,
        inplace=False,
        rotate_pairwise=options["pairing"] == "interleaved",
    )
    if mimo_x is None:
        projections = [torch.ones(R, H, P, device=x.device, dtype=x.dtype) for _ in range(3)]
    else:
        projections = [
            weight.transpose(0, 1).contiguous()
            for weight in (mimo_x, mimo_z, mimo_o)
            if weight is not None
        ]
    return {
        "state": cache["h"],
        "Bstate": cache["k"],
        "Xstate": cache["x"],
        "A": rate,
        "B": k,
        "C": q,
        "D": d,
        "x": x,
        "dt": step,
        "trap": lam,
        "xproj": projections[0],
        "outproj": projections[2],
        "state_out": None,
        "z": z,
        "zproj": projections[1],
        "tile_D": 64,
        "num_warps": 4,
    }, phi


def layer(**arguments: Any) -> Tensor:
    """All between the projections; moves the cache on and returns y."""
    step, phi = step_arguments(**arguments)
    y = kernel(step, phi)
    cache = arguments["cache"]
    cache["phi"].copy_(phi)
    cache["k"].copy_(step["B"])
    cache["x"].copy_(step["x"])
    return y


def kernel(step: Arguments, phi: Tensor) -> Tensor:
    """The state kernel alone; moves h on and returns y."""
    y = torch.empty_like(step["x"])
    mamba3_step_fn(**step, out=y)
    return y


def prepare_layer(call: Call, config: None) -> Arguments:
    """The slices of the projection as they are, the parameters, and the state as its cache."""
    return raw(call) | {"cache": dict(call.final.items())}


def prepare_kernel(call: Call, config: None) -> Arguments:
    """The state kernel's arguments, contiguous, and the next angles; h, k and x are the call's."""
    step, phi = step_arguments(**raw(call), cache=dict(call.final.items()))
    for name in ("x", "z", "trap"):
        step[name] = step[name].contiguous()
    return {"step": step, "phi": phi}


def collect_layer(call: Call, arguments: Arguments, results: Any) -> None:
    """Copy y; the cache is the call's own state."""
    call.y.copy_(results)


def collect_kernel(call: Call, arguments: Arguments, results: Any) -> None:
    """Copy y and what the state kernel leaves to its layer."""
    call.y.copy_(results)
    call.final.phi.copy_(arguments["phi"])
    call.final.k.copy_(arguments["step"]["B"])
    call.final.x.copy_(arguments["step"]["x"])


adapts("decode", "mamba_ssm", Stages(prepare_layer, layer, collect_layer), supports=supports)
adapts(
    "decode",
    "mamba_ssm_kernel",
    Stages(prepare_kernel, kernel, collect_kernel),
    supports=supports,
    forget=partial(forget, "mamba_ssm"),
)
