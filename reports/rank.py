"""What more ranks cost: time and arithmetic intensity against R, everything else held fixed."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .ink import Drawing, Ink, label_x, legend, log_ticks, panels, style, with_count
from .latency import BARS, draw_times, entries, held, parts, spread

MOST_COLUMNS = 3
MOST_FIGURES = 6


def rank(table: pd.DataFrame, ink: dict[str, Ink]) -> list[Drawing]:
    """Figures of the timed rows that differ in R, one per device, op and dtypes."""
    timed = table[(table["cold_us"].notna() | table["warm_us"].notna()) & table["R"].notna()]
    having = [
        (device, op, part)
        for (device, op), group in timed.groupby(["device", "op"])
        for part in parts(group, "R")
        if part["R"].nunique() > 1
    ]
    drawings = [
        _draw(f"rank-{op}-{number}", str(device), str(op), part, ink)
        for number, (device, op, part) in enumerate(having[:MOST_FIGURES], 1)
    ]
    return with_count(drawings, len(having))


def _draw(name: str, device: str, op: str, part: pd.DataFrame, ink: dict[str, Ink]) -> Drawing:
    combinations = sorted(set(part[["N", "B"]].itertuples(index=False, name=None)))
    shown = spread([pair for pair in combinations if _ranks(part, pair) > 1], MOST_COLUMNS)
    figure, axes = panels(2 * len(shown), share_y=False)
    above, below = axes[: len(shown)], axes[len(shown) :]
    with style():
        for time, intensity, pair in zip(above, below, shown, strict=True):
            here = _at(part, pair)
            draw_times(time, "R", here, ink)
            one = here.drop_duplicates("R").sort_values("R")
            intensity.plot(one["R"], one["intensity"], color="black", marker="o", markersize=4)
            for panel in (time, intensity):
                panel.set_title(f"N = {pair[0]:.0f}, B = {pair[1]:.0f}")
                log_ticks(panel, "x", part["R"], base=2)
                log_ticks(panel, "y")
        _label(figure, above, below)
        title = f"{op} on {device}: what more ranks cost"
        figure.suptitle(title, fontsize=10)
    legend(figure, entries(part, ink))
    caption = (
        f"{held(part)}. Intensity is that of the problem: its FLOPs over the bytes it must move. "
        f"{BARS}"
    )
    if len(shown) < len(combinations):
        caption += f" {len(shown)} of {len(combinations)} pairs of N and B are shown."
    return Drawing(name, title, caption, figure, part)


def _label(figure: Figure, above: list[Axes], below: list[Axes]) -> None:
    above[0].set_ylabel("median time per call (µs),\nlower is better", fontsize=8)
    below[0].set_ylabel("arithmetic intensity\n(FLOP per byte)", fontsize=8)
    label_x([*above, *below], "MIMO rank R (columns; 1 is SISO)")


def _at(part: pd.DataFrame, pair: tuple[float, float]) -> pd.DataFrame:
    return part[(part["N"] == pair[0]) & (part["B"] == pair[1])]


def _ranks(part: pd.DataFrame, pair: tuple[float, float]) -> int:
    return int(_at(part, pair)["R"].nunique())
