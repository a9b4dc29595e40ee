"""Keys: what makes a measurement another one, and what does not."""

from dataclasses import fields, replace

import pytest
import torch

from mamba3_bench.bench import hardware, keys
from mamba3_bench.bench.jobs import Entry, Settings
from mamba3_bench.kernels import lookup
from mamba3_bench.kernels.problem import Options, Problem

PROBLEM = Problem("prefill", 2, 64, 4, 2, 32, 16, 1, 4, torch.bfloat16, torch.float32)
ENTRY = Entry(PROBLEM, "triton", {"chunk": 64})
SETTINGS = Settings("sweep")
ENVIRONMENT = {
    "device": "cuda", "gpu": "NVIDIA H100", "driver": "570.1", "cuda": "12.8", "ptxas": "12.8.93",
    "python": "3.12.3", "packages": {"torch": "2.13.0", "triton": "3.7.1"}, "interpreted": False,
    "cpu": "a", "cpu_count": 2, "version": "1", "commit": "e9594ce", "dirty": False,
    "command": "mamba3-bench sweep", "ceilings": {"copy_bytes_per_s": 3e12},
}  # fmt: skip


def key(problem=PROBLEM, entry=ENTRY, settings=SETTINGS, environment=ENVIRONMENT):
    if problem != PROBLEM:
        entry = replace(entry, problem=problem)
    return keys.key(entry, settings, environment)


def test_equal_parts_make_equal_keys():
    """The same in another process and on another day; short enough to read."""
    assert key() == key(replace(PROBLEM), replace(ENTRY), replace(SETTINGS), dict(ENVIRONMENT))
    assert len(key()) == 20


OTHER = {
    "op": "decode", "B": 3, "L": 65, "H": 8, "G": 1, "P": 64, "N": 32, "R": 2, "S": 8,
    "dtype": torch.float16, "state_dtype": torch.float16, "options": Options(pairing="half"),
    "optional": ("z",), "theta_per_head": True, "has_state": True, "lengths": (64, 64), "pool": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Problem)])
def test_another_problem(name):
    """Every field counts, and none is forgotten here when one is added."""
    assert key(problem=replace(PROBLEM, **{name: OTHER[name]})) != key()


@pytest.mark.parametrize("option", ["step", "decay", "norm", "matmul"])
def test_other_options(option):
    """Each option counts."""
    value = {"step": "activated", "decay": "softplus", "norm": "normalised", "matmul": "tf32"}
    assert key(problem=replace(PROBLEM, options=Options(**{option: value[option]}))) != key()


def test_another_config_backend_kind_or_seed():
    """Each is another measurement; no config means the default, whatever that is."""
    others = [
        key(entry=Entry(PROBLEM, "triton", {"chunk": 32})),
        key(entry=Entry(PROBLEM, "triton")),
        key(entry=Entry(PROBLEM, "torch", {"chunk": 64})),
        key(settings=replace(SETTINGS, seed=1)),
        key(settings=replace(SETTINGS, kind="check")),
    ]
    assert len({key(), *others}) == 6


def test_tuned_configs_count_where_no_config_is_named(tmp_path, monkeypatch):
    """Where they come from is `off`, or what is in a folder; an empty variable is none."""
    chosen = Entry(PROBLEM, "triton")
    monkeypatch.delenv(lookup.VARIABLE, raising=False)
    named, found = key(), [key(entry=chosen)]
    for name, text in (("a", "1"), ("b", "2"), ("same", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "H100.json").write_text(text)
    for value in ("off", *(str(tmp_path / name) for name in ("a", "b", "same"))):
        monkeypatch.setenv(lookup.VARIABLE, value)
        found.append(key(entry=chosen))
        assert key() == named
    assert len(set(found)) == 4
    assert found[-1] == found[-2]
    monkeypatch.setenv(lookup.VARIABLE, "")
    assert key(entry=chosen) == found[0]


@pytest.mark.parametrize("name", [name for name in hardware.IDENTITY if name != "nvcc"])
def test_another_environment(name):
    """GPU, driver, toolchain and packages count."""
    assert key(environment=ENVIRONMENT | {name: "other"}) != key()


def test_compilers_count_for_who_calls_them():
    """Triton brings its assembler, TileLang calls nvcc; for others nothing is known of it."""
    ptxas, nvcc = ({"ptxas": "13.1"}, {"nvcc": "13.1"})
    for backend, counts in (("triton", ptxas), ("tilelang", nvcc), ("torch", {})):
        entry = replace(ENTRY, backend=backend)
        for other in (ptxas, nvcc):
            same = key(entry=entry, environment=ENVIRONMENT | other) == key(entry=entry)
            assert same == (other is not counts), (backend, other)
    mine = replace(ENTRY, backend="mine")
    assert key(entry=mine, environment=ENVIRONMENT | nvcc) != key(entry=mine)


def test_packages_that_a_backend_does_not_run_on_do_not_count():
    """Another DSL beside Triton; for a plugin, of which nothing is known, it counts."""
    more = ENVIRONMENT | {"packages": ENVIRONMENT["packages"] | {"tilelang": "0.1.15"}}
    newer = ENVIRONMENT | {"packages": ENVIRONMENT["packages"] | {"triton": "3.8.0"}}
    assert key(environment=more) == key()
    assert key(environment=newer) != key()
    mine = replace(ENTRY, backend="mine")
    assert key(entry=mine, environment=more) != key(entry=mine)


def test_what_does_not_count():
    """Command line, commit, ceilings, time budget: the source's own text counts, not its name."""
    environment = ENVIRONMENT | {
        "command": "mamba3-bench sweep --yes", "commit": None, "dirty": True, "ceilings": None,
        "cpu_count": 64, "cpu": "b", "version": "2",
    }  # fmt: skip
    settings = replace(SETTINGS, budget_s=9.0, command="mamba3-bench sweep --yes")
    entry = replace(ENTRY, key="an old key")
    assert key(entry=entry, settings=settings, environment=environment) == key()


def test_the_processor_counts_where_it_is_timed():
    """On a machine without a GPU."""
    here = ENVIRONMENT | {"device": "cpu", "gpu": None}
    assert key(environment=here) != key(environment=here | {"cpu": "b"})


def changed(monkeypatch, wanted):
    """The hash of a source while one of its files reads as changed, and whether it was read."""
    read = keys.Path.read_bytes
    seen = []

    def other(path):
        if path.match(wanted):
            seen.append(path)
            return read(path) + b"\n"
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(keys.Path, "read_bytes", other)
        return keys.source_hash.__wrapped__("prefill", "triton", ()), seen


@pytest.mark.parametrize(
    "wanted",
    ["kernels/triton/prefill.py", "kernels/triton/functions.py", "kernels/call.py",
     "kernels/cases.py", "kernels/torch/prefill.py", "reference/mamba3.py", "bench/gate.py",
     "kernels/families/mamba3.py", "bench/timing.py", "bench/graphs.py", "bench/worker.py",
     "bench/clocks.py", "bench/ceilings.py"],
)  # fmt: skip
def test_another_source(monkeypatch, wanted):
    """The kernel's own folder, the interface, its judges, and the code that measures."""
    other, seen = changed(monkeypatch, wanted)
    assert seen
    assert other != keys.source_hash("prefill", "triton", ())


@pytest.mark.parametrize("wanted", ["bench/cli.py", "bench/show.py", "bench/keys.py"])
def test_source_that_measures_nothing(monkeypatch, wanted):
    """How a result is shown has no part in it."""
    other, seen = changed(monkeypatch, wanted)
    assert not seen
    assert other == keys.source_hash("prefill", "triton", ())


def test_a_plugin_counts_by_what_is_in_it(tmp_path):
    """Changed text is another source; another plugin too; nothing is imported for it."""
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise SystemExit\n")
    hashes = [keys.source_hash.__wrapped__("prefill", "mine", (str(plugin),))]
    plugin.write_text("raise SystemExit(1)\n")
    hashes.append(keys.source_hash.__wrapped__("prefill", "mine", (str(plugin),)))
    hashes.append(keys.source_hash.__wrapped__("prefill", "mine", ()))
    assert len(set(hashes)) == 3
