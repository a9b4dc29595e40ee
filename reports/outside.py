"""What a call costs outside the GPU: the host's share of an eager call, and compilation."""

from typing import Any

import pandas as pd

from .tables import number

COLUMNS = (
    "device",
    "op",
    "backend",
    "host µs, median (least to most)",
    "compile s, median (most)",
    "rows",
)


def outside(table: pd.DataFrame) -> list[list[str]]:
    """One line per device, op and backend that has either, in the order of COLUMNS."""
    known = table[table["host_us"].notna() | (table["compile_s"].fillna(0) > 0)]
    lines = []
    for (device, op, backend), rows in known.groupby(["device", "op", "backend"]):
        host, compiled = rows["host_us"].dropna(), rows["compile_s"].dropna()
        lines.append(
            [str(device), str(op), str(backend), _host(host), _compile(compiled), str(len(rows))]
        )
    return lines


def _host(microseconds: "pd.Series[Any]") -> str:
    if microseconds.empty:
        return ""
    low, high = number(microseconds.min()), number(microseconds.max())
    return f"{number(microseconds.median())} ({low} to {high})"


def _compile(seconds: "pd.Series[Any]") -> str:
    if seconds.empty:
        return ""
    return f"{seconds.median():.2f} ({seconds.max():.2f})"
