"""Prefill in TileLang on a GPU against the float64 recurrence, within the gate's bounds.

A compilation takes a quarter of a minute: what is known at run time is varied on one kernel.
"""

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

pytest.importorskip("tilelang", reason="needs tilelang")

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
SISO = tuple(name for name in OPTIONAL if not name.startswith("mimo"))
MIMO = tuple(name for name in OPTIONAL if name != "out_norm")
PACKED = (5, 0, 37, 1)  # a sequence without tokens, a ragged one over chunks, one of a single token


def problem(**fields: Any) -> Problem:
    """A small prefill of a ragged length; by default with all but out_norm."""
    usual = {
        "B": 2, "L": 37, "H": 2, "G": 1, "P": 32, "N": 32, "R": 4,
        "dtype": BFLOAT16, "state_dtype": FLOAT32, "optional": MIMO, "has_state": True,
        "options": Options(pairing="half"),
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
    implementation = registry.get("prefill", "tilelang")
    default = implementation.default(call.problem, call.y.device)
    implementation.run(mine, replace(default, **config))
    return mine


def judged(call: Call, ran: Call) -> str:
    """What the gate says against a run; nothing if it passed."""
    return Gate(call, seed=0).judge(ran).reason


SHAPES = [  # R, N, P, S
    (1, 128, 64, 32), (2, 64, 64, 32), (4, 128, 64, 32), (8, 64, 32, 16),
    (1, 256, 128, 128), (2, 32, 128, 8), (4, 256, 64, 64), (8, 32, 64, 16),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize(("R", "N", "P", "S"), SHAPES, ids=str)
def test_ranks_and_sizes(R: int, N: int, P: int, S: int, seed: int) -> None:
    """Every R, N and P, a half and all of the dims rotated, both pairings and both dtypes."""
    options = Options(pairing="half" if R in (2, 4) else "interleaved")
    dtype = FLOAT16 if N == 64 else BFLOAT16
    for L in (1, 67, 200):
        case = problem(R=R, N=N, P=P, S=S, L=L, options=options, dtype=dtype, H=4, G=2)
        call = make_call(case, seed, "cuda")
        assert judged(call, run(call)) == "", L


@pytest.mark.gpu
@pytest.mark.parametrize(
    "optional",
    [(), OPTIONAL, tuple(name for name in OPTIONAL if name != "mimo_o"), ("z", "c_bias", "mimo_o")],
    ids=str,
)
def test_optional_tensors(optional: tuple[str, ...], seed: int) -> None:
    """None, all, all without the down-projection (ranks stay), and some."""
    call = make_call(problem(optional=optional, B=1, L=19), seed, "cuda")
    assert judged(call, run(call)) == ""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("step", "decay", "norm"),
    [("softplus", "softplus", "normalised"), ("activated", "log_decay", "rms")],
)
def test_activations(step: Any, decay: Any, norm: Any, seed: int) -> None:
    """Every step, decay and norm, for strong and weak decay, long memory and large angles."""
    absent = {"dt_bias"} if step == "activated" else set()
    absent |= {"b_norm", "c_norm"} if norm == "normalised" else set()
    options = Options(step=step, decay=decay, norm=norm, pairing="half")
    case = problem(options=options, optional=tuple(n for n in MIMO if n not in absent))
    for regime in REGIMES:
        call = make_call(case, seed, "cuda", regime)
        assert judged(call, run(call)) == "", regime


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [BFLOAT16, FLOAT16], ids=str)
def test_state_dtypes(state_dtype: torch.dtype, seed: int) -> None:
    """h is read and written in a dtype of its own."""
    call = make_call(problem(state_dtype=state_dtype), seed, "cuda")
    assert judged(call, run(call)) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("L", [1, 15, 16, 17, 50])
def test_lengths(L: int, has_state: bool, seed: int) -> None:
    """One token, less than a chunk of 16, a whole one, one more, and several and a ragged one."""
    call = make_call(problem(L=L, has_state=has_state), seed, "cuda")
    assert judged(call, run(call)) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("theta_per_head", [False, True])
@pytest.mark.parametrize(("H", "G"), [(4, 1), (4, 2), (3, 3), (40, 1)])
def test_groups_and_angles_of_heads(H: int, G: int, theta_per_head: bool, seed: int) -> None:
    """b and c shared by all heads, by some, by none; angle rates shared or each head's own."""
    call = make_call(problem(H=H, G=G, theta_per_head=theta_per_head), seed, "cuda")
    assert judged(call, run(call)) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("lengths", [PACKED, (0, 0, 3), (16, 16), (1, 1, 1, 1, 0)], ids=str)
def test_packed(lengths: tuple[int, ...], has_state: bool, seed: int) -> None:
    """Each sequence has its own states; one without tokens keeps its own bit for bit."""
    call = make_call(packed(lengths, has_state=has_state), seed, "cuda")
    ran = run(call)
    assert judged(call, ran) == ""
    for i, length in enumerate(lengths):
        for name, tensor in ran.final.items():
            if length == 0:
                kept = getattr(call.state, name)[i] if has_state else torch.zeros_like(tensor[i])
                assert torch.equal(tensor[i], kept), name


@pytest.mark.gpu
def test_packed_sequences_are_separate_ones(seed: int) -> None:
    """A packed sequence gives the bits that it gives alone."""
    call = make_call(packed(), seed, "cuda")
    ran, start = run(call), 0
    for i, length in enumerate(PACKED):
        if length > 0:
            at = slice(start, start + length)
            alone = prefill_call(
                call.inputs.map(lambda _, t, at=at: t[:, at]),
                call.params,
                None if call.state is None else call.state.map(lambda _, t, i=i: t[i : i + 1]),
                options=call.problem.options,
            )
            mine = run(alone)
            assert torch.equal(mine.y, ran.y[:, at])
            for name, tensor in mine.final.items():
                assert torch.equal(tensor[0], getattr(ran.final, name)[i]), name
        start += length


@pytest.mark.gpu
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize(("piece", "segment"), [(16, 16), (16, 32), (48, 96)])
def test_cut_sequences(piece: int, segment: int, has_state: bool, seed: int) -> None:
    """Angles and last tokens are the same bits wherever a sequence is cut, and all is right."""
    call = make_call(problem(L=131, has_state=has_state), seed, "cuda", "weak_decay")
    whole = run(call, piece=0, segment=0)
    cut = run(call, piece=piece, segment=segment)
    assert judged(call, cut) == ""
    for name in ("phi", "k", "x"):
        assert torch.equal(getattr(cut.final, name), getattr(whole.final, name)), name
    assert torch.equal(cut.y[:, :segment], whole.y[:, :segment])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "decay", "theta_per_head"),
    [({}, "heavy_tail", False), ({"piece": 16, "segment": 32}, "softplus", True)],
    ids=str,
)
def test_nan_reaches_what_depends_on_it(
    config: dict[str, int], decay: Any, theta_per_head: bool, seed: int,
    check_nan: Callable[..., None],
) -> None:  # fmt: skip
    """NaN in any input or state is in y and h, whole or cut; but for angles, which are integers."""
    options = Options(pairing="half", decay=decay)
    case = problem(theta_per_head=theta_per_head, options=options)
    check_nan(make_call(case, seed, "cuda"), partial(run, **config), without=("theta", "phi"))


@pytest.mark.gpu
@pytest.mark.parametrize("config", [{}, {"piece": 16, "segment": 32}], ids=str)
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_nan_stays_in_its_packed_sequence(bad: int, config: dict[str, int], seed: int) -> None:
    """A sequence of NaN, before or after in the same tiles, changes no bit of the others."""
    call = make_call(packed(), seed, "cuda")
    clean = run(call, **config)
    offsets = [0, *torch.tensor(PACKED).cumsum(0).tolist()]
    spoilt = call.clone()
    for _, tensor in spoilt.inputs.items():
        tensor[:, offsets[bad] : offsets[bad + 1]] = torch.nan
    ran = run(spoilt, **config)
    for i in range(len(PACKED)):
        if i == bad:
            assert ran.final.h[i].isnan().any()
            continue
        at = slice(offsets[i], offsets[i + 1])
        assert torch.equal(ran.y[:, at], clean.y[:, at])
        for name, tensor in ran.final.items():
            assert torch.equal(tensor[i], getattr(clean.final, name)[i]), name


def shifted(tensor: Tensor) -> Tensor:
    """The same values in a wider tensor: rows one element past 16 bytes, NaN around them."""
    B, L, *dims = tensor.shape
    width = tensor[0, 0].numel()
    wide = torch.full((B, L, width + 3), torch.nan, dtype=tensor.dtype, device=tensor.device)
    wide[..., 1 : 1 + width] = tensor.flatten(2)
    return wide[..., 1 : 1 + width].view(B, L, *dims)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "shifted"])
@pytest.mark.parametrize(("B", "L"), [(2, 21), (1, 1)])
def test_layouts(B: int, L: int, layout: str, seed: int) -> None:
    """Slices of a projection, packed tensors and rows off 16 bytes give the same bits."""
    call = make_call(problem(B=B, L=L), seed, "cuda")
    move = shifted if layout == "shifted" else Tensor.contiguous
    moved = prefill_call(
        call.inputs.map(lambda _, tensor: move(tensor)),
        call.params,
        call.state,
        options=call.problem.options,
    )
    assert layout == "contiguous" or moved.inputs.x.data_ptr() % 16 != 0
    expected = run(call).outputs()
    for name, tensor in run(moved).outputs().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.gpu
def test_angles_handed_on_do_not_drift(check_still: Callable[..., None], seed: int) -> None:
    """An angle that nothing turns stays, or is rounded up as often as down."""
    check_still(make_call(problem(B=8, L=3, H=64, N=32), seed, "cuda"), run)


@pytest.mark.gpu
def test_two_prefills_make_one(seed: int) -> None:
    """The four states carry everything: 17 tokens and then 33 are judged as 50."""
    call = make_call(problem(L=50), seed, "cuda")
    ys, state = [], call.state
    for part in (slice(0, 17), slice(17, 50)):
        inputs = call.inputs.map(lambda _, t, part=part: t[:, part].contiguous())
        y, state = prefill(
            inputs, call.params, state, options=call.problem.options, backend="tilelang"
        )
        ys.append(y)
    assert state is not None
    ran = replace(call.clone(), y=torch.cat(ys, 1), final=state)
    assert judged(call, ran) == ""


@pytest.mark.gpu
def test_rank_1_is_the_siso_kernel_of_triton(seed: int) -> None:
    """R = 1 gives what the Triton kernel gives: equal inputs kept, the rest by the gate."""
    case = problem(R=1, N=64, P=64, L=100, optional=SISO, options=Options())
    call = make_call(case, seed, "cuda")
    mine, other = run(call), call.clone()
    other.poison()
    triton = registry.get("prefill", "triton")
    triton.run(other, triton.default(case, call.y.device))
    assert judged(call, mine) == ""
    assert judged(call, other) == ""
    assert torch.equal(mine.final.x, other.final.x)


@pytest.mark.gpu
def test_another_batch_or_length_compiles_nothing(seed: int) -> None:
    """One compilation serves every B, L, H, G, packing, cut and state; a test counts them."""
    from mamba3_bench.kernels.tilelang.compile import compiled

    run(make_call(problem(L=131), seed, "cuda"), piece=16, segment=32)  # all three kernels
    before = compiled.cache_info().misses
    for fields in ({"B": 1}, {"L": 300}, {"B": 5, "L": 1}, {"H": 6, "G": 3}, {"has_state": False}):
        run(make_call(problem(**fields), seed, "cuda"))
    run(make_call(packed(), seed, "cuda"))
    run(make_call(problem(L=1000, B=1), seed, "cuda"), piece=64, segment=128)
    assert compiled.cache_info().misses == before


@pytest.mark.gpu
def test_repeatable_and_captured(seed: int) -> None:
    """Runs agree bit for bit, and so does a replayed graph."""
    call = make_call(problem(B=3, L=200, H=12), seed, "cuda")
    expected = run(call).outputs()
    captured = call.clone()
    implementation = registry.get("prefill", "tilelang")
    config = implementation.default(call.problem, call.y.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        implementation.run(captured, config)
    captured.poison()
    graph.replay()
    torch.cuda.synchronize()
    for name, tensor in captured.outputs().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"R": 3}, "R = 3 is not 1, 2, 4 or 8"),
        ({"N": 16, "S": 4}, "N = 16 is not 32, 64, 128 or 256"),
        ({"P": 16}, "P = 16 is not 32, 64 or 128"),
        ({"dtype": FLOAT32}, "bfloat16 or float16"),
        ({"H": 4}, "needs nvcc: install the extra"),
        ({}, "needs a CUDA device"),
    ],
)
def test_refusals(
    fields: dict[str, Any], reason: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel does not take is refused with its reason, before anything runs."""
    from mamba3_bench.kernels.tilelang import compile

    monkeypatch.setattr(compile, "has_nvcc", lambda: "nvcc" not in reason)
    call = make_call(problem(**fields), seed)
    with pytest.raises(UnsupportedError, match=reason):
        prefill(
            call.inputs, call.params, call.state, options=call.problem.options, backend="tilelang"
        )
