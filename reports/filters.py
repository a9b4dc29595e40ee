"""What a page can be filtered by, and what each part of it is about."""

from typing import Any

import pandas as pd

from ..bench.show import DIMS

NAMES = ("op", "dtype", "backend", "status")


def choices(table: pd.DataFrame) -> dict[str, list[str]]:
    """The values of each filter; a dim is one if it varies."""
    varied = [dim for dim in DIMS if dim in table and table[dim].nunique() > 1]
    found = {name: values(table[name]) for name in (*NAMES, *varied)}
    return {name: known for name, known in found.items() if known}


def values(column: "pd.Series[Any]") -> list[str]:
    """The distinct values as they are shown, numbers in their order."""
    return [text(value) for value in sorted(column.dropna().unique())]


def text(value: object) -> str:
    """A value as a filter compares it."""
    return str(int(value)) if isinstance(value, float) else str(value)


def about(rows: pd.DataFrame, names: list[str]) -> dict[str, str]:
    """The values that some rows have, between bars: `|prefill|decode|`; status is left out."""
    found = {name: values(rows[name]) for name in names if name in rows and name != "status"}
    return {name: f"|{'|'.join(known)}|" for name, known in found.items()}
