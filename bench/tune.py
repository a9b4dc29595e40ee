"""`mamba3-bench tune`: which config is right and fastest, for each problem of a grid.

1. Every candidate is compiled once, in parallel, without the GPU; what exceeds a limit of the
   device is left out, with the limit.
2. Each is gated against the float64 truth in a process that may die of it, and those that are right
   race, interleaved with the default in every turn (`race.py`); each is gated again after its race.
3. The finalists of all backends are timed again in fresh processes, as a sweep does it.
4. What the rows come to is decided (`fields.py`), printed, and written: winners as data, a page,
   exports. `--replay` does this step alone, from recorded rows.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..kernels import lookup, registry
from ..kernels.family import Problem, family
from ..kernels.registry import DEFAULT, Config, config_dict
from . import export, plugins, records, shipping, show
from .ahead import COMPILED_FOR, Quiet, compilers, once_each
from .cover import Cover
from .fields import Decision, Field, decide, read
from .hardware import environment
from .jobs import Entry, Job, Place, Settings
from .ledger import Outcome
from .records import Row
from .report import write_tuning
from .rows import explain
from .runner import Runner
from .session import (
    NOTHING,
    RIGHT,
    WRONG,
    UsageError,
    absolute,
    command_line,
    conclude,
    device_of,
    files_below,
    make_jobs,
    name_lost,
    perform,
    records_path,
)
from .sides import chosen

CONFIRM_S = 0.3  # of samples for each finalist in each confirming process
REPLAYED = ("--replay", "--out", "--ship", "--op", "--backend")  # options that go together


def run(page: Console, arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Tune, or decide a recorded tuning again; returns the exit code. Raises UsageError."""
    if arguments.replay:
        return present(page, recorded(arguments, given), arguments)
    plugins.load(arguments.plugin)
    device = device_of(arguments)
    found = [candidates(pair, device, arguments) for pair in pairs(arguments)]
    fields = [one for one in found if isinstance(one, Job)]
    for reason in dict.fromkeys(one for one in found if isinstance(one, str)):
        page.print(f"left out: {escape(reason)}", highlight=False, soft_wrap=True)
    if not fields:
        page.print("nothing to tune")
        return NOTHING
    here = environment(device)
    settings = Settings(
        kind="tune",
        seed=arguments.seed,
        budget_s=arguments.budget,
        finalists=arguments.finalists,
        interpret=device.type == "cpu",
        plugins=absolute(arguments.plugin),
        command=command_line(given),
    )
    compiled = compile_all(page, arguments, settings, fields, here)
    if compiled.interrupted:
        return conclude(page, compiled, records_path(arguments))
    rows = compiled.all
    left = [job for job in (within_limits(job, rows, here) for job in fields) if job.entries]
    raced = perform(page, arguments, settings, left, "race", ahead=False)
    if raced.interrupted:
        return conclude(page, raced, records_path(arguments))
    finals = replace(settings, kind="sweep", budget_s=CONFIRM_S)
    on_record = records.read(records.files_of(records_path(arguments)))
    wrong = caught(on_record, raced.all)
    jobs = confirmations(read(wrong + raced.all), left, arguments.confirm)
    confirmed = (
        perform(page, arguments, finals, jobs, "confirm", ahead=False) if jobs else Outcome()
    )
    if confirmed.interrupted:
        return conclude(page, confirmed, records_path(arguments))
    for outcome in (compiled, raced, confirmed):
        name_lost(page, outcome)
    if others := others_than(fields, on_record):
        path = records_path(arguments)
        more = f"{others} more problem{'s' if others > 1 else ''}"
        text = f"{more} tuned into {path} before: `mamba3-bench tune --replay {path}` decides all"
        page.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)
    return present(page, wrong + rows + raced.all + confirmed.all, arguments)


def others_than(fields: Sequence[Job], on_record: Sequence[Row]) -> int:
    """How many problems were tuned into the same records by commands that asked for others."""
    firsts = [job.entries[0] for job in fields]  # a field is one backend on one problem
    asked = {_name(one.problem.op, one.backend, one.problem.as_dict()) for one in firsts}
    there = {_name(r.op, r.backend, r.problem) for r in on_record if r.kind == "tune"}
    return len(there - asked)


def caught(on_record: Sequence[Row], raced: Sequence[Row]) -> list[Row]:
    """The rows on record that found a candidate of these problems wrong, by whatever run."""
    asked = {_name(row.op, row.backend, row.problem) for row in raced}
    return [
        row
        for row in on_record
        if row.status == "wrong" and _name(row.op, row.backend, row.problem) in asked
    ]


def recorded(arguments: argparse.Namespace, given: Sequence[str]) -> list[Row]:
    """The rows to decide again; raises UsageError for options that say how to measure, and as
    `files_below` does.
    """
    options = [word.split("=")[0] for word in given if word.startswith("--")]
    others = [one for one in options if not any(name.startswith(one) for name in REPLAYED)]
    if others:
        names = ", ".join(dict.fromkeys(others))
        raise UsageError(f"{names}: --replay decides what is recorded; leave it out")
    files = files_below(arguments.replay)
    ((rows,),) = chosen([[records.read(files)]], arguments.op, arguments.backend)
    return rows


def ship(page: Console, contents: dict[str, dict[str, Any]]) -> list[Path]:
    """Put winners into the package; what cannot be used there, and what goes for it, is said."""
    ready, reasons = shipping.usable(contents)
    for text in (*reasons, *shipping.replaced(ready, lookup.SHIPPED)):
        page.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)
    if not ready:
        page.print("nothing to ship")
    return shipping.write(ready, lookup.SHIPPED, merge=True)


def pairs(arguments: argparse.Namespace) -> list[tuple[Problem, str]]:
    """Each problem with each backend that is to be tuned on it, torch only if it is named."""
    found = [
        (entry.problem, entry.backend)
        for job in make_jobs(arguments.sides, arguments.backend)
        for entry in job.entries
        if arguments.backend is not None or entry.backend != "torch"
    ]
    return list(dict.fromkeys(found))


def candidates(
    pair: tuple[Problem, str], device: torch.device, arguments: argparse.Namespace
) -> Job | str:
    """The candidates for a problem by a backend, the default first; a reason if there is no choice.

    With `--most` a part of them, drawn from the seed: any such part holds the default.
    """
    problem, backend = pair
    refusal = registry.refusal(problem.op, backend, problem, device)
    if refusal is not None:
        return f"{backend} {problem.op}: {refusal}"
    named: dict[Config, list[str]] = {}
    try:
        found = registry.get(problem.op, backend).candidates(problem, device)
    except Exception as error:
        return f"{backend} {problem.op}: its space: {explain(error)[1]}"
    for name, config in found.items():
        named.setdefault(config, []).append(name)
    if len(named) < 2:
        return f"{backend} {problem.op}: it has one config"
    chosen = list(enumerate(named.items()))
    if arguments.most is not None and arguments.most < len(chosen):
        others = random.Random(arguments.seed).sample(chosen[1:], arguments.most - 1)
        chosen = [chosen[0], *sorted(others, key=lambda one: one[0])]
    entries = [
        Entry(problem, backend, config_dict(config), place=Place(i, len(named), tuple(names)))
        for i, (config, names) in chosen
    ]
    assert entries[0].place is not None
    assert DEFAULT in entries[0].place.names
    return Job(tuple(entries))


def compile_all(
    page: Console,
    arguments: argparse.Namespace,
    settings: Settings,
    fields: Sequence[Job],
    here: dict[str, Any],
) -> Outcome:
    """Compile every candidate for sm_90a, if this device is one.

    The hard cases of one field of each group are compiled, too: what its kernels are specialised by
    is the same in the others.
    """
    if here.get("compute_capability") != COMPILED_FOR:
        return Outcome()
    wanted = [entry for job in fields for entry in job.entries if _compiles(entry)]
    largest: dict[tuple[str, str, str], Job] = {}
    for job in fields:
        first = job.entries[0]
        name = (first.problem.op, first.backend, lookup.group_of(first.problem.as_dict()))
        if name not in largest or len(job.entries) > len(largest[name].entries):
            largest[name] = job
    for job in largest.values():
        for entry in job.entries:
            if _compiles(entry) and entry.backend in registry.KEPT_ON_DISK:
                cases = family(entry.problem.op).hard_cases(entry.problem)
                problems = dict.fromkeys(case.problem for case in cases)
                wanted += [replace(entry, problem=problem, place=None) for problem in problems]
    jobs = once_each(wanted)  # the entries of candidates are first: they keep their places
    with show.Watch(page, "compile") as watch:
        return Runner(
            replace(settings, kind="resources", interpret=False),
            compilers(jobs),
            records_path(arguments),
            Quiet("compiled", watch),
            timeout_s=arguments.timeout,
            retry=arguments.retry,
        ).run(jobs)


def _compiles(entry: Entry) -> bool:
    return registry.get(entry.problem.op, entry.backend).resources is not None


def within_limits(job: Job, compiled: Sequence[Row], here: dict[str, Any]) -> Job:
    """The candidates that compile and keep the limits of the device."""
    first = job.entries[0]
    out = [
        one.config
        for field in read(compiled, here)
        if (field.op, field.backend) == (first.problem.op, first.backend)
        and field.problem == first.problem.as_dict()
        for one in field.candidates
        if one.outcome in ("compile", "constraints")
    ]
    return Job(tuple(entry for entry in job.entries if entry.config not in out))


def confirmations(fields: Sequence[Field], raced: Sequence[Job], processes: int) -> list[Job]:
    """Jobs that time the finalists of all backends of a problem together, in fresh processes."""
    known = {
        _name(entry.problem.as_dict(), entry.backend, entry.config): entry
        for job in raced
        for entry in job.entries
    }
    together: dict[str, list[Entry]] = {}
    for field in fields:
        for one in field.finalists:
            entry = known.get(_name(field.problem, field.backend, one.config))
            if entry is not None:
                together.setdefault(_name(field.problem), []).append(entry)
    return [
        Job(tuple(replace(entry, repeat=repeat) for entry in entries))
        for repeat in range(1, processes + 1)
        for entries in together.values()
    ]


def _name(*parts: Any) -> str:
    """Plain values as text; the order of their names, which records do not keep, does not count."""
    return json.dumps(parts, sort_keys=True)


def present(page: Console, rows: Sequence[Row], arguments: argparse.Namespace) -> int:
    """Decide, print and write everything; returns the exit code."""
    decisions = decide(read(rows))
    if not decisions:
        page.print("these records hold no tuning")
        return NOTHING
    out: Path = arguments.out
    current, left = shipping.of_one_code(decisions)
    contents = shipping.files(current)
    written = shipping.write(contents, out / "tuned")  # before a word is printed: that can fail
    written += export.write(decisions, out / "export")
    written.append(write_tuning(decisions, out))
    page.print(table_of(decisions))
    for one in decisions:
        for text in warnings_of(one):
            page.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)
    for text in left:
        page.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)
    for name, cover in shipping.covers(current).items():
        text = f"{shipping.words(name, decisions)}: {in_words(cover)}"
        page.print(escape(text), highlight=False, soft_wrap=True)
    if arguments.ship:
        written += ship(page, contents)
    for path in written:
        if not path.name.startswith("t4-"):
            page.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    return RIGHT if all(one.winner is not None for one in decisions) else WRONG


def table_of(decisions: Sequence[Decision]) -> Table:
    """One line for each field: the winner, its time over the default's, ties, and the rest."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("problem", "backend", "winner", "us", "of default", "ties", "candidates"):
        table.add_column(name, overflow="fold", justify="right" if name == "us" else "left")
    for one, name in zip(decisions, shipping.names_of(decisions), strict=True):
        winner = one.winner
        table.add_row(
            name,
            one.field.backend,
            "[red]none" if winner is None else escape(winner_name(one)),
            "" if winner is None else f"{one.us(winner):.4g}",
            "" if one.margin is None else margin_text(one),
            str(max(len(one.ties) - 1, 0)),
            ", ".join(f"{count} {outcome}" for outcome, count in one.field.counts.items()),
        )
    return table


def winner_name(one: Decision) -> str:
    """The values of the winner, said to be the default's if they are."""
    assert one.winner is not None
    values = " ".join(f"{name}={value}" for name, value in one.winner.config.items())
    return f"default ({values})" if one.winner.index == 0 else values


def margin_text(one: Decision) -> str:
    """The winner's time over the default's with its interval."""
    margin = one.margin
    if margin is None or (one.winner is not None and one.winner.index == 0):
        return ""
    return f"{margin.ratio:.3f} ({margin.low:.3f} to {margin.high:.3f})"


def warnings_of(one: Decision) -> list[str]:
    """What somebody who uses the winner should know."""
    name = f"{one.field.backend} {show.problem_name(one.field.problem)}"
    found = []
    if one.field.superseded:
        found.append(
            f"{name}: {one.field.superseded} rows of another kernel, seed or software do not count"
        )
    if one.winner is None:
        return [*found, f"{name}: {one.why_none}"]
    if one.field.default is None or one.field.default.outcome != "correct":
        reason = one.field.default.reason if one.field.default else "it was not run"
        found.append(f"{name}: the default is not right here: {reason}")
    if one.winner.index:
        found += [f"{name}: the winner's {edge}: widen the space" for edge in one.edges(one.winner)]
    return found


def in_words(cover: Cover) -> str:
    """The rules of a cover and what they cost."""
    count = len(cover.rules)
    rules = "; ".join(cover.rules)
    text = (
        f"{count} rule{'s' if count > 1 else ''} for {len(cover.chosen)} shapes ({rules}), "
        f"{max(cover.regret.values()):.1%} from the best at most"
    )
    if not cover.held_out:
        return f"{text}; one shape says nothing of others"
    worst = max(cover.held_out, key=lambda shape: cover.held_out[shape])
    where = f"B = {worst[0]}, L = {worst[1]}"
    if cover.unseen is None:
        return f"{text}; left out, {where} would get the default, which has no time there"
    mean, most = cover.unseen
    return f"{text}; on shapes left out {mean:.1%} on average, {most:.1%} at worst ({where})"
