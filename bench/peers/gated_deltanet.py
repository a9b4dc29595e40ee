"""Gated DeltaNet by flash-linear-attention: chunked prefill and recurrent step, both in Triton.

What is timed is the library's function on contiguous inputs, with the norm of q and k, the decay's
activation and the sigmoid of beta inside. It keeps its state as (N, P); it allocates a new one.
"""

from functools import partial
from typing import Any

import torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

from ...kernels.bound import Arguments, Stages
from ...kernels.plain import PlainCall, PlainProblem
from ...kernels.registry import adapts
from .tuners import forget


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    if problem.N > 256:
        return "N up to 256"
    if problem.dtype == torch.float32 and not problem.decodes:
        return "bfloat16 or float16 activations"
    return None if device.type == "cuda" else "needs a CUDA device"


def prepare(call: PlainCall, config: None) -> Arguments:
    """The function's own names; a decode step as a sequence of one token."""
    t = call.sequence()
    return {
        "q": t["q"],
        "k": t["k"],
        "v": t["v"],
        "g": t["a"],
        "beta": t["b"],
        "initial_state": None if call.state is None else call.state["h"].mT.contiguous(),
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "A_log": (-t["decay"]).log(),
        "dt_bias": t["dt_bias"],
    }


def prefill(**arguments: Any) -> Any:
    """Whole sequences, in chunks."""
    return chunk_gated_delta_rule(**arguments)


def decode(**arguments: Any) -> Any:
    """One token; reads one state and writes another."""
    return fused_recurrent_gated_delta_rule(**arguments)


def collect(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y and the state."""
    y, h = results
    call.store(y, h=h.mT)


adapts(
    "gdn.prefill",
    "fla",
    Stages(prepare, prefill, collect),
    supports=supports,
    forget=partial(forget, "fla"),
)
adapts("gdn.decode", "fla", Stages(prepare, decode, collect), supports=supports)
