"""The error budget of the harness on one machine: what a self-test found, as data and in words."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

FILE = "selftest.json"
FOUND = 0.95  # of the comparisons, for a slowdown to count as detected


@dataclass(frozen=True, slots=True)
class Agreement:
    """The same thing compared with itself."""

    processes: int
    shapes: int
    comparisons: int  # shapes x pairs of processes
    cases: dict[str, int]  # how many of them were called what
    false_rate: float  # share called faster or slower, although nothing differs
    between_sd: float | None  # of log medians between processes, as measured here
    largest: float  # largest difference between two processes, as a share
    threshold: float
    noise: float  # what the comparisons took for the scatter between processes


@dataclass(frozen=True, slots=True)
class Detected:
    """How often a slowdown is found, when every shape of NEW is slower by a share."""

    slowdown: float
    found: float  # share of comparisons


@dataclass(frozen=True, slots=True)
class Wait:
    """A kernel that waits by the GPU's own timer, against what the harness says it took."""

    asked_us: float
    waited_us: float  # by the kernel's own account, median over its calls
    measured_us: float  # by the harness: with what a kernel costs beside its wait


@dataclass(frozen=True, slots=True)
class Timer:
    """The harness against the GPU's timer: measured = slope x waited + overhead."""

    step_ns: int  # of the GPU's timer: a wait is known to one of them
    waits: list[Wait]
    slope: float
    overhead_us: float
    worst_us: float  # largest distance of a measured wait from the line


@dataclass(frozen=True, slots=True)
class Planted:
    """A slowdown that is really there, as the harness measures it."""

    planted: float  # of the wait alone
    expected: float  # of the whole kernel, its overhead included
    measured: float


@dataclass(frozen=True, slots=True)
class Traced:
    """A replay by CUDA events and by CUPTI, as the profiler of torch reports it."""

    calls: int
    events_us: float  # of one replay, between the events around it
    cupti_us: float  # from the begin of its first kernel to the end of its last
    kernel_us: float  # one kernel by itself


@dataclass(slots=True)
class SelfTest:
    """The error budget of the harness on one machine."""

    environment: dict[str, Any]
    agreement: Agreement | None = None
    detected: list[Detected] = field(default_factory=list)
    smallest: float | None = None  # slowdown that FOUND of all comparisons find
    empty_us: list[float] = field(default_factory=list)
    timer: Timer | None = None
    planted: list[Planted] = field(default_factory=list)
    traced: Traced | None = None
    not_done: dict[str, str] = field(default_factory=dict)  # what, and why

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote; raises ValueError for another file."""
        try:
            raw = json.loads(path.read_text())
            one = cls(**raw)
            one.agreement = one.agreement and Agreement(**raw["agreement"])
            one.detected = [Detected(**each) for each in raw["detected"]]
            one.planted = [Planted(**each) for each in raw["planted"]]
            one.traced = one.traced and Traced(**raw["traced"])
            if raw["timer"] is not None:
                waits = [Wait(**each) for each in raw["timer"]["waits"]]
                one.timer = Timer(**raw["timer"] | {"waits": waits})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a self-test: {error}") from error
        return one

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def facts(result: SelfTest) -> list[tuple[str, str]]:
    """Name and finding of each part, in words."""
    found = []
    if one := result.agreement:
        cases = ", ".join(f"{count} {case}" for case, count in one.cases.items())
        found += [
            (
                "A against A",
                f"{one.comparisons} comparisons ({one.shapes} shapes, pairs of {one.processes} "
                f"processes): {cases}; {one.false_rate:.1%} false differences at a threshold of "
                f"{one.threshold:.1%}",
            ),
            ("largest difference", f"{one.largest:.2%} between two processes"),
        ]
        if one.between_sd is not None:
            found.append(("between processes", f"standard deviation {one.between_sd:.2%}"))
        smallest = "none tried" if result.smallest is None else f"{result.smallest:.1%}"
        shares = ", ".join(f"{d.slowdown:.1%}: {d.found:.0%}" for d in result.detected)
        found.append(("smallest slowdown", f"{smallest} is found in {FOUND:.0%}; {shares}"))
    if result.empty_us:
        low, high = min(result.empty_us), max(result.empty_us)
        found.append(("empty kernel", f"{low:.3f} to {high:.3f} us"))
    if t := result.timer:
        found.append(
            (
                "known duration",
                f"measured = {t.slope:.4f} x waited + {t.overhead_us:.2f} us, worst "
                f"{t.worst_us:.2f} us off; the GPU's timer moves by {t.step_ns} ns",
            )
        )
    if result.planted:
        shares = ", ".join(f"{p.expected:.2%}: {p.measured:.2%}" for p in result.planted)
        found.append(("planted slowdowns", f"expected: measured; {shares}"))
    if c := result.traced:
        off = c.events_us / c.cupti_us - 1
        found.append(
            (
                "CUPTI",
                f"{c.calls} kernels: {c.cupti_us:.2f} us by CUPTI, {c.events_us:.2f} us by events "
                f"({off:+.1%}); one kernel {c.kernel_us:.2f} us",
            )
        )
    return found + [(f"{what}: not done", why) for what, why in result.not_done.items()]
