"""`mamba3-bench quick`: everything the suite does, at a size for minutes, on any machine.

On a GPU the kernels are gated and timed. Without one Triton's are gated through their interpreter,
all are compiled for sm_90a, and PyTorch alone is timed, on the CPU; what that leaves out is said
plainly.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.markup import escape

from ..kernels import registry
from ..kernels.family import Problem
from . import doctor, show
from .grid import Axes, problems
from .jobs import Entry, Job, Kind, Settings
from .ledger import Outcome
from .records import Row
from .report import write_report
from .session import (
    INTERRUPTED,
    absolute,
    choose_backends,
    command_line,
    device_of,
    exit_code,
    perform,
    records_path,
    resource_jobs,
)

SMALL = Axes(heads=(2,), head_size=(32,), state=(32,))
EVERY = ("bf16", "fp16", "fp32", "tf32")


def tour(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Machine, compiler, gates and times, report; returns the exit code."""
    device = device_of(arguments)
    page.rule("machine")
    doctor.report(page)
    outcomes = []
    for title, kind, jobs in steps(device):
        page.rule(title)
        settings = Settings(
            kind=kind,
            seed=arguments.seed,
            interpret=device.type == "cpu" and kind == "check",
            plugins=absolute(arguments.plugin),
            command=command_line(given),
        )
        outcome = perform(page, arguments, settings, jobs, title)
        table = show.resources_table if kind == "resources" else show.results_table
        page.print(table(outcome.all))
        outcomes.append(outcome)
        if outcome.interrupted:
            page.print("interrupted: the same command goes on from here")
            return INTERRUPTED
    page.rule("report")
    path = records_path(arguments)
    assert path is not None
    write_report(page, [path], path.parent / "report")
    page.rule("summary")
    return summary(page, device, outcomes)


def steps(device: torch.device) -> list[tuple[str, Kind, list[Job]]]:
    """Title, kind and jobs of each step."""
    # the same configs for fp16 as for bf16; decode has no large products that tf32 would round
    typical = [
        *problems(Axes(dtype=("bf16", "fp32", "tf32"))),
        *problems(Axes(rank=(4,))),
        *problems(Axes(op="decode", dtype=("bf16", "fp32"), rank=(1, 4))),
    ]
    compiled = resource_jobs([_job(problem) for problem in typical])
    plan: list[tuple[str, Kind, list[Job]]] = [("compile for sm_90a", "resources", compiled)]
    if device.type == "cuda":
        sizes = Axes(dtype=("bf16", "fp32"), batch=(1, 8), length=(512, 2048, 8192))
        steps_ = Axes(op="decode", rank=(1, 4), batch=(1, 32, 128))
        plan.append(("gate and time", "sweep", _jobs(sizes) + _jobs(steps_)))
        return plan
    gates = [
        *_jobs(replace(SMALL, dtype=EVERY, batch=(2,), length=(67,))),
        *_jobs(replace(SMALL, dtype=EVERY, rank=(4,), length=(67,))),
        *_jobs(replace(SMALL, op="decode", dtype=EVERY, rank=(1, 4), batch=(3,))),
    ]
    plan.append(("gate", "check", gates))
    sizes = Axes(heads=(4,), state=(64,), dtype=("bf16", "fp32"), length=(256, 512, 1024, 2048))
    timed = [Job((Entry(problem, "torch"),)) for problem in problems(sizes)]
    plan.append(("time PyTorch on this CPU", "sweep", timed))
    return plan


def _jobs(axes: Axes) -> list[Job]:
    return [_job(problem) for problem in problems(axes)]


def _job(problem: Problem) -> Job:
    return Job(tuple(Entry(problem, name) for name in choose_backends(problem.op, None)))


def summary(page: Console, device: torch.device, outcomes: Sequence[Outcome]) -> int:
    """Print what was found and what could not be; returns the exit code."""
    rows = [row for outcome in outcomes for row in outcome.all]
    gated = [row for row in rows if row.status in ("ok", "inaccurate")]
    failed = [row for row in rows if exit_code([row]) == 1]
    page.print(
        f"{len(gated)} results right, {len(failed)} wrong or failed, "
        f"{sum(len(row.resources) > 0 for row in rows)} configs compiled",
        highlight=False,
    )
    if device.type == "cpu":
        page.print(
            "Not measured, for want of a GPU: device times, cold and warm L2, share of the copy "
            "rate, clocks. The times above are this CPU's, of PyTorch; kernels were run by their "
            "interpreter, whose time means nothing.",
            soft_wrap=True,
        )
    for line in not_checked(rows):
        page.print(f"Not checked: {escape(line)}", highlight=False, soft_wrap=True)
    return exit_code(rows)


def not_checked(rows: Sequence[Row]) -> list[str]:
    """Who of ours ran nothing, or refused something, and why; each said once."""
    found = [
        f"{row.op} by {row.backend}, R = {row.problem['R']}: {row.reason}"
        for row in rows
        if row.status == "skipped" and not row.resources
    ]
    for op in dict.fromkeys(row.op for row in rows):
        for backend in registry.backends(op):
            reason = registry.unavailable(op, backend)
            if reason is not None and not registry.is_rival(op, backend):
                found.append(f"{op} by {backend}: {reason}")
    return list(dict.fromkeys(found))
