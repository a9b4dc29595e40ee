"""What a run looks like on a terminal: progress with the time left, and tables."""

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .jobs import Job, Stage
from .ledger import Slot
from .records import Row, Samples

COLOURS = {"ok": "green", "inaccurate": "yellow", "skipped": "dim", "wrong": "bold red"}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
OPTIONS = {  # of a problem, by the name of their column
    "pairing": "option.pairing",
    "decay": "option.decay",
    "step": "option.step",
    "norm": "option.norm",
    "carried": "has_state",
}
FIGURES = {  # of a compiled kernel, in the same way
    "registers": "registers",
    "spills B": "spills",
    "shared B": "shared",
    "threads": "threads",
}
FOLDED = ("reason", "config")
DIMS = ("B", "L", "H", "G", "P", "N", "R", "S")
SAID_BELOW = ("dtype", "h", *DIMS, *OPTIONS)  # even of a single row
TEXT = ("op", "dtype", "h", "backend", "status", "kernel", *OPTIONS)
WORTH_TELLING_S = 10.0  # of a run: where its time went
WIDE = 132  # columns where there is no terminal to ask


class Page(Console):
    """A console whose reader may leave, as `head` does: the command goes on without being heard."""

    def on_broken_pipe(self) -> None:
        """Print nothing more; what is still to be flushed goes nowhere."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """The terminal, or a wide page where the output goes to a file."""
    found = Page()
    return found if found.is_terminal else Page(width=WIDE)


class Watch:
    """Shows a run: a bar on a terminal, a line per row elsewhere."""

    def __init__(self, page: Console, title: str) -> None:
        """Prepare; the bar appears once the work is counted."""
        self.page, self.title = page, title
        self.total = self.done = 0
        self._begin = time.monotonic()
        self._spent: dict[str, float] = {}  # seconds by stage, of all workers together
        self._at: dict[int, tuple[str, float]] = {}  # stage of a worker and since when
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
        for worker in list(self._at):
            self._pass(worker)
        if sum(self._spent.values()) >= WORTH_TELLING_S:
            longest = sorted(self._spent.items(), key=lambda item: -item[1])
            parts = [f"{what} {seconds:.0f} s" for what, seconds in longest if seconds >= 0.5]
            self.page.print(f"time went to: {', '.join(parts)}", markup=False, highlight=False)

    def _pass(self, worker: int, what: str = "") -> None:
        """A worker's stage is over, and the next, if there is one, begins."""
        before, since = self._at.pop(worker, ("", 0.0))
        now = time.monotonic()
        if before:
            self._spent[before] = self._spent.get(before, 0.0) + now - since
        if what:
            self._at[worker] = what, now

    def planned(self, total: int, recorded: int) -> None:
        """Entries asked for, and how many of them are recorded already."""
        self.total = total - recorded
        note = f", {recorded} recorded already" if recorded else ""
        self.page.print(f"{self.title}: {total} entries{note}", highlight=False)
        self._bar.update(self._task, total=self.total)

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        """What a worker does now."""
        self._pass(id(slot), stage.what.split(" (")[0])
        entry = job.entries[stage.entry or 0]
        who = "all" if stage.entry is None else entry.backend
        name = problem_name(entry.problem.as_dict())
        self._bar.update(self._task, stage=f"{who} {name}: {stage.what}")

    def ahead(self, what: str, done: int, total: int, failed: int) -> None:
        """So many of all problems are done before the run, so many of these failed."""
        self._bar.update(self._task, stage=f"{what} ahead: {done} of {total} problems")
        if done == total and (failed or not self.page.is_terminal):
            seconds = time.monotonic() - self._begin
            said = f"{what} {total} problems ahead, {seconds:.0f} s"
            also = f", {failed} failed: the rows will say why" if failed else ""
            self.page.print(said + also, highlight=False)
            self._begin = time.monotonic()

    def row(self, row: Row) -> None:
        """A row was finished."""
        self.done += 1
        self._bar.update(self._task, completed=self.done)
        if not self.page.is_terminal:
            left = (time.monotonic() - self._begin) / self.done * (self.total - self.done)
            name = problem_name(row.problem)
            name += f" {_config(row)}" if row.place is not None else ""
            self.page.print(
                f"[{self.done}/{self.total}, {left:.0f} s left] {row.backend} {name}: "
                + _outcome(row),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _outcome(row: Row) -> str:
    main = headline(row)
    if main:
        return f"{row.status} {_microseconds(main.median)} us"
    if row.resources:
        return f"compiled in {row.compile_s:.1f} s, {_config(row)}"
    return f"{row.status} ({row.reason})" if row.reason else row.status


def headline(row: Row) -> Samples | None:
    """The time that stands for a row: cold if there is one, else warm."""
    return None if row.times is None else row.times.cold or row.times.warm


def dtype_of(problem: dict[str, Any]) -> str:
    """`bf16`, `fp32`, ..., or `tf32`."""
    if problem.get("option.matmul") == "tf32":
        return "tf32"
    name: str = problem["dtype"]
    return SHORT.get(name, name)


def is_quarter(problem: Any) -> bool:
    """Whether as many pairs turn as the defaults say: a quarter of N. Then S need not be told."""
    return bool(problem["S"] == problem["N"] // 4)


def problem_name(problem: dict[str, Any]) -> str:
    """The dims of a problem on one line; of what problems have in common, those that it has."""
    dims = ["B", "L", "H", "P", "N", "R"]
    if problem.get("S") is not None and not is_quarter(problem):
        dims.append("S")
    shown = [f"{dim}={problem[dim]}" for dim in dims if dim in problem]
    if problem.get("L") == 1:  # a decode step of a recurrence
        shown.remove("L=1")
    state = problem.get("state_dtype", "float32")
    if state != "float32":
        shown.insert(0, f"h {SHORT.get(state, state)}")
    return " ".join((problem["op"], dtype_of(problem), *shown))


def results_table(rows: Sequence[Row]) -> RenderableType:
    """One line per row: status, times, share of the copy rate, and error against its bound.

    What is the same in every row is told below the table; what no row has is left out.
    """
    return _table([_problem(row) | _result(row) for row in rows], keep=("backend", "status"))


def resources_table(rows: Sequence[Row]) -> RenderableType:
    """One line per compiled kernel of each config, in the same manner."""
    lines = []
    for row in rows:
        known = _problem(row) | {"config": _config(row)}
        if not row.resources:
            lines.append(known | {"reason": f"[red]{escape(row.reason)}"})
        for kernel in row.resources:
            figures = {name: str(kernel[key]) for name, key in FIGURES.items()}
            lines.append(known | {"kernel": kernel["kernel"]} | figures)
            known = {}  # said once for all kernels of a config
    return _table(lines, keep=("kernel", *FIGURES))


def _table(lines: Sequence[dict[str, str]], keep: Sequence[str]) -> RenderableType:
    """A table of some lines; columns that are empty are left out, constant ones told below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown, same = [], []
    for name in dict.fromkeys(name for line in lines for name in line):
        values = {line[name] for line in lines if name in line}
        if values == {""}:
            continue
        once = len(values) == 1 and name not in (*keep, "reason")
        if once and (len(lines) > 1 or name in SAID_BELOW):
            same.append(f"{name} {values.pop()}")
            continue
        shown.append(name)
        if name in FOLDED:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="left" if name in TEXT else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(line.get(name, "") for name in shown))
    return Group(table, f"[dim]in every row: {', '.join(same)}[/]") if same else table


def _problem(row: Row) -> dict[str, str]:
    """What tells one problem from another, each in its column."""
    problem = row.problem
    dims = {dim: str(problem.get(dim, "")) for dim in DIMS}
    options = {name: str(problem.get(key, "")) for name, key in OPTIONS.items()}
    decodes = row.op.endswith("decode")  # and always goes on from a state
    if decodes and problem["L"] == 1:
        dims["L"] = ""
    options["carried"] = "yes" if problem["has_state"] and not decodes else ""
    start = {"op": row.op, "dtype": dtype_of(problem), "h": SHORT[problem["state_dtype"]]}
    return start | dims | options | {"backend": row.backend}


def _result(row: Row) -> dict[str, str]:
    colour = COLOURS.get(row.status, "red")
    kinds = (row.times.cold, row.times.warm, row.times.host) if row.times else (None,) * 3
    rate, share = _rates(row)
    return {
        "status": f"[{colour}]{row.status}[/]",
        **dict(zip(("cold us", "warm us", "host us"), map(_median, kinds), strict=True)),
        "GB/s": rate,
        "of copy": share,
        "error/bound": _worst(row),
        "reason": escape(row.reason),
    }


def _config(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row.config.items())


def _median(samples: Samples | None) -> str:
    return "" if samples is None else _microseconds(samples.median)


def _microseconds(value: float) -> str:
    """Four digits; all of a large number's, and no exponent."""
    return f"{value:.4g}" if value < 10_000 else f"{value:.0f}"


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
