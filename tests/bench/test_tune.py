"""Tuning through real workers: planted faults never win and never end it; it resumes and replays.

The kernels are in tunable.py: torch, made slower, and the faults of faults.py.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mamba3_bench.bench import export, fields, records, tune
from mamba3_bench.bench.cli import main, parser, read_sides
from mamba3_bench.bench.jobs import Entry, Job, Place, Settings
from mamba3_bench.bench.ledger import Outcome
from mamba3_bench.bench.runner import Runner, Slot
from mamba3_bench.bench.session import NOTHING
from mamba3_bench.bench.tune import confirmations
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.problem import Problem

PLUGIN = str(Path(__file__).with_name("tunable.py"))
SPACE = "MAMBA3_BENCH_TEST_SPACE"  # as in tunable.py
HANG_S = 8.0
PREFILL = Problem(
    "prefill", 1, 37, 2, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32, optional=("d",)
)  # fmt: skip
DECODE = Problem("decode", 3, 1, 3, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32, has_state=True)

OUTCOMES = {  # of each fault in a prefill
    "zeros": "correctness",
    "zeros_tail": "correctness",
    "skips_state": "correctness",
    "wavers": "correctness",
    "writes_gap": "correctness",
    "clobbers_input": "correctness",
    "tires": "correctness",
    "does_not_compile": "compile",
    "loses_device": "runtime",
    "hangs": "timeout",
    "exits_when_timed": "runtime",
}
DECODE_OUTCOMES = {"skips_state": "correctness", "writes_nothing": "correctness"}


def job(problem, faults):
    """The default, which is slow, two right configs, and the faults, all of them faster."""
    configs = [(6, ""), (5, ""), (0, ""), *((0, fault) for fault in faults)]
    return Job(
        tuple(
            Entry(
                problem,
                "tunable",
                {"more": more, "fault": fault},
                place=Place(i, len(configs), (f"more={more} {fault}",)),
            )
            for i, (more, fault) in enumerate(configs)
        )
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, silent):
    """The record file of one tuning over every fault, a prefill and a decode.

    Processes that share the tests share it: the first makes it, the others wait.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp()
    path = (base.parent / f"tuned-{run}" if run else base / "tuned") / "records.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.with_suffix(".done").exists():
            tune_all(path, silent)
            path.with_suffix(".done").touch()
    return path


def tune_all(path, silent):
    """Tune over every fault, and confirm the finalists."""
    os.environ[SPACE] = ",".join(["5:", "0:", *(f"0:{fault}" for fault in OUTCOMES)])
    os.environ[SPACE] += "".join(f",0:{fault}" for fault in DECODE_OUTCOMES)
    slot = Slot("cpu", {"OMP_NUM_THREADS": "1"})
    jobs = [job(PREFILL, OUTCOMES), job(DECODE, DECODE_OUTCOMES)]
    raced = Runner(
        Settings("tune", budget_s=0.01, plugins=(PLUGIN,)), [slot], path, silent, timeout_s=HANG_S
    ).run(jobs)
    finals = confirmations(fields.read(raced.all), jobs, 1)
    sweep = Settings("sweep", budget_s=0.01, plugins=(PLUGIN,))
    Runner(sweep, [slot], path, silent).run(finals)
    del os.environ[SPACE]


@pytest.fixture(scope="module")
def decisions(tuned):
    """What the records come to, by op."""
    found = fields.decide(fields.read(records.read([tuned])))
    return {one.field.op: one for one in found}


@pytest.mark.parametrize("fault", OUTCOMES)
def test_fault_is_no_winner(decisions, fault):
    """Though faster than all others, it is out, has no time, and its reason is told."""
    check(decisions["prefill"], fault, OUTCOMES[fault])


@pytest.mark.parametrize("fault", DECODE_OUTCOMES)
def test_fault_in_place_is_no_winner(decisions, fault):
    """The same where the state is updated in place."""
    check(decisions["decode"], fault, DECODE_OUTCOMES[fault])


def check(decision, fault, outcome):
    (one,) = (one for one in decision.field.candidates if one.config["fault"] == fault)
    assert (one.outcome, one.samples()) == (outcome, None)
    assert one.reason
    assert one not in decision.ties


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_the_fastest_right_config_wins(decisions, op):
    """The default, seven times as slow, was raced and confirmed beside it."""
    decision = decisions[op]
    assert decision.winner.config == {"more": 0, "fault": ""}
    assert decision.margin.high < 1
    assert decision.field.default in decision.field.confirmed()


def test_replay_decides_the_same(tuned, decisions, tmp_path, capsys):
    """From the records alone: the winners, the page with every candidate, and the exports."""
    assert main(["tune", "--replay", str(tuned.parent), "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "more=0" in said
    page = (tmp_path / "index.html").read_text()
    for one in decisions.values():
        for candidate in one.field.candidates:
            assert f"fault={candidate.config['fault']}" in page
    for fault in OUTCOMES:
        assert f"fault={fault}" in page
    assert page.count("data:image/") == 2
    assert "CPU times are CPU times" in page


# The fields that the T4 results schema, version 1.0.0, asks of every result, and its words.
REQUIRED = {"configuration": dict, "times": dict, "invalidity": str, "correctness": float}
INVALIDITY = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}


@pytest.mark.parametrize("option", ["--batch", "--most", "--seed"])
def test_replay_takes_no_axes(tuned, tmp_path, capsys, option):
    """What is decided is what is recorded: an axis, or how to measure, would be ignored."""
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--replay", str(tuned), option, "9", "--out", str(tmp_path)])
    assert f"{option}: --replay decides" in capsys.readouterr().err


def test_replay_of_some(tuned, tmp_path, capsys):
    """An op or a backend alone is decided, and its winners alone written."""
    line = ["tune", "--replay", str(tuned), "--out", str(tmp_path)]
    assert main(line) == 0  # of which no figure is left by the next
    assert len(list((tmp_path / "figures").iterdir())) == 4
    capsys.readouterr()
    assert main([*line, "--op", "decode"]) == 0
    said = capsys.readouterr().out
    assert "decode" in said
    assert "prefill" not in said
    assert len(list((tmp_path / "figures").iterdir())) == 2
    assert main([*line, "--backend", "triton"]) == NOTHING


def test_export_as_t4(decisions):
    """Every candidate as a result with the fields, types and words of the schema."""
    content = json.loads(json.dumps(export.t4_results(decisions["prefill"]), allow_nan=False))
    assert content["schema_version"] == "1.0.0"
    results = content["results"]
    assert len(results) == 3 + len(OUTCOMES)
    for one in results:
        assert all(isinstance(one[name], kind) for name, kind in REQUIRED.items())
        assert one["invalidity"] in INVALIDITY
        assert (one["invalidity"] == "correct") == (one["correctness"] == 1)
        assert all(isinstance(one["times"][n], float) for n in ("compilation_time", "validation"))
        assert all({"name", "value", "unit"} == set(each) for each in one["measurements"])
    timed = [one for one in results if one["times"]["runtimes"]]
    assert {one["invalidity"] for one in timed} == {"correct"}


def test_kill_and_resume(tmp_path, monkeypatch, capsys):
    """After kill -9 the same command goes on: no candidate that has its row runs again."""
    monkeypatch.setenv(SPACE, "0:,0:zeros,4:")
    path = tmp_path / "out" / "records.jsonl"
    line = [
        "tune", "--plugin", PLUGIN, "--backend", "tunable", "--length", "9", "--heads", "2",
        "--head-size", "4", "--state", "8", "--budget", "0.01", "--confirm", "1",
        "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    script = "import sys; from mamba3_bench.bench.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", script, *line],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (path.exists() and records.read([path])):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    assert main(line) == 0
    assert path.read_bytes().startswith(before)
    keys = [row.key for row in records.read([path])]
    assert len(keys) == len(set(keys))
    (decision,) = fields.decide(fields.read(records.read([path])))
    assert [one.outcome for one in decision.field.candidates] == [
        "correct", "correct", "correctness", "correct",
    ]  # fmt: skip
    capsys.readouterr()
    line[line.index("9")] = "10"  # another problem into the same records
    assert main(line) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 more problem tuned into" in said
    assert main(["tune", "--replay", str(path), "--out", str(tmp_path / "all")]) == 0
    assert "more problem" not in capsys.readouterr().out


def test_nothing_to_tune(capsys):
    """A backend without a choice is said to have none, with an exit code of its own."""
    assert main(["tune", "--backend", "reference", "--device", "cpu", "--heads", "2"]) == 3
    assert "nothing to tune" in capsys.readouterr().out


def test_each_kernel_is_compiled_once_before_a_tuning(tmp_path, monkeypatch):
    """Fields share kernels and hard cases: none is compiled twice, candidates keep their place."""
    pytest.importorskip("triton")
    plan = []

    class Compiles:
        """In the place of the processes that compile."""

        def __init__(self, *_, **__):
            pass

        def run(self, jobs):
            plan.extend(entry for job in jobs for entry in job.entries)
            return Outcome()

    monkeypatch.setattr(tune, "Runner", Compiles)
    arguments = parser().parse_args(
        ["tune", "--backend", "triton", "--length", "64,96", "--heads", "2", "--head-size", "32",
         "--state", "16", "--out", str(tmp_path)]
    )  # fmt: skip
    arguments.sides = read_sides(arguments)
    fields = [
        tune.candidates(pair, registry.COMPILE_ONLY, arguments) for pair in tune.pairs(arguments)
    ]
    tune.compile_all(
        Console(quiet=True), arguments, Settings("tune"), fields, {"compute_capability": "9.0"}
    )
    names = [(entry.problem, json.dumps(entry.config, sort_keys=True)) for entry in plan]
    assert len(names) == len(set(names))
    placed = [entry for entry in plan if entry.place is not None]
    assert set(placed_names(placed)) == set(placed_names(e for job in fields for e in job.entries))
    assert len(plan) > len(placed)


def placed_names(entries):
    return [(entry.problem, json.dumps(entry.config), entry.place.index) for entry in entries]
