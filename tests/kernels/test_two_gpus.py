"""The ops on a GPU that is not the current one."""

from typing import Any

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import decode, prefill
from mamba3_bench.kernels.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
KERNELS = [key for key in registry.MODULES if "." not in key[0] and key[1] != "reference"]


def results(call: Call, backend: str) -> list[torch.Tensor]:
    """y and the state after an op, on the CPU."""
    mine, op = call.clone(), call.problem.op
    assert mine.state is not None
    rest: dict[str, Any] = {"options": call.problem.options, "backend": backend}
    if op == "decode":
        y, state = decode(mine.inputs, mine.params, mine.state, **rest), mine.state
    else:
        y, state = prefill(mine.inputs, mine.params, mine.state, **rest)
    return [tensor.cpu() for tensor in (y, *state.every())]


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize(("op", "backend"), KERNELS)
def test_every_gpu_gives_the_same_bits(op: Any, backend: str, current: int, seed: int) -> None:
    """Kernels run where the tensors are, whatever GPU is current, and leave it current."""
    if (reason := registry.unavailable(op, backend)) is not None:
        pytest.skip(reason)
    case = Problem(
        op, 2, 1 if op == "decode" else 100, 4, 1, 64, 64, 1, 16, torch.bfloat16, torch.float32,
        optional=("z", "dt_bias", "d"), has_state=True,
    )  # fmt: skip
    found = []
    with torch.cuda.device(current):
        for index in range(2):
            call = make_call(case, seed, torch.device("cuda", index))
            found.append(results(call, backend))
            assert torch.cuda.current_device() == current
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
