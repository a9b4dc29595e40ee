"""A comparison for a terminal, for a pull request (Markdown) and for a program (JSON)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ..bench.compare import EXIT, PASSING, Case, Comparison, Effect, Line
from .tables import markdown, number

COLUMNS = (
    "verdict",
    "op",
    "backend",
    "shape",
    "OLD µs",
    "NEW µs",
    "NEW / OLD",
    "interval",
    "SM MHz",
    "note",
)
COLOURS: dict[Case, str] = {
    "wrong": "bold red",
    "not measured": "bold red",
    "slower": "red",
    "cannot tell": "yellow",
    "faster": "green",
    "same": "dim",
}
BAD: tuple[Case, ...] = ("wrong", "not measured", "slower")


def headline(found: Comparison) -> str:
    """The counts in one sentence."""
    if not found.lines:
        return "Nothing to compare: OLD and NEW have no shape in common that worked in OLD."
    counts = ", ".join(f"{count} {case}" for case, count in found.counts.items())
    return f"{len(found.lines)} shapes, NEW against OLD: {counts}."


def notes(found: Comparison) -> list[str]:
    """What the verdicts stand on, and what else there is to know."""
    asked = found.asked
    said = [
        f"A difference counts from {asked.threshold:.1%}; the chance that any shape is called "
        f"faster or slower by mistake is at most {1 - asked.confidence:.0%}."
    ]
    for device, noise in found.noise.items():
        source = (
            "typical of the repeats, of few with what is assumed; each shape's own counts too"
            if noise.measured
            else "given"
            if asked.noise is not None
            else "assumed, nothing was repeated: sweep with --repeat, or --noise, "
            "which a selftest measures"
        )
        said.append(f"Scatter between processes on {device}: {noise.sd:.2%}, {source}.")
    for mean in found.means:
        said.append(
            f"{mean.op} {mean.backend}: {mean.ratio:.3f} times OLD's time, geometric mean over "
            f"{mean.shapes} of {mean.of} shapes."
        )
    if found.added:
        said.append(f"{found.added} shapes work in NEW alone.")
    if found.untimed:
        said.append(f"{found.untimed} shapes are right on both sides and timed on none.")
    if found.copies:
        said.append(f"{found.copies} rows are copies of others of their side, and do not count.")
    said += [f"{name}: {old} -> {new}" for name, (old, new) in found.differing.items()]
    return said


def ordered(found: Comparison) -> list[Line]:
    """The worst first, and within a case the largest effect."""
    order = list(found.counts)

    def key(line: Line) -> tuple[int, float]:
        effect = line.effect
        return order.index(line.case), -abs(math.log(effect.ratio)) if effect else -math.inf

    return sorted(found.lines, key=key)


def cells(line: Line, constant: Sequence[str]) -> list[str]:
    """One line as texts, in the order of COLUMNS; fields in `constant` are left out."""
    e = line.effect
    place = f"on {line.machine}" if line.machine else ""
    varied = {name: value for name, value in line.problem.items() if name not in constant}
    shape = " ".join(filter(None, (shape_text(varied), line.config, place)))
    texts = [line.case, line.op, line.backend, shape]
    if e is None:
        return [*texts, "", "", "", "", "", line.reason]
    return [
        *texts,
        number(e.old_us, 4),
        number(e.new_us, 4),
        f"{e.ratio:.3f}",
        f"{e.low:.3f} to {e.high:.3f}",
        clocks(e),
        "; ".join(filter(None, (e.kind if e.kind != "cold" else "", line.reason))),
    ]


def shape_text(problem: dict[str, Any]) -> str:
    """`B8 L2048 N128 dtype=bfloat16`: what a problem has, in its own words; absent things left out.

    Knows no family of problems: a whole number under a name of one letter is a dim.
    """
    words = []
    for name, value in problem.items():
        if name == "op" or value is None or value is False or value == []:
            continue
        if isinstance(value, int) and len(name) == 1:
            words.append(f"{name}{value}")
            continue
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"{name.removeprefix('option.')}={text}")
    return " ".join(words)


def clocks(effect: Effect) -> str:
    """`1980`, or `1980 -> 1755` where they differ."""
    old, new = number(effect.old_mhz, 4), number(effect.new_mhz, 4)
    return old if old == new else f"{old or '?'} -> {new or '?'}"


def constants(found: Comparison) -> dict[str, Any]:
    """The fields of the problems that are the same in every line."""
    values: dict[str, set[str]] = {}
    for line in found.lines:
        for name, value in line.problem.items():
            values.setdefault(name, set()).add(json.dumps(value))
    return {
        name: json.loads(next(iter(known)))
        for name, known in values.items()
        if len(known) == 1 and all(name in line.problem for line in found.lines)
    }


def show(found: Comparison, page: Console) -> None:
    """Print it, the worst first."""
    same = constants(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        right = name in ("OLD µs", "NEW µs", "NEW / OLD")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in ordered(found):
        texts = [text.replace("[", "\\[") for text in cells(line, list(same))]
        table.add_row(f"[{COLOURS[line.case]}]{texts[0]}[/]", *texts[1:])
    if found.lines:
        page.print(table)
        if shape_text(same):
            page.print(f"in every row: {shape_text(same)}", style="dim", highlight=False)
    for note in notes(found):
        page.print(note, highlight=False, markup=False, soft_wrap=True)
    page.print(f"[bold]{headline(found)}[/]", highlight=False)


def as_markdown(found: Comparison) -> str:
    """For a pull request: what needs a reader first, the rest folded."""
    same = constants(found)
    lines = ordered(found)
    first = [line for line in lines if line.case in (*BAD, "faster")]
    rest = [line for line in lines if line not in first]
    parts = [f"### {headline(found)}\n"]
    if first:
        parts.append(_markdown_table(first, same))
    if rest:
        parts.append(f"<details><summary>{len(rest)} more</summary>\n")
        parts.append(_markdown_table(rest, same))
        parts.append("</details>\n")
    if shape_text(same):
        parts.append(f"In every row: {shape_text(same)}.\n")
    parts.append("".join(f"- {note}\n" for note in notes(found)))
    return "\n".join(parts)


def _markdown_table(lines: Sequence[Line], same: dict[str, Any]) -> str:
    return markdown(COLUMNS, [cells(line, list(same)) for line in lines])


def as_json(found: Comparison, passing: Sequence[Case] = PASSING) -> str:
    """Everything, for a program; `exit` is the code that the command ends with."""
    whole = {
        "exit": found.exit_code(passing),
        "codes": EXIT,
        "counts": found.counts,
        "asked": asdict(found.asked),
        "noise": {
            name: {"sd": noise.sd, "measured": noise.measured}
            for name, noise in found.noise.items()
        },
        "means": [asdict(mean) for mean in found.means],
        "added": found.added,
        "untimed": found.untimed,
        "copies": found.copies,
        "differing": found.differing,
        "lines": [asdict(line) for line in ordered(found)],
    }
    return json.dumps(whole, indent=1) + "\n"
