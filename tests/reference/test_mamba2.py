"""Mamba-2: the recurrence against its closed form, and as a special case of Mamba-3."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mamba3_bench.reference import mamba2, mamba3

B, L, H, G, P, N = 2, 13, 6, 3, 5, 8
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # sums of about 100 float64 terms of size 1 to 10


def draw(rng: torch.Generator) -> dict[str, Tensor]:
    """Raw inputs of a Mamba-2 layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "x": normal(B, L, H, P),
        "b": normal(B, L, G, N),
        "c": normal(B, L, G, N),
        "dt": normal(B, L, H),
        "decay": -normal(H).exp(),
        "z": normal(B, L, H, P),
        "dt_bias": normal(H),
        "d": normal(H),
        "h": normal(B, H, P, N),
    }


def test_equals_its_attention_form(rng: torch.Generator) -> None:
    """y_i = sum_{j<=i} exp(A sum_{j<m<=i} D_m) D_j (c_i . b_j) x_j, and h_0's share, unrolled."""
    raw = draw(rng)
    y, h = mamba2.prefill(**raw)
    for head in range(H):
        x, z = raw["x"][:, :, head], raw["z"][:, :, head]
        b, c = raw["b"][:, :, head // (H // G)], raw["c"][:, :, head // (H // G)]
        step = (raw["dt"][:, :, head] + raw["dt_bias"][head]).exp().log1p()  # (B, L)
        s = raw["decay"][head] * step.cumsum(1)
        reach = (s[:, :, None] - s[:, None, :]).exp() * step[:, None, :]  # (B, i, j)
        scores = (reach * torch.einsum("bin,bjn->bij", c, b)).tril()
        carried = torch.einsum("bi,bpn,bin->bip", s.exp(), raw["h"][:, head], c)
        gate = z / (1 + (-z).exp())
        assert_close(y[:, :, head], (scores @ x + carried + raw["d"][head] * x) * gate, **ROUNDING)
        last = torch.einsum("bj,bjp,bjn->bpn", reach[:, -1], x, b)
        assert_close(h[:, head], s[:, -1, None, None].exp() * raw["h"][:, head] + last, **ROUNDING)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_is_mamba3_without_trapezoid_and_rotation(
    rng: torch.Generator, pairing: mamba3.Pairing
) -> None:
    """lam = 1 and theta = 0 leave exactly Mamba-2's recurrence."""
    raw = draw(rng)
    y, h = mamba2.prefill(**raw)
    step = (raw["dt"] + raw["dt_bias"]).exp().log1p()
    start = mamba3.State(
        phi=torch.zeros(B, H, N // 4),
        h=raw["h"],
        k=torch.full((B, 1, H, N), 1e6),  # with lam = 1 the token before has no weight
        x=torch.full((B, H, P), 1e6),
    )
    y3, final = mamba3.prefill(
        raw["x"], raw["b"].unsqueeze(2), raw["c"].unsqueeze(2),
        dt=raw["dt"], a=raw["decay"] * step, lam=torch.full((B, L, H), math.inf),
        theta=torch.zeros(B, L, N // 4), z=raw["z"], dt_bias=raw["dt_bias"], d=raw["d"],
        state=start, decay="log_decay", norm="normalised", pairing=pairing,
    )  # fmt: skip
    assert_close(y3, y, **ROUNDING)
    assert_close(final.h, h, **ROUNDING)


def test_trapezoid_and_rotation_make_a_difference(rng: torch.Generator) -> None:
    """The equality above is not for want of sensitivity: lam = 0.9 or theta = 0.1 break it."""
    raw = draw(rng)
    step = (raw["dt"] + raw["dt_bias"]).exp().log1p()
    y, _ = mamba2.prefill(**{**raw, "h": None})
    for logit, rate in ((math.log(9), 0.0), (math.inf, 0.1)):
        y3, _ = mamba3.prefill(
            raw["x"], raw["b"].unsqueeze(2), raw["c"].unsqueeze(2),
            dt=raw["dt"], a=raw["decay"] * step, lam=torch.full((B, L, H), logit),
            theta=torch.full((B, L, N // 4), rate), z=raw["z"], dt_bias=raw["dt_bias"],
            d=raw["d"], decay="log_decay", norm="normalised",
        )  # fmt: skip
        assert float((y3 - y).norm() / y.norm()) > 1e-2
