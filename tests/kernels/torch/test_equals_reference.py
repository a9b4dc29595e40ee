"""The torch backend in float64 against the recurrence: the chunked form, and one step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem
from mamba3_bench.kernels.torch.prefill import Config
from mamba3_bench.reference.mamba3 import Decay, Norm, Pairing, Step

# Sums of some 100 float64 terms, of angles and decays up to 1000: 1e-16 * 1000 * a few.
ROUNDING = 1e-12

Errors = Callable[[Call, Call], dict[str, float]]
Run = Callable[..., Call]


@st.composite
def problems(draw: st.DrawFn, op: str) -> Problem:
    """Any float64 problem of a few dozen tokens, with any options and any optional tensors."""
    options = Options(
        *(draw(st.sampled_from(get_args(kind))) for kind in (Step, Decay, Norm, Pairing))
    )
    present = draw(st.sets(st.sampled_from(OPTIONAL)))
    present -= {"b_norm", "c_norm"} if options.norm == "normalised" else set()
    present -= {"dt_bias"} if options.step == "activated" else set()
    B, L, lengths, pool = draw(st.integers(1, 3)), draw(st.integers(1, 40)), None, None
    if op == "decode":
        L, pool = 1, draw(st.sampled_from([None, B, B + 2]))
    elif draw(st.booleans()):
        lengths = (*draw(st.lists(st.integers(0, 17), max_size=4)), draw(st.integers(1, 17)))
        B, L = 1, sum(lengths)
    G, N = draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3))
    return Problem(
        op=op, B=B, L=L, H=G * draw(st.integers(1, 2)), G=G, P=draw(st.integers(1, 5)), N=N,
        R=draw(st.integers(1, 4)), S=draw(st.sampled_from([N // 4, N // 2])),
        dtype=torch.float64, state_dtype=torch.float64, options=options,
        optional=tuple(name for name in OPTIONAL if name in present),
        theta_per_head=draw(st.booleans()), has_state=op == "decode" or draw(st.booleans()),
        lengths=lengths, pool=pool,
    )  # type: ignore[arg-type]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    problem=problems("prefill"),
    seed=st.integers(0, 2**31),
    regime=st.sampled_from(REGIMES),
    chunk_size=st.sampled_from([1, 2, 7, 16, 64]),
)
def test_chunked_prefill_is_the_recurrence(
    run: Run, relative_errors: Errors, problem: Problem, seed: int, regime: Any, chunk_size: int
) -> None:
    """Every output, for every option and packing, with chunks of one token to all and more."""
    call = make_call(problem, seed, regime=regime)
    errors = relative_errors(run(call, "torch", Config(chunk_size)), run(call, "reference"))
    assert all(error <= ROUNDING for error in errors.values()), errors


@settings(max_examples=60, deadline=None)
@given(problem=problems("decode"), seed=st.integers(0, 2**31), regime=st.sampled_from(REGIMES))
def test_decode_is_one_step_of_the_recurrence(
    run: Run, relative_errors: Errors, problem: Problem, seed: int, regime: Any
) -> None:
    """Every output and the whole pool, rows that take no part included."""
    call = make_call(problem, seed, regime=regime)
    errors = relative_errors(run(call, "torch"), run(call, "reference"))
    assert all(error <= ROUNDING for error in errors.values()), errors


@pytest.mark.parametrize("decay", [-torch.inf, -1e30, -800.0, -50.0])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_a_decay_to_nothing_leaves_numbers(
    make_problem: Callable[..., Problem],
    run: Run,
    relative_errors: Errors,
    seed: int,
    decay: float,
    chunk_size: int,
) -> None:
    """Some tokens forget everything before them: no NaN from inf - inf, and the right values."""
    problem = make_problem("prefill", options=Options(decay="log_decay"))
    call = make_call(problem, seed)
    a = call.inputs.a.clone()
    a[:, [0, 5, 6, 15]] = decay
    call = replace(call, inputs=replace(call.inputs, a=a))
    errors = relative_errors(run(call, "torch", Config(chunk_size)), run(call, "reference"))
    assert all(error <= ROUNDING for error in errors.values()), errors


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_no_input_is_changed(
    make_problem: Callable[..., Problem], run: Run, seed: int, op: str
) -> None:
    """Only what a call names as its outputs is written."""
    call = make_call(make_problem(op, R=2), seed)
    mine = run(call, "torch")
    kept = [(call.inputs, mine.inputs), (call.params, mine.params)]
    if op == "prefill":
        assert call.state is not None
        assert mine.state is not None
        kept.append((call.state, mine.state))
    for before, after in kept:
        for (name, old), (_, new) in zip(before.items(), after.items(), strict=True):
            assert torch.equal(old, new), name
