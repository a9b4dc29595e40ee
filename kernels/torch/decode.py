"""Decode in plain PyTorch: one step of the recurrence.

Everything is float32 (float64 for float64 inputs) and rounded once, when it is stored: the step
moves the state, and has no large matrix product that would gain from narrow operands.
"""

import torch
from torch import Tensor

from ..call import Call
from ..problem import Problem
from ..registry import Config, implements
from .activations import angle_steps, by_rank, keys, output, rotate, steps, whole_turns_off
from .precision import full_float32, wide


def supports(problem: Problem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("decode", "torch", supports=supports, gradients=True)
def decode(call: Call, config: Config) -> None:
    """Advance every row by one token, and its state in place; padding rows are left alone.

    h_t = alpha_t h_{t-1} + beta_t sum_r x_{t-1,r} k_{t-1,r}^T + gamma_t sum_r x_t,r k_t,r^T
    y_t = h_t q_t + d x_t
    """
    assert call.state is not None
    p, params, options = call.problem, call.params, call.problem.options
    dtype = wide(p.dtype)
    rows: Tensor | slice = slice(None)  # of the state
    picked: Tensor | slice = slice(None)  # of the batch
    if call.state_indices is not None:
        picked = (call.state_indices >= 0).nonzero()[:, 0]
        rows = call.state_indices[picked].long()
    inputs = call.inputs.map(lambda _, t: t[picked])
    # copied, because autograd keeps what the in-place update below overwrites
    old = call.state.map(lambda _, t: t[rows].to(dtype, copy=True))

    scalars = steps(inputs, params, options)  # (B, H)
    phi = whole_turns_off(old.phi + angle_steps(inputs.theta, scalars.step))
    k = rotate(keys(inputs.b, params.b_norm, params.b_bias, p.H, options), phi, options)
    q = rotate(keys(inputs.c, params.c_norm, params.c_bias, p.H, options), phi, options)
    x = inputs.x.to(dtype)
    x_r, old_x_r = (by_rank(v, params.mimo_x, p.R) for v in (x, old.x))  # (B, R, H, P)

    alpha = scalars.log_decay.exp()
    with full_float32():
        h = alpha[..., None, None] * old.h
        for weight, v, key in ((alpha * scalars.behind, old_x_r, old.k), (scalars.gamma, x_r, k)):
            h = h + weight[..., None, None] * torch.einsum("brhp,brhn->bhpn", v, key)
        y = torch.einsum("bhpn,brhn->brhp", h, q)
    if params.d is not None:
        y = y + params.d[:, None] * x_r

    call.y[picked] = output(y, inputs.z, params).to(call.y.dtype)
    for (_, to), new in zip(call.state.items(), (phi, h, k, x), strict=True):
        to[rows] = new.to(to.dtype)
