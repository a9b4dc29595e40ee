"""The rows of what did not run, or not yet: known before the run, and why it failed."""

from dataclasses import asdict
from typing import Any

import torch

from ..kernels import registry
from ..kernels.toolchain import source_hash
from .graphs import FalseReplay
from .jobs import Entry, Settings
from .records import Error, Row, Status
from .sampler import Throttled


class NotRun(Exception):
    """Ends the work on one entry, with the status and reason of its row."""

    def __init__(self, status: Status, reason: str, errors: dict[str, Error] | None = None) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason
        self.errors = errors or {}


def explain(error: Exception) -> tuple[Status, str]:
    """The status and reason of a row whose run raised."""
    if isinstance(error, NotRun):
        return error.status, error.reason
    if isinstance(error, FalseReplay):
        return "wrong", str(error)
    if isinstance(error, Throttled):
        return "throttled", str(error)
    text = " ".join(str(error).split())[:500]
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "run-failed", f"out of memory: {reason}"
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    # the DSLs share no base class; these words are in the names of their compilers' errors
    if any(word in names for word in ("Compil", "OutOfResources", "PTXAS", "MLIR")):
        return "compile-failed", reason
    return "run-failed", reason


def blank_row(entry: Entry, settings: Settings, environment: dict[str, Any], match: str) -> Row:
    """A row with everything that is known before the run."""
    problem = entry.problem
    return Row(
        key=entry.key,
        op=problem.op,
        backend=entry.backend,
        status="run-failed",
        reason="not run yet",
        problem=problem.as_dict(),
        config=entry.config or {},
        seed=settings.seed,
        bytes=problem.bytes,
        flops=problem.flops,
        environment=environment,
        rival=registry.is_rival(problem.op, entry.backend),
        match=match,
        kind=settings.kind,
        source=source_hash(registry.module_name(problem.op, entry.backend) or ""),
        place=None if entry.place is None else asdict(entry.place),
        repeat=entry.repeat,
    )
