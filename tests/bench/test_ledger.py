"""The plan of a run: what is done again, and what is left as it is recorded."""

import gzip
from dataclasses import replace

import pytest

from mamba3_bench.bench import records
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.jobs import Entry, Job, Settings
from mamba3_bench.bench.keys import key
from mamba3_bench.bench.ledger import Ledger
from mamba3_bench.bench.records import Times
from mamba3_bench.bench.rows import blank_row
from mamba3_bench.bench.timing import summarise

BACKENDS = ("torch", "reference", "triton")
ENVIRONMENT = {"device": "cpu"}


@pytest.fixture
def path(tmp_path):
    """The record file."""
    return tmp_path / "records.jsonl"


@pytest.fixture
def planned(path, silent):
    """Backends that are to run again, of one job whose rows have these statuses; None: no row."""

    def plan(kind, statuses, *, retry=False):
        (problem,) = problems(Axes())
        settings = Settings(kind)
        job = Job(tuple(Entry(problem, backend) for backend in BACKENDS))
        for entry, status in zip(job.entries, statuses, strict=True):
            if status is not None:
                entry = replace(entry, key=key(entry, settings, ENVIRONMENT))
                row = blank_row(entry, settings, ENVIRONMENT, job.match)
                reason = "" if status == "ok" else "for this test"
                records.append(path, replace(row, status=status, reason=reason))
        queue = Ledger(settings, path, silent, retry=retry).plan([job], ENVIRONMENT)
        return [entry.backend for job in queue for entry in job.entries]

    return plan


@pytest.mark.parametrize(
    ("kind", "statuses", "again"),
    [
        ("sweep", ("ok", "ok", "ok"), ()),
        ("sweep", ("ok", "ok", None), BACKENDS),  # timed in the same turns
        ("sweep", ("ok", "timeout", None), ("torch", "triton")),  # what failed is left alone
        ("sweep", ("ok", "timeout", "ok"), ()),
        ("sweep", ("wrong", "throttled", "ok"), ("reference", "triton")),
        ("check", ("ok", "ok", None), ("triton",)),  # not timed: one by one
        ("tune", ("ok", "ok", None), ("triton",)),  # a race goes on with those left
    ],
)
def test_what_runs_again(planned, kind, statuses, again):
    """A contest is whole or done again; what was too hot for a time is tried again by itself."""
    assert planned(kind, statuses) == list(again)


def test_what_is_left_of_a_job_keeps_its_match(path, silent):
    """One has failed already: the others are the same contest as in a run that was not cut off."""
    (problem,) = problems(Axes())
    settings, job = Settings("sweep"), Job(tuple(Entry(problem, name) for name in BACKENDS))
    entry = replace(job.entries[0], key=key(job.entries[0], settings, ENVIRONMENT))
    failed = blank_row(entry, settings, ENVIRONMENT, job.match)
    records.append(path, replace(failed, status="timeout", reason="for this test"))
    (left,) = Ledger(settings, path, silent).plan([job], ENVIRONMENT)
    assert len(left.entries) == len(BACKENDS) - 1
    assert left.match == job.match


def test_a_second_contest_leaves_the_first(path, silent):
    """One of three meets another: it gets a row more there, and neither is timed a third time."""
    (problem,) = problems(Axes())
    settings = Settings("sweep")
    first, second = (
        Job(tuple(Entry(problem, name) for name in names))
        for names in (BACKENDS, (BACKENDS[0], "tilelang"))
    )
    plan = Ledger(settings, path, silent).plan
    for job, length in ((first, 3), (second, 2)):
        (left,) = plan([job], ENVIRONMENT)
        assert len(left.entries) == length
        for entry in left.entries:
            row = blank_row(entry, settings, ENVIRONMENT, left.match)
            times = Times("cpu", None, summarise([9.0] * 8))
            records.append(path, replace(row, status="ok", reason="", times=times))
    assert [len(plan([job], ENVIRONMENT)) for job in (first, second, first)] == [0, 0, 0]
    rows = records.read([path])
    assert len({row.key for row in rows}) == len(rows) == 5
    alone = Job((Entry(problem, BACKENDS[0]),))
    assert not plan([alone], ENVIRONMENT)


def test_who_was_timed_alone_is_timed_again_beside_others(path, silent):
    """Repeats of one that met nobody are no contest: it keeps its rows' keys."""
    (problem,) = problems(Axes())
    settings = Settings("sweep")
    plan = Ledger(settings, path, silent).plan
    repeats = [Job((Entry(problem, BACKENDS[0], repeat=i),)) for i in range(2)]
    keys = set()
    for left in plan(repeats, ENVIRONMENT):
        row = blank_row(left.entries[0], settings, ENVIRONMENT, left.match)
        times = Times("cpu", None, summarise([9.0] * 8))
        records.append(path, replace(row, status="ok", reason="", times=times))
        keys.add(row.key)
    (left,) = plan([Job(tuple(Entry(problem, name) for name in BACKENDS))], ENVIRONMENT)
    assert len(left.entries) == len(BACKENDS)
    assert left.entries[0].key in keys


def test_times_of_two_workers_are_no_contest(path, silent):
    """One of three was timed again and the run then ended: all are timed once more, together."""
    (problem,) = problems(Axes())
    settings, job = Settings("sweep"), Job(tuple(Entry(problem, name) for name in BACKENDS))
    plan = Ledger(settings, path, silent).plan
    for date, again in (("day 1", BACKENDS), ("day 2", BACKENDS[:1])):
        for entry in job.entries:
            if entry.backend in again:
                entry = replace(entry, key=key(entry, settings, ENVIRONMENT))
                row = blank_row(entry, settings, ENVIRONMENT | {"date": date}, job.match)
                times = Times("cpu", None, summarise([9.0] * 8))
                records.append(path, replace(row, status="ok", reason="", times=times))
        left = [entry.backend for one in plan([job], ENVIRONMENT) for entry in one.entries]
        assert left == ([] if date == "day 1" else list(BACKENDS))


def test_packed_records_are_recorded(planned, path):
    """What was packed in its folder is not measured again."""
    assert planned("sweep", ("ok", "ok", "ok")) == []
    packed = path.with_name("records.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert planned("sweep", (None, None, None)) == []
    packed.unlink()
    assert planned("sweep", (None, None, None)) == list(BACKENDS)


def test_who_meets_others_twice_has_two_rows(path, silent):
    """One shape of torch beside each of two of Triton: no contest loses it, nor a resumed run."""
    ranks = [problems(Axes(op="decode", rank=(R,)))[0] for R in (1, 4)]
    jobs = [Job((Entry(ranks[0], "torch"), Entry(one, "triton"))) for one in ranks]
    settings = Settings("sweep")
    queue = Ledger(settings, path, silent).plan(jobs, ENVIRONMENT)
    entries = [entry for job in queue for entry in job.entries]
    assert len({entry.key for entry in entries}) == 4
    for job in list(queue)[:1]:
        for entry in job.entries:
            row = blank_row(entry, settings, ENVIRONMENT, job.match)
            records.append(path, replace(row, status="ok", reason=""))
    (left,) = Ledger(settings, path, silent).plan(jobs, ENVIRONMENT)
    assert [entry.backend for entry in left.entries] == ["torch", "triton"]


def test_retry_takes_what_failed(planned, path):
    """With those whom it is timed beside; what was wrong stays so."""
    for statuses, again in (
        (("ok", "run-failed", "skipped"), ["torch", "reference"]),
        (("ok", "wrong", "skipped"), []),
    ):
        path.unlink(missing_ok=True)
        assert planned("sweep", statuses, retry=True) == again
