"""Side by side: which rows are paired, what their ratios and intervals are worth, what is shown."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.jobs import Entry, Job
from mamba3_bench.bench.records import Samples
from mamba3_bench.reports import contest
from mamba3_bench.reports.cited import MILLISECONDS, cited
from mamba3_bench.reports.main import write
from mamba3_bench.reports.versus import contests, label


def timed(values):
    """The samples of one rival, in turns."""
    q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return Samples(median, q1, q3, len(values), values=tuple(values))


@pytest.fixture
def row(make_row):
    """A row of a match, of any op, with its samples."""

    def make(op, backend, values, *, match="m", rival=False, repeat=0, status="ok", **axes):
        (problem,) = problems(Axes(op=op, **{"heads": (4,), "batch": (2,), **axes}))
        base = make_row(backend, status, cold=1.0 if values is not None else None)
        times = None if values is None else replace(base.times, cold=timed(values))
        plain = problem.as_dict()
        return replace(
            base, op=op, problem=plain, times=times, match=match, rival=rival, repeat=repeat
        )

    return make


def drifting(seed, factor=1.0, count=60):
    """Microseconds of a rival on a machine whose clock drifts by a tenth, with noise of 0.2 %."""
    generator = np.random.default_rng(seed)
    drift = 1 + 0.1 * np.sin(np.arange(count) / 9)
    return 50 * factor * drift * (1 + 0.002 * generator.standard_normal(count))


def test_ratio_of_turns_is_free_of_common_drift(row):
    """20 % apart, both drifting by 10 %: the interval is 0.5 % wide at most, and right."""
    ours = row("decode", "cute", drifting(0))
    theirs = row("mamba2.decode", "mamba_ssm", drifting(1, 1.2), rival=True)
    (found,) = contests([ours, theirs])
    assert found.measures == ("decode R1, cute",)
    (ratio,) = found.lines[1].ratios
    assert ratio.low < 1.2 < ratio.high
    assert ratio.high / ratio.low < 1.005
    assert found.lines[0].ratios == (None,)


def test_intervals_cover_as_often_as_they_say(row):
    """Equal rivals: 1 lies within about 95 % of the intervals; 5 misses of 40 have odds of 1 %."""
    misses = 0
    for seed in range(40):
        pair = [
            row("decode", "cute", drifting(2 * seed)),
            row("mamba2.decode", "mamba_ssm", drifting(2 * seed + 1), rival=True),
        ]
        (found,) = contests(pair)
        (ratio,) = next(line for line in found.lines if line.rival).ratios
        misses += not ratio.low <= 1 <= ratio.high
    assert misses <= 6


def noisy(row, generator, *, matches, processes, rivals):
    """Rivals 5 % behind ours; each has 0.5 % of its own in each process, 0.2 % in each turn."""
    rows = []
    for match in range(matches):
        for repeat in range(processes):
            for i in range(rivals + 1):
                log = 0.05 * (i > 0) + 0.005 * generator.standard_normal()
                values = 10 * np.exp(log + 0.002 * generator.standard_normal(40))
                known = {"match": f"m{match} of {processes}", "rival": i > 0, "repeat": repeat}
                rows.append(row("decode", f"rival{i}" if i else "cute", values, **known))
    return rows


@pytest.mark.parametrize(
    ("matches", "processes", "rivals"),
    [(1, 2, 1), (1, 3, 1), (1, 3, 4), (8, 2, 2)],
    ids=["two processes", "three processes", "a contest to pool", "contests to pool"],
)
def test_intervals_cover_what_differs_between_processes(row, matches, processes, rivals):
    """95 % of 160 intervals: 17 misses have odds of 0.2 %, or twice that where some go together.

    A bootstrap of three processes misses 20 %, of one 87 %.
    """
    generator = np.random.default_rng(processes + matches)
    misses = count = 0
    while count < 160:
        made = noisy(row, generator, matches=matches, processes=processes, rivals=rivals)
        for found in contests(made):
            for line in found.lines:
                if line.rival:
                    (ratio,) = line.ratios
                    misses += not ratio.low <= np.exp(0.05) <= ratio.high
                    count += 1
    assert misses <= 18
    assert found.processes == processes


def test_one_process_has_the_scatter_of_the_other_contests(row):
    """Three processes of one contest tell 0.7 %; the other's interval has it, and it is said."""
    generator = np.random.default_rng(0)
    rows = noisy(row, generator, matches=1, processes=3, rivals=4)
    rows += noisy(row, generator, matches=1, processes=1, rivals=1)
    several, single = contests(rows)
    assert (several.processes, single.processes) == (3, 1)
    (ratio,) = next(line for line in single.lines if line.rival).ratios
    assert 0.01 < np.log(ratio.high / ratio.low) / 2 < 0.03
    said = contest.scatter([several, single])
    assert said.startswith("What differs between processes is in the interval: typically 0.")
    assert contest.title(several).endswith("cold, 3 processes")
    assert contest.title(single).endswith("cold")


def test_of_one_process_alone_the_interval_says_what_it_lacks(row):
    """What differs between processes is not assumed; two turns have no interval at all."""
    ours, theirs = (row("decode", who, drifting(n), rival=n > 0) for n, who in enumerate("ab"))
    (found,) = contests([ours, theirs])
    assert "0.5 % on a GPU, is not in it" in contest.scatter([found])
    (found,) = contests(
        row("decode", who, drifting(n)[:2], rival=n > 0) for n, who in enumerate("ab")
    )
    (ratio,) = next(line for line in found.lines if line.rival).ratios
    assert ratio.low is ratio.high is None
    assert "to" not in contest.cells(found.lines[1])[4]


def made_by(row, source, date, **environment):
    """A row of another kernel, process or place."""
    return replace(row, source=source, environment=row.environment | {"date": date} | environment)


def test_another_kernel_is_another_contest(row):
    """One match of 20 us and, after an edit, of 10 us: two contests, told by commit and date."""
    rival = row("mamba2.decode", "mamba_ssm", drifting(1, 0.8), rival=True)
    rows = []
    for source, factor, date in (("old", 0.4, "2026-01-02"), ("new", 0.2, "2026-01-03")):
        ours = row("decode", "cute", drifting(2, factor))
        rows += [made_by(ours, source, date), made_by(rival, "theirs", date)]
    found = contests(rows)
    assert [one.lines[0].us for one in found] == pytest.approx([20, 10], rel=0.1)
    assert [one.lines[1].ratios[0].value for one in found] == pytest.approx([2, 4], rel=0.01)
    titles = [contest.title(one) for one in found]
    assert titles[0].endswith("cold, commit 0123456789ab, 2026-01-02")
    assert titles[1].endswith("cold, commit 0123456789ab, 2026-01-03")
    (figure,) = contest.drawings(found)
    assert figure.rows["who"].nunique() == 4


def test_turns_are_paired_within_their_process(row):
    """Two processes of one repeat, one four times as fast: their turns do not meet."""
    rows = []
    for date, factor, place in (("2026-01-02", 1.0, "a"), ("2026-01-03", 0.25, "b")):
        for n, who in enumerate(("cute", "mamba_ssm")):
            one = row("decode", who, drifting(n, factor * (1 + 0.2 * n)), rival=n > 0)
            rows.append(made_by(one, who, date, gpu_uuid=place))
    (found,) = contests(rows)
    assert found.processes == 2
    (ratio,) = found.lines[1].ratios
    assert ratio.value == pytest.approx(1.2, rel=0.002)
    (lone,) = contests([rows[0], rows[3]])
    assert lone.lines[1].ratios == (None,)


def test_a_process_that_was_cut_off_is_a_repeat(row):
    """It lacks a contender; the others' times of it count."""
    rows = []
    for repeat in range(2):
        for n, who in enumerate(("cute", "mamba_ssm", "fla")[: 3 - repeat]):
            one = row("decode", who, drifting(n + 5 * repeat, 1 + n), rival=n > 0, repeat=repeat)
            rows.append(replace(one, source=who))
    (found,) = contests(rows)
    assert (found.processes, len(found.lines), found.made) == (2, 3, "")


def test_processes_that_differ_widen_the_interval(row):
    """What two repeats disagree in, 4 % here, is in the interval; samples of one say 0.1 %."""
    rows = []
    for repeat, factor in enumerate((1.18, 1.22)):
        rows.append(row("decode", "cute", drifting(repeat), repeat=repeat))
        values = drifting(10 + repeat, factor)
        rows.append(row("gdn.decode", "fla", values, rival=True, repeat=repeat))
    (found,) = contests(rows)
    (ratio,) = found.lines[1].ratios
    assert 1.19 < ratio.value < 1.21
    assert ratio.low < 1.185
    assert ratio.high > 1.215


def test_only_rows_of_one_match_are_paired(row):
    """Rows of another match, without one, or of ours alone make no contest."""
    ours = row("decode", "cute", drifting(0))
    elsewhere = row("mamba2.decode", "mamba_ssm", drifting(1), rival=True, match="other")
    nowhere = row("gdn.decode", "fla", drifting(1), rival=True, match="")
    again = row("decode", "triton", drifting(2))
    assert contests([ours, elsewhere, nowhere, again]) == []


def test_absent_and_failed_contenders_are_lines(row):
    """They stand last, with their reason and without ratios; the strongest rival has its mark."""
    rows = [
        row("mamba2.decode", "flashinfer", None, rival=True, status="skipped"),
        row("decode", "cute", drifting(0)),
        row("mamba2.decode", "mamba_ssm", drifting(1, 1.5), rival=True),
        row("decode", "mamba_ssm", drifting(2, 2.0), rival=True, status="inaccurate"),
    ]
    (found,) = contests(rows)
    assert [line.name for line in found.lines] == [
        "decode R1, cute",
        "mamba2.decode, mamba_ssm",
        "decode R1, mamba_ssm",
        "mamba2.decode, flashinfer",
    ]
    assert [line.strongest for line in found.lines] == [False, True, True, False]
    shown = [contest.cells(line) for line in found.lines]
    assert all(len(cells) == len(contest.columns(found)) for cells in shown)
    assert shown[3][-1] == "why skipped"
    assert shown[2][2] == "≈ inaccurate"


@pytest.mark.parametrize(
    ("op", "axes", "name"),
    [
        ("decode", {"rank": (4,)}, "decode R4, x"),
        ("mamba2.decode", {"state": (256,)}, "mamba2.decode 2 N, x"),
        ("gdn.decode", {"heads": (2,), "head_size": (128,)}, "gdn.decode 128 x 128 heads, x"),
        ("attention.decode", {"length": (512,)}, "attention.decode 0.5 N cache 512, x"),
    ],
)
def test_names_tell_what_differs_from_the_point(op, axes, name):
    """Rank always; size where it is another than that of ours."""
    (point,) = problems(Axes(op="decode", heads=(4,)))
    (problem,) = problems(Axes(op=op, **{"heads": (4,), **axes}))
    assert label(op, problem.as_dict(), point.as_dict(), "x") == name


def test_published_times_are_found_by_shape():
    """The four columns of the paper's table, and nothing for another batch or rank."""
    at = {"heads": (64,), "batch": (128,), "state": (64, 128), "state_dtype": ("fp32", "bf16")}
    found = {}
    for op, rank in MILLISECONDS:
        for problem in problems(Axes(op=op, rank=(rank or 1,), **at)):
            us = cited(problem.as_dict())
            found.setdefault((op, rank), []).append(us)
            assert cited(problem.as_dict() | {"B": 64}) is None
            assert cited(problem.as_dict() | {"R": 2}) is None
    for known, milliseconds in MILLISECONDS.items():
        assert sorted(found[known]) == sorted(1000 * one for one in milliseconds)
        # less state, less time; the narrower state less than the wider
        assert all(low < high for low, high in pairwise(sorted(milliseconds)))


def test_a_match_has_a_name_of_its_entries():
    """The same for repeats and keys, another for other contenders."""
    first, second = problems(Axes(op="decode", batch=(1, 2)))
    entries = (Entry(first, "cute"), Entry(first, "triton"))
    name = Job(entries).match
    assert Job(tuple(replace(one, repeat=3, key="k") for one in entries)).match == name
    assert Job((*entries, Entry(second, "cute"))).match != name


def test_report_shows_families_side_by_side(row, record, tmp_path):
    """One figure over the varied dim, a table of each contest, and the same as files."""
    rows = [
        replace(
            row(op, backend, drifting(n, size / 32), rival=rival, match=f"N{size}", state=(size,)),
            key=f"{op} {backend} {size}",
        )
        for size in (32, 64)
        for n, (op, backend, rival) in enumerate(
            [("decode", "cute", False), ("mamba2.decode", "mamba_ssm", True)]
        )
    ]
    write([record(rows)], tmp_path)
    assert (tmp_path / "figures" / "versus-decode-1.svg").is_file()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Side by side" in page
    assert page.count("to decode R1, cute") == 2
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "mamba2.decode, mamba_ssm ★" in markdown
    assert (tmp_path / "versus.csv").is_file()


def test_a_figure_holds_fixed_what_its_panels_do_not_name(row):
    """Three dims vary beside the axis: no line mixes lengths or states, and all of it is said."""
    found = contests(
        row("prefill", who, drifting(n, 1.0), rival=n > 0, match=f"{size} {length} {batch} {state}",
            state=(size,), length=(length,), batch=(batch,), state_dtype=(state,))
        for size in (32, 64) for length in (64, 128) for batch in (1, 2)
        for state in ("bf16", "fp32") for n, who in enumerate(("triton", "mamba_ssm"))
    )  # fmt: skip
    drawings = contest.drawings(found)
    assert len(drawings) == 6  # three axes, two dtypes of the state
    for drawing in drawings:
        assert drawing.rows["state_dtype"].nunique() == 1
        assert f"state = {drawing.rows['state_dtype'].iloc[0]}" in drawing.title
        panels = [axes for axes in drawing.figure.axes if axes.get_title()]
        points = sum(len(line.get_xdata()) for axes in panels for line in axes.lines)
        assert points == len(drawing.rows) == 16


def test_who_has_no_ranks_is_not_said_to_have_one(row):
    """Mamba-2 has none."""
    found = contests(
        row("mamba2.decode", who, drifting(n, 1.0), state=(size,), match=str(size))
        for size in (32, 64) for n, who in enumerate(("triton", "torch"))
    )  # fmt: skip
    assert all("None" not in drawing.title for drawing in contest.drawings(found))


def test_ranks_that_met_apart_are_figures_of_their_own(row):
    """As many colours as contenders of one rank; ranks that met at one point share a figure."""

    def shown(match):
        found = contests(
            row("decode", who, drifting(n, 1.0), rival=n > 0, match=match(rank, size),
                rank=(rank,), state=(size,))
            for rank in (1, 4) for size in (32, 64) for n, who in enumerate(("cute", "mamba_ssm"))
        )  # fmt: skip
        return [drawing.title for drawing in contest.drawings(found)]

    apart = shown(lambda rank, size: f"R{rank} N{size}")
    assert [f"R = {rank}" in title for title, rank in zip(apart, (1, 4), strict=True)] == [True] * 2
    (together,) = shown(lambda rank, size: f"N{size}")
    assert "R = " not in together
