"""The decode step in Triton against the float64 recurrence, within the gate's bounds.

What it shares with other decode kernels is in `tests/kernels/test_decode.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mamba3_bench.bench.gate import Gate
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
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


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


@interpreted
@pytest.mark.parametrize("state_dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_every_dtype(
    dtype: torch.dtype, state_dtype: torch.dtype, pairing: Any,
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """y and all four states, for every pair of dtypes and both pairings."""
    case = problem(dtype=dtype, state_dtype=state_dtype, options=Options(pairing=pairing))
    call = make_call(case, seed, device)
    assert judged(call, fresh(call, "triton")) == ""


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
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """MIMO, ranks rolled and unrolled, reduced or not, normalised or not, gated or not."""
    optional = tuple(name for name in OPTIONAL if name not in absent)
    case = problem(R=R, H=2, optional=optional, options=Options(pairing="half"))
    call = make_call(case, seed, device)
    assert call.y.ndim == (4 if "mimo_o" in absent else 3)
    config = replace(registry.get("decode", "triton").default(case, call.y.device), unroll=unroll)
    assert judged(call, fresh(call, "triton", config)) == ""


@interpreted
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("step_by", "decay"),
    [("softplus", "heavy_tail"), ("softplus", "softplus"), ("activated", "log_decay")],
)
def test_activations(
    step_by: Any, decay: Any, regime: Any,
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """Every step and decay, for strong and weak decay, long memory and large angles."""
    optional = SISO if step_by == "softplus" else tuple(n for n in SISO if n != "dt_bias")
    case = problem(options=Options(step=step_by, decay=decay), optional=optional)
    call = make_call(case, seed, device, regime)
    assert judged(call, fresh(call, "triton")) == ""


@interpreted
def test_steps_of_thousands(device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """Angles of so many turns come back into [0, 2 pi), as exact as float32 has the step."""
    options = Options(step="activated", norm="normalised")
    call = make_call(problem(options=options, optional=()), seed, device)
    assert call.state is not None
    call.inputs.dt.mul_(1e4)
    ran = fresh(call, "triton")
    assert ran.state is not None
    turns = call.inputs.dt.double()[..., None] / 2 * call.inputs.theta.double().tanh()[:, None]
    truth = call.state.phi.double() / (2 * torch.pi) + turns
    error = ran.state.phi.double() / (2 * torch.pi) - truth
    assert float((error - error.round()).abs().max()) < 1e4 * 2**-22  # of tanh in float32
    assert float(ran.state.phi.min()) >= 0
    assert float(ran.state.phi.max()) < 2 * torch.pi


@interpreted
@pytest.mark.parametrize("S", [8, 16])
@pytest.mark.parametrize("theta_per_head", [False, True])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_bare_step(
    pairing: Any, theta_per_head: bool, S: int,
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """No optional tensor, b and c normalised already, a half or all of N rotated."""
    options = Options(norm="normalised", pairing=pairing)
    case = problem(S=S, theta_per_head=theta_per_head, options=options, optional=())
    call = make_call(case, seed, device)
    assert judged(call, fresh(call, "triton")) == ""


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
def test_sizes(dims: dict[str, int], device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """Every P and N, one row and many, any group count, heads that are no power of two."""
    optional = OPTIONAL if "R" in dims else SISO
    call = make_call(problem(dtype=BFLOAT16, optional=optional, **dims), seed, device)
    assert judged(call, fresh(call, "triton")) == ""
