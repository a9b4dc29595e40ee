"""Which tuners let a fast and wrong config win: a table, from runs on this machine.

    python tests/planted/table.py --out FOLDER [--tuners triton,tilelang,ours-cute]

Each fault meets one right and slow config under triton.autotune and tilelang.autotune, as their
users call them (state restored between the runs of a config, where the tuner can), each in a
process of its own. Ours gets all faults at once, in a kernel of the suite for each DSL. What each
chose, and what that gets wrong, is in FOLDER/table.json and, as Markdown, in FOLDER/table.md; what
FOLDER has of tuners that are not named stays.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 25  # for one tuner and fault: a few are the rule
NAMES = {
    "triton": "triton.autotune",
    "tilelang": "tilelang.autotune",
    "ours-triton": "ours: Triton",
    "ours-tilelang": "ours: TileLang",
    "ours-cute": "ours: CuTe DSL",
}
RUNS_ON_CPU = {"zeros", "wrong_tail", "skipped_state", "race", "out_of_bounds", "clobbered_input"}


def one(tuner, faults):
    """Tune in this process, fault by fault; prints a line of JSON for each."""
    sys.path.insert(0, str(HERE))
    module = importlib.import_module(f"in_{tuner}")
    for fault in faults:
        chosen, wrong = module.tune(fault)
        result = {"tuner": tuner, "fault": fault, "chose": chosen, "wrong": wrong}
        sys.stdout.write(f"RESULT {json.dumps(result)}\n")
        sys.stdout.flush()


def apart(tuner, faults):
    """The results of some faults in a process of their own, which may end anyhow."""
    line = [sys.executable, "-P", str(HERE / "table.py"), "--one", tuner, ",".join(faults)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said = process.communicate(timeout=SECONDS)[0]
        ended = f"exit code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said = process.communicate()[0]
        ended = f"no answer for {SECONDS} s"
    found = [json.loads(text[7:]) for text in said.splitlines() if text.startswith("RESULT ")]
    if ended:
        known = {result["fault"] for result in found}
        last = ([text for text in said.splitlines() if text.strip()] or [""])[-1].strip()[:200]
        found += [
            {"tuner": tuner, "fault": fault, "ended": ended, "said": last}
            for fault in faults
            if fault not in known
        ]
    return found


def ours(dsl, op, out, seconds):
    """The same by our tuner in one DSL, from its records."""
    tuner = f"ours-{dsl}"
    line = [
        sys.executable, "-P", "-m", "mamba3_bench", "tune", "--plugin", str(HERE / "ours.py"),
        "--op", op, "--backend", f"planted_{dsl}", "--batch", "4", "--heads", "8",
        "--timeout", str(seconds), "--confirm", "1", "--out", str(out / tuner),
    ]  # fmt: skip
    if op == "prefill":
        line += ["--length", "256"]
    with (out / f"{tuner}.log").open("w") as log:
        code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=False)
    from mamba3_bench.bench import fields, records

    (decision,) = fields.decide(fields.read(records.read([out / tuner / "records.jsonl"])))
    found = []
    for candidate in decision.field.candidates:
        result = {"tuner": tuner, "fault": candidate.config["fault"], "run": code.returncode}
        if candidate is decision.winner:
            result["chose"] = candidate.config["fault"] or "none"
        if candidate.index:
            found.append(result | {"outcome": candidate.outcome, "said": candidate.reason})
    return found


def cell(result):
    """What a tuner did with a fault, in words."""
    if result is None:
        return ""
    if "outcome" in result:
        won = "**wins**" if "chose" in result else "rejected"
        return f"{won}: {result['outcome']}"
    if "ended" in result:
        return f"ends the run: {result['ended']}"
    return f"**wins**: {result['wrong']} wrong" if result["wrong"] else "does not win"


def markdown(results, tuners):
    """The table."""
    known = {(result["tuner"], result["fault"]): result for result in results}
    faults = list(dict.fromkeys(result["fault"] for result in results))
    lines = ["| planted fault | " + " | ".join(NAMES[tuner] for tuner in tuners) + " |"]
    lines.append("| --- " * (len(tuners) + 1) + "|")
    for fault in faults:
        cells = " | ".join(cell(known.get((tuner, fault))) for tuner in tuners)
        lines.append(f"| {fault.replace('_', ' ')} | {cells} |")
    return "\n".join(lines) + "\n"


def write(results, out):
    """Write what is known so far; returns the table."""
    tuners = [name for name in NAMES if any(result["tuner"] == name for result in results)]
    text = markdown(results, tuners)
    (out / "table.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(text)
    return text


def of_others(out, but):
    """The results that a folder has of tuners that are not about to run."""
    path = out / "table.json"
    found = json.loads(path.read_text()) if path.is_file() else []
    return [one for one in found if one["tuner"] in NAMES and one["tuner"] not in but]


def main():
    """Run the tuners asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--tuners", default=",".join(NAMES))
    parser.add_argument("--timeout", type=float, default=12.0, help="of a stage of ours")
    parser.add_argument("--one", nargs=2, metavar=("TUNER", "FAULTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], arguments.one[1].split(","))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    tuners = arguments.tuners.split(",")
    unknown = [name for name in tuners if name not in NAMES]
    if unknown:
        parser.error(f"--tuners: no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    sys.path.insert(0, str(HERE))
    import steps

    if steps.DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        groups = [("triton", [fault for fault in steps.FAULTS if fault in RUNS_ON_CPU])]
    else:
        public = [name for name in tuners if not name.startswith("ours")]
        groups = [(name, [fault]) for name in public for fault in steps.FAULTS]
    results = of_others(arguments.out, but=tuners)
    with ThreadPoolExecutor(8) as pool:
        mine = [pool.submit(apart, *group) for group in groups]
        results += [result for future in mine for result in future.result()]
    text = write(results, arguments.out)
    for dsl, op in steps.OPS.items() if steps.DEVICE == "cuda" else ():
        if f"ours-{dsl}" in tuners:
            results += ours(dsl, op, arguments.out, arguments.timeout)
            text = write(results, arguments.out)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
