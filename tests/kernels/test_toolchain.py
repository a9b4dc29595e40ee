"""The versions of the compilers that kernels are made with."""

import pytest

from mamba3_bench.kernels import toolchain


def compiler(folder, name, text):
    """A program that prints text when it is asked for its version."""
    folder.mkdir(parents=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{text}'\n")
    path.chmod(0o755)


@pytest.fixture
def nvcc(monkeypatch, tmp_path):
    """The version found in an environment that a test sets up; no nvcc but the package's yet."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return toolchain.nvcc_version.__wrapped__


def test_nvcc_is_that_of_cuda_home_then_the_first_on_the_path(nvcc, monkeypatch, tmp_path):
    """In the order in which TileLang looks for it."""
    compiler(tmp_path / "path", "nvcc", "Cuda compilation tools, release 12.9, V12.9.86")
    compiler(tmp_path / "home" / "bin", "nvcc", "Cuda compilation tools, release 13.1, V13.1.5")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert nvcc() == "12.9.86"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert nvcc() == "13.1.5"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc() is None


def test_nvcc_is_the_one_that_tilelang_calls():
    """Whatever this machine has."""
    compile = pytest.importorskip("mamba3_bench.kernels.tilelang.compile")
    assert (toolchain.nvcc_version() is None) == (compile.nvcc() is None)


def test_a_fingerprint_has_the_compilers_that_a_backend_calls():
    """And no others."""
    here = {"driver": "580", "ptxas": "12.8", "nvcc": "13.0", "packages": {"torch": "2.11"}}
    found = {
        backend: toolchain.made_with(backend, here, "hash")
        for backend in ("triton", "tilelang", "cute")
    }
    assert found["triton"]["ptxas"] == "12.8"
    assert found["tilelang"]["nvcc"] == "13.0"
    assert {"ptxas", "nvcc"} & found["cute"].keys() == set()
    assert "nvcc" not in found["triton"]
    assert not any({"driver", "torch"} & one.keys() for one in found.values())
    for backend in ("torch", "mine"):  # PyTorch's own kernels, and one of which nothing is known
        assert toolchain.made_with(backend, here, "hash") == {"torch": "2.11", "source": "hash"}
