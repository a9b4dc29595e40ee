"""The written report: complete, self-contained, honest, whatever the rows are."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from mamba3_bench.bench.axes import LARGEST
from mamba3_bench.bench.budget import SelfTest, SelfTestError
from mamba3_bench.bench.cli import main
from mamba3_bench.bench.records import Error, Status
from mamba3_bench.bench.sides import NoRecords
from mamba3_bench.reports import latency as latency_module
from mamba3_bench.reports.accuracy import accuracy
from mamba3_bench.reports.files import NOTE
from mamba3_bench.reports.frame import frame
from mamba3_bench.reports.ink import Drawing, inks, with_count
from mamba3_bench.reports.latency import latency
from mamba3_bench.reports.main import show, write
from mamba3_bench.reports.rank import rank
from mamba3_bench.reports.roofline import roofline
from mamba3_bench.reports.shares import errors, shares
from mamba3_bench.reports.tables import COLUMNS, compiled

FETCHING = {"link", "iframe", "object", "embed", "audio", "video", "source", "base"}


class Page(HTMLParser):
    """What a test asks of a page: its tags, its text and the rows of its table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def rows(self) -> list[dict[str, str]]:
        """The filter data of each row."""
        found = [said for tag, said in self.tags if tag == "tr" and "data-dtype" in said]
        return [{name: value.strip("|") for name, value in said.items()} for said in found]


def test_every_file_is_written(report) -> None:
    """write() returns what it wrote: tables, each figure twice, and the page."""
    there = [path for path in report.folder.rglob("*") if path.is_file() and path.name != NOTE]
    assert sorted(report.written) == sorted(there)
    assert all(path.stat().st_size > 0 for path in report.written)
    stems = {path.stem for path in report.written if path.suffix == ".svg"}
    assert {path.stem for path in report.written if path.suffix == ".png"} == stems
    kinds = {re.sub(r"-\d+$", "", stem) for stem in stems}
    assert kinds == {"latency-prefill-L", "roofline", "shares", "errors", "accuracy"}
    tables = {path.stem for path in report.written if path.suffix == ".parquet"}
    assert tables == {path.stem for path in report.written if path.suffix == ".csv"}
    assert tables == {"table", "averages", "notes", "outside"}


def test_page_needs_nothing_from_outside(report) -> None:
    """No tag fetches anything: images are data, styles and scripts are in the page."""
    for tag, attributes in Page(report.html).tags:
        assert tag not in FETCHING
        for name in ("src", "href", "srcset", "action", "background"):
            assert name not in attributes or attributes[name].startswith("data:image/")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", report.html)


def test_every_row_and_status_is_on_the_page(report) -> None:
    """The table has each row with its filter data, and each reason is given."""
    page = Page(report.html)
    expected = [(row.op, row.problem["dtype"], row.backend, row.status) for row in report.rows]
    names = ("data-op", "data-dtype", "data-backend", "data-status")
    assert [tuple(row[name] for name in names) for row in page.rows] == expected
    assert {row["data-status"] for row in page.rows} == set(get_args(Status))
    for row in report.rows:
        assert row.reason in page.text
    assert "41.2 (40 to 43.3)" in page.text


def test_compiled_kernels_are_listed_once(make_row, record, tmp_path: Path) -> None:
    """Rows that differ in their times alone were compiled alike."""
    scan = {"kernel": "scan", "registers": 168, "spills": 8, "shared": 98304, "threads": 128}
    rows = [make_row(cold=us, config={"block_l": 64}, resources=[scan]) for us in (3.0, 4.0)]
    rows.append(make_row(config={"block_l": 128}, resources=[scan | {"registers": 255}]))
    assert [line[4:] for line in compiled(rows)] == [
        ["block_l=64", "scan", "168", "8", "98304", "128"],
        ["block_l=128", "scan", "255", "8", "98304", "128"],
    ]
    assert "Compiled kernels" in write([record(rows)], tmp_path)[-1].read_text()


def test_an_ok_row_may_have_a_reason_too(make_row, record, tmp_path: Path) -> None:
    """A right result that could not be timed says why, where all the reasons are."""
    row = make_row(reason="no device time: it cannot be captured")
    page = Page(write([record([row])], tmp_path)[-1].read_text())
    assert page.text.count("no device time: it cannot be captured") == 2  # there and in its row


def test_the_largest_numbers_that_are_taken(make_row, record, tmp_path: Path) -> None:
    """A table holds the seed, bytes and FLOPs of whatever the command line lets pass."""
    most = {"seed": LARGEST, "bytes": LARGEST, "flops": LARGEST}
    write([record([replace(make_row(cold=41.25), **most), make_row()])], tmp_path)
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert {name: int(table[name][0]) for name in most} == most


def test_a_folder_stands_for_its_record_files(make_row, record, tmp_path: Path, capsys) -> None:
    """The files below it, packed ones too; an empty one, or one without rows, is a bad argument."""
    rows = [make_row(cold=41.25), make_row(cold=80.5, L=131)]
    file = record(rows[:1])
    (file.parent / "deep").mkdir()
    packed = gzip.compress(record(rows[1:]).read_bytes())
    (file.parent / "deep" / "records.jsonl.gz").write_bytes(packed)
    assert main(["report", str(file.parent), "--out", str(tmp_path / "out")]) == 0
    assert set(pd.read_parquet(tmp_path / "out" / "table.parquet")["key"]) == {r.key for r in rows}
    capsys.readouterr()
    for empty in (tmp_path / "empty", record([]).parent):
        empty.mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as end:
            main(["report", str(empty), "--out", str(tmp_path / "none")])
        assert end.value.code == 2
        assert f"no records in {empty}" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_a_terminal_without_utf8(report, tmp_path: Path) -> None:
    """It shows what it can; files are UTF-8 all the same."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    plain.pop("PYTHONIOENCODING", None)
    line = ["report", str(report.records), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "mamba3_bench", *line]
    done = subprocess.run(command, env=plain, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert done.stdout.isascii()
    assert (tmp_path / "table.md").read_bytes() == (report.folder / "table.md").read_bytes()


def test_an_error_of_the_reports_is_none_of_the_arguments(
    report, tmp_path: Path, monkeypatch
) -> None:
    """Only what is wrong with the files named is told as that."""

    def broken(*_: object) -> None:
        raise ValueError("math domain error")

    monkeypatch.setattr("mamba3_bench.reports.main.show_frame", broken)
    with pytest.raises(ValueError, match="math domain error"):
        main(["report", str(report.records), "--out", str(tmp_path)])


@pytest.mark.parametrize("line", ["report {0} --out {1}", "compare {0} {0} --json -"])
def test_a_full_disk_behind_stdout(report, line, tmp_path: Path) -> None:
    """One line on stderr and exit code 1, no traceback."""
    given = line.format(report.records, tmp_path).split()
    command = [sys.executable, "-m", "mamba3_bench", *given]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("error: standard output: ")


def test_a_reader_who_leaves(report, tmp_path: Path) -> None:
    """What is to be written is written, and the exit code stays that of the command."""
    command = [sys.executable, "-m", "mamba3_bench", "report", str(report.records)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "index.html").exists()


def test_interpreted_kernels_are_called_so(make_row, record, tmp_path: Path) -> None:
    """A gate through the interpreter is not a gate on a GPU."""
    row = make_row(environment={"gpu": None, "interpreted": True})
    assert "triton (interpreted)" in write([record([row])], tmp_path)[-1].read_text()


def test_a_reason_of_no_encoding_is_shown_escaped(make_row, record, tmp_path: Path) -> None:
    """An error may hold the bytes of a broken file name; page, tables and terminal show them."""
    records = record([make_row("mine", "run-failed", reason="no file a\udcff"), make_row(cold=9.0)])
    for path in write([records], tmp_path):
        if path.suffix in (".md", ".html") or path.name == "table.csv":
            assert "no file a\\udcff" in path.read_text(encoding="utf-8")
    out = StringIO()
    show([records], Console(file=out, width=200))
    out.getvalue().encode()


def test_what_a_cpu_runs_itself_is_not_called_interpreted(make_row, record, tmp_path) -> None:
    """A run on a CPU turns the interpreter on; PyTorch has none, and is timed."""
    environment = {"gpu": None, "interpreted": True}
    row = make_row("torch", warm=20.0, timer="cpu", environment=environment)
    assert "(interpreted)" not in write([record([row])], tmp_path)[-1].read_text()


def test_rows_that_later_files_replace_are_counted(make_row, record, tmp_path: Path) -> None:
    """Two whole runs in one report: the last counts, and page, Markdown and terminal say so."""
    rows = [make_row(cold=20.0, key="a"), make_row("cute", cold=30.0, key="b")]
    files = [record(rows), record([replace(row, seed=1) for row in rows])]
    written = write(files, tmp_path)
    told = "2 rows superseded: of rows with one key the last counts."
    for path in (written[0], written[-1]):
        assert told in path.read_text(encoding="utf-8")
    console = Console(record=True, width=200)
    show(files, console)
    assert told in console.export_text()
    assert "superseded" not in write(files[:1], tmp_path)[-1].read_text(encoding="utf-8")


def test_every_choice_of_the_filter_exists_in_a_row(report) -> None:
    """The filter offers what the rows have, no more and no less."""
    for name in ("op", "dtype", "backend", "status"):
        select = re.search(rf'<select name="{name}">(.*?)</select>', report.html, re.DOTALL)
        assert select
        offered = re.findall(r"<option>(.*?)</option>", select[1])
        assert offered == sorted({row[f"data-{name}"] for row in Page(report.html).rows})


@pytest.mark.skipif(shutil.which("node") is None, reason="needs a JavaScript engine")
def test_script_of_the_page_is_valid(report, tmp_path: Path) -> None:
    """The page's script parses."""
    script = tmp_path / "page.js"
    script.write_text(report.html.split("<script>")[1].split("</script>")[0])
    done = subprocess.run(["node", "--check", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_of_an_earlier_report_nothing_is_left(make_row, record, tmp_path: Path) -> None:
    """Its tables and figures go, what others put there stays, and so does what it does not own."""
    own, other = tmp_path / "report" / "figures" / "mine.svg", tmp_path / "other.csv"
    met = [make_row(cold=9.0), make_row("cute", "timeout", reason="no")]
    before = write([record(met)], tmp_path / "report")
    for path in (own, other):
        path.touch()
    with (tmp_path / "report" / NOTE).open("a") as note:
        note.write("../other.csv\n")
    after = write([record([make_row(warm=9.0, timer="cpu")])], tmp_path / "report")
    left = {path for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert left == {*after, own, tmp_path / "report" / NOTE}
    assert set(before) - left
    assert other.exists()


def test_figures_that_are_left_out_are_counted() -> None:
    """By the last one that is shown."""
    shown = [Drawing(str(i), "", "Held.", Figure(), pd.DataFrame()) for i in range(2)]
    assert with_count(shown, 2) == shown
    first, last = with_count(shown, 5)
    assert first == shown[0]
    assert last.caption.startswith("Held. 2 of 5 such figures are shown")


def test_markdown_holds_every_row(report) -> None:
    """The Markdown table has a line per row, and pipes in a reason do not break it."""
    lines = (report.folder / "table.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith(tuple(f"| {s} |" for s in get_args(Status)))]
    assert len(rows) == len(report.rows)
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 2}


def test_terminal_shows_counts_reasons_and_averages(report) -> None:
    """The same rows on a terminal; markup in a reason is text."""
    out = StringIO()
    show([report.records], Console(file=out, width=200))
    text = out.getvalue()
    assert "2 ok, 1 inaccurate, 1 skipped" in text
    assert "cute needs sm90 <&> | got [red]sm80[/]" in text
    assert "41.2 (40 to 43.3)" in text
    assert re.search(r"rival † +161 cold +2.00 x", text)  # of the one shape in common


def test_gpu_report_does_not_mention_cpu_times(report) -> None:
    """The notice is there for CPU times alone."""
    assert "CPU times" not in Page(report.html).text


def test_cpu_times_are_called_cpu_times(make_row, record, tmp_path: Path) -> None:
    """A page with CPU times says so before any number, and its figures say it on the axis."""
    environment = {"gpu": None, "cpu": "Made-up CPU"}
    rows = [
        make_row("torch", warm=9.0 * n, timer="cpu", environment=environment, L=n)
        for n in (63, 128)
    ]
    page = Page(write([record(rows)], tmp_path / "out")[-1].read_text())
    text = " ".join(page.text.split())
    assert "CPU times are CPU times. All times here were taken by the clock on a CPU" in text
    titles = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert titles == ["prefill on CPU (Made-up CPU): CPU time against sequence length"]


@pytest.mark.parametrize("status", get_args(Status))
def test_one_row(make_row, record, tmp_path: Path, status: Status) -> None:
    """A single row of any status makes a whole report, timed or not."""
    page = Page(
        write([record([make_row(status=status, environment={})])], tmp_path / "out")[-1].read_text()
    )
    assert [row["data-status"] for row in page.rows] == [status]
    assert "No row has a time" in page.text


def test_one_timed_row(make_row, record, tmp_path: Path) -> None:
    """One time is one point: it still has its figures."""
    written = write([record([make_row(cold=12.5)])], tmp_path / "out")
    assert {path.name for path in written if path.suffix == ".png"} == {
        "latency-prefill-L-1.png",
        "shares.png",
        "roofline-1.png",
    }


def test_thousand_rows_stay_under_5_mb(make_row, record, tmp_path: Path, monkeypatch) -> None:
    """The page of a large sweep can still be sent by mail."""
    most = latency_module.MOST_FIGURES
    monkeypatch.setattr(latency_module, "MOST_FIGURES", 1)  # each figure costs a second to draw
    rows = [
        make_row("torch" if i % 3 else "triton", cold=5.0 + i, warm=4.0 + i, B=1 + i // 10,
                 L=64 * (1 + i % 10), config={"block_l": 64, "num_warps": 4})
        for i in range(1000)
    ]  # fmt: skip
    written = write([record(rows)], tmp_path / "out")
    page = written[-1]
    figure = max(
        min(path.stat().st_size, path.with_suffix(".svg").stat().st_size)
        for path in written
        if path.suffix == ".png"
    )
    assert len(Page(page.read_text()).rows) == 1000
    assert page.stat().st_size + (most - 1) * figure * 4 / 3 < 5e6


@pytest.mark.parametrize("paths", [[], ["empty"]])
def test_no_records_is_an_error_that_says_what_to_do(tmp_path: Path, paths: list[str]) -> None:
    """Nothing is written when there is nothing to report."""
    for name in paths:
        (tmp_path / name).touch()
    with pytest.raises(NoRecords, match=r"no records in .*a folder that holds some"):
        write([tmp_path / name for name in paths], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    """The error has the file and the line."""
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"op": "prefill"}) + "\n")
    with pytest.raises(ValueError, match=r"records.jsonl:1: not a record"):
        write([path], tmp_path / "out")


def test_lines_hold_everything_else_fixed(make_row) -> None:
    """Points of one line differ in one dim: another dtype or rank is another figure."""
    rows = [
        make_row(cold=float(n), L=n, dtype=dtype, R=rank)
        for n in (63, 128)
        for dtype in (torch.bfloat16, torch.float32)
        for rank in (1, 4)
    ]
    drawings = latency(frame(rows), inks(["triton"]))
    against_length = [d for d in drawings if d.name.startswith("latency-prefill-L")]
    assert len(against_length) == 4
    for drawing in against_length:
        (axes,) = drawing.figure.axes
        (line,) = (bars.lines[0] for bars in axes.containers)
        assert list(line.get_xdata()) == [63, 128]
        assert list(line.get_ydata()) == [63.0, 128.0]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert "lower is better" in drawing.figure.get_supylabel()


def test_another_family_is_no_variant(make_row) -> None:
    """Words say what is held fixed: not what Mamba-2 lacks, and no rank of 1.0."""
    rows = [make_row(cold=float(n), L=n) for n in (63, 128)]
    other = [make_row("mamba_ssm", cold=float(n), L=n) for n in (63, 128)]
    has = ("B", "L", "H", "G", "P", "N", "dtype", "state_dtype")
    rows += [
        replace(row, op="mamba2.prefill", problem={name: row.problem[name] for name in has})
        for row in other
    ]
    captions = {
        one.name: one.caption for one in latency(frame(rows), inks(["triton", "mamba_ssm"]))
    }
    assert "nan" not in "".join(captions.values())
    ours = next(text for name, text in captions.items() if name.startswith("latency-prefill-L"))
    assert ours.startswith(
        "B 1, H 4, G 1, P 64, N 64, R 1, S 32, dtype bfloat16, state dtype float32. "
    )


def test_more_backends_than_colours_are_told_apart() -> None:
    """The same colour comes with another marker and another line."""
    ink = inks(map(str, range(14)))
    assert len({(one.colour, one.marker) for one in ink.values()}) == 14
    assert len({(one.colour, one.style("cold")["linestyle"]) for one in ink.values()}) == 14


def test_cold_and_warm_are_told_apart(make_row) -> None:
    """Filled for cold, hollow for warm, and each with the interval of its median."""
    rows = [make_row(cold=float(n), warm=n / 2, L=n) for n in (63, 128)]
    (drawing,) = latency(frame(rows), inks(["triton"]))
    axes = drawing.figure.axes[0]
    cold, warm = (bars.lines[0] for bars in axes.containers)
    assert cold.get_markerfacecolor() == cold.get_color()
    assert warm.get_markerfacecolor() == "white"
    assert (cold.get_linestyle(), warm.get_linestyle()) == ("-", "--")
    (bars,) = axes.containers[0].lines[2]
    line = frame(rows).iloc[0]
    assert bars.get_segments()[0][:, 1] == pytest.approx(
        [line["cold_low_us"], line["cold_high_us"]]
    )


def test_ranks_are_drawn_at_fixed_state(make_row) -> None:
    """Time above, intensity below, against R; a pairing that goes with R does not part them."""
    rows = [
        make_row(
            backend, op="decode", R=rank, B=batch, cold=5.0 * rank, errors={},
            pairing="interleaved" if rank == 1 else "half",
        )
        for backend in ("triton", "cute") for rank in (1, 2, 4) for batch in (1, 3)
    ]  # fmt: skip
    (drawing,) = rank(frame(rows), inks(["triton", "cute"]))
    times, intensities = drawing.figure.axes[:2], drawing.figure.axes[2:4]
    assert [axes.get_title() for axes in times] == ["N = 64, B = 1", "N = 64, B = 3"]
    for axes in times:
        for bars in axes.containers:
            assert list(bars.lines[0].get_xdata()) == [1, 2, 4]
            assert list(bars.lines[0].get_ydata()) == [5.0, 10.0, 20.0]
    expected = [row.flops / row.bytes for row in rows if row.backend == "cute"][::2]
    assert list(intensities[0].get_lines()[0].get_ydata()) == pytest.approx(expected)


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_every_axis_has_unit_and_direction(make_row, op: str) -> None:
    """In every figure; an axis of values says which way is better."""
    bound = {"y": Error(4e-4, 1e-3, 2e-3, 1e-2)}
    rows = [make_row(op=op, R=r, N=n, B=b, cold=5.0 * r, errors=bound)
            for r in (1, 2) for n in (32, 64) for b in (1, 3)]  # fmt: skip
    table, ink = frame(rows), inks(["triton"])
    drawings = [*latency(table, ink), *rank(table, ink), *roofline(rows, table, ink),
                *shares(table, ink), *errors(table, ink), *accuracy(table, ink)]  # fmt: skip
    assert len(drawings) >= 6
    for drawing in drawings:
        y = [drawing.figure.get_supylabel() or axes.get_ylabel() for axes in drawing.figure.axes]
        y = [label for label in y if label]
        assert all("(" in label or "TFLOP/s" in label for label in y), drawing.name
        better = [label for label in y if "is better" in label]
        assert better, drawing.name
        x = {axes.get_xlabel() for axes in drawing.figure.axes} - {""}
        assert drawing.name == "accuracy" or (all("(" in label for label in x) and x), drawing.name


def test_a_self_test_beside_the_records_is_on_the_page(make_row, record, tmp_path: Path) -> None:
    """Its findings and what was not done, with the reason."""
    path = record([make_row(cold=12.5)])
    one = SelfTest({"gpu": "Made-up GPU", "date": "2026-01-02", "commit": "0123456789abcdef"})
    one.empty_us = [1.25, 1.5]
    one.not_done = {"CUPTI": "no permission"}
    one.write(path.with_name("selftest.json"))
    text = Page(write([path], tmp_path / "out")[-1].read_text()).text
    for said in ("What the harness itself gets wrong", "Made-up GPU, 2026-01-02, commit 0123456789",
                 "1.250 to 1.500 us", "CUPTI: not done", "no permission"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    "broken",
    [b"{}", b"", b"[1]", b'{"environment": {}', b"\xff", {"between_sd": "x"}, {"planted": 1}],
)
def test_a_broken_self_test_is_named_and_nothing_written(
    make_row, record, tmp_path: Path, broken: bytes | dict[str, object]
) -> None:
    """Cut off, empty, or with a field of another type: no report is left half-way."""
    path = record([make_row(cold=12.5)])
    place = path.with_name("selftest.json")
    SelfTest({}).write(place)
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(place.read_text()) | broken).encode()
    place.write_bytes(broken)
    with pytest.raises(SelfTestError, match=r"selftest.json: not a self-test"):
        write([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
