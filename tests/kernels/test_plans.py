"""What calls remember: the next of a kind skips validation, and nothing wrong slips through."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamba3_bench.kernels import ops, plans, registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import (
    DtypeError,
    InputError,
    LayoutError,
    RangeError,
    ShapeError,
)
from mamba3_bench.kernels.problem import Options, Problem

MakeProblem = Callable[..., Problem]


@pytest.fixture(autouse=True)
def fresh_memory() -> None:
    """Every test starts with nothing remembered."""
    plans.forget()


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops validated in full, in order."""
    seen: list[str] = []
    for op in ("prefill", "decode"):
        check = getattr(ops, f"check_{op}")

        def counted(*given: Any, op: str = op, check: Any = check) -> Problem:
            seen.append(op)
            problem: Problem = check(*given)
            return problem

        monkeypatch.setattr(ops, f"check_{op}", counted)
    return seen


def step(call: Call, **changes: Any) -> Tensor:
    """One public call, with some arguments replaced; decode works on a copy of the state."""
    given: dict[str, Any] = {
        "inputs": call.inputs, "params": call.params, "state": call.state,
        "options": call.problem.options, "backend": "torch",
    }  # fmt: skip
    given |= changes
    if call.problem.op == "prefill":
        return ops.prefill(**given)[0]
    given["state"] = given["state"].map(lambda _, t: t.clone())
    given.setdefault("state_indices", call.state_indices)
    return ops.decode(**given)


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_the_second_call_is_not_validated_again(
    make_problem: MakeProblem, seed: int, validations: list[str], op: str
) -> None:
    """Other tensors with the same facts give their own results, with one validation for all."""
    one = make_call(make_problem(op), seed)
    other = make_call(make_problem(op), seed + 1)
    validations.clear()
    step(one)
    remembered = step(other)
    assert validations == [op]
    plans.forget()
    assert torch.equal(remembered, step(other))


@pytest.mark.parametrize("op", ["prefill", "decode"])
@pytest.mark.parametrize(
    "changes",
    [
        {"B": 3}, {"H": 12}, {"G": 6}, {"P": 7}, {"N": 16, "S": 4}, {"S": 2}, {"R": 2},
        {"dtype": torch.bfloat16, "state_dtype": torch.float32},
        {"theta_per_head": True}, {"optional": ("z",)}, {"optional": ("z", "dt_bias")},
        {"optional": ("z", "d")}, {"optional": ("z", "b_bias")}, {"optional": ("z", "c_bias")},
        {"options": Options(pairing="half")},
    ],
    ids=str,
)  # fmt: skip
def test_another_problem_is_another_plan(
    make_problem: MakeProblem, run: Callable[..., Call], seed: int, op: str, changes: dict[str, Any]
) -> None:
    """Dims, dtypes, options and which tensors are there: each leads to its own right result."""
    usual, changed = make_problem(op), make_problem(op, **changes)
    for problem in (usual, changed, usual, changed):
        call = make_call(problem, seed)
        assert torch.equal(step(call), run(call, "torch").y)


def cut(tensor: Tensor) -> None:
    """Drop the last element of the last dim, in place."""
    tensor.resize_(*tensor.shape[:-1], tensor.shape[-1] - 1)


def wide(tensor: Tensor) -> None:
    """Another dtype in the same tensor object, as nn.Module.to gives it to a parameter."""
    tensor.data = tensor.data.double()


def turned(tensor: Tensor) -> None:
    """The same memory and shape with other strides, in place."""
    tensor.data = tensor.data.mT.contiguous().mT


@pytest.mark.parametrize(
    ("change", "error"),
    [(cut, ShapeError), (wide, DtypeError), (turned, LayoutError)],
)
@pytest.mark.parametrize("name", ["params.b_bias", "params.mimo_o", "state.h", "inputs.c"])
def test_a_tensor_changed_in_place_is_found(
    make_problem: MakeProblem, seed: int, name: str,
    change: Callable[[Tensor], None], error: type[InputError],
) -> None:  # fmt: skip
    """The same objects as in the call before, but one has another shape, dtype or stride."""
    call = make_call(make_problem("decode", R=2, dtype=torch.float32), seed)
    inputs = call.inputs.map(lambda _, t: t.clone())
    state = call.final.map(lambda _, t: t.clone())
    given: dict[str, Any] = {"inputs": inputs, "params": call.params, "state": state}
    for _ in range(2):
        ops.decode(**given)
    owner, field = name.split(".")
    before = state.map(lambda _, t: t.clone())
    change(getattr(given[owner], field))
    with pytest.raises(error, match=field):
        ops.decode(**given)
    for other, kept in before.items():
        if f"state.{other}" != name:
            assert torch.equal(getattr(state, other), kept), other


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_new_weights_in_the_same_parameter_count(
    make_problem: MakeProblem, seed: int, op: str
) -> None:
    """Neither values nor addresses are remembered: a parameter may get other data at any time."""
    call = make_call(make_problem(op), seed)
    params = call.params.map(lambda _, t: nn.Parameter(t.clone(), requires_grad=False))
    before = step(call, params=params)
    assert params.d is not None
    params.d.data = params.d.data + 1
    after = step(call, params=params)
    assert not torch.equal(before, after)
    plans.forget()
    assert torch.equal(after, step(call, params=params))


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_values_on_a_cpu_are_looked_at_each_time(
    make_problem: MakeProblem, seed: int, op: str
) -> None:
    """dt of the second call is 0 where it was promised to be positive."""
    options = Options(step="activated")
    call = make_call(make_problem(op, options=options), seed)
    step(call)
    with pytest.raises(RangeError, match="dt > 0"):
        step(call, inputs=replace(call.inputs, dt=torch.zeros_like(call.inputs.dt)))


def test_threads_share_plans(make_problem: MakeProblem, seed: int) -> None:
    """Calls of one key that differ in strides make each other's plans go while others read them."""
    call = make_call(make_problem("decode"), seed)
    width = call.inputs.x[0].numel()
    wide = [torch.zeros(2, width + i, dtype=call.inputs.x.dtype) for i in range(24)]
    moved = [
        replace(call.inputs, x=w[:, :width].view_as(call.inputs.x).copy_(call.inputs.x))
        for w in wide
    ]
    expected = step(call)
    failures: list[Any] = []

    def work(shift: int) -> None:
        try:
            for i in range(150):
                if not torch.equal(step(call, inputs=moved[(7 * i + shift) % 24]), expected):
                    failures.append("another result")
        except Exception as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(shift,)) for shift in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_a_call_runs_on_the_gpu_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is made the current one if it is not; on a CPU nothing is asked."""
    made: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: made.append(device) or ops.HERE)
    for place in ("cpu", "cuda:0", "cuda:1"):
        device = torch.device(place)
        call: Any = SimpleNamespace(y=SimpleNamespace(device=device))
        with ops._device_of(call):
            pass
    assert made == [torch.device("cuda:1")]


def test_indices_on_a_cpu_are_looked_at_each_time(make_problem: MakeProblem, seed: int) -> None:
    """The second call names a row twice, the third one past the pool."""
    call = make_call(make_problem("decode", pool=5), seed)
    step(call)
    for rows, words in (([3, 3], "at most once"), ([0, 5], "rows 0 to 4")):
        with pytest.raises(RangeError, match=words):
            step(call, state_indices=torch.tensor(rows, dtype=torch.int32))


def test_lengths_are_read_each_time(make_problem: MakeProblem, seed: int) -> None:
    """Offsets are values: other ones in the same tensor are other sequences."""
    call = make_call(make_problem("prefill", B=1, lengths=(9, 14), has_state=False), seed)
    offsets = call.cu_seqlens
    assert offsets is not None
    one = step(call, cu_seqlens=offsets)
    offsets[1] = 12
    other = step(call, cu_seqlens=offsets)
    # products of other shapes may add up in another order
    torch.testing.assert_close(one[:, :9], other[:, :9], rtol=1e-12, atol=1e-12)
    assert (one[:, 9:12] - other[:, 9:12]).abs().max() > 1e-3
    offsets[1] = 24
    with pytest.raises(RangeError, match="never fall"):
        step(call, cu_seqlens=offsets)


def test_one_tensor_under_two_names_works(
    make_problem: MakeProblem, seed: int, validations: list[str]
) -> None:
    """Guards refuse it, so it is validated at each call, and right."""
    call = make_call(make_problem("decode"), seed)
    shared = replace(call.params, c_norm=call.params.b_norm)
    apart = replace(
        call.params, c_norm=shared.b_norm.clone() if shared.b_norm is not None else None
    )
    validations.clear()
    for _ in range(2):
        assert torch.equal(step(call, params=shared), step(call, params=apart))
    assert validations == ["decode"] * 3


def test_a_new_implementation_is_found(
    monkeypatch: pytest.MonkeyPatch, make_problem: MakeProblem, seed: int
) -> None:
    """Registering a backend anew drops what calls remember of the old one."""
    for known in ("_registered", "_added"):
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))
    call = make_call(make_problem("decode"), seed)
    for value in (3, 7):

        @registry.implements("decode", "mine", supports=lambda problem, device: None)
        def run(call: Call, config: Any, value: int = value) -> None:
            call.y.fill_(value)

        assert bool((step(call, backend="mine") == value).all())
    plans.forget()


def test_memory_is_bounded_and_holds_no_tensor(
    monkeypatch: pytest.MonkeyPatch, make_problem: MakeProblem, seed: int
) -> None:
    """The oldest kinds of call are forgotten; tensors die with their owners."""
    monkeypatch.setattr(plans, "MOST_KEYS", 3)
    for B in range(1, 7):
        call = make_call(make_problem("decode", B=B), seed)
        step(call)
        assert len(plans._plans) == min(B, 3)
    alive = weakref.ref(call.final.h)
    assert alive() is not None
    del call
    gc.collect()
    assert alive() is None


def test_without_guards_every_call_is_validated(
    monkeypatch: pytest.MonkeyPatch, make_problem: MakeProblem, seed: int, validations: list[str]
) -> None:
    """A PyTorch that keeps its guards elsewhere costs time, not correctness."""
    monkeypatch.setattr(plans, "TENSOR_GUARDS", None)
    call = make_call(make_problem("decode"), seed)
    validations.clear()
    assert torch.equal(step(call), step(call))
    assert validations == ["decode"] * 2
