"""FLOPs and bytes of a problem, against counts made without its formulas."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.problem import CHUNK_COLUMNS, OPTIONAL, Options, Problem
from mamba3_bench.kernels.torch.prefill import Config

MakeProblem = Callable[..., Problem]

VARIANTS = [
    {},
    {"R": 3, "G": 1},
    {"optional": ()},
    {"R": 4, "optional": ("z", "mimo_x")},
    {"theta_per_head": True, "S": 2},
    {"dtype": torch.bfloat16, "state_dtype": torch.float32},
    {"dtype": torch.float16, "state_dtype": torch.float16, "R": 2},
    {"dtype": torch.float32, "state_dtype": torch.bfloat16},
]


def moved(call: Call) -> int:
    """The bytes of a call, tensor by tensor: each input read once, each output written once."""

    def size(tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    tensors = [t for part in (call.inputs, call.params) for _, t in part.items()]
    total = sum(size(t) for t in tensors) + size(call.y)
    states = [state for state in (call.state, call.final) if state is not None]
    if call.problem.pool is not None:  # only the rows of the batch move
        states = [s.map(lambda _, t: t[: call.problem.B]) for s in states]
    return total + sum(size(t) for state in states for _, t in state.items())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"op": "prefill"},
        {"op": "prefill", "has_state": False},
        {"op": "prefill", "B": 1, "lengths": (3, 0, 20)},
        {"op": "decode"},
        {"op": "decode", "pool": 9},
    ],
    ids=str,
)
def test_bytes_are_those_of_the_tensors(
    make_problem: MakeProblem, shape: dict[str, object], variant: dict[str, object]
) -> None:
    """Enumerated from the tensors of a call; index tensors are too small to count."""
    problem = make_problem(**shape, **variant)
    assert problem.bytes == moved(make_call(problem, 0))


@pytest.mark.parametrize("R", [1, 2, 4])
def test_prefill_flops_are_those_of_its_matrix_products(make_problem: MakeProblem, R: int) -> None:
    """PyTorch's own counter sees each chunk of the chunked form make as many.

    Two more chunks are counted, so that what a sequence does once is not.
    """
    counts, expected = [], []
    for chunks in (1, 3):
        problem = make_problem("prefill", R=R, L=chunks * CHUNK_COLUMNS // R)
        call = make_call(problem, 0)
        with FlopCounterMode(display=False) as counter:
            registry.get("prefill", "torch").run(call, Config(CHUNK_COLUMNS // R))
        counts.append(counter.get_total_flops())
        expected.append(problem.flops)
    assert counts[1] - counts[0] == expected[1] - expected[0] == 2 * expected[0]


@pytest.mark.parametrize("R", [1, 2, 4])
def test_decode_flops_are_those_of_the_recurrence(make_problem: MakeProblem, R: int) -> None:
    """Counted by doing it: one element of the state at a time, in scalars that count."""
    p = make_problem("decode", R=R, B=2, H=2, G=1, P=2, N=4)
    count = 0
    for _ in itertools.product(range(p.B), range(p.H), range(p.P), range(p.N)):
        count += 1  # alpha h
        for _rank in range(R):
            count += 2  # + (beta x_{t-1,r}) k_{t-1,r}
            count += 2  # + (gamma x_t,r) k_t,r
            count += 2  # y_t,r += h q_t,r
    assert p.flops == count


def test_as_dict_is_plain_and_tells_problems_apart(make_problem: MakeProblem) -> None:
    """Every field reaches the record, as a value that JSON holds; no two problems look alike."""
    problem = make_problem("prefill", B=1, lengths=(20, 3))
    plain = problem.as_dict()
    named = {f.name for f in fields(Problem)} - {"options"}
    named |= {f"option.{f.name}" for f in fields(Options)}
    assert set(plain) == named
    kinds = (int, str, bool, list, type(None))
    assert all(isinstance(value, kinds) for value in plain.values())
    assert (plain["dtype"], plain["option.pairing"]) == ("float64", "interleaved")
    for other in (
        replace(problem, lengths=(3, 20)),
        replace(problem, options=Options(pairing="half")),
        replace(problem, options=Options(matmul="tf32")),
        replace(problem, state_dtype=torch.float32),
        replace(problem, optional=OPTIONAL[1:]),
    ):
        assert other.as_dict() != plain
