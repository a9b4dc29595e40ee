"""Times that no machine can have."""

import pytest

from mamba3_bench.bench.ceilings import too_fast
from mamba3_bench.bench.timing import Times, summarise

CEILINGS = {"copy_bytes_per_s": 3e12, "kernel_floor_us": 2.0}


def times(cold=None, warm=None):
    """Times of a GPU, each median given in microseconds."""
    made = [None if us is None else summarise([us] * 8) for us in (cold, warm)]
    return Times("cuda", *made)


@pytest.mark.parametrize(
    ("given", "nbytes", "says"),
    [
        (times(cold=1000.0, warm=300.0), 3 * 10**9, None),  # a warm call may be in the L2
        (times(cold=300.0), 3 * 10**9, "faster than memory"),
        (times(cold=0.5), 8, "faster than an empty kernel: 0.5 us"),
        (times(cold=9.0, warm=0.5), 8, "faster than an empty kernel: 0.5 us"),
        (times(warm=0.001), 10**9, "faster than an empty kernel"),
        (times(), 8, None),
    ],
)
def test_too_fast(given, nbytes, says):
    """Memory limits what is cold, an empty kernel all; what was not timed is not too fast."""
    found = too_fast(given, nbytes, CEILINGS)
    assert found is None if says is None else found.startswith(says)
