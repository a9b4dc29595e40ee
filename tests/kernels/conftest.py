"""Problems to draw from, and how to run a call and compare its results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """A small problem with odd sizes and every optional tensor; any field can be given."""

    def make(op: str, **fields: Any) -> Problem:
        options = fields.get("options", Options())
        absent = {"b_norm", "c_norm"} if options.norm == "normalised" else set()
        absent |= {"dt_bias"} if options.step == "activated" else set()
        usual = {
            "B": 2, "L": 1 if op == "decode" else 23, "H": 6, "G": 3, "P": 5, "N": 8, "R": 1,
            "S": 4, "dtype": torch.float64, "has_state": True,
            "optional": tuple(name for name in OPTIONAL if name not in absent),
        }  # fmt: skip
        usual.update(fields)
        wide = torch.float64 if usual["dtype"] == torch.float64 else torch.float32
        return Problem(op=op, **{"state_dtype": wide, **usual})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def run() -> Callable[..., Call]:
    """Run a clone of a call by a backend, its outputs filled with NaN before."""

    def run_clone(call: Call, backend: str, config: Any = None) -> Call:
        mine = call.clone()
        mine.poison()
        implementation = registry.get(call.problem.op, backend)
        implementation.run(mine, config or implementation.default(call.problem, mine.y.device))
        return mine

    return run_clone


@pytest.fixture(scope="session")
def relative_errors() -> Callable[[Call, Call], dict[str, float]]:
    """||got - expected|| / ||expected|| of every output of two runs of one call.

    The norm counts as 1, the size of the inputs, where it is less: a sum of few terms may cancel.
    """

    def errors(got: Call, expected: Call) -> dict[str, float]:
        truth = expected.results()
        return {
            name: float((result - truth[name]).norm() / truth[name].norm().clamp(min=1))
            for name, result in got.results().items()
        }

    return errors
