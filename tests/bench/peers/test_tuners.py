"""Autotuners of other libraries are found behind their decorators and made to choose anew."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from mamba3_bench.bench import peers

triton = pytest.importorskip("triton")


def kernel(x_ptr, SIZE: triton.language.constexpr):
    """Never compiled here."""


@pytest.fixture
def library(monkeypatch):
    """A package with one kernel, tuned behind heuristics and imported twice."""
    configs = [triton.Config({}, num_warps=warps) for warps in (1, 2, 4)]
    tuned = triton.autotune(configs, key=["SIZE"])(triton.jit(kernel))
    outer = triton.heuristics({"SIZE": lambda args: 8})(tuned)
    for name in ("madeup", "madeup.ops"):
        module = ModuleType(name)
        module.kernel = outer
        module.other = triton.jit(kernel)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "madeuptoo", SimpleNamespace(kernel=kernel))
    return tuned


def test_each_tuner_of_a_package_is_found_once(library, adapter):
    """Behind heuristics, in any of its modules; kernels without a choice are none."""
    assert list(adapter("tuners").tuners("madeup")) == [library]
    assert list(adapter("tuners").tuners("madeuptoo")) == []


@pytest.mark.parametrize("rehearsing", [False, True])
def test_a_rehearsal_launches_once_and_compares_nothing(library, adapter, monkeypatch, rehearsing):
    """The same call takes Triton's benchmark otherwise."""
    tuners = adapter("tuners")
    monkeypatch.setattr(peers, "rehearsing", rehearsing)
    bench = SimpleNamespace(get_benchmarker=lambda: lambda launch, **_: launch() or [2.0] * 3)
    monkeypatch.setattr(tuners, "driver", SimpleNamespace(active=bench))
    tuners.forget("madeup")
    launched = []
    found = library.do_bench(lambda: launched.append(1), quantiles=(0.5, 0.2, 0.8))
    assert found == [1.0 if rehearsing else 2.0] * 3
    assert launched == [1]


def test_forget_drops_choices_and_compiles_before_comparing(library, adapter, monkeypatch):
    """All configs are compiled, each once and not launched, when Triton next has to choose."""
    library.cache["key"] = library.configs[0]
    adapter("tuners").forget("madeup")
    adapter("tuners").forget("madeup")  # a second problem: nothing is wrapped twice
    assert library.cache == {}
    compiled = []
    run = SimpleNamespace(run=lambda *args, **kwargs: compiled.append((args, kwargs)))
    monkeypatch.setattr(library, "fn", run)
    library.nargs = {"x_ptr": "x"}
    assert library.prune_configs({"SIZE": 8, "grid": (1,), "warmup": False}) == library.configs
    assert [args for args, _ in compiled] == [("x",)] * 3
    assert [kwargs["num_warps"] for _, kwargs in compiled] == [1, 2, 4]
    assert all(kwargs["warmup"] for _, kwargs in compiled)
