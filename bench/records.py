"""Records: one row per (problem, implementation, config), kept as JSON lines.

A row without a right result cannot hold a time. Rows are appended and flushed as each is done, so
an interrupted run resumes; everything a report shows is in the rows.
"""

import fcntl
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

from ..kernels.errors import printable
from ..kernels.typed import typed
from .parts import Environment, Kernel, Place, Problem

Status = Literal[
    "ok",  # right, and timed unless the run was a check only
    "inaccurate",  # a rival outside the bound, under 5 % relative error: timed
    "skipped",  # not run: refused, or not available here
    "compile-failed",
    "run-failed",
    "timeout",
    "throttled",  # the GPU was too hot for a time: the next run tries again
    "wrong",
]
Device = Literal["cuda", "cpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
TIMED: tuple[Status, ...] = ("ok", "inaccurate")


class RecordError(ValueError):
    """A line of a record file that is no record."""

    def __init__(self, path: Path, line: int, reason: Exception) -> None:
        super().__init__(f"{path}:{line}: not a record: {reason}")


@dataclass(frozen=True, slots=True)
class Error:
    """How far one output is from the float64 truth, and how far it may be."""

    l2: float  # ||out - truth|| / ||truth||
    l2_bound: float
    largest: float  # max |out - truth|
    largest_bound: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The distribution of one kind of time, in microseconds.

    `values` are the samples in the order they were taken. Neighbours are correlated, so quartiles
    and a count cannot tell how well the median is known; their order can.
    """

    median: float
    q1: float
    q3: float
    count: int
    dropped: int = 0  # throttled samples, not counted above
    values: tuple[float, ...] = ()  # five digits each; empty in records from before they were kept

    def __post_init__(self) -> None:
        for value in (self.median, self.q1, self.q3, *self.values):
            if not 0 < value < math.inf:
                raise ValueError(f"a time: expected more than 0 us, and finite, got {value}")

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The samples of one record."""
        return cls(**typed(cls, raw | {"values": tuple(raw.get("values", ()))}))


@dataclass(frozen=True, slots=True)
class Times:
    """What one call costs: device times by CUDA graph replay, or by the clock on a CPU."""

    device: Device
    cold: Samples | None  # inputs and states larger than twice the L2 between repeats
    warm: Samples | None  # the same buffers again and again
    host: Samples | None = None  # host time of one eager call
    sm_clock_mhz: float | None = None  # median over the samples

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device: expected one of {DEVICES}, got {self.device!r}")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured (problem, implementation, config), or the reason why it is not."""

    key: str  # of (source, config, problem, environment): a row with this key is not run again
    op: str
    backend: str
    status: Status
    reason: str  # empty for ok
    problem: dict[str, Any]
    config: dict[str, Any]
    seed: int
    bytes: int
    flops: int
    environment: dict[str, Any]  # GPU, driver, packages, commit, command line, ceilings
    errors: dict[str, Error] = field(default_factory=dict)  # by output
    times: Times | None = None
    compile_s: float | None = None
    resources: list[dict[str, Any]] = field(
        default_factory=list
    )  # registers, spills, shared memory
    rival: bool = False  # other people's kernel
    match: str = ""  # of a job: those of its rows that have times were timed interleaved
    repeat: int = 0  # rows that differ in this alone are one thing, measured in several processes
    kind: str = ""  # of the run: check, sweep, tune or resources; empty in older records
    source: str = ""  # hash of the kernel's files
    place: dict[str, Any] | None = None  # of the config in a tuning: index, of, names

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status: expected one of {get_args(Status)}, got {self.status!r}")
        if self.times is not None and self.status not in TIMED:
            raise ValueError(f"a {self.status} row cannot hold a time: only a right result has one")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a {self.status} row needs a reason")
        object.__setattr__(self, "reason", printable(self.reason))  # for whoever writes it

    @property
    def screening(self) -> bool:
        """A step of a tuning before its confirmation, for the tuning's own page alone."""
        return self.place is not None and self.kind != "sweep"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The row of one line; raises one of UNREADABLE."""
        raw = json.loads(text)
        errors = raw.get("errors", {}).items()
        raw["errors"] = {name: Error(**typed(Error, error)) for name, error in errors}
        times = raw.get("times")
        if times is not None:
            for name in ("cold", "warm", "host"):
                if times.get(name) is not None:
                    times[name] = Samples.from_dict(times[name])
            raw["times"] = Times(**typed(Times, times))
        typed(cls, raw)
        typed(Problem, raw["problem"], "problem")
        typed(Environment, raw["environment"], "environment")
        if raw.get("place") is not None:
            typed(Place, raw["place"], "place")
        for kernel in raw.get("resources", ()):
            typed(Kernel, kernel, "resources")
        return cls(**raw)

    def to_json(self) -> str:
        """One line, without its newline."""
        return json.dumps(asdict(self), sort_keys=True)


UNREADABLE = (ValueError, TypeError, KeyError, AttributeError)
BEGIN = b'{"backend": "'  # of every line: its names are sorted


def machine(row: Row) -> str:
    """The GPU of a row, or the processor where there is none."""
    return str(row.environment.get("gpu") or row.environment.get("cpu"))


def worker(row: Row) -> tuple[Any, Any]:
    """What the rows of one worker have in common: when it started, and its GPU."""
    return row.environment.get("date"), row.environment.get("gpu_uuid")


def process(row: Row) -> tuple[Any, ...]:
    """What the rows of one process have in common, and those of no other."""
    return row.repeat, row.environment.get("command"), *worker(row)


def append(path: Path, row: Row) -> None:
    """Add a row and make sure it is on disk; a torn last line, left by a crash, is cut off first.

    A last line that lacks only its newline is a whole row and is kept. Raises RecordError, and
    changes nothing, if the file does not end in its last newline and holds what is no record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released on close
        line = row.to_json().encode() + b"\n"
        tail = _tail(file)
        if tail:
            whole = read([path])
            if _torn(tail, alone=not whole):
                file.truncate(file.seek(0, os.SEEK_END) - len(tail))
            else:
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _torn(line: bytes, *, alone: bool) -> bool:
    """Whether a last line without its newline is the beginning of a row, cut off by a crash.

    What is JSON is whole: a row of another version, or another's file. alone: there is no row
    before it, and what begins like none may be another's, too.
    """
    try:
        json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return not alone or BEGIN.startswith(line[: len(BEGIN)])
    except ValueError:  # a number of more digits than Python reads
        return False
    return False


def _tail(file: BinaryIO) -> bytes:
    """What follows the last newline of a file."""
    tail = b""
    position = file.seek(0, os.SEEK_END)
    while position and b"\n" not in tail:
        step = min(position, 1 << 16)
        position -= step
        file.seek(position)
        tail = file.read(step) + tail
    return tail[tail.rfind(b"\n") + 1 :]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(path, 1, error) from error


def read(paths: Iterable[Path]) -> list[Row]:
    """Every whole row of some files, in order; a last line cut off by a crash is left out.

    A name that ends in .gz is unpacked. Raises RecordError for any other line that is none.
    """
    return [row for path in paths for row in _rows(path)]


def date_of(environment: dict[str, Any]) -> str:
    """When a process began, as text that sorts by time; of one that does not say, before all."""
    return str(environment.get("date") or "")


def files_of(path: Path | None) -> list[Path]:
    """The files of a record that are there: the packed one beside it, then itself."""
    if path is None:
        return []
    packed = path.with_name(f"{path.name}.gz")
    return [each for each in (packed, path) if each.exists()]


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    lines = _content(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(Row.from_json(line.decode()))
        except UNREADABLE as error:
            if number < len(lines) or not _torn(line, alone=not rows):
                raise RecordError(path, number, error) from error
    return rows
