"""The table of rows, for reading: one list of cells that terminal, Markdown and page share."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..bench.records import Row
from ..bench.show import DIMS, is_quarter
from .averages import Average
from .frame import flat

COLUMNS = (
    "status",
    "op",
    "backend",
    "shape",
    "dtype",
    "cold µs",
    "warm µs",
    "of limit",
    "error / bound",
    "GB/s",
    "TFLOP/s",
    "host µs",
    "SM MHz",
    "regs / spills / shared B",
    "variant",
    "config",
    "reason",
)
AVERAGE_COLUMNS = (
    "device",
    "op",
    "dtype",
    "backend",
    "mean µs",
    "to fastest",
    "of limit",
    "shapes",
)
NUMBER = r"\d[\d.]*(e[+-]?\d+)?"

RESOURCE_COLUMNS = (
    "op",
    "backend",
    "shape",
    "dtype",
    "config",
    "kernel",
    "registers",
    "spills B",
    "shared B",
    "threads",
)


@dataclass(frozen=True, slots=True)
class Note:
    """Rows that share a status and a reason."""

    status: str
    op: str
    backend: str
    reason: str
    count: int
    example: str  # the shape of the first, or of the one at worst


def cells(line: "pd.Series[Any]") -> list[str]:
    """One row of the frame as texts, in the order of COLUMNS."""
    return [
        line["status"],
        line["op"],
        line["backend"] + (" (interpreted)" if line["interpreted"] else ""),
        shape(line),
        dtypes(line["dtype"], line["state_dtype"]),
        quartiles(line, "cold"),
        quartiles(line, "warm"),
        percent(line["share_of_limit"]) + _by(line["limited_by"], line["share_of_limit"]),
        number(line["error_over_bound"]) + _in(line["worst_output"]),
        number(line["gb_per_s"]),
        number(line["tflop_per_s"]),
        quartiles(line, "host"),
        number(line["sm_clock_mhz"], 4),
        resources(line),
        line["variant"],
        line["config"],
        line["reason"],
    ]


def average_cells(average: Average) -> list[str]:
    """One average as texts, in the order of AVERAGE_COLUMNS."""
    mark = " †" if average.inaccurate else ""
    mean = number(average.mean_us)
    return [
        average.device,
        average.op,
        dtypes(average.dtype, average.state_dtype),
        average.backend + mark,
        f"{mean} {average.kind}" if mean else "",
        f"{average.relative:.2f} x" if average.relative else "",
        percent(average.share_of_limit),
        f"{average.timed} of {average.shapes} ({average.common} common)",
    ]


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows by status, most frequent first."""
    return dict(Counter(table["status"]).most_common())


def left_out(superseded: int) -> str:
    """What is said of rows whose key a later row has too; empty for none."""
    if not superseded:
        return ""
    return (
        f"{superseded} rows superseded: of rows with one key the last counts. "
        "To see how two runs differ, compare them."
    )


def notes(table: pd.DataFrame) -> list[Note]:
    """Everything that has a reason, in order of status and frequency.

    Results outside their bounds are one note if they differ in numbers alone: the largest error's.
    """
    told = table[table["reason"] != ""]
    judged = told["status"].isin(("inaccurate", "wrong"))
    words = told["reason"].mask(judged, told["reason"].str.replace(NUMBER, "#", regex=True))
    found = []
    for (status, op, backend, _), group in told.groupby(["status", "op", "backend", words]):
        worst = group.sort_values("error_over_bound", ascending=False, na_position="last").iloc[0]
        count, reason = len(group), str(worst["reason"])
        if group["reason"].nunique() > 1:
            reason = f"at worst {reason}"
        found.append(Note(str(status), str(op), str(backend), reason, count, shape(worst)))
    return sorted(found, key=lambda r: (r.status, -r.count, r.op, r.backend, r.reason))


def compiled(rows: Iterable[Row]) -> list[list[str]]:
    """What the compiler said of each kernel of each config, once, in the order of RESOURCE_COLUMNS.

    Registers and spilled bytes are per thread, shared bytes per block.
    """
    lines = []
    for row in rows:
        line = pd.Series(flat(row))
        dtype = dtypes(line["dtype"], line["state_dtype"])
        head = (row.op, row.backend, shape(line), dtype, line["config"])
        for kernel in row.resources:
            said = (kernel.get(k) for k in ("kernel", "registers", "spills", "shared", "threads"))
            lines.append((*head, *("" if value is None else str(value) for value in said)))
    return [list(line) for line in dict.fromkeys(lines)]


def shape(line: "pd.Series[Any] | dict[str, Any]") -> str:
    """`B8 L2048 H64 G1 P64 N128 R1`, of the dims that the problem has; S where it is no quarter."""
    there = [dim for dim in DIMS if pd.notna(line.get(dim))]
    if "S" in there and is_quarter(line):
        there.remove("S")
    return " ".join(f"{dim}{line[dim]:.0f}" for dim in there)


def dtypes(dtype: Any, state_dtype: Any) -> str:
    """`bfloat16`, or `bfloat16, state float32` where the state differs."""
    if pd.isna(state_dtype) or state_dtype in (dtype, "None", "nan"):
        return str(dtype)
    return f"{dtype}, state {state_dtype}"


def quartiles(line: "pd.Series[Any]", kind: str) -> str:
    """`12.3 (12.1 to 12.6)`: the median and the middle half, in microseconds."""
    if pd.isna(line[f"{kind}_us"]):
        return ""
    low, high = number(line[f"{kind}_q1_us"]), number(line[f"{kind}_q3_us"])
    return f"{number(line[f'{kind}_us'])} ({low} to {high})"


def resources(line: "pd.Series[Any]") -> str:
    """Registers per thread, spilled bytes per thread, shared bytes per block: the largest."""
    values = [line[name] for name in ("registers", "spills", "shared")]
    if all(pd.isna(value) for value in values):
        return ""
    return " / ".join("?" if pd.isna(value) else f"{value:.0f}" for value in values)


def number(value: Any, digits: int = 3) -> str:
    """A number to so many significant digits, never in powers of ten if it is 0.001 or more."""
    if value is None or pd.isna(value):
        return ""
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def percent(share: Any) -> str:
    """`87 %`."""
    return "" if share is None or pd.isna(share) else f"{100 * share:.0f} %"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A pipe table; pipes and newlines in cells are escaped."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in rows) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _by(limited_by: Any, share: Any) -> str:
    return "" if pd.isna(share) else f" {limited_by}"


def _in(output: Any) -> str:
    return "" if pd.isna(output) else f" {output}"
