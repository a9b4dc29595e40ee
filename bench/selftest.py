"""`mamba3-bench selftest`: what this harness gets wrong on this machine, measured.

- A against A: the same entries in several fresh processes, by the way that a sweep takes; each pair
  of processes is compared as OLD and NEW. Whatever is called different is a false alarm.
- Smallest slowdown detected: the same pairs with NEW made slower by a share, until nearly all of
  them are found.
- The timer: an empty kernel, kernels that wait by the GPU's own timer, slowdowns that are really
  there, and CUPTI. Without a GPU these are not done, and the result says so.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import probes
from .budget import FILE, FOUND, SENSITIVE, Agreement, Detected, SelfTest, facts
from .compare import Asked, Comparison, compare
from .estimate import Point, squares
from .gpu import Gpu
from .grid import Axes, problems
from .hardware import environment
from .jobs import Entry, Job, Settings
from .records import Row, Samples, Times
from .session import (
    absolute,
    choose_backends,
    command_line,
    conclude,
    device_of,
    perform,
    records_path,
)
from .sides import Run, timed

MOST_HALVES = 20
SLOWDOWNS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2)


Side = Sequence[Run]


def run(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Run the test, print it and write it beside its records; returns the exit code."""
    device = device_of(arguments)
    settings = Settings(
        kind="sweep",
        seed=arguments.seed,
        budget_s=arguments.budget,
        interpret=device.type == "cpu",
        plugins=absolute(arguments.plugin),
        command=command_line(given),
    )
    path = records_path(arguments)
    assert path is not None
    result = SelfTest(environment(device) | {"command": settings.command})
    if device.type == "cuda":
        probe(result, Gpu(torch.device("cuda", 0)))
        torch.cuda.empty_cache()
    else:
        why = "no GPU: a CPU is timed by its own clock alone"
        result.not_done |= dict.fromkeys(("empty kernel", "known duration", "CUPTI"), why)
    outcome = perform(page, arguments, settings, jobs(device, arguments), "A against A")
    measure_agreement(result, outcome.all)
    result.write(path.parent / FILE)
    page.print(table_of(result))
    where = f"self-test: {path.parent / FILE}"
    page.print(where, markup=False, highlight=False, soft_wrap=True)
    return conclude(page, outcome, path)


def jobs(device: torch.device, arguments: argparse.Namespace) -> list[Job]:
    """A few shapes from short to long, by every backend that times them here."""
    if device.type == "cuda":
        grid = problems(Axes(batch=(1, 8), length=(1024,)))
        grid += problems(Axes(op="decode", rank=(1, 4), batch=(1, 8, 128)))
    else:
        small = Axes(heads=(2,), head_size=(32,), state=(32,))
        grid = problems(Axes(**(asdict(small) | {"batch": (1, 2), "length": (16, 64, 131)})))
    found = []
    for repeat in range(arguments.repeat):
        for problem in grid:
            names = choose_backends(problem.op, arguments.backend)
            if arguments.backend is None and device.type == "cpu":
                names = ("torch",)
            elif arguments.backend is None and len(names) > 1:
                names = tuple(name for name in names if name != "torch")
            found.append(Job(tuple(Entry(problem, name, repeat=repeat) for name in names)))
    return found


def measure_agreement(result: SelfTest, rows: Sequence[Row], asked: Asked | None = None) -> None:
    """Fill in what the repeats of some rows say of false alarms and of slowdowns found."""
    asked = asked or Asked()
    processes: dict[int, list[Row]] = {}
    for row in rows:
        if row.times is not None:
            processes.setdefault(row.repeat, []).append(row)
    runs = list(processes.values())
    result.between_sd = between(runs)
    if len(runs) < 2:
        result.not_done["A against A"] = "needs times of at least two processes"
        return
    result.single = agreement([([a], [b]) for a, b in combinations(runs, 2)], asked)
    if len(runs) < 4:
        result.not_done["A against A with repeats"] = "needs times of at least four processes"
        return
    # every way to part the processes into two halves, each once
    half = len(runs) // 2
    chosen = [set(mine) for mine in combinations(range(2 * half), half) if 0 in mine]
    halves = [
        ([runs[i] for i in mine], [runs[i] for i in range(2 * half) if i not in mine])
        for mine in chosen[:MOST_HALVES]
    ]
    result.repeated = agreement(halves, asked)


def agreement(pairs: Sequence[tuple[Side, Side]], asked: Asked) -> Agreement:
    """Compare sides of one thing, as they are and with NEW made slower."""
    lines = [line for old, new in pairs for line in compare(old, new, asked).lines if line.effect]
    ratios = [line.effect.ratio for line in lines if line.effect]
    names = ("same", "cannot tell", "faster", "slower")
    cases = {case: sum(line.case == case for line in lines) for case in names}
    sensitive = replace(asked, threshold=SENSITIVE)
    detected = []
    for share in SLOWDOWNS:
        slowed = [
            compare(old, [[slower(row, share) for row in run] for run in new], sensitive)
            for old, new in pairs
        ]
        detected.append(Detected(share, share_slower(slowed)))
    return Agreement(
        processes=len(pairs[0][0]),
        shapes=len({json.dumps([line.op, line.backend, line.problem]) for line in lines}),
        comparisons=len(lines),
        cases=cases,
        false_rate=(cases["faster"] + cases["slower"]) / len(lines),
        largest=max(math.exp(abs(math.log(ratio))) for ratio in ratios) - 1,
        threshold=asked.threshold,
        detected=detected,
        smallest=min((one.slowdown for one in detected if one.found >= FOUND), default=None),
    )


def between(runs: Side) -> float | None:
    """Standard deviation of log medians between processes, root mean square over all things."""
    sides: dict[str, list[Point]] = {}
    for row in (row for run in runs for row in run):
        for one in timed([row], "device").values():
            name = json.dumps([row.op, row.backend, row.problem, one.kind])
            sides.setdefault(name, []).extend(one.points)
    degrees = sum(len(points) - 1 for points in sides.values())
    if not degrees:
        return None
    return math.sqrt(math.fsum(squares(points) for points in sides.values()) / degrees)


def slower(row: Row, share: float) -> Row:
    """The row as if each of its times were longer by a share."""
    assert row.times is not None

    def longer(samples: Samples | None) -> Samples | None:
        if samples is None:
            return None
        by = 1 + share
        return replace(
            samples,
            median=samples.median * by,
            q1=samples.q1 * by,
            q3=samples.q3 * by,
            values=tuple(value * by for value in samples.values),
        )

    times: Times = row.times
    cold, warm, host = (longer(one) for one in (times.cold, times.warm, times.host))
    return replace(row, times=replace(times, cold=cold, warm=warm, host=host))


def share_slower(pairs: Sequence[Comparison]) -> float:
    """Share of the lines with an effect that are called slower."""
    cases = [line.case for pair in pairs for line in pair.lines if line.effect]
    return statistics.fmean(case == "slower" for case in cases)


def probe(result: SelfTest, gpu: Gpu) -> None:
    """Fill in what the probes of the timer say; what cannot be done is said."""
    result.empty_us = probes.empty_kernel(gpu)
    try:
        waits = probes.Waits(gpu)
    except ImportError as error:
        why = f"its kernel needs Triton: {error}"
        result.not_done |= dict.fromkeys(("known duration", "CUPTI"), why)
        return
    result.timer = waits.timer()
    result.planted = waits.planted(result.timer)
    try:
        result.traced = waits.traced()
    except RuntimeError as error:
        result.not_done["CUPTI"] = str(error)


def table_of(result: SelfTest) -> Table:
    """The result for a terminal: what, and what came out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in facts(result):
        table.add_row(name, escape(text))
    return table
