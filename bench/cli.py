"""The command line. Nothing heavy is imported before a command runs: --help answers at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .axes import AxisError, numbers, words

EPILOG = """examples:
  mamba3-bench quick
  mamba3-bench check --state 64,128 --dtype bf16,fp32 --batch 1,8 --length 67,1000
  mamba3-bench sweep --preset h100-prefill --out runs/h100
  mamba3-bench sweep --op decode --rank 1,4 --batch 1:128:*2 --dtype bf16
  mamba3-bench report runs/h100/records.jsonl --out runs/h100/report

exit codes: 0 all right, 1 something is wrong or failed, 2 bad arguments,
3 nothing could be checked or measured, 130 interrupted (run the same again to go on)
"""
NUMBERS = {
    "state": "state size N",
    "rank": "MIMO rank R; 1 is SISO",
    "batch": "batch B",
    "length": "tokens L of a sequence; not for decode",
    "heads": "heads H",
    "head-size": "head size P",
    "groups": "groups G of b and c; divides the heads",
}
WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dtype": (
        "dtype of the activations; tf32 is float32 with products rounded to tf32",
        ("bf16", "fp16", "fp32", "tf32"),
    ),
    "state-dtype": ("dtype of the state h", ("fp32", "bf16", "fp16")),
    "angles": ("share of N that is rotated, in pairs", ("quarter", "half")),
    "pairing": (
        "which dims are rotated together; official: interleaved for rank 1, else half",
        ("official", "interleaved", "half"),
    ),
    "decay": ("activation of the decay", ("heavy_tail", "softplus", "log_decay")),
    "step": ("activation of the step size", ("softplus", "activated")),
    "norm": ("whether b and c are normalised by the op", ("rms", "normalised")),
    "initial-state": ("whether a prefill continues from a state", ("no", "yes")),
}
OPTIONAL = (
    "z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d", "out_norm",
)  # fmt: skip
PRESETS: dict[str, dict[str, str]] = {
    "h100-prefill": {
        "op": "prefill",
        "state": "64,128",
        "batch": "1,8",
        "length": "512:16384:*2",
        "dtype": "bf16,fp32",
    },
    "h100-decode": {
        "op": "decode",
        "state": "64,128",
        "rank": "1,2,4",
        "batch": "1,8,32,128",
        "state_dtype": "fp32,bf16",
    },
    "small": {
        "heads": "2",
        "head_size": "32",
        "state": "32",
        "batch": "1,2",
        "length": "64,131",
        "dtype": "bf16,fp16,fp32",
    },
}


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(
        prog="mamba3-bench",
        description="Is each Mamba-3 kernel right, how fast is it, and how far from the limit?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(
            name, help=text, description=text, epilog=EPILOG, formatter_class=raw
        )

    quick = add("quick", "the whole tour in minutes: machine, compiler, gates, times, report")
    _run_options(quick, "runs/quick")
    add("list", "ops and backends: which run here, and why the others do not")
    add("doctor", "GPU, driver and packages: what is missing, and how to get it")
    check = add("check", "gate implementations against the float64 truth; times nothing")
    _grid_options(check)
    _run_options(check, None)
    sweep = add("sweep", "gate and time implementations over a grid; resumes what is recorded")
    _grid_options(sweep)
    _run_options(sweep, "runs/sweep")
    sweep.add_argument("--check-only", action="store_true", help="gate, but do not time")
    sweep.add_argument(
        "--repeat",
        type=positive,
        default=1,
        metavar="K",
        help="measure everything in K fresh processes, one round after the other: `compare` learns "
        "from them what differs between processes alone (1)",
    )
    sweep.add_argument(
        "--budget", type=float, default=0.3, metavar="S", help="seconds measured per entry (0.3)"
    )
    resources = add("resources", "registers, spills and shared memory of every shipped config")
    _grid_options(resources)
    _run_options(resources, None)
    selftest = add("selftest", "what the harness itself gets wrong on this machine, measured")
    _run_options(selftest, "runs/selftest")
    selftest.add_argument(
        "--repeat", type=positive, default=5, metavar="K", help="fresh processes to compare (5)"
    )
    selftest.add_argument(
        "--budget", type=float, default=0.3, metavar="S", help="seconds measured per entry (0.3)"
    )
    report = add("report", "tables, plots and one page from record files")
    report.add_argument("records", nargs="+", type=Path, help="record files (records.jsonl)")
    report.add_argument("--out", type=Path, default=Path("runs/report"), help="folder to write to")
    return top


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _grid_options(command: argparse.ArgumentParser) -> None:
    grid = command.add_argument_group("axes", "values by commas, ranges low:high:*k or low:high:+k")
    grid.add_argument("--preset", choices=sorted(PRESETS), help="a named grid; axes given win over")
    grid.add_argument("--op", choices=("prefill", "decode"), help="prefill")
    for name, text in NUMBERS.items():
        grid.add_argument(f"--{name}", metavar="N,..", help=text)
    for name, (text, allowed) in WORDS.items():
        grid.add_argument(f"--{name}", metavar="NAME,..", help=f"{text}: {', '.join(allowed)}")
    grid.add_argument(
        "--optional",
        metavar="NAME,..",
        help="optional tensors that are present, or none; by default all of "
        f"{', '.join(OPTIONAL)} but out_norm, and those of MIMO for rank > 1",
    )
    grid.add_argument(
        "--backend", metavar="NAME,..", help="by default all that load here, but reference"
    )


def _run_options(command: argparse.ArgumentParser, out: str | None) -> None:
    run = command.add_argument_group("run")
    where = f"folder of records.jsonl ({out})" if out else "folder of records.jsonl; none if absent"
    run.add_argument("--out", type=Path, default=out and Path(out), help=where)
    run.add_argument("--seed", type=int, default=0, help="of inputs and of the rows verified (0)")
    run.add_argument("--retry", action="store_true", help="run again what failed before")
    run.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="longest stage of an entry (300)"
    )
    run.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda if there is one")
    run.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module that registers more implementations; may be repeated",
    )
    run.add_argument("--yes", action="store_true", help="do not ask before a very large run")


def read_axes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The axes given, over those of the preset, as values; raises AxisError."""
    texts = dict(PRESETS[arguments.preset]) if arguments.preset else {}
    for name in ("op", *NUMBERS, *WORDS, "optional"):
        given = getattr(arguments, name.replace("-", "_"))
        if given is not None:
            texts[name.replace("-", "_")] = given
    if texts.get("op") == "decode" and arguments.length is not None:
        raise AxisError("length", "no length for decode", arguments.length, "leave it out")
    axes: dict[str, Any] = {}
    for name, text in texts.items():
        option = name.replace("_", "-")
        if option in NUMBERS:
            axes[name] = numbers(option, text)
        elif option in WORDS:
            axes[name] = words(option, text, WORDS[option][1])
        elif option == "optional":
            axes[name] = () if text == "none" else words(option, text, OPTIONAL)
        else:
            axes[name] = text
    return axes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    top = parser()
    arguments = top.parse_args(given)
    try:
        if arguments.command in ("check", "sweep", "resources"):
            arguments.axes = read_axes(arguments)
    except AxisError as error:
        top.error(str(error))
    from . import commands  # torch and rich are imported here, not for --help

    try:
        return commands.run(arguments, given)
    except commands.UsageError as error:
        top.error(str(error))
