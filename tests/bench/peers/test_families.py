"""Adapters of the other families compute what their problem says; planted errors are caught."""

import pytest
import torch

from mamba3_bench.bench import peers
from mamba3_bench.bench.buffers import restore
from mamba3_bench.bench.gate import Gate
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.family import family, make_call

CPU = torch.device("cpu")
RIVALS = [known for known in peers.PEERS if "." in known[0]]


def problem(op, **axes):
    """Ragged, with groups, and with as many columns as rows in a state: it can be transposed."""
    size = 32 if op.startswith("attention") else 64
    sizes = {"batch": (2,), "length": (37,), "heads": (4,), "groups": (2,)}
    sizes |= {"state": (size,), "head_size": (size,)}
    (found,) = problems(Axes(op=op, **(sizes | axes)))
    return found


def judged(case, backend, seed, regime="typical", spoil=None):
    """What the gate says of an adapter, with one of its arguments or results spoiled."""
    gate = Gate(make_call(case, seed, regime=regime), seed)
    implementation = registry.get(case.op, backend)
    call = gate.pristine.clone()
    call.poison()
    bound = implementation.bind(call, implementation.default(case, CPU))
    if spoil is not None and spoil in bound.arguments:
        bound.arguments[spoil] = SPOILED[spoil](bound.arguments[spoil])
    bound.launch()
    if spoil == "final":
        y, h = bound.results
        bound.results = (y, h.mT)
    bound.collect()
    return gate.judge(call, rival=implementation.rival)


@pytest.mark.parametrize("carried", ["no", "yes"])
@pytest.mark.parametrize(("op", "backend"), RIVALS)
def test_adapter_computes_its_problem(op, backend, carried, seed):
    """With a library that keeps its word, the result is as right as PyTorch's."""
    case = problem(op, initial_state=(carried,))
    verdict = judged(case, backend, seed)
    assert verdict.status == "ok", verdict.reason


@pytest.mark.parametrize(("op", "backend"), RIVALS)
def test_adapter_takes_other_values_in_the_same_buffers(op, backend, seed):
    """As after timing: a launch on refreshed arguments computes what the call holds then."""
    case = problem(op)
    call, gate = make_call(case, seed), Gate(make_call(case, seed + 1), seed)
    implementation = registry.get(op, backend)
    bound = implementation.bind(call, implementation.default(case, CPU))
    bound.launch()
    restore(call, gate.pristine)
    call.poison()
    bound.refresh()
    bound.launch()
    bound.collect()
    verdict = gate.judge(call, rival=implementation.rival)
    assert verdict.status == "ok", verdict.reason


def less(tensor):
    """A tenth is missing."""
    return 0.9 * tensor


def opposite(tensor):
    """The other sign."""
    return -tensor


def transposed(state):
    """P and N exchanged, in place."""
    return state.copy_(state.mT.clone())


SPOILED = {
    "z": opposite, "dt": opposite, "B": less, "D": less, "state": transposed, "initial_states":
    transposed, "scale": less, "g": opposite, "a": opposite, "b": opposite, "beta": opposite,
    "initial_state": transposed, "q": opposite, "k": less, "keys": opposite, "values": less,
    "v": less,
}  # fmt: skip
PLANTS = {
    ("mamba2.prefill", "mamba_ssm"): ("z", "dt", "D", "initial_states", "final"),
    ("mamba2.decode", "mamba_ssm"): ("z", "B", "state"),
    ("mamba2.decode", "flashinfer"): ("z", "B", "state"),
    ("gdn.prefill", "fla"): ("g", "beta", "v", "initial_state", "final"),
    ("gdn.prefill", "flashinfer"): ("scale", "beta", "initial_state", "final"),
    ("gdn.decode", "fla"): ("g", "beta", "initial_state", "final"),
    ("gdn.decode", "flashinfer"): ("a", "b", "state"),
    ("attention.prefill", "sdpa"): ("q", "v"),
    ("attention.decode", "sdpa"): ("q", "keys", "values"),
}


@pytest.mark.parametrize(
    ("op", "backend", "spoil"),
    [(*rival, what) for rival, plants in PLANTS.items() for what in plants],
)
def test_planted_error_is_caught(op, backend, spoil, seed):
    """A wrong gate, a missing scale, a transposed state: in a typical case or a rival's own."""
    case = problem(op, initial_state=("yes",))
    cases = [(case, "typical")]
    cases += [(hard.problem, hard.regime) for hard in family(op).rival_cases(case)]
    verdicts = {judged(one, backend, seed, regime, spoil).status for one, regime in cases}
    assert "wrong" in verdicts


def test_every_adapter_has_planted_errors():
    """None is left out."""
    assert set(PLANTS) == set(RIVALS)


@pytest.mark.parametrize(
    ("op", "backend", "axes", "reason"),
    [
        ("mamba2.decode", "flashinfer", {"state": (32,)}, "N in 64, 128, 256"),
        ("mamba2.decode", "flashinfer", {"dtype": ("fp32",)}, "bfloat16"),
        ("gdn.prefill", "flashinfer", {}, "128 by 128"),
        ("gdn.prefill", "fla", {"dtype": ("fp32",)}, "bfloat16 or float16"),
        ("gdn.decode", "fla", {}, "CUDA"),
    ],
)
def test_refusals_have_reasons(op, backend, axes, reason):
    """What a library does not take, by its documentation, is a row with a reason."""
    assert reason in registry.refusal(op, backend, problem(op, **axes), CPU)
