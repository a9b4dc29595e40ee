"""The flat table: its numbers are those of the rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch

from mamba3_bench.bench.records import Error, Row, Status, read
from mamba3_bench.reports.averages import averages
from mamba3_bench.reports.frame import frame
from mamba3_bench.reports.limits import error_ratio, limit
from mamba3_bench.reports.tables import notes


def test_times_and_rates_are_those_of_the_row(make_row) -> None:
    """Medians, quartiles and counts are copied; rates divide by the cold median alone."""
    row = make_row(cold=40.0, warm=25.0, B=3, L=1000, N=128)
    line = frame([row]).iloc[0]
    assert (line["cold_us"], line["cold_q1_us"], line["cold_q3_us"]) == (40.0, 38.8, 42.0)
    assert (line["cold_samples"], line["cold_dropped"]) == (50, 2)
    assert (line["warm_us"], line["host_us"], line["sm_clock_mhz"]) == (25.0, 17.25, 1755.0)
    assert (line["B"], line["L"], line["N"], line["dtype"]) == (3, 1000, 128, "bfloat16")
    assert line["gb_per_s"] == pytest.approx(row.bytes / 40e-6 / 1e9)
    assert line["tflop_per_s"] == pytest.approx(row.flops / 40e-6 / 1e12)


def test_records_survive_the_way_to_csv_and_parquet(make_row, record, tmp_path: Path) -> None:
    """What is read back from both files equals the rows that a run wrote."""
    from mamba3_bench.reports.main import write

    rows = [make_row(cold=12.5, B=2), make_row("torch", "skipped", reason="no, because |")]
    write([record(rows)], tmp_path / "out")
    for table in (
        pd.read_csv(tmp_path / "out" / "table.csv"),
        pd.read_parquet(tmp_path / "out" / "table.parquet"),
    ):
        assert list(table["key"]) == [row.key for row in rows]
        assert list(table["bytes"]) == [row.bytes for row in rows]
        assert table["cold_us"][0] == 12.5
        assert math.isnan(table["cold_us"][1])
        assert table["reason"][1] == "no, because |"


def test_a_row_without_a_time_appears(make_row) -> None:
    """Every status has its line, timed or not."""
    rows = [make_row(status=status) for status in get_args(Status)]
    table = frame(rows)
    assert list(table["status"]) == list(get_args(Status))
    assert table["cold_us"].isna().all()


def test_results_outside_their_bounds_are_one_note_with_the_worst(make_row) -> None:
    """Errors differ in every row; what a refusal names is no number to leave out."""

    def off(B: int, l2: float) -> Row:
        row = make_row("torch", "inaccurate", cold=9.0, B=B, reason=f"y: error {l2:.2g} (bound 1)")
        return replace(row, errors={"y": Error(l2, 1.0, 0.0, 1.0)})

    refused = [make_row("torch", "skipped", B=B, reason=f"R = {B} is too much") for B in (5, 6)]
    told = notes(frame([off(1, 2e-4), off(2, 3.5), off(3, 0.25), *refused]))
    assert [(note.count, note.reason, note.example[:2]) for note in told] == [
        (3, "at worst y: error 3.5 (bound 1)", "B2"),
        (1, "R = 5 is too much", "B5"),
        (1, "R = 6 is too much", "B6"),
    ]


def test_the_last_row_of_a_key_counts(make_row) -> None:
    """A retried entry replaces what failed before."""
    rows = [make_row(status="run-failed", key="same"), make_row(cold=3.0, key="same")]
    table = frame(rows)
    assert len(table) == 1
    assert table["status"][0] == "ok"


@pytest.mark.parametrize(
    ("dims", "by"),
    [
        ({"op": "decode", "B": 128, "H": 64, "N": 128}, "memory"),  # moves its state twice
        ({"B": 8, "L": 2048, "H": 64, "N": 128, "dtype": torch.float32}, "matmul"),
        ({"L": 1}, "launch"),
    ],
)
def test_limit_is_the_largest_of_three(make_row, dims: dict, by: str) -> None:
    """Memory, matmul or launch: whichever takes longest at the measured ceilings."""
    row = make_row(**dims)
    dtype = "float32" if by == "matmul" else "bfloat16"
    ceilings = row.environment["ceilings"]
    times = {
        "memory": row.bytes / ceilings["copy_bytes_per_s"] * 1e6,
        "matmul": row.flops / ceilings[f"matmul_flops_per_s.{dtype}"] * 1e6,
        "launch": 2.0,
    }
    found = limit(row)
    assert found is not None
    assert found.by == by == max(times, key=times.__getitem__)
    assert found.us == pytest.approx(times[by])


def test_tf32_is_held_against_tf32(make_row) -> None:
    """A float32 problem whose products may round to tf32 has tf32's higher ceiling."""
    dims = {"B": 8, "L": 2048, "H": 64, "N": 128, "dtype": torch.float32}
    exact, rounded = limit(make_row(**dims)), limit(make_row(**dims, matmul="tf32"))
    assert exact is not None
    assert rounded is not None
    assert exact.us > rounded.us


def test_no_ceilings_no_share(make_row) -> None:
    """Without ceilings of the same run nothing is called a share of anything."""
    row = make_row(cold=10.0, environment={"gpu": "Made-up GPU"})
    line = frame([row]).iloc[0]
    assert limit(row) is None
    assert pd.isna(line["share_of_limit"])


def test_error_ratio_takes_the_worse_norm_and_never_hides_nan() -> None:
    """Up to 1 is right; NaN is infinitely wrong; a zero bound allows zero alone."""
    assert error_ratio(Error(1e-3, 2e-3, 3e-2, 2e-2)) == pytest.approx(1.5)
    assert error_ratio(Error(math.nan, 1e-3, 0.0, 1.0)) == math.inf
    assert error_ratio(Error(0.0, 0.0, 0.0, 0.0)) == 0.0
    assert error_ratio(Error(1e-9, 0.0, 0.0, 1.0)) == math.inf


def test_worst_output_is_named(make_row) -> None:
    """The table shows the output that is nearest to, or furthest beyond, its bound."""
    fine, bad = Error(1e-4, 1e-3, 1e-4, 1e-3), Error(4e-3, 1e-3, 1e-4, 1e-3)
    line = frame([make_row(status="wrong", errors={"y": fine, "state.h": bad})]).iloc[0]
    assert line["worst_output"] == "state.h"
    assert line["error_over_bound"] == pytest.approx(4.0)
    assert json.loads(line["errors"])["state.h"]["l2"] == 4e-3


def test_average_is_geometric_over_common_shapes(make_row) -> None:
    """A shape that one rival lacks counts for none; the coverage says so."""
    rows = [
        *(
            make_row("triton", cold=time, L=length)
            for length, time in ((63, 2), (128, 8), (999, 1))
        ),
        *(make_row("torch", cold=time, L=length) for length, time in ((63, 6), (128, 24))),
        make_row("torch", "run-failed", L=999),
        make_row("cute", "skipped", L=63),
    ]
    found = {average.backend: average for average in averages(frame(rows))}
    assert found["triton"].mean_us == pytest.approx(4.0)
    assert found["torch"].mean_us == pytest.approx(12.0)
    assert found["torch"].relative == pytest.approx(3.0)
    assert (found["triton"].timed, found["triton"].common, found["triton"].shapes) == (3, 2, 3)
    assert (found["torch"].timed, found["torch"].common) == (2, 2)
    assert found["cute"].mean_us is None


def test_no_common_shape_no_average(make_row) -> None:
    """Means over different shapes would not compare, so there are none."""
    rows = [make_row("triton", cold=2.0, L=63), make_row("torch", cold=2.0, L=128)]
    assert [average.mean_us for average in averages(frame(rows))] == [None, None]


def test_cold_is_never_averaged_with_warm(make_row) -> None:
    """Where a group has cold times, a rival with warm ones alone completed nothing."""
    rows = [make_row("triton", cold=2.0, warm=1.0), make_row("torch", warm=1.5)]
    found = {average.backend: average for average in averages(frame(rows))}
    assert (found["triton"].kind, found["triton"].mean_us) == ("cold", pytest.approx(2.0))
    assert found["torch"].mean_us is None


def test_fastest_config_stands_for_a_backend(make_row) -> None:
    """Several configs of one shape are one entry."""
    rows = [make_row(cold=t, config={"block_l": b}) for t, b in ((5.0, 32), (3.0, 64), (4.0, 128))]
    (average,) = averages(frame(rows))
    assert average.mean_us == pytest.approx(3.0)
    assert (average.timed, average.shapes) == (1, 1)


def at(commit: str, day: int) -> dict[str, Any]:
    """The environment of a run of a commit on a day."""
    return {"gpu": "Made-up GPU", "commit": commit, "date": f"2026-01-{day:02}"}


def test_an_average_is_of_the_last_commit(make_row) -> None:
    """What an earlier commit was faster at does not count, in whatever order the rows come; a
    rival that was run before alone is the same still."""
    rows = [
        make_row(cold=5.0, environment=at("new", 3), config={"block_l": 32}),
        make_row(cold=4.0, environment=at("new", 3), config={"block_l": 64}),
        make_row(cold=2.0, environment=at("old", 2)),
        make_row("torch", cold=8.0, environment=at("old", 2)),
    ]
    found = {average.backend: average for average in averages(frame(rows))}
    assert found["triton"].mean_us == pytest.approx(4.0)
    assert found["torch"].relative == pytest.approx(2.0)


@pytest.mark.parametrize(("status", "mean"), [("run-failed", None), ("ok", 2.0), ("skipped", 2.0)])
def test_a_commit_that_fails_has_no_average(make_row, status, mean) -> None:
    """One that was only checked, or not run, leaves the time of the commit before."""
    rows = [
        make_row(cold=2.0, environment=at("old", 2)),
        make_row(status=status, environment=at("new", 3)),
        make_row("torch", cold=4.0, environment=at("old", 2)),
    ]
    found = {average.backend: average for average in averages(frame(rows))}
    assert found["triton"].mean_us == mean


def test_machines_differ_by_what_is_fixed(make_row, record) -> None:
    """Two runs on one machine are one entry with both dates; another driver is another entry."""
    from mamba3_bench.reports.machines import machines

    environment = make_row().environment
    rows: list[Row] = [
        make_row(environment=environment | {"date": "2026-01-03"}),
        make_row(environment=environment | {"date": "2026-01-05"}),
        make_row(environment=environment | {"driver": "999", "dirty": True}),
        make_row(environment={}),
    ]
    found = machines(read([record(rows)]))
    assert [machine.rows for machine in found] == [2, 1, 1]
    assert dict(found[0].facts)["dates"] == "2026-01-03 to 2026-01-05"
    assert "uncommitted changes" in dict(found[1].facts)["source"]
    assert (found[2].device, found[2].facts) == ("CPU", [])


def test_repeats_are_one_line(make_row) -> None:
    """Three processes are one line: the geometric mean of medians, all samples, one interval."""
    rows = [replace(make_row(cold=us, key=str(i)), repeat=i) for i, us in enumerate((9.0, 10, 12))]
    other = make_row(cold=10.0)
    table = frame([*rows, other])
    assert list(table["repeats"]) == [3, 1]
    line = table.iloc[0]
    assert line["cold_us"] == pytest.approx((9 * 10 * 12) ** (1 / 3))
    assert (line["cold_samples"], line["cold_dropped"]) == (150, 6)
    assert line["cold_low_us"] < line["cold_us"] < line["cold_high_us"]
    # what they scatter by is typical of the other line, too, and more processes help
    width = table["cold_high_us"] / table["cold_low_us"]
    assert width[0] < width[1]


def test_a_check_is_no_repeat(make_row) -> None:
    """A check beside three measurements takes none of them away, whichever comes first."""
    check = replace(make_row(key="check"), kind="check")
    rows = [replace(make_row(cold=9.0, key=str(i)), repeat=i) for i in range(3)]
    for together in ([check, *rows], [*rows, check]):
        table = frame(together)
        found = zip(table["repeats"], table["cold_us"].notna(), strict=True)
        assert sorted(found) == [(1, False), (3, True)]


def test_two_sources_are_no_repeats(make_row) -> None:
    """A kernel changed before its repeats were whole: two lines, and averages of the last one."""
    day = {"gpu": "G", "commit": "c", "dirty": True}
    rows = [
        replace(make_row(cold=us, key=f"{source} {i}", environment=day | {"date": source}),
                repeat=i, source=source)
        for source, us, count in (("1", 10.0, 1), ("2", 20.0, 3)) for i in range(count)
    ]  # fmt: skip
    table = frame(rows)
    found = zip(table["repeats"], table["cold_us"], strict=True)
    assert sorted(found) == [(1, pytest.approx(10)), (3, pytest.approx(20))]
    (average,) = averages(table)
    assert average.mean_us == pytest.approx(20)


def test_two_measurements_of_one_process_are_two_lines(make_row) -> None:
    """What met different others in the same process, in each of two repeats."""
    rows = [
        replace(make_row(cold=9.0, key=f"{match} {i}"), repeat=i, match=match)
        for i in range(2)
        for match in ("a", "b")
    ]
    assert list(frame(rows)["repeats"]) == [2, 2]


def test_averages_keep_tf32_apart(make_row) -> None:
    """Rounded products are another dtype, as on the command line."""
    dims = {"dtype": torch.float32, "warm": 9.0}
    found = averages(frame([make_row(**dims), make_row(**dims, matmul="tf32")]))
    assert [average.dtype for average in found] == ["float32", "tf32"]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_cpu_in_the_report_does_not_blur_a_gpu(make_row, repeats) -> None:
    """Each has the scatter of its own: with or without the other the intervals are the same."""

    def rows(backend: str, us: tuple[float, ...], **fields: Any) -> list[Row]:
        taken = enumerate(us[:repeats])
        return [replace(make_row(backend, **fields, warm=one), repeat=i) for i, one in taken]

    gpu = rows("triton", (10.0, 10.01, 10.02))
    cpu = rows("torch", (900.0, 1300.0, 700.0), timer="cpu", environment={"cpu": "Made-up"})
    ends = ["warm_low_us", "warm_high_us", "host_low_us", "host_high_us"]
    both = frame([*gpu, *cpu])[ends]
    assert both.iloc[0].tolist() == frame(gpu)[ends].iloc[0].tolist()
    assert both.iloc[1].tolist() == frame(cpu)[ends].iloc[0].tolist()


def test_a_repeat_that_failed_is_a_line_of_its_own(make_row) -> None:
    """What went wrong once is not hidden by what went right twice."""
    rows = [make_row(cold=9.0, key="a"), replace(make_row(cold=9.0, key="b"), repeat=1),
            replace(make_row(status="timeout", key="c"), repeat=2)]  # fmt: skip
    assert list(frame(rows)["status"]) == ["ok", "timeout"]


def test_one_measurement_in_two_files_is_no_repeat(make_row) -> None:
    """Two sweeps of one thing, with keys of their own, are two lines."""
    assert list(frame([make_row(cold=9.0), make_row(cold=9.0)])["repeats"]) == [1, 1]
