"""How well a time is known: between samples of one process, and between processes.

Two runs of one program on one machine differ by more than their samples tell. Each process has its
own placement in memory, its own moment, its own clocks; what all samples of a process share does
not average out over them. So the unit is the process, and its median one observation:

- Where things were measured in several processes, the scatter of their medians is what counts. Few
  processes tell it badly, and it differs between things (on an H100 from 0.01 % to 1 %), so each
  thing's own variance is drawn towards what is typical of all, as much as theirs agree with each
  other: empirical Bayes, Smyth 2004 (doi:10.2202/1544-6115.1027), and Student's t.
- A scatter is assumed (ASSUMED). Where nothing was repeated, it is all that is known, and an
  interval says so. To it comes what the samples of the one process tell; those in a row are
  correlated, so the series is cut into BLOCKS consecutive blocks and the scatter of their medians
  is taken (batch means). The first repeat counts beside it: what is typical is drawn up to what is
  assumed, as to one thing more, of PRIOR degrees of freedom; never down, so much scatter shows.
- Few things agree by chance, and of many one may be unlike the others. So what is typical is worth
  MOST degrees at the most beside a thing's own.

Everything is on the logarithm of time: effects are ratios, and noise is a share of the time.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import digamma, polygamma, stdtrit

from .records import Samples

BLOCKS = 10
# Standard deviation of log medians between processes, before anything is repeated. A CPU that does
# other work beside was seen to differ by 0.2 from minute to minute.
ASSUMED = {"cuda": 0.005, "cpu": 0.2}
PRIOR = 5  # degrees of freedom that ASSUMED is worth
MOST = 8  # degrees of freedom that what is typical of all is worth beside a thing's own
LEAST = 1e-5  # no median is known better: five digits are recorded


@dataclass(frozen=True, slots=True)
class Point:
    """What one process says of one time."""

    log_us: float  # logarithm of the median in microseconds
    variance: float  # of log_us, as far as the samples of one process can tell


@dataclass(frozen=True, slots=True)
class Noise:
    """How much the medians of processes scatter: what is typical of all that was measured."""

    sd: float  # of the logarithm of a median: 0.01 is about 1 %
    weight: float  # degrees of freedom that it is worth beside a thing's own
    measured: bool  # from repeats: not only assumed, and not given
    degrees: float = math.inf  # of all repeats and PRIOR: nothing is known better than by them


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
        return Point(log_us, _batched([math.log(value) for value in samples.values]))
    sigma = math.log(samples.q3 / samples.q1) / 1.349
    return Point(log_us, (1.2533 * sigma) ** 2 / max(samples.count, 1))


def mean(points: Sequence[Point]) -> Point:
    """Several measurements of one thing by one process as one."""
    log_us = statistics.fmean(one.log_us for one in points)
    return Point(log_us, math.fsum(one.variance for one in points) / len(points) ** 2)


def paired(samples: Samples, others: Samples) -> Point:
    """The ratio of two things that one process sampled turn by turn, `others` below the line."""
    count = min(len(samples.values), len(others.values))
    if count < 4:
        return Point(math.log(samples.median / others.median), 0.0)
    values = zip(samples.values[:count], others.values[:count], strict=True)
    logs = [math.log(a / b) for a, b in values]
    return Point(statistics.median(logs), _batched(logs))


def apart(samples: Samples, others: Samples) -> Point:
    """The ratio of two things that were not sampled in the same turns."""
    above, below = point(samples), point(others)
    return Point(above.log_us - below.log_us, above.variance + below.variance)


def _batched(logs: Sequence[float]) -> float:
    """The variance of the median of a series: batch means of consecutive blocks."""
    count = min(BLOCKS, len(logs) // 2)
    ends = [len(logs) * i // count for i in range(count + 1)]
    medians = [statistics.median(logs[begin:end]) for begin, end in pairwise(ends)]
    mean = math.fsum(medians) / count
    return math.fsum((median - mean) ** 2 for median in medians) / (count - 1) / count


def pool(sides: Iterable[Sequence[Point]], device: str) -> Noise:
    """What is typical of the scatter between processes, from all that was measured in several."""
    repeated = [points for points in sides if len(points) > 1]
    if not repeated:
        return Noise(ASSUMED[device], math.inf, measured=False)
    degrees = [len(points) - 1 for points in repeated]
    variances = [
        max(squares(points) / d, LEAST**2) for points, d in zip(repeated, degrees, strict=True)
    ]
    # log s^2 ~ log s0^2 + log F(d, d0): its mean gives s0, what is left of its scatter gives d0
    logs = [
        math.log(v) - digamma(d / 2) + math.log(d / 2)
        for v, d in zip(variances, degrees, strict=True)
    ]
    chance = [_trigamma(d / 2) for d in degrees]  # the variance of each
    sure = [1 / one for one in chance]
    log = statistics.fmean(logs, sure)
    left = -statistics.fmean(chance)
    left += statistics.variance(logs) if len(logs) > 1 else 0.0
    weight = math.inf  # no more scatter than chance: all have one variance
    if left > 0:
        weight = 2 * inverse_trigamma(left)
        log += digamma(weight / 2) - math.log(weight / 2)
    within = statistics.fmean(one.variance for points in repeated for one in points)
    assumed = math.log(ASSUMED[device] ** 2 + within)
    if log < assumed:
        log = statistics.fmean([log, assumed], [math.fsum(sure), 1 / _trigamma(PRIOR / 2)])
    return Noise(math.exp(log / 2), min(weight, MOST), True, sum(degrees) + PRIOR)


def pools(sides: Iterable[tuple[str, Sequence[Point]]]) -> dict[str, Noise]:
    """The same for each device, from what was measured by it: one tells nothing of another."""
    found: dict[str, list[Sequence[Point]]] = {}
    for device, points in sides:
        found.setdefault(device, []).append(points)
    return {device: pool(known, device) for device, known in found.items()}


def _trigamma(x: float) -> float:
    return float(polygamma(1, x))


def squares(points: Sequence[Point]) -> float:
    """Sum of the squared deviations from their mean."""
    mean = statistics.fmean(one.log_us for one in points)
    return math.fsum((one.log_us - mean) ** 2 for one in points)


def estimate(points: Sequence[Point], noise: Noise) -> Estimate:
    """One time from one or more processes."""
    variance, degrees = _variance([points], noise)
    log = statistics.fmean(one.log_us for one in points)
    return Estimate(log, variance / len(points), degrees)


def ratio(old: Sequence[Point], new: Sequence[Point], noise: Noise) -> Estimate:
    """NEW over OLD, of equal variance."""
    variance, degrees = _variance([old, new], noise)
    logs = [statistics.fmean(one.log_us for one in side) for side in (old, new)]
    return Estimate(logs[1] - logs[0], variance * (1 / len(old) + 1 / len(new)), degrees)


def _variance(sides: Sequence[Sequence[Point]], noise: Noise) -> tuple[float, float]:
    """The variance of the median of one process, and its degrees of freedom."""
    own = sum(len(side) - 1 for side in sides)
    if not noise.measured:
        within = statistics.fmean(one.variance for side in sides for one in side)
        return noise.sd**2 + within, math.inf
    found = math.fsum(squares(side) for side in sides)
    degrees = noise.weight + own
    return (noise.weight * noise.sd**2 + found) / degrees, min(degrees, noise.degrees)


def inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1 / trigamma, which is nearly straight."""
    x = 0.5 + 1 / value
    for _ in range(50):
        at = _trigamma(x)
        step = at * (1 - at / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-9 * x:
            break
    return x


def quantile(confidence: float, degrees: float) -> float:
    """Half the width of a two-sided interval in standard deviations: Student's t."""
    return float(stdtrit(degrees, 0.5 + confidence / 2))
