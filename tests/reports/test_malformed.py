"""Rows whose parts are of another type: the file and line are named, and no command breaks."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mamba3_bench.bench.cli import main
from mamba3_bench.bench.records import Error, RecordError, read
from mamba3_bench.reports.main import show

VALUES = (None, 1, "x", [], {})
KERNEL = {"kernel": "scan", "registers": 168, "spills": 8, "shared": 98304, "threads": 128}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a row has a value, at any depth; of a list the first."""
    named = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for name, inner in named:
        yield (*at, name)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, name))


def changed(rows: list[dict[str, Any]], at: tuple[Any, ...], value: Any) -> str:
    """The lines of some rows, the last with another value at one place."""
    rows = deepcopy(rows)
    part: Any = rows[-1]
    for name in at[:-1]:
        part = part[name]
    part[at[-1]] = value
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def refusal(path: Path) -> str:
    """Why a file is not read; empty if it is."""
    try:
        read([path])
    except RecordError as error:
        return str(error)
    return ""


@pytest.fixture
def rows(make_row) -> list[dict[str, Any]]:
    """A match of a rival and ours; ours is the default of a tuning, too, raced and confirmed."""
    good = {"y": Error(4e-4, 1e-3, 2e-3, 1e-2)}
    rival = replace(make_row("rival", cold=9.0, errors=good), match="m", rival=True)
    ours = make_row(cold=8.0, warm=7.0, errors=good, config={"warps": 4}, resources=[KERNEL])
    place = {"index": 0, "of": 2, "names": ["default"]}
    raced = replace(ours, key="raced", kind="tune", place=place)
    confirmed = replace(ours, kind="sweep", match="m", place=place)
    return [json.loads(row.to_json()) for row in (rival, raced, confirmed)]


@pytest.mark.slow
def test_no_command_breaks_on_a_part_of_another_type(rows, tmp_path, capsys) -> None:
    """Every value of a row, at any depth, in turn replaced by each of VALUES."""
    good, path = tmp_path / "good.jsonl", tmp_path / "records.jsonl"
    good.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    refused = 0
    for at in places(rows[-1]):
        for value in VALUES:
            path.write_text(changed(rows, at, value))
            if refusal(path):
                assert f"{path}:3: not a record: " in refusal(path)
                refused += 1
                continue
            main(["compare", str(good), str(path)])
            main(["tune", "--replay", str(path), "--out", str(tmp_path / "again")])
            show([path])
    assert refused > 200


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("times", "cold"), "x"),
        (("times", "cold", "values"), "x"),
        (("environment",), []),
        (("environment", "ceilings"), 1),
        (("errors", "y"), 1),
        (("problem",), None),
        (("place", "names"), "x"),
        (("resources", 0, "shared"), None),
    ],
)
def test_every_command_names_the_line(rows, tmp_path, capsys, at, value) -> None:
    """As of any other line that is no record: an error of the arguments, with file and line."""
    path, out = tmp_path / "records.jsonl", str(tmp_path / "out")
    path.write_text(changed(rows, at, value))
    for command in (
        ["report", str(path), "--out", out],
        ["compare", str(path), str(path)],
        ["tune", "--replay", str(path), "--out", out],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert "records.jsonl:3: not a record: " in capsys.readouterr().err
    assert not Path(out).exists()
