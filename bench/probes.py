"""Probes of the timer itself: things whose duration is known, measured as kernels are measured."""

import math
import statistics
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch

from . import ceilings
from .budget import Planted, Timer, Traced, Wait
from .gpu import Gpu
from .sampler import TARGET_S, Loop, Sampler

EMPTY_ROUNDS = 9
DURATIONS_NS = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000)
SLOWER = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03)  # planted in a wait of SLOWED_NS
SLOWED_NS = 50_000
BUDGET_S = 0.1
REPLAYS = 20  # under the profiler


def empty_kernel(gpu: Gpu) -> list[float]:
    """Microseconds of a kernel that writes one element, among many in a graph, several times."""
    return [1e6 * ceilings.floor_time(gpu) for _ in range(EMPTY_ROUNDS)]


class Waits:
    """Graphs of the waiting kernel; raises ImportError without Triton."""

    def __init__(self, gpu: Gpu) -> None:
        """Load the kernel."""
        # by name, and only when asked for: no module of this package needs a DSL
        self.kernel: Any = import_module("mamba3_bench.kernels.triton.spin")
        self.gpu = gpu
        self.sampler = Sampler(gpu)

    def loop(self, nanoseconds: int) -> tuple[Loop, torch.Tensor]:
        """A graph of as many waits as a sample takes, and where they write how long they took."""
        calls = max(1, math.ceil(TARGET_S * 1e9 / nanoseconds))
        spent = torch.zeros(calls, dtype=torch.int64, device=self.gpu.device)

        def queue() -> None:
            for place in range(calls):
                self.kernel.spin(spent, nanoseconds, place)

        self.gpu.on_stream(lambda: self.kernel.spin(spent, nanoseconds, 0))
        return Loop(self.gpu.capture(queue), calls), spent

    def timer(self) -> Timer:
        """Waits of many lengths, and the line through what was measured of them.

        Interleaved: a launch takes 0.8 us on a GPU that was idle and 1.0 a second later (H100).
        """
        made = [self.loop(nanoseconds) for nanoseconds in DURATIONS_NS]
        raw = self.sampler.interleave([loop for loop, _ in made], BUDGET_S)
        waits = []
        for nanoseconds, (loop, spent), samples in zip(DURATIONS_NS, made, raw.spent, strict=True):
            waited = float(spent.double().median()) * 1e-3
            waits.append(Wait(loop.calls, nanoseconds * 1e-3, waited, statistics.median(samples)))
        return Timer(self.kernel.timer_step(self.gpu.device), waits, *fit(waits))

    def planted(self, timer: Timer) -> list[Planted]:
        """Waits that are longer by a known share, timed interleaved with one that is not."""
        found = []
        base, _ = self.loop(SLOWED_NS)
        for share in SLOWER:
            other, _ = self.loop(round(SLOWED_NS * (1 + share)))
            first, second = self.sampler.interleave([base, other], BUDGET_S).spent
            ratio = statistics.median(second) / statistics.median(first)
            beside_us = timer.kernel_us + timer.replay_us / base.calls
            expected = share * SLOWED_NS / (SLOWED_NS + 1e3 * beside_us)
            found.append(Planted(share, expected, ratio - 1))
        return found

    def traced(self) -> Traced:
        """The same replays by events and by CUPTI; raises RuntimeError if CUPTI sees nothing."""
        loop, _ = self.loop(10_000)
        raw = self.sampler.interleave([loop], BUDGET_S)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
        ) as trace:
            for _ in range(REPLAYS):
                self.gpu.queue(loop.launch)
                self.gpu.wait()
        spans = kernel_spans(trace)
        if len(spans) != REPLAYS * loop.calls:
            raise RuntimeError(f"CUPTI reports {len(spans)} of {REPLAYS * loop.calls} kernels")
        replays = [spans[i : i + loop.calls] for i in range(0, len(spans), loop.calls)]
        return Traced(
            calls=loop.calls,
            events_us=statistics.median(raw.spent[0]) * loop.calls,
            cupti_us=statistics.median(one[-1][1] - one[0][0] for one in replays),
            kernel_us=statistics.median(end - begin for begin, end in spans),
        )


def fit(waits: Sequence[Wait]) -> tuple[float, float, float, float]:
    """Slope, cost of a kernel, cost of a replay, and largest residual, in microseconds.

    Least squares of measured = slope x waited + kernel + replay / calls, relative errors equal.
    """
    x = np.array([[wait.waited_us, 1, 1 / wait.calls] for wait in waits])
    y = np.array([wait.measured_us for wait in waits])
    weights = 1 / x[:, 0]
    found = np.linalg.lstsq(x * weights[:, None], y * weights, rcond=None)[0]
    slope, kernel, replay = (float(value) for value in found)
    return slope, kernel, replay, float(np.abs(y - x @ found).max())


def kernel_spans(trace: Any) -> list[tuple[float, float]]:
    """Begin and end of each kernel in microseconds, in order of time."""
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type.name == "CUDA" and "spin" in event.name
    ]
    return sorted(spans)
