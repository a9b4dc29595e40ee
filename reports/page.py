"""One HTML page with everything in it: no script, style, font or image is fetched."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader

from ..bench.budget import SelfTest
from ..bench.records import Row
from . import contest
from .averages import averages
from .filters import about, choices, text
from .ink import Drawing
from .machines import machines
from .outside import COLUMNS as OUTSIDE_COLUMNS
from .outside import outside
from .selftest import facts as selftest_facts
from .tables import (
    AVERAGE_COLUMNS,
    COLUMNS,
    RESOURCE_COLUMNS,
    average_cells,
    cells,
    compiled,
    counts,
    left_out,
    notes,
)
from .versus import Contest

MIME = {".png": "image/png", ".svg": "image/svg+xml"}


class _Line(NamedTuple):
    """One row of the table: what the filter compares, and what is shown."""

    filters: dict[str, str]  # by the name of its attribute
    cells: list[str]


def page(
    rows: list[Row],
    table: pd.DataFrame,
    met: list[Contest],
    figures: list[tuple[Drawing, tuple[Path, Path]]],
    selftests: Sequence[SelfTest] = (),
    superseded: int = 0,
) -> str:
    """The page of a frame; of each figure's files it holds the smaller.

    met: the contests of the rows. selftests: what `mamba3-bench selftest` found. superseded: rows
    that later ones replace.
    """
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    filters = choices(table)
    lines = [
        _Line({name: text(line[name]) for name in filters if pd.notna(line[name])}, cells(line))
        for _, line in table.iterrows()
    ]
    return environment.get_template("page.html").render(
        counts=counts(table),
        left_out=left_out(superseded),
        machines=machines(rows),
        cpu=bool((table["timer"] == "cpu").any()),
        only_cpu=not (table["timer"] == "cuda").any(),
        timed=int((table["cold_us"].notna() | table["warm_us"].notna()).sum()),
        dirty=bool(table["dirty"].fillna(False).any()),
        explained=f"{contest.EXPLAINED} {contest.scatter(met)}",
        contests=[
            (contest.title(one), contest.columns(one), [contest.cells(line) for line in one.lines])
            for one in met
        ],
        average_columns=AVERAGE_COLUMNS,
        averages=[average_cells(average) for average in averages(table)],
        figures=[
            (
                drawing,
                data_uri(files),
                round(drawing.figure.get_figwidth() * 96),
                about(drawing.rows, list(filters)),
            )
            for drawing, files in figures
        ],
        notes=notes(table),
        resource_columns=RESOURCE_COLUMNS,
        compiled=compiled(rows),
        columns=COLUMNS,
        filters=filters,
        lines=lines,
        outside_columns=OUTSIDE_COLUMNS,
        outside=outside(table),
        selftests=[selftest_facts(one) for one in selftests],
    )


def data_uri(files: tuple[Path, Path]) -> str:
    """The smaller of some files, as text for an image's source."""
    smallest = min(files, key=lambda path: path.stat().st_size)
    content = base64.b64encode(smallest.read_bytes()).decode()
    return f"data:{MIME[smallest.suffix]};base64,{content}"
