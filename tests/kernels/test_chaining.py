"""A sequence may be cut anywhere, decoded token by token or packed with others: nothing changes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.ops import decode, prefill
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.kernels.tensors import Inputs, State

L = 23
BACKENDS = ("reference", "torch")
# Sums of some 100 float64 terms, of angles and decays up to 1000: 1e-16 * 1000 * a few.
ROUNDING = 1e-12

MakeProblem = Callable[..., Problem]


def cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The inputs of some tokens; packed, because a batch stride is L token strides."""
    return inputs.map(lambda _, t: t[:, start:stop].contiguous())


def run_in_pieces(call: Call, pieces: list[tuple[int, bool]], backend: str) -> tuple[Tensor, State]:
    """Run a call piece by piece: (tokens, whether they are decoded one by one)."""
    p, state, ys, start = call.problem, call.state, [], 0
    for length, by_token in pieces:
        piece = cut(call.inputs, start, start + length)
        start += length
        if by_token and state is not None:
            state = state.map(lambda _, t: t.clone())  # decode updates it in place
            for t in range(length):
                token = piece.map(lambda _, v, t=t: v[:, t])
                y = decode(token, call.params, state, options=p.options, backend=backend)
                ys.append(y.unsqueeze(1))
        else:
            y, state = prefill(piece, call.params, state, options=p.options, backend=backend)
            ys.append(y)
    assert state is not None
    return torch.cat(ys, 1), state


def assert_same(y: Tensor, state: State, whole: Call) -> None:
    """Outputs and all four states, to rounding; angles as points of the circle."""
    truth = whole.results()
    got = {"y": y} | {f"state.{name}": tensor for name, tensor in state.items()}
    phi = got["state.phi"]
    got["state.phi"] = torch.stack((phi.cos(), phi.sin()), -1)
    for name, expected in truth.items():
        error = float((got[name] - expected).norm() / expected.norm().clamp(min=1))
        assert error <= ROUNDING, (name, error)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.sets(st.integers(1, L - 1)),
    decoded=st.lists(st.booleans(), min_size=L, max_size=L),
    seed=st.integers(0, 2**31),
    regime=st.sampled_from(REGIMES),
    R=st.sampled_from([1, 3]),
    pairing=st.sampled_from(["interleaved", "half"]),
    has_state=st.booleans(),
)
def test_any_chain_of_prefill_and_decode_is_one_prefill(
    make_problem: MakeProblem,
    run: Callable[..., Call],
    backend: str,
    cuts: set[int],
    decoded: list[bool],
    seed: int,
    regime: Any,
    R: int,
    pairing: Any,
    has_state: bool,
) -> None:
    """Cut anywhere, any number of times, each piece prefilled or decoded token by token."""
    problem = make_problem(
        "prefill", B=2, L=L, H=2, G=1, R=R, has_state=has_state, options=Options(pairing=pairing)
    )
    call = make_call(problem, seed, regime=regime)
    bounds = [0, *sorted(cuts), L]
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    y, state = run_in_pieces(call, list(zip(lengths, decoded, strict=False)), backend)
    assert_same(y, state, run(call, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**31),
    regime=st.sampled_from(REGIMES),
    has_state=st.booleans(),
)
def test_packed_sequences_are_independent(
    make_problem: MakeProblem,
    run: Callable[..., Call],
    backend: str,
    lengths: list[int],
    seed: int,
    regime: Any,
    has_state: bool,
) -> None:
    """Each packed sequence gives what it gives alone; an empty one keeps its state bit for bit."""
    problem = make_problem(
        "prefill", B=1, L=sum(lengths), H=2, G=1, R=2, lengths=tuple(lengths), has_state=has_state
    )
    call = make_call(problem, seed, regime=regime)
    packed = run(call, backend)
    start = 0
    for i, length in enumerate(lengths):
        state = call.state and call.state.map(lambda _, t, i=i: t[i : i + 1])
        final = packed.final.map(lambda _, t, i=i: t[i : i + 1])
        if length == 0:
            for name, tensor in final.items():
                kept = torch.zeros(()) if state is None else getattr(state, name)
                assert bool((tensor == kept).all()), name
            continue
        piece = cut(call.inputs, start, start + length)
        y, alone = prefill(piece, call.params, state, backend=backend)
        pairs = [(packed.y[:, start : start + length], y)]
        pairs += [(getattr(final, name), tensor) for name, tensor in alone.items()]
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)
        start += length
