"""The probes of the timer, on a stand-in for a GPU whose kernel waits as it is told."""

import math
from types import SimpleNamespace

import pytest
import torch

from mamba3_bench.bench import probes, sampler
from mamba3_bench.bench.clocks import Reading
from mamba3_bench.bench.gpu import Gpu


class Elapsed:
    """A span whose time is known already."""

    def __init__(self, seconds):
        self._seconds = seconds

    def seconds(self):
        return self._seconds


class Exact:
    """A GPU that keeps a clock of its own: work moves it on; kernels and replays cost something."""

    device = torch.device("cpu")
    kernel, replay = 1e-6, 3e-6
    rate = 1.0  # seconds of its clock for a second of work

    def __init__(self):
        self.now = 0.0

    def work(self, seconds):
        self.now += seconds * self.rate + self.kernel

    def wait(self):
        pass

    def on_stream(self, queue):
        queue()

    def queue(self, queue):
        queue()

    def capture(self, queue):
        return queue

    def span(self, queue):
        begin = self.now
        self.now += self.replay
        queue()
        return Elapsed(self.now - begin)

    def reading(self):
        return Reading(1500.0, ())


@pytest.fixture
def waits(monkeypatch):
    """The probes with a kernel that moves the stand-in's clock."""
    monkeypatch.setattr(sampler, "WARM_UP_S", 0.0)
    gpu = Exact()

    def spin(spent, nanoseconds, place):
        gpu.work(nanoseconds * 1e-9)
        spent[place] = nanoseconds

    kernel = SimpleNamespace(spin=spin, timer_step=lambda device: 32)
    monkeypatch.setattr(probes, "import_module", lambda name: kernel)
    return probes.Waits(gpu)


def test_an_exact_timer_has_slope_one_and_its_costs(waits):
    """What is measured is what was waited, what a kernel costs, and a share of the replay."""
    found = waits.timer()
    assert found.slope == pytest.approx(1.0, abs=1e-9)
    assert (found.kernel_us, found.replay_us) == pytest.approx((1.0, 3.0))
    assert found.worst_us < 1e-6
    assert [wait.asked_us for wait in found.waits] == [ns / 1e3 for ns in probes.DURATIONS_NS]


def test_a_timer_that_is_one_per_cent_slow_shows(waits):
    """The slope tells it: no agreement of two runs with each other could."""
    waits.gpu.rate = 0.99
    assert waits.timer().slope == pytest.approx(0.99, abs=1e-9)


def test_planted_slowdowns_are_expected_with_the_costs(waits):
    """A wait of 50 us that is 1 % longer makes a kernel that takes 51.3 less than 1 % longer."""
    found = waits.planted(waits.timer())
    assert [one.planted for one in found] == list(probes.SLOWER)
    for one in found:
        assert one.measured == pytest.approx(one.expected, abs=1e-5)
    calls = math.ceil(sampler.TARGET_S / 50e-6)
    assert found[3].expected == pytest.approx(0.01 * 50 / (51 + 3 / calls))


def test_spans_are_those_of_the_kernel_on_the_device():
    """What the profiler saw of the host, and of other kernels, is left out."""
    cuda, cpu = SimpleNamespace(name="CUDA"), SimpleNamespace(name="CPU")

    def event(name, kind, start, end):
        return SimpleNamespace(
            name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end)
        )

    events = [event("_spin", cuda, 9, 12), event("_spin", cpu, 1, 2), event("fill", cuda, 0, 1),
              event("_spin", cuda, 3, 6)]  # fmt: skip
    assert probes.kernel_spans(SimpleNamespace(events=lambda: events)) == [(3, 6), (9, 12)]


@pytest.mark.gpu
def test_the_harness_agrees_with_the_timer_of_the_gpu():
    """Within half a per cent, and one step of the timer."""
    found = probes.Waits(Gpu(torch.device("cuda"))).timer()
    assert found.slope == pytest.approx(1.0, abs=5e-3)
    assert found.worst_us < 0.5 + found.step_ns * 1e-3
