"""Compile what a run will launch before it, in parallel: no GPU waits for a compiler.

Each kernel of ours is compiled as `resources` does it, by processes that leave the GPU alone and
put it into the disk cache of its DSL, where the worker that runs it finds it. Other people's
kernels compile when they are launched: they are launched once, several processes side by side.
What an earlier run has compiled is left out. What fails here fails again in its own row, with its
reason.
"""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..kernels import registry
from ..kernels.family import Problem, family
from ..kernels.registry import config_dict
from .jobs import Entry, Job, Settings, Stage
from .kept import Kept
from .ledger import FAILED, Slot
from .records import Row
from .runner import Runner

COMPILED_FOR = "9.0"  # what `resources` compiles for
SIDE_BY_SIDE = 12  # processes on one GPU: each takes half a gigabyte of it beside its tensors


class Progress(Protocol):
    """Who watches."""

    def ahead(self, what: str, done: int, total: int, failed: int) -> None:
        """So many of all problems are done before the run, so many of these failed."""


def compile_ahead(
    left: Sequence[Job], environment: dict[str, Any], settings: Settings, progress: Progress
) -> None:
    """Compile the kernels of the jobs left, with those of their hard cases."""
    if environment.get("compute_capability") != COMPILED_FOR:
        return
    compiling = replace(settings, kind="resources", interpret=False)
    kept = Kept(compiling, environment)
    jobs = kept.missing(compile_jobs(left, environment.get("gpu")))
    if not jobs:
        return
    _run(Runner(compiling, compilers(jobs), None, Quiet("compiled", progress, kept)), jobs)


def compilers(jobs: Sequence[Job]) -> list[Slot]:
    """Places to compile in, away from the GPU: one a core, and no more than there are jobs."""
    count = max(1, min(len(jobs), len(os.sched_getaffinity(0))))
    return [Slot("cpu", {"OMP_NUM_THREADS": "1"})] * count


def rehearse(
    left: Sequence[Job],
    environment: dict[str, Any],
    slot: Slot,
    settings: Settings,
    progress: Progress,
    timeout_s: float,
) -> None:
    """Let each rival of the jobs left run once on a GPU: it finds what it compiled then on disk.

    As many run side by side as the GPU's memory has room for; those that would run alone are left
    to their turn.
    """
    rivals: dict[tuple[Problem, str | None], Entry] = {}
    for entry in (entry for job in left for entry in job.entries):
        op, backend = entry.problem.op, entry.backend
        if registry.is_rival(op, backend) and registry.unavailable(op, backend) is None:
            # backends of one adapter launch the same kernels
            of = entry.problem, registry.module_name(op, backend)
            rivals.setdefault(of, replace(entry, key="", repeat=0))
    rehearsing = replace(settings, kind="rehearse")
    kept = Kept(rehearsing, environment)
    together: dict[int, list[Job]] = {}
    for job in kept.missing([Job((entry,)) for entry in rivals.values()]):
        count = beside(job.entries[0].problem.bytes, environment.get("memory_bytes"))
        together.setdefault(count, []).append(job)
    cores = len(os.sched_getaffinity(0))
    for most, jobs in together.items():
        count = min(most, len(jobs), cores - 2)
        if count > 1:
            threads = {"OMP_NUM_THREADS": str(cores // count)}
            slots = [replace(slot, variables=slot.variables | threads)] * count
            watch = Quiet("rehearsed", progress, kept)
            _run(Runner(rehearsing, slots, None, watch, timeout_s=timeout_s), jobs)


def beside(nbytes: int, memory: int | None) -> int:
    """How many processes that run a problem share a GPU: SIDE_BY_SIDE, or a half or fourth of it.

    nbytes: what the problem moves; a rival takes as much again for itself, and again for copies.
    """
    room = SIDE_BY_SIDE if memory is None else memory // (3 * nbytes)
    return next((count for count in (SIDE_BY_SIDE, 6, 3) if count <= room), 1)


def _run(runner: Runner, jobs: Sequence[Job]) -> None:
    if runner.run(jobs).interrupted:
        raise KeyboardInterrupt


def compile_jobs(left: Sequence[Job], gpu: str | None = None) -> list[Job]:
    """One job per distinct problem, backend and config whose kernels are kept on disk.

    gpu: the name of the GPU whose tuned configs count where none is named.
    """
    asked = []
    for entry in (entry for job in left for entry in job.entries):
        config = _config(entry, gpu)
        if config is not None:
            cases = family(entry.problem.op).hard_cases(entry.problem)
            for problem in (*(case.problem for case in cases), entry.problem):
                asked.append(Entry(problem, entry.backend, config))
    return once_each(asked)


def once_each(entries: Iterable[Entry]) -> list[Job]:
    """One job per distinct problem, backend and config, of equal entries the first, in an order in
    which neighbours on an axis, which often share a kernel, are not compiled twice at once."""
    distinct: dict[str, Job] = {}
    for job in (Job((entry,)) for entry in entries):
        distinct.setdefault(job.match, job)
    jobs = list(distinct.values())
    random.Random(0).shuffle(jobs)
    return jobs


def _config(entry: Entry, gpu: str | None) -> dict[str, Any] | None:
    """The config to compile, None if there is nothing to compile ahead."""
    problem = entry.problem
    if entry.backend not in registry.KEPT_ON_DISK:
        return None
    if registry.unavailable(problem.op, entry.backend) is not None:
        return None
    implementation = registry.get(problem.op, entry.backend)
    if implementation.resources is None:
        return None
    if entry.config is not None:
        return entry.config
    return config_dict(implementation.choice(problem, gpu, torch.device("cpu"))[0])


class Quiet:
    """Counts rows, whatever they say, and keeps a list of what compiled."""

    def __init__(self, what: str, progress: Progress, kept: Kept | None = None) -> None:
        self.what, self.progress, self.kept = what, progress, kept
        self.total = self.done = self.failed = 0

    def planned(self, total: int, recorded: int) -> None:
        self.total = total

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        pass

    def row(self, row: Row) -> None:
        if self.kept is not None:
            self.kept.add(row)
        self.done += 1
        self.failed += row.status in FAILED
        self.progress.ahead(self.what, self.done, self.total, self.failed)
