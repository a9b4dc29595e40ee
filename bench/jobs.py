"""What parent and worker say to each other: plain data, picklable, no tensors."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from ..kernels.family import Problem
from ..kernels.problem import OpName
from .records import Row

Kind = Literal["check", "sweep", "tune", "resources", "rehearse"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a config stands among the candidates of a tuning."""

    index: int  # 0 is the default
    of: int  # candidates
    names: tuple[str, ...]  # by which it is known in every shape


@dataclass(frozen=True, slots=True)
class Entry:
    """One implementation to be measured: a problem, a backend and one of its configs."""

    problem: Problem
    backend: str
    config: dict[str, Any] | None = None  # None: its hand-picked default for the problem
    key: str = ""
    repeat: int = 0  # entries of another repeat are another process's
    place: Place | None = None  # of its config in a tuning

    @property
    def default(self) -> bool:
        """Whether this is the default of a tuning."""
        return self.place is not None and self.place.index == 0


@dataclass(frozen=True, slots=True)
class Job:
    """Those who are timed interleaved, so that their ratios are fair; often of one problem."""

    entries: tuple[Entry, ...]
    whole: str = ""  # of what is left of a job: the match of that job

    @property
    def match(self) -> str:
        """A name for its entries together, the same in each repeat and of what is left of it."""
        if self.whole:
            return self.whole
        parts = [(one.problem.as_dict(), one.backend, one.config) for one in self.entries]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def repeat(self) -> int:
        """The repeat that all entries belong to."""
        return self.entries[0].repeat


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker does with every job."""

    kind: Kind
    seed: int = 0
    budget_s: float = 0.3  # measured time per entry; of a race, the first lap's
    finalists: int = 4  # of a race: all that may be left beside the default
    interpret: bool = False  # run kernels through their DSL's interpreter
    plugins: tuple[str, ...] = ()  # files or modules that register more implementations
    command: str = ""  # the command line, for the record


@dataclass(frozen=True, slots=True)
class Start:
    """Parent to worker, once: the device and what is known of it already."""

    settings: Settings
    device: str
    ceilings: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker to parent, once: it is ready on this environment."""

    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expect:
    """Parent to worker, not answered: backends that jobs will ask for, to be imported meanwhile."""

    backends: tuple[tuple[OpName, str], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Worker to parent: what it does now, for one entry or, with None, for all that are left."""

    entry: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Done:
    """Worker to parent: the row of one entry."""

    entry: int
    row: Row


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker to parent: the job is done. A worker that is not `healthy` ends itself now."""

    healthy: bool = True


Message = Hello | Stage | Done | Finished
