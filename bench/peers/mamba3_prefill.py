"""The official Mamba-3 prefill (package mamba-ssm): SISO in Triton, MIMO in TileLang.

Two backends. `mamba_ssm` is all that the layer does between its projections: activations in
PyTorch, norms, the kernels, which copy every slice that is not contiguous, and the copies of the
final state into the layer's cache. `mamba_ssm_kernel` is the kernels alone on contiguous, activated
inputs in their own dtypes and layouts, and without a cache: less than our kernels do.

SISO keeps accumulated angles in bfloat16. MIMO compiles again for every B and L.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined
from torch import Tensor

from ...kernels.bound import Arguments, Stages
from ...kernels.call import Call
from ...kernels.problem import Problem
from ...kernels.registry import adapts
from .official import decay_rate, normalised, raw, refusal, step_size
from .tuners import forget

try:
    from mamba_ssm.ops.tilelang.mamba3.mamba3_mimo import mamba3_mimo
except Exception as error:  # as its layer does: SISO works without TileLang
    mamba3_mimo = None
    NO_MIMO = f"its MIMO kernel cannot be imported: {type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Config:
    """What the caller of the official kernels chooses."""

    chunk_size: int  # tokens


def configs(problem: Problem, device: torch.device) -> Iterator[Config]:
    """The recommended 64 (token, rank) columns, then half as many."""
    yield Config(64 // problem.R)
    if problem.R > 1 and 32 // problem.R >= 8:
        yield Config(32 // problem.R)


def supports(problem: Problem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.R > 1 and mamba3_mimo is None:
        return NO_MIMO
    if problem.R > 1 and problem.has_state:
        return "its MIMO prefill takes no initial state"
    if problem.state_dtype != torch.float32:
        return "a float32 state"
    if problem.S * 2 not in (problem.N, problem.N // 2):
        return "angles for a half or all of N"
    return refusal(problem, device)


def kernel_arguments(
    x: Tensor, z: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, lam: Tensor, theta: Tensor,
    dt_bias: Tensor | None, b_norm: Tensor, c_norm: Tensor, b_bias: Tensor, c_bias: Tensor,
    d: Tensor, mimo_x: Tensor | None, mimo_z: Tensor | None, mimo_o: Tensor | None,
    options: dict[str, str], chunk_size: int, initial: tuple[Tensor, ...] | None,
) -> Arguments:  # fmt: skip
    """`Mamba3.forward` from the split projection up to its kernel: what the kernel is given."""
    step = step_size(dt, dt_bias, options["step"])  # (B, L, H)
    if options["decay"] == "log_decay":
        log_decay = a.to(torch.float32)
    else:
        log_decay = decay_rate(a, options["decay"]) * step
    if theta.ndim == 3:
        theta = theta.unsqueeze(-2).expand(-1, -1, x.shape[2], -1)
    shared = {
        "V": x,
        "Z": z,
        "ADT": log_decay.transpose(1, 2),
        "DT": step.transpose(1, 2),
        "Trap": lam.transpose(1, 2),
        "Angles": theta.to(torch.float32),
        "D": d,
        "chunk_size": chunk_size,
    }
    k, q = normalised(b, b_norm, options["norm"]), normalised(c, c_norm, options["norm"])
    if mimo_x is None:
        return shared | {
            "Q": q.squeeze(2),
            "K": k.squeeze(2),
            "Q_bias": c_bias.squeeze(1),
            "K_bias": b_bias.squeeze(1),
            "Input_States": initial,
            "return_final_states": True,
        }
    return shared | {
        "Q": q,
        "K": k,
        "Q_bias": c_bias,
        "K_bias": b_bias,
        "MIMO_V": mimo_x,
        "MIMO_Z": mimo_z,
        "MIMO_Out": mimo_o,
        "rotary_dim_divisor": b.shape[-1] // theta.shape[-1],
        "dtype": x.dtype,
        "return_state": True,
    }


def kernel(**arguments: Any) -> Any:
    """The kernels alone; returns y and the final phi, h, k, x."""
    return (mamba3_mimo if "MIMO_V" in arguments else mamba3_siso_combined)(**arguments)


def layer(cache: dict[str, Tensor], **arguments: Any) -> Tensor:
    """All between the projections, with the copies into the layer's cache; returns y."""
    y: Tensor
    y, phi, h, k, x = kernel(**kernel_arguments(**arguments))
    cache["phi"].copy_(phi)
    cache["h"].copy_(h)
    cache["k"].copy_(k if k.ndim == 4 else k.unsqueeze(1))
    cache["x"].copy_(x)
    return y


def prepare_layer(call: Call, config: Config) -> Arguments:
    """The slices of the projection as they are, the parameters and the cache."""
    return raw(call) | {
        "chunk_size": config.chunk_size,
        "initial": _initial(call),
        "cache": dict(call.final.items()),
    }


def prepare_kernel(call: Call, config: Config) -> Arguments:
    """Contiguous inputs in the dtypes that the kernels ask for."""
    arguments = kernel_arguments(**raw(call), chunk_size=config.chunk_size, initial=_initial(call))
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = value.contiguous()
    if call.problem.R == 1:  # the SISO kernel would round them inside
        arguments["Angles"] = arguments["Angles"].to(torch.bfloat16)
    return arguments


def _initial(call: Call) -> tuple[Tensor, ...] | None:
    state = call.state
    return None if state is None else (state.phi, state.h, state.k.squeeze(1), state.x)


def collect_layer(call: Call, arguments: Arguments, results: Any) -> None:
    """Copy y; the cache is the call's own final state."""
    call.y.copy_(results)


def collect_kernel(call: Call, arguments: Arguments, results: Any) -> None:
    """Copy y and the final state."""
    y, phi, h, k, x = results
    call.y.copy_(y)
    call.final.phi.copy_(phi)
    call.final.h.copy_(h)
    call.final.k.copy_(k if k.ndim == 4 else k.unsqueeze(1))
    call.final.x.copy_(x)


adapts(
    "prefill",
    "mamba_ssm",
    Stages(prepare_layer, layer, collect_layer),
    supports=supports,
    forget=partial(forget, "mamba_ssm"),
    configs=configs,
)
adapts(
    "prefill",
    "mamba_ssm_kernel",
    Stages(prepare_kernel, kernel, collect_kernel),
    supports=supports,
    forget=partial(forget, "mamba_ssm"),
    configs=configs,
)
