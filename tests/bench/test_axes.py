"""Axes as typed: what they mean, and what is said of those that cannot be read."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba3_bench.bench.axes import AxisError, numbers, words


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64", (64,)),
        ("64,128", (64, 128)),
        ("128, 64 ,128", (128, 64)),
        ("512:16384:*2", (512, 1024, 2048, 4096, 8192, 16384)),
        ("500:3000:*2", (500, 1000, 2000)),
        ("1:9:+2", (1, 3, 5, 7, 9)),
        ("1:8:+3,100,4", (1, 4, 7, 100)),
        ("5:5:*7", (5,)),
    ],
)
def test_numbers(text, values):
    """Order as given, each value once, the end of a range included where the steps meet it."""
    assert numbers("state", text) == values


@given(low=st.integers(1, 50), high=st.integers(1, 500), step=st.integers(2, 9))
def test_ranges_stay_between_their_ends(low, high, step):
    """Every value but the first is the one before it times or plus the step."""
    if high < low:
        low, high = high, low
    by_factor = numbers("length", f"{low}:{high}:*{step}")
    by_step = numbers("length", f"{low}:{high}:+{step}")
    assert by_factor[0] == by_step[0] == low
    assert list(by_step) == list(range(low, high + 1, step))
    assert all(right == left * step for left, right in pairwise(by_factor))
    assert by_factor[-1] <= high < by_factor[-1] * step


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "positive whole numbers, got ''"),
        ("64,", "positive whole numbers, got ''"),
        ("0", "positive whole numbers, got '0'"),
        ("-4", "positive whole numbers, got '-4'"),
        ("1.5", "positive whole numbers, got '1.5'"),
        ("six", "write numbers as 64,128, ranges as"),
        ("1:2", "low:high:*factor or low:high:+step, got '1:2'"),
        ("1:8:2", "low:high:*factor or low:high:+step, got '1:8:2'"),
        ("1:8:*2:3", "low:high:"),
        ("8:1:*2", "low <= high, got '8:1:*2'; exchange the two"),
        ("1:8:*1", "a factor of at least 2"),
        ("1:8:+0", "positive whole numbers, got '0'"),
        ("1:8:*", "positive whole numbers, got ''"),
        ("9" * 5000, "numbers of at most 18 digits, got '99"),
        (f"1:{'9' * 19}:*2", "numbers of at most 18 digits"),
        ("1:1000000000:+1", "ranges of at most 100000 values, got '1:1000000000:+1'; take larger"),
        ("1:100001:+1", "ranges of at most 100000 values"),
    ],
)
def test_numbers_that_cannot_be_read(text, why):
    """The error names the option, what was expected, what came, and what to write."""
    with pytest.raises(AxisError) as caught:
        numbers("head-size", text)
    assert str(caught.value).startswith("--head-size: expected ")
    assert why in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_longest_range():
    """By steps it may have as many values as are allowed; by factors it is never long."""
    assert len(numbers("batch", "1:100000:+1")) == 100_000
    assert len(numbers("batch", f"1:{'9' * 18}:*2")) == 60


def test_words():
    """Order as given, each word once; an unknown one is told the choices."""
    allowed = ("bf16", "fp16", "fp32")
    assert words("dtype", "fp32, bf16,fp32", allowed) == ("fp32", "bf16")
    with pytest.raises(AxisError, match=r"--dtype: expected .*bf16, fp16, fp32, got 'fp8'"):
        words("dtype", "bf16,fp8", allowed)
    with pytest.raises(AxisError, match="got ''"):
        words("dtype", "bf16,", allowed)
