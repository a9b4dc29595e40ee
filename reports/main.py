"""From record files to a report: table, figures and one page. Needs no GPU and no kernel."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console

from ..bench.records import Row, read
from ..bench.sides import NoRecords
from . import contest
from .accuracy import accuracy
from .averages import averages
from .files import supersede
from .frame import frame
from .ink import inks, save
from .latency import latency
from .machines import machines
from .outside import COLUMNS as OUTSIDE_COLUMNS
from .outside import outside
from .page import page
from .rank import rank
from .roofline import roofline
from .selftest import found
from .shares import errors, shares
from .tables import (
    AVERAGE_COLUMNS,
    COLUMNS,
    RESOURCE_COLUMNS,
    average_cells,
    cells,
    compiled,
    left_out,
    markdown,
    notes,
)
from .terminal import show as show_frame
from .versus import Contest, contests


def write(record_paths: list[Path], out: Path) -> list[Path]:
    """Write the report of some record files into a folder; returns the files written.

    table.md holds every row, NAME.csv and NAME.parquet each table, figures/ each figure as PNG and
    SVG, and index.html all of it, with the self-test that lies beside the records. Raises
    NoRecords without rows, RecordError or SelfTestError for a line or a self-test that is none;
    then nothing is written.
    """
    rows, table, superseded = _load(record_paths)
    selftests = found(record_paths)
    out.mkdir(parents=True, exist_ok=True)
    met = contests(rows)
    written = [out / "table.md"]
    written[0].write_text(_markdown(rows, table, met, superseded), encoding="utf-8")
    for name, data in tables(rows, table, met).items():
        written += [out / f"{name}.csv", out / f"{name}.parquet"]
        data.to_csv(written[-2], index=False)
        data.to_parquet(written[-1], index=False)

    ink = inks(table["backend"])
    drawings = [
        *contest.drawings(met),
        *latency(table, ink),
        *rank(table, ink),
        *roofline(rows, table, ink),
        *shares(table, ink),
        *errors(table, ink),
        *accuracy(table, ink),
    ]
    figures = [(drawing, save(drawing, out / "figures")) for drawing in drawings]
    index = out / "index.html"
    index.write_text(page(rows, table, met, figures, selftests, superseded), encoding="utf-8")
    written += [*(path for _, files in figures for path in files), index]
    supersede(out, written)
    return written


def tables(rows: list[Row], table: pd.DataFrame, met: list[Contest]) -> dict[str, pd.DataFrame]:
    """Every table of the page by the stem of its files; empty ones are left out."""
    found = {
        "table": table,
        "versus": contest.table(met),
        "averages": pd.DataFrame([asdict(average) for average in averages(table)]),
        "notes": pd.DataFrame([asdict(note) for note in notes(table)]),
        "outside": pd.DataFrame(outside(table), columns=list(OUTSIDE_COLUMNS)),
        "compiled": pd.DataFrame(compiled(rows), columns=list(RESOURCE_COLUMNS)),
    }
    return {name: data for name, data in found.items() if len(data)}


def show(record_paths: list[Path], console: Console | None = None) -> None:
    """Print the report of some record files on a terminal; raises as `write` does."""
    rows, table, superseded = _load(record_paths)
    show_frame(table, console or Console(), contests(rows), superseded)


def _load(record_paths: list[Path]) -> tuple[list[Row], pd.DataFrame, int]:
    """Rows, the last of each key, their frame, and how many earlier ones are left out; of a tuning
    those that were confirmed.
    """
    found = [row for row in read(record_paths) if not row.screening]
    rows = list({row.key: row for row in found}.values())
    if not rows:
        raise NoRecords(*record_paths)
    return rows, frame(rows), len(found) - len(rows)


def _markdown(rows: list[Row], table: pd.DataFrame, met: list[Contest], superseded: int) -> str:
    parts = [f"{left_out(superseded)}\n"] if superseded else []
    for machine in machines(rows):
        parts.append(f"**{machine.device}**, {machine.rows} rows\n")
        parts.append("".join(f"- {name}: {text}\n" for name, text in machine.facts))
    lines = [average_cells(average) for average in averages(table)]
    if met:
        parts.append(f"{contest.EXPLAINED} {contest.scatter(met)}\n")
    for one in met:
        parts.append(f"{contest.title(one)}\n")
        parts.append(markdown(contest.columns(one), [contest.cells(line) for line in one.lines]))
    parts.append("Geometric means over the shapes that all rivals completed:\n")
    parts.append(markdown(AVERAGE_COLUMNS, lines))
    parts.append(markdown(COLUMNS, [cells(line) for _, line in table.iterrows()]))
    return "\n".join(parts)
