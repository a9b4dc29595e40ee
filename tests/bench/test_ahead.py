"""Compiling ahead: what is compiled before a run, and that the run finds it."""

import os
import time
from dataclasses import replace

import pytest

from mamba3_bench.bench import ahead, plugins
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.jobs import Entry, Job, Settings
from mamba3_bench.bench.kept import Kept
from mamba3_bench.bench.ledger import Slot
from mamba3_bench.bench.rows import blank_row
from mamba3_bench.bench.runner import Runner
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.families.mamba3 import hard_cases
from mamba3_bench.kernels.family import family

pytest.importorskip("triton")

SMALL = problems(Axes(heads=(2,), head_size=(32,), state=(16,), dtype=("bf16",), length=(64, 96)))


RIVALS = """
import os, pathlib
from mamba3_bench.kernels.bound import Stages
from mamba3_bench.kernels.registry import adapts

def rival(name):
    def launch(call):
        for i in range(9):
            file = pathlib.Path({folder!r}) / f"ran-{{os.getpid()}}-{{i}}"
            if not file.exists():
                break
        file.write_text(f"{{name}} {{call.problem.L}}")
    stages = Stages(lambda call, config: {{"call": call}}, launch, lambda *_: None)
    adapts("prefill", name, stages, supports=lambda problem, device: None)

rival("theirs")
rival("also theirs")
"""


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """No earlier run has compiled anything."""
    monkeypatch.setenv("MAMBA3_BENCH_CACHE", str(tmp_path / "cache"))


class Progress:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def ahead(self, what, done, total, failed):
        self.told.append((what, done, total, failed))


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


def test_rivals_run_once_side_by_side(tmp_path, monkeypatch):
    """Each by itself, but of one adapter's backends the first alone; ours do not run."""
    plugin = tmp_path / "rivals.py"
    plugin.write_text(RIVALS.format(folder=str(tmp_path)))
    other = tmp_path / "other.py"
    other.write_text(RIVALS.format(folder=str(tmp_path)).replace("theirs", "others"))
    for known in ("_registered", "_added", "_rivals"):  # what the plugin adds ends with the test
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))
    plugins.load([str(plugin), str(other)])
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: range(4))
    progress = Progress()
    settings = Settings("sweep", plugins=(str(plugin), str(other)))
    jobs = [job(p, "torch", "theirs", "also theirs", "others") for p in SMALL]
    ahead.rehearse(jobs, {}, Slot("cpu"), settings, progress, 60.0)
    assert progress.told[-1] == ("rehearsed", 4, 4, 0)
    ahead.rehearse(jobs, {}, Slot("cpu"), settings, again := Progress(), 60.0)
    assert again.told == []  # it lies on disk
    ran = sorted(file.read_text() for file in tmp_path.glob("ran-*"))
    assert ran == ["others 64", "others 96", "theirs 64", "theirs 96"]
    assert len({file.name.split("-")[1] for file in tmp_path.glob("ran-*")}) == 2


@pytest.mark.parametrize(
    ("gigabytes", "count"), [(0.01, 12), (2.2, 12), (2.3, 6), (4.5, 3), (8.8, 3), (8.9, 1)]
)
def test_as_many_side_by_side_as_the_memory_holds(gigabytes, count):
    """Of 80 GB, each process takes three times what its problem moves."""
    assert ahead.beside(int(gigabytes * 1e9), int(80e9)) == count
    assert ahead.beside(int(gigabytes * 1e9), None) == ahead.SIDE_BY_SIDE


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
    assert progress.told == [("compiled", 1, 1, 0)]
    before = set(tmp_path.rglob("*.cubin"))
    assert before
    call = make_call(packed, 0)
    config = next(iter(prefill.configs(packed, call.y.device)))
    for launch in prefill.launches(call, config):
        compile.compile_kernel(launch.kernel, *launch.args, **launch.options)
    assert set(tmp_path.rglob("*.cubin")) == before


def test_what_lies_on_disk_is_left_out():
    """Until a package changes, or a plugin; what failed is tried again."""
    settings, here = Settings("resources"), {"packages": {"triton": "3.6.0"}}
    jobs = ahead.compile_jobs([job(SMALL[0], "triton")])
    kept = Kept(settings, here)
    assert kept.missing(jobs) == jobs
    for status, one in zip(("skipped", "compile-failed"), jobs, strict=False):
        row = blank_row(one.entries[0], settings, here, one.match)
        kept.add(replace(row, status=status))
    assert Kept(settings, here).missing(jobs) == jobs[1:]
    assert Kept(settings, {"packages": {"triton": "3.7.0"}}).missing(jobs) == jobs
    assert Kept(replace(settings, kind="rehearse"), here).missing(jobs) == jobs


LATE = """
import os, pathlib
from mamba3_bench.kernels import registry

{first}
own = registry.get("prefill", "torch")
registry.implements("prefill", "late", supports=own.supports, configs=own.configs)(own.run)
pathlib.Path({file!r}).touch()
"""


def run_late(tmp_path, monkeypatch, first, before):
    """Rows of a backend whose module is imported late, and of torch, by name."""
    (tmp_path / "late_kernel.py").write_text(LATE.format(first=first, file=str(tmp_path / "here")))
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from mamba3_bench.kernels import registry\n"
        'registry.add_module("prefill", "late", "late_kernel")\n'
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    settings = Settings("check", plugins=(str(plugin),))
    slots = [Slot("cpu", {"OMP_NUM_THREADS": "1"})]
    runner = Runner(settings, slots, None, ahead.Quiet("checked", Progress()), before=before)
    return {row.backend: row for row in runner.run([job(SMALL[0], "late", "torch")]).all}


def test_a_worker_imports_while_others_compile(tmp_path, monkeypatch):
    """It has what its jobs will need before the first of them."""
    seen = []

    def before(left, environment):
        end = time.monotonic() + 60
        while not seen and time.monotonic() < end:
            seen.extend(tmp_path.glob("here"))
            time.sleep(0.05)

    rows = run_late(tmp_path, monkeypatch, "", before)
    assert seen
    assert {name: row.status for name, row in rows.items()} == {"late": "ok", "torch": "ok"}


def test_an_import_that_ends_a_worker_costs_its_row(tmp_path, monkeypatch):
    """The others get another worker."""
    rows = run_late(tmp_path, monkeypatch, "os._exit(3)", lambda left, environment: None)
    assert rows["late"].status == "run-failed"
    assert "worker died: exit code 3" in rows["late"].reason
    assert rows["torch"].status == "ok"


def test_what_fails_ahead_is_counted():
    """A compiler that fails on everything is not silent until the GPU is held."""
    progress, settings = Progress(), Settings("resources")
    watch = ahead.Quiet("compiled", progress)
    jobs = [job(problem, "triton") for problem in SMALL]
    watch.planned(len(jobs), 0)
    for one, status in zip(jobs, ("skipped", "compile-failed"), strict=True):
        watch.row(replace(blank_row(one.entries[0], settings, {}, one.match), status=status))
    assert progress.told == [("compiled", 1, 2, 0), ("compiled", 2, 2, 1)]
