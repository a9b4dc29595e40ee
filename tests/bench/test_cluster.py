"""One worker, two, or two through Ray: the same records, and a lost worker costs one row."""

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mamba3_bench.bench import records, session
from mamba3_bench.bench.jobs import Entry, Job, Settings
from mamba3_bench.bench.ledger import RunError, Slot
from mamba3_bench.bench.runner import Runner
from mamba3_bench.kernels.problem import Problem

PLUGIN = str(Path(__file__).with_name("faults.py"))
SETTINGS = Settings("check", plugins=(PLUGIN,))
SLOT = Slot("cpu", {"OMP_NUM_THREADS": "1"})
PROBLEMS = [
    Problem("prefill", B, 7, 2, 1, 4, 8, 1, 2, torch.bfloat16, torch.float32) for B in (1, 2)
]
JOBS = [Job(tuple(Entry(one, name) for name in ("honest", "exits", "zeros"))) for one in PROBLEMS]


class Watch:
    """Remembers which slots worked."""

    def __init__(self):
        self.slots = set()

    def planned(self, total, recorded):
        self.total, self.recorded = total, recorded

    def stage(self, slot, job, stage):
        self.slots.add(id(slot))

    def row(self, row):
        pass


def facts(rows):
    """What must not depend on who did it."""
    return {row.key: replace(row, environment={}, compile_s=None).to_json() for row in rows}


@pytest.fixture(scope="module")
def alone():
    """The rows of one worker."""
    return facts(Runner(SETTINGS, [SLOT], None, Watch()).run(JOBS).rows)


def test_one_worker_loses_one_row_a_death(alone):
    """Each kernel that ends its process is named, and the others are as if it were not there."""
    statuses = sorted(json.loads(row)["status"] for row in alone.values())
    assert statuses == ["ok"] * 2 + ["run-failed"] * 2 + ["wrong"] * 2


def test_two_workers_make_the_records_of_one(alone, tmp_path):
    """Both work, and the file has each row once."""
    watch = Watch()
    path = tmp_path / "records.jsonl"
    slots = [Slot("cpu", {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    Runner(SETTINGS, slots, path, watch).run(JOBS)
    assert watch.slots == {id(slot) for slot in slots}
    found = records.read([path])
    assert len(found) == len(alone)
    assert facts(found) == alone


@pytest.mark.parametrize("first", [True, False])
def test_a_place_where_no_worker_starts_is_given_up(alone, first):
    """The other does its work, and the outcome says what was lost; with no other, the run ends."""
    broken = Slot("cpu", {"PYTHONHOME": "/nonexistent", "OMP_NUM_THREADS": "1"})
    slots = [broken, SLOT] if first else [SLOT, broken]
    outcome = Runner(SETTINGS, slots, None, Watch()).run(JOBS)
    assert facts(outcome.rows) == alone
    (lost,) = outcome.lost
    assert "PYTHONHOME=/nonexistent" in lost
    with pytest.raises(RunError, match="workers do not start"):
        Runner(SETTINGS, [broken], None, Watch()).run(JOBS)


def test_through_ray_the_same(alone, tmp_path):
    """Two workers behind Ray on this machine: the same records, and nothing is done twice."""
    cluster = pytest.importorskip("mamba3_bench.bench.cluster", reason="needs ray: '.[ray]'",
                                  exc_type=ImportError)  # fmt: skip
    path = tmp_path / "records.jsonl"
    watch = Watch()
    cluster.Cluster(SETTINGS, "cpu", path, watch, stations=2).run(JOBS)
    found = records.read([path])
    assert len(found) == len(alone)
    assert facts(found) == alone
    assert (watch.total, watch.recorded) == (6, 0)


def test_a_lost_machine(monkeypatch, tmp_path):
    """Its job goes to another once; the second time its entries get rows with the reason."""
    cluster = pytest.importorskip("mamba3_bench.bench.cluster", reason="needs ray: '.[ray]'",
                                  exc_type=ImportError)  # fmt: skip
    monkeypatch.setattr(cluster.ray, "init", lambda **options: None)
    monkeypatch.setattr(cluster, "resources", lambda: {"CPU": 4.0})

    def gone(reference):
        raise cluster.RayActorError

    monkeypatch.setattr(cluster.ray, "get", gone)
    one = cluster.Cluster(SETTINGS, "cpu", tmp_path / "records.jsonl", Watch(), stations=2)
    one.environment = {}
    queue, losses = deque(), {}
    assert one._take(None, JOBS[0], queue, losses) is False
    assert (list(queue), one.ledger.outcome.rows) == ([JOBS[0]], [])
    assert one._take(None, JOBS[0], queue, losses) is False
    found = records.read([tmp_path / "records.jsonl"])
    assert [(row.backend, row.status) for row in found] == [
        (entry.backend, "run-failed") for entry in JOBS[0].entries
    ]
    assert all(row.reason.startswith("its machine was lost: ") for row in found)
    with pytest.raises(RunError, match="has 4 CPUs, 9 needed"):
        cluster.Cluster(SETTINGS, "cpu", None, Watch(), stations=9)


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [(None, None, ["0", "1", "2"]), ("2,0,2", None, ["2", "0"]), ("1", "5,7,9", ["7"])],
)
def test_gpus_by_number(gpus, visible, expected, monkeypatch):
    """One worker each, that sees its GPU alone; numbers are among the visible ones."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots = session.make_slots(torch.device("cuda"), "sweep", gpus)
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == expected


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [(None, None, "2"), ("0,2", None, "3"), ("1", None, None), (None, "5", "5"), ("1", "5", "5")],
)
def test_gpus_share_the_cores(gpus, given, expected, monkeypatch):
    """Else the threads of their workers wait for each other; a number that is given counts."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    for slot in session.make_slots(torch.device("cuda"), "sweep", gpus):
        assert slot.variables.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize("gpus", ["3", "a", ""])
def test_a_gpu_that_is_not_there(gpus, monkeypatch):
    """It is an error with the numbers that there are."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(session.UsageError, match="numbers from 0 to 2"):
        session.make_slots(torch.device("cuda"), "sweep", gpus)
    with pytest.raises(session.UsageError, match="--gpus: there is none"):
        session.make_slots(torch.device("cpu"), "sweep", "0")
