"""The gate's own mathematics: norms, bounds, and whom it lets pass."""

import math
from dataclasses import replace

import pytest
import torch

from mamba3_bench.bench import gate as gate_module
from mamba3_bench.bench.gate import Gate, choose_rows, distance, within
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.records import Error
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.families.mamba3 import hard_cases
from mamba3_bench.kernels.ops import prefill
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.kernels.tensors import State
from mamba3_bench.kernels.torch.prefill import Config

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
TYPICAL = ("z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d")
PREFILL = Problem(
    "prefill", 2, 150, 3, 1, 8, 16, 1, 4, torch.bfloat16, torch.float32,
    optional=TYPICAL, has_state=True,
)  # fmt: skip
DECODE = replace(PREFILL, op="decode", L=1, B=3, pool=5)


def run(call, chunk_size=None):
    """A poisoned clone after the torch backend ran it."""
    mine = call.clone()
    mine.poison()
    implementation = registry.get(call.problem.op, "torch")
    config = (
        Config(chunk_size) if chunk_size else implementation.default(call.problem, call.y.device)
    )
    implementation.run(mine, config)
    return mine


def wide(problem, dtype):
    """The problem in another dtype, with a state that fits it."""
    return replace(
        problem, dtype=dtype, state_dtype=torch.float64 if dtype == torch.float64 else torch.float32
    )


def test_distance_by_hand():
    """(3, 4) off by (0, 2) is 2/5 in L2 and 2 at most; a truth of zeros is compared absolutely."""
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    off = torch.tensor([0.0, -2.0], dtype=torch.float64)
    assert distance(truth + off, truth) == (pytest.approx(0.4), 2.0)
    assert distance(off, torch.zeros_like(truth)) == (2.0, 2.0)
    assert distance(truth, truth) == (0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_never_within(value):
    """Neither a NaN in the result, nor one in both, nor an infinity."""
    truth = torch.ones(4, dtype=torch.float64)
    result = truth.clone()
    result[2] = value
    for against in (truth, result):
        l2, largest = distance(result, against)
        assert not within(Error(l2, 1e9, 0.0, 1e9))
        assert not within(Error(0.0, 1e9, largest, 1e9))
    assert not within(Error(0.0, math.nan, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("chunk_size", [16, 32])
def test_another_order_of_summation_passes(seed, dtype, regime, chunk_size):
    """A right kernel that cuts its chunks elsewhere keeps a tenth of every bound free."""
    call = make_call(wide(PREFILL, dtype), seed, regime=regime)
    verdict = Gate(call, seed).judge(run(call, chunk_size))
    assert (verdict.status, verdict.reason) == ("ok", "")
    for name, error in verdict.errors.items():
        assert error.l2 <= 0.9 * error.l2_bound, name
        assert error.largest <= 0.9 * error.largest_bound, name


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_tf32_and_16_bit_states_pass(seed, dtype):
    """The other roundings that a problem can ask for."""
    problems = [replace(PREFILL, dtype=dtype, state_dtype=torch.bfloat16)]
    if dtype == torch.float32:
        problems.append(replace(PREFILL, dtype=dtype, options=Options(matmul="tf32")))
    for problem in problems:
        call = make_call(problem, seed)
        assert Gate(call, seed).judge(run(call, 32)).status == "ok"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", [PREFILL, DECODE], ids=lambda p: p.op)
def test_three_times_the_yardsticks_error_fails(seed, dtype, problem):
    """The same error in the same direction, times 3 beyond what rounding alone is granted."""
    call = make_call(wide(problem, dtype), seed)
    gate = Gate(call, seed)
    right = run(call)
    for name, truth in gate.truth.items():
        if name == "state.phi":
            continue
        tensor = right.outputs()[name]
        rows = (
            slice(None) if call.state_indices is None or name == "y" else call.state_indices.long()
        )
        before = tensor.clone()
        direction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        direction *= float(truth.norm() / direction.norm())
        l2_bound = gate.bounds[name][0]
        for factor, status in ((1.5, "wrong"), (0.0, "ok")):
            tensor[rows] = (before[rows].double() + factor * l2_bound * direction).to(tensor.dtype)
            verdict = gate.judge(right)
            assert verdict.status == status, (name, factor, verdict.reason)
            assert (name in verdict.reason) == (factor > 0)
        tensor.copy_(before)


# u of each dtype's outputs in L2, and at the worst element: 2 roundings of 16 bits; else 8 of
# float32 or float64, which the angles' 2 pi makes larger
UNITS = {
    torch.bfloat16: (2**0.5 * 2**-8, 2 * 2**-8),
    torch.float16: (2**0.5 * 2**-11, 2 * 2**-11),
    torch.float32: (8**0.5 * 2 * math.pi * 2**-24, 8 * 2 * math.pi * 2**-24),
    torch.float64: (8**0.5 * 2 * math.pi * 2**-53, 8 * 2 * math.pi * 2**-53),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_by_hand(seed, dtype):
    """Twice the yardstick's error, and some units in the last place of the output's own dtype."""
    call = make_call(wide(PREFILL, dtype), seed)
    gate = Gate(call, seed)
    yardstick = run(call.take(gate.rows)).results()
    for name, tensor in call.outputs().items():
        l2, largest = distance(yardstick[name], gate.truth[name])
        l2_unit, unit = UNITS[tensor.dtype]
        if name == "state.h":  # float32, of 16-bit operands
            unit = max(unit, 2 * torch.finfo(dtype).eps / 2)
        expected = (2 * l2 + l2_unit, 2 * largest + unit * float(gate.truth[name].abs().max()))
        assert gate.bounds[name] == pytest.approx(expected), name


def test_angles_are_compared_on_the_circle(seed):
    """Just below a whole turn is next to 0; half a turn is as far as can be."""
    call = make_call(PREFILL, seed)
    gate = Gate(call, seed)
    for shift, status in (
        (2 * math.pi, "ok"),
        (-2 * math.pi, "ok"),
        (math.pi, "wrong"),
        (1e-3, "wrong"),
    ):
        moved = run(call)
        moved.final.phi.add_(shift)
        assert gate.judge(moved).status == status, shift


@pytest.mark.parametrize(("off", "status"), [(0.03, "inaccurate"), (0.06, "wrong")])
def test_rivals_may_be_inaccurate(seed, off, status):
    """Up to 5 % in relative L2 on every output; nobody else, and not where an input was changed."""
    call = make_call(PREFILL, seed)
    gate = Gate(call, seed)
    rival = run(call)
    rival.y.mul_(1 + off)
    assert gate.judge(rival, rival=True).status == status
    assert gate.judge(rival).status == "wrong"
    rival.params.d.add_(1)
    assert gate.judge(rival, rival=True).status == "wrong"


def test_rows_to_verify():
    """First and last always, no more than the truth can hold, and others with another seed."""
    problem = replace(PREFILL, B=9, H=64, P=32, N=64, S=16)
    call = make_call(replace(problem, L=1), 0)
    chosen = {seed: choose_rows(call, seed) for seed in range(4)}
    for rows in chosen.values():
        assert {0, 8} <= set(rows.batch)
        assert {0, 63} <= set(rows.heads)
        assert list(rows.heads) == sorted(set(rows.heads))
        assert len(rows.batch) * len(rows.heads) * 32 * 64 <= gate_module.TRUTH_ELEMENTS["cpu"]
        assert min(len(rows.batch), len(rows.heads)) >= 4
    assert len({rows.heads for rows in chosen.values()}) > 1
    assert len({rows.batch for rows in chosen.values()}) > 1
    assert choose_rows(call, 1) == chosen[1]
    small = choose_rows(make_call(replace(problem, L=1, B=2, H=3), 0), 0)
    assert (small.batch, small.heads) == ((0, 1), (0, 1, 2))


def test_rows_to_verify_fit_in_memory(monkeypatch):
    """A long sequence has fewer rows: what the truth makes of all its tokens is bounded, too."""
    problem = replace(PREFILL, B=2, H=64, P=32, N=64, S=16, L=50)
    call = make_call(problem, 0)
    monkeypatch.setattr(gate_module, "TRUTH_NUMBERS", 6 * problem.row_numbers)
    monkeypatch.setitem(gate_module.TRUTH_ELEMENTS, "cpu", 2**30)
    rows = choose_rows(call, 0)
    assert (rows.batch, len(rows.heads)) == ((0, 1), 3)


@pytest.fixture
def two_rows(monkeypatch):
    """A truth that holds the first and the last batch row and head alone."""
    monkeypatch.setitem(gate_module.TRUTH_ELEMENTS, "cpu", 1)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("problem", [replace(PREFILL, B=3, H=6), replace(DECODE, H=6)],
                         ids=lambda p: p.op)  # fmt: skip
def test_faults_outside_the_subset(two_rows, seed, dtype, problem):
    """Where there is no truth, one wrong token, row or angle is still seen, and right ones pass."""
    call = make_call(replace(problem, dtype=dtype), seed)
    gate = Gate(call, seed)
    assert gate.rows.heads == (0, 5)
    assert len(gate.rows.batch) == 2
    assert gate.judge(run(call, 32 if problem.op == "prefill" else None)).status == "ok"
    row = 1 if call.state_indices is None else int(call.state_indices[1])
    at = {"y": (1, -1, 3) if problem.op == "prefill" else (1, 3), "state.phi": (row, 3, 1),
          "state.h": (row, 3, 2), "state.k": (row, 0, 3), "state.x": (row, 3)}  # fmt: skip
    for name, index in at.items():
        wrong = run(call)
        vector = wrong.outputs()[name][index]
        vector.copy_(vector + 1 if name == "state.phi" else -2 * vector)
        verdict = gate.judge(wrong)
        assert verdict.status == "wrong", name
        assert verdict.reason.startswith(f"{name}: 1 of "), verdict.reason
        assert verdict.reason.endswith("vectors are not those of the torch backend")


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("problem", [replace(PREFILL, B=3), DECODE], ids=lambda p: p.op)
def test_small_faults_outside_the_subset(two_rows, seed, dtype, problem):
    """A batch row without truth that is off by a fifth in every vector, or whose state is old."""
    call = make_call(replace(problem, dtype=dtype), seed)
    gate = Gate(call, seed)
    row = 1 if call.state_indices is None else int(call.state_indices[1])
    for name, at in (("y", 1), ("state.h", row)):
        wrong = run(call)
        wrong.outputs()[name][at].mul_(1.2)
        verdict = gate.judge(wrong)
        assert verdict.status == "wrong"
        assert verdict.reason.startswith(f"{name}: a batch row is 0.")
        assert gate.judge(wrong, rival=True).status == "wrong"
    near = run(call)
    near.outputs()["state.h"][row].mul_(1.04)
    assert gate.judge(near, rival=True).status == "inaccurate"
    if problem.op == "decode":
        stale = run(call)
        stale.state.h[row] = call.state.h[row]
        assert gate.judge(stale).status == "wrong"


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_right_kernels_are_far_from_gross_faults(two_rows, monkeypatch, seed, dtype, regime):
    """Another chunk size would pass a limit 4 times as strict, in every regime and hard case, and
    one twice as strict for whole batch rows."""
    monkeypatch.setattr(gate_module, "GROSS", gate_module.GROSS / 4)
    monkeypatch.setattr(gate_module, "ROW", gate_module.ROW / 2)
    problem = replace(PREFILL, dtype=dtype, H=6)
    calls = [make_call(problem, seed, regime=regime)]
    calls += [case.call(seed, torch.device("cpu")) for case in hard_cases(problem)]
    for call in calls:
        verdict = Gate(call, seed).judge(run(call, 16))
        assert (verdict.status, verdict.reason) == ("ok", "")


def forgetful(call, segment, piece):
    """A clone after a kernel whose segments know of what came before them the last piece alone."""
    mine, problem = call.clone(), call.problem

    def part(begin, end, state):
        inputs = call.inputs.map(lambda _, tensor: tensor[:, begin:end])
        return prefill(inputs, call.params, state, None, problem.options, backend="torch")

    ys, state = [], call.state
    for start in range(0, problem.L, segment):
        if start:
            _, right = part(0, start - piece, call.state)
            zeros = (torch.zeros_like(each) for each in (right.h, right.k, right.x))
            _, state = part(start - piece, start, State(right.phi, *zeros))
        y, state = part(start, start + segment, state)
        ys.append(y)
    mine.y.copy_(torch.cat(ys, 1))
    for (_, tensor), (_, value) in zip(mine.final.items(), state.items(), strict=True):
        tensor.copy_(value)
    return mine


def test_what_a_cut_forgets_is_seen_in_a_hard_case(two_rows, seed):
    """At the timed shape the values forget by themselves; a hard case as long remembers.

    Segments of 256 tokens that lose what is older than 128 before them.
    """
    problem = replace(PREFILL, B=1, L=512, has_state=False)
    call = make_call(problem, seed)
    assert Gate(call, seed).judge(forgetful(call, 256, 128)).status == "ok"
    (long,) = (
        case
        for case in hard_cases(problem)
        if case.problem.L == problem.L and case.problem.lengths is None
    )
    call = long.call(seed, torch.device("cpu"))
    assert Gate(call, seed).judge(run(call)).status == "ok"
    assert Gate(call, seed).judge(forgetful(call, 256, 128)).status == "wrong"


def one_stride(call):
    """The call as a kernel sees it that reads every input with the token stride of x."""
    lead = 1 if call.problem.op == "decode" else 2
    stride = call.inputs.x.stride(lead - 1)

    def misread(_, tensor):
        rows, width = math.prod(tensor.shape[:lead]), math.prod(tensor.shape[lead:])
        there = (rows - 1) * tensor.stride(lead - 1) + width
        places = torch.arange(rows)[:, None] * stride + torch.arange(width)
        return tensor.as_strided((there,), (1,))[places % there].view(tensor.shape)

    return replace(call, inputs=call.inputs.map(misread))


def no_eps(call):
    """The call as a kernel sees it whose norms of b and c have no eps."""

    def enlarged(name, tensor):
        if name not in ("b", "c"):
            return tensor
        square = tensor.float().square().mean(-1, keepdim=True)
        return (tensor * ((square + 1e-5) / square.clamp(min=1e-30)).sqrt()).to(tensor.dtype)

    return replace(call, inputs=call.inputs.map(enlarged))


def answered(call, misread):
    """A clone of a call with the results of another one."""
    mine, theirs = call.clone(), run(misread).outputs()
    for name, result in mine.outputs().items():
        result.copy_(theirs[name])
    return mine


@pytest.mark.parametrize("fault", [one_stride, no_eps])
@pytest.mark.parametrize("problem", [PREFILL, DECODE], ids=str)
def test_a_hard_case_shows_what_the_timed_problem_does_not(fault, problem, two_rows, seed):
    """Inputs are slices of one projection with usual values there: a kernel that takes this for
    granted is right."""
    call = make_call(problem, seed)
    assert Gate(call, seed).judge(answered(call, fault(call))).status == "ok"
    verdicts = []
    for case in hard_cases(problem):
        call = case.call(seed, torch.device("cpu"))
        verdicts.append(Gate(call, seed).judge(answered(call, fault(call))).status)
    assert "wrong" in verdicts


@pytest.mark.parametrize("backend", ["triton", "tilelang"])
def test_every_cut_is_made_in_a_hard_case(backend):
    """No candidate cuts sequences at the tuned shape and never where the gate looks closely."""
    pytest.importorskip(backend)
    asked = problems(Axes(batch=(1, 8), length=(512, 2048, 16384)))
    for problem in asked:
        known = registry.get("prefill", backend).candidates(problem, registry.COMPILE_ONLY)
        for packed in (False, True):
            longest = max(
                max(case.problem.lengths or (case.problem.L,))
                for case in hard_cases(problem)
                if (case.problem.lengths is not None) == packed
            )
            assert all(config.segment < longest for config in known.values())


def test_padding_is_not_judged(two_rows, seed):
    """What a padding row's y holds is nobody's concern, and its pool row must stay."""
    call = make_call(replace(DECODE, H=6), seed)
    call.state_indices[1] = -1
    gate = Gate(call, seed)
    done = run(call)
    assert done.y[1].isnan().all()
    assert gate.judge(done).status == "ok"
    done.final.h[next(r for r in range(5) if r not in call.state_indices.tolist())] = 0
    assert gate.judge(done).reason.startswith("changed state.h of rows that are not in")
