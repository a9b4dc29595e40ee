"""The command line. Nothing heavy is imported before a command runs: --help answers at once."""

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from .axes import LARGEST, AxisError, numbers, shortened, whole, words
from .presets import PRESETS, Contender, Match, Side, sides

EPILOG = """examples:
  mamba3-bench quick
  mamba3-bench check --state 64,128 --dtype bf16,fp32 --batch 1,8 --length 67,1000
  mamba3-bench sweep --preset h100-prefill --out runs/h100
  mamba3-bench sweep --op decode --rank 1,4 --batch 1:128:*2 --dtype bf16
  mamba3-bench report runs/h100/records.jsonl --out runs/h100/report

exit codes: 0 all right, 1 something is wrong or failed, 2 bad arguments,
3 nothing could be checked or measured, 130 interrupted (run the same again to go on)
"""
COMPARE_EPILOG = """verdicts and exit codes, the worst one counts:
   0  same          the interval of NEW / OLD lies within the threshold
  10  faster        the interval lies below 1, and the effect reaches the threshold
  11  cannot tell   the interval is too wide for any of the others
  12  slower        the interval lies above 1, and the effect reaches the threshold
  13  not measured  worked in OLD, and in NEW fails, is missing, or has no time
  14  wrong         the result of NEW is outside its bound
same, faster and cannot tell end with 0, unless --pass says otherwise; 2 is for bad arguments,
3 if OLD has nothing to compare, 1 for any other error.

examples:
  mamba3-bench compare runs/old runs/new
  mamba3-bench compare runs/old runs/new --threshold 1% --markdown verdict.md --json verdict.json
  mamba3-bench compare runs/old runs/new --pass same,faster       # cannot tell is a failure, too
"""
TUNE_EPILOG = """each candidate is compiled once, gated against the float64 truth in a process that
may die of it, raced against the others and the default, gated again, and confirmed in fresh
processes. The default wins unless something is faster beyond doubt. `why` tells what runs now.

examples:
  mamba3-bench tune --op decode --rank 1,4 --batch 1,8,32,128 --out runs/tune-decode
  mamba3-bench tune --backend triton --batch 1,8 --length 512:16384:*2 --ship
  mamba3-bench tune --replay runs/tune/records.jsonl --out runs/again
  mamba3-bench why --batch 8 --length 3000

exit codes: 0 every problem has a winner, 1 some problem has no right candidate, 3 nothing to tune,
130 interrupted (run the same again to go on)
"""
OPS = (
    *("prefill", "decode"),
    *("mamba2.prefill", "mamba2.decode", "gdn.prefill", "gdn.decode"),
    *("attention.prefill", "attention.decode"),
)
TOKENLESS = ("decode", "mamba2.decode", "gdn.decode")
NUMBERS = {
    "state": "state size N",
    "rank": "MIMO rank R; 1 is SISO",
    "batch": "batch B",
    "length": "tokens L of a sequence, or of attention's cache; no other decode step has it",
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
LONGEST_S = 1_000_000  # poll takes milliseconds in 32 bits
OPTIONAL = (
    "z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d", "out_norm",
)  # fmt: skip


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
        "--budget",
        type=seconds,
        default=0.3,
        metavar="S",
        help="seconds measured per entry (0.3); what is recorded already stays as it is",
    )
    _tune_options(commands)
    why = add("why", "which backend and config run a problem on a GPU, and why these")
    _grid_options(why)
    why.add_argument(
        "--gpu", metavar="NAME", help="another GPU than this machine's, as `tune` has it"
    )
    why.add_argument("--plugin", action="append", default=[], metavar="FILE", help="as for sweep")
    resources = add("resources", "registers, spills and shared memory of every hand-picked config")
    _grid_options(resources)
    _run_options(resources, None)
    selftest = add("selftest", "what the harness itself gets wrong on this machine, measured")
    _run_options(selftest, "runs/selftest")
    selftest.add_argument("--backend", metavar="NAME,..", help="by default all but torch on a GPU")
    selftest.add_argument(
        "--repeat", type=positive, default=5, metavar="K", help="fresh processes to compare (5)"
    )
    selftest.add_argument(
        "--budget", type=seconds, default=0.3, metavar="S", help="seconds measured per entry (0.3)"
    )
    _compare_options(commands)
    report = add("report", "tables, plots and one page from record files")
    report.add_argument("records", nargs="+", type=Path, help="records.jsonl, or folders with some")
    report.add_argument("--out", type=Path, default=Path("runs/report"), help="folder to write to")
    return top


def _tune_options(commands: Any) -> None:
    text = "the right and fastest config of each kernel, for each problem of a grid; resumes"
    tune = commands.add_parser(
        "tune",
        help=text,
        description=text,
        epilog=TUNE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _grid_options(tune)
    _run_options(tune, "runs/tune")
    group = tune.add_argument_group("tuning")
    group.add_argument(
        "--budget",
        type=seconds,
        default=0.02,
        metavar="S",
        help="seconds measured per candidate in the first of four laps; each doubles it (0.02)",
    )
    group.add_argument(
        "--finalists",
        type=positive,
        default=4,
        metavar="N",
        help="beside the default, those that are confirmed (4)",
    )
    group.add_argument(
        "--confirm", type=positive, default=2, metavar="K", help="fresh processes for that (2)"
    )
    group.add_argument(
        "--most",
        type=positive,
        metavar="N",
        help="candidates of each problem: the default, and others drawn from the seed (all)",
    )
    group.add_argument(
        "--ship",
        action="store_true",
        help="put the winners into the package, where backend=auto and the other commands use them",
    )
    group.add_argument(
        "--replay",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="decide recorded tunings again, all or of --op and --backend, and write everything; "
        "record files, or folders that hold some; runs nothing, needs no GPU",
    )


def _compare_options(commands: Any) -> None:
    """`compare`: its exit codes are its own."""
    text = "NEW against OLD: a verdict for each shape, and an exit code that can gate a merge"
    command = commands.add_parser(
        "compare",
        help=text,
        description=text,
        epilog=COMPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("old", "new"):
        command.add_argument(
            name, metavar=name.upper(), type=Path, help="a records.jsonl, or a folder with some"
        )
    command.add_argument(
        "--threshold", type=share, default=0.02, metavar="X", help="what counts: 2%% or 0.02 (2%%)"
    )
    command.add_argument(
        "--confidence",
        type=share,
        default=0.95,
        metavar="X",
        help="that no shape at all is called different by mistake (95%%)",
    )
    command.add_argument(
        "--time",
        choices=("device", "cold", "warm", "host"),
        default="device",
        help="device: cold where both sides have it, else warm (device)",
    )
    command.add_argument(
        "--noise",
        type=share,
        metavar="X",
        help="scatter between processes, a standard deviation; by default from repeats",
    )
    command.add_argument(
        "--pass",
        dest="passing",
        metavar="CASE,..",
        help="cases that end with 0 (same,faster,cannot-tell); none: each has its own code",
    )
    command.add_argument("--op", metavar="NAME,..", help="these ops alone")
    command.add_argument("--backend", metavar="NAME,..", help="these backends alone")
    command.add_argument(
        "--by-config",
        action="store_true",
        help="configs one by one; else the fastest of a backend stands for it",
    )
    command.add_argument("--markdown", type=Path, metavar="FILE", help="for a pull request; -")
    command.add_argument("--json", type=Path, metavar="FILE", help="for a program; - is stdout")


def share(text: str) -> float:
    """`2%` or `0.02`: between 0 and 1."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share such as 2% or 0.02, got {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = whole(text)
    if not value:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 1, got {shortened(text)!r}"
        )
    return value


def seed(text: str) -> int:
    """A whole number that fits into the 64 bits of a table's column."""
    try:
        value = int(text)
    except ValueError:
        value = LARGEST + 1
    if not -LARGEST <= value <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from -2^63 + 1 to 2^63 - 1, got {shortened(text)!r}"
        )
    return value


def seconds(text: str) -> float:
    """A time that is more than nothing, and that a process can wait for."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(
            f"expected seconds, more than 0 and at most {LONGEST_S}, got {shortened(text)!r}"
        )
    return value


def _grid_options(command: argparse.ArgumentParser) -> None:
    grid = command.add_argument_group("axes", "values by commas, ranges low:high:*k or low:high:+k")
    named = "; ".join(f"{name}: {preset.text}" for name, preset in PRESETS.items())
    grid.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        metavar="NAME",
        help=f"a named grid; axes given win over those that it shares. {named}",
    )
    grid.add_argument(
        "--op",
        metavar="NAME,..",
        help=f"prefill if absent; several are timed side by side: {', '.join(OPS)}",
    )
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
        "--backend",
        metavar="NAME,..",
        help="by default all of ours that load here, but reference; other people's by name",
    )


def _run_options(command: argparse.ArgumentParser, out: str | None) -> None:
    run = command.add_argument_group("run")
    where = f"folder of records.jsonl ({out})" if out else "folder of records.jsonl; none if absent"
    run.add_argument("--out", type=Path, default=out and Path(out), help=where)
    run.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of inputs and of the rows verified; 64 bits (0)",
    )
    run.add_argument(
        "--retry",
        action="store_true",
        help="run again what did not compile or run before; what was wrong stays so",
    )
    run.add_argument(
        "--timeout",
        type=seconds,
        default=300.0,
        metavar="S",
        help="longest stage of an entry (300)",
    )
    run.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda if there is one")
    run.add_argument(
        "--gpus", metavar="I,..", help="GPUs by their number; by default every visible one"
    )
    run.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="a worker on every GPU of a Ray cluster, or of this machine through Ray",
    )
    run.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module that registers more implementations; may be repeated",
    )
    run.add_argument("--yes", action="store_true", help="do not ask before a very large run")


def read_sides(arguments: argparse.Namespace) -> list[list[Side]]:
    """Who meets at each point of the grid asked for; raises AxisError."""
    typed = {}
    for name in (*NUMBERS, *WORDS, "optional"):
        given = getattr(arguments, name.replace("-", "_"))
        if given is not None:
            typed[name.replace("-", "_")] = given
    ops = () if arguments.op is None else words("op", arguments.op, ops_of(arguments.preset))
    matches: tuple[Match, ...] = (Match({}, tuple(Contender(op) for op in ops or ("prefill",))),)
    if arguments.preset:
        matches = PRESETS[arguments.preset].matches
        if ops:
            matches = tuple(only(ops, match) for match in matches)
    there = {one.op for match in matches for one in match.contenders}
    if there <= set(TOKENLESS) and "length" in typed:
        names = ",".join(sorted(there))
        raise AxisError("length", f"no length for {names}", typed["length"], "leave it out")
    return [found for match in matches for found in sides(match, typed, read_axis)]


def ops_of(preset: str | None) -> tuple[str, ...]:
    """The ops that a preset has; all without one."""
    if preset is None:
        return OPS
    there = {one.op for match in PRESETS[preset].matches for one in match.contenders}
    return tuple(op for op in OPS if op in there)


def only(ops: Sequence[str], match: Match) -> Match:
    """A match with the contenders of some ops."""
    return Match(match.axes, tuple(one for one in match.contenders if one.op in ops))


def read_axis(name: str, text: str) -> tuple[Any, ...]:
    """The values of an axis; raises AxisError."""
    option = name.replace("_", "-")
    if option in NUMBERS:
        return numbers(option, text)
    if option in WORDS:
        return words(option, text, WORDS[option][1])
    return () if text == "none" else words(option, text, OPTIONAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as EPILOG and those of the commands list them.

    As the program itself, without argv, it takes a SIGTERM for a ctrl-C: what is done is kept.
    Letters that a terminal does not have are then shown as `?`.
    """
    if argv is None:
        _listen(_leave)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
    given = sys.argv[1:] if argv is None else list(argv)
    top = parser()
    arguments = top.parse_args(given)
    try:
        if arguments.command in ("check", "sweep", "tune", "why", "resources"):
            arguments.sides = read_sides(arguments)
    except AxisError as error:
        top.error(str(error))
    from . import commands  # torch and rich are imported here, not for --help

    if argv is None:
        _listen(signal.default_int_handler)
    try:
        code = commands.run(arguments, given)
        sys.stdout.flush()
    except commands.UsageError as error:
        top.error(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:  # any other has become a message already
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.stderr.write(f"error: standard output: {error}\n")
        return 1
    return code


def _listen(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Let a handler hear what should end this process, but for what its caller had it ignore."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing is done yet, and an exception would be lost in some package's import."""
    os.write(2, b"interrupted\n")
    os._exit(130)
