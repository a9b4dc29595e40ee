"""The command line: help at once, errors that say what there is, exit codes that mean something."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mamba3_bench.bench import peers
from mamba3_bench.bench.cli import NUMBERS, OPS, OPTIONAL, WORDS, main, parser, read_sides
from mamba3_bench.bench.grid import Axes
from mamba3_bench.bench.presets import ORDER, PRESETS
from mamba3_bench.bench.session import UsageError, make_jobs, numbers_below
from mamba3_bench.kernels.family import DTYPES, ops
from mamba3_bench.kernels.problem import OPTIONAL as KNOWN

COMMANDS = (
    "quick", "list", "doctor", "check", "sweep", "resources", "selftest", "compare", "report",
    "tune", "why",
)  # fmt: skip
HEAVY = ("torch", "triton", "numpy", "scipy", "rich", "ray")
HELP = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))  # importing one raises
from mamba3_bench.bench.cli import main
for line in (["--help"], *([name, "--help"] for name in {COMMANDS})):
    try:
        main(line)
    except SystemExit as end:
        assert end.code == 0, line
"""


def test_help_imports_nothing_heavy():
    """Every command's help answers where torch, triton, numpy and rich cannot even be imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", HELP], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"usage: mamba3-bench {command}" in done.stdout
    for name in ("--head-size", "--preset", "--plugin", "exit codes", "examples"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "check --backend torhc",
            "prefill has no 'torhc'; there are tilelang, triton, torch, reference",
        ),
        ("check --op decode --backend triton,cuda", "there are"),
        (
            "check --op prefill,decode --backend torch,tirton",
            "--backend: no op of this grid has 'tirton'; there are tilelang, triton, torch",
        ),
        ("check --dtype fp8", "--dtype: expected words out of bf16, fp16, fp32, tf32, got 'fp8'"),
        ("check --state 0", "--state: expected positive whole numbers, got '0'"),
        ("check --state 6", "--state: expected multiples of 4, got 6"),
        ("check --heads 6 --groups 4", "--groups: expected divisors of heads = 6, got 4"),
        ("check --optional z,y", "--optional: expected words out of z, dt_bias"),
        ("check --op decode --length 4", "--length: expected no length for decode, got '4'"),
        ("check --preset paper --op decode --length 4", "--length: expected no length for decode"),
        ("check --preset h200", "invalid choice: 'h200'"),
        ("check --op decode,prefil", "--op: expected words out of prefill, decode, mamba2.prefill"),
        ("check --op gdn.decode --rank 4", "--rank: gdn.decode has no such axis"),
        (
            "check --timeout 0",
            "--timeout: expected seconds, more than 0 and at most 1000000, got '0'",
        ),
        (
            "sweep --timeout=-3",
            "--timeout: expected seconds, more than 0 and at most 1000000, got '-3'",
        ),
        ("check --timeout 1e9", "at most 1000000, got '1e9'"),
        (
            "sweep --timeout nan",
            "--timeout: expected seconds, more than 0 and at most 1000000, got 'nan'",
        ),
        (
            "sweep --budget 0",
            "--budget: expected seconds, more than 0 and at most 1000000, got '0'",
        ),
        (
            "tune --budget=-1",
            "--budget: expected seconds, more than 0 and at most 1000000, got '-1'",
        ),
        (
            "selftest --budget inf",
            "--budget: expected seconds, more than 0 and at most 1000000, got 'inf'",
        ),
        (f"sweep --repeat {'9' * 5000}", "--repeat: expected a whole number of at least 1, got"),
        (f"check --batch {'9' * 5000}", "--batch: expected numbers of at most 18 digits, got"),
        ("check --batch 1:1000000000:+1", "--batch: expected ranges of at most 100000 values"),
        (
            "check --batch 1:100000:+1 --length 1:1000:+1",
            "--batch, --length: expected grids of at most 100000 points, got '100000000'; take",
        ),
        (
            "check --batch 999999999999999999 --length 999999999999999999",
            "prefill bf16 B=999999999999999999 L=999999999999999999 H=64 P=64 N=128 R=1: too large",
        ),
        ("why --batch 999999999999999999 --length 999999999999999999", "must be less than 2^63"),
        (f"sweep --seed {2**63}", "--seed: expected a whole number from -2^63 + 1 to 2^63 - 1"),
        (f"sweep --seed {'9' * 5000}", "--seed: expected a whole number from"),
        ("sweep --seed 1.5", "2^63 - 1, got '1.5'"),
        (
            "check --op attention.prefill --preset h100-prefill",
            "--op: expected words out of prefill, got 'attention.prefill'",
        ),
        ("check --op=", "--op: expected words out of prefill, decode"),
        ("check --colour red", "unrecognized arguments: --colour red"),
        ("report nowhere.jsonl", "no such record file: nowhere.jsonl"),
        ("tune --replay nowhere.jsonl", "no such record file: nowhere.jsonl"),
        (f"tune --replay {Path(__file__).parent / 'peers'}", "no records in"),
        ("resources --gpus 9", "--gpus: what only compiles uses no GPU; leave it out"),
        ("report /dev/null", "no such record file: /dev/null"),
        (f"report {__file__}", "test_cli.py:1: not a record"),
        ("check --device cuda", "--device cuda: no GPU"),
        ("swep", "invalid choice: 'swep'"),
        ("", "required: COMMAND"),
    ],
)
def test_bad_arguments(line, says, capsys, monkeypatch):
    """Exit code 2, and one line that says what is wrong and what there is."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_a_path_is_text(tmp_path, capsys):
    """What looks like markup in it is printed as it is."""
    out = tmp_path / "runs[red]"
    line = ["check", "--backend", "torch", "--length", "4", "--heads", "2", "--device", "cpu"]
    assert main([*line, "--out", str(out)]) == 0
    assert f"; records: {out}/records.jsonl\n" in capsys.readouterr().out
    assert main(["report", str(out), "--out", str(out)]) == 0
    assert f"report: {out}/index.html, and" in capsys.readouterr().out
    main(["why", "--batch", "1", "--gpu", "[red]"])
    assert "GPU: [red]\n" in capsys.readouterr().out


def test_gpus_by_number():
    """Each once; what is no number of one is told the range, however long it is."""
    assert numbers_below("1, 0,1", 2) == [1, 0]
    for text in ("2", "0,", "-1", "9" * 5000):
        with pytest.raises(UsageError, match="--gpus: expected numbers from 0 to 1, got '"):
            numbers_below(text, 2)


@pytest.mark.parametrize("command", ["list", "doctor", "check --backend torch"])
def test_an_interrupt_outside_a_run(command, monkeypatch, capsys):
    """The exit code that the help promises, and no traceback."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mamba3_bench.bench.peers.register", interrupted)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_an_import(number):
    """The same while packages are imported, one of which catches whatever is raised in it."""
    code = f"""
import builtins, os, sys
from mamba3_bench.bench import cli
real = builtins.__import__
def catching(name, *rest):
    if name == "torch":
        try:
            os.kill(os.getpid(), {int(number)})
        except BaseException:
            pass
    return real(name, *rest)
builtins.__import__ = catching
sys.argv = ["mamba3-bench", "list"]
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        # a shell's background job ignores ctrl-C, and so would what it starts
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("line", ["check --plugin nowhere.py", "check --plugin no_such_module"])
def test_missing_plugin(line, capsys):
    """One line and exit code 1, no traceback."""
    assert main(line.split()) == 1
    said = capsys.readouterr().out
    assert said.startswith("error: ")
    assert line.split()[-1].split(".")[0] in said


@pytest.mark.parametrize("command", ["check", "sweep", "selftest"])
def test_a_folder_that_cannot_be_made(command, tmp_path, capsys):
    """One line and exit code 1, no traceback: a file is in the way."""
    (tmp_path / "file").touch()
    line = [command, "--out", str(tmp_path / "file" / "out"), "--device", "cpu"]
    assert main([*line, "--backend", "torch"]) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "report {0}/records.jsonl",
        "compare {0} {0}",
        "tune --replay {0}/records.jsonl --out {0}",
        "check --backend torch --length 4 --device cpu --out {0}",
    ],
)
def test_a_broken_record(line, tmp_path, capsys):
    """Exit code 2 with file and line, whoever reads it: a run that would resume, too."""
    (tmp_path / "records.jsonl").write_text('{"errors": []}\n')
    with pytest.raises(SystemExit) as end:
        main(line.format(tmp_path).split())
    assert end.value.code == 2
    assert f"{tmp_path}/records.jsonl:1: not a record" in capsys.readouterr().err


def test_a_file_of_somebody_else(tmp_path, capsys):
    """A run that would write to it ends before it begins, and leaves it as it is."""
    foreign = tmp_path / "records.jsonl"
    foreign.write_text('{"weights": [0.5, 0.25]}')
    with pytest.raises(SystemExit) as end:
        main(f"check --backend torch --length 4 --device cpu --out {tmp_path}".split())
    assert end.value.code == 2
    assert f"{foreign}:1: not a record" in capsys.readouterr().err
    assert foreign.read_text() == '{"weights": [0.5, 0.25]}'


def jobs(line):
    """The jobs of a command line."""
    arguments = parser().parse_args(line.split())
    return make_jobs(read_sides(arguments), arguments.backend)


def asked(line):
    """The problems of a command line, in order."""
    return list(
        dict.fromkeys(e.problem for job in jobs(f"{line} --backend torch") for e in job.entries)
    )


def test_axes_as_typed():
    """Every axis reaches the problems, in the order given."""
    grid = asked("check --state 64,32 --rank 1,4 --dtype fp32,tf32 --batch 3 --length 7:14:*2")
    assert [(p.dtype, p.options.matmul, p.N, p.R, p.L) for p in grid] == [
        (DTYPES[d], m, N, R, L)
        for d, m in (("fp32", "dtype"), ("tf32", "tf32"))
        for N in (64, 32)
        for R in (1, 4)
        for L in (7, 14)
    ]
    assert {p.B for p in grid} == {3}
    assert {(p.R, p.options.pairing) for p in grid} == {(1, "interleaved"), (4, "half")}


@pytest.fixture
def known_rivals():
    """The adapters as every command has them."""
    peers.register()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_grids(preset, known_rivals):
    """Each makes jobs, and what is typed wins over what all contenders share."""
    assert len(jobs(f"sweep --preset {preset}")) > 1
    typed = jobs(f"sweep --preset {preset} --dtype fp16")
    assert {e.problem.dtype for job in typed for e in job.entries} == {DTYPES["fp16"]}


def test_families_meet_at_equal_batch_and_state(known_rivals):
    """In each decode job of the paper's, all states have as many bytes; GDN comes in two shapes."""
    for job in jobs("sweep --preset paper"):
        problems = list(dict.fromkeys(entry.problem for entry in job.entries))
        if problems[0].op == "decode":
            assert {p.op for p in problems} == {"decode", "mamba2.decode", "gdn.decode"}
            assert {p.B for p in problems} == {128}
            assert len({p.H * p.P * p.N * p.state_dtype.itemsize for p in problems}) == 1
            wide = [(p.P, p.N) for p in problems if p.op == "gdn.decode"]
            assert wide == [(64, problems[0].N), (128, 128)]


def test_half_the_state(known_rivals):
    """Mamba-2 has twice the state size of the Mamba-3 that it meets."""
    for job in jobs("sweep --preset state-size"):
        sizes = {e.problem.op.split(".")[0]: e.problem.N for e in job.entries}
        mine = sizes.get("decode") or sizes["prefill"]
        assert sizes["mamba2"] == 2 * mine


def test_an_op_alone_leaves_out_axes_of_its_preset(known_rivals):
    """The state size is of those that attention would have met."""
    found = jobs("sweep --preset serving --op attention.decode --batch 16")
    sizes = {(e.problem.B, e.problem.L) for job in found for e in job.entries}
    assert sizes == {(16, 1024), (16, 8192)}


def test_a_preset_is_narrowed_by_op_and_backend(known_rivals):
    """An op leaves its contenders, a backend itself; a name nobody has is an error."""
    found = jobs("sweep --preset paper --op mamba2.decode --backend mamba_ssm")
    assert {(e.problem.op, e.backend) for job in found for e in job.entries} == {
        ("mamba2.decode", "mamba_ssm")
    }
    with pytest.raises(UsageError, match="no op of this grid has 'nobody'; there are"):
        jobs("sweep --preset paper --backend mamba_ssm,nobody")


def test_several_ops_meet_on_one_grid(known_rivals):
    """One job per point, each op with those of the named backends that it has."""
    found = jobs("sweep --op decode,gdn.decode --batch 1,8 --backend torch,cute,fla")
    assert [[(e.problem.op, e.backend, e.problem.B) for e in job.entries] for job in found] == [
        [("decode", "torch", B), ("decode", "cute", B), ("gdn.decode", "torch", B),
         ("gdn.decode", "fla", B)]
        for B in (1, 8)
    ]  # fmt: skip


def test_optional_tensors():
    """By default the typical ones; by name, or none; those of MIMO by themselves."""
    assert asked("check --optional none")[0].optional == ()
    assert asked("check --optional d,z")[0].optional == ("z", "d")
    assert "mimo_o" in asked("check --optional none --rank 2")[0].optional
    assert set(OPTIONAL) | {"mimo_x", "mimo_z", "mimo_o"} == set(KNOWN)


def test_the_command_line_offers_what_the_grid_takes():
    """They are written twice, because help must not import torch."""
    names = {name.replace("-", "_") for name in (*NUMBERS, *WORDS)}
    assert names | {"op", "optional"} == set(Axes.__dataclass_fields__)
    assert names == set(ORDER)
    assert WORDS["dtype"][1] == tuple(DTYPES)
    assert list(OPS) == ops()
