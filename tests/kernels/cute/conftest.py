"""Running CuTe kernels in tests: on a GPU, or their PTX in an interpreter where there is none."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call

_spec = importlib.util.spec_from_file_location("ptx", Path(__file__).with_name("ptx.py"))
assert _spec is not None
assert _spec.loader is not None
ptx = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ptx)

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tensors of a test lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def step() -> Callable[..., None]:
    """Run one decode call, by the default config unless another is given."""
    programs: dict[Any, Any] = {}

    def interpreted(call: Call, config: Any) -> None:
        from mamba3_bench.kernels.cute import compile, decode

        facts = decode.facts_of(call.problem)
        if (facts, config) not in programs:
            kernel = decode.kernel_of(facts, config)
            text = compile.ptx(kernel, *decode.fake_arguments(facts))
            programs[facts, config] = ptx.Program(text)
        *strides, B, H, G = decode.constants(call)
        assert call.state is not None
        named = call.inputs.items() + call.params.items() + call.state.items()
        tensors = [tensor for _, tensor in named] + [call.y]
        if call.state_indices is not None:
            tensors.append(call.state_indices)
        machine = ptx.Machine(programs[facts, config], B * H, tensors)
        present = [value for value in decode.addresses(call) if value is not None]
        machine.run([*present, *strides, H, G, H // G])

    def run(call: Call, config: Any = None) -> None:
        implementation = registry.get("decode", "cute")
        config = config or implementation.default(call.problem, GPU)
        if torch.cuda.is_available():
            implementation.run(call, config)
        else:
            interpreted(call, config)

    return run


@pytest.fixture(scope="session")
def fresh(step: Callable[..., None]) -> Callable[..., Call]:
    """A clone of a call after the kernel ran it, y filled with NaN before."""

    def run(call: Call, config: Any = None) -> Call:
        mine = call.clone()
        mine.poison()
        step(mine, config)
        return mine

    return run
