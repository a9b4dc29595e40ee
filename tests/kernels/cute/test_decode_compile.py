"""What the decode kernel compiles to for an H100, without one."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import OptionError
from mamba3_bench.kernels.problem import OPTIONAL, Problem

pytest.importorskip("cutlass", reason="needs nvidia-cutlass-dsl")
pytest.importorskip("triton", reason="cuobjdump comes with Triton")

GPU = torch.device("cuda", 0)
MIMO = tuple(name for name in OPTIONAL if name != "out_norm")
SISO = tuple(name for name in MIMO if not name.startswith("mimo"))


def problem(**fields: Any) -> Problem:
    """The decode step of one layer of a 1.5B model, with a few of its heads."""
    usual = {
        "B": 1, "L": 1, "H": 4, "G": 1, "P": 64, "N": 128, "R": 1, "S": 32,
        "dtype": torch.bfloat16, "state_dtype": torch.float32, "has_state": True,
        "optional": SISO,
    }  # fmt: skip
    return Problem(op="decode", **(usual | fields))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("R", [1, 4, 8])
def test_default_config_does_not_spill(R: int, state_dtype: torch.dtype) -> None:
    """The default keeps its rows of h in registers, and its tile in what a block may share."""
    case = problem(R=R, state_dtype=state_dtype, optional=MIMO if R > 1 else SISO)
    implementation = registry.get("decode", "cute")
    assert implementation.resources is not None
    (found,) = implementation.resources(case, implementation.default(case, GPU))
    assert found.spills == 0
    assert 64 * 128 * state_dtype.itemsize < found.shared < 227 * 1024


def covering_set(N: int) -> dict[Any, Problem]:
    """Each config that is offered at a state size, with the largest head size it is offered for.

    What a thread holds at once is rows x N / lanes elements of h and its shares of R rows of b and
    c: fewer ranks, or a smaller N with the same config, need no more registers, and P is the number
    of turns of a loop. The state's dtypes alternate over the configs.
    """
    found = {}
    for P in (32, 64, 128):
        for state_dtype in (torch.float32, torch.bfloat16):
            case = problem(R=8, N=N, P=P, S=N // 4, state_dtype=state_dtype, optional=MIMO)
            for config in registry.get("decode", "cute").configs(case, GPU):
                found[config, state_dtype] = case
    dtypes = itertools.cycle((torch.float32, torch.bfloat16))
    kept = {}
    for config in dict.fromkeys(config for config, _ in found):
        wanted = next(dtypes)
        offered = [found[pair] for pair in found if pair[0] == config]
        kept[config] = next((c for c in offered if c.state_dtype == wanted), offered[-1])
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("N", [128, 256])
def test_no_config_spills(N: int) -> None:
    """Every config compiles without a spill for the largest rank, in what a block may share."""
    implementation = registry.get("decode", "cute")
    assert implementation.resources is not None
    for config, case in covering_set(N).items():
        (found,) = implementation.resources(case, config)
        assert found.spills == 0, (config, case)
        assert found.shared <= 227 * 1024, (config, case)


def test_compiled_kernels_are_found_on_disk(tmp_path: Path, monkeypatch: Any) -> None:
    """What is compiled once is loaded by others; another config or GPU is another file."""
    from mamba3_bench.kernels.cute import compile, decode

    monkeypatch.setenv("MAMBA3_BENCH_CACHE", str(tmp_path))
    compiled = []
    build = compile.host_function
    monkeypatch.setattr(
        compile, "host_function", lambda *a, **options: compiled.append(1) or build(*a, **options)
    )
    facts = decode.facts_of(problem())
    one, other = decode.Config(128, 16, 4), decode.Config(128, 8, 4)
    asked = [(one, "sm_90a"), (one, "sm_90a"), (other, "sm_90a"), (one, "sm_100a")]
    files = []
    for config, target in asked:
        decode.kept.cache_clear()  # as in another process
        files.append(decode.kept(facts, config, target))
    assert files[0] == files[1]
    assert len(compiled) == len(set(files)) == 3
    assert {path.parent for path in files} == {tmp_path / "cute"}
    assert callable(compile.loaded(files[0]))
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "cute", *set(files)])  # no scratch


@pytest.mark.parametrize("fields", [(96, 16, 4), (128, 16, 3), (128, 4, 4), (256, 16, 16)])
def test_a_config_that_leaves_rows_out_is_refused(fields: tuple[int, int, int]) -> None:
    """By an error, before anything is compiled."""
    from mamba3_bench.kernels.cute import decode

    call = make_call(problem(), 0)
    with pytest.raises(OptionError, match=r"divides 64 x 128, got threads=\d+ bytes=\d+ rows=\d+"):
        decode.launcher(call, decode.Config(*fields))
    decode.check_config(decode.Config(128, 16, 4), call.problem)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_moves_in_16_byte_words(state_dtype: torch.dtype) -> None:
    """Bulk copies bring all of h, and whole 16-byte words take it back."""
    from mamba3_bench.kernels.cute import compile, decode

    config = decode.Config(threads=128, bytes=16, rows=4)
    facts = decode.facts_of(problem(state_dtype=state_dtype))
    kernel = decode.kernel_of(facts, config)
    ptx = compile.ptx(kernel, *decode.fake_arguments(facts))
    assert ptx.count("\tcp.async.bulk.shared") == kernel.pieces
    assert ptx.count("st.global.v4.b32") == 4  # of 16 bytes each, for 4 rows of a chunk
    assert 128 * 4 * 16 * kernel.pieces == 64 * 128 * state_dtype.itemsize


@pytest.mark.parametrize("R", [4, 8])
def test_tensor_cores_store_16_byte_words(R: int) -> None:
    """A store of h that falls apart costs L2 three requests with parts of sectors, for one."""
    from mamba3_bench.kernels.cute import compile, decode

    case = problem(R=R, state_dtype=torch.bfloat16, optional=MIMO)
    config = decode.Config(threads=128, bytes=16, rows=2, tensor_cores=True)
    facts = decode.facts_of(case)
    ptx = compile.ptx(decode.kernel_of(facts, config), *decode.fake_arguments(facts))
    assert ptx.count("st.global.v4.b32") == 16 * 128 * 2 // (32 * 16)  # a warp's 16 rows
    assert ptx.count("st.global.v2.b32") == 0


def test_batch_and_heads_are_no_part_of_the_kernel() -> None:
    """Another batch, head count, group count or pool size finds the same compiled kernel."""
    from mamba3_bench.kernels.cute import decode

    cases = [problem(), problem(B=3, H=12, G=2), problem(B=2, H=5, G=5)]
    assert len({decode.facts_of(case) for case in cases}) == 1
    pools = [replace(case, pool=case.B + 4) for case in cases]
    assert len({decode.facts_of(case) for case in pools}) == 1
    assert decode.facts_of(pools[0]) != decode.facts_of(cases[0])


def test_arguments_name_every_tensor_once(seed: int) -> None:
    """Addresses in the order of the compiled function, None where it was compiled for None."""
    from mamba3_bench.kernels.cute import decode

    case = problem(B=3, pool=5, optional=("z", "d"))
    call = make_call(case, seed)
    given = [*decode.addresses(call), *decode.constants(call)]
    fake = decode.fake_arguments(decode.facts_of(case))
    assert [value is None for value in given] == [value is None for value in fake]
    assert call.state is not None
    assert given[19] == call.state.h.data_ptr()  # after 8 inputs, 10 parameters and phi
    addresses = [value for value in given[:24] if value is not None]
    assert len(set(addresses)) == len(addresses) == 7 + 1 + 1 + 4 + 1 + 1
    assert given[24:] == [call.inputs.x.stride(0)] * 8 + [3, 4, 1]  # slices of one projection
