"""The official Mamba-3 SISO prefill (package mamba-ssm, Triton), the kernel alone.

It takes what its layer computes before it in PyTorch: normalised b and c, activated step sizes and
formed decays. So it is offered for those options alone, and the times of both sides leave that out.
The adapter adds the float32 step sizes and decays in (B, H, L) that the kernel asks for, as its
layer does, and a copy of its results into the call's tensors: bytes of y and h at the copy rate.
It keeps accumulated angles in bfloat16, hence `rival`.
"""

import torch
from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined

from ...kernels.call import Call
from ...kernels.problem import Problem
from ...kernels.registry import Config, implements


def supports(problem: Problem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    options, optional = problem.options, problem.optional
    if (options.step, options.decay, options.norm) != ("activated", "log_decay", "normalised"):
        return "the kernel alone takes step=activated, decay=log_decay, norm=normalised"
    if problem.R != 1 or problem.lengths is not None or "out_norm" in optional:
        return "SISO, sequences of one length, no out_norm"
    if problem.dtype != torch.bfloat16 or problem.state_dtype != torch.float32:
        return "bfloat16 activations and a float32 state"
    if options.pairing != "interleaved" or problem.theta_per_head or problem.has_state:
        return "interleaved pairs, angles shared by heads, fresh sequences"
    if "b_bias" not in optional or "c_bias" not in optional:
        return "needs b_bias and c_bias"
    return None if device.type == "cuda" else "needs a CUDA device"


@implements("prefill", "mamba_ssm", supports=supports, rival=True)
def prefill(call: Call, config: Config) -> None:
    """Run the kernel and copy its results."""
    inputs, params = call.inputs, call.params
    assert params.b_bias is not None
    assert params.c_bias is not None
    dt, log_decay = (t.float().transpose(1, 2).contiguous() for t in (inputs.dt, inputs.a))
    with torch.no_grad():
        y, phi, h, k, x = mamba3_siso_combined(
            Q=inputs.c.squeeze(2),
            K=inputs.b.squeeze(2),
            V=inputs.x,
            ADT=log_decay,
            DT=dt,
            Trap=inputs.lam.transpose(1, 2),
            Q_bias=params.c_bias.squeeze(1),
            K_bias=params.b_bias.squeeze(1),
            Angles=inputs.theta.unsqueeze(2).expand(-1, -1, call.problem.H, -1),
            D=params.d,
            Z=inputs.z,
            return_final_states=True,
        )
    call.y.copy_(y)
    call.final.h.copy_(h)
    call.final.phi.copy_(phi)
    call.final.k.copy_(k.unsqueeze(1))
    call.final.x.copy_(x)
