"""The winners of a tuning as data: the file that `kernels/lookup.py` reads, one per GPU."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..kernels import lookup
from ..kernels.lookup import FORMAT, WITHOUT, Shape, file_name, group_of
from ..kernels.registry import MODULES, module_name
from ..kernels.toolchain import made_with, source_hash
from .cover import Cover, cover, failed_of, times_of
from .fields import Candidate, Decision
from .records import date_of
from .show import problem_name

Name = tuple[str | None, str, str, str]  # GPU, op, backend, group


def covers(decisions: Sequence[Decision]) -> dict[Name, Cover]:
    """The cover of each group of problems that has a rule which is right wherever it was tried."""
    groups: dict[Name, dict[Shape, dict[str, float]]] = {}
    failed: dict[Name, set[str]] = {}
    for one in decisions:
        name, problem, times = name_of(one), one.field.problem, times_of(one)
        failed.setdefault(name, set()).update(failed_of(one))
        if times:
            groups.setdefault(name, {})[problem["B"], problem["L"]] = times
    found = {name: cover(times, failed[name]) for name, times in groups.items()}
    return {name: one for name, one in found.items() if one.rules}


def name_of(one: Decision) -> Name:
    """What shapes have in common that share a cover."""
    field = one.field
    return field.environment.get("gpu"), field.op, field.backend, group_of(field.problem)


def words(name: Name, among: Sequence[Decision]) -> str:
    """The name of a group of problems as it is printed, with its GPU if there are several."""
    gpu, op, backend, group = name
    problem = problem_name({"op": op} | json.loads(group))
    return f"{backend} {problem}{_where(gpu or 'a CPU', among)}"


def names_of(decisions: Sequence[Decision]) -> list[str]:
    """The problem of each field as it is printed, with its GPU if there are several."""
    return [
        problem_name(one.field.problem) + _where(one.field.machine[1], decisions)
        for one in decisions
    ]


def _where(machine: str, among: Sequence[Decision]) -> str:
    return f" on {machine}" if machine and len(machines(among)) > 1 else ""


def machines(decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """What the fields were raced on: `cuda` or `cpu`, and the name."""
    return list(dict.fromkeys(one.field.machine for one in decisions if one.field.machine[1]))


def of_one_code(decisions: Sequence[Decision]) -> tuple[list[Decision], list[str]]:
    """The decisions whose kernel and compilers are those of the latest of its GPU, op and backend:
    a file has one fingerprint of each. And what is left out, in words."""
    latest: dict[tuple[Any, ...], dict[str, str | None]] = {}
    for one in sorted(decisions, key=lambda one: date_of(one.field.environment)):
        latest[_kernel(one)] = _table(one)["fingerprint"]
    kept, left = [], Counter[str]()
    for one in decisions:
        was, now = _table(one)["fingerprint"], latest[_kernel(one)]
        if was == now:
            kept.append(one)
            continue
        differ = ", ".join(name for name in now if was.get(name) != now[name])
        left[f"{one.field.backend} {one.field.op}: shapes tuned with another {differ}"] += 1
    return kept, [f"{text} than the latest are left out: {n}" for text, n in left.items()]


def _kernel(one: Decision) -> tuple[Any, ...]:
    return one.field.environment.get("gpu"), one.field.op, one.field.backend


def files(decisions: Sequence[Decision]) -> dict[str, dict[str, Any]]:
    """The content of the file of each GPU, by its name; a CPU's winners are of no use to anyone.

    A field without a winner is among them only if each of its candidates failed.
    """
    found: dict[str, dict[str, Any]] = {}
    ended = [one for one in decisions if one.winner is not None or _failed(one)]
    known = covers(ended)
    for one in ended:
        gpu = one.field.environment.get("gpu")
        if gpu is None:
            continue
        file = found.setdefault(gpu, {"format": FORMAT, "gpu": gpu, "tables": []})
        table = _entry(file["tables"], _table(one), "groups")
        problem = {k: v for k, v in one.field.problem.items() if k not in WITHOUT}
        group = _entry(table["groups"], {"problem": problem}, "shapes")
        rules = known.get(name_of(one))
        if rules is not None:
            group["cover"] = _figures(rules)
        group["shapes"].append(_shape(one, rules))
    return found


def _failed(one: Decision) -> bool:
    return not {"correct", "left"} & one.field.counts.keys()


def _entry(entries: list[dict[str, Any]], head: dict[str, Any], inner: str) -> dict[str, Any]:
    """The entry of a list that begins like this, made if there is none."""
    for entry in entries:
        if all(entry.get(name) == value for name, value in head.items()):
            return entry
    entries.append(head | {inner: []})
    return entries[-1]


def _table(one: Decision) -> dict[str, Any]:
    field, environment = one.field, one.field.environment
    source = next(row.source for each in field.candidates for row in each.rows)
    made = made_with(field.backend, environment, source)
    return {"op": field.op, "backend": field.backend, "fingerprint": made}


def _figures(rules: Cover) -> dict[str, Any]:
    mean, worst = map(_share, rules.unseen) if rules.unseen is not None else (None, None)
    return {
        "rules": list(rules.rules),
        "worst_regret": _share(max(rules.regret.values())),
        "held_out_worst": worst,
        "held_out_mean": mean,
    }


def _share(value: float) -> float | None:
    """Four digits; None for a rule that does not run everywhere."""
    return round(value, 4) if value < float("inf") else None


def _shape(one: Decision, rules: Cover | None) -> dict[str, Any]:
    problem, winner, environment = one.field.problem, one.winner, one.field.environment
    shape = (problem["B"], problem["L"])
    margin = one.margin
    return {
        "B": shape[0],
        "L": shape[1],
        "config": None if winner is None else winner.config,
        "default": winner is not None and winner.index == 0,
        "us": None if winner is None else round(one.us(winner), 3),
        "margin": margin and {k: round(v, 4) for k, v in asdict(margin).items()},
        "errors": {} if winner is None else errors(winner),
        "ties": [each.config for each in one.ties if each is not winner],
        "undecided": len(one.undecided),
        "counts": one.field.counts,
        "failed": failed_of(one),
        "edges": [] if winner is None else one.edges(winner),
        "driver": environment.get("driver"),
        "torch": (environment.get("packages") or {}).get("torch"),
        "cover": rules.chosen.get(shape) if rules else None,
    }


def errors(one: Candidate) -> dict[str, dict[str, float]]:
    """The relative L2 error of each output and its bound: the worst row of a right candidate."""
    found: dict[str, dict[str, float]] = {}
    for row in one.rows:
        for name, error in row.errors.items():
            if name not in found or error.l2 > found[name]["l2"]:
                found[name] = {"l2": _digits(error.l2), "bound": _digits(error.l2_bound)}
    return found


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def write(contents: dict[str, dict[str, Any]], folder: Path, *, merge: bool = False) -> list[Path]:
    """Write the file of each GPU into a folder, and take away others that are there; with `merge`
    those stay, and so do other shapes of the same files.

    A table of another fingerprint is replaced as a whole. Who writes to the same folder waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        for gpu, content in contents.items():
            path = folder / file_name(gpu)
            if merge and path.is_file():
                content = _merged(lookup.read_file(path), content)
            beside = path.with_suffix(".part")
            beside.write_text(as_text(_sorted(content)), encoding="utf-8")
            os.replace(beside, path)
            written.append(path)
        if not merge:
            for path in set(folder.glob("*.json")) - set(written):
                path.unlink()
    finally:
        os.close(held)
    return written


def usable(contents: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The tables that this package can use, and why the others are none of them: its look-up takes
    a winner for the kernel that it was measured with, of a backend that the package has."""
    ready, reasons = {}, []
    for gpu, content in contents.items():
        tables = []
        for table in content["tables"]:
            op, backend = table["op"], table["backend"]
            name = f"{backend} {op} on {gpu}"
            if (op, backend) not in MODULES:
                reasons.append(f"not shipped: {name}: this package has no such backend")
            elif table["fingerprint"]["source"] != source_hash(module_name(op, backend) or ""):
                reasons.append(f"not shipped: {name}: recorded with another source of the kernel")
            else:
                tables.append(table)
        if tables:
            ready[gpu] = content | {"tables": tables}
    return ready, reasons


def replaced(contents: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """What a folder's files lose to some new ones, in words: tables of another fingerprint."""
    found = []
    for gpu, content in contents.items():
        path = folder / file_name(gpu)
        tables = by_kernel(lookup.read_file(path)) if path.is_file() else {}
        for table in content["tables"]:
            before = tables.get((table["op"], table["backend"]))
            if before is None or before["fingerprint"] == table["fingerprint"]:
                continue
            was, now = before["fingerprint"], table["fingerprint"]
            differ = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
            count = sum(len(group["shapes"]) for group in before["groups"])
            found.append(
                f"{table['backend']} {table['op']}: {count} shapes that were tuned with another "
                f"{', '.join(differ)} go"
            )
    return found


def by_kernel(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The tables of a file by op and backend."""
    return {(table["op"], table["backend"]): table for table in content["tables"]}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    tables = by_kernel(old)
    for table in new["tables"]:
        before = tables.get((table["op"], table["backend"]))
        groups = table["groups"]
        if before is not None and before["fingerprint"] == table["fingerprint"]:
            groups = _joined(before["groups"], groups)
        tables[table["op"], table["backend"]] = table | {"groups": groups}
    return new | {"tables": list(tables.values())}


def _joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups of two tunings; a shape that both have is that of the new one."""
    groups = {group_of(group["problem"]): group for group in old}
    for group in new:
        name = group_of(group["problem"])
        before = groups.get(name, {"shapes": []})
        fresh = [(shape["B"], shape["L"]) for shape in group["shapes"]]
        kept = [shape for shape in before["shapes"] if (shape["B"], shape["L"]) not in fresh]
        shapes = kept + group["shapes"]
        failed = {rule for shape in shapes for rule in shape["failed"]}
        groups[name] = group | {
            "shapes": [s | {"cover": None} if s["cover"] in failed else s for s in shapes]
        }
        if kept and "cover" in before and "cover" in group:
            groups[name]["cover"] = _both(before["cover"], group["cover"], failed)
    return list(groups.values())


def _both(old: dict[str, Any], new: dict[str, Any], failed: set[str]) -> dict[str, Any]:
    """The figures of the covers of two tunings of one group: each shape has the rule of its own, if
    it failed in neither."""
    worst = [old["worst_regret"], new["worst_regret"]]
    return {
        "rules": sorted({*old["rules"], *new["rules"]} - failed),
        "worst_regret": None if None in worst else max(worst),
        "held_out_worst": None,  # the shapes of one had no part in the cover of the other
        "held_out_mean": None,
    }


def _sorted(content: dict[str, Any]) -> dict[str, Any]:
    """Tables by op and backend, their groups by problem, their shapes by size: so equal winners
    read alike."""
    tables = []
    for table in sorted(content["tables"], key=lambda table: (table["op"], table["backend"])):
        groups = [
            group | {"shapes": sorted(group["shapes"], key=lambda shape: (shape["B"], shape["L"]))}
            for group in table["groups"]
        ]
        groups.sort(key=lambda group: json.dumps(group["problem"], sort_keys=True))
        tables.append(table | {"groups": groups})
    return content | {"tables": tables}


def as_text(content: dict[str, Any]) -> str:
    """JSON with one line for each shape, so that a change of one reads as one."""
    shapes: list[str] = []

    def held(value: Any) -> Any:
        if isinstance(value, dict):
            if "counts" in value:
                shapes.append(json.dumps(value, sort_keys=True))
                return f"@{len(shapes) - 1}@"
            return {name: held(each) for name, each in value.items()}
        return [held(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(held(content), indent=1, sort_keys=True)
    for number, shape in enumerate(shapes):
        text = text.replace(f'"@{number}@"', shape)
    return text + "\n"
