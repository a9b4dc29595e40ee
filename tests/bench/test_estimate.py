"""How well a time is known: intervals hold what they should, as often as they say."""

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from mamba3_bench.bench.estimate import (
    ASSUMED,
    MOST,
    PRIOR,
    Noise,
    Point,
    estimate,
    inverse_trigamma,
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


def sides(rng, spreads, processes=3):
    """Things whose processes scatter by a share of each thing's own."""
    return [[Point(rng.normal(4, sd), 0.0) for _ in range(processes)] for sd in spreads]


def test_equal_scatter_is_pooled(seed):
    """300 things that all scatter by 1 % tell it well, and outweigh what one of them says; but it
    is worth MOST degrees and no more."""
    found = pool(sides(np.random.default_rng(seed), [0.01] * 300), "cuda")
    assert found.measured
    assert found.sd == pytest.approx(0.01, rel=0.1)
    assert found.weight == MOST


def test_unequal_scatter_leaves_each_its_own(seed):
    """From 0.01 % to 1 %: what is typical is worth little beside a thing's own."""
    spreads = np.geomspace(1e-4, 1e-2, 300)
    found = pool(sides(np.random.default_rng(seed), spreads), "cuda")
    assert found.measured
    assert found.weight < 3
    assert 1e-4 < found.sd < 1e-2


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_repeats_noise_is_assumed(device):
    """One process a side says nothing of others."""
    one = [Point(1.0, 0.0)]
    assert pool([one, one], device) == Noise(ASSUMED[device], math.inf, measured=False)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("factor", [0.1, 4.0])
def test_the_first_repeat_counts_beside_what_is_assumed(device, factor, seed):
    """Less scatter than assumed draws it down, the more the more there is; more replaces it."""
    typical, assumed = factor * ASSUMED[device], ASSUMED[device]
    gap = typical / math.sqrt(2) * math.exp((digamma(0.5) - math.log(0.5)) / 2)
    two = [Point(1.0 - gap, 0.0), Point(1.0 + gap, 0.0)]
    once, often = pool([two], device), pool([two] * 50, device)
    assert once.measured
    assert once.degrees == PRIOR + 1
    if factor > 1:
        assert once.sd == pytest.approx(typical)
    else:
        assert 0.7 * assumed < once.sd < 0.9 * assumed
        assert typical < often.sd < 2 * typical


def test_the_samples_of_a_process_count_beside_what_is_assumed():
    """Two processes that agree by chance are not known better than their own samples tell."""
    noisy = [Point(1.0, 0.05**2)] * 2
    assert pool([noisy], "cuda").sd > 0.02


def test_inverse_trigamma():
    """It undoes trigamma over all that can come up; trigamma(1) = pi^2 / 6."""
    assert inverse_trigamma(math.pi**2 / 6) == pytest.approx(1)
    for value in np.geomspace(1e-3, 1e3, 20):
        assert polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("spreads", [(0.01, 0.01), (0.0005, 0.02)], ids=["equal", "unequal"])
def test_intervals_of_ratios_cover(spreads, seed):
    """Of 3000 things measured in three processes a side, 95 of 100 intervals hold the true ratio.

    Within four standard errors, and a per cent for drawing variances from another family than the
    method thinks of; the noisy half of unequal things by themselves at least 90.
    """
    rng, true, count = np.random.default_rng(seed), 1.03, 3000
    scatter = np.geomspace(*spreads, count)
    old, new = sides(rng, scatter), sides(rng, scatter)
    new = [[Point(one.log_us + math.log(true), 0.0) for one in side] for side in new]
    noise = pool(old + new, "cuda")
    held = []
    for before, after in zip(old, new, strict=True):
        low, high = ratio(before, after, noise).interval(0.95)
        held.append(low <= true <= high)
    error = 4 * math.sqrt(0.95 * 0.05 / count)
    assert np.mean(held) == pytest.approx(0.95, abs=error + 0.01)
    assert np.mean(held[count // 2 :]) > 0.9


@pytest.mark.parametrize("scatter", [0.003, 0.007])
@pytest.mark.parametrize(("things", "repeats"), [(1, 2), (1, 3), (1, 6), (3, 2), (3, 3), (6, 3)])
def test_few_repeats_are_not_taken_for_certain(things, repeats, scatter, seed):
    """Of 1500 small runs 99 of 100 intervals hold the truth, within four standard errors and half
    a per cent: what a handful of repeats says of their scatter is itself uncertain, and it may be
    more than is assumed (0.5 %)."""
    rng, missed, count = np.random.default_rng(seed), 0, 1500
    for _ in range(count):
        measured = sides(rng, [scatter] * things, repeats)
        low, high = estimate(measured[0], pool(measured, "cuda")).interval(0.99)
        missed += not low <= math.exp(4) <= high
    assert missed / count < 0.01 + 4 * math.sqrt(0.01 * 0.99 / count) + 0.005


@pytest.mark.parametrize(
    ("things", "repeats", "at_least"), [(6, 2, 0.92), (12, 2, 0.83), (40, 3, 0.8)]
)
def test_who_scatters_unlike_the_others_is_not_drowned(things, repeats, at_least, seed):
    """One of several scatters by 0.7 %, the others by a tenth, and often all agree by chance. Of
    its intervals of 99 % so many hold the truth, within four standard errors; if what is typical
    were worth more than MOST, or nothing were assumed, 10 to 15 of 100 less."""
    rng, held, count = np.random.default_rng(seed), 0, 1000
    for _ in range(count):
        measured = sides(rng, [0.007] + [0.0007] * (things - 1), repeats)
        low, high = estimate(measured[0], pool(measured, "cuda")).interval(0.99)
        held += low <= math.exp(4) <= high
    assert held / count > at_least - 4 * math.sqrt(at_least * (1 - at_least) / count)


def test_one_process_a_side_takes_what_is_assumed(seed):
    """With what its own samples tell: 95 of 100 hold, if the assumption does."""
    rng, own = np.random.default_rng(seed), 0.004
    noise = Noise(0.01, math.inf, measured=False)
    scatter = math.hypot(noise.sd, own)
    held = 0
    for _ in range(3000):
        old, new = ([Point(rng.normal(0, scatter), own**2)] for _ in range(2))
        low, high = ratio(old, new, noise).interval(0.95)
        held += low <= 1 <= high
    assert held / 3000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 3000))


def test_few_degrees_of_freedom_make_wide_intervals():
    """Student's t: 2.571 standard deviations with 5 degrees, 1.960 with all."""
    assert quantile(0.95, 5) == pytest.approx(2.5706, abs=1e-4)
    assert quantile(0.95, math.inf) == pytest.approx(1.9600, abs=1e-4)
