"""What a call costs: the parts of measuring that all devices share, and the clock of a CPU.

- A sample is long enough for its clock: one call on a CPU takes at least `TICK_S`, or a sample
  holds several. Device time on a GPU is in `graphs.py`.
- Rivals are interleaved A B B A: whatever drifts (clocks, heat, another process) meets all of them,
  in both orders.
- A distribution is told by its median and quartiles: they do not mind the odd interrupted sample.
- Host time is the time until an eager call returns, with the queue drained before and nothing
  waited for inside.
- A CPU has no cold number: its caches are shared with everything else, and no size is known
  that would empty them. The samples of a call have the same inputs, so what remembers them is found
  afterwards, on inputs that change from call to call.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..kernels.bound import Bound
from ..kernels.family import Call
from .buffers import restore
from .gate import Gate, Verdict
from .records import Samples, Times

Bind = Callable[[Call], Bound]

TICK_S = 1e-3  # of a CPU sample: a thousand times the resolution of its clock and of a call to it
COUNT = (10, 200)  # fewest and most samples of a device time
CPU_COUNT = (5, 200)
HOST_COUNT = (10, 100)
RENEWED = 3  # times that inputs change to and fro, and the quickest launch counts
REMEMBERED = 5.0  # as long, and it was answered from memory: of 192 calls on a busy CPU 1.8 at most
HOST_S = 0.1  # spent on host times


def summarise(microseconds: Sequence[float], dropped: int = 0) -> Samples:
    """Median, quartiles, count and values of some samples, given in the order of their taking."""
    q1, median, q3 = (float(q) for q in np.percentile(microseconds, (25, 50, 75)))
    values = tuple(float(f"{value:.5g}") for value in microseconds)
    return Samples(median, q1, q3, len(microseconds), dropped, values)


def turns(seconds: Sequence[float], budget_s: float, count: tuple[int, int]) -> int:
    """How many samples each rival gets: all of them together take `budget_s` for each."""
    wanted = budget_s * len(seconds) / max(sum(seconds), 1e-9)
    return int(min(max(wanted, count[0]), count[1]))


def order(rivals: int, turn: int) -> range:
    """A B, then B A, then A B, ..."""
    return range(rivals) if turn % 2 == 0 else range(rivals - 1, -1, -1)


def host_time(launch: Callable[[], None], wait: Callable[[], None]) -> Samples:
    """Time until an eager launch returns, in us; `wait` drains the queue before each."""
    spent: list[float] = []
    with no_collection():
        begin = time.perf_counter()
        while len(spent) < HOST_COUNT[0] or (
            len(spent) < HOST_COUNT[1] and time.perf_counter() - begin < HOST_S
        ):
            wait()
            start = time.perf_counter()
            launch()
            spent.append((time.perf_counter() - start) * 1e6)
    wait()
    return summarise(spent)


class CpuBench:
    """Times any number of implementations on a CPU; those of one call on the same buffers."""

    def __init__(self) -> None:
        """Begin with no contender; a state updated in place moves on with every run."""
        self.bounds: list[Bound] = []
        self._seen: dict[int, float] = {}  # by index: the median of its last lap, in seconds
        self._calls: dict[int, tuple[Call, Call]] = {}  # by the first's identity: it and its clone

    def add(
        self, pristine: Call, bind: Bind, *, deterministic: bool, measured: bool = True
    ) -> None:
        """Take part in the next measurement or laps, on a clone of a call."""
        if id(pristine) not in self._calls:
            self._calls[id(pristine)] = (pristine, pristine.clone())
        self.bounds.append(bind(self._calls[id(pristine)][1]))

    def measure(self, budget_s: float) -> list[Times]:
        """The times of all, interleaved; `budget_s` of samples for each."""
        spent = self.lap(range(len(self.bounds)), budget_s)
        return [self.times(samples) for samples in spent]

    def lap(self, indices: Sequence[int], budget_s: float) -> list[list[float]]:
        """Samples in us of some, interleaved turn by turn; `budget_s` for each."""
        bounds = [self.bounds[i] for i in indices]
        single = [self._seconds(bound, 1) for bound in bounds]
        repeats = [max(1, round(TICK_S / seconds)) for seconds in single]
        lengths = [count * seconds for count, seconds in zip(repeats, single, strict=True)]
        spent: list[list[float]] = [[] for _ in bounds]
        with no_collection():
            for turn in range(turns(lengths, budget_s, CPU_COUNT)):
                for i in order(len(bounds), turn):
                    seconds = self._seconds(bounds[i], repeats[i])
                    spent[i].append(seconds * 1e6 / repeats[i])
        for i, samples in zip(indices, spent, strict=True):
            self._seen[i] = statistics.median(samples) / 1e6
        return spent

    def times(self, samples: Sequence[float]) -> Times:
        """The samples of some laps as times."""
        return Times("cpu", None, summarise(samples))

    def recheck(self, index: int, fresh: Gate, *, rival: bool = False) -> Verdict:
        """Judge what an implementation makes of other inputs in the timed buffers, and whether it
        takes much longer for them than for those of the call before."""
        bound = self.bounds[index]
        restore(bound.call, fresh.pristine)
        bound.call.poison()
        bound.refresh()
        bound.launch()
        bound.collect()
        verdict = fresh.judge(bound.call, rival=rival)
        times = self._renewed(bound, fresh.pristine) / self._seen[index]
        if verdict.status == "wrong" or times < REMEMBERED:
            return verdict
        reason = f"on inputs that differ from those before it takes {times:.0f} times as long"
        return Verdict("wrong", f"{reason}: what was timed remembers its last call", verdict.errors)

    def _renewed(self, bound: Bound, other: Call) -> float:
        """The least seconds of a launch whose inputs are not those of the launch before."""
        timed = next(pristine for pristine, call in self._calls.values() if call is bound.call)
        spent = []
        for _ in range(RENEWED):
            for source in (timed, other):
                restore(bound.call, source)
                bound.refresh()
                spent.append(self._seconds(bound, 1))
        return min(spent)

    def _seconds(self, bound: Bound, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            bound.launch()
        return time.perf_counter() - start


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.disable()  # without collecting first: 0.2 s, for all that the DSLs keep
    try:
        yield
    finally:
        if enabled:
            gc.enable()
