"""Gated DeltaNet: the recurrence against its definition, and as other recurrences."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mamba3_bench.reference import gated_deltanet, mamba2

B, L, H, G, P, N = 2, 11, 6, 3, 5, 7
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # sums of about 100 float64 terms of size 1 to 10


def draw(rng: torch.Generator) -> dict[str, Tensor]:
    """Raw inputs of a layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "q": normal(B, L, G, N),
        "k": normal(B, L, G, N),
        "v": normal(B, L, H, P),
        "a": normal(B, L, H),
        "b": normal(B, L, H),
        "decay": -normal(H).exp(),
        "dt_bias": normal(H),
        "h": normal(B, H, P, N),
    }


def test_equals_its_product_form(rng: torch.Generator) -> None:
    """h_t = alpha_t h_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, as the paper writes it."""
    raw = draw(rng)
    y, h = gated_deltanet.prefill(**raw)
    for row in range(B):
        for head in range(H):
            state, group = raw["h"][row, head], head // (H // G)
            for t in range(L):
                k, q = (raw[name][row, t, group] for name in "kq")
                k, q = (u / math.sqrt(float(u @ u) + 1e-6) for u in (k, q))
                raised = float(raw["a"][row, t, head] + raw["dt_bias"][head])
                alpha = math.exp(float(raw["decay"][head]) * math.log1p(math.exp(raised)))
                beta = 1 / (1 + math.exp(-float(raw["b"][row, t, head])))
                kept = torch.eye(N, dtype=torch.float64) - beta * torch.outer(k, k)
                state = alpha * state @ kept + beta * torch.outer(raw["v"][row, t, head], k)
                assert_close(y[row, t, head], state @ q / math.sqrt(N), **ROUNDING)
            assert_close(h[row, head], state, **ROUNDING)


def test_a_full_write_is_read_back(rng: torch.Generator) -> None:
    """With beta = 1 the state answers a key with the value last written under it."""
    raw = draw(rng) | {"b": torch.full((B, L, H), 60.0)}
    raw["q"] = raw["k"]
    y, _ = gated_deltanet.prefill(**raw)
    unit = gated_deltanet.normalised(raw["k"]).square().sum(-1, keepdim=True)  # 1 but for eps
    assert_close(
        y, raw["v"] * unit.repeat_interleave(H // G, 2) / math.sqrt(N), rtol=1e-5, atol=1e-5
    )


def test_orthogonal_keys_make_it_mamba2(rng: torch.Generator) -> None:
    """The delta rule then corrects nothing: what is left is a decayed sum, as in Mamba-2."""
    raw = draw(rng)
    raw["k"] = torch.eye(N, dtype=torch.float64)[torch.arange(L) % N].expand(B, G, L, N)
    raw["k"] = raw["k"].transpose(1, 2)
    raw = {
        name: tensor[:, :N] if tensor.ndim > 2 and name != "h" else tensor
        for name, tensor in raw.items()
    }
    raw["h"] = None
    y, h = gated_deltanet.prefill(**raw)
    beta, step = raw["b"].sigmoid(), torch.nn.functional.softplus(raw["a"] + raw["dt_bias"])
    # Mamba-2 writes D x b^T where this writes beta v k^T
    q, k = (gated_deltanet.normalised(raw[name]) for name in "qk")
    x = raw["v"] * (beta / step).unsqueeze(-1)
    same_y, same_h = mamba2.prefill(
        x, k, q / math.sqrt(N), raw["a"], raw["decay"], dt_bias=raw["dt_bias"]
    )
    assert_close(y, same_y, **ROUNDING)
    assert_close(h, same_h, **ROUNDING)


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_pieces_join(rng: torch.Generator, cut: int) -> None:
    """The state of the first piece continues into the second."""
    raw = draw(rng)
    y, h = gated_deltanet.prefill(**raw)
    tokens = ("q", "k", "v", "a", "b")
    first = raw | {name: raw[name][:, :cut] for name in tokens}
    y_first, between = gated_deltanet.prefill(**first)
    rest = raw | {name: raw[name][:, cut:] for name in tokens} | {"h": between}
    y_rest, end = gated_deltanet.prefill(**rest)
    assert_close(torch.cat((y_first, y_rest), 1), y, **ROUNDING)
    assert_close(end, h, **ROUNDING)
