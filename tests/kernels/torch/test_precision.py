"""Rounding: what the yardstick rounds, how much error that makes, and what it must not round."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.kernels.torch.activations import TWO_PI, whole_turns_off
from mamba3_bench.kernels.torch.precision import full_float32, to_tf32
from mamba3_bench.kernels.torch.prefill import Config, running_sum

Errors = Callable[[Call, Call], dict[str, float]]
Run = Callable[..., Call]

# Half an ulp, relative: the largest error of one rounding to nearest.
UNIT = {"bfloat16": 2**-8, "float16": 2**-11, "tf32": 2**-11, "float32": 2**-24}


def in_float64(call: Call, run: Run) -> Call:
    """The truth: the float64 recurrence on the same values, its outputs not rounded."""
    state = None if call.state is None else call.state.map(lambda _, t: t.double())
    final = state if call.final is call.state else call.final.map(lambda _, t: t.double())
    fields = {name: getattr(call, name) for name in Call.__slots__}
    return run(Call(**fields | {"state": state, "final": final, "y": call.y.double()}), "reference")


@pytest.mark.parametrize("R", [1, 4])
@pytest.mark.parametrize("dtype", UNIT)
def test_prefill_errors_are_those_of_rounded_operands(
    make_problem: Callable[..., Problem],
    run: Run,
    relative_errors: Errors,
    seed: int,
    dtype: str,
    R: int,
) -> None:
    """y and h are off by about one rounding of the operands' dtype: no less, and not much more.

    A product's term carries two to four independent roundings, each of rms 0.4 units or so, which
    average out over the terms where these have random signs. Angles never feel the narrow dtype.
    """
    problem = make_problem(
        "prefill", L=150, H=2, G=1, P=32, N=64, R=R, S=16,
        dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype),
        options=Options(matmul="tf32" if dtype == "tf32" else "dtype"),
    )  # fmt: skip
    call = make_call(problem, seed)
    errors = relative_errors(run(call, "torch"), in_float64(call, run))
    if dtype == "float32":  # sums of 64 tokens' angles and decays come before one rounding
        assert max(errors["y"], errors["state.h"], errors["state.k"]) < 64 * UNIT[dtype]
    else:
        assert 0.1 * UNIT[dtype] < errors["y"] < 2 * UNIT[dtype]
        assert 0.1 * UNIT[dtype] < errors["state.h"] < 2 * UNIT[dtype]
    assert errors["state.phi"] < 64 * UNIT["float32"]
    assert errors["state.x"] == 0


class Products(TorchDispatchMode):
    """Keeps the operands of every matrix product made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.operands += args[:2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("R", [1, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_every_operand_of_a_product_is_rounded(
    make_problem: Callable[..., Problem], run: Run, seed: int, dtype: str, R: int
) -> None:
    """q, k, the masked scores, x, the carried state and the weighted x, in every chunk."""
    problem = make_problem(
        "prefill", R=R, P=32, N=64, S=16, L=50, has_state=False,
        dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype),
        options=Options(matmul="tf32" if dtype == "tf32" else "dtype"),
    )  # fmt: skip
    call = make_call(problem, seed)
    with Products() as products:
        run(call, "torch", Config(chunk_size=16))
    chunks = 4
    assert len(products.operands) >= chunks * 4 * 2
    for operand in products.operands:
        assert operand.dtype == torch.float32  # and so is the sum
        kept = to_tf32(operand) if dtype == "tf32" else operand.to(problem.dtype).float()
        assert torch.equal(operand, kept)


@pytest.mark.parametrize("R", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_decode_rounds_only_what_it_stores(
    make_problem: Callable[..., Problem],
    run: Run,
    relative_errors: Errors,
    seed: int,
    dtype: torch.dtype,
    R: int,
) -> None:
    """A float32 state stays right to float32; y and k are off by one rounding to their dtype."""
    call = make_call(make_problem("decode", P=32, N=64, R=R, S=16, dtype=dtype), seed)
    errors = relative_errors(run(call, "torch"), in_float64(call, run))
    assert errors["state.h"] < 8 * UNIT["float32"]
    assert errors["state.phi"] < 8 * UNIT["float32"]
    unit = torch.finfo(dtype).eps / 2
    assert errors["y"] < unit + 32 * UNIT["float32"]
    assert errors["state.k"] < unit + 8 * UNIT["float32"]


@pytest.mark.parametrize("op", ["prefill", "decode"])
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_state_is_rounded_once(
    make_problem: Callable[..., Problem], run: Run, seed: int, op: str, state_dtype: torch.dtype
) -> None:
    """h in a narrow dtype is the float32 h of the same call, rounded at the end."""
    narrow = make_call(make_problem(op, dtype=torch.float32, state_dtype=state_dtype), seed)
    wide = make_call(make_problem(op, dtype=torch.float32), seed)
    assert wide.state is not None
    assert narrow.state is not None
    wide.state.h.copy_(narrow.state.h)
    expected = run(wide, "torch").final.h
    assert torch.equal(run(narrow, "torch").final.h, expected.to(state_dtype))
    assert not torch.equal(expected.to(state_dtype).float(), expected)


def test_to_tf32_rounds_to_nearest(rng: torch.Generator) -> None:
    """11 significant bits, half an ulp at most, ties away from zero; inf and NaN stay."""
    v = torch.randn(10_000, generator=rng) * torch.randn(10_000, generator=rng).mul(20).exp2()
    _, exponent = v.double().frexp()  # |v| in [2^(e-1), 2^e): an ulp is 2^(e-11)
    scaled = (v.double().abs() * (11.0 - exponent.double()).exp2() + 0.5).floor()
    nearest = v.double().sign() * scaled * (exponent.double() - 11).exp2()
    assert torch.equal(to_tf32(v).double(), nearest)

    one_ulp = 2.0**-10
    ties = torch.tensor([1 + one_ulp / 2, -1 - one_ulp / 2, 1 + 1.5 * one_ulp])
    assert to_tf32(ties).tolist() == [1 + one_ulp, -1 - one_ulp, 1 + 2 * one_ulp]
    assert to_tf32(torch.tensor([math.inf, -math.inf, 0.0])).tolist() == [math.inf, -math.inf, 0.0]
    assert bool(to_tf32(torch.tensor(math.nan)).isnan())


@pytest.mark.parametrize("start", [-50.0, -1e-8, 0.0, 6.2831850, 6.2831855, 400.0, 3000.0])
def test_whole_turns_leave_no_error(start: float) -> None:
    """Reduced angles lie in [0, 2 pi), as far from the true ones as float32 rounding alone."""
    phi = torch.tensor(start) + torch.linspace(0, 7, 1001)
    reduced = whole_turns_off(phi)
    assert bool(((reduced >= 0) & (reduced.double() < TWO_PI)).all())
    gap = reduced.double() - phi.double()  # a whole number of turns
    off = (gap / TWO_PI - (gap / TWO_PI).round()) * TWO_PI
    assert float(off.abs().max()) < 1e-6  # a few roundings near 2 pi, 2.4e-7 each


def test_angles_stay_true_over_thousands_of_turns(rng: torch.Generator) -> None:
    """4,000 turns in 10,000 steps all one way drift by random float32 rounding, not by the turn.

    float32's own 2 pi is 1.7e-7 too large: 7e-4 in 4,000 turns. A step rounds a sum below 3 pi, to
    2.8e-7 rms, and a reduced angle, to 1.4e-7 rms: 3.1e-7 * sqrt(10,000) in all; five of these.
    """
    steps = 2 + 1.1 * torch.rand(10_000, 8, generator=rng)
    phi = torch.zeros(8)
    for step in steps:
        phi = whole_turns_off(phi + step)
    gap = phi.double() - steps.double().sum(0)
    off = (gap / TWO_PI - (gap / TWO_PI).round()) * TWO_PI
    assert float(off.abs().max()) < 5 * 3.1e-7 * 100


def test_running_sum_is_the_sum(rng: torch.Generator) -> None:
    """Along any dim, of any length, against cumsum in float64."""
    for size in (1, 2, 3, 17, 64):
        v = torch.randn(2, size, 3, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(running_sum(v, 1), v.cumsum(1), rtol=0, atol=1e-14)


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Puts torch's own default back, whatever a test sets."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("restored_settings")
@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_reduced_float32_settings_do_not_reach_the_yardstick(
    make_problem: Callable[..., Problem], run: Run, seed: int, op: str
) -> None:
    """float32 results are the same bits when the process allows TF32 and bfloat16 products."""
    problem = make_problem(op, L=1 if op == "decode" else 70, P=64, N=64, S=16, dtype=torch.float32)
    call = make_call(problem, seed)
    expected = run(call, "torch").outputs()
    torch.set_float32_matmul_precision("medium")
    got = run(call, "torch").outputs()
    assert torch.get_float32_matmul_precision() == "medium"
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_autocast_does_not_reach_the_yardstick(
    make_problem: Callable[..., Problem], run: Run, seed: int, op: str
) -> None:
    """float32 results are the same bits where autocast would multiply in bfloat16."""
    problem = make_problem(op, L=1 if op == "decode" else 70, P=64, N=64, S=16, dtype=torch.float32)
    call = make_call(problem, seed)
    expected = run(call, "torch").outputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(call, "torch").outputs()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.usefixtures("restored_settings")
def test_settings_are_restored_when_the_last_thread_leaves() -> None:
    """Full float32 while any thread is inside; an exception restores the settings too."""

    def precision() -> Any:
        return torch.backends.cuda.matmul.fp32_precision

    torch.set_float32_matmul_precision("high")
    assert precision() == "tf32"
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with full_float32():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(RuntimeError, match="inside"), full_float32():
        raise RuntimeError("inside")
    assert precision() == "ieee"
    leave.set()
    thread.join()
    assert precision() == "tf32"
