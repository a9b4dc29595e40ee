"""Graph timing, on a stand-in for a GPU that replays what was queued on the CPU."""

import time
from dataclasses import replace

import pytest
import torch

from mamba3_bench.bench import graphs, sampler
from mamba3_bench.bench.buffers import touched_bytes
from mamba3_bench.bench.clocks import Reading
from mamba3_bench.bench.gate import Gate
from mamba3_bench.bench.graphs import (
    CLONES,
    MOST_CLONES,
    Clones,
    FalseReplay,
    GraphBench,
    NotCaptured,
)
from mamba3_bench.bench.sampler import Throttled
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.bound import Bound, Stages, direct
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.problem import Problem


class Elapsed:
    """What an event pair would say."""

    def __init__(self, seconds):
        self._seconds = seconds

    def seconds(self):
        return self._seconds


class StandIn:
    """Runs on the CPU: a capture keeps the queue, a replay runs it."""

    def __init__(self, l2_bytes=1 << 16, throttled=()):
        self.l2_bytes = l2_bytes
        self.throttled = list(throttled)  # one entry per reading, then never again
        self.readings = 0

    def free_bytes(self):
        return 1 << 30

    def wait(self):
        pass

    def on_stream(self, queue):
        queue()

    def queue(self, queue):
        queue()

    def capture(self, queue):
        return queue

    def span(self, queue):
        start = time.perf_counter()
        queue()
        return Elapsed(time.perf_counter() - start)

    def reading(self):
        self.readings += 1
        reasons = self.throttled.pop(0) if self.throttled else ()
        return Reading(1500.0, reasons)


class LosesLaunches(StandIn):
    """Work goes to another stream than the captured one: it runs once and is not replayed."""

    def capture(self, queue):
        queue()
        return lambda: None


class RefusesCapture(StandIn):
    """A synchronisation inside makes a capture fail."""

    def capture(self, queue):
        raise RuntimeError("operation not permitted when stream is capturing")


PREFILL = Problem(
    "prefill", 2, 5, 2, 1, 32, 16, 1, 4, torch.bfloat16, torch.float32, optional=("z", "d")
)
DECODE = replace(PREFILL, op="decode", L=1, has_state=True)


@pytest.fixture(autouse=True)
def few_clones(monkeypatch):
    """A CPU is a thousand times slower than what the constants are made for."""
    monkeypatch.setattr(graphs, "FASTEST", 1e8)
    monkeypatch.setattr(sampler, "WARM_UP_S", 0.0)


def solver(problem):
    """The torch backend as a function of a call."""
    implementation = registry.get(problem.op, "torch")
    config = implementation.default(problem, torch.device("cpu"))
    return lambda call: implementation.run(call, config)


def binds(run):
    """How a function of a call is bound to it."""
    return lambda call: Bound(call, None, direct(lambda call, config: run(call)))


def staged(problem, compute=None):
    """The torch backend as another library: inputs of its own, results that it allocates."""
    run = compute or solver(problem)

    def prepare(call, config):
        own = call.clone()
        return {"call": own, "tensors": own.tensors()}

    def launch(call, tensors):
        call.poison()
        run(call)
        return {name: tensor.clone() for name, tensor in call.outputs().items()}

    def collect(call, arguments, results):
        for name, tensor in call.outputs().items():
            tensor.copy_(results[name])

    return lambda call: Bound(call, None, Stages(prepare, launch, collect))


@pytest.mark.parametrize("problem", [PREFILL, DECODE], ids=lambda p: p.op)
def test_staged_kernel_is_timed_without_its_copies_and_judged_with_them(problem):
    """Its buffers follow the call's: other inputs give their own results after timing."""
    bench = GraphBench(StandIn())
    bench.add(make_call(problem, 0), staged(problem), deterministic=True)
    (times,) = bench.measure(0.01)
    assert times.cold.count >= 10
    assert bench.recheck(0, Gate(make_call(problem, 1), 1)).status == "ok"


def test_staged_launch_outside_the_graph_is_noticed():
    """The results that a capture left are poisoned before the replay."""
    bench = GraphBench(LosesLaunches())
    with pytest.raises(FalseReplay, match="y"):
        bench.add(make_call(PREFILL, 0), staged(PREFILL), deterministic=True)


def test_staged_kernel_that_remembers_fails_after_timing():
    """Results of the first inputs are not those of the second."""
    run, memory = solver(PREFILL), {}

    def remembers(call):
        if not memory:
            run(call)
            memory.update({name: tensor.clone() for name, tensor in call.outputs().items()})
        for name, tensor in call.outputs().items():
            tensor.copy_(memory[name])

    bench = GraphBench(StandIn())
    bench.add(make_call(PREFILL, 0), staged(PREFILL, remembers), deterministic=True)
    assert bench.recheck(0, Gate(make_call(PREFILL, 1), 1)).status == "wrong"


@pytest.mark.parametrize("problem", [PREFILL, DECODE], ids=lambda p: p.op)
def test_right_kernel_gets_cold_warm_and_host_times(problem):
    """The clones exceed the cache, both numbers exist, and the timed buffers pass the gate."""
    gpu = StandIn()
    bench = GraphBench(gpu)
    bench.add(make_call(problem, 0), binds(solver(problem)), deterministic=True)
    (times,) = bench.measure(0.01)
    assert times.device == "cuda"
    assert times.cold.count >= 10
    assert times.warm.count >= 10
    assert times.host.count >= 10
    assert times.sm_clock_mhz == 1500.0
    assert bench.recheck(0, Gate(make_call(problem, 1), 1)).status == "ok"


@pytest.mark.parametrize("problem", [PREFILL, DECODE], ids=lambda p: p.op)
def test_launch_outside_the_graph_is_noticed(problem):
    """A replay that runs nothing leaves the poison, or a state that did not move."""
    bench = GraphBench(LosesLaunches())
    with pytest.raises(FalseReplay, match="y"):
        bench.add(make_call(problem, 0), binds(solver(problem)), deterministic=True)


def test_unrepeatable_kernel_outside_the_graph_is_noticed():
    """Without bits to compare, the poison still shows."""
    bench = GraphBench(LosesLaunches())
    with pytest.raises(FalseReplay, match="not finite"):
        bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=False)


def test_failing_capture_has_its_reason():
    """What cannot be captured is told from what is captured wrongly."""
    bench = GraphBench(RefusesCapture())
    with pytest.raises(NotCaptured, match="not permitted"):
        bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True)


def test_remembered_output_fails_after_timing():
    """A kernel that returns what it computed before passes every repeat, but not other inputs."""
    run = solver(PREFILL)
    memory = {}

    def remembers(call):
        if not memory:
            run(call)
            memory.update({name: tensor.clone() for name, tensor in call.outputs().items()})
        for name, tensor in call.outputs().items():
            tensor.copy_(memory[name])

    bench = GraphBench(StandIn())
    bench.add(make_call(PREFILL, 0), binds(remembers), deterministic=True)
    assert bench.recheck(0, Gate(make_call(PREFILL, 1), 1)).status == "wrong"


def test_kernel_that_fails_on_one_clone_is_noticed():
    """Every clone is compared, not only the first."""
    run = solver(PREFILL)
    seen = []

    def tires(call):
        run(call)
        seen.append(call)
        if len({id(one) for one in seen}) > 2:
            call.y[-1, -1, -1, -1] += 1

    bench = GraphBench(StandIn())
    with pytest.raises(FalseReplay, match="y of a clone differ"):
        bench.add(make_call(PREFILL, 0), binds(tires), deterministic=True)


def test_throttled_blocks_are_dropped_and_counted(monkeypatch):
    """Samples of a hot block are not among those kept."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    gpu = StandIn(throttled=[("power brake",)])
    bench = GraphBench(gpu)
    bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True)
    (times,) = bench.measure(0.01)
    assert times.cold.dropped > 0
    assert times.cold.count >= 10
    assert times.warm.dropped == 0


def test_lasting_heat_ends_the_measurement(monkeypatch):
    """A GPU that never cools gives no number at all."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    bench = GraphBench(StandIn(throttled=[("hardware slowdown",)] * 99))
    bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True)
    with pytest.raises(Throttled, match="hardware slowdown"):
        bench.measure(0.01)


def test_heat_that_comes_and_goes_costs_pauses_alone(monkeypatch):
    """Each good block renews the patience: every second block may be hot."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(sampler, "BLOCK_S", 1e-9)  # one turn a block
    bench = GraphBench(StandIn(throttled=[("hardware slowdown",), ()] * 6))
    bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True)
    (times,) = bench.measure(0.01)
    assert times.cold.dropped == 6
    assert times.cold.count >= 10


def test_no_cold_number_without_enough_clones(monkeypatch):
    """Where memory does not hold twice the L2, only the warm number is given."""
    gpu = StandIn(l2_bytes=1 << 28)
    monkeypatch.setattr(gpu, "free_bytes", lambda: 1 << 17)
    bench = GraphBench(gpu)
    bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True)
    (times,) = bench.measure(0.01)
    assert times.cold is None
    assert times.warm.count >= 10


def test_rivals_are_interleaved_in_both_orders():
    """A B, then B A: each goes first equally often."""
    run = solver(PREFILL)
    log = []

    def named(name):
        def contender(call):
            run(call)
            log.append(name)

        return contender

    bench = GraphBench(StandIn(l2_bytes=1))
    for name in "ab":
        bench.add(make_call(PREFILL, 0), binds(named(name)), deterministic=True)
    replays = [one.cold for one in bench.contenders]
    for replay in replays:
        del replay.bounds[1:]
    del log[:]
    bench.sampler.block(replays, range(4), settle=False)
    assert "".join(log) == "abbaabba"


@pytest.mark.parametrize(
    ("times", "count"), [(0.5, CLONES), (CLONES, 2 * CLONES), (MOST_CLONES, CLONES)]
)
def test_small_calls_get_the_clones_that_make_them_cold(times, count, monkeypatch):
    """Twice the L2, if that takes no more than MOST_CLONES; else no more than are needed to time.

    times: a call's bytes go so many times into the L2.
    """
    monkeypatch.setattr(graphs, "FASTEST", 5e12)
    pristine = make_call(PREFILL, 0)
    gpu = StandIn(l2_bytes=int(times * touched_bytes(pristine)))
    assert len(Clones(pristine, gpu).calls) == count


@pytest.mark.parametrize(("l2_bytes", "cold"), [(1 << 16, True), (1 << 40, False)])
def test_laps_need_one_graph(l2_bytes, cold):
    """Where nothing but laps is to come, the cold graph alone is made, or else the warm one."""
    bench = GraphBench(StandIn(l2_bytes=l2_bytes))
    bench.add(make_call(PREFILL, 0), binds(solver(PREFILL)), deterministic=True, measured=False)
    (one,) = bench.contenders
    assert (one.cold is not None, one.warm is not None) == (cold, not cold)
    (spent,) = bench.lap([0], 0.01)
    times = bench.times(spent)
    assert (times.cold is not None, times.warm is not None) == (cold, not cold)
    assert bench.recheck(0, Gate(make_call(PREFILL, 1), 1)).status == "ok"
