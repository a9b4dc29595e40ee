"""The two sides of a comparison: record files, which rows are the same thing, and their times."""

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from ..kernels import registry
from ..kernels.family import ops
from . import estimate, records
from .axes import words
from .estimate import Point
from .records import Row, Samples, machine

Kind = Literal["device", "cold", "warm", "host"]
Run = Sequence[Row]  # of one record file
Key = tuple[str, str, str, str, str]  # op, backend, problem, config, machine


class NoRecords(ValueError):
    """There is nothing to report, or to compare on one side."""

    def __init__(self, *paths: Path) -> None:
        names = ", ".join(map(str, paths)) or "no files"
        super().__init__(
            f"no records in {names}: name a records.jsonl, or a folder that holds some"
        )


def record_files(path: Path) -> list[Path]:
    """One file, or all `*.jsonl` and `*.jsonl.gz` below a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for name in ("*.jsonl", "*.jsonl.gz") for file in path.rglob(name))


def load(path: Path) -> list[list[Row]]:
    """The rows of each record file, as `record_files` finds them; of a key the last row counts.

    What only led a tuning to its finalists is left out, and so are rows that were compiled and not
    run, and those of an earlier source of a kernel that the same file has again. Raises NoRecords.
    """
    runs = [_current(records.read([file])) for file in record_files(path) if file.exists()]
    if not any(runs):
        raise NoRecords(path)
    return runs


def _current(rows: Iterable[Row]) -> list[Row]:
    """Of a file's rows those that tell how fast and how right its kernels are now."""
    ran = [row for row in rows if not row.screening and row.kind != "resources"]

    def what(row: Row) -> str:
        return json.dumps((row.op, row.backend, row.problem), sort_keys=True)

    source = {what(row): row.source for row in ran}
    return [r for r in {row.key: row for row in ran}.values() if r.source == source[what(r)]]


def chosen(
    sides: Sequence[Sequence[Run]], op: str | None, backend: str | None
) -> list[list[list[Row]]]:
    """The rows of the ops and backends named, None for all; raises AxisError for an unknown name.

    Names of plugins are known from the rows alone, whatever side has them.
    """
    rows = [row for side in sides for run in side for row in run]
    backends = [name for one in ops() for name in registry.backends(one)]
    some_ops = _named("op", op, [*ops(), *(row.op for row in rows)])
    some_backends = _named("backend", backend, [*backends, *(row.backend for row in rows)])

    def wanted(run: Run) -> list[Row]:
        return [row for row in run if row.op in some_ops and row.backend in some_backends]

    return [[wanted(run) for run in side] for side in sides]


def _named(option: str, text: str | None, known: Iterable[str]) -> Collection[str]:
    """The names asked for, all known ones without any."""
    names = tuple(dict.fromkeys(known))
    return names if text is None else words(option, text, names)


def distinct(runs: Sequence[Run]) -> tuple[list[list[Row]], int]:
    """Runs without the rows that a run before has as they are, and how many those are.

    Equal to the last digit of each sample, they are copies of a file and not another process.
    """
    found, copies = [], 0
    seen: dict[str, list[Row]] = {}  # by key
    for run in runs:
        fresh = [row for row in run if not _among(row, seen.get(row.key, ()))]
        found.append(fresh)
        copies += len(run) - len(fresh)
        for row in fresh:
            seen.setdefault(row.key, []).append(row)
    return found, copies


def _among(row: Row, others: Sequence[Row]) -> bool:
    """Whether a row is one of some, as text: NaN is no reason to count it again."""
    return any(row.to_json() == other.to_json() for other in others)


@dataclass(frozen=True, slots=True)
class Timed:
    """One kind of time of one thing on one side, by process."""

    kind: str  # cold, warm or host
    device: str
    points: list[Point]
    clock_mhz: float | None  # SM clock, mean over the processes
    config: dict[str, object]


def timed(rows: Sequence[Row], kind: Kind) -> dict[str, Timed]:
    """The times of some rows that answer to a kind: `device` is cold and warm.

    What one process measured several times, beside different others, is one point. A row that does
    not say when its process started is taken for one of its own.
    """
    found = {}
    for name in ("cold", "warm") if kind == "device" else (kind,):
        having = [(row, samples) for row in rows if (samples := samples_of(row, name))]
        if not having:
            continue
        times = [row.times for row, _ in having if row.times]
        processes: dict[tuple[object, ...], list[Point]] = {}
        for number, (row, samples) in enumerate(having):
            told = row.environment.get("date") is not None
            process = records.process(row) if told else (number,)
            processes.setdefault(process, []).append(estimate.point(samples))
        clocks = [one.sm_clock_mhz for one in times if one.sm_clock_mhz and name != "host"]
        found[name] = Timed(
            kind=name,
            device=times[0].device,
            points=[estimate.mean(points) for points in processes.values()],
            clock_mhz=statistics.fmean(clocks) if clocks else None,
            config=having[0][0].config,
        )
    return found


def samples_of(row: Row, kind: str) -> Samples | None:
    """The samples of one kind of time; None without any."""
    return None if row.times is None else getattr(row.times, kind)


def namer(old: Sequence[Run], new: Sequence[Run], by_config: bool) -> Callable[[Row], Key]:
    """What makes rows of the two sides the same thing.

    A field that the problems of one side alone have, with one value, is newer than the other side:
    it is left out. The machine counts where there are several and the sides have one in common.
    """
    machines = [{machine(row) for run in side for row in run if row.times} for side in (old, new)]
    apart = len(machines[0] | machines[1]) > 1 and bool(machines[0] & machines[1])
    fields: dict[str, list[dict[str, set[str]]]] = {}
    for place, side in enumerate((old, new)):
        for row in (row for run in side for row in run):
            known = fields.setdefault(row.op, [{}, {}])[place]
            for name, value in row.problem.items():
                known.setdefault(name, set()).add(json.dumps(value))
    ignored = {
        op: {
            name
            for mine, other in (both, both[::-1])
            for name in mine.keys() - other.keys()
            if other and len(mine[name]) == 1
        }
        for op, both in fields.items()
    }

    def named(row: Row) -> Key:
        problem = {k: v for k, v in row.problem.items() if k not in ignored[row.op]}
        config = json.dumps(row.config, sort_keys=True) if by_config else ""
        place = machine(row) if apart else ""
        return row.op, row.backend, json.dumps(problem, sort_keys=True), config, place

    return named


def grouped(runs: Sequence[Run], name: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """The rows of each thing, in the order of their first; of several configs the fastest."""
    found: dict[Key, list[Row]] = {}
    for run in runs:
        for row in run:
            found.setdefault(name(row), []).append(row)
    return {key: _fastest(rows) for key, rows in found.items()}


def _fastest(rows: list[Row]) -> list[Row]:
    """The rows of the config with the least median, those without a time too, and what is wrong.

    A row that failed before its config was known may be of any.
    """

    def config(row: Row) -> str:
        return json.dumps(row.config, sort_keys=True)

    timed = sorted((row for row in rows if row.times is not None), key=config)
    groups = [list(group) for _, group in groupby(timed, config)]
    if len(groups) < 2:
        return rows
    best = min(groups, key=lambda group: statistics.fmean(_main(row) for row in group))
    mine = ("{}", config(best[0]))
    return [row for row in rows if config(row) in mine or row.status == "wrong"]


def _main(row: Row) -> float:
    assert row.times is not None
    samples = row.times.cold or row.times.warm or row.times.host
    return samples.median if samples else math.inf
