"""Compiling ahead: what is compiled before a run, and that the run finds it."""

from dataclasses import replace

import pytest

from mamba3_bench.bench import ahead
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.jobs import Entry, Job, Settings
from mamba3_bench.kernels.families.mamba3 import hard_cases
from mamba3_bench.kernels.family import family

pytest.importorskip("triton")

SMALL = problems(Axes(heads=(2,), head_size=(32,), state=(16,), dtype=("bf16",), length=(64, 96)))


class Progress:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def ahead(self, done, total):
        self.told.append((done, total))


def job(problem, *backends):
    return Job(tuple(Entry(problem, backend) for backend in backends))


def test_each_kernel_is_asked_for_once_with_its_hard_cases():
    """Two lengths share their hard cases; torch compiles nothing, an unknown backend is left."""
    jobs = ahead.compile_jobs([job(p, "triton", "torch", "nobody") for p in SMALL])
    asked = [(entry.problem, entry.backend) for j in jobs for entry in j.entries]
    cases = {case.problem for p in SMALL for case in hard_cases(p)}
    assert len(asked) == len(set(asked))
    assert set(asked) == {(p, "triton") for p in (*SMALL, *cases)}


def test_a_hard_case_is_compiled_with_the_config_of_its_problem():
    """The gate runs hard cases with the config that is timed, not with their own default."""
    config = {"chunk": 16, "piece": 0, "segment": 0, "num_warps": 4, "num_stages": 1}
    jobs = ahead.compile_jobs([Job((Entry(SMALL[0], "triton", config),))])
    assert len(jobs) > 1
    assert all(j.entries[0].config == config for j in jobs)


def test_nothing_is_compiled_for_a_machine_that_could_not_use_it():
    """A CPU, or a GPU that is not what `resources` compiles for."""
    progress = Progress()
    for environment in ({}, {"compute_capability": "8.0"}):
        ahead.compile_ahead([job(SMALL[0], "triton")], environment, Settings("sweep"), progress)
    assert progress.told == []


def test_compiled_kernels_are_found_on_disk(tmp_path, monkeypatch):
    """The launch of a packed hard case compiles nothing after the pool of processes did."""
    from mamba3_bench.kernels.cases import make_call
    from mamba3_bench.kernels.triton import compile, prefill

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    packed = next(case.problem for case in hard_cases(SMALL[0]) if case.problem.lengths)
    packed = replace(packed, has_state=False)
    progress = Progress()
    alone = replace(family("prefill"), hard_cases=lambda problem: [])
    monkeypatch.setattr(ahead, "family", lambda op: alone)
    environment = {"compute_capability": ahead.COMPILED_FOR}
    ahead.compile_ahead([job(packed, "triton")], environment, Settings("sweep"), progress)
    assert progress.told == [(1, 1)]
    before = set(tmp_path.rglob("*.cubin"))
    assert before
    call = make_call(packed, 0)
    config = next(iter(prefill.configs(packed, call.y.device)))
    for launch in prefill.launches(call, config):
        compile.compile_kernel(launch.kernel, *launch.args, **launch.options)
    assert set(tmp_path.rglob("*.cubin")) == before
