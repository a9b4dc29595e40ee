"""Tuned configs: which is taken for a problem, why, and when none is."""

import importlib.util
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba3_bench.bench import shipping
from mamba3_bench.bench.cli import main
from mamba3_bench.bench.fields import decide, read
from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.show import SHORT
from mamba3_bench.kernels import lookup, ops, plans, registry, toolchain
from mamba3_bench.kernels.errors import OptionError
from mamba3_bench.kernels.family import make_call
from mamba3_bench.kernels.lookup import Found, StaleWarning, file_name
from mamba3_bench.kernels.problem import Problem

at = Path(__file__).parent.parent / "bench" / "tunings.py"
spec = importlib.util.spec_from_file_location("tunings", at)
tunings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tunings)
GPU, problem = tunings.GPU, tunings.problem
MODULE = "mamba3_bench.kernels.triton.prefill"
WIN = {"chunk": 64, "piece": 0, "segment": 0, "num_warps": 8, "num_stages": 3}
RULE = "chunk=64 fill=0 warps=8 stages=3"
CPU = torch.device("cpu")

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The winners of a tuning of triton prefills at two batches and two lengths, as a file."""
    rng, rows = np.random.default_rng(0), []
    for B in (2, 8):
        for L in (1024, 4096):
            shape = problem(B, L)
            own = registry.get("prefill", "triton").default(shape, CPU)
            own = registry.config_dict(own)
            rows += tunings.candidate(0, 100 * B, rng, shape, config=own, names=("default",))
            rows += tunings.candidate(1, 80 * B, rng, shape, config=WIN, names=(RULE,))
    folder = tmp_path_factory.mktemp("tuned")
    (path,) = shipping.write(shipping.files(decide(read(rows))), folder)
    assert path.name == file_name(GPU) == "NVIDIA_H100_80GB_HBM3.json"
    return path


@pytest.fixture
def here(file, monkeypatch, tmp_path):
    """That file, in use, on a machine with the toolchain that it was made with."""
    raw = json.loads(file.read_text())
    now = raw["tables"][0]["fingerprint"]
    monkeypatch.setattr(lookup, "fingerprint", lambda backend, module: dict(now))
    (tmp_path / file.name).write_text(json.dumps(raw))
    monkeypatch.setenv(lookup.VARIABLE, str(tmp_path))
    lookup.forget()
    yield now
    monkeypatch.undo()
    lookup.forget()


def choice(shape, gpu=GPU):
    return registry.get("prefill", "triton").choice(shape, gpu, CPU)


def test_at_a_tuned_shape_its_winner(here):
    """With its margin over the default as the reason."""
    config, found = choice(problem(8, 1024))
    assert registry.config_dict(config) == WIN
    assert found.how == "exact"
    assert found.why.startswith("tuned here: 0.80")
    assert found.us == pytest.approx(640, rel=0.01)


def test_between_tuned_shapes_the_rule_of_the_nearest(here):
    """The rule, not the values: its cuts are those of the new shape."""
    config, found = choice(problem(6, 2000))
    assert (found.how, found.name) == ("cover", RULE)
    assert "B = 8, L = 1024" in found.why
    assert config == registry.get("prefill", "triton").space(problem(6, 2000), CPU)[RULE]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (problem(8, 100), "L = 100 is outside what was tuned: 1024 to 4096"),
        (problem(32, 1024), "B = 32 is outside"),
        (Problem("prefill", 8, 1024, 64, 1, 64, 128, 1, 32, torch.float16, torch.float32),
         "not these dims, dtypes and options"),
    ],
)  # fmt: skip
def test_elsewhere_the_default(here, shape, says):
    """Outside the range, and for other dims, dtypes or options; the reason says which."""
    config, found = choice(shape)
    assert config == registry.get("prefill", "triton").default(shape, CPU)
    assert found.how == "default"
    assert says in found.why


def test_another_gpu_or_none(here):
    """Winners are a GPU's own."""
    assert "was not tuned for another GPU" in choice(problem(8, 1024), "another GPU")[1].why
    assert choice(problem(8, 1024), None)[1].why == "no GPU"


@pytest.mark.parametrize("field", ["ptxas", "triton", "source"])
def test_a_stale_fingerprint_is_the_default_and_one_warning(here, field):
    """The warning names the field and both values; a second look-up is silent."""
    then, here[field] = here[field], "other"
    with pytest.warns(StaleWarning, match=f"{field} is other, tuned with {then}"):
        found = choice(problem(8, 1024))[1]
    assert found.how == "default"
    assert field in found.why
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice(problem(2, 4096))[1].how == "default"


def test_what_compiles_nothing_is_said_but_makes_nothing_stale(file):
    """The driver loads machine code, and torch allocates: each shape says which it ran with."""
    (table,) = json.loads(file.read_text())["tables"]
    assert table["fingerprint"].keys() == {"ptxas", "triton", "source"}
    told = {(shape["driver"], shape["torch"]) for shape in table["groups"][0]["shapes"]}
    assert told == {("580.1", "2.11.0")}


@pytest.mark.parametrize(("field", "fastest"), [("ptxas", "fast"), ("source", "first")])
def test_a_stale_time_still_tells_backends_apart(here, field, fastest):
    """If it is that of the same source: another compiler makes no slow kernel a fast one."""
    here[field] = "other"
    with pytest.warns(StaleWarning):
        found = choice(problem(8, 1024))[1]
    assert (found.us is None) == (field == "source")
    fast = Found("exact", "tuned here", us=100.0, at=(8, 1024))
    assert lookup.fastest({"first": found, "fast": fast})[0] == fastest


def test_off(here, monkeypatch):
    """By the variable, without a warning."""
    monkeypatch.setenv(lookup.VARIABLE, "off")
    lookup.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice(problem(8, 1024))[1].how == "default"


def test_a_call_without_a_config_runs_the_winner(monkeypatch, tmp_path):
    """By `auto` and by name; the look-up is made once for calls of a kind, not for each."""
    (shape,) = problems(Axes(batch=(1,), length=(9,), heads=(2,), head_size=(8,), state=(8,)))
    torch_prefill = registry.get("prefill", "torch")
    ran, asked = [], []
    spy = replace(torch_prefill, run=lambda call, config: ran.append(config.chunk_size))
    monkeypatch.setitem(registry._registered, ("prefill", "torch"), spy)
    rng, rows = np.random.default_rng(0), []
    for index, size in enumerate((64, 16)):
        config = {"chunk_size": size}
        rows += tunings.candidate(index, 100 - 50 * index, rng, shape, config=config)
    rows = [replace(row, backend="torch") for row in rows]
    shipping.write(shipping.files(decide(read(rows))), tmp_path)
    monkeypatch.setenv(lookup.VARIABLE, str(tmp_path))
    monkeypatch.setattr(lookup, "gpu_of", lambda device: GPU)
    monkeypatch.setattr(lookup, "fingerprint", lambda *of: asked.append(of) or then)
    (table,) = json.loads((tmp_path / file_name(GPU)).read_text())["tables"]
    then = table["fingerprint"]
    lookup.forget()
    plans.forget()
    call = make_call(shape, 0)
    for _ in range(3):
        ops.prefill(call.inputs, call.params, backend="torch")
        ops.prefill(call.inputs, call.params)
    assert ran == [16] * 6
    assert asked == [("torch", "mamba3_bench.kernels.torch.prefill")]
    monkeypatch.undo()
    lookup.forget()
    plans.forget()


def found(us=None, failed=False):
    return lookup.Found("exact", "", us=us, failed=failed)


@pytest.mark.parametrize(
    ("known", "taken"),
    [
        ({"a": found(), "b": found()}, "a"),
        ({"a": found(100), "b": found(90)}, "b"),
        ({"a": found(100), "b": found(99)}, "a"),
        ({"a": found(), "b": found(1)}, "a"),
        ({"a": found(100), "b": found()}, "a"),
        ({"a": found(failed=True), "b": found()}, "b"),
        ({"a": found(failed=True)}, "a"),
    ],
)
def test_auto_between_backends(known, taken):
    """The first in order, unless another was measured beside it and is faster, or it is wrong."""
    assert lookup.fastest(known)[0] == taken


def test_auto_compares_times_of_one_shape():
    """Two backends that were tuned at different batches say nothing of each other."""
    first = lookup.Found("cover", "", us=464.0, at=(8, 2048))
    assert lookup.fastest({"a": first, "b": replace(first, us=77.0)})[0] == "b"
    assert lookup.fastest({"a": first, "b": replace(first, us=77.0, at=(1, 2048))})[0] == "a"


def test_a_folder_hides_its_own_groups_only(here, monkeypatch, tmp_path, file):
    """What is shipped of other dims stays in use."""
    raw = json.loads(file.read_text())
    raw["tables"][0]["groups"][0]["problem"]["N"] = 64
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / file.name).write_text(json.dumps(raw))
    monkeypatch.setattr(lookup, "SHIPPED", tmp_path / "shipped")
    lookup.forget()
    assert len(lookup.tables(GPU, str(tmp_path))["prefill", "triton"]) == 2
    assert choice(problem(8, 4096))[1].how == "exact"


BROKEN = ["", "[]", "{", '{"format": 7}', '{"format": 2, "tables": [3]}']


@pytest.mark.parametrize("broken", [*BROKEN, ("B", None), ("margin", 0.9), ("config", {"x": 1})])
def test_a_file_that_cannot_be_read_is_named(here, monkeypatch, tmp_path, file, broken):
    """So is a folder that does not exist. broken: its text, or what a shape has instead."""
    if isinstance(broken, tuple):
        raw = json.loads(file.read_text())
        for shape in raw["tables"][0]["groups"][0]["shapes"]:
            shape[broken[0]] = broken[1]
        broken = json.dumps(raw)
    (tmp_path / file.name).write_text(broken)
    with pytest.raises(OptionError, match=r"NVIDIA.H100"):
        choice(problem(8, 4096))
    monkeypatch.setenv(lookup.VARIABLE, str(tmp_path / "none"))
    lookup.forget()
    with pytest.raises(OptionError, match=lookup.VARIABLE):
        choice(problem(8, 4096))


def test_merging_keeps_other_shapes_of_a_group(file, tmp_path):
    """A later tuning of one shape replaces that shape alone; each keeps its own rule."""
    raw = json.loads(file.read_text())
    other = json.loads(file.read_text())
    (group,) = other["tables"][0]["groups"]
    group["shapes"] = group["shapes"][:1]
    group["shapes"][0]["us"] = 1.0
    group["cover"]["rules"] = ["another"]
    shipping.write({GPU: raw}, tmp_path)
    (path,) = shipping.write({GPU: other}, tmp_path, merge=True)
    (merged,) = json.loads(path.read_text())["tables"][0]["groups"]
    before = raw["tables"][0]["groups"][0]
    assert [shape["us"] == 1.0 for shape in merged["shapes"]] == [True, False, False, False]
    assert merged["cover"]["rules"] == sorted({*before["cover"]["rules"], "another"})
    assert merged["cover"]["held_out_worst"] is None


def test_merging_drops_rules_that_failed(file, tmp_path):
    """A rule that covers three shapes is wrong at the fourth, which is tuned later."""
    raw = json.loads(file.read_text())
    other = json.loads(file.read_text())
    (group,) = other["tables"][0]["groups"]
    group["shapes"] = [group["shapes"][0] | {"failed": [RULE], "cover": "default"}]
    group["cover"]["rules"] = ["default"]
    shipping.write({GPU: raw}, tmp_path)
    (path,) = shipping.write({GPU: other}, tmp_path, merge=True)
    (merged,) = json.loads(path.read_text())["tables"][0]["groups"]
    assert [shape["cover"] for shape in merged["shapes"]] == ["default", None, None, None]
    assert merged["cover"]["rules"] == ["default"]


def test_winners_of_another_decision_go(file, tmp_path):
    """A folder has what was decided last, and no file of a GPU that has no winner now."""
    raw = json.loads(file.read_text())
    shipping.write({GPU: raw, "another": raw}, tmp_path)
    (path,) = shipping.write({GPU: raw}, tmp_path)
    assert list(tmp_path.glob("*.json")) == [path]


def test_merging_keeps_other_groups_of_the_same_toolchain(file, tmp_path):
    """A new tuning replaces its own groups; with another toolchain the old ones go."""
    raw = json.loads(file.read_text())
    other = json.loads(file.read_text())
    other["tables"][0]["groups"][0]["problem"]["N"] = 64
    shipping.write({GPU: raw}, tmp_path)
    (path,) = shipping.write({GPU: other}, tmp_path, merge=True)
    assert len(json.loads(path.read_text())["tables"][0]["groups"]) == 2
    other["tables"][0]["fingerprint"]["ptxas"] = "newer"
    shipping.write({GPU: other}, tmp_path, merge=True)
    assert len(json.loads(path.read_text())["tables"][0]["groups"]) == 1


def test_who_merges_at_the_same_time_waits(file, tmp_path):
    """Each of two processes adds its shapes, one at a time: none is lost, and the file is whole."""
    script = (
        "import json, sys; from pathlib import Path; from mamba3_bench.bench import shipping\n"
        "raw, folder, first = json.loads(Path(sys.argv[1]).read_text()), *sys.argv[2:]\n"
        "group = raw['tables'][0]['groups'][0]\n"
        "group['shapes'] = group['shapes'][:1]\n"
        "for L in range(int(first), int(first) + 40):\n"
        "    group['shapes'][0]['L'] = L\n"
        "    shipping.write({raw['gpu']: raw}, Path(folder), merge=True)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(file), str(tmp_path), first])
        for first in ("100", "200")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    (group,) = json.loads((tmp_path / file.name).read_text())["tables"][0]["groups"]
    lengths = [shape["L"] for shape in group["shapes"]]
    assert lengths == [*range(100, 140), *range(200, 240)]


def test_what_a_merge_replaces_is_told(file, tmp_path):
    """The shapes of another toolchain, with what differs; of the same one, and of none, nothing."""
    raw, other = (json.loads(file.read_text()) for _ in range(2))
    assert shipping.replaced({GPU: raw}, tmp_path) == []
    shipping.write({GPU: raw}, tmp_path)
    assert shipping.replaced({GPU: raw}, tmp_path) == []
    other["tables"][0]["fingerprint"]["ptxas"] = "newer"
    (said,) = shipping.replaced({GPU: other}, tmp_path)
    assert said == "triton prefill: 4 shapes that were tuned with another ptxas go"


def test_only_what_the_look_up_would_take_is_shipped(file):
    """Not a plugin's winners, nor those of a kernel that has changed since."""
    raw = json.loads(file.read_text())
    (table,) = raw["tables"]
    now = table | {"fingerprint": table["fingerprint"] | {"source": toolchain.source_hash(MODULE)}}
    plugin = table | {"backend": "planted"}
    ready, reasons = shipping.usable({GPU: raw | {"tables": [now, plugin]}, "other": raw})
    assert ready == {GPU: raw | {"tables": [now]}}
    assert reasons == [
        f"not shipped: planted prefill on {GPU}: this package has no such backend",
        "not shipped: triton prefill on other: recorded with another source of the kernel",
    ]


def test_equal_winners_read_alike(file, tmp_path):
    """In whatever order they were found."""
    raw = json.loads(file.read_text())
    other = json.loads(file.read_text())["tables"][0]["groups"][0]
    other["problem"]["N"] = 64
    raw["tables"][0]["groups"].append(other)
    (path,) = shipping.write({GPU: raw}, tmp_path / "one")
    for group in raw["tables"][0]["groups"]:
        group["shapes"].reverse()
    raw["tables"][0]["groups"].reverse()
    (again,) = shipping.write({GPU: raw}, tmp_path / "other")
    assert path.read_text() == again.read_text()


def test_why(here, capsys):
    """On a machine without a GPU, for another one: who runs, with what, and why."""
    line = ["why", "--gpu", GPU, "--batch", "8", "--length", "1024,3000,9000"]
    assert main([*line, "--backend", "triton"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "exact" in said
    assert "cover" in said
    assert "is outside what was" in said


def test_why_names_whom_auto_takes_instead(here, capsys):
    """One backend is asked for, and `auto` would take another."""
    line = ["why", "--gpu", GPU, "--backend"]
    assert main([*line, "torch"]) == 0
    said = capsys.readouterr().out
    assert "no: " in said
    assert "yes" not in said


def test_why_of_two_ops(here, capsys):
    """Each problem of each op once, with its own backends."""
    assert main(["why", "--gpu", GPU, "--op", "prefill,decode", "--backend", "cute,triton"]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in said if line.startswith(("prefill", "decode"))]
    found = [(row[0], name) for row in rows for name in ("triton", "cute") if name in row]
    assert found == [("prefill", "triton"), ("decode", "cute"), ("decode", "triton")]


def test_why_not(capsys):
    """Who cannot run a problem on that other GPU is not said to be taken there."""
    line = ["why", "--gpu", GPU, "--rank", "4", "--backend", "triton"]
    assert main(line) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "SISO only" in said
    assert "yes" not in said


def test_the_source_of_a_kernel_is_its_own_files():
    """What it imports from its folder counts, another kernel of the folder does not."""
    names = {path.name for path in toolchain.kernel_files(MODULE)}
    assert {"prefill.py", "activate.py", "functions.py", "compile.py"} <= names
    assert "decode.py" not in names


SHIPPED = sorted(lookup.SHIPPED.glob("*.json"))
assert SHIPPED, f"no tuned configs in {lookup.SHIPPED}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_read(path):
    """Whatever is shipped has the format that this version reads, for backends that there are."""
    raw = json.loads(path.read_text())
    tables = lookup.tables(raw["gpu"], None)
    assert path.name == file_name(raw["gpu"])
    assert {(table["op"], table["backend"]) for table in raw["tables"]} == set(tables)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["triton", "tilelang", "cute"])
def test_shipped_configs_are_of_their_spaces(path, backend):
    """Each winner is tried for its shape, and each rule of a cover is one there."""
    pytest.importorskip("cutlass" if backend == "cute" else backend)
    seen = 0
    for table in json.loads(path.read_text())["tables"]:
        for group in table["groups"] if table["backend"] == backend else ():
            for shape in group["shapes"]:
                at = problem_at(table["op"], group["problem"], shape)
                found = registry.get(table["op"], backend).candidates(at, CPU)
                assert shape["config"] in [registry.config_dict(one) for one in found.values()]
                assert shape["cover"] in found
                seen += 1
    assert seen > 0


def problem_at(op, group, shape):
    """The problem of a shipped shape, by the axes that name it on a command line."""
    dims = {"state": (group["N"],), "rank": (group["R"],), "batch": (shape["B"],)}
    dtypes = {name: (SHORT[group[name]],) for name in ("dtype", "state_dtype")}
    length = {} if op == "decode" else {"length": (shape["L"],)}
    (found,) = problems(Axes(op=op, **dims, **dtypes, **length))
    assert found.as_dict() | group == found.as_dict()
    return found
