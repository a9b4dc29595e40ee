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
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import probes
from .budget import FILE, FOUND, Agreement, Detected, SelfTest, facts
from .compare import Asked, Comparison, compare
from .estimate import Noise, point, pool
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

SLOWDOWNS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2)
SENSITIVE = 0.001  # threshold when the question is what can be seen at all


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
    outcome = perform(page, arguments, settings, jobs(device, arguments.repeat), "A against A")
    measure_agreement(result, outcome.all)
    result.write(path.parent / FILE)
    page.print(table_of(result))
    page.print(f"self-test: {path.parent / FILE}", highlight=False, soft_wrap=True)
    return conclude(page, outcome, path)


def jobs(device: torch.device, repeats: int) -> list[Job]:
    """A few shapes from short to long, by every backend that times them here."""
    if device.type == "cuda":
        grid = problems(Axes(batch=(1, 8), length=(1024,)))
        grid += problems(Axes(op="decode", rank=(1, 4), batch=(1, 8, 128)))
    else:
        small = Axes(heads=(2,), head_size=(32,), state=(32,))
        grid = problems(Axes(**(asdict(small) | {"batch": (1, 2), "length": (16, 64, 131)})))
    found = []
    for repeat in range(repeats):
        for problem in grid:
            names = choose_backends(problem.op, None)
            if device.type == "cpu":
                names = ("torch",)
            elif len(names) > 1:
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
    if len(processes) < 2:
        result.not_done["A against A"] = "needs times of at least two processes"
        return
    runs = list(processes.values())
    noise = noise_of(rows)
    if noise.measured:
        asked = replace(asked, noise=noise.sd)
    pairs = [compare([a], [b], asked) for a, b in combinations(runs, 2)]
    lines = [line for pair in pairs for line in pair.lines if line.effect]
    cases = {case: sum(line.case == case for line in lines) for case in ("same", "cannot tell")}
    cases |= {case: sum(line.case == case for line in lines) for case in ("faster", "slower")}
    ratios = [line.effect.ratio for line in lines if line.effect]
    result.agreement = Agreement(
        processes=len(runs),
        shapes=len({json.dumps([r.op, r.backend, r.problem]) for r in rows if r.times}),
        comparisons=len(lines),
        cases=cases,
        false_rate=(cases["faster"] + cases["slower"]) / len(lines),
        between_sd=noise.sd if noise.measured else None,
        largest=max(math.exp(abs(math.log(ratio))) for ratio in ratios) - 1,
        threshold=asked.threshold,
        noise=asked.noise if asked.noise is not None else noise.sd,
    )
    sensitive = replace(asked, threshold=SENSITIVE)
    for share in SLOWDOWNS:
        slowed = [
            compare([a], [[slower(row, share) for row in b]], sensitive)
            for a, b in combinations(runs, 2)
        ]
        result.detected.append(Detected(share, share_slower(slowed)))
    enough = [one.slowdown for one in result.detected if one.found >= FOUND]
    result.smallest = min(enough, default=None)


def noise_of(rows: Sequence[Row]) -> Noise:
    """The scatter between the processes of some rows."""
    sides: dict[str, list[Any]] = {}
    for row in rows:
        samples = row.times and (row.times.cold or row.times.warm)
        if samples:
            name = json.dumps([row.op, row.backend, row.problem])
            sides.setdefault(name, []).append(point(samples))
    devices = {row.times.device for row in rows if row.times}
    return pool(sides.values(), "cuda" if "cuda" in devices else "cpu")


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
    result.planted = waits.planted(result.timer.overhead_us)
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
