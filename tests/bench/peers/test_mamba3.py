"""Official Mamba-3 adapters compute what their problem says, and planted errors are caught."""

from dataclasses import replace

import pytest
import torch

from mamba3_bench.bench.gate import Gate
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.families.mamba3 import rival_cases
from mamba3_bench.kernels.problem import Options

CPU = torch.device("cpu")
BACKENDS = ("mamba_ssm", "mamba_ssm_kernel")


def problem(op, rank, **axes):
    """Small, ragged, with as many columns as rows in a state, so that it can be transposed."""
    sizes = {"batch": (2,), "length": (67,), "heads": (8,), "state": (64,), "rank": (rank,)}
    (found,) = problems(Axes(op=op, **(sizes | axes)))
    return found


def judged(case, backend, seed, regime="typical"):
    """What the gate says of an adapter on a case."""
    gate = Gate(make_call(case, seed, regime=regime), seed)
    implementation = registry.get(case.op, backend)
    call = gate.pristine.clone()
    call.poison()
    implementation.run(call, implementation.default(case, CPU))
    return gate.judge(call, rival=implementation.rival)


CASES = [
    problem("prefill", 1),
    problem("prefill", 1, initial_state=("yes",), groups=(2,)),
    problem("prefill", 4),
    problem("prefill", 1, step=("activated",), decay=("log_decay",), norm=("normalised",)),
    problem("decode", 1, state_dtype=("bf16",)),
    problem("decode", 4, decay=("softplus",)),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.op}-R{p.R}-{p.options.decay}-G{p.G}")
def test_adapter_computes_its_problem(case, backend, seed):
    """With a library that keeps its word, only what the library itself rounds is left.

    That is bfloat16 angles in SISO, and bfloat16 lam in decode: well under one per cent.
    """
    verdict = judged(case, backend, seed)
    assert verdict.status != "wrong", verdict.reason
    assert max(error.l2 for error in verdict.errors.values()) < 0.01


def wrong_gate(arguments):
    """The gate of the wrong sign."""
    for name in {"Z", "z"} & arguments.keys():
        arguments[name] = -arguments[name]


def missing_scale(arguments):
    """The step size a tenth too small."""
    for name in {"DT", "dt"} & arguments.keys():
        arguments[name] = 0.9 * arguments[name]


def transposed_state(arguments):
    """The last state of a prefill, or the state of a decode, with P and N exchanged."""
    if "state" in arguments:
        arguments["state"].copy_(arguments["state"].mT.clone())


PLANTS = (wrong_gate, missing_scale, transposed_state)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4]], ids=lambda p: f"{p.op}-R{p.R}")
def test_planted_error_is_caught(case, backend, plant, adapter, monkeypatch, seed):
    """One wrong argument or result of the library's function makes the adapter wrong."""
    name = {"decode": "mamba3_step_fn", "prefill": "mamba3_siso_combined"}[case.op]
    name = "mamba3_mimo" if case.op == "prefill" and case.R > 1 else name
    module = adapter(f"mamba3_{case.op}")
    right = getattr(module, name)

    def planted(**arguments):
        plant(arguments)
        results = right(**arguments)
        if plant is transposed_state and case.op == "prefill":
            y, phi, h, k, x = results
            return y, phi, h.mT, k, x
        return results

    monkeypatch.setattr(module, name, planted)
    regimes = {"typical"} | {hard.regime for hard in rival_cases(case)}
    assert "wrong" in {judged(case, backend, seed, regime).status for regime in regimes}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float16}, "bfloat16"),
        ({"optional": ("z",)}, "always has b_bias, c_bias, d"),
        ({"options": Options(pairing="half")}, "interleaved pairs"),
        ({"H": 12}, "multiples of 8"),
        ({"P": 32}, "multiples of 64"),
    ],
)
def test_refusals_have_reasons(change, reason):
    """What the official decode does not compute, or would corrupt memory with, is refused."""
    case = replace(problem("decode", 1), **change)
    assert reason in registry.refusal("decode", "mamba_ssm", case, CPU)


def test_rivals_are_never_chosen_by_themselves():
    """`auto` runs one of our backends, and a sweep without names too."""
    for op in ("prefill", "decode"):
        assert registry.is_rival(op, "mamba_ssm")
        case = problem(op, 1)
        assert registry.choose(op, "auto", case, CPU).rival is False
