"""`mamba3-bench why`: what would run a problem on a GPU, and why that."""

import argparse

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..kernels import lookup, registry
from ..kernels.family import Problem
from ..kernels.registry import config_name
from . import plugins, show
from .session import RIGHT, default_device, make_jobs


def run(page: Console, arguments: argparse.Namespace) -> int:
    """Print, for each problem, the backend that `auto` takes and the config of each backend."""
    plugins.load(arguments.plugin)
    here = default_device()
    gpu = arguments.gpu or lookup.gpu_of(here)
    # without that GPU, what can be compiled for one is what runs
    device = here if arguments.gpu is None else torch.device("cpu")
    judge = here if arguments.gpu is None else registry.COMPILE_ONLY
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("problem", "backend", "auto", "config", "from", "why"):
        table.add_column(name, overflow="fold")
    asked: dict[Problem, dict[str, None]] = {}
    for job in make_jobs(arguments.sides, arguments.backend):
        for entry in job.entries:
            asked.setdefault(entry.problem, {})[entry.backend] = None
    for problem, names in asked.items():
        contenders = registry.contenders(problem.op)
        refusals = {
            name: registry.refusal(problem.op, name, problem, judge)
            for name in dict.fromkeys((*contenders, *names))
        }
        able = [name for name in contenders if refusals[name] is None]
        first, reason = registry.preferred(problem.op, able, problem, gpu) if able else ("", "")
        for name in names:
            if refusals[name] is not None or registry.is_rival(problem.op, name):
                cells = ("", "", "", refusals[name] or "only on request")
            else:
                config, found = registry.get(problem.op, name).choice(problem, gpu, device)
                auto = f"yes: {reason}" if name == first else ""
                if first not in names:
                    auto = f"no: {first or 'none'}"
                cells = (auto, config_name(config), found.how, found.why)
            table.add_row(show.problem_name(problem.as_dict()), name, *map(escape, cells))
    page.print(f"GPU: {gpu or 'none'}", markup=False, highlight=False)
    page.print(table)
    return RIGHT
