"""Tuned configs, shipped as data: which config runs a problem on a GPU, and why.

One JSON file per GPU lies in `tuned/`, written by `mamba3-bench tune --ship`. The variable
MAMBA3_BENCH_TUNED names another folder, whose files win over the shipped ones, or is `off`.

A problem is looked up under what it is but for batch and length. At a shape that was tuned its own
winner is taken. Elsewhere within the range that was tuned, it is what the nearest tuned shape has
of the cover: the few rules that together stay within some per cent of the best at every shape. In
all other cases it is the default. What was tuned with another compiler or kernel source is stale:
it is not used, and a warning says so once. Its time, if not for another source, still tells which
backend is the faster one.
"""

import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from .errors import OptionError
from .family import Problem
from .toolchain import fingerprint
from .typed import typed

FORMAT = 2
VARIABLE = "MAMBA3_BENCH_TUNED"
SHIPPED = Path(__file__).with_name("tuned")
WITHOUT = ("B", "L", "pool", "op")  # of a problem: what does not part one group from another
MARGIN = 2.0  # a cover holds to this factor beyond the smallest and largest batch and length tuned
CLEARLY = 1.02  # another backend must be faster by this than the first in order of preference

Shape = tuple[int, int]  # B, L
How = Literal["exact", "cover", "default"]


class Table(TypedDict):
    """What is read of a table of a file: the groups of an op and a backend."""

    op: str
    backend: str
    fingerprint: dict[str, str | None]
    groups: list[dict[str, Any]]


class Group(TypedDict):
    """What is read of problems that differ in batch and length alone."""

    problem: dict[str, Any]
    shapes: list[dict[str, Any]]


class Tuned(TypedDict):
    """What is read of one shape of a group; `tuned/README.md` has all of it."""

    B: int
    L: int
    config: dict[str, Any] | None
    default: bool
    us: float | None
    margin: dict[str, float] | None
    failed: list[str]
    cover: str | None


class StaleWarning(UserWarning):
    """Tuned configs are there, but for another toolchain or source."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the tuned configs say of one problem and backend."""

    how: How
    why: str
    config: dict[str, Any] | None = None  # exact: the winner's values
    name: str | None = None  # cover: the rule, by its name among the candidates
    us: float | None = None  # measured at this shape, or at the nearest one; of a stale winner too
    at: tuple[int, int] | None = None  # batch and length of that shape
    failed: bool = False  # at this very shape no candidate was right


def gpu_of(device: torch.device) -> str | None:
    """The name of a device's GPU; None for a CPU."""
    return _gpu_name(device.index) if device.type == "cuda" else None


@cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def file_name(gpu: str) -> str:
    """The name of the file of a GPU."""
    return f"{plain(gpu)}.json"


def plain(name: str) -> str:
    """A name as a part of that of a file."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def group_of(problem: Mapping[str, Any]) -> str:
    """What problems have in common that share a cover: all but batch, length and pool."""
    kept = {name: value for name, value in problem.items() if name not in WITHOUT}
    return json.dumps(kept, sort_keys=True)


@lru_cache(4096)
def find(op: str, backend: str, module: str | None, problem: Problem, gpu: str | None) -> Found:
    """What is known of a problem on a GPU; `module` is that of the backend's kernel."""
    folder = os.environ.get(VARIABLE)
    if folder == "off":
        return Found("default", f"{VARIABLE} is off")
    if gpu is None:
        return Found("default", "no GPU")
    groups = tables(gpu, folder).get((op, backend))
    if groups is None:
        return Found("default", f"{backend} {op} was not tuned for {gpu}")
    raw = problem.as_dict()
    if raw.get("lengths") is not None:
        return Found("default", "packed sequences were not tuned")
    group = groups.get(group_of(raw))
    if group is None:
        return Found("default", f"tuned for {gpu}, but not these dims, dtypes and options")
    found = _at(group["shapes"], raw["B"], raw["L"])
    stale = _stale(backend, module, group["fingerprint"])
    if stale is None:
        return found
    _warn(gpu, backend, op, stale)
    found = Found("default", f"tuned for {gpu}, but stale: {stale}", us=found.us, at=found.at)
    return replace(found, us=None, at=None) if stale.startswith("source") else found


def _at(shapes: list[dict[str, Any]], B: int, L: int) -> Found:
    for shape in shapes:
        if (shape["B"], shape["L"]) == (B, L):
            if shape["config"] is None:
                return Found("default", "no candidate was right here", failed=True)
            return Found("exact", _won(shape), shape["config"], us=shape["us"], at=(B, L))
    right = {(one["B"], one["L"]): one for one in shapes if one["cover"] is not None}
    reason = outside(right, B, L) if right else "no candidate was right in this group"
    if reason is not None:
        return Found("default", reason)
    near = right[nearest(right, B, L)]
    why = f"rule {near['cover']!r} of the cover, as for B = {near['B']}, L = {near['L']}"
    return Found("cover", why, name=near["cover"], us=near["us"], at=(near["B"], near["L"]))


def outside(shapes: Collection[Shape], B: int, L: int) -> str | None:
    """Why no rule of a cover holds at a batch and length, or None: they lie within MARGIN of those
    that were tuned."""
    for dim, size, sizes in zip("BL", (B, L), zip(*shapes, strict=True), strict=True):
        if not min(sizes) / MARGIN <= size <= max(sizes) * MARGIN:
            return f"{dim} = {size} is outside what was tuned: {min(sizes)} to {max(sizes)}"
    return None


def nearest(shapes: Iterable[Shape], B: int, L: int) -> Shape:
    """The shape whose batch and length differ by the least factors; of several the largest: what is
    best for a short prompt loses more at a long one than the other way round."""

    def order(shape: Shape) -> tuple[float, int, int]:
        distance = math.hypot(math.log2(shape[0] / B), math.log2(shape[1] / L))
        return round(distance, 9), -shape[0], -shape[1]

    return min(shapes, key=order)


def _won(shape: dict[str, Any]) -> str:
    """Why the winner at a shape won, in words."""
    margin = shape["margin"]
    if shape["default"]:
        return "tuned here: nothing is faster than the default beyond doubt"
    if margin is None:
        return "tuned here; the default is not right or did not run"
    ends = f"{margin['low']:.3f} to {margin['high']:.3f}"
    return f"tuned here: {margin['ratio']:.3f} of the default's time ({ends})"


def fastest(found: Mapping[str, Found]) -> tuple[str, str]:
    """Which of some backends, in order of preference, is to run a problem, and why.

    One that was measured replaces the first only if that was measured as well, at the same tuned
    shape, this one or the nearest, and is slower.
    """
    able = {name: one for name, one in found.items() if not one.failed} or dict(found)
    first = next(iter(able))
    us, at = able[first].us, able[first].at
    if us is None:
        return first, "the first that runs it"
    timed = {name: one.us for name, one in able.items() if one.us is not None and one.at == at}
    best = min(timed, key=lambda name: timed[name])
    where = "" if able[first].how == "exact" or at is None else f" at B = {at[0]}, L = {at[1]}"
    if timed[best] * CLEARLY < us:
        return best, f"{timed[best]:.4g} us{where}, where {first} takes {us:.4g} us"
    return first, f"the first that runs it, {us:.4g} us{where}"


@cache
def tables(gpu: str, folder: str | None) -> dict[tuple[str, str], dict[str, Any]]:
    """The tuned groups for a GPU by (op, backend), then by `group_of`, each with its fingerprint.

    Those of a folder go before the shipped ones. Raises OptionError for a folder that is none, or
    a file that is not of this format.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if folder and not Path(folder).is_dir():
        raise OptionError(VARIABLE, "a folder, or off", folder, "unset it for what is shipped")
    for place in (SHIPPED, *([Path(folder)] if folder else [])):
        path = place / file_name(gpu)
        if path.is_file():
            for name, group, mine in _read(path):
                found.setdefault(name, {})[group] = mine
    return found


def _read(path: Path) -> list[tuple[tuple[str, str], str, dict[str, Any]]]:
    """The groups of a file: (op, backend), `group_of`, shapes with the fingerprint."""
    return [
        (
            (table["op"], table["backend"]),
            group_of(group["problem"]),
            {"fingerprint": table["fingerprint"], "shapes": group["shapes"]},
        )
        for table in read_file(path)["tables"]
        for group in table["groups"]
    ]


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of tuned configs; raises OptionError for one that is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] == FORMAT:
            for table in raw["tables"]:
                typed(Table, table, "table")
                for group in table["groups"]:
                    typed(Group, group, "group")
                    for shape in group["shapes"]:
                        typed(Tuned, shape, "shape")
            return dict(raw)
        said = f"format {raw['format']}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
    raise OptionError(str(path), f"tuned configs of format {FORMAT}", said, "tune again")


def _stale(backend: str, module: str | None, then: dict[str, Any]) -> str | None:
    """The first field in which kernel or toolchain differ from what they were, or None."""
    now = fingerprint(backend, module or "")
    for name in ("source", *now, *then):
        if now.get(name) != then.get(name):
            return f"{name} is {now.get(name)}, tuned with {then.get(name)}"
    return None


@cache
def _warn(gpu: str, backend: str, op: str, stale: str) -> None:
    """Warn once of each."""
    warnings.warn(
        f"the tuned configs of {backend} {op} for {gpu} are not used: {stale}. The defaults run; "
        f"`mamba3-bench tune` makes new ones, {VARIABLE}=off silences this",
        StaleWarning,
        stacklevel=2,
    )


def forget() -> None:
    """Read the files again, and the variable; what `plans` remembers stays until it forgets too."""
    for cached in (find, tables, _warn):
        cached.cache_clear()
