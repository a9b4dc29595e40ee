"""What is decided from the rows of a tuning: winners, ties, limits, edges."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mamba3_bench.bench import export, records, shipping, tune
from mamba3_bench.bench.fields import decide, read
from mamba3_bench.bench.race import UNDECIDED
from mamba3_bench.reports import tuning

spec = importlib.util.spec_from_file_location("tunings", Path(__file__).with_name("tunings.py"))
tunings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tunings)
candidate = tunings.candidate


@pytest.fixture
def numbers(seed):
    return np.random.default_rng(seed)


def decided(*candidates):
    """The decision of one field."""
    (one,) = decide(read([row for rows in candidates for row in rows]))
    return one


def kernel(shared=1000, registers=100, spills=0, threads=128):
    return {"kernel": "k", "shared": shared, "registers": registers, "spills": spills,
            "threads": threads}  # fmt: skip


def test_the_faster_wins_with_its_margin(numbers):
    """10 % beyond doubt; the interval holds the truth, and the third is told apart."""
    one = decided(candidate(0, 100, numbers), candidate(1, 90, numbers), candidate(2, 95, numbers))
    assert one.winner.index == 1
    assert one.margin.low < 0.9 < one.margin.high < 0.95
    assert [tie.index for tie in one.ties] == [1]
    assert one.us(one.winner) == pytest.approx(90, rel=0.01)


def test_the_default_wins_ties(numbers):
    """What cannot be told apart from the fastest is reported; the default is taken."""
    one = decided(candidate(0, 100, numbers), candidate(1, 99.9, numbers))
    assert one.winner.index == 0
    assert {tie.index for tie in one.ties} == {0, 1}


def test_of_equals_the_cheapest_wins(numbers):
    """Not the default: then shared memory decides, before the order of the space."""
    one = decided(
        candidate(0, 120, numbers, resources=[kernel()]),
        candidate(1, 100, numbers, resources=[kernel(shared=9000)]),
        candidate(2, 100, numbers, resources=[kernel(shared=500)]),
    )
    assert one.winner.index == 2
    assert {tie.index for tie in one.ties} == {1, 2}


def test_a_tie_that_does_not_beat_the_default_does_not_win(numbers):
    """The default is slower than the fastest; a cheap third ties with both, for its processes
    scatter too much: it may be slower than the default."""
    shares = (0.97, 1.012, 1.02)
    noisy = candidate(2, 100, numbers, resources=[kernel(shared=500)], confirm=3)
    noisy = [
        replace(row, times=tunings.times(100 * shares[row.repeat - 1], numbers))
        if row.kind == "sweep"
        else row
        for row in noisy
    ]
    steady = [
        candidate(index, us, numbers, at, resources=[kernel(shared=9000)], confirm=3)
        for at in (None, *(tunings.problem(B=B) for B in (1, 2, 4, 16, 32)))
        for index, us in ((0, 100), (1, 98.5))
    ]
    decisions = decide(read([row for rows in (noisy, *steady) for row in rows]))
    one = next(one for one in decisions if len(one.field.candidates) == 3)
    assert {tie.index for tie in one.ties} == {1, 2}
    assert one.over_default(one.field.candidates[2]).high > 1
    assert one.winner.index == 1


def test_wrong_in_its_last_row_is_no_winner(numbers):
    """Right in the race, and wrong in one of the confirming processes."""
    fast = candidate(1, 50, numbers)
    at, config, names = tunings.problem(), fast[0].config, fast[0].place["names"]
    fast[-1] = tunings.row(at, config, 1, 3, names, "sweep", 2, status="wrong", reason="planted")
    one = decided(candidate(0, 100, numbers), fast)
    assert one.winner.index == 0
    assert one.field.counts == {"correct": 1, "correctness": 1}


OLD, NEW = ({"date": f"2026-{month}-01T00:00:00+00:00"} for month in ("10", "12"))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "change",
    [{}, {"key": "of another gate"}, {"key": "of another seed", "seed": 1}],
    ids=["tried again", "judged anew", "another seed"],
)
@pytest.mark.parametrize("date", [OLD, NEW], ids=["before", "after"])
def test_wrong_once_is_wrong(numbers, date, change, turned):
    """Whatever found it right before or after, in whatever order the files are named."""
    fast = candidate(1, 50, numbers)
    wrong = replace(
        fast[0],
        status="wrong",
        reason="planted",
        times=None,
        environment=tunings.ENVIRONMENT | date,
        **change,
    )
    parts = [candidate(0, 100, numbers) + fast, [wrong]]
    one = decided(*(reversed(parts) if turned else parts))
    assert one.winner.index == 0
    assert one.field.counts == {"correct": 1, "correctness": 1}


def test_a_tuning_takes_what_was_caught_before(numbers, tmp_path):
    """Rows of the record that another run made, by whatever key, of the problems tuned alone."""
    path = tmp_path / "records.jsonl"
    here, elsewhere = tunings.problem(), tunings.problem(B=4)
    for at in (here, elsewhere):
        for rows in (
            candidate(0, 100, numbers, at, seed=1),
            candidate(1, 1, numbers, at, status="wrong", seed=1),
        ):
            for row in rows:
                records.append(path, row)
    found = tune.caught(records.read([path]), candidate(0, 100, numbers, here))
    assert [(row.status, row.problem["B"]) for row in found] == [("wrong", 8)]
    assert tune.caught([], found) == []


def test_what_another_compiler_says_does_not_count(numbers):
    """A config that an older one could not compile wins with this one."""
    fast = candidate(1, 50, numbers)
    old = tunings.ENVIRONMENT | OLD | {"ptxas": "12.4"}
    failed = replace(
        fast[0],
        kind="resources",
        key="old",
        status="compile-failed",
        reason="no",
        times=None,
        environment=old,
    )
    for parts in ([fast, [failed]], [[failed], fast]):
        assert decided(candidate(0, 100, numbers), *parts).winner.index == 1


@pytest.mark.parametrize("there", [False, True])
def test_without_a_run_of_the_default_there_is_no_winner(numbers, there):
    """What would it be faster than? Too hot for a time, the default is still to be run."""
    hot = replace(candidate(0, 100, numbers)[0], status="throttled", reason="hot", times=None)
    one = decided([hot] if there else [], candidate(1, 50, numbers))
    assert one.winner is None
    assert one.why_none == "the default was not run: tune it again"
    assert shipping.files([one]) == {}


def test_no_right_candidate_no_winner(numbers):
    """Nothing is shipped then."""
    one = decided(
        candidate(0, 1, numbers, status="wrong"), candidate(1, 1, numbers, status="wrong")
    )
    assert one.winner is one.margin is one.best is None


def test_without_its_default_a_field_is_decided(numbers):
    """The default does not run here: the fastest wins, with no margin."""
    one = decided(
        candidate(0, 1, numbers, status="run-failed"),
        candidate(1, 80, numbers),
        candidate(2, 90, numbers),
    )
    assert (one.winner.index, one.margin) == (1, None)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        (kernel(shared=232449), "232449 bytes of shared memory, the GPU allows a block 232448"),
        (kernel(registers=129, threads=512), "129 registers in each of 512 threads"),
    ],
)
def test_limits_of_the_device(numbers, resources, says):
    """What exceeds one is left out with both numbers; one within them is not."""
    one = decided(
        candidate(0, 100, numbers, resources=[kernel(shared=232448, registers=128, threads=512)]),
        candidate(1, 1, numbers, resources=[kernel(), resources]),
    )
    assert one.winner.index == 0
    out = one.field.candidates[1]
    assert out.outcome == "constraints"
    assert says in out.reason


def test_edges_of_the_space(numbers):
    """The highest of three values is an edge; one of two, or in the middle, is none."""
    one = decided(*(candidate(i, 100 - 10 * i, numbers) for i in range(3)))
    assert one.edges(one.winner) == ["chunk = 128 is the highest tried"]
    assert one.edges(one.field.candidates[1]) == []


def test_edges_are_those_of_the_rules(numbers):
    """What a rule comes to at this shape has no order: fewer blocks an SM are longer segments."""
    names = [("default",), ("fill=0",), ("fill=1", "fill=2"), ("fill=3",), ("registers=-8",)]
    segments = [512, 0, 4096, 1024, 2048]
    one = decided(
        *(
            candidate(i, 100 - 10 * (i == 2), numbers, config={"segment": segment}, names=name)
            for i, (name, segment) in enumerate(zip(names, segments, strict=True))
        )
    )
    assert one.winner.index == 2
    assert one.edges(one.winner) == []
    assert one.edges(one.field.candidates[3]) == ["fill = 3 is the highest tried"]
    assert one.edges(one.field.candidates[1]) == []  # no cut at all: nobody cuts less


def test_what_a_rule_within_the_space_comes_to_is_no_edge(numbers):
    """Where two blocks an SM are all that can be had, four are the same cut."""
    names = [("default", "fill=2", "fill=4"), ("fill=0",), ("fill=1",)]
    one = decided(
        *(
            candidate(i, 100 + 10 * i, numbers, config={"segment": 512 * i}, names=name)
            for i, name in enumerate(names)
        )
    )
    assert one.winner.index == 0
    assert one.edges(one.winner) == []


def test_a_field_for_each_gpu(numbers):
    """The winner of one is not that of another, whatever the order of the records."""
    other = tunings.ENVIRONMENT | {"gpu": "NVIDIA H200"}
    rows = [
        *candidate(0, 100, numbers),
        *candidate(1, 90, numbers),
        *(
            replace(row, key=f"h200 {row.key}", environment=other)
            for rows in (candidate(0, 50, numbers), candidate(1, 60, numbers))
            for row in rows
        ),
    ]
    for order in (rows, rows[::-1]):
        decisions = decide(read(order))
        found = {one.field.environment["gpu"]: one.winner.index for one in decisions}
        assert found == {tunings.GPU: 1, "NVIDIA H200": 0}
        rules = {name[0]: cover.rules for name, cover in shipping.covers(decisions).items()}
        assert rules == {tunings.GPU: ("chunk=64",), "NVIDIA H200": ("default",)}


def two_machines(rng):
    """One problem tuned on two machines: on a GPU the second is 5 % faster, on a CPU nothing is."""
    cpu = {"device": "cpu", "gpu": None}
    elsewhere = [*candidate(0, 900, rng), *candidate(1, 900, rng)]
    return [
        *candidate(0, 100, rng),
        *candidate(1, 95, rng),
        *(
            replace(row, key=f"cpu {row.key}", environment=tunings.ENVIRONMENT | cpu)
            for row in elsewhere
        ),
    ]


def test_the_scatter_of_one_machine_is_not_that_of_another(numbers):
    """A CPU, whose processes scatter more, takes no win from a GPU decided beside it."""
    rows = two_machines(numbers)
    alone = [row for row in rows if row.environment.get("gpu")]
    found = {one.field.machine: one for one in decide(read(rows))}
    (same,) = decide(read(alone))
    assert found["cuda", tunings.GPU].winner.index == same.winner.index == 1
    assert found["cuda", tunings.GPU].margin == same.margin


def test_machines_are_named_where_there_are_several(numbers):
    """In print, and as keys of the exported configs; of one GPU alone nothing is said."""
    rows = [replace(row, backend="triton") for row in two_machines(numbers)]
    decisions = decide(read(rows))
    names = shipping.names_of(decisions)
    assert [name.partition(" on ")[2] for name in names] == [tunings.GPU, "CPU (a cpu)"]
    assert " on " not in shipping.names_of(decisions[:1])[0]
    words = [shipping.words(name, decisions) for name in shipping.covers(decisions)]
    assert len(set(words)) == 2
    assert [text.partition(" on ")[2] for text in words] == [tunings.GPU, "a CPU"]
    keys = re.findall(r"^    \('(.+?)', 'prefill'", export.triton_source(decisions), re.MULTILINE)
    assert keys == [tunings.GPU, "CPU (a cpu)"]


def test_what_is_only_compiled_is_of_no_machine_yet(numbers):
    """A tuning that was ended before its second shape names no CPU, which did not run it either."""
    later = candidate(0, 100, numbers, tunings.problem(L=512), resources=[kernel()])[:1]
    cpu = tunings.ENVIRONMENT | {"device": "cpu", "gpu": None}
    rows = [*candidate(0, 100, numbers), replace(later[0], environment=cpu)]
    decisions = decide(read(rows))
    assert [one.field.machine[1] for one in decisions] == [tunings.GPU, ""]
    assert not any(" on " in name for name in shipping.names_of(decisions))


def test_figures_name_their_machine(numbers, tmp_path, monkeypatch):
    """A figure is looked at by itself: it says of which machine it is where there are several."""
    drawn = []

    def save(drawing, folder):
        drawn.append(" ".join(drawing.figure.get_suptitle().split()))
        return original(drawing, folder)

    original = tuning.save
    monkeypatch.setattr(tuning, "save", save)
    decisions = decide(read(two_machines(numbers)))
    tuning.write(decisions, tmp_path)
    assert [title.partition(" on ")[2] for title in drawn] == [tunings.GPU, "CPU (a cpu)"]


@pytest.mark.parametrize("older", [{"source": "other"}, {"seed": 1}, {"driver": "570.1"}], ids=str)
def test_rows_of_another_making_do_not_count(numbers, older):
    """An older kernel's win is not the new one's; how many rows are left out is told."""
    old = {"date": "2026-11-21T00:00:00+00:00"} | older
    changes = {k: v for k, v in old.items() if k in ("source", "seed")}
    environment = tunings.ENVIRONMENT | {k: v for k, v in old.items() if k not in changes}
    before = [
        replace(row, key=f"old {row.key}", environment=environment, **changes)
        for row in candidate(0, 100, numbers) + candidate(1, 50, numbers)
    ]
    one = decided(candidate(0, 100, numbers), candidate(1, 120, numbers), before)
    assert one.winner.index == 0
    assert one.us(one.winner) == pytest.approx(100, rel=0.01)
    assert one.field.superseded == len(before)


def test_a_file_has_one_toolchain_of_each_kernel(numbers):
    """The latest; what was tuned with another is left out, and that is said."""
    old = tunings.ENVIRONMENT | OLD | {"ptxas": "12.4"}
    before = [
        replace(row, environment=old)
        for index, us in ((0, 100), (1, 80))
        for row in candidate(index, us, numbers, tunings.problem(B=4))
    ]
    now = candidate(0, 100, numbers) + candidate(1, 80, numbers)
    kept, said = shipping.of_one_code(decide(read(before + now)))
    assert [one.field.problem["B"] for one in kept] == [8]
    assert said == [
        "triton prefill: shapes tuned with another ptxas than the latest are left out: 1"
    ]


def test_what_is_wrong_has_no_time_in_t4(numbers):
    """It was timed in the race and in one process, and found wrong in the other."""
    fast = candidate(1, 50, numbers)
    fast[-1] = replace(fast[-1], status="wrong", reason="planted", times=None)
    results = export.t4_results(decided(candidate(0, 100, numbers), fast))["results"]
    assert [bool(result["times"]["runtimes"]) for result in results] == [True, False]
    named = [[each["name"] for each in result["measurements"]] for result in results]
    assert [export.TIME in names for names in named] == [True, False]


def test_an_unfinished_confirmation_has_no_winner(numbers):
    """Neither without any process, nor if the fastest lacks one; nor is it shipped as a failure."""
    slow, fast = candidate(0, 100, numbers), candidate(1, 80, numbers)
    for rows in ([slow[:1], fast[:1]], [slow, fast[:-1]]):
        one = decided(*rows)
        assert one.winner is None
        assert "not confirmed yet" in one.why_none
        assert shipping.files([one]) == {}
    assert shipping.files([decided(slow, fast)])


def test_what_was_not_timed_together_is_not_paired(numbers):
    """Its samples meet no common turn: the ratio is that of the medians, of the scatter of both."""
    slow, fast = candidate(0, 100, numbers, confirm=1), candidate(1, 90, numbers, confirm=1)
    one = decided(slow, [replace(row, match="another job") for row in fast])
    both = decided(slow, fast)
    a, b = (rows[-1].times.cold for rows in (fast, slow))
    assert one.margin.ratio == pytest.approx(a.median / b.median)
    assert one.margin.ratio != both.margin.ratio


def test_the_undecided_are_counted(numbers):
    """They left the race because there were too many, not because they were slower."""
    one = decided(
        candidate(0, 100, numbers), candidate(1, 100, numbers, confirm=0, reason=UNDECIDED)
    )
    assert [each.index for each in one.undecided] == [1]
    assert one.winner.index == 0


def test_tunings_of_one_truth_agree():
    """Five of them, with near equals among the candidates: one winner, or sets that overlap."""
    sets, winners = [], []
    for seed in range(5):
        numbers = np.random.default_rng(seed)
        truth = (110, 100, 100.2, 103)
        one = decided(*(candidate(i, us, numbers, of=4) for i, us in enumerate(truth)))
        sets.append({tie.index for tie in one.ties})
        winners.append(one.winner.index)
    assert set(winners) <= {1, 2}
    assert all(a & b for a in sets for b in sets)
    assert all(3 not in ties for ties in sets)
