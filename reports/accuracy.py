"""Error against bound: every row's worst output, by backend and dtype."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .ink import GREY, Drawing, Ink, legend, log_ticks, panels, style

LOWEST = 1e-3  # a ratio below this, zero included, is drawn here


def accuracy(table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """One figure, one panel per op, of the rows that were compared; none if there are none."""
    compared = table[table["error_over_bound"].notna()]
    if compared.empty:
        return []
    ops = sorted(compared["op"].unique())
    figure, axes = panels(len(ops), share_x=False)
    finite = compared["error_over_bound"].replace(np.inf, np.nan)
    highest = 3 * max(2.0, float(finite.max()) if finite.notna().any() else 2.0)
    with style():
        for axes_i, op in zip(axes, ops, strict=True):
            _panel(axes_i, compared[compared["op"] == op], ink, highest)
            axes_i.set_title(op)
        figure.supylabel("error over bound (ratio), lower is better")
        title = "Error against bound"
        figure.suptitle(title, fontsize=10)
    black: dict[str, Any] = {"linestyle": "none", "color": "black", "markersize": 5}
    entries = [
        Line2D([], [], color=GREY, label="bound"),
        Line2D([], [], marker="o", label="within the bound", **black),
        Line2D([], [], marker="x", label="outside: wrong or inaccurate", **black),
    ]
    legend(figure, entries)
    caption = (
        "Each point is the worst output of one row: the larger of relative L2 error and largest "
        "error, each over its bound. NaN and infinite errors are drawn at the upper edge, errors "
        f"below {LOWEST:g} of the bound at the lower edge."
    )
    return [Drawing("accuracy", title, caption, figure, compared)]


def _panel(axes: Axes, rows: pd.DataFrame, ink: dict[str, Ink], highest: float) -> None:
    groups = list(rows.groupby(["backend", "dtype"], dropna=False))
    for place, ((backend, _), mine) in enumerate(groups):
        y = mine["error_over_bound"].clip(LOWEST, highest)
        x = place + np.linspace(-0.3, 0.3, len(mine) + 2)[1:-1]
        right = (mine["error_over_bound"] <= 1).to_numpy()
        points = ink[str(backend)].style("cold") | {"linestyle": "none", "markersize": 4}
        axes.plot(x[right], y[right], **points)
        axes.plot(x[~right], y[~right], **(points | {"marker": "x"}))
    axes.axhline(1, color=GREY)
    axes.set_ylim(LOWEST / 1.5, highest * 1.5)
    log_ticks(axes, "y")
    labels = [f"{backend}\n{dtype}" for (backend, dtype), _ in groups]
    axes.set_xticks(range(len(groups)), labels, rotation=40, ha="right", fontsize=7)
