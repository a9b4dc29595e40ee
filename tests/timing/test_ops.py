"""A developer's timing loop over the ops, by pytest-benchmark: `tox -e bench`.

For comparing edits of one kernel at one's desk. Times here include the launch, and the GPU is
waited for inside the timed function; published numbers come from `mamba3-bench sweep`. In the
ordinary tests, where benchmarks are disabled, each case runs and must give finite results.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import decode
from mamba3_bench.kernels.problem import OpName, Problem

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# one case of each kind that is worth watching; tiny where there is no GPU
SIZES: dict[OpName, list[dict[str, int]]] = {
    "prefill": [{"B": 1, "L": 1000}, {"B": 1, "L": 16384}, {"B": 8, "L": 2048}]
    if ON_GPU
    else [{"B": 1, "L": 67}, {"B": 2, "L": 33}],
    "decode": [{"B": 1, "L": 1}, {"B": 128, "L": 1}] if ON_GPU else [{"B": 3, "L": 1}],
}
H, P, N = (64, 64, 128) if ON_GPU else (2, 32, 32)
CASES = [
    pytest.param(op, backend, size, id=f"{op}-{backend}-B{size['B']}-L{size['L']}")
    for op, backend in registry.MODULES
    if backend != "reference" and op in SIZES
    for size in SIZES[op]
]


def problem(op: OpName, size: dict[str, int], dtype: torch.dtype, R: int) -> Problem:
    """A layer with everything the official one has."""
    mimo = ("mimo_x", "mimo_z", "mimo_o") if R > 1 else ()
    return Problem(
        op=op,
        **size,
        H=H,
        G=1,
        P=P,
        N=N,
        R=R,
        S=N // 4,
        dtype=dtype,
        state_dtype=torch.float32,
        optional=("z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d", *mimo),
        has_state=op == "decode",
    )


@pytest.mark.parametrize("R", [1, 4], ids="R{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("op", "backend", "size"), CASES)
def test_op(
    benchmark: BenchmarkFixture,
    op: OpName,
    backend: str,
    size: dict[str, int],
    dtype: torch.dtype,
    R: int,
) -> None:
    """Time one backend on one case; the call writes finite values everywhere."""
    case = problem(op, size, dtype, R)
    if reason := registry.refusal(op, backend, case, DEVICE):
        pytest.skip(reason)
    implementation = registry.get(op, backend)
    config = implementation.default(case, DEVICE)
    call = make_call(case, seed=0, device=DEVICE)

    def run() -> None:
        """One call until its results are there: pytest-benchmark itself waits for no GPU."""
        implementation.run(call, config)
        if ON_GPU:
            torch.cuda.synchronize(DEVICE)

    call.poison()
    run()  # compiles
    for name, tensor in call.outputs().items():
        assert tensor.isfinite().all(), name
    benchmark.extra_info |= {"flops": case.flops, "bytes": case.bytes}
    benchmark(run)  # decode moves its state on with every round; the work is the same


@pytest.mark.parametrize("R", [1, 4], ids="R{}".format)
def test_host_time_of_an_eager_decode(benchmark: BenchmarkFixture, R: int) -> None:
    """What a call of the public op takes of the host, its queue drained before: 20 us at most.

    Where there is no GPU it is the whole call.
    """
    call = make_call(problem("decode", {"B": 1, "L": 1}, torch.bfloat16, R), 0, DEVICE)
    if reason := registry.refusal("decode", "cute" if ON_GPU else "torch", call.problem, DEVICE):
        pytest.skip(reason)
    arguments = (call.inputs, call.params, call.final)
    y = decode(*arguments)
    assert y.isfinite().all()

    def drained() -> None:
        if ON_GPU:
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(decode, args=arguments, setup=drained, warmup_rounds=20, rounds=200)
