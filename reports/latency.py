"""Time per call against one dim, in panels over two others; everything else is held fixed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..bench.show import DIMS
from .filters import text
from .frame import DTYPES
from .ink import GREY, Drawing, Ink, label_x, legend, log_ticks, panels, style, with_count

WORDS = {"L": "sequence length", "N": "state size", "B": "batch"}
UNITS = {"L": "tokens", "N": "elements", "B": "sequences"}
FACETS = {"L": ("N", "B"), "N": ("B", "L"), "B": ("N", "L"), "R": ("N", "B")}
# fields that follow from a dim, and so must not split the line along it
FOLLOWERS = {
    "L": ("problem.lengths",),
    "B": ("problem.pool",),
    "R": ("problem.optional", "problem.option.pairing"),
}
MOST_FIGURES = 24
BARS = (
    "Bars are 95 % intervals of the median, with what differs between processes; most are smaller "
    "than the markers."
)


def latency(table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """Figures of every dim that takes several values among the timed rows, fullest first.

    A device and op whose rows vary in no dim still gets one figure, of its single points.
    """
    timed = table[table["cold_us"].notna() | table["warm_us"].notna()].copy()
    if timed.empty:
        return []
    drawings = []
    for (device, op), group in timed.groupby(["device", "op"]):
        mine = [
            _draw(str(device), str(op), axis, part, ink)
            for axis in WORDS
            for part in parts(group, axis)
            if part[axis].nunique() > 1
        ]
        if not mine:
            axis = "L" if (group["L"] > 1).any() else "N"
            mine = [_draw(str(device), str(op), axis, next(parts(group, axis)), ink)]
        drawings += mine
    fullest = sorted(drawings, key=lambda pair: -pair[0])[:MOST_FIGURES]
    shown = [
        replace(drawing, name=f"{drawing.name}-{number}")
        for number, (_, drawing) in enumerate(fullest, 1)
    ]
    return with_count(shown, len(drawings))


def parts(group: pd.DataFrame, axis: str) -> Iterator[pd.DataFrame]:
    """Rows that differ in the axis, the facets and the implementation alone."""
    # theta turns a half or a quarter of N pairs: as a share, it stays the same along N
    group = group.assign(pairs=group["S"] / group["N"])
    free = {axis, *FACETS[axis], "S", *FOLLOWERS.get(axis, ())}
    names = [*DIMS, *DTYPES, "pairs", *(n for n in group.columns if n.startswith("problem."))]
    fixed = [name for name in names if name not in free]
    for _, part in group.groupby(fixed, dropna=False):
        yield part


def _draw(
    device: str, op: str, axis: str, part: pd.DataFrame, ink: dict[str, Ink]
) -> tuple[int, Drawing]:
    """One figure and the number of rows in it."""
    facets = list(FACETS[axis])
    combinations = sorted(set(part[facets].itertuples(index=False, name=None)))
    shown = choose(combinations)
    figure, axes = panels(len(shown))
    timer = "CPU time" if device.startswith("CPU") else "time"
    with style():
        for axes_i, values in zip(axes, shown, strict=True):
            here = part[(part[facets] == list(values)).all(axis=1)]
            draw_times(axes_i, axis, here, ink)
            axes_i.set_title(panel_title(facets, values))
            log_ticks(axes_i, "x", part[axis], base=2)
            log_ticks(axes_i, "y")
        label_x(axes, f"{WORDS[axis]} {axis} ({UNITS[axis]})")
        figure.supylabel(f"median {timer} per call (µs), lower is better")
        title = f"{op} on {device}: {timer} against {WORDS[axis]}"
        figure.suptitle(title, fontsize=10)
    legend(figure, entries(part, ink))
    caption = f"{held(part)}. {BARS}"
    if len(shown) < len(combinations):
        caption += f" {len(shown)} of {len(combinations)} panels are shown; the table has all rows."
    return len(part), Drawing(f"latency-{op}-{axis}", title, caption, figure, part)


def draw_times(axes: Axes, axis: str, rows: pd.DataFrame, ink: dict[str, Ink]) -> None:
    for backend, mine in rows.groupby("backend"):
        for kind in ("cold", "warm"):
            timed = mine[mine[f"{kind}_us"].notna()].sort_values([axis, f"{kind}_us"])
            best = timed.drop_duplicates(axis)  # the fastest of several configs
            if best.empty:
                continue
            axes.errorbar(
                best[axis], best[f"{kind}_us"], reach(best, kind), **ink[str(backend)].bars(kind)
            )
    limit = rows[rows["limit_us"].notna()].sort_values([axis, "limit_us"]).drop_duplicates(axis)
    if len(limit):
        axes.plot(limit[axis], limit["limit_us"], **_limit_style())


def reach(rows: pd.DataFrame, kind: str) -> list["pd.Series[float]"]:
    """How far the interval of each median reaches below and above it, in microseconds."""
    middle = rows[f"{kind}_us"]
    low, high = rows[f"{kind}_low_us"], rows[f"{kind}_high_us"]
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def _limit_style() -> dict[str, Any]:
    return {"color": GREY, "linestyle": ":", "marker": "_"}


def entries(part: pd.DataFrame, ink: dict[str, Ink]) -> list[Line2D]:
    entries = []
    for backend, mine in part.groupby("backend"):
        for kind in ("cold", "warm"):
            if mine[f"{kind}_us"].notna().any():
                line = ink[str(backend)].style(kind)
                entries.append(Line2D([], [], label=f"{backend}, {kind}", **line))
    if part["limit_us"].notna().any():
        entries.append(Line2D([], [], label="limit (measured ceilings)", **_limit_style()))
    return entries


def held(part: pd.DataFrame) -> str:
    """The dims and dtypes that are the same in every row, and the variant if there is one."""
    words = []
    for name in (*DIMS, *DTYPES):
        values = part[name].dropna().unique()
        if len(values) == 1:
            words.append(f"{name.replace('_', ' ')} {text(values[0])}")
    variants = part["variant"].unique()
    if len(variants) == 1 and variants[0]:
        words.append(str(variants[0]))
    return ", ".join(words)


def panel_title(facets: Sequence[str], values: Sequence[Any]) -> str:
    """What is the same in a panel, in words."""
    pairs = zip(facets, values, strict=True)
    return ", ".join(f"{name.replace('_dtype', '')} = {value}" for name, value in pairs)


def choose(combinations: list[Any]) -> list[Any]:
    """At most six pairs of facet values: three of one facet with two of the other."""
    first, second = (sorted(set(values)) for values in zip(*combinations, strict=True))
    few = (3, 2) if len(second) <= 2 else (2, 3)
    kept = spread(first, few[0]), spread(second, few[1])
    return [pair for pair in combinations if pair[0] in kept[0] and pair[1] in kept[1]]


def spread(values: list[Any], most: int) -> list[Any]:
    """At most so many values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
