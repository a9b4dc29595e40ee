"""The package without Triton, without any other DSL, without extras, and without a GPU."""

import subprocess
import sys
from pathlib import Path

import mamba3_bench

ROOT = Path(mamba3_bench.__file__).parent
DSLS = ("triton", "tilelang", "cutlass")
FOLDERS = ("triton", "tilelang", "cute")  # of kernels/: what needs a DSL lives there alone
EXTRAS = {"ray": ("bench", "cluster")}  # what an extra brings, and the one module that needs it

PRELUDE = f"""
import sys
sys.modules.update(dict.fromkeys({(*DSLS, *EXTRAS)}))  # importing them raises ModuleNotFoundError
"""


def python(script: str) -> str:
    """What a fresh interpreter prints for a script."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[str]:
    """Every module of the package, but those of DSLs, extras and adapters to other packages."""
    found = []
    for folder in ("", "reference", "kernels", "bench", "reports"):
        files = (ROOT / folder).glob("*.py") if not folder else (ROOT / folder).rglob("*.py")
        for file in files:
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "kernels" and parts[1] in FOLDERS:
                continue
            if parts in EXTRAS.values():
                continue
            if parts[:2] == ("bench", "peers") and parts[2] != "__init__":
                continue
            found.append(".".join(("mamba3_bench", *(p for p in parts if p != "__init__"))))
    return sorted(found)


def test_every_other_module_imports_without_a_dsl() -> None:
    """Nothing else imports a DSL or an extra, at any depth."""
    names = modules()
    assert {"mamba3_bench", "mamba3_bench.kernels.torch.prefill"} <= set(names)
    python(f"import importlib\nfor name in {names}:\n    importlib.import_module(name)")


def test_the_ops_run_without_a_dsl() -> None:
    """Backends without their DSL say so, and the default is torch."""
    printed = python("""
import torch
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import prefill
from mamba3_bench.kernels.problem import Problem
print(registry.unavailable("prefill", "triton"))
p = Problem("prefill", 1, 3, 2, 1, 4, 8, 1, 2, torch.float32, torch.float32)
print(registry.choose("prefill", "auto", p, torch.device("cpu")).backend)
y, _ = prefill(make_call(p, 0).inputs)
print(bool(y.isfinite().all()))
""").splitlines()
    assert "cannot import its DSL" in printed[0]
    assert "triton" in printed[0]
    assert printed[1:] == ["torch", "True"]
