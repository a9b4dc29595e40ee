"""The decode step in Triton against the float64 recurrence, within the gate's bounds."""

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

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
SISO = tuple(name for name in OPTIONAL if not name.startswith("mimo"))

pytest.importorskip("triton")
interpreted = pytest.mark.interpreted


def problem(**fields: Any) -> Problem:
    """A small decode problem; every optional tensor that a rank-1 layer has.

    Large enough that its largest errors, of float32 against float32, are comparable.
    """
    usual = {
        "B": 3, "L": 1, "H": 4, "G": 2, "P": 32, "N": 32, "R": 1, "S": 8,
        "dtype": FLOAT32, "state_dtype": FLOAT32, "optional": SISO, "has_state": True,
    }  # fmt: skip
    return Problem(op="decode", **(usual | fields))


def run(call: Call, unroll: int | None = None) -> Call:
    """A clone of the call after the kernel ran it, y filled with NaN before."""
    mine = call.clone()
    mine.poison()
    implementation = registry.get("decode", "triton")
    config = implementation.default(call.problem, call.y.device)
    implementation.run(mine, config if unroll is None else replace(config, unroll=unroll))
    return mine


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


@interpreted
@pytest.mark.parametrize("state_dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_every_dtype(
    dtype: torch.dtype, state_dtype: torch.dtype, pairing: Any,
    device: str, seed: int,
) -> None:  # fmt: skip
    """y and all four states, for every pair of dtypes and both pairings."""
    case = problem(dtype=dtype, state_dtype=state_dtype, options=Options(pairing=pairing))
    call = make_call(case, seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize(
    ("R", "unroll", "absent"),
    [
        (2, 1, ()),
        (2, 2, ("mimo_o",)),
        (4, 1, ("out_norm",)),
        (4, 4, ("z", "mimo_z")),
        (8, 1, ("mimo_x", "d")),
        (8, 1, ("mimo_o", "mimo_z", "out_norm")),
    ],
)
def test_ranks(
    R: int, unroll: int, absent: tuple[str, ...],
    device: str, seed: int,
) -> None:  # fmt: skip
    """MIMO, ranks rolled and unrolled, reduced or not, normalised or not, gated or not."""
    optional = tuple(name for name in OPTIONAL if name not in absent)
    case = problem(R=R, H=2, optional=optional, options=Options(pairing="half"))
    call = make_call(case, seed, device)
    assert call.y.ndim == (4 if "mimo_o" in absent else 3)
    assert judged(call, run(call, unroll)) == ""


@interpreted
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("step", "decay"),
    [("softplus", "heavy_tail"), ("softplus", "softplus"), ("activated", "log_decay")],
)
def test_activations(
    step: Any, decay: Any, regime: Any,
    device: str, seed: int,
) -> None:  # fmt: skip
    """Every step and decay, for strong and weak decay, long memory and large angles."""
    optional = SISO if step == "softplus" else tuple(n for n in SISO if n != "dt_bias")
    case = problem(options=Options(step=step, decay=decay), optional=optional)
    call = make_call(case, seed, device, regime)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("S", [8, 16])
@pytest.mark.parametrize("theta_per_head", [False, True])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_bare_step(
    pairing: Any, theta_per_head: bool, S: int,
    device: str, seed: int,
) -> None:  # fmt: skip
    """No optional tensor, b and c normalised already, a half or all of N rotated."""
    options = Options(norm="normalised", pairing=pairing)
    case = problem(S=S, theta_per_head=theta_per_head, options=options, optional=())
    call = make_call(case, seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize(
    "dims",
    [
        {"B": 1, "H": 1, "G": 1, "P": 64, "N": 128, "S": 32},
        {"B": 3, "H": 12, "G": 2, "P": 32, "N": 64, "S": 32},
        {"B": 1, "H": 6, "G": 6, "P": 128, "N": 32, "S": 8},
        {"B": 1, "H": 2, "G": 1, "P": 128, "N": 256, "S": 64},
        {"B": 5, "H": 4, "G": 2, "P": 32, "N": 16, "S": 8, "R": 4},
    ],
    ids=lambda dims: "-".join(f"{name}{size}" for name, size in dims.items()),
)
def test_sizes(dims: dict[str, int], device: str, seed: int) -> None:
    """Every P and N, one row and many, any group count, heads that are no power of two."""
    optional = OPTIONAL if "R" in dims else SISO
    call = make_call(problem(dtype=BFLOAT16, optional=optional, **dims), seed, device)
    assert judged(call, run(call)) == ""


@interpreted
def test_pool_and_padding(device: str, seed: int) -> None:
    """Rows of a larger pool; rows that nobody names and padding rows keep every bit."""
    call = make_call(problem(B=4, pool=9, R=2, optional=OPTIONAL), seed, device)
    assert call.state is not None
    assert call.state_indices is not None
    call.state_indices[1] = -1
    used = call.state_indices[call.state_indices >= 0].long()
    idle = torch.ones(9, dtype=torch.bool, device=device).index_fill(0, used, False)
    for _, tensor in call.state.items():
        tensor[idle] = torch.nan  # also shows whether anything reads them
    ran = run(call)
    assert ran.state is not None
    for (name, before), (_, after) in zip(call.state.items(), ran.state.items(), strict=True):
        assert torch.equal(before[idle].view(torch.uint8), after[idle].view(torch.uint8)), name
    assert ran.y[1].isnan().all(), "the output of a padding row was written"
    assert judged(call, ran) == ""


@interpreted
def test_inputs_apart(device: str, seed: int) -> None:
    """Contiguous inputs and slices of one projection give the same bits."""
    call = make_call(problem(B=3, dtype=BFLOAT16), seed, device)
    apart = replace(call, inputs=call.inputs.map(lambda _, t: t.contiguous()))
    assert apart.inputs.x.stride() != call.inputs.x.stride()
    for one, other in zip(run(call).outputs().values(), run(apart).outputs().values(), strict=True):
        assert torch.equal(one, other)


@interpreted
def test_long_chain_of_angles(device: str, rng: torch.Generator) -> None:
    """Turns that add up for 400 steps leave rounding errors alone, no drift.

    A step rounds D theta and the sum to the float32 grid of [0, 2 pi), spaced 4.8e-7: a random
    walk of 1.4e-7 rms each. Taking 2 pi as one float32 would drift by 1.7e-7 a turn.
    """
    steps = 400
    case = problem(B=1, H=1, G=1, options=Options(step="activated"), optional=())
    call = make_call(case, 0, device)
    assert call.state is not None
    truth = call.state.phi.double()
    implementation = registry.get("decode", "triton")
    for _ in range(steps):
        call.inputs.dt.copy_(1.5 + torch.rand(1, 1, generator=rng))
        call.inputs.theta.copy_(3 + torch.rand(1, case.S, generator=rng))  # about a turn a step
        truth += call.inputs.dt.double() * torch.pi * call.inputs.theta.double().tanh()
        implementation.run(call, implementation.default(case, call.y.device))
    assert bool((call.state.phi >= 0).all())
    assert float(call.state.phi.max()) < 2 * torch.pi
    turns = (call.state.phi.double() - truth) / (2 * torch.pi)
    error = (turns - turns.round()) * 2 * torch.pi
    assert float(error.abs().max()) < 6 * 2 * 1.4e-7 * steps**0.5  # six standard deviations


@interpreted
def test_repeatable(device: str, seed: int) -> None:
    """Two runs on the same inputs agree bit for bit."""
    call = make_call(problem(B=2, H=4, P=64, N=64, S=16, dtype=BFLOAT16), seed, device)
    for one, other in zip(run(call).outputs().values(), run(call).outputs().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dtype": torch.float64, "state_dtype": torch.float64}, "float64"),
        ({"N": 48, "S": 12}, "N = 48"),
        ({"P": 16}, "P = 16"),
        ({"R": 3, "optional": OPTIONAL}, "R = 3"),
    ],
)
def test_refused_before_anything_is_written(fields: dict[str, Any], word: str, seed: int) -> None:
    """What the kernel does not do is refused with its reason, the state untouched."""
    call = make_call(problem(**fields), seed)
    assert call.state is not None
    before = call.state.map(lambda _, t: t.clone())
    with pytest.raises(UnsupportedError, match=word):
        decode(call.inputs, call.params, call.state, backend="triton")
    for (name, kept), (_, now) in zip(before.items(), call.state.items(), strict=True):
        assert torch.equal(kept, now), name
