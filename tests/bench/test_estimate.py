"""How well a time is known: intervals hold what they should, as often as they say."""

import math

import numpy as np
import pytest

from mamba3_bench.bench.estimate import (
    ASSUMED,
    Noise,
    Point,
    estimate,
    point,
    pool,
    quantile,
    ratio,
)
from mamba3_bench.bench.records import Samples
from mamba3_bench.bench.timing import summarise


def series(rng, correlation, count=200, scatter=0.01):
    """Samples around 100 us, each like the one before it."""
    steps = rng.normal(0, scatter * math.sqrt(1 - correlation**2), count)
    values = [rng.normal(0, scatter)]
    for step in steps[1:]:
        values.append(correlation * values[-1] + step)
    return summarise(list(100 * np.exp(values)))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_median_of_correlated_samples_is_known_less_well(correlation, seed):
    """Batch means say how far medians of such series really scatter, within a factor of 1.5.

    At a correlation of 0.9 between neighbours, samples taken for independent would say a quarter.
    """
    rng = np.random.default_rng(seed)
    points = [point(series(rng, correlation)) for _ in range(300)]
    real = float(np.std([one.log_us for one in points]))
    said = math.sqrt(float(np.mean([one.variance for one in points])))
    assert real / 1.5 < said < real * 1.5
    naive = 1.2533 * 0.01 / math.sqrt(200)
    assert (naive < real / 2) == (correlation == 0.9)


def test_quartiles_alone_are_taken_for_independent_samples():
    """Records from before samples were kept still have an interval."""
    sigma = 0.02
    q1, q3 = (100 * math.exp(sign * 0.6745 * sigma) for sign in (-1, 1))
    found = point(Samples(100.0, q1, q3, 400))
    assert math.sqrt(found.variance) == pytest.approx(1.2533 * sigma / 20, rel=1e-3)


def test_noise_between_processes_is_what_samples_do_not_explain(seed):
    """Medians scatter by 1 % between processes, 0.3 % of which is each one's own."""
    rng = np.random.default_rng(seed)
    between, own = 0.01, 0.003
    sides = [
        [Point(4 + rng.normal(0, between) + rng.normal(0, own), own**2) for _ in range(4)]
        for _ in range(200)
    ]
    found = pool(sides, "cuda")
    assert found.measured
    assert found.degrees == 600
    assert found.sd == pytest.approx(between, rel=0.1)


def test_without_repeats_noise_is_assumed():
    """One process a side says nothing of others; two do not say enough."""
    one, two = [Point(1.0, 0.0)], [Point(1.0, 0.0), Point(1.5, 0.0)]
    for device in ("cuda", "cpu"):
        assert pool([one, one], device) == Noise(ASSUMED[device], math.inf, measured=False)
        assert pool([two, two], device).measured is False


@pytest.mark.parametrize("processes", [1, 3])
def test_intervals_of_ratios_cover(processes, seed):
    """95 of 100 hold the true ratio: within four standard errors of a simulation of 2000."""
    rng = np.random.default_rng(seed)
    noise, own, true = Noise(0.01, math.inf, measured=False), 0.004, 1.03

    def side(log):
        scatter = math.hypot(noise.sd, own)
        points = [Point(log + rng.normal(0, scatter), own**2) for _ in range(processes)]
        return estimate(points, noise)

    held = 0
    for _ in range(2000):
        low, high = ratio(side(0.0), side(math.log(true))).interval(0.95)
        held += low <= true <= high
    assert held / 2000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_few_degrees_of_freedom_make_wide_intervals():
    """Student's t: 2.571 standard deviations with 5 degrees, 1.960 with all."""
    assert quantile(0.95, 5) == pytest.approx(2.5706, abs=1e-4)
    assert quantile(0.95, math.inf) == pytest.approx(1.9600, abs=1e-4)
