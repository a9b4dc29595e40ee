"""Rows that repeat one measurement in several processes, made one; and how well its time is known.

The interval of a median covers what differs between processes: see bench/estimate.py.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..bench.estimate import Noise, Point, estimate, point, pools
from ..bench.records import Row, Samples, Times

KINDS = ("cold", "warm", "host")
CONFIDENCE = 0.95
# What repeats of one thing share; the rest of the environment belongs to a process.
SHARED = ("device", "gpu", "driver", "cuda", "python", "packages", "commit", "dirty")
Scatter = dict[str, dict[str, Noise]]  # between processes: by kind of time, then by device


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of a report: a row, or several that differ in their process alone."""

    row: Row  # the first, with the samples of all
    repeats: int
    points: dict[str, list[Point]]  # by kind of time, one for each process

    def interval(self, kind: str, noise: Scatter) -> tuple[float, float] | None:
        """Lower and upper end in microseconds of the CONFIDENCE interval of the median."""
        if self.row.times is None or not self.points.get(kind):
            return None
        found = noise[kind][self.row.times.device]
        return estimate(self.points[kind], found).interval(CONFIDENCE)


def merged(rows: Iterable[Row]) -> list[Measured]:
    """The lines of some rows, in the order of their first.

    Repeats are of one kind and of one match: a check is no measurement, and what met others in the
    same process is measured a second time there.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        shared = {name: row.environment.get(name) for name in SHARED}
        what = [row.op, row.backend, row.source, row.problem, row.config]
        same = [*what, row.kind, row.match, row.status, row.seed, shared]
        known = groups.setdefault(json.dumps(same, sort_keys=True, default=str), [])
        # two rows of one repeat are two measurements: they come from two files
        if any(other.repeat == row.repeat for other in known):
            known = groups.setdefault(row.key, [])
        known.append(row)
    return [_measured(group) for group in groups.values()]


def noise_of(lines: Sequence[Measured]) -> Scatter:
    """The scatter between processes; assumed where nothing was repeated."""
    return {
        kind: pools(
            (line.row.times.device, line.points.get(kind, [])) for line in lines if line.row.times
        )
        for kind in KINDS
    }


def _measured(rows: Sequence[Row]) -> Measured:
    samples = {
        kind: [found for row in rows if row.times and (found := getattr(row.times, kind))]
        for kind in KINDS
    }
    points = {kind: [point(one) for one in found] for kind, found in samples.items() if found}
    first = rows[0]
    if len(rows) > 1 and first.times is not None:
        clocks = [row.times.sm_clock_mhz for row in rows if row.times and row.times.sm_clock_mhz]
        cold, warm, host = (_joined(samples[kind]) for kind in KINDS)
        clock = float(np.median(clocks)) if clocks else None
        first = replace(first, times=Times(first.times.device, cold, warm, host, clock))
    return Measured(first, len(rows), points)


def _joined(samples: Sequence[Samples]) -> Samples | None:
    """Samples of several processes: the geometric mean of their medians, and of their quartiles."""
    if not samples:
        return None
    median, q1, q3 = (
        float(np.exp(np.mean([np.log(getattr(one, name)) for one in samples])))
        for name in ("median", "q1", "q3")
    )
    count = sum(one.count for one in samples)
    return Samples(median, q1, q3, count, sum(one.dropped for one in samples))
