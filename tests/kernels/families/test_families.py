"""Families: their yardsticks pass their own gates; their bytes and FLOPs are counted by hand."""

from dataclasses import replace

import pytest
import torch

from mamba3_bench.bench.gate import Gate
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.family import Rows, family, make_call, ops

CPU = torch.device("cpu")
PLAIN = [op for op in ops() if "." in op]
B, L, H, G, P, N = 2, 37, 4, 2, 32, 16


def problem(op, **axes):
    """A small problem with every dim different."""
    sizes = {"batch": (B,), "length": (L,), "heads": (H,), "groups": (G,)}
    (found,) = problems(Axes(op=op, **(sizes | {"state": (N,), "head_size": (P,)} | axes)))
    return found


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("op", PLAIN)
def test_yardstick_is_right_in_every_hard_case(op, dtype, seed):
    """PyTorch in the same dtypes, judged by itself against the float64 truth: all is written."""
    case = problem(op, dtype=(dtype,))
    for hard in family(op).hard_cases(case):
        gate = Gate(hard.call(seed, CPU), seed)
        call = gate.pristine.clone()
        call.poison()
        registry.get(op, "torch").run(call, None)
        verdict = gate.judge(call)
        assert verdict.status == "ok", f"{hard}: {verdict.reason}"


@pytest.mark.parametrize("op", PLAIN)
def test_float64_yardstick_is_the_reference(op, seed):
    """The same formulas in another order: float64 leaves only the rounding of float64."""
    case = replace(problem(op), dtype=torch.float64, state_dtype=torch.float64)
    calls = [make_call(case, seed) for _ in range(2)]
    for call, backend in zip(calls, ("torch", "reference"), strict=True):
        call.poison()
        registry.get(op, backend).run(call, None)
    for name, result in calls[0].outputs().items():
        torch.testing.assert_close(result, calls[1].outputs()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", PLAIN)
def test_rows_are_independent(op, seed):
    """Restricted to some rows and heads a call computes the same there."""
    rows = Rows((1,), (0, 3))
    whole = make_call(problem(op), seed)
    part = whole.take(rows)
    for call in (whole, part):
        registry.get(op, "torch").run(call, None)
    for name, result in whole.take(rows).outputs().items():
        assert torch.equal(result, part.outputs()[name]), name


@pytest.mark.parametrize("op", ops())
def test_clone_shares_nothing(op, seed):
    """Every tensor of a clone is a copy; poison reaches what is only written."""
    call = make_call(problem(op), seed)
    clone = call.clone()
    before = {name: tensor.clone() for name, tensor in call.tensors().items()}
    for tensor in clone.tensors().values():
        tensor.zero_()
    for name, tensor in call.tensors().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name
    call.poison()
    assert call.y.isnan().all()
    assert call.in_place == op.endswith("decode")


TOKENS = B * L
COUNTED = {  # bytes in bf16 with a float32 state, FLOPs
    "mamba2.prefill": (
        # x, z, y; b, c; dt; decay, dt_bias, d; the state written
        2 * TOKENS * (3 * H * P + 2 * G * N + H) + 4 * 3 * H + 4 * B * H * P * N,
        # q k^T and scores x over 64 columns; q S and the update: two each of N P multiply-adds
        TOKENS * H * (2 * 64 * N + 2 * 64 * P + 2 * N * P + 2 * N * P),
    ),
    "mamba2.decode": (
        2 * B * (3 * H * P + 2 * G * N + H) + 4 * 3 * H + 2 * 4 * B * H * P * N,
        B * H * 5 * P * N,
    ),
    "gdn.prefill": (
        2 * TOKENS * (2 * H * P + 2 * G * N + 2 * H) + 4 * 2 * H + 4 * B * H * P * N,
        # k k^T, T k, q k^T of N; T v, scores v' of P; w S, S q, the update
        TOKENS * H * 2 * (64 * (3 * N + 2 * P) + 3 * N * P),
    ),
    "gdn.decode": (
        2 * B * (2 * H * P + 2 * G * N + 2 * H) + 4 * 2 * H + 2 * 4 * B * H * P * N,
        B * H * 7 * P * N,
    ),
    # q, y of H heads; k, v of G heads; scores and values of L (L + 1) / 2 pairs
    "attention.prefill": (2 * TOKENS * (2 * H + 2 * G) * P, B * H * (L * (L + 1) // 2) * 4 * P),
    # and the cache, read once
    "attention.decode": (2 * B * (2 * H + 2 * G) * P + 2 * B * L * 2 * G * P, B * H * L * 4 * P),
}


@pytest.mark.parametrize("op", PLAIN)
def test_bytes_and_flops_by_hand(op):
    """Each input once, each output and state once; a decode step reads and writes its state."""
    assert (problem(op).bytes, problem(op).flops) == COUNTED[op]


@pytest.mark.parametrize("op", PLAIN)
def test_bytes_are_those_of_the_tensors(op):
    """A prefill that goes on from a state reads it; nothing else is counted."""
    case = problem(op, initial_state=("yes",))
    call = make_call(case, 0)
    expected = sum(tensor.nbytes for tensor in call.tensors().values())
    if call.in_place and op != "attention.decode":
        expected += sum(tensor.nbytes for tensor in call.final.values())
    assert case.bytes == expected


def test_mamba3_is_a_family_too():
    """Its calls answer what the bench asks of any call."""
    call = make_call(problem("decode"), 0)
    assert isinstance(call, Call)
    assert call.batch_rows() == [0, 1]
    assert call.kept() == {}
