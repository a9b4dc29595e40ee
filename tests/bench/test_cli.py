"""The command line: help at once, errors that say what there is, exit codes that mean something."""

import subprocess
import sys

import pytest

from mamba3_bench.bench.cli import NUMBERS, OPTIONAL, PRESETS, WORDS, main, parser, read_axes
from mamba3_bench.bench.grid import DTYPES, Axes, problems
from mamba3_bench.kernels.problem import OPTIONAL as KNOWN

COMMANDS = ("quick", "list", "doctor", "check", "sweep", "resources", "report")
HELP = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "numpy", "rich")))  # importing one raises
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
        ("check --backend torhc", "prefill has no 'torhc'; there are triton, tilelang, torch, reference"),
        ("check --op decode --backend triton,cuda", "there are"),
        ("check --dtype fp8", "--dtype: expected words out of bf16, fp16, fp32, tf32, got 'fp8'"),
        ("check --state 0", "--state: expected positive whole numbers, got '0'"),
        ("check --state 6", "--state: expected multiples of 4, got 6"),
        ("check --heads 6 --groups 4", "--groups: expected divisors of heads = 6, got 4"),
        ("check --optional z,y", "--optional: expected words out of z, dt_bias"),
        ("check --op decode --length 4", "--length: expected no length for decode, got '4'"),
        ("check --preset h200", "invalid choice: 'h200'"),
        ("check --colour red", "unrecognized arguments: --colour red"),
        ("report nowhere.jsonl", "no such record file: nowhere.jsonl"),
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


@pytest.mark.parametrize("line", ["check --plugin nowhere.py", "check --plugin no_such_module"])
def test_missing_plugin(line, capsys):
    """One line and exit code 1, no traceback."""
    assert main(line.split()) == 1
    said = capsys.readouterr().out
    assert said.startswith("error: ")
    assert line.split()[-1].split(".")[0] in said


def axes(line):
    return Axes(**read_axes(parser().parse_args(line.split())))


def test_axes_as_typed():
    """Every axis reaches the problems, in the order given."""
    grid = problems(
        axes("check --state 64,32 --rank 1,4 --dtype fp32,tf32 --batch 3 --length 7:14:*2")
    )
    assert [(p.dtype, p.options.matmul, p.N, p.R, p.L) for p in grid] == [
        (DTYPES[d], m, N, R, L)
        for d, m in (("fp32", "dtype"), ("tf32", "tf32"))
        for N in (64, 32)
        for R in (1, 4)
        for L in (7, 14)
    ]
    assert {p.B for p in grid} == {3}
    assert {(p.R, p.options.pairing) for p in grid} == {(1, "interleaved"), (4, "half")}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_grids(preset):
    """Each makes problems, and what is typed wins over it."""
    assert len(problems(axes(f"sweep --preset {preset}"))) > 1
    assert {p.N for p in problems(axes(f"sweep --preset {preset} --state 16"))} == {16}


def test_optional_tensors():
    """By default the typical ones; by name, or none; those of MIMO by themselves."""
    assert problems(axes("check --optional none"))[0].optional == ()
    assert problems(axes("check --optional d,z"))[0].optional == ("z", "d")
    assert "mimo_o" in problems(axes("check --optional none --rank 2"))[0].optional
    assert set(OPTIONAL) | {"mimo_x", "mimo_z", "mimo_o"} == set(KNOWN)


def test_the_command_line_offers_what_the_grid_takes():
    """They are written twice, because help must not import torch."""
    names = {name.replace("-", "_") for name in (*NUMBERS, *WORDS)}
    assert names | {"op", "optional"} == set(Axes.__dataclass_fields__)
    assert WORDS["dtype"][1] == tuple(DTYPES)
