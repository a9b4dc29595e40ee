"""What a call costs: the parts of measuring that all devices share, and the clock of a CPU.

- A sample is long enough for its clock: one call on a CPU takes at least `TICK_S`, or a sample
  holds several. Device time on a GPU is in `graphs.py`.
- Rivals are interleaved A B B A: whatever drifts (clocks, heat, another process) meets all of them,
  in both orders.
- A distribution is told by its median and quartiles: they do not mind the odd interrupted sample.
- Host time is the time until an eager call returns, with the queue drained before and nothing
  waited for inside.
- A CPU has no cold number: its caches are shared with everything else, and no size is known
  that would empty them.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..kernels.call import Call
from .records import Samples, Times

Run = Callable[[Call], None]

TICK_S = 1e-3  # of a CPU sample: a thousand times the resolution of its clock and of a call to it
COUNT = (10, 200)  # fewest and most samples of a device time
CPU_COUNT = (5, 200)
HOST_COUNT = (10, 100)
HOST_S = 0.1  # spent on host times


def summarise(microseconds: Sequence[float], dropped: int = 0) -> Samples:
    """Median, quartiles and count of some samples."""
    q1, median, q3 = (float(q) for q in np.percentile(microseconds, (25, 50, 75)))
    return Samples(median, q1, q3, len(microseconds), dropped)


def turns(seconds: Sequence[float], budget_s: float, count: tuple[int, int]) -> int:
    """How many samples each rival gets: all of them together take `budget_s` for each."""
    wanted = budget_s * len(seconds) / max(sum(seconds), 1e-9)
    return int(min(max(wanted, count[0]), count[1]))


def order(rivals: int, turn: int) -> range:
    """A B, then B A, then A B, ..."""
    return range(rivals) if turn % 2 == 0 else range(rivals - 1, -1, -1)


def host_time(run: Run, call: Call, wait: Callable[[], None]) -> Samples:
    """Time until an eager call returns, in us; `wait` drains the queue before each."""
    spent: list[float] = []
    with no_collection():
        begin = time.perf_counter()
        while len(spent) < HOST_COUNT[0] or (
            len(spent) < HOST_COUNT[1] and time.perf_counter() - begin < HOST_S
        ):
            wait()
            start = time.perf_counter()
            run(call)
            spent.append((time.perf_counter() - start) * 1e6)
    wait()
    return summarise(spent)


def cpu_times(runs: Sequence[Run], call: Call, budget_s: float) -> list[Times]:
    """Time rivals on a CPU, on the buffers of one call; a state updated in place moves on."""
    single = []
    for run in runs:
        start = time.perf_counter()
        run(call)
        single.append(time.perf_counter() - start)
    repeats = [max(1, round(TICK_S / seconds)) for seconds in single]
    lengths = [r * s for r, s in zip(repeats, single, strict=True)]
    spent: list[list[float]] = [[] for _ in runs]
    with no_collection():
        for turn in range(turns(lengths, budget_s, CPU_COUNT)):
            for i in order(len(runs), turn):
                start = time.perf_counter()
                for _ in range(repeats[i]):
                    runs[i](call)
                spent[i].append((time.perf_counter() - start) * 1e6 / repeats[i])
    return [Times("cpu", None, summarise(samples)) for samples in spent]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
