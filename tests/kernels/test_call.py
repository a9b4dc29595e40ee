"""Calls: clones, subsets of rows, pools and padding, for every backend that runs here."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call, Rows, token_stride
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import decode_call, prefill_call
from mamba3_bench.kernels.problem import Problem

MakeProblem = Callable[..., Problem]
Run = Callable[..., Call]

CPU = torch.device("cpu")
EVERY = [(op, backend) for op in ("prefill", "decode") for backend in registry.backends(op)]


def small(make_problem: MakeProblem, op: str, backend: str, **fields: object) -> Problem:
    """A problem that the backend takes here, or the test is skipped with its reason."""
    problem = make_problem(op, **fields)
    narrow = {
        "P": 32, "N": 16, "dtype": torch.float32, "state_dtype": torch.float32,
        "optional": tuple(n for n in problem.optional if not n.startswith("mimo")),
    }  # fmt: skip
    for candidate in (problem, replace(problem, **narrow)):
        if registry.refusal(op, backend, candidate, CPU) is None:
            return candidate
    pytest.skip(str(registry.refusal(op, backend, candidate, CPU)))


def rechecked(call: Call) -> Problem:
    """The problem that validation makes of a call's tensors."""
    p = call.problem
    if p.op == "decode":
        assert call.state is not None
        arguments = (call.inputs, call.params, call.state, call.state_indices, p.options)
        return decode_call(*arguments).problem
    return prefill_call(
        call.inputs, call.params, call.state, call.cu_seqlens, p.options, p.state_dtype
    ).problem


@pytest.mark.parametrize(("op", "backend"), EVERY)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_head", [False, True], ids=["theta_shared", "theta_per_head"])
def test_rows_are_independent(
    make_problem: MakeProblem,
    run: Run,
    relative_errors: Callable[[Call, Call], dict[str, float]],
    seed: int,
    op: str,
    backend: str,
    packed: bool,
    per_head: bool,
) -> None:
    """Some rows of a whole run equal the run of these rows, and those are a valid call."""
    if op == "decode":
        fields = {"B": 3, "pool": 7 if packed else None}
    else:
        fields = {"B": 1, "L": 19, "lengths": (7, 0, 12)} if packed else {"B": 3, "L": 19}
    problem = small(make_problem, op, backend, theta_per_head=per_head, **fields)
    call = make_call(problem, seed)
    rows = Rows(batch=(0,) if op == "prefill" and packed else (2, 0), heads=(0, 3, 5))
    part = call.take(rows)
    assert rechecked(part) == part.problem
    assert (part.problem.H, part.problem.G) == (3, 3)
    errors = relative_errors(run(call, backend).take(rows), run(part, backend))
    eps = torch.finfo(problem.dtype).eps
    assert all(error <= 64 * eps for error in errors.values()), errors


@pytest.mark.parametrize(("op", "backend"), [pair for pair in EVERY if pair[0] == "decode"])
def test_padding_rows_are_neither_read_nor_written(
    make_problem: MakeProblem,
    run: Run,
    relative_errors: Callable[[Call, Call], dict[str, float]],
    seed: int,
    op: str,
    backend: str,
) -> None:
    """Rows with index -1 change no pool row, bit for bit, and their own inputs may be NaN.

    The other rows are those of a call without padding.
    """
    problem = small(make_problem, op, backend, B=5, pool=6)
    call = make_call(problem, seed)
    indices = torch.tensor([4, -1, 0, -1, 2], dtype=torch.int32)
    inputs = call.inputs.map(lambda _, t: t.clone())
    for _, tensor in inputs.items():
        tensor[[1, 3]] = torch.nan
    assert call.state is not None
    before = call.state.map(lambda _, t: t.clone())
    padded = replace(call, inputs=inputs, state_indices=indices)

    after = run(padded, backend)
    for name, tensor in after.final.items():
        idle = getattr(before, name)[[1, 3, 5]]
        assert torch.equal(tensor[[1, 3, 5]], idle), name
        assert not torch.equal(tensor[[4, 0, 2]], getattr(before, name)[[4, 0, 2]]), name

    rows = Rows(batch=(0, 1, 2, 3, 4), heads=(0, 1, 2, 3, 4, 5))
    part = padded.take(rows)
    assert part.problem.B == len(part.y) == 3
    assert rechecked(part) == part.problem
    errors = relative_errors(after.take(rows), run(part, backend))
    assert all(error <= 64 * torch.finfo(problem.dtype).eps for error in errors.values()), errors


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_batch_of_padding_alone_does_nothing(
    make_problem: MakeProblem, run: Run, seed: int, backend: str
) -> None:
    """Every row padded: the pool stays, and no row is left to compare."""
    call = make_call(make_problem("decode", B=2, pool=3), seed)
    padded = replace(call, state_indices=torch.tensor([-1, -1], dtype=torch.int32))
    after = run(padded, backend)
    for name, tensor in after.final.items():
        assert torch.equal(tensor, getattr(call.final, name)), name
    part = padded.take(Rows(batch=(0, 1), heads=(0,))).clone()
    assert part.y.numel() == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "prefill", "B": 1},
        {"op": "prefill", "B": 1, "L": 1},
        {"op": "prefill", "B": 3, "L": 1},
        {"op": "prefill", "G": 6},
        {"op": "prefill", "H": 1, "G": 1, "theta_per_head": True},
        {"op": "decode", "B": 1},
        {"op": "decode", "G": 6, "theta_per_head": True},
    ],
    ids=str,
)
def test_views_with_gaps_are_read_right(
    make_problem: MakeProblem,
    run: Run,
    relative_errors: Callable[[Call, Call], dict[str, float]],
    seed: int,
    fields: dict[str, object],
) -> None:
    """Slices of a wide projection give what packed inputs give, at the edges of every dim."""
    call = make_call(make_problem(**fields), seed)
    assert any(not t.is_contiguous() for _, t in call.inputs.items()) or call.y.shape[0] == 1
    packed = replace(call, inputs=call.inputs.map(lambda _, t: t.contiguous()))
    assert rechecked(call) == rechecked(packed) == call.problem
    for backend in ("reference", "torch"):
        errors = relative_errors(run(call, backend), run(packed, backend))
        assert all(error <= 1e-13 for error in errors.values()), errors


def test_a_clone_keeps_strides_and_gaps_and_shares_nothing(
    make_problem: MakeProblem, seed: int
) -> None:
    """The NaN between the slices stays there; writing the clone leaves the call as it was."""
    for problem in (make_problem("prefill"), make_problem("decode", pool=4)):
        call = make_call(problem, seed)
        copy = call.clone()
        assert rechecked(copy) == problem
        assert (copy.final is copy.state) == (problem.op == "decode")
        for (name, old), (_, new) in zip(call.inputs.items(), copy.inputs.items(), strict=True):
            assert torch.equal(old, new), name
            assert old.stride() == new.stride(), name
            assert old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr(), name
        gap = copy.inputs.dt.as_strided((problem.H + 1,), (1,))[-1]  # 6 of 16 elements are used
        assert bool(gap.isnan())
        kept = call.state and call.state.h.clone()
        copy.final.h.fill_(7)
        copy.y.fill_(7)
        assert call.state is None or torch.equal(call.state.h, kept)


def test_a_clone_keeps_what_shares_memory(make_problem: MakeProblem, seed: int) -> None:
    """The slices of one projection stay in one; an expanded tensor keeps its stride of 0."""
    call = make_call(make_problem("prefill"), seed)
    expanded = call.inputs.lam[:1, :1].expand(2, 23, 6)
    call = replace(call, inputs=replace(call.inputs, lam=expanded))
    copy = call.clone()
    assert len({t.untyped_storage().data_ptr() for _, t in copy.inputs.items()}) == 1
    assert torch.equal(copy.inputs.lam, call.inputs.lam)
    assert copy.inputs.lam.stride() == (0, 0, 1)


@pytest.mark.parametrize(("B", "L"), [(1, 1), (1, 7), (3, 1), (3, 7)])
def test_token_stride_walks_the_tokens(B: int, L: int) -> None:
    """Token i of row j lies at (j L + i) token strides, whatever strides torch keeps for size 1."""
    x = torch.arange(B * L * 10.0).view(B, L, 10)[..., 2:6]
    for view in (x, x[:1], x[:, :1]):
        flat = view.as_strided((view.shape[0] * view.shape[1], 4), (token_stride(view), 1))
        assert torch.equal(flat, view.reshape(-1, 4))


def test_poison_spares_what_is_read(make_problem: MakeProblem, seed: int) -> None:
    """A prefill's outputs all become NaN; of a decode only y does: its state is input too."""
    call = make_call(make_problem("prefill"), seed)
    call.poison()
    assert all(bool(tensor.isnan().all()) for tensor in call.outputs().values())
    assert call.state is not None
    assert not any(bool(tensor.isnan().any()) for _, tensor in call.state.items())

    step = make_call(make_problem("decode"), seed)
    step.poison()
    assert bool(step.y.isnan().all())
    assert not any(bool(tensor.isnan().any()) for _, tensor in step.final.items())
