"""The self-test: what it says of rows whose noise is known, and that it runs on a CPU."""

import json
import math

import numpy as np
import pytest

from mamba3_bench.bench.budget import SelfTest, facts
from mamba3_bench.bench.cli import main
from mamba3_bench.bench.records import Row, Times
from mamba3_bench.bench.selftest import measure_agreement
from mamba3_bench.bench.timing import summarise

PROCESSES, SHAPES = 5, 12


def rows(rng, between, drift=0.0):
    """The same shapes in several processes, that differ by a share between them."""
    found = []
    for process in range(PROCESSES):
        for shape in range(1, SHAPES + 1):
            us = 10.0 * shape * math.exp(rng.normal(0, between) + drift * process)
            samples = summarise(list(us * (1 + rng.normal(0, 0.001, 40))))
            found.append(
                Row(
                    key=f"{process} {shape}", op="decode", backend="triton", status="ok", reason="",
                    problem={"B": shape}, config={}, seed=0, bytes=1, flops=1, environment={},
                    times=Times("cuda", samples, None, None, 1980.0), repeat=process,
                )
            )  # fmt: skip
    return found


def test_a_quiet_machine(seed):
    """0.1 % between processes: nothing is called different; repeats find less than single runs."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(seed), 0.001))
    assert one.single.comparisons == SHAPES * PROCESSES * (PROCESSES - 1) // 2
    assert (one.single.processes, one.repeated.processes) == (1, 2)
    assert one.repeated.comparisons == SHAPES * 3  # halves of the first four processes
    assert one.single.false_rate == one.repeated.false_rate == 0
    assert one.between_sd == pytest.approx(0.001, rel=0.3)
    assert one.repeated.smallest < one.single.smallest <= 0.03
    found = [each.found for each in one.single.detected]
    assert found == sorted(found)


def test_a_noisy_machine_shows_what_single_runs_are_worth(seed):
    """5 % between processes is ten times what is assumed: only repeats keep their word."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(seed), 0.05))
    assert one.single.false_rate > 0.2
    assert one.repeated.false_rate <= 0.05
    assert one.repeated.smallest is None or one.repeated.smallest >= 0.1


def test_one_process_says_nothing():
    """There is nothing to compare it with."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(0), 0.01)[:SHAPES])
    assert one.single is one.repeated is one.between_sd is None
    assert "two processes" in one.not_done["A against A"]


def test_on_a_cpu(tmp_path, capsys, monkeypatch):
    """It runs, says what it could not do, and what it wrote can be read back."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = f"selftest --device cpu --repeat 2 --budget 0.01 --out {tmp_path}"
    assert main(line.split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A against A" in said
    assert "known duration: not done no GPU" in said
    one = SelfTest.read(tmp_path / "selftest.json")
    assert one.single.comparisons == 6
    assert dict(facts(one))["CUPTI: not done"].startswith("no GPU")
    raw = json.loads((tmp_path / "selftest.json").read_text())
    assert raw["environment"]["command"] == f"mamba3-bench {line}"
