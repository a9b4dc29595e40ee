"""Prefill in plain PyTorch: the chunked form, one chunk after the other.

Inside a chunk, with s_i = sum_{m<=i} A_m D_m and column weights
w_j = gamma_j + (1 - lam_{j+1}) D_{j+1} (second term 0 at a sequence's last token):

    y_i,r = e^{s_i} carry q_i,r + sum_{j<=i} M_ij sum_r' (q_i,r . k_j,r') x_j,r' + d x_i,r
    M_ij  = e^{s_i - s_j} w_j for j < i, gamma_i for j = i
    carry = e^{s_C} carry + sum_j e^{s_C - s_j} w_j sum_r x_j,r k_j,r^T    (for the next chunk)

Between chunks `carry` holds the next token's look-ahead too, so only the last one is h.
Sums, angles, decays and carry are float32 (float64 for float64 inputs); the operands of the matrix
products are rounded as `precision.operand_rounding` says. MIMO's columns are (token, rank) pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import Call
from ..errors import OptionError
from ..problem import Problem
from ..registry import implements
from ..tensors import Inputs, Params, State
from .activations import Steps, angle_steps, by_rank, keys, output, rotate, steps, whole_turns_off
from .precision import Rounding, full_float32, operand_rounding, wide


@dataclass(frozen=True, slots=True)
class Config:
    """How the sequence is cut."""

    chunk_size: int = 64  # tokens

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            got, remedy = str(self.chunk_size), "choose a chunk of some tokens"
            raise OptionError("config.chunk_size", "1 or more", got, remedy)


def configs(problem: Problem, device: torch.device) -> Iterator[Config]:
    """First chunks of 64 (token, rank) columns, as more make a larger mask; on a GPU, where a chunk
    of any size costs its launches, of 64 tokens.

    None of 128 tokens: differences of so long sums of strong decays miss the gate in float32.
    """
    best = 64 if device.type == "cuda" else max(64 // problem.R, 8)
    yield Config(best)
    yield from (Config(size) for size in (16, 32, 64) if size != best)


def supports(problem: Problem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("prefill", "torch", supports=supports, configs=configs, gradients=True)
def prefill(call: Call, config: Config) -> None:
    """Run each sequence of the call, all its rows and heads at once."""
    outs, finals = [], []
    with full_float32():
        for inputs, state in sequences(call):
            y, final = run(inputs, call.params, state, call.problem, config.chunk_size)
            outs.append(y)
            finals.append(final)
    call.y.copy_(torch.cat(outs, 1))
    for name, to in call.final.items():
        to.copy_(torch.cat([getattr(final, name) for final in finals]))


def sequences(call: Call) -> Iterator[tuple[Inputs, State]]:
    """The inputs and initial state of the whole batch, or of each packed sequence by itself."""
    p, dtype = call.problem, wide(call.problem.dtype)
    state = call.state
    if state is None:
        state = call.final.map(lambda _, t: torch.zeros_like(t))
    state = state.map(lambda _, t: t.to(dtype))
    if p.lengths is None:
        yield call.inputs, state
        return
    start = 0
    for i, length in enumerate(p.lengths):
        yield tokens(call.inputs, start, start + length), state.map(lambda _, t, i=i: t[i : i + 1])
        start += length


def tokens(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The inputs of tokens start to stop."""
    return inputs.map(lambda _, t: t[:, start:stop])


def run(
    inputs: Inputs, params: Params, state: State, problem: Problem, chunk_size: int
) -> tuple[Tensor, State]:
    """One sequence per row, chunk by chunk; returns y and the final state, unrounded."""
    p, L = problem, inputs.x.shape[1]
    rounded = operand_rounding(p)
    scalars = steps(inputs, params, p.options)
    ahead = scalars.behind[:, 1:]
    weight = torch.cat((scalars.gamma[:, :-1] + ahead, scalars.gamma[:, -1:]), 1)  # (B, L, H)

    phi, carry, k, x = state.phi, state.h, state.k, state.x
    outs = []
    if L > 0:
        x_r = by_rank(x, params.mimo_x, p.R)  # (B, R, H, P)
        first = torch.einsum("brhp,brhn->bhpn", x_r, k)  # of the token before
        carry = carry + scalars.behind[:, 0, :, None, None] * first
    for start in range(0, L, chunk_size):
        at = slice(start, min(start + chunk_size, L))
        part = tokens(inputs, at.start, at.stop)
        x = part.x.to(carry.dtype)  # (B, C, H, P)
        x_r = by_rank(x, params.mimo_x, p.R)  # (B, C, R, H, P)
        phi = whole_turns_off(phi.unsqueeze(1) + angle_sums(part, scalars, at))  # (B, C, H, S)
        k = rotate(keys(part.b, params.b_norm, params.b_bias, p.H, p.options), phi, p.options)
        q = rotate(keys(part.c, params.c_norm, params.c_bias, p.H, p.options), phi, p.options)

        y, carry = chunk(
            rounded, columns(q), columns(k), columns(x_r), carry,
            *(v[:, at].transpose(1, 2) for v in (scalars.log_decay, scalars.gamma, weight)),
        )  # fmt: skip
        y = y.view(len(y), p.H, -1, p.R, p.P).permute(0, 2, 3, 1, 4)  # (B, C, R, H, P)
        if params.d is not None:
            y = y + params.d[:, None] * x_r
        outs.append(output(y, part.z, params))
        phi, k, x = phi[:, -1], k[:, -1], x[:, -1]
    empty = (p.H, p.P) if p.reduced else (p.R, p.H, p.P)
    y = torch.cat(outs, 1) if outs else x.new_empty(x.shape[0], 0, *empty)
    return y, State(phi, carry, k, x)


def angle_sums(part: Inputs, scalars: Steps, at: slice) -> Tensor:
    """How far the angles have turned since the chunk began, (B, C, H, S)."""
    return running_sum(angle_steps(part.theta, scalars.step[:, at]), 1)


def columns(v: Tensor) -> Tensor:
    """(B, C, R, H, N) -> (B, H, C R, N)."""
    return v.permute(0, 3, 1, 2, 4).flatten(2, 3)


def chunk(
    rounded: Rounding,
    q: Tensor,
    k: Tensor,
    x: Tensor,
    carry: Tensor,
    log_decay: Tensor,
    gamma: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """The matrix products of one chunk.

    q, k (B, H, C R, N); x (B, H, C R, P); carry (B, H, P, N); log_decay, gamma, weight (B, H, C).
    Returns y (B, H, C R, P) without the skip, and the next carry.
    """
    C, R = log_decay.shape[-1], q.shape[-2] // log_decay.shape[-1]
    s = running_sum(log_decay, -1)  # (B, H, C), never rises
    before = torch.ones(C, C, dtype=torch.bool, device=q.device).tril(-1)
    falls = (s.unsqueeze(-1) - s.unsqueeze(-2)).masked_fill(~before, -torch.inf)
    mask = falls.exp() * weight.unsqueeze(-2) + torch.diag_embed(gamma)  # (B, H, C, C)
    by_token = s.repeat_interleave(R, -1).unsqueeze(-1)  # (B, H, C R, 1)
    to_end = ((s[..., -1:] - s).exp() * weight).repeat_interleave(R, -1).unsqueeze(-1)

    q, k = rounded(q), rounded(k)
    scores = (q @ k.mT).view(*s.shape, R, C, R) * mask[..., :, None, :, None]
    scores = scores.flatten(-2).flatten(-3, -2)  # (B, H, C R, C R)
    y = by_token.exp() * (q @ rounded(carry).mT) + rounded(scores) @ rounded(x)
    carry = s[..., -1, None, None].exp() * carry + rounded(to_end * x).mT @ k
    return y, carry


def running_sum(v: Tensor, dim: int) -> Tensor:
    """The inclusive sum along a dim by doubling: the same order, so the same bits, everywhere."""
    shift, size = 1, v.shape[dim]
    while shift < size:
        head, tail = v.narrow(dim, 0, shift), v.narrow(dim, shift, size - shift)
        v = torch.cat((head, tail + v.narrow(dim, 0, size - shift)), dim)
        shift *= 2
    return v
