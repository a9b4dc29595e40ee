"""How much of what the machine can do is reached, and what error is paid for what time."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .accuracy import LOWEST
from .ink import GREY, Drawing, Ink, label_x, legend, log_ticks, panels, style


def shares(table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """One figure, one panel per op: share of the limit against the limit; none without ceilings."""
    held = table[table["share_of_limit"].notna()]

    def panel(axes: Axes, rows: pd.DataFrame, points: Ink) -> None:
        axes.plot(rows["limit_us"], 100 * rows["share_of_limit"], **_dots(points))

    if held.empty:
        return []
    caption = (
        "Limit: the largest of bytes over the copy rate, FLOPs over the matmul rate and the time "
        "of an empty kernel, all measured in the same run. Cold medians. A few per cent above 100 "
        "are possible: a call that mostly reads is spared the turn-arounds of a copy."
    )
    figure = _figure(held, ink, panel, "least time that the ceilings allow (µs)")
    for axes in figure.figure.axes:
        axes.axhline(100, color=GREY, linewidth=1)
        axes.set_ylim(bottom=0)
    figure.figure.supylabel("share of the limit (%), higher is better", fontsize=9)
    return [figure.named("shares", "Share of the limit", caption)]


def errors(table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """One figure, one panel per op: error over bound against time, of the rows that have both."""
    timed = table.assign(us=table["cold_us"].astype(float).fillna(table["warm_us"].astype(float)))
    timed = timed[timed["us"].notna() & timed["error_over_bound"].notna()]

    def panel(axes: Axes, rows: pd.DataFrame, points: Ink) -> None:
        axes.plot(rows["us"], rows["error_over_bound"].clip(lower=LOWEST), **_dots(points))

    if timed.empty:
        return []
    caption = (
        "Each point is one row: its time, cold where there is one, and the worst of its outputs. "
        "Up to 1, the line, is right; a rival above it is inaccurate. Errors below "
        f"{LOWEST:g} of the bound are drawn at the lower edge."
    )
    figure = _figure(timed, ink, panel, "median time per call (µs), lower is better")
    for axes in figure.figure.axes:
        axes.axhline(1, color=GREY, linewidth=1)
        log_ticks(axes, "y")
    figure.figure.supylabel("error over bound (ratio), lower is better", fontsize=9)
    return [figure.named("errors", "Error against time", caption)]


def _figure(
    rows: pd.DataFrame,
    ink: dict[str, Ink],
    panel: Callable[[Axes, pd.DataFrame, Ink], None],
    x: str,
) -> Drawing:
    """One panel per op, one kind of point per backend, a logarithmic x axis."""
    ops = sorted(rows["op"].unique())
    figure, axes = panels(len(ops), share_x=False)
    with style():
        for axes_i, op in zip(axes, ops, strict=True):
            mine = rows[rows["op"] == op]
            for backend, points in mine.groupby("backend"):
                panel(axes_i, points, ink[str(backend)])
            axes_i.set_title(op)
            log_ticks(axes_i, "x")
        label_x(axes, x)
    names = sorted(rows["backend"].unique())
    legend(figure, [Line2D([], [], label=name, **_dots(ink[name])) for name in names])
    return Drawing("", "", "", figure, rows)


def _dots(ink: Ink) -> dict[str, Any]:
    return ink.style("cold") | {"linestyle": "none", "markersize": 4}
