"""Ratios of rows that were timed in the same turns, and what their intervals cover.

The turns of a match (A B, B A, A B, ...) meet the same clocks and the same heat, so a ratio is
taken turn by turn, within one process; the median is what that process says. What all its turns
share does not average out over them, so the process is the unit (see bench/estimate.py):

- The scatter between processes is pooled over all ratios of a report, and then counts for those of
  one process too.
- Of one process alone and with nothing to pool, the interval tells the doubt of its turns and no
  more: the means of consecutive blocks of them scatter so much.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..bench.estimate import BLOCKS, Estimate, Noise, Point, estimate, paired
from ..bench.records import Row, Samples, process

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """One time over another, with the ends of its interval; None: too few turns to tell."""

    value: float
    low: float | None
    high: float | None


def samples_of(row: Row, kind: str) -> Samples:
    """The samples of a row that has this kind of time."""
    assert row.times is not None
    samples: Samples = getattr(row.times, kind)
    return samples


def pairs(mine: Sequence[Row], others: Sequence[Row], kind: str) -> list[tuple[Samples, Samples]]:
    """The samples of two things by process, of those that took both in the same turns."""
    beside = {process(row): samples_of(row, kind) for row in others}
    found = [
        (samples_of(row, kind), beside[process(row)]) for row in mine if process(row) in beside
    ]
    return [(a, b) for a, b in found if len(a.values) == len(b.values) > 1]


def points(found: Sequence[tuple[Samples, Samples]]) -> list[Point]:
    """What each process says of a ratio."""
    return [paired(*pair) for pair in found]


def ratio(found: Sequence[tuple[Samples, Samples]], noise: Noise) -> Ratio | None:
    """The ratio of two things over their processes; None without any.

    noise: the scatter between processes, as pooled over the ratios of a report.
    """
    if not found:
        return None
    told = points(found)
    value = math.exp(statistics.fmean(point.log_us for point in told))
    if noise.measured or len(told) > 1:
        known = estimate(told, noise)
    else:
        blocks = min(BLOCKS, len(found[0][0].values) // 2)
        if blocks < 2:
            return Ratio(value, None, None)
        known = Estimate(told[0].log_us, told[0].variance, blocks - 1)
    return Ratio(value, *known.interval(CONFIDENCE))
