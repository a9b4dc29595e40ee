"""One HTML page with everything in it: no script, style, font or image is fetched."""

import base64
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader

from ..bench.records import Row
from .averages import averages
from .ink import Drawing
from .machines import machines
from .tables import (
    AVERAGE_COLUMNS,
    COLUMNS,
    RESOURCE_COLUMNS,
    average_cells,
    cells,
    compiled,
    counts,
    notes,
)

FILTERS = ("op", "dtype", "backend", "status")
MIME = {".png": "image/png", ".svg": "image/svg+xml"}


class _Line(NamedTuple):
    """One row of the table: what the filter compares, and what is shown."""

    filters: dict[str, str]
    cells: list[str]


def page(
    rows: list[Row], table: pd.DataFrame, figures: list[tuple[Drawing, tuple[Path, Path]]]
) -> str:
    """The page of a frame; of each figure's files it holds the smaller."""
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    lines = [_Line({n: str(line[n]) for n in FILTERS}, cells(line)) for _, line in table.iterrows()]
    return environment.get_template("page.html").render(
        counts=counts(table),
        machines=machines(rows),
        cpu=bool((table["timer"] == "cpu").any()),
        only_cpu=not (table["timer"] == "cuda").any(),
        timed=int((table["cold_us"].notna() | table["warm_us"].notna()).sum()),
        dirty=bool(table["dirty"].fillna(False).any()),
        average_columns=AVERAGE_COLUMNS,
        averages=[average_cells(average) for average in averages(table)],
        figures=[
            (drawing, data_uri(files), round(drawing.figure.get_figwidth() * 96))
            for drawing, files in figures
        ],
        notes=notes(table),
        resource_columns=RESOURCE_COLUMNS,
        compiled=compiled(rows),
        columns=COLUMNS,
        filters={name: sorted({line.filters[name] for line in lines}) for name in FILTERS},
        lines=lines,
    )


def data_uri(files: tuple[Path, Path]) -> str:
    """The smaller of some files, as text for an image's source."""
    smallest = min(files, key=lambda path: path.stat().st_size)
    content = base64.b64encode(smallest.read_bytes()).decode()
    return f"data:{MIME[smallest.suffix]};base64,{content}"
