"""What a run looks like on a terminal: progress with the time left, and tables."""

import math
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .jobs import Job, Stage
from .records import Row, Samples
from .runner import Slot

COLOURS = {"ok": "green", "inaccurate": "yellow", "skipped": "dim", "wrong": "bold red"}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
WIDE = 132  # columns where there is no terminal to ask


def console() -> Console:
    """The terminal, or a wide page where the output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)


class Watch:
    """Shows a run: a bar on a terminal, a line per row elsewhere."""

    def __init__(self, page: Console, title: str) -> None:
        """Prepare; the bar appears once the work is counted."""
        self.page, self.title = page, title
        self.total = self.done = 0
        self._begin = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[stage]}"),
            console=page,
            disable=not page.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, stage="starting workers")

    def __enter__(self) -> "Watch":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def planned(self, total: int, recorded: int) -> None:
        """Entries asked for, and how many of them are recorded already."""
        self.total = total - recorded
        note = f", {recorded} recorded already" if recorded else ""
        self.page.print(f"{self.title}: {total} entries{note}", highlight=False)
        self._bar.update(self._task, total=self.total)

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        """What a worker does now."""
        who = "all" if stage.entry is None else job.entries[stage.entry].backend
        self._bar.update(
            self._task, stage=f"{who} {problem_name(job.problem.as_dict())}: {stage.what}"
        )

    def row(self, row: Row) -> None:
        """A row was finished."""
        self.done += 1
        self._bar.update(self._task, completed=self.done)
        if not self.page.is_terminal:
            left = (time.monotonic() - self._begin) / self.done * (self.total - self.done)
            name = problem_name(row.problem)
            self.page.print(
                f"[{self.done}/{self.total}, {left:.0f} s left] {row.backend} {name}: "
                f"{row.status}{_aside(row)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _aside(row: Row) -> str:
    main = headline(row)
    return f" {main.median:.4g} us" if main else f" ({row.reason})" if row.reason else ""


def headline(row: Row) -> Samples | None:
    """The time that stands for a row: cold if there is one, else warm."""
    return None if row.times is None else row.times.cold or row.times.warm


def dtype_of(problem: dict[str, Any]) -> str:
    """`bf16`, `fp32`, ..., or `tf32`."""
    if problem["option.matmul"] == "tf32":
        return "tf32"
    return SHORT[problem["dtype"]]


def problem_name(problem: dict[str, Any]) -> str:
    """The dims of a problem on one line."""
    length = "" if problem["op"] == "decode" else f" L={problem['L']}"
    return (
        f"{problem['op']} {dtype_of(problem)} B={problem['B']}{length} H={problem['H']} "
        f"P={problem['P']} N={problem['N']} R={problem['R']}"
    )


def results_table(rows: Iterable[Row]) -> Table:
    """One line per row: status, times, share of the copy rate, and error against its bound."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("problem", "backend", "status"):
        table.add_column(name)
    for name in ("cold us", "warm us", "host us", "GB/s", "of copy", "error/bound"):
        table.add_column(name, justify="right")
    table.add_column("reason", overflow="fold")
    for row in rows:
        colour = COLOURS.get(row.status, "red")
        kinds = (row.times.cold, row.times.warm, row.times.host) if row.times else (None,) * 3
        table.add_row(
            problem_name(row.problem),
            row.backend,
            f"[{colour}]{row.status}[/]",
            *map(_median, kinds),
            *_rates(row),
            _worst(row),
            escape(row.reason),
        )
    return table


def resources_table(rows: Iterable[Row]) -> Table:
    """One line per compiled kernel of each config."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("backend", "problem", "config", "kernel"):
        table.add_column(name)
    for name in ("registers", "spills B", "shared B", "threads"):
        table.add_column(name, justify="right")
    for row in rows:
        config = " ".join(f"{k}={v}" for k, v in row.config.items())
        for kernel in row.resources:
            figures = (kernel[k] for k in ("registers", "spills", "shared", "threads"))
            table.add_row(
                row.backend, problem_name(row.problem), config, kernel["kernel"],
                *(str(figure) for figure in figures),
            )  # fmt: skip
        if not row.resources:
            table.add_row(
                row.backend, problem_name(row.problem), config, f"[red]{escape(row.reason)}"
            )
    return table


def _median(samples: Samples | None) -> str:
    return "" if samples is None else f"{samples.median:.4g}"


def _rates(row: Row) -> tuple[str, str]:
    main = headline(row)
    if main is None or row.times is None or row.times.device != "cuda":
        return "", ""
    rate = row.bytes / (main.median * 1e-6)
    ceilings = row.environment.get("ceilings") or {}
    limit = ceilings.get("copy_bytes_per_s")
    return f"{rate / 1e9:.0f}", f"{rate / limit:.0%}" if limit else ""


def _worst(row: Row) -> str:
    """The largest ratio of an error to its bound, over outputs and norms."""
    ratios = [
        error / bound if bound else float(error > 0)
        for one in row.errors.values()
        for error, bound in ((one.l2, one.l2_bound), (one.largest, one.largest_bound))
    ]
    # NaN compares as nothing, so max alone would lose it
    return f"{max(ratios, key=lambda r: math.inf if math.isnan(r) else r):.2f}" if ratios else ""
