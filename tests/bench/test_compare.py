"""OLD against NEW: each case, its exit code, and how often verdicts are wrong."""

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mamba3_bench.bench import records
from mamba3_bench.bench.cli import main
from mamba3_bench.bench.compare import CASES, EXIT, NOTHING, Asked, compare
from mamba3_bench.bench.records import Row, Samples, Times
from mamba3_bench.bench.selftest import slower
from mamba3_bench.bench.sides import NoRecords, load
from mamba3_bench.bench.timing import summarise
from mamba3_bench.reports import comparison

PROBLEM = {
    "op": "decode", "B": 3, "L": 1, "H": 2, "P": 64, "N": 16, "dtype": "bfloat16",
    "state_dtype": "float32", "has_state": True, "lengths": None,
}  # fmt: skip
GPU = {"gpu": "a GPU", "driver": "1", "packages": {"torch": "2"}, "commit": "abc"}


def samples(us, spread=0.001, count=100):
    """Samples around a median, spread evenly: the same every time."""
    return summarise([us * (1 + spread * math.sin(2.4 * i)) for i in range(count)])


def row(us=None, *, clock=1980.0, status="ok", reason=None, device="cuda", warm=None, **fields):
    """A row with a cold time, or without any."""
    times = None
    if us or warm:
        times = Times(
            device,
            samples(us) if us else None,
            samples(warm) if warm else None,
            samples(20.0),
            clock,
        )
    if reason is None:
        reason = "" if status == "ok" else "because"
    usual = {
        "key": "k", "op": "decode", "backend": "triton", "status": status, "reason": reason,
        "problem": PROBLEM, "config": {"warps": 4}, "seed": 0, "bytes": 1, "flops": 1,
        "environment": GPU, "times": times,
    }  # fmt: skip
    return Row(**{**usual, **fields})


def only(old, new, **asked):
    """The one line of a comparison of some rows."""
    (line,) = compare([old], [new], Asked(**asked)).lines
    return line


@pytest.mark.parametrize(
    ("new", "case"),
    [(100.0, "same"), (100.5, "same"), (102.5, "slower"), (140.0, "slower"), (97.0, "faster"),
     (101.0, "cannot tell"), (98.5, "cannot tell")],
)  # fmt: skip
def test_verdict(new, case):
    """0.5 % a process is 1.4 % either way: 2.5 differs, 0.5 is surely less than 2, 1 is open."""
    line = only([row(100.0)], [row(new)])
    assert line.case == case
    assert line.effect.ratio == pytest.approx(new / 100, rel=1e-3)
    assert line.effect.low < line.effect.ratio < line.effect.high


def test_more_shapes_need_more_evidence():
    """The confidence is that of the whole comparison: among a hundred shapes, 2 % can be chance."""
    problems = [PROBLEM | {"B": b} for b in range(100)]
    old = [row(100.0, problem=p) for p in problems]
    new = [row(102.2, problem=p) for p in problems]
    assert only(old[:1], new[:1]).case == "slower"
    assert {line.case for line in compare([old], [new]).lines} == {"cannot tell"}


def test_machines_are_compared_each_with_itself():
    """Where the sides have one in common: its slowdown is not lost among the other's times."""
    other = GPU | {"gpu": "another GPU"}
    old = [row(100.0), row(130.0, environment=other)]
    new = [row(105.0), row(136.5, environment=other)]
    found = compare([old], [new])
    assert [line.case for line in found.lines] == ["slower", "slower"]
    assert [line.machine for line in found.lines] == ["a GPU", "another GPU"]
    missing = compare([old], [new[:1]])
    assert [line.case for line in missing.lines] == ["slower", "not measured"]
    assert "on another GPU" in comparison.as_markdown(missing)
    elsewhere = only(old[:1], new[1:])
    assert (elsewhere.case, elsewhere.machine) == ("slower", "")


def test_clocks_widen_the_interval_to_the_ratio_of_cycles():
    """5 % slower at a clock that is 5 % lower may be the clock alone; 12 % is not."""
    line = only([row(100.0, clock=1980.0)], [row(105.0, clock=1881.0)])
    assert line.case == "cannot tell"
    assert (line.effect.old_mhz, line.effect.new_mhz) == (1980.0, 1881.0)
    assert line.effect.low < 1.0 < 1.05 < line.effect.high
    assert only([row(100.0, clock=1980.0)], [row(112.0, clock=1881.0)]).case == "slower"


def test_a_lower_clock_does_not_pass_as_the_same():
    """Equal times at clocks 5 % apart are not called the same: the cycles are fewer."""
    assert only([row(100.0, clock=1980.0)], [row(100.0, clock=1881.0)]).case == "cannot tell"


def test_a_host_time_has_no_clock():
    """The SM clock does not move it."""
    line = only([row(100.0)], [row(100.0, clock=990.0)], kind="host")
    assert (line.case, line.effect.kind, line.effect.old_mhz) == ("same", "host", None)


@pytest.mark.parametrize(
    ("new", "case", "reason"),
    [
        ([row(status="wrong", reason="y is off")], "wrong", "y is off"),
        ([row(100.0), row(status="wrong", repeat=1)], "wrong", "because"),
        ([], "not measured", "no row in NEW"),
        ([row(status="skipped")], "not measured", "skipped: because"),
        ([row(status="timeout")], "not measured", "timeout: because"),
        ([row(100.0), row(status="run-failed", repeat=1)], "not measured",
         "1 of 2 processes: run-failed: because"),
        ([row(reason="cannot be captured")], "not measured", "cannot be captured"),
    ],
)  # fmt: skip
def test_a_shape_that_stopped_working(new, case, reason):
    """It is a failure with its reason, not a shape less."""
    other = row(5.0, problem=PROBLEM | {"B": 9})
    found = compare([[row(100.0), other]], [[*new, other]])
    assert [(line.case, line.reason) for line in found.lines] == [(case, reason), ("same", "")]


def test_what_never_worked_is_no_failure():
    """A shape that OLD refused has no verdict; what NEW alone has is counted; wrong is wrong."""
    refused = row(status="skipped")
    assert compare([[refused]], [[refused]]).lines == []
    found = compare([[refused]], [[row(100.0)]])
    assert (found.lines, found.added) == ([], 1)
    assert only([row(status="wrong")], [row(status="wrong")]).case == "wrong"
    found = compare([[row()]], [[row()]])
    assert (found.lines, found.untimed) == ([], 1)


def test_warm_where_one_side_has_no_cold():
    """Like is compared with like."""
    line = only([row(100.0, warm=50.0)], [row(warm=50.0)])
    assert (line.case, line.effect.kind) == ("same", "warm")
    assert only([row(100.0, warm=50.0)], [row(warm=50.0)], kind="cold").case == "not measured"
    line = only([row(100.0)], [row(100.0, device="cpu")])
    assert (line.case, line.reason) == ("not measured", "OLD is a cuda time, NEW a cpu time")


def test_the_fastest_config_stands_for_a_backend():
    """A new default is compared with the old one, and said; by config, one that is gone is gone."""
    old = [row(100.0, config={"warps": 4}), row(120.0, config={"warps": 8})]
    new = [row(110.0, config={"warps": 2})]
    line = only(old, new)
    assert (line.case, line.reason) == ("slower", "config warps=4 -> warps=2")
    found = compare([old], [new], Asked(by_config=True))
    assert [line.case for line in found.lines] == ["not measured"] * 2
    assert found.added == 1


@pytest.mark.parametrize("config", [{"warps": 4}, {}], ids=["known", "unknown"])
def test_a_failure_of_the_fastest_config_counts(config):
    """One process of three died: not two good ones. A slower config's failure is its own."""
    new = [row(100.0, config={"warps": 4}, repeat=i) for i in range(2)]
    new.append(row(120.0, config={"warps": 8}))
    died = row(status="timeout", config=config, repeat=2)
    line = only(new, [*new[:1], died, *new[1:]])
    assert (line.case, line.reason) == ("not measured", "1 of 3 processes: timeout: because")
    line = only(new, [*new, row(status="timeout", config={"warps": 8}, repeat=1)])
    assert (line.case, line.effect.processes) == ("same", (2, 2))


def test_a_field_that_one_side_does_not_know():
    """Records from before a field of problems existed still match, if it has one value."""
    newer = [PROBLEM | {"family": "mamba3", "B": b} for b in (3, 4)]
    new = [row(100.0, problem=problem) for problem in newer]
    assert only([row(100.0)], new[:1]).case == "same"
    two = [new[0], row(100.0, problem=newer[1] | {"family": "mamba2"})]
    assert only([row(100.0)], two).case == "not measured"


def test_what_differs_between_the_sides_is_said():
    """Driver, packages, commit: with both values."""
    other = GPU | {"driver": "2", "packages": {"torch": "3", "triton": "1"}}
    found = compare([[row(1.0)]], [[row(1.0, environment=other)]])
    assert found.differing == {"driver": ("1", "2"), "torch": ("2", "3"), "triton": ("none", "1")}


def noisy(rng, between, shapes, processes, ratio=1.0):
    """Runs of one side: every process has an error of its own, that its samples do not show."""

    def one(b):
        us = ratio * 10.0 * b * math.exp(rng.normal(0, between))
        values = tuple(us * (1 + 0.001 * (-1) ** i) for i in range(8))
        times = Times("cuda", Samples(us, 0.999 * us, 1.001 * us, 8, 0, values), None)
        return row(problem=PROBLEM | {"B": b}, times=times)

    return [[one(b) for b in range(1, shapes + 1)] for _ in range(processes)]


@pytest.mark.parametrize(
    ("ratio", "threshold", "case", "at_least"),
    [(1.0, 0.02, "same", 0.95), (1.01, 0.02, "slower", 0.0), (1.01, 0.005, "slower", 0.55),
     (1.03, 0.02, "slower", 0.95), (1 / 1.03, 0.02, "faster", 0.95)],
)  # fmt: skip
def test_error_rates_with_repeats(ratio, threshold, case, at_least, seed):
    """Three processes a side, 0.3 % between them, ten shapes: planted differences are found; 1 %,
    four standard errors, in more than half of them, by intervals that hold for all ten together.

    False differences, in the wrong direction or where there is none, come in at most 5 % of whole
    comparisons (and three standard errors of 60 of them).
    """
    rng = np.random.default_rng(seed)
    trials, shapes, hits, false = 60, 10, 0, 0
    for _ in range(trials):
        old = noisy(rng, 0.003, shapes, 3)
        found = compare(old, noisy(rng, 0.003, shapes, 3, ratio), Asked(threshold=threshold))
        cases = [line.case for line in found.lines]
        hits += cases.count(case)
        wrong = {"faster", "slower"} - ({case} if ratio != 1 else set())
        false += any(one in wrong for one in cases)
    assert hits / (trials * shapes) >= at_least
    assert false / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    if (ratio, threshold) == (1.01, 0.02):  # less than what is asked for is not reported
        assert hits / (trials * shapes) <= 0.05


RECORDED = Path(__file__).with_name("data") / "h100-two-processes.jsonl"


@pytest.mark.parametrize("threshold", [0.02, 0.005])
@pytest.mark.parametrize(
    ("ratio", "case"),
    [(1.0, None), (1.01, None), (1 / 1.01, None), (1.03, "slower"), (1 / 1.03, "faster")],
)
def test_planted_differences_in_recorded_data(ratio, case, threshold):
    """Eight shapes on an H100, each in two processes: one is OLD, the other NEW times a ratio.

    Without repeats the scatter is assumed. 3 % is found in all but one shape, whose processes ran
    at clocks 0.8 % apart; of 1 % that shape alone may be called different, and none the wrong way.
    """
    processes = {0: [], 1: []}
    for one in records.read([RECORDED]):
        processes[one.repeat].append(one)
    new = [slower(one, ratio - 1) for one in processes[1]]
    lines = compare([processes[0]], [new], Asked(threshold=threshold)).lines
    cases = [line.case for line in lines]
    assert len(cases) == 8
    wrong_way = "faster" if ratio > 1 else "slower"
    assert ratio == 1 or wrong_way not in cases
    if case:
        assert cases.count(case) >= 7
    else:
        assert cases.count("slower") + cases.count("faster") <= (ratio != 1)


@pytest.fixture
def folder(tmp_path):
    """A function that writes sides and returns the arguments that name them."""

    def write(old, new):
        for name, rows in (("old", old), ("new", new)):
            (tmp_path / name / "deep").mkdir(parents=True)
            (tmp_path / name / "deep" / "records.jsonl").touch()
            for i, one in enumerate(rows):
                records.append(tmp_path / name / "deep" / "records.jsonl", replace(one, key=f"{i}"))
        return [str(tmp_path / "old"), str(tmp_path / "new")]

    return write


ROWS = {
    "same": ([row(100.0)], [row(100.0)]),
    "faster": ([row(100.0)], [row(50.0)]),
    "cannot tell": ([row(100.0)], [row(101.5)]),
    "slower": ([row(100.0)], [row(150.0)]),
    "not measured": ([row(100.0)], [row(status="run-failed")]),
    "wrong": ([row(100.0)], [row(status="wrong")]),
}


@pytest.mark.parametrize("case", CASES)
def test_exit_codes(case, folder, capsys, tmp_path):
    """Each case has its own; those that pass end with 0 unless told otherwise."""
    sides = folder(*ROWS[case])
    code = main(["compare", *sides, "--pass", "none", "--json", str(tmp_path / "out.json")])
    assert code == EXIT[case]
    assert f"1 shapes, NEW against OLD: 1 {case}." in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["exit"] == code
    failing = ("slower", "not measured", "wrong")
    assert main(["compare", *sides]) == (EXIT[case] if case in failing else 0)
    assert main(["compare", *sides, "--pass", case.replace(" ", "-")]) == 0


def test_what_a_plugin_registered_may_be_asked_for(folder, capsys):
    """Its names are known from the records alone."""
    plugin = {"op": "mine.decode", "backend": "mine"}
    sides = folder([row(100.0), row(100.0, **plugin)], [row(100.0), row(50.0, **plugin)])
    line = ["compare", *sides, "--op", "mine.decode", "--backend", "mine,cute", "--pass", "none"]
    assert main(line) == EXIT["faster"]


def test_the_worst_case_decides(folder, capsys):
    """A hundred shapes that are faster do not outweigh one that fails."""
    b = {"problem": PROBLEM | {"B": 9}}
    sides = folder([row(100.0), row(100.0, **b)], [row(50.0), row(150.0, **b)])
    assert main(["compare", *sides]) == EXIT["slower"]
    assert main(["compare", *sides, "--pass", "slower", "--threshold", "1%"]) == EXIT["faster"]


def test_nothing_in_common(folder, capsys):
    """Neither pass nor verdict."""
    sides = folder([row(100.0)], [row(100.0)])
    assert main(["compare", *sides, "--backend", "cute"]) == NOTHING
    assert "Nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--threshold", "2"], "expected a share such as 2% or 0.02, got '2'"),
        (["--pass", "fine"], "--pass: expected words out of same, faster, cannot-tell"),
        (["--time", "hot"], "invalid choice: 'hot'"),
        (["--backend", "triton,bogus"], "--backend: expected words out of tilelang, triton, "),
        (["--op", "bogus"], "--op: expected words out of prefill, decode"),
        (["--op="], "got ''"),
        (["--json", "-", "--markdown", "-"], "--markdown, --json: stdout takes one of them"),
    ],
)
def test_bad_arguments(more, says, folder, capsys):
    """Exit code 2, and what there is."""
    sides = folder([row(100.0)], [row(100.0)])
    with pytest.raises(SystemExit) as end:
        main(["compare", *sides, *more])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_a_side_without_records(tmp_path, capsys):
    """A folder without any, or a path that is not there, is a bad argument, named."""
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path), str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert f"no records in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(NoRecords):
        load(tmp_path / "nowhere")


def test_runs_of_one_folder_are_repeats(folder, tmp_path):
    """Equal keys in two files are two measurements; in one file the last counts."""
    folder([row(100.0)], [row(100.0)])
    other = tmp_path / "old" / "again.jsonl"
    for us in (200.0, 104.0):
        records.append(other, replace(row(us), key="0"))
    runs = load(tmp_path / "old")
    assert [len(run) for run in runs] == [1, 1]
    (line,) = compare(runs, load(tmp_path / "new")).lines
    assert line.effect.processes == (2, 1)
    assert line.effect.old_us == pytest.approx(math.sqrt(100 * 104), rel=1e-3)


def test_of_an_earlier_source_nothing_counts(folder):
    """Nor what was compiled alone: a file that goes on after a change has the kernel as it is."""
    wrong = {"errors": {"y": records.Error(math.nan, 1.0, math.nan, 1.0)}, "status": "wrong"}
    new = [
        row(key="1", source="before", **wrong),
        row(100.0, key="2", source="after"),
        row(key="3", source="after", status="skipped", kind="resources"),
    ]
    old, new = folder([row(100.0)], new)
    (line,) = compare(load(Path(old)), load(Path(new))).lines
    assert (line.case, line.effect.processes) == ("same", (1, 1))


def test_one_process_is_one_point():
    """What it measured twice, beside others each time, tells nothing of other processes."""
    at = {"environment": GPU | {"date": "2026-01-01T00:00:00+00:00"}}
    old = [row(us, key=key, **at) for us, key in ((100.0, "1"), (108.0, "2"))]
    (line,) = compare([old], [[row(100.0)]]).lines
    assert line.effect.processes == (1, 1)
    assert line.effect.old_us == pytest.approx(math.sqrt(100 * 108), rel=1e-3)


def test_copies_are_no_repeats(folder, tmp_path, capsys):
    """A packed and a renamed copy change no verdict and no interval, and are said."""
    problems = [PROBLEM | {"B": b} for b in range(4, 12)]
    bad = {"errors": {"y": records.Error(math.nan, 1.0, math.nan, 1.0)}}
    sides = folder(
        [row(100.0, problem=p) for p in problems],
        [*(row(101.5, problem=p) for p in problems), row(status="wrong", **bad)],
    )
    once, to = compare(*map(load, map(Path, sides))), tmp_path / "to.json"
    for side in sides:
        file = Path(side) / "deep" / "records.jsonl"
        (file.parent / "records.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
        shutil.copy(file, Path(side) / "again.jsonl")
    assert main(["compare", *sides, "--json", str(to)]) == EXIT["wrong"]
    assert "34 rows are copies of others of their side" in capsys.readouterr().out
    found = json.loads(to.read_text())
    assert found["copies"] == 34
    assert found["counts"] == once.counts == {"wrong": 1, "cannot tell": 8}
    effects = [line["effect"] for line in found["lines"] if line["effect"]]
    assert {tuple(effect["processes"]) for effect in effects} == {(1, 1)}
    assert not found["noise"]["cuda"]["measured"]
    assert once.copies == 0
