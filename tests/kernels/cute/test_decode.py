"""The decode step in CuTe DSL against the float64 recurrence, within the gate's bounds.

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


def on_tensor_cores(case: Problem) -> Any:
    """The config that runs a problem on tensor cores, None if there is none."""
    configs = registry.get("decode", "cute").configs(case, GPU)
    return next((config for config in configs if config.tensor_cores), None)


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
    assert judged(call, fresh(call, "cute")) == ""


@pytest.mark.parametrize(
    ("R", "dtype", "state_dtype", "absent"),
    [
        (2, BFLOAT16, BFLOAT16, ()),
        (2, BFLOAT16, FLOAT32, ("mimo_o",)),
        (4, BFLOAT16, FLOAT32, ("z", "mimo_z")),
        (4, BFLOAT16, BFLOAT16, ("out_norm",)),
        (4, FLOAT16, FLOAT16, ("mimo_o", "out_norm")),
        (8, BFLOAT16, FLOAT32, ("mimo_x", "d", "out_norm")),
        (8, BFLOAT16, BFLOAT16, ("mimo_x", "d", "out_norm")),
        (8, BFLOAT16, BFLOAT16, ("mimo_o", "mimo_z")),
    ],
    ids=str,
)
def test_ranks(
    R: int, dtype: torch.dtype, state_dtype: torch.dtype, absent: tuple[str, ...],
    device: str, seed: int, fresh: Callable[..., Call],
) -> None:  # fmt: skip
    """MIMO, on both kinds of cores, reduced or not, normalised or not, gated or not."""
    case = problem(
        R=R, N=64, S=16, dtype=dtype, state_dtype=state_dtype, options=Options(pairing="half"),
        optional=tuple(name for name in OPTIONAL if name not in absent),
    )  # fmt: skip
    call = make_call(case, seed, device)
    assert call.y.ndim == (4 if "mimo_o" in absent else 3)
    config = on_tensor_cores(case)
    assert (config is not None) == (R >= 4 and dtype == state_dtype)
    assert judged(call, fresh(call, "cute", config)) == ""


@pytest.mark.parametrize("regime", REGIMES)
def test_tensor_cores_in_every_regime(
    regime: Any, device: str, seed: int, fresh: Callable[..., Call]
) -> None:
    """Operands split in two 16-bit numbers are exact enough for tiny and for large weights."""
    optional = tuple(name for name in OPTIONAL if name != "out_norm")
    for R, dtype in ((4, FLOAT16), (8, BFLOAT16)):
        case = problem(R=R, dtype=dtype, state_dtype=dtype, optional=optional)
        call = make_call(case, seed, device, regime)
        assert judged(call, fresh(call, "cute", on_tensor_cores(case))) == "", dtype


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
        assert judged(call, fresh(call, "cute")) == "", regime


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_bare_step(pairing: Any, device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """No optional tensor, b and c normalised already, all of N rotated, angles by head."""
    options = Options(norm="normalised", pairing=pairing)
    case = problem(S=16, theta_per_head=True, options=options, optional=())
    call = make_call(case, seed, device)
    assert judged(call, fresh(call, "cute")) == ""


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
    assert judged(call, fresh(call, "cute")) == ""


def every_config() -> dict[Any, Problem]:
    """Each shape of a block, at R = 1 and in MIMO, on one of the problems that it is offered for.

    The smallest problem comes last and is kept: an interpreter runs it.
    """
    found = {}
    for R in (4, 1):
        optional = tuple(n for n in OPTIONAL if n != "out_norm") if R > 1 else SISO
        for P, N in ((64, 128), (64, 64), (32, 32)):
            for dtype in (FLOAT32, BFLOAT16):
                case = problem(
                    P=P, N=N, S=N // 4, R=R, H=1, G=1, state_dtype=dtype, optional=optional
                )
                for config in registry.get("decode", "cute").configs(case, GPU):
                    found[R, config] = case
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_config(part: int, device: str, seed: int, fresh: Callable[..., Call]) -> None:
    """Every shape of a block computes the same."""
    for (_, config), case in list(every_config().items())[part::4]:
        call = make_call(case, seed, device)
        assert judged(call, fresh(call, "cute", config)) == "", config


def test_needs_a_gpu(seed: int) -> None:
    """On a CPU the op refuses with the reason, the state untouched."""
    call = make_call(problem(), seed)
    before = call.final.h.clone()
    with pytest.raises(UnsupportedError, match="needs a CUDA device"):
        decode(call.inputs, call.params, call.final, backend="cute")
    assert torch.equal(before, call.final.h)


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
