"""What the TileLang prefill compiles to for an H100, and what its launches are, without one."""

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import OptionError
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem

pytest.importorskip("tilelang", reason="needs tilelang")

from mamba3_bench.kernels.tilelang.compile import has_nvcc

needs_nvcc = pytest.mark.skipif(not has_nvcc(), reason="needs nvcc")
CPU = torch.device("cpu")
MIMO = tuple(name for name in OPTIONAL if name != "out_norm")


def problem(**fields: Any) -> Problem:
    """The prefill of one layer of the published MIMO models; one sequence, which is cut."""
    usual = {
        "B": 1, "L": 2048, "H": 64, "G": 1, "P": 64, "N": 128, "R": 4, "S": 32,
        "dtype": torch.bfloat16, "state_dtype": torch.float32, "optional": MIMO,
        "options": Options(pairing="half"),
    }  # fmt: skip
    return Problem(op="prefill", **(usual | fields))


def kernels(case: Problem) -> set[Any]:
    """What each launch of a problem has compiled: two equal ones are one compilation."""
    from mamba3_bench.kernels.tilelang import prefill

    config = replace(next(prefill.configs(case, CPU)), piece=32, segment=64)
    call = make_call(case, 0, "meta" if case.lengths is None else "cpu")
    launches = list(prefill.launches(call, config))
    assert [one.name for one in launches] == ["activate", "segment_states", "scan"]
    return {(one.build, one.facts, one.options, one.fast) for one in launches}


def test_what_is_known_at_run_time_is_no_part_of_the_kernel() -> None:
    """Batch, length, heads, groups, packing and a state find the same three kernels."""
    case = problem()
    run_time = [
        {"B": 3}, {"L": 1000}, {"H": 6, "G": 3}, {"has_state": True}, {"theta_per_head": True},
        {"lengths": (5, 0, 66), "L": 71, "H": 2},
    ]  # fmt: skip
    for fields in run_time:
        assert kernels(replace(case, **fields)) == kernels(case), fields
    assert kernels(replace(case, R=2)) != kernels(case)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"piece": 24}, "piece: expected a multiple of 16 tokens, or 0 for all, got 24"),
        ({"piece": 32, "segment": 48}, "segment: expected a multiple of 32 tokens"),
        ({"segment": 8}, "segment: expected a multiple of 16 tokens"),
        ({"blocks": 0}, "blocks: expected one of 1, 2, 3, 4, got 0"),
        ({"stages": 5}, "stages: expected one of 1, 2, 3, 4, got 5"),
        ({"registers": 100}, "registers: expected one of 0, 128, .*, 240, got 100"),
    ],
)
def test_a_config_that_cuts_wrongly_is_refused(config: dict[str, int], said: str) -> None:
    """By an error that names the field: the kernel would skip tokens. A chunk has 16 for R = 4."""
    from mamba3_bench.kernels.tilelang import prefill

    call = make_call(problem(), 0, "meta")
    with pytest.raises(OptionError, match=f"config.{said}"):
        list(prefill.launches(call, prefill.Config(**config)))


def test_more_sequences_than_a_grid_has_are_refused() -> None:
    """65535 rows of a batch are taken, one more is not."""
    from mamba3_bench.kernels.tilelang import prefill

    assert "65536 sequences" in str(prefill.supports(problem(B=65536), registry.COMPILE_ONLY))
    assert "65535 sequences" not in str(prefill.supports(problem(B=65535), registry.COMPILE_ONLY))


@needs_nvcc
@pytest.mark.slow
def test_published_shape_compiles(record_property: Any) -> None:
    """Eight numbers spill at most, and two blocks of `scan` fit an SM of 228 KB."""
    implementation = registry.get("prefill", "tilelang")
    assert implementation.resources is not None
    config = implementation.default(problem(), CPU)
    for one in implementation.resources(problem(), config):
        record_property(one.kernel, f"{one.registers} registers, {one.spills} B spilled")
        assert one.spills <= 32
        assert one.registers * one.threads * config.blocks <= 65536
        assert (one.shared + 1024) * config.blocks <= 228 * 1024


@needs_nvcc
@pytest.mark.slow
def test_packed_sequences_take_the_same_kernels() -> None:
    """They are compiled ahead as all others are: their lengths are known at run time."""
    implementation = registry.get("prefill", "tilelang")
    assert implementation.resources is not None
    config = implementation.default(problem(), CPU)
    activate, _, scan = implementation.resources(problem(), config)
    packed = problem(L=39, lengths=(5, 0, 33, 1))
    assert implementation.resources(packed, config) == [activate, scan]


@needs_nvcc
@pytest.mark.slow
def test_one_config_fits_a_block_of_99_kb() -> None:
    """One stage of shared memory is what cards other than data-centre ones have."""
    from mamba3_bench.kernels.tilelang import compile, prefill

    config = list(prefill.configs(problem(), CPU))[1]
    scan = list(prefill.launches(make_call(problem(), 0, "meta"), config))[-1]
    found = compile.resources(scan.kernel(), scan.name, scan.threads)
    assert found.shared <= 99 * 1024


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"R": 4, "N": 128}, {"R": 1, "N": 256, "S": 128}, {"R": 1, "N": 128, "S": 64}],
    ids=str,
)
def test_all_options_at_the_largest_size_compile(fields: dict[str, Any]) -> None:
    """Two warp groups share the norm over P = 128, and a block's shared memory is what there is."""
    case = problem(P=128, optional=OPTIONAL, **fields)
    implementation = registry.get("prefill", "tilelang")
    assert implementation.resources is not None
    for one in implementation.resources(case, implementation.default(case, CPU)):
        assert one.shared <= 227 * 1024


class OnGpu:
    """A tensor that tells consumers of its memory that it lies on a GPU."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.tensor.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device_type = ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8)
        device_type.value = 2
        return capsule


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would launch on memory of the CPU")
def test_kernels_accept_what_the_launches_pass(seed: int) -> None:
    """The compiled host code finds shapes, dtypes and strides right, and then no driver."""
    import tvm_ffi

    from mamba3_bench.kernels.tilelang import prefill

    cases = [
        problem(B=2, L=100, H=4, has_state=True),
        problem(L=39, lengths=(5, 0, 33, 1), H=6, G=2, theta_per_head=True),
    ]
    for case in cases:
        config = replace(next(prefill.configs(problem(), CPU)), piece=16, segment=32)
        for launch in prefill.launches(make_call(case, seed), config):
            args = [
                tvm_ffi.from_dlpack(OnGpu(arg)) if isinstance(arg, torch.Tensor) else arg
                for arg in launch.args
            ]
            with pytest.raises(Exception, match="CUDA"):
                launch.kernel().adapter.executable(*args)
