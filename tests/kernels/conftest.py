"""Problems to draw from, how to run a call and compare its results, and kernels without a GPU.

Without a GPU CuTe kernels are compiled, and their PTX runs in the interpreter of `cute/ptx.py`.
Triton kernels run in a child pytest through Triton's interpreter: TRITON_INTERPRET=1 must be set
before triton is imported, and then nothing compiles. So the tests marked `interpreted` are
collected here and run in one child process per file.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem

RUNS_HERE = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


class InterpreterError(Exception):
    """The output of a child pytest that failed."""


class Interpreted(pytest.Item):
    """The selected `interpreted` tests of one file, run by a child pytest."""

    nodes: list[str]

    def runtest(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.nodes]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        child = subprocess.run(
            command, env=environment, cwd=self.config.rootpath, capture_output=True, text=True
        )
        if child.returncode != 0:
            raise InterpreterError(child.stdout[-20_000:] + child.stderr[-2_000:])

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: {len(self.nodes)} tests interpreted"


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Replace the tests that need the interpreter by one item per file that starts it."""
    if RUNS_HERE:
        return
    moved = [item for item in items if item.get_closest_marker("interpreted")]
    items[:] = [item for item in items if item not in moved]
    for path in dict.fromkeys(item.path for item in moved):
        parent = pytest.Dir.from_parent(session, path=path.parent)
        child = Interpreted.from_parent(parent, name=f"{path.name}[interpreted]")
        child.path = path
        child.nodes = [item.nodeid for item in moved if item.path == path]
        items.append(child)


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


@pytest.fixture(scope="session")
def spoil() -> Callable[..., Iterator[str]]:
    """NaN in the first number of some named tensors in turn; each has it while its name is out."""

    def each(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        for name, tensor in tensors:
            number = tensor.view(-1)[:1]
            kept = number.clone()
            number.fill_(torch.nan)
            yield name
            number.copy_(kept)

    return each


@pytest.fixture(scope="session")
def check_nan(run: Callable[..., Call], spoil: Callable[..., Iterator[str]]) -> Callable[..., None]:
    """Check a prefill kernel by NaN in one number of every input, at token 18, and of every state.

    y and h must be NaN where the reference's are. A kernel may spoil earlier tokens, of the same
    chunk, but no other head or batch row. `without`: names that the kernel does not hand on.
    """

    def check(call: Call, ran: Callable[[Call], Call], without: Sequence[str] = ()) -> None:
        assert call.state is not None
        states = [(name, tensor[0]) for name, tensor in call.state.items()]
        inputs = [(name, tensor[0, 18]) for name, tensor in call.inputs.items()]
        for name in spoil(each for each in states + inputs if each[0] not in without):
            mine, truth = ran(call).results(), run(call, "reference").results()
            for result, within in (("y", (1, 3)), ("state.h", (2, 3))):
                expected, got = truth[result].isnan(), mine[result].isnan()
                assert got[expected].all(), f"{name} is not in {result}"
                assert torch.equal(got.any(within), expected.any(within)), f"{name} in {result}"

    return check


@pytest.fixture(scope="session")
def check_still() -> Callable[..., None]:
    """Check that a prefill hands on angles that nothing turns, or rounds them up as often as down.

    The call's theta is set to 0; its state has many angles, for the mean of their errors.
    """

    def check(call: Call, ran: Callable[[Call], Call]) -> None:
        assert call.state is not None
        call.inputs.theta.zero_()
        final = ran(call).final
        assert final is not None
        turns = (final.phi.double() - call.state.phi.double()) / (2 * torch.pi)
        error = (turns - turns.round()) * 2 * torch.pi
        assert float(error.abs().max()) < 5e-7  # one step of float32 at 2 pi
        assert float(error.mean().abs()) < 1e-8  # rounded down, 4e-8

    return check


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: the GPU, or the CPU under an interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def step() -> Callable[..., None]:
    """Run one decode call on its own buffers by a backend, by its default config unless given."""
    machine = PtxMachine()

    def run_step(call: Call, backend: str, config: Any = None) -> None:
        if (reason := registry.unavailable("decode", backend)) is not None:
            pytest.skip(reason)
        implementation = registry.get("decode", backend)
        place = call.y.device if call.y.is_cuda else registry.COMPILE_ONLY
        config = config or implementation.default(call.problem, place)
        if backend == "cute" and not call.y.is_cuda:
            machine.run(call, config)
        else:
            implementation.run(call, config)

    return run_step


@pytest.fixture(scope="session")
def fresh(step: Callable[..., None]) -> Callable[..., Call]:
    """A clone of a decode call after a backend ran it, y filled with NaN before."""

    def run_fresh(call: Call, backend: str, config: Any = None) -> Call:
        mine = call.clone()
        mine.poison()
        step(mine, backend, config)
        return mine

    return run_fresh


class PtxMachine:
    """Runs decode calls of the CuTe kernels without a GPU; compiles each kernel once."""

    def __init__(self) -> None:
        self.programs: dict[Any, Any] = {}

    def run(self, call: Call, config: Any) -> None:
        """Run a call on its own buffers."""
        from mamba3_bench.kernels.cute import compile, decode

        ptx = ptx_interpreter()
        facts = decode.facts_of(call.problem)
        if (facts, config) not in self.programs:
            kernel = decode.kernel_of(facts, config)
            text = compile.ptx(kernel, *decode.fake_arguments(facts))
            self.programs[facts, config] = ptx.Program(text)
        *strides, B, H, G = decode.constants(call)
        given = [*call.inputs.every(), *call.params.every(), *call.final.every()]
        tensors = [t for t in [*given, call.y, call.state_indices] if t is not None]
        machine = ptx.Machine(self.programs[facts, config], B * H, tensors)
        present = [value for value in decode.addresses(call) if value is not None]
        machine.run([*present, *strides, H, G, H // G])


@cache
def ptx_interpreter() -> Any:
    """The module beside the tests of the CuTe kernels: tests are no package."""
    path = Path(__file__).parent / "cute" / "ptx.py"
    spec = importlib.util.spec_from_file_location("ptx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
