"""Device time on a GPU: replays of CUDA graphs over clones of a call, rivals interleaved.

Why so:
- A graph takes the host out: a replay is one launch, however many calls it holds, so what lies
  between its two events is device time. The first kernel's launch is shared by all calls of the
  graph.
- Cold: the graph runs the call once on each of several clones, inputs and states alike, that
  together exceed the L2 COLD = 4 times. Twice would do with least-recently-used replacement; a
  cache that evicts at random, cycled over F times its size, still hits a share h = exp(-(1 - h) F)
  of its accesses: 20 % for F = 2, 2 % for F = 4. Fewer than 2 times is no cold number.
- What is captured is the launch alone (`kernels/bound.py`): for our kernels the whole run, for a
  rival its kernels on arguments laid out beforehand, without the adapter's copies.
- Warm: the graph runs the call many times on one clone, after an untimed replay.
- A replay is proved: outputs are poisoned, the graph is replayed once, and every clone must hold,
  bit for bit, what as many eager runs leave (finite numbers, for an implementation that does not
  claim repeatability). A launch on another stream than the captured one shows up here as NaN.
- After the samples the same graph gets inputs of another seed in the same buffers, and its results
  are judged by the gate again: neither a stale nor a remembered output can pass.
- In-place states move on with each replay. They contract, so the time does not depend on it; before
  every proof they are put back.
- How samples are taken, interleaved and dropped is in `sampler.py`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.bound import Bound
from ..kernels.family import Call
from .buffers import allocated_bytes, differing, restore, snapshot, touched_bytes
from .gate import Gate, Verdict
from .gpu import Gpu
from .records import Samples, Times
from .sampler import TARGET_S, Loop, Sampler
from .timing import Bind, host_time, summarise

COLD = 4  # clones exceed the L2 this many times
LEAST_COLD = 2
FASTEST = 5e12  # bytes/s that no call exceeds: with it, enough clones for TARGET_S are made
LONGEST_S = 50e-3  # of a cold sample, where fewer clones are still cold
CLONES = 300  # of 2 us and more, they last TARGET_S; each is put back and compared singly
MOST_CLONES = 1000  # where so many are needed to be cold
MEMORY_SHARE = 0.6  # of the free memory that clones may take


class NotCaptured(Exception):
    """The implementation cannot be captured in a graph: right, but without a device time."""


class FalseReplay(Exception):
    """A replay does not do what an eager run does."""


@dataclass(frozen=True, slots=True)
class Replay(Loop):
    """A captured graph over some bound clones, each launched `rounds` times."""

    bounds: list[Bound]
    rounds: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation, captured and proved."""

    bind: Bind
    deterministic: bool
    cold: Replay | None
    warm: Replay | None  # None only beside a cold one

    @property
    def main(self) -> Replay:
        """The cold one, or where there is none the warm one."""
        found = self.cold or self.warm
        assert found is not None
        return found


class Clones:
    """Copies of one call to time on; all who solve it share them."""

    def __init__(self, pristine: Call, gpu: Gpu) -> None:
        """Make the clones; raises torch.OutOfMemoryError if not even one fits."""
        self.pristine = pristine
        touched = touched_bytes(pristine)
        self.fewest = math.ceil(COLD * gpu.l2_bytes / touched)
        self.least = math.ceil(LEAST_COLD * gpu.l2_bytes / touched)
        wanted = max(self.fewest, math.ceil(TARGET_S * FASTEST / touched))
        room = int(MEMORY_SHARE * gpu.free_bytes() / allocated_bytes(pristine))
        needed = self.least if self.least <= MOST_CLONES else 1
        count = min(max(min(wanted, CLONES), needed), room)
        self.calls = [pristine.clone() for _ in range(max(1, count))]


class GraphBench:
    """Times any number of implementations interleaved, of one call or of several."""

    def __init__(self, gpu: Gpu) -> None:
        """Begin with no contender."""
        self.gpu = gpu
        self.sampler = Sampler(gpu)
        self.contenders: list[Contender] = []
        self._clones: dict[int, Clones] = {}
        self._dropped = 0  # samples of laps, throttled

    def add(
        self, pristine: Call, bind: Bind, *, deterministic: bool, measured: bool = True
    ) -> None:
        """Capture an implementation's launches on clones of a call and prove their replays.

        measured: whether `measure` is to come, or laps alone, which need no warm graph beside a
        cold one.
        Raises NotCaptured or FalseReplay, with the reason; torch.OutOfMemoryError.
        """
        if id(pristine) not in self._clones:
            self._clones[id(pristine)] = Clones(pristine, self.gpu)
        clones = self._clones[id(pristine)]
        seconds = self._eager_seconds(bind(clones.calls[0]))
        calls = clones.calls[: max(clones.fewest, math.ceil(LONGEST_S / seconds))]
        cold = None
        if len(calls) >= clones.least:
            cold = self._captured(bind, calls, 1)
            self._prove(pristine, bind, cold, deterministic)
            seconds = self.sampler.seconds(cold)
        warm = None
        if measured or cold is None:
            rounds = min(max(1, math.ceil(TARGET_S / seconds)), CLONES)
            warm = self._captured(bind, calls[:1], rounds)
            self._prove(pristine, bind, warm, deterministic)
        self.contenders.append(Contender(bind, deterministic, cold, warm))

    def measure(self, budget_s: float) -> list[Times]:
        """Device times of all contenders interleaved, then host times; `budget_s` for each.

        Raises Throttled.
        """
        cold: dict[int, Samples] = {}
        clock = None
        with_cold = [i for i, one in enumerate(self.contenders) if one.cold is not None]
        if with_cold:
            replays = [one.cold for one in self.contenders if one.cold is not None]
            raw = self.sampler.interleave(replays, budget_s)
            clock = raw.sm_clock_mhz
            summaries = [summarise(spent, raw.dropped) for spent in raw.spent]
            cold = dict(zip(with_cold, summaries, strict=True))
        replays = [one.warm for one in self.contenders if one.warm is not None]
        raw = self.sampler.interleave(replays, budget_s / 2, settle=True)
        warm = [summarise(spent, raw.dropped) for spent in raw.spent]
        clock = clock or raw.sm_clock_mhz
        return [
            Times("cuda", cold.get(i), its_warm, self._host(one), clock)
            for i, (one, its_warm) in enumerate(zip(self.contenders, warm, strict=True))
        ]

    def lap(self, indices: Sequence[int], budget_s: float) -> list[list[float]]:
        """Samples in us of some contenders, turn by turn; raises Throttled.

        They are cold if everyone has a cold graph.
        """
        raw = self.sampler.interleave(
            [self._loop(self.contenders[i]) for i in indices], budget_s, settle=not self._cold
        )
        self._dropped += raw.dropped
        return raw.spent

    def times(self, samples: Sequence[float]) -> Times:
        """The samples of some laps as times."""
        found = summarise(samples, self._dropped)
        return Times("cuda", *((found, None) if self._cold else (None, found)))

    @property
    def _cold(self) -> bool:
        return all(one.cold is not None for one in self.contenders)

    def _loop(self, one: Contender) -> Replay:
        found = one.cold if self._cold else one.warm
        assert found is not None
        return found

    def recheck(self, index: int, fresh: Gate, *, rival: bool = False) -> Verdict:
        """Judge what the timed graph of a contender makes of other inputs in its buffers."""
        one = self.contenders[index]
        replay = one.main
        if replay.rounds > 1 and fresh.pristine.in_place:
            # a warm graph alone, of a state updated in place: capture a single step anew
            replay = self._captured(one.bind, [bound.call for bound in replay.bounds], 1)
        self._replay_from(fresh.pristine, replay)
        first, *others = (bound.call for bound in replay.bounds)
        verdict = fresh.judge(first, rival=rival)
        if verdict.status == "wrong":
            return verdict
        expected = first.outputs()
        for clone in others:
            fault = self._fault(clone, expected, one.deterministic)
            if fault:
                return Verdict("wrong", fault, verdict.errors)
        return verdict

    def _captured(self, bind: Bind, clones: list[Call], rounds: int) -> Replay:
        """Capture the launches in one graph, after an eager one on the capturing stream."""
        bounds = [bind(clone) for clone in clones]
        self.gpu.wait()

        def launches() -> None:
            for _ in range(rounds):
                for bound in bounds:
                    bound.launch()

        self.gpu.on_stream(bounds[0].launch)
        try:
            return Replay(self.gpu.capture(launches), len(bounds) * rounds, bounds, rounds)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise NotCaptured(f"it cannot be captured in a CUDA graph: {text}") from error

    def _prove(self, pristine: Call, bind: Bind, replay: Replay, deterministic: bool) -> None:
        """Replay once on poisoned outputs and compare with eager launches."""
        first = replay.bounds[0].call
        restore(first, pristine)
        first.poison()
        eager = bind(first)
        for _ in range(replay.rounds):
            eager.launch()
        eager.collect()
        self.gpu.wait()
        expected = snapshot(first)
        del eager
        self._replay_from(pristine, replay)
        for bound in replay.bounds:
            fault = self._fault(bound.call, expected, deterministic)
            if fault:
                raise FalseReplay(f"a graph replay does not do what eager runs do: {fault}")

    def _replay_from(self, source: Call, replay: Replay) -> None:
        """Put the values of a call into the clones, poison what is written and replay once."""
        for bound in replay.bounds:
            restore(bound.call, source)
            bound.call.poison()
            bound.refresh()
        self.gpu.wait()
        self.gpu.queue(replay.launch)
        self.gpu.wait()
        for bound in replay.bounds:
            bound.collect()
        self.gpu.wait()

    def _fault(self, clone: Call, expected: dict[str, Tensor], deterministic: bool) -> str:
        """How a clone's outputs differ from what they should be; empty if they do not."""
        outputs = clone.outputs()
        if deterministic:
            differ = differing(outputs, expected)
            return f"{', '.join(differ)} of a clone differ" if differ else ""
        bad = [
            name
            for name, tensor in outputs.items()
            if not torch.equal(tensor.isfinite(), expected[name].isfinite())
        ]
        return f"{', '.join(bad)} of a clone not finite" if bad else ""

    def _host(self, one: Contender) -> Samples:
        return host_time(one.bind(one.main.bounds[0].call).launch, self.gpu.wait)

    def _eager_seconds(self, bound: Bound) -> float:
        """Rough time of one eager launch, host time included, the second of two."""
        for _ in range(2):
            self.gpu.wait()
            begin = time.perf_counter()
            bound.launch()
            self.gpu.wait()
            seconds = time.perf_counter() - begin
        return seconds
