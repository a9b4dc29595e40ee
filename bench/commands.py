"""What each command does; `cli.py` reads the arguments."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..kernels import registry
from ..kernels.errors import Mamba3Error, OptionError
from ..kernels.problem import Problem
from ..kernels.registry import config_dict
from . import doctor, plugins, show
from .grid import Axes, problems
from .jobs import Entry, Job, Kind, Settings
from .records import Row
from .runner import FAILED, Outcome, RunError, Runner, Slot

RIGHT, WRONG, NOTHING, INTERRUPTED = 0, 1, 3, 130
MANY = 2000  # entries: ask first


class UsageError(Exception):
    """Arguments that do not go together."""


def run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Run a command; returns its exit code. Raises UsageError."""
    page = show.console()
    try:
        match arguments.command:
            case "list":
                return list_backends(page)
            case "doctor":
                return doctor.report(page)
            case "report":
                return write_report(page, arguments.records, arguments.out)
            case "resources":
                return resources(page, arguments, given)
            case "quick":
                return quick(page, arguments, given)
            case _:
                return measure(page, arguments, given)
    except OptionError as error:
        raise UsageError(str(error)) from error
    except (RunError, ImportError) as error:
        page.print(f"[bold red]error[/]: {escape(str(error))}", soft_wrap=True)
        return WRONG


def list_backends(page: Console) -> int:
    """Print every op and backend, and whether it runs a typical problem here."""
    device = default_device()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("op", "backend", f"here ({device.type})", "notes"):
        table.add_column(name, overflow="fold")
    for op in ("prefill", "decode"):
        for backend in registry.backends(op):
            missing = registry.unavailable(op, backend)
            answers = {}
            for rank in (1, 4):
                (problem,) = problems(Axes(op=op, rank=(rank,)))
                answers[rank] = missing or registry.refusal(op, backend, problem, device)
            here = "no" if all(answers.values()) else "yes"
            reasons = dict.fromkeys(answer for answer in answers.values() if answer)
            notes = "; ".join(
                reason if missing or all(answers.values()) else f"not for all ranks: {reason}"
                for reason in reasons
            )
            table.add_row(
                op, backend, f"[{'green' if here == 'yes' else 'red'}]{here}", escape(notes)
            )
    page.print(table)
    return RIGHT


def measure(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """`check` and `sweep`."""
    kind: Kind = "check"
    if arguments.command == "sweep" and not arguments.check_only:
        kind = "sweep"
    plugins.load(arguments.plugin)
    axes = Axes(**arguments.axes)
    names = choose_backends(axes, arguments.backend)
    entries = tuple(Entry(name) for name in names)
    jobs = [Job(problem, entries) for problem in problems(axes)]
    count = len(jobs) * len(entries)
    if count > MANY and not arguments.yes and sys.stdin.isatty():
        page.print(
            f"{count} entries; --yes starts them without this question. Go on? \\[y/N]", end=" "
        )
        if input().strip().lower() not in ("y", "yes"):
            return NOTHING
    settings = Settings(
        kind=kind,
        seed=arguments.seed,
        budget_s=getattr(arguments, "budget", 0.3),
        interpret=device_of(arguments).type == "cpu",
        plugins=absolute(arguments.plugin),
        command=command_line(given),
    )
    outcome = perform(page, arguments, settings, jobs, arguments.command)
    page.print(show.results_table(outcome.all))
    return conclude(page, outcome, records_path(arguments))


def resources(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Compile every shipped config for sm_90a and list what it takes."""
    plugins.load(arguments.plugin)
    axes = Axes(**arguments.axes)
    jobs = resource_jobs(problems(axes), choose_backends(axes, arguments.backend))
    if not jobs:
        page.print("no backend chosen here compiles anything: see `mamba3-bench list`")
        return NOTHING
    settings = Settings(
        kind="resources",
        seed=arguments.seed,
        plugins=absolute(arguments.plugin),
        command=command_line(given),
    )
    outcome = perform(page, arguments, settings, jobs, "resources")
    page.print(show.resources_table(outcome.all))
    return conclude(page, outcome, records_path(arguments))


def quick(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """The main job at a small size: machine, compiler, gates and times, report."""
    return 0


def resource_jobs(grid: Sequence[Problem], names: Sequence[str]) -> list[Job]:
    """One job per problem, with an entry for each config of each backend that can be compiled."""
    device = torch.device("cpu")
    jobs = []
    for problem in grid:
        entries = []
        for name in names:
            if registry.unavailable(problem.op, name) is not None:
                continue
            implementation = registry.get(problem.op, name)
            if implementation.resources is None:
                continue
            configs = implementation.configs(problem, device)
            entries += [Entry(name, config_dict(config)) for config in configs]
        if entries:
            jobs.append(Job(problem, tuple(entries)))
    return jobs


def choose_backends(axes: Axes, asked: str | None) -> tuple[str, ...]:
    """The backends named, or all that load here but the reference; raises UsageError."""
    known = registry.backends(axes.op)
    if asked is None:
        loaded = [name for name in known if registry.unavailable(axes.op, name) is None]
        return tuple(name for name in loaded if name != "reference")
    names = tuple(dict.fromkeys(part.strip() for part in asked.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"--backend: {axes.op} has no {name!r}; there are {', '.join(known)}")
    return names


def perform(
    page: Console,
    arguments: argparse.Namespace,
    settings: Settings,
    jobs: Sequence[Job],
    title: str,
) -> Outcome:
    """Run jobs under the progress display."""
    slots = make_slots(device_of(arguments), settings.kind)
    with show.Watch(page, title) as watch:
        return Runner(
            settings,
            slots[: max(1, len(jobs))],
            records_path(arguments),
            watch,
            timeout_s=arguments.timeout,
            retry=arguments.retry,
        ).run(jobs)


def make_slots(device: torch.device, kind: Kind) -> list[Slot]:
    """One slot per visible GPU. On a CPU one to time, or several that share its cores to check."""
    if device.type == "cuda" and kind != "resources":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        names = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
        return [Slot("cuda:0", {"CUDA_VISIBLE_DEVICES": name}) for name in names]
    if kind == "sweep":
        return [Slot("cpu")]
    workers = min(len(os.sched_getaffinity(0)), 4)
    return [Slot("cpu", {"OMP_NUM_THREADS": "1"})] * workers


def conclude(page: Console, outcome: Outcome, path: Path | None) -> int:
    """Print the counts and how to go on; returns the exit code."""
    rows = outcome.all
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing done"
    page.print(f"{summary}{f'; records: {path}' if path else ''}", highlight=False, soft_wrap=True)
    if outcome.interrupted:
        kept = (
            "what is done is kept: the same command goes on from here" if path else "not recorded"
        )
        page.print(f"interrupted, {outcome.left} entries left; {kept}", highlight=False)
        return INTERRUPTED
    return exit_code(rows)


def exit_code(rows: Sequence[Row]) -> int:
    """WRONG if any row failed, NOTHING if none was checked, measured or compiled, else RIGHT."""
    if any(row.status in FAILED for row in rows):
        return WRONG
    if not any(row.status in ("ok", "inaccurate") or row.resources for row in rows):
        return NOTHING
    return RIGHT


def write_report(page: Console, paths: Sequence[Path], out: Path) -> int:
    """Make tables, plots and the page from record files."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"no such record file: {', '.join(map(str, missing))}")
    # reports stand above bench: they are looked up by name, when asked for
    write = import_module("mamba3_bench.reports.main").write
    for path in write(list(paths), out):
        page.print(str(path), highlight=False, soft_wrap=True)
    return RIGHT


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device asked for; raises UsageError for a GPU that is not there."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no GPU that this torch can use; see `mamba3-bench doctor`")
    return torch.device(arguments.device) if arguments.device else default_device()


def records_path(arguments: argparse.Namespace) -> Path | None:
    """The record file of a run."""
    return None if arguments.out is None else Path(arguments.out) / "records.jsonl"


def absolute(names: Sequence[str]) -> tuple[str, ...]:
    """Plugins by absolute path, or by module name."""
    return tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in names)


def command_line(given: Sequence[str]) -> str:
    """The command as it was typed."""
    return shlex.join(["mamba3-bench", *given])


__all__ = ["Mamba3Error", "UsageError", "run"]
