"""Inputs from a seed: the same everywhere, other for another seed, and true to their problem."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import REGIMES, make_call
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.reference import mamba3

MakeProblem = Callable[..., Problem]


def tensors(call: Call) -> dict[str, torch.Tensor]:
    """What the seed decides."""
    parts = {"inputs": call.inputs, "params": call.params, "state": call.state}
    found = {
        f"{kind}.{name}": t for kind, part in parts.items() if part for name, t in part.items()
    }
    if call.state_indices is not None:
        found["state_indices"] = call.state_indices
    return found


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_same_seed_same_bits(make_problem: MakeProblem, seed: int, op: str, regime: str) -> None:
    """Whatever else has drawn random numbers before."""
    problem = make_problem(op, R=2, pool=5 if op == "decode" else None)
    first = tensors(make_call(problem, seed, regime=regime))
    torch.manual_seed(1)
    torch.randn(7)
    second = tensors(make_call(problem, seed, regime=regime))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_another_seed_changes_every_tensor(make_problem: MakeProblem, seed: int) -> None:
    """No tensor is left out of the draw, and no tensor repeats another."""
    problem = make_problem("decode", B=8, R=2, pool=50)
    one, two = (tensors(make_call(problem, s)) for s in (seed, seed + 1))
    for name, tensor in one.items():
        assert not torch.equal(tensor, two[name]), name
    assert not torch.equal(one["inputs.b"], one["inputs.c"])
    assert not torch.equal(one["params.b_bias"], one["params.c_bias"])


DIGEST = """
import torch
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.problem import OPTIONAL, Problem

def digest(seed):
    problem = Problem("prefill", 2, 9, 4, 2, 5, 8, 2, 4, torch.bfloat16, torch.float32,
                      optional=OPTIONAL, has_state=True)
    call = make_call(problem, seed)
    tensors = [t for part in (call.inputs, call.params, call.state) for _, t in part.items()]
    bits = [t.contiguous().view(torch.uint8).long().flatten() for t in tensors]
    return [int((v * torch.arange(1, len(v) + 1)).sum()) for v in bits]
"""


def test_another_process_builds_the_same_call(seed: int) -> None:
    """A worker rebuilds what its parent asked for, whatever its threads and hash seed."""
    names: dict[str, Any] = {}
    exec(DIGEST, names)
    script = DIGEST + f"torch.set_num_threads(1)\nprint(digest({seed}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == str(names["digest"](seed))
    assert names["digest"](seed + 1) != names["digest"](seed)


@pytest.mark.parametrize("decay", ["heavy_tail", "softplus", "log_decay"])
@pytest.mark.parametrize("step", ["softplus", "activated"])
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_are_what_they_say(
    make_problem: MakeProblem, seed: int, regime: str, step: mamba3.Step, decay: mamba3.Decay
) -> None:
    """Positive steps and falling decay always; strong forgets in a few tokens, weak remembers."""
    problem = make_problem("prefill", L=64, options=Options(step=step, decay=decay))
    call = make_call(problem, seed, regime=regime)
    i, p = call.inputs, call.params
    tokens = mamba3.activate(
        i.x, i.b, i.c, i.dt, i.a, i.lam, i.theta, i.z,
        dt_bias=p.dt_bias, b_norm=p.b_norm, c_norm=p.c_norm, b_bias=p.b_bias, c_bias=p.c_bias,
        step=step, decay=decay, norm="rms",
    )  # fmt: skip
    assert bool((tokens.step > 0).all())
    assert bool((tokens.log_decay <= 0).all())
    forgets = -float(tokens.log_decay.mean())  # per token
    turns = float((tokens.step[..., None] * tokens.theta).abs().mean())  # radians per token
    if regime == "strong_decay":
        assert forgets > 0.2
    if regime == "weak_decay":
        assert forgets < 1e-3
    if regime == "large_angles":
        assert turns > 1
    if regime == "typical":
        assert 1e-3 < forgets < 0.2
        assert turns < 0.5


def test_slices_lie_in_one_projection(make_problem: MakeProblem, seed: int) -> None:
    """As a layer hands them over: one storage, one token stride, 16-byte starts, NaN between."""
    call = make_call(make_problem("prefill", dtype=torch.bfloat16), seed)
    slices = [tensor for _, tensor in call.inputs.items()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in slices}) == 1
    assert len({tensor.stride(1) for tensor in slices}) == 1
    for tensor in slices:
        assert tensor.data_ptr() % 16 == slices[0].untyped_storage().data_ptr() % 16
    width = slices[0].stride(1)
    whole = call.inputs.x.as_strided((2 * 23, width), (width, 1), 0)
    used = sum(tensor[0, 0].numel() for tensor in slices)
    assert int(whole.isnan().sum()) == 2 * 23 * (width - used)
