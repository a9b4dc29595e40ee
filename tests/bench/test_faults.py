"""Planted faults through the real runner: none gets a time, each gets its reason, the run goes on.

The kernels are in faults.py. One run takes them all: starting a worker costs seconds.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mamba3_bench.bench import records
from mamba3_bench.bench.jobs import Entry, Job, Settings
from mamba3_bench.bench.ledger import Slot
from mamba3_bench.bench.runner import Runner
from mamba3_bench.kernels.problem import Problem

PLUGIN = str(Path(__file__).with_name("faults.py"))
WAIT = "MAMBA3_BENCH_TEST_WAIT"  # as in faults.py
HANG_S = 8.0  # several times the longest stage of an honest kernel here, on a busy machine

PREFILL = Problem(
    "prefill", 2, 71, 3, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32,
    optional=("z", "dt_bias", "d"), has_state=True,
)  # fmt: skip
SHORT = Problem("prefill", 1, 5, 2, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32)
DECODE = Problem(
    "decode", 3, 1, 3, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32, has_state=True, pool=5
)

FAULTS = {  # by kernel: status, and what the reason says
    # those that end the worker first: what lives in a worker is then built only once
    "exits": ("run-failed", r"^worker died: exit code 7; during: gate$"),
    "segfaults": ("run-failed", r"^worker died: signal SIGSEGV; it wrote: .*; during: gate$"),
    "hangs": ("timeout", r"^no answer for 8 s, in faults.py line \d+ in hangs; during: gate$"),
    "refuses_in_silence": ("skipped", r"^refused without a reason$"),
    "skips_tail": ("wrong", r"^y: 72 of 1704 elements not finite"),
    "zeros_tail": ("wrong", r"^y: relative L2 error 0\.\d+ \(bound"),
    "skips_phi": ("wrong", r"^state.phi: 12 of 12 elements not finite"),
    "skips_h": ("wrong", r"^state.h: 192 of 192 elements not finite"),
    "skips_k": ("wrong", r"^state.k: 48 of 48 elements not finite"),
    "skips_x": ("wrong", r"^state.x: 24 of 24 elements not finite"),
    "hands_back_state": ("wrong", r"^state.h: relative L2 error"),
    "skips_head": ("wrong", r"^y: 568 of 1704 elements not finite"),
    "repeats_head": ("wrong", r"^y: relative L2 error [01]\.?\d* \(bound"),
    "zeros": ("wrong", r"^y: relative L2 error 1 .*state.phi: .*state.h: .*state.k: .*state.x: "),
    "writes_nothing": ("wrong", r"^y: 1704 of 1704 elements not finite"),
    "writes_once": ("wrong", r"^two runs on the same inputs differ in y, state.phi, state.h"),
    "remembers": ("wrong", r"^after timing: y: relative L2 error 1\.\d+ \(bound"),
    "remembers_the_last": ("wrong", r"^after timing: on inputs that differ .* its last call$"),
    "tires": ("wrong", r"^after timing: y: relative L2 error 0\.\d+ \(bound"),
    "clobbers_input": ("wrong", r"^changed inputs\.b, which it may only read$"),
    "clobbers_param": ("wrong", r"^changed params.d, which it may only read$"),
    "clobbers_state": ("wrong", r"^changed state.h given, which it may only read$"),
    "writes_gap": ("wrong", r"^changed what lies between inputs\.x, inputs\.b, .*only read$"),
    "wavers": ("wrong", r"^two runs on the same inputs differ in y$"),
    "raises": ("run-failed", r"^ValueError: a planted error$"),
    "out_of_memory": ("run-failed", r"^out of memory: OutOfMemoryError: tried to allocate 2 TiB$"),
    "does_not_compile": ("compile-failed", r"^CompilationError: at 3:1: no such thing$"),
}
DECODE_FAULTS = {
    # only the rows named by state_indices are judged, so what was not written is the old state
    "skips_phi": ("wrong", r"^state.phi: relative L2 error"),
    "skips_h": ("wrong", r"^state.h: relative L2 error"),
    "skips_k": ("wrong", r"^state.k: relative L2 error"),
    "skips_x": ("wrong", r"^state.x: relative L2 error"),
    "writes_other_rows": ("wrong", r"^changed state.x of rows that are not in state_indices"),
}
RIGHT = ("honest", "wavers_admittedly")


def job(problem, names):
    return Job(tuple(Entry(problem, name) for name in names))


@pytest.fixture(scope="module")
def rows(tmp_path_factory, silent):
    """The rows of one run over every fault, by op, length and kernel."""
    path = tmp_path_factory.mktemp("faults") / "records.jsonl"
    settings = Settings("sweep", budget_s=0.01, plugins=(PLUGIN,))
    jobs = [
        job(PREFILL, (*FAULTS, *RIGHT)),
        job(DECODE, (*DECODE_FAULTS, "honest")),
        job(SHORT, ("honest", "exits_when_timed")),
        job(replace(SHORT, L=6), ("honest", "raises_when_timed")),
    ]
    slot = Slot("cpu", {"OMP_NUM_THREADS": "1"})
    outcome = Runner(settings, [slot], path, silent, timeout_s=HANG_S).run(jobs)
    assert not outcome.interrupted
    # each is on disk, and each once; as text, because the error of a wrong row may be NaN
    assert [r.to_json() for r in records.read([path])] == [r.to_json() for r in outcome.rows]
    found = {(row.op, row.problem["L"], row.backend): row for row in outcome.rows}
    assert len(found) == len(outcome.rows) == sum(len(one.entries) for one in jobs)
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_fault_in_prefill(rows, name):
    """No time, its status, and a reason that names the very fault."""
    check(rows["prefill", 71, name], *FAULTS[name])


@pytest.mark.parametrize("name", DECODE_FAULTS)
def test_fault_in_decode(rows, name):
    """The same where the state is updated in place."""
    check(rows["decode", 1, name], *DECODE_FAULTS[name])


def test_crash_while_rivals_are_timed(rows):
    """Nobody is known to be guilty then: each is run again by itself, and only one dies of it."""
    what = r"^worker died: exit code 8; during: timing$"
    check(rows["prefill", 5, "exits_when_timed"], "run-failed", what)
    assert rows["prefill", 5, "honest"].status == "ok"


def test_error_while_rivals_are_timed(rows):
    """It is the row of who raised it alone."""
    check(
        rows["prefill", 6, "raises_when_timed"], "run-failed", r"^out of memory: MemoryError: work"
    )
    assert rows["prefill", 6, "honest"].status == "ok"


def test_who_ended_a_worker_stays_in_the_match(rows):
    """The others go on without it, under the same name: a contest shows who failed."""
    names = ("exits", "hangs", "zeros", "honest")
    assert len({rows["prefill", 71, name].match for name in names}) == 1


def check(row, status, reason):
    """A row without a time, and why."""
    assert row.times is None
    assert row.status == status, row.reason
    assert re.search(reason, row.reason), row.reason


@pytest.mark.parametrize(
    "which",
    [("prefill", 71, "honest"), ("prefill", 71, "wavers_admittedly"), ("decode", 1, "honest")],
    ids=str,
)
def test_right_kernel_beside_them(rows, which):
    """Right and timed, all errors within their bounds; one may waver if it says so."""
    row = rows[which]
    assert (row.status, row.reason) == ("ok", "")
    assert row.times.warm.median > 0
    assert row.times.warm.count >= 5
    assert set(row.errors) == {"y", "state.phi", "state.h", "state.k", "state.x"}
    assert all(error.l2 <= error.l2_bound for error in row.errors.values())


def test_wrong_row_keeps_its_errors(rows):
    """How far off it was is told in numbers, and which output was not."""
    errors = rows["prefill", 71, "zeros_tail"].errors
    assert errors["y"].l2 > errors["y"].l2_bound
    assert errors["state.h"].l2 <= errors["state.h"].l2_bound
    assert rows["prefill", 71, "raises"].errors == {}


def test_each_fault_is_planted():
    """None of the kernels is left out."""
    timed = ("exits_when_timed", "raises_when_timed")
    told = {*FAULTS, *DECODE_FAULTS, *RIGHT, *timed, "waits", "waits_too"}
    planted = re.findall(r'plant\("(?:prefill|decode)", "(\w+)"', Path(PLUGIN).read_text())
    assert told == {*planted, "honest", *(f"skips_{name}" for name in ("phi", "h", "k", "x"))}


def command(folder, *more):
    """A sweep over three kernels and two batch sizes, as typed."""
    line = [
        "sweep", "--plugin", PLUGIN, "--backend", "honest,waits,waits_too", "--batch", "1,2",
        "--length", "9", "--heads", "2", "--head-size", "4", "--state", "8", "--budget", "0.01",
        "--out", str(folder / "out"), "--device", "cpu", *more,
    ]  # fmt: skip
    script = "import sys; from mamba3_bench.bench.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", script, *line],
        env={**os.environ, WAIT: str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell's background job ignores ctrl-C, and so would what it starts
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def waiting(process, folder, not_this=None):
    """The process in which a kernel waits; not one that is known already."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        text = (folder / "pid").read_text() if (folder / "pid").exists() else ""
        if text and int(text) != not_this:
            return int(text)
        time.sleep(0.05)
    raise AssertionError("no kernel came to wait")


def by_size(folder):
    """Status of each row, by batch and kernel; a later row replaces an earlier one."""
    found = records.read([folder / "out" / "records.jsonl"])
    return {(row.problem["B"], row.backend): (row.status, row.reason) for row in found}, len(found)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_kill_interrupt_resume_and_retry(tmp_path, signal_):
    """A killed worker costs one row; ctrl-C keeps what is done; no job that is whole is repeated.

    `timeout` and schedulers end a run by SIGTERM: the same.

    --retry repeats what failed, with those whom it is timed beside.
    """
    (tmp_path / "go-slow").touch()
    process = command(tmp_path)
    victim = waiting(process, tmp_path)
    os.kill(victim, signal.SIGKILL)
    second = waiting(process, tmp_path, not_this=victim)
    process.send_signal(signal_)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted, 2 entries left" in said
    assert "the same command goes on from here" in said
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)  # no worker outlives the run
    killed = ("run-failed", "worker died: signal SIGKILL; during: gate")
    right = {(1, name): ("ok", "") for name in ("honest", "waits", "waits_too")}
    assert by_size(tmp_path) == (right | {(2, "waits"): killed}, 4)

    (tmp_path / "go-slow").unlink()
    process = command(tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said  # one entry has failed, before
    assert "6 entries, 4 recorded already" in said
    right |= {(2, name): ("ok", "") for name in ("honest", "waits_too")}
    assert by_size(tmp_path) == (right | {(2, "waits"): killed}, 6)

    process = command(tmp_path, "--retry")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "6 entries, 3 recorded already" in said
    assert by_size(tmp_path) == (right | {(2, "waits"): ("ok", "")}, 9)

    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(set(keys)) == 6  # a repeated row has the key of the one before
