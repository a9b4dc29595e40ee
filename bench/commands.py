"""What each command does; `cli.py` reads the arguments."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..kernels import registry
from ..kernels.errors import OptionError
from ..kernels.family import ops
from . import doctor, peers, plugins, quick, selftest, show, tune, why
from .axes import AxisError
from .budget import SelfTestError
from .compare import CASES, PASSING, Asked, Case
from .compare import compare as compare_runs
from .grid import Axes, problems
from .jobs import Job, Kind, Settings
from .ledger import RunError
from .records import RecordError
from .report import comparison_text, show_comparison, show_report, write_report
from .session import (
    NOTHING,
    RIGHT,
    WRONG,
    UsageError,
    absolute,
    command_line,
    conclude,
    default_device,
    device_of,
    files_below,
    make_jobs,
    perform,
    records_path,
    resource_jobs,
)
from .sides import NoRecords, chosen, load

MANY = 2000  # entries: ask first

__all__ = ["UsageError", "run"]


def run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Run a command; returns its exit code. Raises UsageError."""
    page = show.console()
    peers.register()
    try:
        match arguments.command:
            case "list":
                return list_backends(page)
            case "doctor":
                return doctor.report(page)
            case "report":
                return report(page, arguments.records, arguments.out)
            case "compare":
                return compare(page, arguments)
            case "resources":
                return resources(page, arguments, given)
            case "quick":
                return quick.tour(page, arguments, given)
            case "tune":
                return tune.run(page, arguments, given)
            case "why":
                return why.run(page, arguments)
            case "selftest":
                return selftest.run(page, arguments, given)
            case _:
                return measure(page, arguments, given)
    except (AxisError, NoRecords, OptionError, RecordError, SelfTestError) as error:
        raise UsageError(str(error)) from error
    except (RunError, ImportError, OSError) as error:  # OSError: a folder that cannot be written
        page.print(f"[bold red]error[/]: {escape(str(error))}", soft_wrap=True)
        return WRONG


def list_backends(page: Console) -> int:
    """Print every op and backend, and whether it runs a typical problem here."""
    device = default_device()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("op", "backend", f"here ({device.type})", "notes"):
        table.add_column(name, overflow="fold")
    for op in ops():
        for backend in registry.backends(op):
            missing = registry.unavailable(op, backend)
            answers = {}
            for rank in (1, 4):  # where a family has ranks
                (problem,) = problems(Axes(op=op, rank=(rank,)))
                answers[rank] = missing or registry.refusal(op, backend, problem, device)
            here = "no" if all(answers.values()) else "yes"
            reasons = dict.fromkeys(answer for answer in answers.values() if answer)
            notes = [
                reason if missing or all(answers.values()) else f"not for all ranks: {reason}"
                for reason in reasons
            ]
            notes += [version] if (version := peers.version(op, backend)) else []
            table.add_row(
                op,
                backend,
                f"[{'green' if here == 'yes' else 'red'}]{here}",
                escape("; ".join(notes)),
            )
    page.print(table)
    return RIGHT


def measure(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """`check` and `sweep`."""
    kind: Kind = "check"
    if arguments.command == "sweep" and not arguments.check_only:
        kind = "sweep"
    plugins.load(arguments.plugin)
    # one repeat after the other: what drifts between them shows as a difference between them
    jobs = [
        Job(tuple(replace(entry, repeat=repeat) for entry in job.entries))
        for repeat in range(getattr(arguments, "repeat", 1))
        for job in make_jobs(arguments.sides, arguments.backend)
    ]
    count = sum(len(job.entries) for job in jobs)
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
    """Compile every hand-picked config for sm_90a and list what it takes; raises UsageError."""
    if arguments.gpus is not None:
        raise UsageError("--gpus: what only compiles uses no GPU; leave it out")
    plugins.load(arguments.plugin)
    jobs = resource_jobs(make_jobs(arguments.sides, arguments.backend))
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


def report(page: Console, paths: Sequence[Path], out: Path) -> int:
    """Make tables, plots and the page from record files, and from those below folders.

    Raises UsageError for missing ones, NoRecords without rows.
    """
    files = files_below(paths)
    show_report(page, files)
    write_report(page, files, out)
    return RIGHT


def compare(page: Console, arguments: argparse.Namespace) -> int:
    """Compare two sides; the exit code is that of the worst case that does not pass."""
    asked = Asked(
        threshold=arguments.threshold,
        confidence=arguments.confidence,
        kind=arguments.time,
        noise=arguments.noise,
        by_config=arguments.by_config,
    )
    passing = passing_cases(arguments.passing)
    forms = {"markdown": arguments.markdown, "json": arguments.json}
    if list(map(str, forms.values())).count("-") > 1:
        raise UsageError("--markdown, --json: stdout takes one of them; name a file for the other")
    sides = [load(path) for path in (arguments.old, arguments.new)]
    old, new = chosen(sides, arguments.op, arguments.backend)
    found = compare_runs(old, new, asked)
    if "-" not in map(str, forms.values()):
        show_comparison(page, found)
    for form, path in forms.items():
        if path is None:
            continue
        text = comparison_text(found, form, passing)
        if str(path) == "-":
            sys.stdout.write(text)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return found.exit_code(passing)


def passing_cases(text: str | None) -> tuple[Case, ...]:
    """The cases that end with 0; raises UsageError for a word that is none."""
    if text is None:
        return PASSING
    given = [] if text == "none" else [part.strip().replace("-", " ") for part in text.split(",")]
    unknown = [word for word in given if word not in CASES]
    if unknown:
        names = ", ".join(case.replace(" ", "-") for case in CASES)
        raise UsageError(f"--pass: expected words out of {names}, or none, got {unknown[0]!r}")
    return tuple(case for case in CASES if case in given)
