"""How figures look: one colour and marker per backend everywhere, and how they are saved."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

# Okabe and Ito's palette, told apart with any colour vision; without its yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "#666666"
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.labelsize": 9,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.hashsalt": "mamba3-bench",  # the same rows give the same file
}


@dataclass(frozen=True, slots=True)
class Ink:
    """The colour and the marker of one backend; hollow markers and dashes mean warm.

    again: whether the colour is another's, too; then the line has dots.
    """

    colour: str
    marker: str
    again: bool = False

    def style(self, kind: str) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` for cold or warm times."""
        cold = kind == "cold"
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 5,
            "markerfacecolor": self.colour if cold else "white",
            "linestyle": ("-." if self.again else "-") if cold else "--",
            "linewidth": 1.4,
        }

    def bars(self, kind: str) -> dict[str, Any]:
        """The same for `Axes.errorbar`."""
        return self.style(kind) | {"capsize": 2.5, "elinewidth": 0.9}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure with the words that belong to it."""

    name: str  # file stem
    title: str
    caption: str
    figure: Figure
    rows: pd.DataFrame  # that it draws

    def named(self, name: str, title: str, caption: str) -> "Drawing":
        """The same with its words, the title above the panels."""
        with style():
            self.figure.suptitle(title, fontsize=10)
        return replace(self, name=name, title=title, caption=caption)


def inks(backends: Iterable[str]) -> dict[str, Ink]:
    """One ink per backend, by alphabet, so that a backend looks the same in every figure."""
    names = sorted(set(backends))
    count = len(COLOURS)  # a colour that comes again has a marker that is far from its first
    return {
        name: Ink(COLOURS[i % count], MARKERS[(i + i // count * 3) % count], i >= count)
        for i, name in enumerate(names)
    }


def style() -> AbstractContextManager[None]:
    """Everything is drawn and saved within this style."""
    return matplotlib.rc_context(cast("Any", STYLE))


def panels(count: int, *, share_x: bool = True, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of up to three panels a row; they share their axes unless told otherwise."""
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    with style():
        size = max(5.4, 3.3 * columns), 0.5 + 2.6 * lines  # inches, without the legend
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, sharex=share_x, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    for i, axis in enumerate(axes[:count]):
        if i + columns >= count:  # the lowest panel of its column
            axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def label_x(axes: list[Axes], text: str) -> None:
    """Label the panels that have no other below them."""
    for axis in axes:
        if axis.xaxis.get_tick_params()["labelbottom"]:
            axis.set_xlabel(text)


def log_ticks(axes: Axes, which: str, values: Iterable[float] = (), base: int = 10) -> None:
    """A log axis whose ticks are plain numbers: those given, else 1, 2, 5 of each decade."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=base)
    axis = axes.xaxis if which == "x" else axes.yaxis
    given = sorted(set(values))
    if 1 <= len(given) <= 8:
        axis.set_ticks(given)
    elif base == 10:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    """Thousands with commas, and no more digits than it takes: never powers of ten."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")


def legend(figure: Figure, entries: list[Line2D]) -> None:
    """One legend for all panels, below them, in as many columns as fit; the figure grows by it."""
    longest = max((len(str(entry.get_label())) for entry in entries), default=1)
    fitting = int(figure.get_figwidth() / (0.6 + 0.075 * longest))  # inches: a line, a letter
    columns = max(1, min(len(entries), 4, fitting))
    figure.set_figheight(figure.get_figheight() + 0.18 * (-(-len(entries) // columns)))
    with style():
        figure.legend(handles=entries, loc="outside lower center", ncols=columns)


def with_count(shown: Sequence[Drawing], count: int) -> list[Drawing]:
    """Figures of which there are `count`: if some are left out, the last one says so."""
    if len(shown) == count:
        return list(shown)
    said = f" {len(shown)} of {count} such figures are shown; the table has all rows."
    return [*shown[:-1], replace(shown[-1], caption=shown[-1].caption + said)]


def save(drawing: Drawing, folder: Path) -> tuple[Path, Path]:
    """Write a drawing as PNG and SVG; their paths in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
    with style():
        drawing.figure.draw_without_rendering()
        drawing.figure.set_layout_engine("none")  # laid out once, not again for each format
        drawing.figure.savefig(png, dpi=150)
        drawing.figure.savefig(svg, metadata={"Date": None})
    with Image.open(png) as drawn:  # a palette takes a third of the bytes: a page holds dozens
        reduced = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(png, optimize=True)
    return png, svg
