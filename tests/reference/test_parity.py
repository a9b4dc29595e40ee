"""State tracking: a rotation counts modulo 2, and a positive real decay cannot."""

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba3_bench.reference import mamba3

BITS = 4096


def read_out(
    turn: Tensor, *, x: Tensor | None = None, a: Tensor | None = None, h: float = 1.0
) -> Tensor:
    """y (B, L) of one head with P = 1 and one rotated pair, D = 1, lam = 1, b = c = (1, 0).

    turn (B, L): the rotation of each token, 0 or pi. x (B, L): the input, 0 if absent.
    a (B, L): the log decay; if absent the decay is at the floor of the activation, A = -1e-4.
    h: what the state holds before the first token, along (1, 0).
    """
    B, L = turn.shape
    east = torch.tensor([1.0, 0.0, 0.0, 0.0])
    start = mamba3.State(
        phi=torch.zeros(B, 1, 1), h=h * east.expand(B, 1, 1, 4),
        k=torch.zeros(B, 1, 1, 4), x=torch.zeros(B, 1, 1),
    )  # fmt: skip
    y, _ = mamba3.prefill(
        x=torch.zeros(B, L, 1, 1) if x is None else x.view(B, L, 1, 1),
        b=east.expand(B, L, 1, 1, 4), c=east.expand(B, L, 1, 1, 4),
        dt=torch.ones(B, L, 1),
        a=torch.full((B, L, 1), -1e9) if a is None else a.view(B, L, 1),
        lam=torch.full((B, L, 1), math.inf),
        theta=(turn / math.pi).atanh().unsqueeze(-1),  # pi tanh(theta) is the turn
        state=start, step="activated", decay="heavy_tail" if a is None else "log_decay",
        norm="normalised",
    )  # fmt: skip
    return y[:, :, 0, 0]


def random_bits(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """BITS fair bits and the parity of each prefix."""
    bits = torch.randint(2, (BITS,), generator=rng)
    return bits, bits.cumsum(0) % 2


def test_a_half_turn_per_one_bit_tracks_parity(rng: torch.Generator) -> None:
    """The sign of the read-out is the parity of all bits so far, at each of 4096 prefixes.

    Exactly: a half turn twice is no turn, and |y| is the decay alone.
    """
    bits, parity = random_bits(rng)
    y = read_out(math.pi * bits.double().unsqueeze(0))[0]
    assert torch.equal(y < 0, parity == 1)
    decay = (-1e-4 * torch.arange(1, BITS + 1, dtype=torch.float64)).exp()
    assert torch.allclose(y.abs(), decay, rtol=1e-12, atol=0)


def test_without_rotation_the_same_read_out_is_at_chance(rng: torch.Generator) -> None:
    """theta = 0 leaves nothing of the bits: any threshold, either way up, is right half the time.

    y falls steadily, so a threshold cuts the 4096 prefixes in two. By Hoeffding's bound over all
    cuts and both ways up, more than 1/2 + e of fair labels right has probability at most
    2 * 4097 * exp(-2 * 4096 e^2): 1e-5 for e = 0.05.
    """
    bits, parity = random_bits(rng)
    y = read_out(torch.zeros(1, BITS, dtype=torch.float64))[0]
    assert float((parity[y < 0] == 1).sum() + (parity[y >= 0] == 0).sum()) / BITS < 0.55
    ranked = parity[y.argsort()]
    odd_below = torch.cat((torch.zeros(1), ranked.cumsum(0)))
    even_above = (1 - ranked).sum() - torch.cat((torch.zeros(1), (1 - ranked).cumsum(0)))
    right = (odd_below + even_above) / BITS  # of each cut; 1 - right the other way up
    assert float(torch.maximum(right, 1 - right).max()) < 0.55
    assert int(bits.sum()) > 0


LOG_DECAY = st.floats(-5, 0)
SIZE = st.floats(-10, 10)


@settings(max_examples=100, deadline=None)
@given(decays=st.tuples(LOG_DECAY, LOG_DECAY), inputs=st.tuples(SIZE, SIZE), h=SIZE)
def test_no_positive_decay_separates_parity(
    decays: tuple[float, float], inputs: tuple[float, float], h: float
) -> None:
    """Let each bit choose decay and input freely: no threshold tells odd from even two-bit strings.

    Each bit maps the state by an increasing function. Were odd above even after the second bit,
    then after the first bit odd would be above even by a second 0, and below it by a second 1.
    """
    strings = torch.tensor(list(itertools.product((0, 1), repeat=2)))
    odd = strings.sum(1) % 2 == 1
    a, x = torch.tensor(decays).double()[strings], torch.tensor(inputs).double()[strings]
    y = read_out(torch.zeros(4, 2, dtype=torch.float64), x=x, a=a, h=h)[:, -1]
    assert not bool(y[odd].min() > y[~odd].max())
    assert not bool(y[odd].max() < y[~odd].min())
    turned = read_out(math.pi * strings.double())[:, -1]
    assert bool(turned[odd].max() < turned[~odd].min())
