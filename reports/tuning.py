"""The page of a tuning: winners, covers, and every candidate with its error, time and reason."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.lines import Line2D

from ..bench import shipping
from ..bench.cover import WITHIN, Cover
from ..bench.fields import Candidate, Decision
from .files import supersede
from .ink import COLOURS, GREY, Drawing, legend, log_ticks, panels, save, style
from .limits import error_ratio
from .page import data_uri

EXPLAINED = (
    "A candidate that is not right, or that ends its process, has no time and cannot win. The "
    "others race the default, interleaved; the finalists are timed again in fresh processes. The "
    "default wins unless something is faster beyond doubt."
)
WINNERS = ("problem", "backend", "winner", "us", "of default", "ties", "undecided", "notes")
COVERS = ("problems", "shapes", "rules", "worst regret", "held out: mean", "held out: worst")
COLUMNS = (
    *("", "config", "us", "confirmed us", "of default", "error / bound", "registers", "spills B"),
    *("shared B", "outcome", "why it did not win"),
)
# Colours and markers of what became of a candidate.
LOOKS = {
    "winner": (COLOURS[2], "*"),
    "default": (COLOURS[6], "D"),
    "tie": (COLOURS[0], "o"),
    "confirmed": (COLOURS[5], "o"),
    "out of the race": (GREY, "."),
    "not right or not run": (COLOURS[1], "x"),
}
COLUMN = 64  # characters of a title that the width of a figure has
LOWEST, HIGHEST = 1e-3, 1e3  # ratios of error to bound are drawn between these


class _Field(NamedTuple):
    title: str
    image: str
    lines: list[list[str]]


def write(decisions: Sequence[Decision], out: Path) -> Path:
    """Write index.html and a figure for each field into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    fields, names = [], shipping.names_of(decisions)
    figures: list[Path] = []
    for number, (one, name) in enumerate(zip(decisions, names, strict=True), 1):
        title = f"{one.field.backend} {name}"
        drawing = scatter(one, f"tuning-{number}", title)
        files = save(drawing, out / "figures") if drawing else ()
        image = data_uri(files) if files else ""
        figures += files
        ordered = sorted(one.field.candidates, key=_order)
        fields.append(_Field(title, image, [cells(one, each) for each in ordered]))
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    machines = shipping.machines(decisions)
    page = environment.get_template("tuning.html").render(
        machine=", ".join(name for _, name in machines),
        cpu=any(device == "cpu" for device, _ in machines),
        explained=EXPLAINED,
        candidates=sum(len(one.field.candidates) for one in decisions),
        winner_columns=WINNERS,
        winners=[winner_cells(*each) for each in zip(decisions, names, strict=True)],
        within=f"{WITHIN:.0%}",
        cover_columns=COVERS,
        covers=[
            cover_cells(shipping.words(name, decisions), cover)
            for name, cover in shipping.covers(decisions).items()
        ],
        columns=COLUMNS,
        fields=fields,
    )
    index = out / "index.html"
    index.write_text(page, encoding="utf-8")
    supersede(out, [*figures, index])
    return index


def winner_cells(one: Decision, name: str) -> list[str]:
    """The line of a field."""
    winner, margin = one.winner, one.margin
    head = [name, one.field.backend]
    if winner is None:
        return [*head, "none", "", "", "", "", one.why_none]
    own = winner.index == 0
    return [
        *head,
        "default" if own else _config(winner),
        f"{one.us(winner):.4g}",
        ""
        if own or margin is None
        else f"{margin.ratio:.3f} ({margin.low:.3f} to {margin.high:.3f})",
        str(len(one.ties) - 1),
        str(len(one.undecided)),
        "" if own else "; ".join(one.edges(winner)),
    ]


def cover_cells(name: str, cover: Cover) -> list[str]:
    """The line of a group of problems."""
    return [
        name,
        str(len(cover.chosen)),
        "; ".join(cover.rules),
        f"{max(cover.regret.values()):.1%}",
        *(("", "") if cover.unseen is None else (f"{regret:.1%}" for regret in cover.unseen)),
    ]


def cells(decision: Decision, one: Candidate) -> list[str]:
    """The line of a candidate."""
    samples = one.race
    confirmed = one in decision.field.confirmed()
    margin = decision.over_default(one) if confirmed and one.index else None
    kernels: list[dict[str, Any]] = next((row.resources for row in one.rows if row.resources), [])
    figures = [
        str(max(kernel[part] for kernel in kernels)) if kernels else ""
        for part in ("registers", "spills", "shared")
    ]
    ratio = worst(one)
    return [
        role(decision, one),
        _config(one),
        f"{samples.median:.4g}" if samples else "",
        f"{decision.us(one):.4g}" if confirmed else "",
        f"{margin.ratio:.3f} ({margin.low:.3f} to {margin.high:.3f})" if margin else "",
        "" if ratio is None else f"{ratio:.2g}",
        *figures,
        one.outcome,
        one.reason,
    ]


def role(decision: Decision, one: Candidate) -> str:
    """What became of a candidate, in the words of the figure."""
    if one.race is None:
        return "not right or not run"
    if one is decision.winner:
        return "winner"
    if one.index == 0:
        return "default"
    if one in decision.ties:
        return "tie"
    return "confirmed" if one in decision.field.confirmed() else "out of the race"


def worst(one: Candidate) -> float | None:
    """The largest ratio of an error to its bound over all rows; None where nothing was compared."""
    ratios = [error_ratio(error) for row in one.rows for error in row.errors.values()]
    if any(math.isnan(ratio) for ratio in ratios):
        return math.inf
    return max(ratios, default=None)


def scatter(decision: Decision, name: str, title: str) -> Drawing | None:
    """Error over bound against time, every candidate that was compared; None without any."""
    points = []
    for one in decision.field.candidates:
        ratio, samples = worst(one), one.race
        if ratio is not None:
            points.append((samples.median if samples else None, ratio, role(decision, one)))
    times = [us for us, _, _ in points if us is not None]
    if not points or not times:
        return None
    untimed = min(times) / 1.3  # at the left edge: what is not right has no time
    figure, (axes,) = panels(1)
    with style():
        for label, (colour, marker) in LOOKS.items():
            mine = [(us or untimed, ratio) for us, ratio, kind in points if kind == label]
            if mine:
                x, y = zip(*((us, min(max(r, LOWEST), HIGHEST)) for us, r in mine), strict=True)
                size = 11 if marker == "*" else 6
                axes.plot(x, y, marker, color=colour, markersize=size, linestyle="none")
        axes.axhline(1, color=GREY)
        axes.set_ylim(LOWEST / 1.5, HIGHEST * 1.5)
        log_ticks(axes, "x")
        log_ticks(axes, "y")
        axes.set_xlabel("time in the race (us), lower is better; crosses have no time")
        axes.set_ylabel("error over bound (ratio)")
    kinds = {kind for _, _, kind in points}
    entries = [
        Line2D([], [], marker=marker, color=colour, linestyle="none", label=label)
        for label, (colour, marker) in LOOKS.items()
        if label in kinds
    ]
    legend(figure, entries)
    drawing = Drawing(name, title, "", figure, pd.DataFrame(points))
    return drawing.named(name, fill(title, COLUMN), "")


def _config(one: Candidate) -> str:
    return " ".join(f"{name}={value}" for name, value in one.config.items())


def _order(one: Candidate) -> tuple[bool, float]:
    return one.race is None, one.race.median if one.race else one.index
