"""What a run says of itself: where its time went."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mamba3_bench.bench import show
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.jobs import Entry, Job, Settings, Stage
from mamba3_bench.bench.ledger import Slot
from mamba3_bench.bench.rows import blank_row

JOB = Job(tuple(Entry(problem, "torch") for problem in problems(Axes())))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    return now


def told(clock, stages):
    """What is printed after some stages: (worker, what, seconds that it lasts)."""
    text = io.StringIO()
    workers = [Slot("cuda:0"), Slot("cuda:0")]  # equal, and yet two
    with show.Watch(Console(file=text, width=200), "sweep") as watch:
        for worker, what, seconds in stages:
            watch.stage(workers[worker], JOB, Stage(None, what))
            clock[0] += seconds
    return text.getvalue()


def test_a_long_run_tells_where_its_time_went(clock):
    """Seconds of all workers by stage, longest first; hard cases together; nothing below 0.5 s."""
    said = told(
        clock,
        [
            (0, "gate", 3.0), (0, "gate, hard case (typical)", 4.0),
            (0, "gate, hard case (one token)", 4.5), (0, "looking up", 0.2), (0, "timing", 1.0),
            (1, "gate", 2.0),
        ],
    )  # fmt: skip
    # the first worker still takes times while the second begins to gate
    assert said == "time went to: gate, hard case 8 s, gate 5 s, timing 3 s\n"


def test_a_short_run_does_not(clock):
    """Seconds are nobody's concern there."""
    assert told(clock, [(0, "gate", 3.0)]) == ""


def test_a_reason_of_no_encoding_is_shown_escaped():
    """In the tables of a run, and line by line where nobody watches."""
    row = blank_row(JOB.entries[0], Settings("sweep"), {}, JOB.match)
    row = replace(row, status="run-failed", reason="no file a\udcff")
    out = io.StringIO()
    page = Console(file=out, width=200)
    for table in (show.results_table, show.resources_table):
        page.print(table([row]))
    with show.Watch(page, "sweep") as watch:
        watch.planned(1, 0)
        watch.row(row)
    assert out.getvalue().encode().count(b"no file a\\udcff") == 3
