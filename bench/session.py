"""What the commands share: backends, jobs, slots, and what a run comes to."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..kernels import registry
from ..kernels.family import Problem, family
from ..kernels.problem import OpName
from ..kernels.registry import config_dict
from . import show
from .ahead import compile_ahead, rehearse
from .axes import LARGEST, shortened, whole
from .grid import Axes, problems
from .jobs import Entry, Job, Kind, Settings
from .ledger import FAILED, Outcome, Slot
from .presets import Side
from .records import Row
from .runner import Runner
from .sides import NoRecords, record_files

RIGHT, WRONG, NOTHING, INTERRUPTED = 0, 1, 3, 130


class UsageError(Exception):
    """Arguments that do not go together."""


def make_jobs(points: Sequence[Sequence[Side]], asked: str | None) -> list[Job]:
    """One job per point of a grid, with those who meet there; raises UsageError and OptionError.

    A problem whose bytes or FLOPs no table can hold is refused.
    asked: the backends named, of those that the grid has; None for all.
    """
    jobs = []
    for sides in points:
        entries: list[Entry] = []
        for side in sides:
            unknown = side.typed - set(family(side.op).axes) - {"optional"}
            if len(sides) == 1 and unknown:
                raise UsageError(f"{as_typed(unknown)}: {side.op} has no such axis; leave it out")
            names = backends_of(side, asked, alone=len(sides) == 1)
            grid = problems(Axes(op=side.op, **side.axes))
            refuse_too_large(grid)
            entries += [Entry(problem, name) for problem in grid for name in names]
        if entries:
            jobs.append(Job(tuple(dict.fromkeys(entries))))
    refuse_unknown(points, asked)
    if not jobs:
        raise UsageError(f"--backend: nobody of {asked} is in this grid")
    return list(dict.fromkeys(jobs))


def files_below(paths: Sequence[Path]) -> list[Path]:
    """The record files named, and those below the folders named.

    Raises UsageError for a file that is missing, NoRecords without any.
    """
    files = [file for path in paths for file in record_files(path)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"no such record file: {', '.join(map(str, missing))}")
    if not files:
        raise NoRecords(*paths)
    return files


def refuse_too_large(grid: Sequence[Problem]) -> None:
    """Raise UsageError for a problem that needs more than 64 bits to be told."""
    for problem in grid:
        if max(problem.bytes, problem.flops) > LARGEST:
            name = show.problem_name(problem.as_dict())
            raise UsageError(f"{name}: too large: its bytes and FLOPs must be less than 2^63")


def as_typed(axes: Iterable[str]) -> str:
    """Names of axes as they are on the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(axes))


def refuse_unknown(points: Sequence[Sequence[Side]], asked: str | None) -> None:
    """Raise UsageError for a backend asked for that no op of a grid has."""
    ops = dict.fromkeys(side.op for sides in points for side in sides)
    known = dict.fromkeys(name for op in ops for name in registry.backends(op))
    for name in names_in(asked) if asked is not None and known else ():
        if name not in known:
            there = ", ".join(known)
            raise UsageError(f"--backend: no op of this grid has {name!r}; there are {there}")


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list with commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def backends_of(side: Side, asked: str | None, *, alone: bool) -> tuple[str, ...]:
    """The backends of a contender; of those asked for, if any are named, the ones that it has."""
    if not side.backends and (alone or asked is None):
        return choose_backends(side.op, asked)
    known = registry.backends(side.op)
    if asked is not None:
        return tuple(name for name in names_in(asked) if name in known)
    ours = [
        name
        for name in known
        if name not in ("reference", "torch") and not registry.is_rival(side.op, name)
    ]
    named = [n for name in side.backends for n in (ours if name == "ours" else [name])]
    return tuple(dict.fromkeys(named))


def resource_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs with an entry for each config of each backend that it can be compiled for."""
    device = torch.device("cpu")
    found = []
    for job in jobs:
        entries = []
        for entry in job.entries:
            problem, name = entry.problem, entry.backend
            if registry.refusal(problem.op, name, problem, registry.COMPILE_ONLY) is not None:
                continue
            implementation = registry.get(problem.op, name)
            if implementation.resources is None:
                continue
            configs = implementation.configs(problem, device)
            entries += [Entry(problem, name, config_dict(config)) for config in configs]
        if entries:
            found.append(Job(tuple(entries)))
    return found


def choose_backends(op: OpName, asked: str | None) -> tuple[str, ...]:
    """The backends named, or all of ours that load here but the reference; raises UsageError.

    An op that we have no kernel for is asked for because of the others: all that load.
    """
    known = registry.backends(op)
    if asked is None:
        ours = [name for name in known if name != "reference" and not registry.is_rival(op, name)]
        if ours == ["torch"]:
            ours = [name for name in known if name != "reference"]
        return tuple(name for name in ours if registry.unavailable(op, name) is None)
    names = names_in(asked)
    for name in names:
        if name not in known:
            raise UsageError(f"--backend: {op} has no {name!r}; there are {', '.join(known)}")
    return names


def perform(
    page: Console,
    arguments: argparse.Namespace,
    settings: Settings,
    jobs: Sequence[Job],
    title: str,
    *,
    ahead: bool = True,
) -> Outcome:
    """Run jobs under the progress display; ahead: compile their kernels before."""
    device = device_of(arguments)
    if getattr(arguments, "ray", None) is not None:
        return perform_on_ray(page, arguments, settings, jobs, title)
    slots = make_slots(device, settings.kind, getattr(arguments, "gpus", None))

    def compile_before(left: Sequence[Job], environment: dict[str, Any]) -> None:
        compile_ahead(left, environment, settings, watch)
        if device.type == "cuda" and settings.kind == "sweep":
            rehearse(left, environment, slots[0], settings, watch, arguments.timeout)

    with show.Watch(page, title) as watch:
        return Runner(
            settings,
            slots[: max(1, len(jobs))],
            records_path(arguments),
            watch,
            timeout_s=arguments.timeout,
            retry=arguments.retry,
            before=compile_before if ahead else None,
        ).run(jobs)


def perform_on_ray(
    page: Console,
    arguments: argparse.Namespace,
    settings: Settings,
    jobs: Sequence[Job],
    title: str,
) -> Outcome:
    """The same through Ray; raises UsageError where it is not installed."""
    try:
        from .cluster import Cluster
    except ImportError as error:
        raise UsageError(f"--ray: {error}; pip install 'mamba3-bench[ray]'") from error
    if arguments.gpus is not None:
        raise UsageError("--gpus: Ray gives out the GPUs; leave it out, or leave out --ray")
    with show.Watch(page, title) as watch:
        return Cluster(
            settings,
            device_of(arguments).type,
            records_path(arguments),
            watch,
            address=arguments.ray,
            timeout_s=arguments.timeout,
            retry=arguments.retry,
        ).run(jobs)


def make_slots(device: torch.device, kind: Kind, gpus: str | None = None) -> list[Slot]:
    """One slot per visible GPU, or for those of them named. On a CPU one to time, or one per core.

    There each has one thread, several GPUs share the cores, or all have OMP_NUM_THREADS: on a busy
    machine, the threads of one small operation wait for each other a hundred times longer than they
    work.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    if device.type == "cuda" and kind != "resources":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        names = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
        chosen = names if gpus is None else [names[i] for i in numbers_below(gpus, len(names))]
        if threads is None and len(chosen) > 1:
            threads = str(max(1, cores // len(chosen)))
        own = {} if threads is None else {"OMP_NUM_THREADS": threads}
        return [Slot("cuda:0", {"CUDA_VISIBLE_DEVICES": name, **own}) for name in chosen]
    if gpus is not None and kind != "resources":
        raise UsageError("--gpus: there is none in use; leave it out")
    slot = Slot("cpu", {"OMP_NUM_THREADS": threads or "1"})
    return [slot] * (1 if kind in ("sweep", "tune") else min(cores, 4))


def numbers_below(text: str, count: int) -> list[int]:
    """GPUs by their number among the visible ones, each once; raises UsageError."""
    found = []
    for part in names_in(text):
        number = whole(part)
        if number is None or number >= count:
            raise UsageError(
                f"--gpus: expected numbers from 0 to {count - 1}, got {shortened(part)!r}; "
                "`mamba3-bench doctor` lists them"
            )
        found.append(number)
    return list(dict.fromkeys(found))


def conclude(page: Console, outcome: Outcome, path: Path | None) -> int:
    """Print the counts and how to go on; returns the exit code."""
    rows = outcome.all
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing done"
    where = f"; records: {path}" if path else ""
    page.print(f"{summary}{where}", markup=False, highlight=False, soft_wrap=True)
    name_lost(page, outcome)
    if outcome.interrupted:
        kept = (
            "what is done is kept: the same command goes on from here" if path else "not recorded"
        )
        page.print(f"interrupted, {outcome.left} entries left; {kept}", highlight=False)
        return INTERRUPTED
    return exit_code(rows)


def name_lost(page: Console, outcome: Outcome) -> None:
    """Print the workers that were given up, each with its reason."""
    for reason in outcome.lost:
        page.print(f"a worker was given up: {reason}", markup=False, soft_wrap=True)


def exit_code(rows: Sequence[Row]) -> int:
    """WRONG if any row failed, NOTHING if none was checked, measured or compiled, else RIGHT."""
    if any(row.status in FAILED for row in rows):
        return WRONG
    if not any(row.status in ("ok", "inaccurate") or row.resources for row in rows):
        return NOTHING
    return RIGHT


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device asked for; raises UsageError for a GPU that is not there."""
    if getattr(arguments, "ray", None) is not None:  # the GPUs may be elsewhere
        return torch.device(arguments.device or default_device())
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no GPU that this torch can use; see `mamba3-bench doctor`")
    return torch.device(arguments.device) if arguments.device else default_device()


def records_path(arguments: argparse.Namespace) -> Path | None:
    """The record file of a run."""
    return None if arguments.out is None else Path(arguments.out) / "records.jsonl"


def absolute(names: Sequence[str]) -> tuple[str, ...]:
    """Plugins by absolute path, or by a module name that workers find."""
    return tuple(
        str(Path(name).resolve()) if name.endswith(".py") else findable(name) for name in names
    )


def findable(name: str) -> str:
    """A module's name; its file if it is found in the current folder, where no worker searches."""
    here = os.getcwd()
    top = name.partition(".")[0]
    found = PathFinder.find_spec(top, [here])
    if found is None or sys.path[0] not in ("", here):
        return name
    elsewhere = PathFinder.find_spec(top, sys.path[1:])
    if elsewhere is not None and elsewhere.origin == found.origin:
        return name
    with suppress(ImportError, ValueError):  # loading it says what is wrong
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            return str(Path(spec.origin).resolve())
    return name


def command_line(given: Sequence[str]) -> str:
    """The command as it was typed."""
    return shlex.join(["mamba3-bench", *given])
