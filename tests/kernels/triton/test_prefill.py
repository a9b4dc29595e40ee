"""Prefill in Triton against the float64 recurrence, within the gate's bounds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba3_bench.bench.gate import Gate
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.errors import UnsupportedError
from mamba3_bench.kernels.ops import prefill, prefill_call
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BFLOAT16, FLOAT16, FLOAT32]
SISO = tuple(name for name in OPTIONAL if not name.startswith("mimo"))
TYPICAL = tuple(name for name in SISO if name != "out_norm")
PACKED = (5, 0, 37, 1)  # a sequence without tokens, a ragged one over chunks, one of a single token

pytest.importorskip("triton")
interpreted = pytest.mark.interpreted


def problem(**fields: Any) -> Problem:
    """A small prefill of a ragged length; by default with all but out_norm."""
    usual = {
        "B": 2, "L": 37, "H": 2, "G": 1, "P": 32, "N": 32, "R": 1,
        "dtype": FLOAT32, "state_dtype": FLOAT32, "optional": TYPICAL, "has_state": True,
    }  # fmt: skip
    usual |= fields
    usual.setdefault("S", usual["N"] // 4)
    return Problem(op="prefill", **usual)


def packed(lengths: tuple[int, ...] = PACKED, **fields: Any) -> Problem:
    """The same for packed sequences."""
    return problem(B=1, L=sum(lengths), lengths=lengths, **fields)


def run(call: Call, **config: int) -> Call:
    """A clone of the call after the kernel ran it, what it writes filled with NaN before."""
    mine = call.clone()
    mine.poison()
    implementation = registry.get("prefill", "triton")
    default = implementation.default(call.problem, call.y.device)
    implementation.run(mine, replace(default, **config))
    return mine


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


@interpreted
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(
    ("dtype", "matmul"),
    [(BFLOAT16, "dtype"), (FLOAT16, "dtype"), (FLOAT32, "dtype"), (FLOAT32, "tf32")],
    ids=str,
)
def test_every_dtype(dtype: torch.dtype, matmul: Any, pairing: Any, device: str, seed: int) -> None:
    """y and all four states, for every rounding of the products and both pairings."""
    case = problem(dtype=dtype, options=Options(pairing=pairing, matmul=matmul))
    call = make_call(case, seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("share", [4, 2])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(("N", "P"), [(16, 64), (32, 32), (64, 64), (128, 32)])
def test_state_and_head_sizes(
    N: int, P: int, share: int, pairing: Any, device: str, seed: int
) -> None:
    """S = N/4 and N/2, where N/4 = 4 pairs are fewer than a product's 16 dims hold."""
    options = Options(pairing=pairing)
    case = problem(N=N, P=P, S=N // share, L=17, B=1, dtype=BFLOAT16, options=options)
    call = make_call(case, seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("theta_per_head", [False, True])
@pytest.mark.parametrize(("H", "G"), [(4, 1), (4, 2), (3, 3)])
def test_groups_and_angles_of_heads(
    H: int, G: int, theta_per_head: bool, device: str, seed: int
) -> None:
    """b and c shared by all heads, by some, by none; angle rates shared or each head's own."""
    call = make_call(problem(H=H, G=G, theta_per_head=theta_per_head, B=1), seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("optional", [(), *((name,) for name in SISO), SISO], ids=str)
def test_optional_tensors(optional: tuple[str, ...], device: str, seed: int) -> None:
    """None, each alone, and all of them."""
    call = make_call(problem(optional=optional, B=1, L=19), seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("step", "decay", "norm", "dtype"),
    [
        ("softplus", "heavy_tail", "rms", BFLOAT16),
        ("softplus", "softplus", "normalised", FLOAT32),
        ("activated", "log_decay", "rms", FLOAT32),
    ],
    ids=str,
)
def test_activations(
    step: Any, decay: Any, norm: Any, regime: Any, dtype: torch.dtype, device: str, seed: int
) -> None:
    """Every step, decay and norm, for strong and weak decay, long memory and large angles."""
    absent = {"dt_bias"} if step == "activated" else set()
    absent |= {"b_norm", "c_norm"} if norm == "normalised" else set()
    case = problem(
        B=1, dtype=dtype, options=Options(step=step, decay=decay, norm=norm),
        optional=tuple(name for name in TYPICAL if name not in absent),
    )  # fmt: skip
    call = make_call(case, seed, device, regime)
    assert judged(call, run(call, chunk=16)) == ""


@interpreted
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("L", [1, 15, 16, 17, 50])
def test_lengths(L: int, has_state: bool, device: str, seed: int) -> None:
    """One token, less than a chunk of 16, a whole one, one more, and several and a ragged one."""
    call = make_call(problem(L=L, has_state=has_state), seed, device)
    assert judged(call, run(call, chunk=16)) == ""


@interpreted
@pytest.mark.parametrize("state_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_state_dtypes(dtype: torch.dtype, state_dtype: torch.dtype, device: str, seed: int) -> None:
    """h is read and written in a dtype of its own."""
    call = make_call(problem(dtype=dtype, state_dtype=state_dtype, B=1), seed, device)
    assert judged(call, run(call)) == ""


@interpreted
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("lengths", [PACKED, (0, 0, 3), (16, 16), (1, 1, 1, 1, 0)], ids=str)
def test_packed(lengths: tuple[int, ...], has_state: bool, device: str, seed: int) -> None:
    """Each sequence has its own states; one without tokens keeps its own bit for bit."""
    call = make_call(packed(lengths, has_state=has_state), seed, device)
    ran = run(call, chunk=16)
    assert judged(call, ran) == ""
    for i, length in enumerate(lengths):
        for name, tensor in ran.final.items():
            if length == 0:
                kept = getattr(call.state, name)[i] if has_state else torch.zeros_like(tensor[i])
                assert torch.equal(tensor[i], kept), name


CUTS = [(16, 16), (16, 32), (48, 96)]  # tokens per piece and per segment


@interpreted
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize(("piece", "segment"), CUTS)
def test_cut_sequences(piece: int, segment: int, has_state: bool, device: str, seed: int) -> None:
    """Angles and last tokens are the same bits wherever a sequence is cut, and all is right."""
    call = make_call(problem(L=67, B=1, has_state=has_state), seed, device)
    whole = run(call, chunk=16, piece=0, segment=0)
    cut = run(call, chunk=16, piece=piece, segment=segment)
    assert judged(call, cut) == ""
    for name in ("phi", "k", "x"):
        assert torch.equal(getattr(cut.final, name), getattr(whole.final, name)), name
    # the same sums in another order: float32 roundings of some 100 terms, of either run
    assert torch.allclose(cut.final.h, whole.final.h, rtol=1e-5, atol=1e-5)
    assert torch.equal(cut.y[:, :segment], whole.y[:, :segment])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("piece", "segment"), [(16, 16), (16, 32)])
def test_cut_packed_sequences(
    piece: int, segment: int, dtype: torch.dtype, device: str, seed: int
) -> None:
    """Sequences of no segment, of one, and of several, at any offset; weak decay carries far."""
    case = packed((33, 0, 16, 50, 1), dtype=dtype)
    call = make_call(case, seed, device, "weak_decay")
    assert judged(call, run(call, chunk=16, piece=piece, segment=segment)) == ""


@interpreted
@pytest.mark.parametrize("config", [{}, {"piece": 16, "segment": 16}], ids=str)
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_nan_stays_in_its_packed_sequence(
    bad: int, config: dict[str, int], device: str, seed: int
) -> None:
    """A sequence of NaN, before or after in the same tiles, changes no bit of the others."""
    call = make_call(packed(), seed, device)
    clean = run(call, chunk=16, **config)
    offsets = [0, *torch.tensor(PACKED).cumsum(0).tolist()]
    spoilt = call.clone()
    for _, tensor in spoilt.inputs.items():
        tensor[:, offsets[bad] : offsets[bad + 1]] = torch.nan
    ran = run(spoilt, chunk=16, **config)
    for i in range(len(PACKED)):
        if i == bad:
            assert ran.final.h[i].isnan().any()
            continue
        at = slice(offsets[i], offsets[i + 1])
        assert torch.equal(ran.y[:, at], clean.y[:, at])
        for name, tensor in ran.final.items():
            assert torch.equal(tensor[i], getattr(clean.final, name)[i]), name


@interpreted
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_nan_stays_in_its_batch_row(bad: int, device: str, seed: int) -> None:
    """A batch row of NaN changes no bit of the rows before and after it."""
    call = make_call(problem(B=3, L=21), seed, device)
    clean = run(call, chunk=16)
    spoilt = call.clone()
    for _, tensor in spoilt.inputs.items():
        tensor[bad] = torch.nan
    ran = run(spoilt, chunk=16)
    others = [row for row in range(3) if row != bad]
    for name, tensor in ran.outputs().items():
        assert torch.equal(tensor[others], clean.outputs()[name][others]), name


@interpreted
@pytest.mark.parametrize(
    ("config", "decay", "theta_per_head"),
    [({}, "heavy_tail", False), ({"piece": 16, "segment": 16}, "softplus", True)],
    ids=str,
)
def test_nan_reaches_what_depends_on_it(
    config: dict[str, int], decay: Any, theta_per_head: bool, device: str, seed: int,
    check_nan: Callable[..., None],
) -> None:  # fmt: skip
    """NaN in any input or state is in y and h, whole or cut."""
    case = problem(theta_per_head=theta_per_head, options=Options(decay=decay))
    check_nan(make_call(case, seed, device), partial(run, chunk=16, **config))


def shifted(tensor: Tensor) -> Tensor:
    """The same values in a wider tensor: rows one element past 16 bytes, NaN around them."""
    B, L, *dims = tensor.shape
    width = tensor[0, 0].numel()
    wide = torch.full((B, L, width + 3), torch.nan, dtype=tensor.dtype, device=tensor.device)
    wide[..., 1 : 1 + width] = tensor.flatten(2)
    return wide[..., 1 : 1 + width].view(B, L, *dims)


def offset(tensor: Tensor) -> Tensor:
    """The same values next to each other, the first one element past 16 bytes."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return room[1:].view(tensor.shape).copy_(tensor)


LAYOUTS = {"contiguous": Tensor.contiguous, "shifted": shifted, "offset": offset}


@interpreted
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: str, seed: int) -> None:
    """Tensors in one piece, at 16 bytes or not, and rows off them, are as right as slices.

    Not bit for bit: the compiler specialises by what divides a stride, and rounds otherwise.
    """
    call = make_call(problem(dtype=dtype, L=21), seed, device)
    move = LAYOUTS[layout]
    moved = prefill_call(
        call.inputs.map(lambda _, tensor: move(tensor)),
        call.params,
        call.state,
        options=call.problem.options,
    )
    assert layout == "contiguous" or moved.inputs.x.data_ptr() % 16 != 0
    assert judged(moved, run(moved)) == ""


@interpreted
def test_two_prefills_make_one(device: str, seed: int) -> None:
    """The four states carry everything: 17 tokens and then 33 are judged as 50."""
    call = make_call(problem(L=50), seed, device)
    ys, state = [], call.state
    for part in (slice(0, 17), slice(17, 50)):
        inputs = call.inputs.map(lambda _, t, part=part: t[:, part].contiguous())
        y, state = prefill(inputs, call.params, state, backend="triton")
        ys.append(y)
    assert state is not None
    ran = replace(call.clone(), y=torch.cat(ys, 1), final=state)
    assert judged(call, ran) == ""


@interpreted
def test_angles_handed_on_do_not_drift(
    check_still: Callable[..., None], device: str, seed: int
) -> None:
    """An angle that nothing turns stays, or is rounded up as often as down."""
    check_still(make_call(problem(B=8, L=3, H=64, N=32, dtype=FLOAT32), seed, device), run)


@interpreted
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"R": 2}, "SISO only"),
        ({"N": 48}, "N = 48 is not 16, 32, 64, 128 or 256"),
        ({"P": 16}, "P = 16 is not 32, 64 or 128"),
        ({"dtype": torch.float64, "state_dtype": torch.float64}, "no float64"),
    ],
)
def test_refusals(fields: dict[str, Any], reason: str, device: str, seed: int) -> None:
    """What the kernel does not take is refused with its reason, before anything runs."""
    call = make_call(problem(**fields), seed, device)
    with pytest.raises(UnsupportedError, match=reason):
        prefill(call.inputs, call.params, call.state, backend="triton")
