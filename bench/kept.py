"""What earlier runs compiled and rehearsed: it lies in the caches that the DSLs keep on disk.

A file has one line for each problem, backend and config: a hash of what the compiled code depends
on. If the caches are emptied and this file is not, what is missing is compiled when it is launched.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..kernels.problem import OpName
from ..kernels.toolchain import cache_folder
from .jobs import Entry, Job, Settings
from .keys import source_hash
from .records import Row

TOOLS = ("compute_capability", "cuda", "ptxas", "nvcc", "python", "packages")  # of an environment
CACHES = ("TRITON_CACHE_DIR", "TILELANG_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "HOME")


class Kept:
    """The list, as one kind of run sees it."""

    def __init__(self, settings: Settings, environment: dict[str, Any]) -> None:
        """Read the list; environment: of the GPU's worker."""
        self._plugins = settings.plugins
        tools = {name: environment.get(name) for name in TOOLS}
        caches = {name: os.environ.get(name) for name in CACHES}
        self._common = json.dumps([settings.kind, tools, caches], sort_keys=True)
        self._path = cache_folder() / "ahead"
        self._known: set[str] = set()
        with suppress(OSError):  # none yet, or none that may be read
            self._known = set(self._path.read_text().split())

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, of one entry each, that are not in the list."""
        return [job for job in jobs if self._name_of(job.entries[0]) not in self._known]

    def add(self, row: Row) -> None:
        """Put what a row's entry compiled into the list, if it did not fail."""
        if row.status != "skipped":
            return
        name = self._name(row.op, row.backend, row.problem, row.config)
        with suppress(OSError):  # it is compiled again, no more
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"{name}\n")

    def _name_of(self, entry: Entry) -> str:
        problem = entry.problem
        return self._name(problem.op, entry.backend, problem.as_dict(), entry.config or {})

    def _name(
        self, op: OpName, backend: str, problem: dict[str, Any], config: dict[str, Any]
    ) -> str:
        source = source_hash(op, backend, self._plugins, choosing=False)
        told = json.dumps(
            [self._common, source, backend, problem, config], sort_keys=True, default=str
        )
        return hashlib.sha256(told.encode()).hexdigest()[:20]
