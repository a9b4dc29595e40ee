"""The rotation form is a diagonal SSM with complex eigenvalues, written here in complex numbers.

With a pair (u, v) of b read as u + iv and g_t = e^{-i phi_t} h_t, the rotated recurrence becomes

    g_t = e^{D_t (A_t - i theta_t)} (g_{t-1} + (1 - lam_t) D_t x_{t-1} b_{t-1}) + lam_t D_t x_t b_t
    y_t = sum over pairs of Re(conj(c_t) g_t)

in which no angle is ever accumulated, and nothing is rotated.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mamba3_bench.reference import mamba3

B, L, H, P, N, R = 2, 40, 3, 4, 8, 2
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def as_pairs(v: Tensor, S: int, pairing: str) -> tuple[Tensor, Tensor]:
    """The rotated pairs of v (..., N) as complex numbers (..., S), and the dims left over."""
    first = [2 * i if pairing == "interleaved" else i for i in range(S)]
    second = [2 * i + 1 if pairing == "interleaved" else i + N // 2 for i in range(S)]
    rest = [i for i in range(N) if i not in first + second]
    return torch.complex(v[..., first], v[..., second]), v[..., rest]


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("S", [N // 4, N // 2])
@pytest.mark.parametrize("per_head", [False, True], ids=["shared", "per_head"])
def test_rotation_is_a_complex_diagonal_ssm(
    rng: torch.Generator, pairing: mamba3.Pairing, S: int, per_head: bool
) -> None:
    """Outputs, the final state and its angles agree with complex arithmetic."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    x, b, c = normal(B, L, H, P), normal(B, L, R, H, N), normal(B, L, R, H, N)
    step, decay = normal(B, L, H).exp(), -normal(B, L, H).exp()  # angles turn many times
    mimo_x, lam = normal(H, R, P), normal(B, L, H)
    raw_theta = normal(B, L, H, S) if per_head else normal(B, L, S)
    y, final = mamba3.prefill(
        x, b, c, step, decay * step, lam, raw_theta, mimo_x=mimo_x,
        step="activated", decay="log_decay", norm="normalised", pairing=pairing,
    )  # fmt: skip

    theta = math.pi * torch.tanh(raw_theta if per_head else raw_theta.unsqueeze(2))
    eigenvalue = torch.complex(decay[..., None].expand(B, L, H, S), -theta.expand(B, L, H, S))
    transition = (step[..., None] * eigenvalue).exp()  # (B, L, H, S)
    mix = 1 / (1 + (-lam).exp())
    (b_pairs, b_rest), (c_pairs, c_rest) = as_pairs(b, S, pairing), as_pairs(c, S, pairing)

    def enter(t: int, v: Tensor) -> Tensor:
        """sum_r x_t,r v_t,r^T: (B, H, P, pairs or dims)."""
        x_r = (x[:, t, None] * mimo_x.transpose(0, 1)).to(v.dtype)  # (B, R, H, P)
        return torch.einsum("brhp,brhs->bhps", x_r, v[:, t])

    g = torch.zeros(B, H, P, S, dtype=torch.complex128)
    rest = torch.zeros(B, H, P, N - 2 * S, dtype=torch.float64)
    for t in range(L):
        before = ((1 - mix[:, t]) * step[:, t])[..., None, None]
        now = (mix[:, t] * step[:, t])[..., None, None]
        if t > 0:
            g, rest = g + before * enter(t - 1, b_pairs), rest + before * enter(t - 1, b_rest)
        g = transition[:, t, :, None] * g + now * enter(t, b_pairs)
        alpha = (decay[:, t] * step[:, t]).exp()[..., None, None]
        rest = alpha * rest + now * enter(t, b_rest)
        expected = torch.einsum("brhs,bhps->brhp", c_pairs[:, t].conj(), g).real
        expected = expected + torch.einsum("brhn,bhpn->brhp", c_rest[:, t], rest)
        assert_close(y[:, t], expected, **ROUNDING)

    turn = torch.polar(torch.ones(B, H, S, dtype=torch.float64), final.phi)
    h_pairs, h_rest = as_pairs(final.h, S, pairing)
    assert_close(h_pairs, turn.unsqueeze(2) * g, **ROUNDING)
    assert_close(h_rest, rest, **ROUNDING)
    total = (step[..., None] * theta).sum(1)
    assert_close(turn, torch.polar(torch.ones_like(total), total), **ROUNDING)
    assert bool(((final.phi >= 0) & (final.phi < 2 * math.pi)).all())
