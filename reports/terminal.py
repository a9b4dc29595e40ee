"""The report on a terminal: counts, averages, and the first rows."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from . import contest
from .averages import averages
from .tables import AVERAGE_COLUMNS, COLUMNS, average_cells, cells, counts, left_out, notes
from .versus import Contest

SHOWN = (
    *("status", "op", "backend", "shape", "variant", "dtype"),
    *("cold µs", "warm µs", "of limit", "error / bound"),
)
COLOURS = {"ok": "green", "inaccurate": "yellow", "skipped": "dim"}  # all others: red
MOST_ROWS = 60


def show(
    table: pd.DataFrame, console: Console, contests: Sequence[Contest] = (), superseded: int = 0
) -> None:
    """Print a frame: rows, contests, averages over common shapes, and why rows have no time."""
    if (table["timer"] == "cpu").any():
        console.print("[bold]CPU times are CPU times:[/] they say nothing about a GPU.")
    console.print(_rows(table))
    if len(table) > MOST_ROWS:
        console.print(f"and {len(table) - MOST_ROWS} more rows: see table.csv")
    for one in contests:
        console.print(_contest(one))
    if contests:
        console.print(_plain(contest.scatter(contests)), highlight=False)
    lines = [average_cells(average) for average in averages(table) if average.mean_us]
    if lines:
        console.print(_grid("geometric means over the shapes all rivals completed", lines))
    for note in notes(table):
        console.print(
            f"[{_colour(note.status)}]{note.status}[/] {note.count} x {note.op}"
            f" {note.backend}: {_plain(note.reason)}",
            highlight=False,
        )
    console.print(", ".join(f"{count} {status}" for status, count in counts(table).items()))
    if superseded:
        console.print(left_out(superseded), highlight=False)


def _rows(table: pd.DataFrame) -> Table:
    shown = [name for name in SHOWN if name != "variant" or table["variant"].any()]
    places = [COLUMNS.index(name) for name in shown]
    grid = Table(*shown, box=None, title="rows", title_justify="left")
    for _, line in table.head(MOST_ROWS).iterrows():
        texts = [_plain(cells(line)[place]) for place in places]
        grid.add_row(f"[{_colour(texts[0])}]{texts[0]}[/]", *texts[1:])
    return grid


def _grid(title: str, lines: list[list[str]]) -> Table:
    grid = Table(*AVERAGE_COLUMNS, box=None, title=title, title_justify="left")
    for line in lines:
        grid.add_row(*map(_plain, line))
    return grid


def _contest(one: Contest) -> Table:
    """Who has a time, with the ratios; reasons follow with those of all rows."""
    names = contest.columns(one)
    places = [i for i, name in enumerate(names) if name not in ("shape", "reason")]
    grid = Table(*(names[i] for i in places), box=None, title=contest.title(one))
    grid.title_justify = "left"
    for line in one.lines:
        if line.us is not None:
            texts = contest.cells(line)
            grid.add_row(*(_plain(texts[i]) for i in places))
    return grid


def _colour(status: str) -> str:
    return COLOURS.get(status, "red")


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", "\\[")
