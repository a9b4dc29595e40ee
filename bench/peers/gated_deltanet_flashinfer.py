"""Gated DeltaNet by FlashInfer: the Hopper prefill and the decode step, for heads of 128 by 128.

The prefill takes normalised q and k, the decay and beta as numbers in (0, 1): what that costs is
done beforehand, in its favour. The step has all of it inside.
"""

from typing import Any

import torch
from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose
from flashinfer.gdn_prefill import chunk_gated_delta_rule
from torch import Tensor
from torch.nn.functional import softplus

from ...kernels.bound import Arguments, Stages
from ...kernels.plain import PlainCall, PlainProblem
from ...kernels.registry import adapts
from ...reference.gated_deltanet import normalised

HEAD = 128


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if (problem.N, problem.P) != (HEAD, HEAD):
        return "heads of 128 by 128"
    if problem.dtype != torch.bfloat16:
        return "bfloat16 activations"
    if not problem.decodes and problem.state_dtype != torch.float32:
        return "a float32 state"
    return None if device.type == "cuda" else "needs a CUDA device"


def prepare_prefill(call: PlainCall, config: None) -> Arguments:
    """All sequences packed, with activated inputs."""
    p, t = call.problem, call.inputs

    def packed(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1).contiguous()

    log_alpha = t["decay"] * softplus(t["a"].float() + t["dt_bias"])
    ends = torch.arange(p.B + 1, device=call.y.device) * p.L
    return {
        "q": packed(normalised(t["q"].float()).to(p.dtype)),
        "k": packed(normalised(t["k"].float()).to(p.dtype)),
        "v": packed(t["v"]),
        "g": packed(log_alpha.exp()),
        "beta": packed(t["b"].float().sigmoid()),
        "scale": p.N**-0.5,
        "initial_state": None if call.state is None else call.state["h"],
        "output_final_state": True,
        "cu_seqlens": ends,
    }


def prefill(**arguments: Any) -> Any:
    """Whole sequences."""
    return chunk_gated_delta_rule(**arguments)


def collect_prefill(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y and the state."""
    y, h = results
    call.store(y.view(call.y.shape), h=h)


def prepare_decode(call: PlainCall, config: None) -> Arguments:
    """The function's own names; the state is the call's own, updated in place."""
    t = call.sequence()
    return {
        "q": t["q"],
        "k": t["k"],
        "v": t["v"],
        "state": call.final["h"],
        "A_log": (-t["decay"]).log(),
        "a": t["a"],
        "dt_bias": t["dt_bias"],
        "b": t["b"],
        "use_qk_l2norm": True,
    }


def decode(**arguments: Any) -> Any:
    """One step of the state."""
    y, _ = gated_delta_rule_decode_pretranspose(**arguments)
    return y


def collect_decode(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y; the state is the call's own."""
    call.store(results)


adapts(
    "gdn.prefill",
    "flashinfer",
    Stages(prepare_prefill, prefill, collect_prefill),
    supports=supports,
)
adapts(
    "gdn.decode",
    "flashinfer",
    Stages(prepare_decode, decode, collect_decode),
    supports=supports,
)
