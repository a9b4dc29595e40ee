"""Running Triton kernels in tests: on a GPU, or in a child pytest through Triton's interpreter.

TRITON_INTERPRET=1 must be set before triton is imported, and then nothing compiles. So without a
GPU the tests marked `interpreted` are collected here and run in one child process per file.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
def device() -> str:
    """Where kernels run: the GPU, or the CPU under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
