"""docs/rivals.md: its intensities are those that the code counts, its commands exist."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from mamba3_bench.bench import peers
from mamba3_bench.bench.cli import parser, read_sides
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.session import make_jobs

TEXT = (Path(__file__).parent.parent / "docs" / "rivals.md").read_text(encoding="utf-8")
ROWS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "Mamba-3, SISO": ("decode", {"rank": (1,)}),
    "Mamba-3, R = 2": ("decode", {"rank": (2,)}),
    "Mamba-3, R = 4": ("decode", {"rank": (4,)}),
    "Mamba-3, R = 8": ("decode", {"rank": (8,)}),
    "Mamba-2": ("mamba2.decode", {}),
    "Gated DeltaNet": ("gdn.decode", {}),
    "Attention, cache of 2048": (
        "attention.decode",
        {"heads": (32,), "groups": (8,), "length": (2048,)},
    ),
}


def published_intensity(N: int, P: int, R: int, state_moves: int = 1) -> float:
    """FLOP per byte of a decode step as the paper counts them (arXiv 2603.15569, table 2), bf16.

    It counts one transfer of the state (state_moves = 1; a step both reads and writes it) and one
    outer product (the trapezoid has two); every head has a b and a c of its own.
    """
    flops = 5 * N * P - P if R == 1 else 4 * N * P * R + N * P - P * R
    return flops / (2 * (1 + 2 * N * R + P * R + state_moves * N * P))


def counted(op: str, **axes: object) -> float:
    """FLOP per byte of the problem that the text names."""
    (problem,) = problems(Axes(op=op, batch=(128,), **axes))  # type: ignore[arg-type]
    return problem.flops / problem.bytes


@pytest.mark.parametrize("name", ROWS)
def test_intensities_are_those_of_the_code(name: str) -> None:
    """Each number of the table, by both definitions."""
    op, axes = ROWS[name]
    expected = ["", ""]
    if op == "decode":
        (rank,) = axes["rank"]
        expected = [f"{published_intensity(128, 64, rank, moves):.2f}" for moves in (1, 2)]
    expected += [f"{counted(op, state_dtype=(dtype,), **axes):.2f}" for dtype in ("bf16", "fp32")]
    table = TEXT.split("<!-- intensity:begin -->")[1].split("<!-- intensity:end -->")[0]
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == expected


def test_the_papers_claim() -> None:
    """About 2.5 for SISO, and growing with R without end, by its own count."""
    assert 2.3 < published_intensity(128, 64, 1) < 2.5
    found = [published_intensity(128, 64, rank) for rank in (1, 2, 4, 8, 16)]
    assert all(later > 1.4 * before for before, later in pairwise(found))


@pytest.mark.parametrize("line", re.findall(r"^mamba3-bench (sweep [^#\n]*)", TEXT, re.M))
def test_commands_are_read(line: str) -> None:
    """Each command of the text makes jobs."""
    peers.register()
    arguments = parser().parse_args(line.split())
    assert make_jobs(read_sides(arguments), arguments.backend)


@pytest.mark.parametrize(("op", "backend"), peers.PEERS)
def test_every_rival_has_its_line(op: str, backend: str) -> None:
    """What is timed is said of each."""
    lines = [line.split("|")[1:3] for line in TEXT.splitlines() if line.startswith("| ")]
    assert any(op in ops.replace(",", " ").split() and backend in who.replace(",", " ").split()
               for ops, who in lines)  # fmt: skip
