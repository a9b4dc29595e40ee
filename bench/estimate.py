"""How well a time is known: between samples of one process, and between processes.

Two runs of one program on one machine differ by more than their samples tell. Each process has its
own placement in memory, its own moment, its own clocks; what all samples of a process share does
not average out over them. So a median has two variances:

- within a process: samples in a row are correlated, so the series is cut into BLOCKS consecutive
  blocks and the scatter of their medians is taken (batch means), not that of the samples;
- between processes: estimated from repeated processes, pooled over everything that was repeated;
  without repeats it is assumed (ASSUMED), and an interval says so.

Everything is on the logarithm of time: effects are ratios, and noise is a share of the time.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import stdtrit

from .records import Samples

BLOCKS = 10
# Standard deviation of log medians between processes, where nothing was repeated. A CPU that does
# other work beside was seen to differ by 0.2 from minute to minute.
ASSUMED = {"cuda": 0.005, "cpu": 0.2}
ENOUGH = 5  # degrees of freedom, to believe an estimate and not ASSUMED


@dataclass(frozen=True, slots=True)
class Point:
    """What one process says of one time."""

    log_us: float  # logarithm of the median in microseconds
    variance: float  # of log_us, as far as the samples of one process can tell


@dataclass(frozen=True, slots=True)
class Noise:
    """How much the medians of processes scatter beyond what their samples explain."""

    sd: float  # of the logarithm of a median: 0.01 is about 1 %
    degrees: float  # of freedom; infinite if assumed
    measured: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """The logarithm of a time, or of a ratio of two, and how well it is known."""

    log: float
    variance: float
    degrees: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Lower and upper end, no longer as logarithms."""
        reach = quantile(confidence, self.degrees) * math.sqrt(self.variance)
        return math.exp(self.log - reach), math.exp(self.log + reach)


def point(samples: Samples) -> Point:
    """Median of one process, with the variance that its samples tell.

    Records from before samples were kept have quartiles alone: then samples count as independent
    and normal, 1.2533 sigma / sqrt(n) with sigma = (q3 - q1) / 1.349.
    """
    log_us = math.log(samples.median)
    if len(samples.values) >= 4:
        count = min(BLOCKS, len(samples.values) // 2)
        ends = [len(samples.values) * i // count for i in range(count + 1)]
        blocks = [samples.values[begin:end] for begin, end in pairwise(ends)]
        medians = [math.log(statistics.median(block)) for block in blocks]
        mean = math.fsum(medians) / count
        scatter = math.fsum((median - mean) ** 2 for median in medians) / (count - 1)
        return Point(log_us, scatter / count)
    sigma = math.log(samples.q3 / samples.q1) / 1.349
    return Point(log_us, (1.2533 * sigma) ** 2 / max(samples.count, 1))


def pool(sides: Iterable[Sequence[Point]], device: str) -> Noise:
    """The noise between processes, from all that was measured in several of them."""
    squares, within, degrees = 0.0, 0.0, 0
    for points in sides:
        if len(points) < 2:
            continue
        mean = statistics.fmean(one.log_us for one in points)
        squares += sum((one.log_us - mean) ** 2 for one in points)
        within += (len(points) - 1) * statistics.fmean(one.variance for one in points)
        degrees += len(points) - 1
    if degrees < ENOUGH:
        return Noise(ASSUMED[device], math.inf, measured=False)
    return Noise(math.sqrt(max(squares - within, 0.0) / degrees), degrees, measured=True)


def estimate(points: Sequence[Point], noise: Noise) -> Estimate:
    """One time from one or more processes."""
    log = statistics.fmean(one.log_us for one in points)
    own = statistics.fmean(one.variance for one in points)
    return Estimate(log, (noise.sd**2 + own) / len(points), noise.degrees)


def ratio(old: Estimate, new: Estimate) -> Estimate:
    """NEW over OLD."""
    degrees = min(old.degrees, new.degrees)
    return Estimate(new.log - old.log, old.variance + new.variance, degrees)


def quantile(confidence: float, degrees: float) -> float:
    """Half the width of a two-sided interval in standard deviations: Student's t."""
    return float(stdtrit(degrees, 0.5 + confidence / 2))
