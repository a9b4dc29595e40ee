"""Records: what a row may say, and a file that survives what writes it."""

import gzip
import json
import math
from dataclasses import replace

import pytest

from mamba3_bench.bench import records
from mamba3_bench.bench.records import Error, Row, Samples, Times

TIMES = Times("cuda", Samples(5.5, 5.25, 6.0, 40, 3), Samples(4.5, 4.0, 4.75, 40), None, 1755.0)
PROBLEM = {
    "op": "prefill", "B": 2, "L": 9, "H": 4, "P": 64, "N": 16, "dtype": "bfloat16",
    "state_dtype": "float32", "has_state": False, "lengths": None, "optional": ["z"],
}  # fmt: skip
KERNEL = {"kernel": "prefill", "registers": 255, "spills": 0, "shared": 9, "threads": 128}


def make_row(key="k", **fields):
    """A right, timed row with something in every field."""
    usual = {
        "key": key, "op": "prefill", "backend": "triton", "status": "ok", "reason": "",
        "problem": PROBLEM, "config": {"chunk": 64},
        "seed": 3, "bytes": 10**12, "flops": 7, "environment": {"gpu": None, "copy": {"a": 1}},
        "errors": {"y": Error(1e-3, 2e-3, 0.1, 0.3)}, "times": TIMES, "compile_s": 0.25,
        "resources": [KERNEL],
    }  # fmt: skip
    return Row(**{**usual, **fields})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "records.jsonl"


@pytest.mark.parametrize(
    "row",
    [
        make_row(),
        make_row(times=None),
        make_row(times=Times("cpu", None, Samples(1.0, 1.0, 1.0, 5))),
        make_row(status="wrong", reason="y: \n ü", times=None, errors={}),
        make_row(status="inaccurate", reason="y is off"),
    ],
    ids=lambda row: row.status,
)
def test_round_trip(path, row):
    """A row comes back from disk as it was, on one line, and appended to what is there."""
    records.append(path, make_row("first"))
    records.append(path, row)
    assert records.read([path]) == [make_row("first"), row]
    assert len(path.read_text().splitlines()) == 2


def test_nan_survives(path):
    """An error that is not a number is recorded as that, not as a null that reads as none."""
    records.append(path, make_row(errors={"y": Error(math.nan, 1.0, math.inf, 1.0)}, times=None))
    (row,) = records.read([path])
    assert math.isnan(row.errors["y"].l2)
    assert math.isinf(row.errors["y"].largest)


@pytest.mark.parametrize("status", ["skipped", "compile-failed", "run-failed", "timeout", "wrong"])
def test_no_time_without_a_right_result(status):
    """Neither made, nor changed into, nor read from a file."""
    with pytest.raises(ValueError, match=f"a {status} row cannot hold a time"):
        make_row(status=status, reason="why")
    with pytest.raises(ValueError, match="cannot hold a time"):
        replace(make_row(), status=status, reason="why")
    forged = json.loads(make_row().to_json()) | {"status": status, "reason": "why"}
    with pytest.raises(ValueError, match="cannot hold a time"):
        Row.from_json(json.dumps(forged))


def test_status_and_reason():
    """All but `ok` say why, and no status can be made up."""
    with pytest.raises(ValueError, match="a timeout row needs a reason"):
        make_row(status="timeout", reason="", times=None)
    with pytest.raises(ValueError, match="a inaccurate row needs a reason"):
        make_row(status="inaccurate", reason="")
    with pytest.raises(ValueError, match=r"expected one of .*'ok'.*got 'fine'"):
        make_row(status="fine")


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_torn_last_line(path, kept):
    """A crash in the middle of a line loses that row alone, and the next append cuts it off."""
    for key in ("a", "b"):
        records.append(path, make_row(key))
    whole = path.read_bytes()
    end_of_first = whole.index(b"\n") + 1
    path.write_bytes(whole[: end_of_first + kept] if kept > 0 else whole[:kept])
    assert [row.key for row in records.read([path])] == ["a"]
    records.append(path, make_row("c"))
    assert [row.key for row in records.read([path])] == ["a", "c"]
    assert path.read_bytes().count(b"\n") == 2


def test_last_line_without_its_newline(path):
    """Only the newline was lost: the row counts, and the next one begins a line of its own."""
    for key in ("a", "b"):
        records.append(path, make_row(key))
    path.write_bytes(path.read_bytes()[:-1])
    assert [row.key for row in records.read([path])] == ["a", "b"]
    records.append(path, make_row("c"))
    assert [row.key for row in records.read([path])] == ["a", "b", "c"]


def test_a_torn_line_longer_than_a_block(path):
    """The search for its beginning goes back as far as it must."""
    records.append(path, make_row("a"))
    with path.open("ab") as file:
        file.write(b'{"key": "' + b"x" * 200_000)
    records.append(path, make_row("c"))
    assert [row.key for row in records.read([path])] == ["a", "c"]


@pytest.mark.parametrize(
    "tail",
    [
        json.dumps(json.loads(make_row().to_json()) | {"newer": 1}),
        json.dumps({"weights": [0.5] * 1000}),
        "[1, 2, 3]",
        f"[{'9' * 5000}]",
    ],
    ids=["newer", "foreign", "list", "digits"],
)
@pytest.mark.parametrize("rows", [0, 1])
def test_a_last_line_that_is_whole_and_no_record_is_kept(path, tail, rows):
    """A row of a newer version, or another's file: named by who reads it, never cut off."""
    path.parent.mkdir()
    whole = f"{make_row().to_json()}\n" * rows + tail
    path.write_text(whole)
    for step in (lambda: records.read([path]), lambda: records.append(path, make_row("c"))):
        with pytest.raises(records.RecordError, match=rf"records\.jsonl:{rows + 1}: not a record"):
            step()
    assert path.read_text() == whole


@pytest.mark.parametrize("kept", [1, 6, 200])
def test_a_torn_first_line(path, kept):
    """A crash in the first row loses that row alone."""
    path.parent.mkdir()
    path.write_text(make_row("a").to_json()[:kept])
    assert records.read([path]) == []
    records.append(path, make_row("c"))
    assert [row.key for row in records.read([path])] == ["c"]


@pytest.mark.parametrize("text", ["notes of mine", '{"weights": [0.5,', "\0\0"])
def test_a_file_that_does_not_begin_like_a_row_is_kept(path, text):
    """It is another's, and no crash of ours made it."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(records.RecordError, match=r"records\.jsonl:1: not a record"):
        records.append(path, make_row("c"))
    assert path.read_text() == text


def test_packed_records(path):
    """The same rows; a file that is only named so, or cut off, is named."""
    for key in ("a", "b"):
        records.append(path, make_row(key))
    packed = path.with_name("records.jsonl.gz")
    whole = gzip.compress(path.read_bytes())
    packed.write_bytes(whole)
    assert records.read([packed]) == records.read([path])
    for broken in (path.read_bytes(), whole[:-9], whole[:50] + whole[60:]):
        packed.write_bytes(broken)
        with pytest.raises(records.RecordError, match=r"records\.jsonl\.gz:1: not a record"):
            records.read([packed])


def test_a_broken_line_inside_is_an_error(path):
    """That is no crash's doing: file and line are named, and nothing is skipped silently."""
    for key in ("a", "b"):
        records.append(path, make_row(key))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{}\n" + lines[1])
    with pytest.raises(ValueError, match=r"records\.jsonl:2: not a record"):
        records.read([path])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("errors", [], "'list' object has no attribute 'items'"),
        ("errors", {"y": {"l2": "?", "l2_bound": 1, "largest": 1, "largest_bound": 1}}, "l2: exp"),
        ("times", 3, "'int' object has no attribute 'get'"),
        ("times", {"device": "cpu", "warm": None}, "required positional argument: 'cold'"),
        ("problem", [], "problem: expected dict, got list"),
        ("key", [], "key: expected str, got list"),
        ("bytes", "many", "bytes: expected int, got str"),
        ("compile_s", {}, "compile_s: expected float or NoneType or int, got dict"),
        ("problem", {}, "problem.B: is missing"),
        ("problem", PROBLEM | {"L": "x"}, "problem.L: expected int, got str"),
        (
            "problem",
            PROBLEM | {"lengths": [1, None]},
            "problem.lengths: expected int, got NoneType",
        ),
        ("environment", {"gpu": 1}, "environment.gpu: expected str or NoneType, got int"),
        ("environment", {"ceilings": {"copy": "x"}}, "environment.ceilings: expected float or int"),
        ("environment", {"packages": {"torch": 2}}, "environment.packages: expected str, got int"),
        ("place", {}, "place.index: is missing"),
        ("place", {"index": 0, "of": 2, "names": [1]}, "place.names: expected str, got int"),
        ("resources", [1], "resources: expected dict, got int"),
        ("resources", [KERNEL | {"spills": None}], "resources.spills: expected int, got NoneType"),
        ("times", {"device": "tpu", "cold": None, "warm": None}, "device: expected one of"),
    ],
)
def test_a_field_of_another_type_is_an_error(path, field, value, says):
    """Found where the file is read, and not where the field is first used."""
    path.parent.mkdir()
    path.write_text(json.dumps(json.loads(make_row().to_json()) | {field: value}) + "\n")
    with pytest.raises(records.RecordError, match=r"records\.jsonl:1: not a record: ") as caught:
        records.read([path])
    assert says in str(caught.value)


@pytest.mark.parametrize("field", ["median", "q1", "q3", "values"])
@pytest.mark.parametrize("us", [0.0, -1.0, math.nan, math.inf])
def test_a_time_is_more_than_nothing(path, field, us):
    """Whoever takes a logarithm of it can; neither made nor read otherwise."""
    value = (1.0, us) if field == "values" else us
    with pytest.raises(ValueError, match="a time: expected more than 0 us, and finite, got"):
        replace(TIMES.cold, **{field: value})
    forged = json.loads(make_row().to_json())
    forged["times"]["cold"][field] = value
    path.parent.mkdir()
    path.write_text(json.dumps(forged) + "\n")
    with pytest.raises(records.RecordError, match=r"records\.jsonl:1: not a record: a time: exp"):
        records.read([path])


def test_what_a_row_need_not_say(path):
    """Fields that have a default may be absent, those of its times, too."""
    raw = json.loads(make_row(errors={}).to_json())
    del raw["errors"], raw["times"]["host"], raw["times"]["cold"]["values"]
    path.parent.mkdir()
    path.write_text(json.dumps(raw) + "\n")
    assert records.read([path]) == [make_row(errors={})]
