"""The decode step in CuTe DSL against the float64 recurrence, within the gate's bounds.

On a GPU the kernel runs; elsewhere its PTX does, in the interpreter beside this file, which also
finds races and accesses out of bounds.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mamba3_bench.bench.gate import Gate
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.errors import UnsupportedError
from mamba3_bench.kernels.ops import decode
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem

pytest.importorskip("cutlass", reason="needs nvidia-cutlass-dsl")

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
SISO = tuple(name for name in OPTIONAL if not name.startswith("mimo"))
GPU = torch.device("cuda", 0)


def problem(**fields: Any) -> Problem:
    """A small decode problem; every optional tensor that a rank-1 layer has."""
    usual = {
        "B": 2, "L": 1, "H": 4, "G": 2, "P": 32, "N": 32, "R": 1, "S": 8,
        "dtype": BFLOAT16, "state_dtype": FLOAT32, "optional": SISO, "has_state": True,
    }  # fmt: skip
    return Problem(op="decode", **(usual | fields))


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


@pytest.mark.parametrize(
    ("dtype", "state_dtype", "pairing"),
    [
        (FLOAT32, FLOAT32, "half"),
        (FLOAT32, FLOAT16, "interleaved"),
        (BFLOAT16, FLOAT32, "interleaved"),
        (BFLOAT16, BFLOAT16, "half"),
        (FLOAT16, FLOAT16, "half"),
        (FLOAT16, BFLOAT16, "interleaved"),
    ],
    ids=str,
)
def test_every_dtype(
    dtype: torch.dtype, state_dtype: torch.dtype, pairing: Any,
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """y and all four states, for every dtype of activations and state, and both pairings."""
    case = problem(dtype=dtype, state_dtype=state_dtype, options=Options(pairing=pairing))
    call = make_call(case, seed, device)
    assert judged(call, fresh(call)) == ""


@pytest.mark.parametrize(
    ("R", "absent"),
    [
        (2, ()),
        (2, ("mimo_o",)),
        (4, ("out_norm",)),
        (4, ("z", "mimo_z")),
        (4, ("mimo_o", "out_norm")),
        (8, ("mimo_x", "d", "out_norm")),
        (8, ("mimo_o", "mimo_z")),
    ],
)
def test_ranks(
    R: int, absent: tuple[str, ...],
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """MIMO, reduced or not, normalised or not, gated or not."""
    optional = tuple(name for name in OPTIONAL if name not in absent)
    case = problem(R=R, N=64, S=16, optional=optional, options=Options(pairing="half"))
    call = make_call(case, seed, device)
    assert call.y.ndim == (4 if "mimo_o" in absent else 3)
    assert judged(call, fresh(call)) == ""


@pytest.mark.parametrize(
    ("step_by", "decay"),
    [("softplus", "heavy_tail"), ("softplus", "softplus"), ("activated", "log_decay")],
)
def test_activations(
    step_by: Any, decay: Any, device: str, seed: int, fresh: Callable[..., Call]
) -> None:
    """Every step and decay, for strong and weak decay, long memory and large angles."""
    optional = SISO if step_by == "softplus" else tuple(n for n in SISO if n != "dt_bias")
    options = Options(step=step_by, decay=decay)
    case = problem(options=options, optional=optional, dtype=FLOAT32)
    for regime in REGIMES:
        call = make_call(case, seed, device, regime)
        assert judged(call, fresh(call)) == "", regime


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_bare_step(pairing: Any, device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """No optional tensor, b and c normalised already, all of N rotated, angles by head."""
    options = Options(norm="normalised", pairing=pairing)
    case = problem(S=16, theta_per_head=True, options=options, optional=())
    call = make_call(case, seed, device)
    assert judged(call, fresh(call)) == ""


@pytest.mark.parametrize(
    "dims",
    [
        {"B": 1, "H": 1, "G": 1, "P": 64, "N": 128, "S": 32},
        {"B": 3, "H": 12, "G": 2, "P": 32, "N": 64, "S": 32},
        {"B": 1, "H": 6, "G": 6, "P": 128, "N": 32, "S": 8},
        {"B": 1, "H": 2, "G": 1, "P": 128, "N": 256, "S": 64, "state_dtype": BFLOAT16},
        {"B": 1, "H": 2, "G": 1, "P": 32, "N": 256, "S": 128},
    ],
    ids=lambda dims: "-".join(f"{name}{size}" for name, size in dims.items()),
)
def test_sizes(dims: dict[str, Any], device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """Every P and N, one row and many, any group count, heads that are no power of two."""
    call = make_call(problem(**dims), seed, device)
    assert judged(call, fresh(call)) == ""


CORNERS = list(itertools.product((1, 4), (FLOAT32, BFLOAT16), ((64, 128), (64, 64), (32, 32))))


@pytest.mark.slow
@pytest.mark.parametrize(("R", "state_dtype", "dims"), CORNERS, ids=str)
def test_every_config(
    R: int, state_dtype: torch.dtype, dims: tuple[int, int],
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """Every shape of a block computes the same."""
    P, N = dims
    optional = tuple(n for n in OPTIONAL if n != "out_norm") if R > 1 else SISO
    case = problem(P=P, N=N, S=N // 4, R=R, H=2, state_dtype=state_dtype, optional=optional)
    call = make_call(case, seed, device)
    for config in registry.get("decode", "cute").configs(case, GPU):
        assert judged(call, fresh(call, config)) == "", config


def test_pool_and_padding(device: str, seed: int, fresh: Callable[..., Call]) -> None:
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
    ran = fresh(call)
    assert ran.state is not None
    for (name, before), (_, after) in zip(call.state.items(), ran.state.items(), strict=True):
        assert torch.equal(before[idle].view(torch.uint8), after[idle].view(torch.uint8)), name
    assert ran.y[1].isnan().all(), "the output of a padding row was written"
    assert judged(call, ran) == ""


def test_inputs_apart_and_unaligned(device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """Contiguous inputs, and inputs that start on no multiple of 4 bytes, give the same bits."""
    call = make_call(problem(B=3), seed, device)
    apart = replace(call, inputs=call.inputs.map(lambda _, t: t.contiguous()))

    def shifted(_: str, tensor: torch.Tensor) -> torch.Tensor:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        return room[1:].view(tensor.shape).copy_(tensor)

    unaligned = replace(call, inputs=call.inputs.map(shifted))
    assert apart.inputs.x.stride() != call.inputs.x.stride()
    assert unaligned.inputs.x.data_ptr() % 4 == 2
    expected = fresh(call).outputs()
    for other in (apart, unaligned):
        for name, result in fresh(other).outputs().items():
            assert torch.equal(result, expected[name]), name


def test_long_chain_of_angles(device: str, rng: torch.Generator, step: Callable[..., None]) -> None:
    """Turns that add up over a chain leave rounding errors alone, no drift.

    A step rounds D theta and the sum to the float32 grid of [0, 2 pi), spaced 4.8e-7: a random
    walk of 1.4e-7 rms each. Taking 2 pi as one float32 would drift by 1.7e-7 a turn.
    """
    steps = 10_000 if device == "cuda" else 60
    options = Options(step="activated", norm="normalised")
    case = problem(B=1, H=1, G=1, dtype=FLOAT32, options=options, optional=())
    call = make_call(case, 0, device)
    assert call.state is not None
    truth = call.state.phi.double()
    for _ in range(steps):
        call.inputs.dt.copy_(1.5 + torch.rand(1, 1, generator=rng))
        call.inputs.theta.copy_(3 + torch.rand(1, case.S, generator=rng))  # about a turn a step
        truth += call.inputs.dt.double() * torch.pi * call.inputs.theta.double().tanh()
        step(call)
    assert bool((call.state.phi >= 0).all())
    assert float(call.state.phi.max()) < 2 * torch.pi
    turns = (call.state.phi.double() - truth) / (2 * torch.pi)
    error = (turns - turns.round()) * 2 * torch.pi
    assert float(error.abs().max()) < 6 * 2 * 1.4e-7 * steps**0.5  # six standard deviations


@pytest.mark.gpu
def test_repeatable(seed: int, fresh: Callable[..., Call]) -> None:
    """Two runs of a large batch on the same inputs agree bit for bit."""
    call = make_call(problem(B=128, H=12, P=64, N=128, S=32), seed, "cuda")
    one, other = fresh(call).outputs(), fresh(call).outputs()
    for name, result in one.items():
        assert torch.equal(result, other[name]), name
    assert judged(call, fresh(call)) == ""


@pytest.mark.gpu
def test_captured_for_any_batch(seed: int, step: Callable[..., None]) -> None:
    """A graph replay does what an eager call does, for a batch that was never run before."""
    step(make_call(problem(B=2), seed, "cuda"))
    call = make_call(problem(B=7), seed, "cuda")
    captured = call.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    captured.poison()
    graph.replay()
    assert judged(call, captured) == ""


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dtype": torch.float64, "state_dtype": torch.float64}, "float64"),
        ({"N": 48, "S": 12}, "N = 48"),
        ({"P": 16}, "P = 16"),
        ({"R": 3, "optional": OPTIONAL}, "R = 3"),
        ({}, "needs a CUDA device"),
    ],
)
def test_refused_before_anything_is_written(fields: dict[str, Any], word: str, seed: int) -> None:
    """What the kernel does not do is refused with its reason, the state untouched."""
    call = make_call(problem(**fields), seed)
    assert call.state is not None
    before = call.state.map(lambda _, t: t.clone())
    with pytest.raises(UnsupportedError, match=word):
        decode(call.inputs, call.params, call.state, backend="cute")
    for (name, kept), (_, now) in zip(before.items(), call.state.items(), strict=True):
        assert torch.equal(kept, now), name


def test_state_off_16_bytes_is_refused(seed: int) -> None:
    """A bulk copy needs 16 bytes: a state that starts elsewhere is refused, not misread."""
    call = make_call(problem(), seed)
    assert call.state is not None
    room = torch.empty(call.state.h.numel() + 1)
    state = replace(call.state, h=room[1:].view(call.state.h.shape).copy_(call.state.h))
    implementation = registry.get("decode", "cute")
    with pytest.raises(UnsupportedError, match="16 bytes"):
        implementation.run(
            replace(call, state=state, final=state), implementation.default(call.problem, GPU)
        )
