"""The error budget of the harness on one machine: what a self-test found, as data and in words."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ..kernels.typed import typed
from .records import UNREADABLE

FILE = "selftest.json"
SENSITIVE = 0.001  # threshold when the question is what can be seen at all
FOUND = 0.95  # of the comparisons, for a slowdown to count as detected


class SelfTestError(ValueError):
    """A file that is no self-test."""

    def __init__(self, path: Path, reason: Exception) -> None:
        super().__init__(f"{path}: not a self-test: {reason}")


@dataclass(frozen=True, slots=True)
class Detected:
    """How often a slowdown is found, when every shape of NEW is slower by a share."""

    slowdown: float
    found: float  # share of comparisons


@dataclass(frozen=True, slots=True)
class Agreement:
    """The same thing compared with itself."""

    processes: int  # on each side of a comparison
    shapes: int
    comparisons: int  # of one shape
    cases: dict[str, int]  # how many of them were called what
    false_rate: float  # share called faster or slower, although nothing differs
    largest: float  # largest difference between the two sides, as a share
    threshold: float
    detected: list[Detected]
    smallest: float | None  # slowdown that FOUND of all comparisons find, at SENSITIVE

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """What asdict made of one."""
        detected = [Detected(**typed(Detected, each)) for each in raw["detected"]]
        return cls(**typed(cls, raw | {"detected": detected}))


@dataclass(frozen=True, slots=True)
class Wait:
    """A kernel that waits by the GPU's own timer, against what the harness says it took."""

    calls: int  # in one replay
    asked_us: float
    waited_us: float  # by the kernel's own account, median over its calls
    measured_us: float  # by the harness: with what a kernel costs beside its wait


@dataclass(frozen=True, slots=True)
class Timer:
    """The harness against the GPU's timer: measured = slope x waited + kernel + replay / calls."""

    step_ns: int  # of the GPU's timer: a wait is known to one of them
    waits: list[Wait]
    slope: float
    kernel_us: float  # what each kernel costs beside its wait
    replay_us: float  # what each replay costs: it is shared by the calls that it holds
    worst_us: float  # largest distance of a measured wait from this


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
    single: Agreement | None = None  # one process a side, the scatter between them assumed
    repeated: Agreement | None = None  # several a side, the scatter taken from them
    between_sd: float | None = None  # of log medians between processes, root mean square
    empty_us: list[float] = field(default_factory=list)
    timer: Timer | None = None
    planted: list[Planted] = field(default_factory=list)
    traced: Traced | None = None
    not_done: dict[str, str] = field(default_factory=dict)  # what, and why

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote; raises SelfTestError for another file."""
        try:
            raw = json.loads(path.read_text())
            for name in ("single", "repeated"):
                raw[name] = raw[name] and Agreement.from_dict(raw[name])
            raw["planted"] = [Planted(**typed(Planted, each)) for each in raw["planted"]]
            raw["traced"] = raw["traced"] and Traced(**typed(Traced, raw["traced"]))
            if raw["timer"] is not None:
                waits = [Wait(**typed(Wait, each)) for each in raw["timer"]["waits"]]
                raw["timer"] = Timer(**typed(Timer, raw["timer"] | {"waits": waits}))
            return cls(**typed(cls, raw))
        except UNREADABLE as error:
            raise SelfTestError(path, error) from error

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def facts(result: SelfTest) -> list[tuple[str, str]]:
    """Name and finding of each part, in words."""
    found = []
    for name, one in (("A against A", result.single), ("with repeats", result.repeated)):
        if one is None:
            continue
        cases = ", ".join(f"{count} {case}" for case, count in one.cases.items())
        processes = "1 process" if one.processes == 1 else f"{one.processes} processes"
        found.append(
            (
                name,
                f"{one.comparisons} comparisons of {one.shapes} shapes, {processes} a side: "
                f"{cases}; {one.false_rate:.1%} false differences at a threshold of "
                f"{one.threshold:.1%}; sides differ by "
                f"{one.largest:.2%} at most",
            )
        )
        smallest = "none" if one.smallest is None else f"{one.smallest:.1%}"
        shares = ", ".join(f"{each.slowdown:.1%} in {each.found:.0%}" for each in one.detected)
        found.append(
            (
                f"slowdowns found {name}",
                f"smallest found in {FOUND:.0%} of comparisons: {smallest} ({shares})",
            )
        )
    if result.between_sd is not None:
        found.append(("between processes", f"standard deviation {result.between_sd:.2%}"))
    if result.empty_us:
        low, high = min(result.empty_us), max(result.empty_us)
        found.append(("empty kernel", f"{low:.3f} to {high:.3f} us"))
    if t := result.timer:
        found.append(
            (
                "known duration",
                f"measured = {t.slope:.4f} x waited + {t.kernel_us:.2f} us a kernel + "
                f"{t.replay_us:.2f} us a replay, worst {t.worst_us:.2f} us off; the GPU's timer "
                f"moves by {t.step_ns} ns",
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
