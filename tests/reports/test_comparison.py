"""A comparison in words: for a terminal, a pull request and a program."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from mamba3_bench.bench.compare import Asked, compare
from mamba3_bench.reports.comparison import COLUMNS, as_json, as_markdown, shape_text, show


@pytest.fixture(scope="module")
def found(make_row):
    """One shape of each case but `cannot tell`; batch and backend vary, all else is the same."""
    times = {1: (50.0, 50.0), 3: (50.0, 25.0), 5: (50.0, 75.0)}
    old = [make_row(cold=before, B=b) for b, (before, _) in times.items()]
    new = [make_row(cold=after, B=b) for b, (_, after) in times.items()]
    old += [make_row("cute", cold=9.0, B=7), make_row("cute", cold=9.0, B=9)]
    new += [make_row("cute", "wrong", B=7, reason="y | is [red]off[/]")]
    return compare([old], [new], Asked(threshold=0.05))


def test_terminal(found):
    """The worst first, each with its shape and interval; markup in a reason is text."""
    out = StringIO()
    show(found, Console(file=out, width=200))
    text = out.getvalue()
    order = [text.index(case) for case in ("wrong", "not measured", "slower", "faster", "same")]
    assert order == sorted(order)
    assert "y | is [red]off[/]" in text
    assert re.search(r"slower +prefill +triton +B5 +50 +75 +1\.500 +1\.\d+ to 1\.\d+ +1755", text)
    assert "assumed, nothing was repeated: sweep with --repeat, or --noise" in text
    assert "prefill triton: 0.909 times OLD's time, geometric mean over 3 of 3 shapes" in text
    assert text.rstrip().endswith(
        "5 shapes, NEW against OLD: 1 wrong, 1 not measured, 1 slower, 1 faster, 1 same."
    )


def test_a_reason_of_no_encoding_is_shown_escaped(make_row):
    """On a terminal and in Markdown."""
    old, new = make_row("cute", cold=9.0), make_row("cute", "run-failed", reason="a\udcff")
    compared = compare([[old]], [[new]], Asked())
    out = StringIO()
    show(compared, Console(file=out, width=200))
    for text in (out.getvalue(), as_markdown(compared)):
        assert b"a\\udcff" in text.encode()


def test_markdown(found):
    """What needs a reader is in sight, the rest folded; pipes do not break the tables."""
    text = as_markdown(found)
    seen, folded = text.split("<details>")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 2}
    assert all(f"| {case} |" in seen for case in ("wrong", "not measured", "slower", "faster"))
    assert "| same |" in folded.split("</details>")[0]
    assert "L512" in text.splitlines()[-1] or "In every row: L512" in text


def test_json(found):
    """A program finds the code, the counts and every number."""
    whole = json.loads(as_json(found))
    assert whole["exit"] == 14
    assert whole["counts"] == {"wrong": 1, "not measured": 1, "slower": 1, "faster": 1, "same": 1}
    slower = next(line for line in whole["lines"] if line["case"] == "slower")
    assert slower["effect"]["ratio"] == pytest.approx(1.5)
    assert slower["problem"]["B"] == 5
    assert slower["effect"]["low"] < 1.5 < slower["effect"]["high"]
    assert json.loads(as_json(found, ["wrong"]))["exit"] == 13


def test_shapes_of_any_family():
    """Dims by their letter, everything else by its name; what is absent is left out."""
    problem = {"op": "decode", "B": 2, "K": 64, "dtype": "bfloat16", "option.norm": "rms",
               "optional": ["z", "d"], "lengths": None, "has_state": False}  # fmt: skip
    assert shape_text(problem) == "B2 K64 dtype=bfloat16 norm=rms optional=z+d"
