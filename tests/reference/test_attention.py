"""Attention: the float64 definition against PyTorch's own, and by hand."""

import math

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from mamba3_bench.reference import attention

B, L, H, G, N = 2, 9, 6, 3, 5


def test_equals_pytorch(rng: torch.Generator) -> None:
    """Causal, with groups; another implementation of the same formula."""
    q = torch.randn(B, L, H, N, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(B, L, G, N, generator=rng, dtype=torch.float64) for _ in range(2))
    heads_first = (t.transpose(1, 2) for t in (q, k, v))
    expected = scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    assert_close(attention.prefill(q, k, v), expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_by_hand() -> None:
    """Two tokens, one head: the first sees itself, the second both."""
    q = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    k = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    v = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    share = math.exp(6) / (math.exp(2) + math.exp(6))
    y = attention.prefill(q, k, v)
    assert_close(y.flatten(), torch.tensor([10.0, 10 + 10 * share], dtype=torch.float64))


def test_queries_are_the_last_tokens(rng: torch.Generator) -> None:
    """A single query over a cache is the last query of the whole sequence."""
    q = torch.randn(B, L, H, N, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(B, L, G, N, generator=rng, dtype=torch.float64) for _ in range(2))
    assert_close(attention.prefill(q[:, -1:], k, v), attention.prefill(q, k, v)[:, -1:])
