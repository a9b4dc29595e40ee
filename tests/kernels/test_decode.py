"""What every decode kernel must do beyond one step: pools, chains, graphs, going on from prefill.

On a GPU the kernels run. Elsewhere those in CuTe DSL run as PTX in an interpreter that also finds
races and accesses out of bounds, those in Triton in Triton's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba3_bench.bench.gate import Gate, bounds_of, distance
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import UnsupportedError
from mamba3_bench.kernels.ops import decode, decode_call, prefill
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem
from mamba3_bench.kernels.tensors import Inputs

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
SISO = tuple(name for name in OPTIONAL if not name.startswith("mimo"))
KERNELS = ["cute", pytest.param("triton", marks=pytest.mark.interpreted)]
ON_GPU = torch.cuda.is_available()

Step = Callable[..., None]
Fresh = Callable[..., Call]


def problem(op: Any = "decode", **fields: Any) -> Problem:
    """A small problem; every optional tensor that a rank-1 layer has."""
    usual = {
        "B": 2, "L": 1, "H": 4, "G": 2, "P": 32, "N": 32, "R": 1, "S": 8,
        "dtype": BFLOAT16, "state_dtype": FLOAT32, "optional": SISO, "has_state": True,
    }  # fmt: skip
    return Problem(op=op, **(usual | fields))


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


def token(inputs: Inputs, t: int) -> Inputs:
    """One token of the inputs of a prefill."""
    return inputs.map(lambda _, tensor: tensor[:, t])


def decoded(call: Call, start: int, state: Any, backend: str, step: Step) -> tuple[Tensor, Any]:
    """The outputs of the tokens of a prefill call from `start`, one by one, and the last state."""
    ys = []
    state = state.map(lambda _, t: t.clone())
    for t in range(start, call.problem.L):
        one = decode_call(token(call.inputs, t), call.params, state, None, call.problem.options)
        step(one, backend)
        ys.append(one.y)
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("backend", KERNELS)
def test_pool_and_padding(backend: str, device: str, seed: int, fresh: Fresh) -> None:
    """Rows of a larger pool; rows that nobody names and padding rows keep every bit."""
    optional = tuple(n for n in OPTIONAL if n != "out_norm")
    call = make_call(problem(B=4, pool=9, R=2, optional=optional), seed, device)
    assert call.state is not None
    assert call.state_indices is not None
    call.state_indices[1] = -1
    used = call.state_indices[call.state_indices >= 0].long()
    idle = torch.ones(9, dtype=torch.bool, device=device).index_fill(0, used, False)
    for _, tensor in call.state.items():
        tensor[idle] = torch.nan  # also shows whether anything reads them
    ran = fresh(call, backend)
    assert ran.state is not None
    for (name, before), (_, after) in zip(call.state.items(), ran.state.items(), strict=True):
        assert torch.equal(before[idle].view(torch.uint8), after[idle].view(torch.uint8)), name
    assert ran.y[1].isnan().all(), "the output of a padding row was written"
    assert judged(call, ran) == ""


@pytest.mark.parametrize("backend", KERNELS)
def test_inputs_apart_and_unaligned(backend: str, device: str, seed: int, fresh: Fresh) -> None:
    """Contiguous inputs, and inputs that start on no multiple of 4 bytes, give the same bits."""
    call = make_call(problem(B=3), seed, device)
    apart = replace(call, inputs=call.inputs.map(lambda _, t: t.contiguous()))

    def shifted(_: str, tensor: Tensor) -> Tensor:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        return room[1:].view(tensor.shape).copy_(tensor)

    unaligned = replace(call, inputs=call.inputs.map(shifted))
    assert apart.inputs.x.stride() != call.inputs.x.stride()
    assert unaligned.inputs.x.data_ptr() % 4 == 2
    expected = fresh(call, backend).outputs()
    for other in (apart, unaligned):
        for name, result in fresh(other, backend).outputs().items():
            assert torch.equal(result, expected[name]), name


@pytest.mark.parametrize("decay", ["heavy_tail", "softplus"])
@pytest.mark.parametrize("backend", KERNELS)
def test_nan_reaches_what_depends_on_it(
    backend: str, decay: Any, device: str, seed: int, fresh: Fresh,
    spoil: Callable[..., Iterator[str]],
) -> None:  # fmt: skip
    """NaN in any input or state is in the same results as in the reference's, and in no others."""
    call = make_call(problem(options=Options(decay=decay)), seed, device)
    assert call.state is not None
    for name in spoil((n, t[0]) for n, t in (*call.inputs.items(), *call.state.items())):
        expected = fresh(call, "reference").results()
        for result, got in fresh(call, backend).results().items():
            assert torch.equal(got.isnan(), expected[result].isnan()), (name, result)


@pytest.mark.parametrize("backend", KERNELS)
def test_long_chain_of_angles(backend: str, device: str, rng: torch.Generator, step: Step) -> None:
    """Turns that add up over a chain leave rounding errors alone, no drift.

    A step rounds D theta and the sum to the float32 grid of [0, 2 pi), spaced 4.8e-7: a random
    walk of 1.4e-7 rms each. Taking 2 pi as one float32 would drift by 1.7e-7 a turn.
    """
    steps = 10_000 if ON_GPU else {"cute": 60, "triton": 150}[backend]
    options = Options(step="activated", norm="normalised")
    case = problem(B=1, H=1, G=1, dtype=FLOAT32, options=options, optional=())
    call = make_call(case, 0, device)
    assert call.state is not None
    truth = call.state.phi.double()
    for _ in range(steps):
        call.inputs.dt.copy_(1.5 + torch.rand(1, 1, generator=rng))
        call.inputs.theta.copy_(3 + torch.rand(1, case.S, generator=rng))  # about a turn a step
        truth += call.inputs.dt.double() * torch.pi * call.inputs.theta.double().tanh()
        step(call, backend)
    assert bool((call.state.phi >= 0).all())
    assert float(call.state.phi.max()) < 2 * torch.pi
    turns = (call.state.phi.double() - truth) / (2 * torch.pi)
    error = (turns - turns.round()) * 2 * torch.pi
    assert float(error.abs().max()) < 6 * 2 * 1.4e-7 * steps**0.5  # six standard deviations


@pytest.mark.parametrize("backend", KERNELS)
def test_long_chain(backend: str, device: str, seed: int, step: Step) -> None:
    """Every output and all four states of a chain of steps, against float64.

    The bounds are the gate's, with as long a chain of PyTorch steps for its yardstick: what float32
    loses adds up over a chain.
    """
    steps = 10_000 if ON_GPU else {"cute": 12, "triton": 16}[backend]
    optional = tuple(n for n in OPTIONAL if n != "out_norm")
    case = problem("prefill", L=steps, H=2, G=1, R=2, dtype=FLOAT32, optional=optional)
    call = make_call(case, seed, device, "weak_decay")
    assert call.state is not None
    inputs, params, state = (
        tensors.map(lambda _, t: t.double()) for tensors in (call.inputs, call.params, call.state)
    )
    y, final = prefill(inputs, params, state, options=case.options, backend="torch")
    exact = replace(call, y=y, final=final)
    truth = {name: result.cpu() for name, result in exact.results().items()}

    def chain(by: str) -> dict[str, Tensor]:
        y, state = decoded(call, 0, call.state, by, step)
        return replace(call, y=y, final=state).results()

    bounds = bounds_of(call, truth, chain("torch"))
    for name, result in chain(backend).items():
        errors = distance(result, truth[name])
        assert errors[0] <= bounds[name][0], (name, errors, bounds[name])
        assert errors[1] <= bounds[name][1], (name, errors, bounds[name])


@pytest.mark.parametrize("state_dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("before", "backend"),
    [
        ("torch", "cute"),
        pytest.param("triton", "cute", marks=pytest.mark.gpu),
        pytest.param("torch", "triton", marks=pytest.mark.interpreted),
        pytest.param("triton", "triton", marks=pytest.mark.interpreted),
    ],
)
def test_decode_goes_on_where_prefill_ends(
    before: str, backend: str, state_dtype: torch.dtype, device: str, seed: int, step: Step
) -> None:
    """A prefill of 35 tokens and 4 decoded ones equal one prefill of 39 within the gate."""
    call = make_call(problem("prefill", L=39, state_dtype=state_dtype), seed, device)
    head = call.inputs.map(lambda _, t: t[:, :35].contiguous())
    y, state = prefill(head, call.params, call.state, backend=before)
    ys, last = decoded(call, 35, state, backend, step)
    chained = replace(call, y=torch.cat((y, ys), 1), final=last)
    assert judged(call, chained) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cute", "triton"])
@pytest.mark.parametrize("R", [1, 4, 8])
def test_repeatable(R: int, backend: str, seed: int, fresh: Fresh) -> None:
    """Two runs of a large batch on the same inputs agree bit for bit, and pass the gate."""
    optional = tuple(n for n in OPTIONAL if n != "out_norm") if R > 1 else SISO
    case = problem(B=128, H=12, P=64, N=128, S=32, R=R, state_dtype=BFLOAT16, optional=optional)
    call = make_call(case, seed, "cuda")
    one, other = fresh(call, backend), fresh(call, backend).outputs()
    for name, result in one.outputs().items():
        assert torch.equal(result, other[name]), name
    assert judged(call, one) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cute", "triton"])
def test_captured_for_any_batch(backend: str, seed: int, step: Step) -> None:
    """A graph replay does what an eager call does, for a batch that was never run before."""
    step(make_call(problem(B=2), seed, "cuda"), backend)
    call = make_call(problem(B=7), seed, "cuda")
    captured = call.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, backend)
    captured.poison()
    graph.replay()
    assert judged(call, captured) == ""


@pytest.mark.parametrize("backend", ["cute", "triton"])
@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dtype": torch.float64, "state_dtype": torch.float64}, "float64"),
        ({"N": 48, "S": 12}, "N = 48"),
        ({"P": 16}, "P = 16"),
        ({"R": 3, "optional": OPTIONAL}, "R = 3"),
    ],
)
def test_refused_before_anything_is_written(
    fields: dict[str, Any], word: str, backend: str, seed: int
) -> None:
    """What the kernel does not do is refused with its reason, the state untouched."""
    if (reason := registry.unavailable("decode", backend)) is not None:
        pytest.skip(reason)
    call = make_call(problem(**fields), seed)
    assert call.state is not None
    before = call.state.map(lambda _, t: t.clone())
    with pytest.raises(UnsupportedError, match=word):
        decode(call.inputs, call.params, call.state, backend=backend)
    for (name, kept), (_, now) in zip(before.items(), call.state.items(), strict=True):
        assert torch.equal(kept, now), name
