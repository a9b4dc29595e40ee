"""Achieved rate against arithmetic intensity, under the ceilings measured in the same run."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..bench.records import Row
from .frame import device
from .ink import GREY, Drawing, Ink, label_x, legend, log_ticks, panels, style
from .limits import Ceilings, ceilings


def roofline(rows: list[Row], table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """One figure per device that has ceilings and a time, one panel per matmul dtype."""
    drawings: list[Drawing] = []
    for name in sorted({device(row) for row in rows}):
        measured = _last(rows, name)
        mine = table[(table["device"] == name) & (table["intensity"] > 0)]
        timed = mine[mine["cold_us"].notna() | mine["warm_us"].notna()]
        if measured and len(timed):
            number = len(drawings) + 1
            drawings.append(_draw(f"roofline-{number}", name, measured, timed, ink))
    return drawings


def _last(rows: list[Row], name: str) -> Ceilings | None:
    """The last ceilings measured on a device; a roof needs a copy rate."""
    found = [c for row in rows if device(row) == name and (c := ceilings(row)).copy]
    return found[-1] if found else None


def _draw(
    name: str, on: str, measured: Ceilings, timed: pd.DataFrame, ink: dict[str, Ink]
) -> Drawing:
    copy = measured.copy or math.nan
    dtypes = sorted(timed["matmul_dtype"].unique())
    figure, axes = panels(len(dtypes))
    span = timed["intensity"].min() / 2, timed["intensity"].max() * 2
    with style():
        for axes_i, dtype in zip(axes, dtypes, strict=True):
            peak = measured.matmul.get(dtype)
            _roof(axes_i, copy, peak, span)
            for backend, mine in timed[timed["matmul_dtype"] == dtype].groupby("backend"):
                _points(axes_i, mine, ink[str(backend)])
            axes_i.set_title(dtype if peak else f"{dtype} (no matmul ceiling measured)")
            log_ticks(axes_i, "x")
            log_ticks(axes_i, "y")
        label_x(axes, "arithmetic intensity (FLOP per byte)")
        figure.supylabel("achieved TFLOP/s, higher is better")
        title = f"Roofline on {on}"
        figure.suptitle(title, fontsize=10)
    legend(figure, _entries(timed, ink))
    caption = (
        f"Slope: {copy / 1e12:.3g} TB/s device copy, read and write counted. Flat: matmul rate of "
        "the dtype. FLOPs and bytes are those that the problem needs, not those that a kernel "
        "does. A warm point may lie above the slope: it reads from the cache. A cold one may by a "
        "few per cent: a call that mostly reads is spared the turn-arounds of a copy."
    )
    return Drawing(name, title, caption, figure, timed)


def _roof(axes: Axes, copy: float, peak: float | None, span: tuple[float, float]) -> None:
    x = np.geomspace(*span, 200)
    y = np.minimum(copy * x, peak or np.inf) / 1e12
    axes.plot(x, y, color=GREY, linewidth=1.2)


def _points(axes: Axes, rows: pd.DataFrame, ink: Ink) -> None:
    for kind in ("cold", "warm"):
        points = ink.style(kind) | {"linestyle": "none"}
        axes.plot(rows["intensity"], rows["flops"] / rows[f"{kind}_us"] / 1e6, **points)


def _entries(timed: pd.DataFrame, ink: dict[str, Ink]) -> list[Line2D]:
    entries = []
    for backend, mine in timed.groupby("backend"):
        for kind in ("cold", "warm"):
            if mine[f"{kind}_us"].notna().any():
                points = ink[str(backend)].style(kind) | {"linestyle": "none"}
                entries.append(Line2D([], [], label=f"{backend}, {kind}", **points))
    return [*entries, Line2D([], [], color=GREY, label="measured ceilings")]
