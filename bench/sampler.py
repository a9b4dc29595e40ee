"""Samples of device time: graphs replayed between events, rivals interleaved.

- A sample lasts about TARGET_S: events resolve about 0.5 us, and each replay takes 2.8 us beside
  its kernels (H100, by `mamba3-bench selftest`): 0.6 % of a sample.
- Samples come in blocks of about BLOCK_S. While a block runs, NVML is asked for the SM clock and
  the throttle reasons; a block under thermal or supply slowdown is dropped and counted.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .gpu import Gpu, Queue, Span
from .timing import COUNT, order, turns

TARGET_S = 500e-6  # of a sample
BLOCK_S = 30e-3  # some of it goes to the reading
WARM_UP_S = 0.1  # of replays before the first sample: clocks rise from idle in tens of ms
PATIENCE_S = (1.0, 4.0, 10.0)  # pauses after hot blocks in a row


class Throttled(Exception):
    """The GPU was too hot to be measured."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Work that is queued by one launch and holds a number of calls."""

    launch: Queue
    calls: int


@dataclass(frozen=True, slots=True)
class Raw:
    """Interleaved samples in us per call: `spent[i][j]` is rival i's j-th."""

    spent: list[list[float]]
    dropped: int  # of each rival, throttled
    sm_clock_mhz: float | None  # median over the blocks


class Sampler:
    """Takes samples of any number of loops on one GPU."""

    def __init__(self, gpu: Gpu) -> None:
        """Prepare; nothing is queued yet."""
        self.gpu = gpu

    def interleave(self, loops: Sequence[Loop], budget_s: float, *, settle: bool = False) -> Raw:
        """Samples of several loops, A B B A, `budget_s` for each; with `settle`, each after an
        untimed launch.

        Raises Throttled if the GPU stays hot through PATIENCE_S.
        """
        seconds = [self.seconds(loop) * loop.calls for loop in loops]
        self._warm_up(loops)
        wanted = turns(seconds, budget_s, COUNT)
        per_block = max(1, round(BLOCK_S / sum(seconds)))
        spent: list[list[float]] = [[] for _ in loops]
        clocks, dropped, reasons = [], 0, set[str]()
        pauses = iter(PATIENCE_S)
        while len(spent[0]) < wanted:
            done = len(spent[0])
            block = self.block(loops, range(done, min(done + per_block, wanted)), settle)
            reading = self.gpu.reading()  # the queue is full: the GPU is busy with the block
            self.gpu.wait()
            if reading.throttled:
                dropped += len(block[0])
                reasons |= set(reading.throttled)
                pause = next(pauses, None)
                if pause is None:
                    raise Throttled(
                        f"still throttled after all pauses: {', '.join(sorted(reasons))}"
                    )
                time.sleep(pause)
                self._warm_up(loops)
                continue
            pauses = iter(PATIENCE_S)  # one good block renews them: heat that comes and goes
            clocks += [] if reading.sm_mhz is None else [reading.sm_mhz]
            for i, spans in enumerate(block):
                spent[i] += [span.seconds() * 1e6 / loops[i].calls for span in spans]
        return Raw(spent, dropped, statistics.median(clocks) if clocks else None)

    def seconds(self, loop: Loop) -> float:
        """Rough device time of one call, from the second of two launches."""
        ((_, span),) = self.block([loop], range(2), settle=False)
        self.gpu.wait()
        return max(span.seconds() / loop.calls, 1e-7)

    def block(self, loops: Sequence[Loop], numbers: range, settle: bool) -> list[list[Span]]:
        """Queue some turns of samples without waiting; returns the spans of each loop."""
        spans: list[list[Span]] = [[] for _ in loops]
        for turn in numbers:
            for i in order(len(loops), turn):
                if settle:
                    self.gpu.queue(loops[i].launch)
                spans[i].append(self.gpu.span(loops[i].launch))
        return spans

    def _warm_up(self, loops: Sequence[Loop]) -> None:
        begin = time.perf_counter()
        while time.perf_counter() - begin < WARM_UP_S:
            self.block(loops, range(1), settle=False)
            self.gpu.wait()
