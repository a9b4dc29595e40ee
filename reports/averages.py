"""Rivals on common ground: geometric means over the shapes that all of them completed."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..bench.show import DIMS
from .frame import DTYPES

UNTOLD = ("ok", "inaccurate", "skipped", "throttled")  # say nothing of a kernel without a time
GROUP = ("device", "op", *DTYPES)


@dataclass(frozen=True, slots=True)
class Average:
    """One backend within one group; means are over `common` shapes, the same for its rivals."""

    device: str
    op: str
    dtype: str  # tf32 for float32 with such products
    state_dtype: str
    backend: str
    kind: str  # cold or warm
    mean_us: float | None  # None if the rivals have no shape in common, or this one has no time
    relative: float | None  # mean over the fastest rival's mean
    share_of_limit: float | None
    common: int
    timed: int  # shapes that this backend completed
    shapes: int  # shapes that any backend of the group completed
    inaccurate: bool  # some of its times are of results outside the bound


def averages(table: pd.DataFrame) -> list[Average]:
    """Every backend of every group of one device, op and dtypes that has a time.

    A group uses cold times if it has any, else warm ones. Of several commits, and of several
    sources of one, that counts that a backend ran last at a shape, with a time or a failure; of
    several configs the fastest. Rivals are the backends with at least one time; one without is
    listed with no mean.
    """
    found = []
    table = table.assign(dtype=table["matmul_dtype"])
    for names, group in table.groupby(list(GROUP), dropna=False, sort=True):
        kind = "cold" if group["cold_us"].notna().any() else "warm"
        if group[f"{kind}_us"].notna().any():
            found += _group(dict(zip(GROUP, map(str, names), strict=True)), group, kind)
    return found


def _group(names: dict[str, str], group: pd.DataFrame, kind: str) -> list[Average]:
    timed = _latest(group.assign(shape=group.apply(shape_of, axis=1)), kind)
    times = timed.pivot_table(index="shape", columns="backend", values=f"{kind}_us", aggfunc="min")
    common = times.dropna()
    means = np.exp(np.log(common).mean()) if len(common) else pd.Series(dtype=float)
    found = []
    for backend in sorted(group["backend"].unique()):
        mine = timed[timed["backend"] == backend]
        shares = mine[mine["shape"].isin(common.index)].groupby("shape")["share_of_limit"].max()
        mean = float(means[backend]) if backend in means else None
        found.append(
            Average(
                **names,
                backend=backend,
                kind=kind,
                mean_us=mean,
                relative=None if mean is None else mean / float(means.min()),
                share_of_limit=_geometric(shares) if mean is not None else None,
                common=len(common),
                timed=mine["shape"].nunique(),
                shapes=len(times),
                inaccurate=bool((mine["status"] == "inaccurate").any()),
            )
        )
    return found


def _latest(group: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows with a time, of the last commit of each backend and shape: none if it failed."""
    timed = group[f"{kind}_us"].notna()
    ran = group[timed | ~group["status"].isin(UNTOLD)]
    made = ran["commit"].map(str) + ran["dirty"].map(str) + ran["source"].map(str)
    dated = ran.assign(made=made, date=ran["date"].fillna("")).sort_values("date", kind="stable")
    last = dated.groupby(["backend", "shape"])["made"].transform("last")
    kept = dated.index[dated["made"] == last]
    return group[timed & group.index.isin(kept)]


def shape_of(line: "pd.Series[Any]") -> str:
    """What makes two rows the same problem."""
    names = [*DIMS, *DTYPES, *(name for name in line.index if str(name).startswith("problem."))]
    return json.dumps({name: str(line[name]) for name in names}, sort_keys=True)


def _geometric(values: "pd.Series[float]") -> float | None:
    """None if any value is missing: a mean over fewer shapes would not compare."""
    if values.empty or values.isna().any():
        return None
    return float(np.exp(np.log(values).mean()))
