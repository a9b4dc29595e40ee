"""A race: candidates for one problem in laps, all of them interleaved in each turn of a lap.

A turn meets all candidates with the same clocks and the same heat, so each is compared with the
leader turn by turn. After each lap those go who are slower by more than EQUAL beyond doubt: by
Wilcoxon's signed-rank test of their ratios at 1 - ALPHA. Laps grow longer as candidates become
fewer. What is left after LAPS, or beyond the number of finalists, goes
by its median, and is said to be undecided. The default runs to the end, whatever its time.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

EQUAL = 0.005  # a smaller difference is none: it is what two processes differ by (H100)
ALPHA = 0.01
LAPS = 4
UNDECIDED = "not told apart from the fastest in the race, but not among the finalists"

Lap = Callable[[Sequence[int], float], list[list[float]]]


@dataclass(frozen=True, slots=True)
class Out:
    """One candidate whose race is over, with all its samples in the order of their turns."""

    index: int
    samples: list[float]  # us
    reason: str  # empty for finalists and the default


class Race:
    """The candidates, their samples, and who still runs."""

    def __init__(self, lap: Lap, defaults: Sequence[bool], finalists: int) -> None:
        """Line up one candidate for each of `defaults`, which says whether it is the default.

        lap: takes samples of the candidates named, `budget_s` for each, as many turns for all.
        finalists: how many may be left beside the default.
        """
        self.lap, self.defaults, self.finalists = lap, defaults, finalists
        self.running = list(range(len(defaults)))
        self.samples: list[list[float]] = [[] for _ in defaults]

    def run(self, budget_s: float) -> Iterator[Out]:
        """Run all laps; yields everyone once, as its race ends.

        budget_s: of samples for each candidate in the first lap; each lap doubles it.
        """
        for number in range(LAPS):
            if number and len(self._rivals()) <= 1:
                break
            spent = self.lap(self.running, budget_s * 2**number)
            for i, samples in zip(self.running, spent, strict=True):
                self.samples[i] += samples
            leader = self._leader()
            for i in self._rivals():
                reason = "" if i == leader else slower(self.samples[i], self.samples[leader])
                if reason:
                    yield self._out(i, reason)
        rivals = sorted(self._rivals(), key=lambda i: statistics.median(self.samples[i]))
        for i in rivals[self.finalists :]:
            yield self._out(i, UNDECIDED)
        for i in list(self.running):
            yield self._out(i, "")

    def _rivals(self) -> list[int]:
        """Who still runs, without the default."""
        return [i for i in self.running if not self.defaults[i]]

    def _leader(self) -> int:
        return min(self.running, key=lambda i: statistics.median(self.samples[i]))

    def _out(self, index: int, reason: str) -> Out:
        self.running.remove(index)
        return Out(index, self.samples[index], reason)


def slower(samples: Sequence[float], leader: Sequence[float]) -> str:
    """How much slower than the leader, if it is more than EQUAL beyond doubt; else empty."""
    from scipy.stats import wilcoxon  # a second, which no other worker need wait

    logs = [math.log(a / b) for a, b in zip(samples, leader, strict=True)]
    median = statistics.median(logs)
    if median < math.log1p(EQUAL):
        return ""
    beyond = [log - math.log1p(EQUAL) for log in logs]
    if wilcoxon(beyond, alternative="greater").pvalue >= ALPHA:
        return ""
    return f"{math.exp(median):.3f} times the fastest in the race, over {len(logs)} turns"
