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
    """0.2 % between processes: nothing is called different, and 1.5 % is found."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(seed), 0.002))
    assert one.agreement.comparisons == SHAPES * PROCESSES * (PROCESSES - 1) // 2
    assert one.agreement.false_rate == 0
    assert one.agreement.between_sd == pytest.approx(0.002, rel=0.3)
    assert one.smallest == 0.015
    found = [each.found for each in one.detected]
    assert found == sorted(found)


def test_a_noisy_machine_says_so_and_claims_nothing(seed):
    """5 % between processes: still no false difference; only a large slowdown is found."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(seed), 0.05))
    assert one.agreement.false_rate <= 0.02
    assert one.smallest is None or one.smallest >= 0.2


def test_one_process_says_nothing():
    """There is nothing to compare it with."""
    one = SelfTest({})
    measure_agreement(one, rows(np.random.default_rng(0), 0.01)[:SHAPES])
    assert one.agreement is None
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
    assert one.agreement.comparisons == 6
    assert dict(facts(one))["CUPTI: not done"].startswith("no GPU")
    raw = json.loads((tmp_path / "selftest.json").read_text())
    assert raw["environment"]["command"] == f"mamba3-bench {line}"
