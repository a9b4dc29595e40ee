"""How a contest is shown: cells of its table, and its times in one figure per varied dim."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from ..bench.estimate import ASSUMED
from .ink import Drawing, inks, label_x, legend, log_ticks, panels, style
from .latency import UNITS, WORDS, choose, panel_title
from .ratios import Ratio
from .tables import dtypes, number, shape
from .versus import Contest, Line

COLUMNS = ("contender", "shape", "status", "µs", "error / bound", "published µs", "reason")
DIMS = ("B", "L", "H", "G", "P", "N", "R")
# what else differs along an axis: two of it are panels, the third tells figures apart
BESIDE = {
    "L": ("N", "B", "state_dtype"),
    "N": ("B", "L", "state_dtype"),
    "B": ("N", "L", "state_dtype"),
}
EXPLAINED = (
    "Rows were timed interleaved, turn by turn; a ratio is a row's time over that of ours, with "
    "its 95 % interval: above 1 ours is faster. ★ the fastest of other people's at "
    "its op and shape. ≈ outside the error bound. mamba_ssm_kernel is the official kernels alone, "
    "without activations, norms and cache: less than the op. Published: arXiv 2603.15569, table 6."
)
ALONE = (
    "The interval of a ratio is that of the turns of its one process: what differs between "
    f"processes, about {100 * ASSUMED['cuda']:g} % on a GPU, is not in it."
)


def scatter(contests: Sequence[Contest]) -> str:
    """What the intervals say of the scatter between processes, in sentences."""
    return " ".join(dict.fromkeys(_scatter(contest) for contest in contests))


def _scatter(contest: Contest) -> str:
    if contest.noise.measured:
        typical = f"typically {100 * contest.noise.sd:.2g} % on {contest.device}"
        return f"What differs between processes is in the interval: {typical}."
    return ALONE


def title(contest: Contest) -> str:
    """What all contenders of a contest share, with the device."""
    point = contest.point
    length = [] if point["L"] == 1 else [f"L = {point['L']}"]
    shared = [f"B = {point['B']}", *length, f"N = {point['N']}"]
    kind = dtypes(point["dtype"], point["state_dtype"])
    parts = [*shared, kind, f"on {contest.device}", contest.lines[0].kind]
    parts += [f"{contest.processes} processes"] if contest.processes > 1 else []
    return ", ".join([*parts, contest.made] if contest.made else parts)


def columns(contest: Contest) -> tuple[str, ...]:
    """Those that every contest has, and one for each of ours that the others are measured by."""
    return (*COLUMNS[:4], *(f"to {name}" for name in contest.measures), *COLUMNS[4:])


def cells(line: Line) -> list[str]:
    """One contender as texts, in the order of `columns`."""
    star = " ★" if line.strongest else ""
    return [
        line.name + star,
        shape(line.problem),
        ("≈ " if line.status == "inaccurate" else "") + line.status,
        number(line.us, 4),
        *(_ratio(ratio) for ratio in line.ratios),
        number(line.error_over_bound),
        number(line.published_us),
        "" if line.us else line.reason,
    ]


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3g}"
    return f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"


def table(contests: Sequence[Contest]) -> pd.DataFrame:
    """Every contender of every contest as one line; ratios in columns `ratio_<n>`, low and high."""
    found = []
    for number_, contest in enumerate(contests, 1):
        for line in contest.lines:
            plain: dict[str, Any] = {"contest": number_, "device": contest.device}
            plain |= {"made": contest.made, "processes": contest.processes}
            plain |= {"contender": line.name, "op": line.op, "backend": line.backend}
            plain |= {"rival": line.rival, "strongest": line.strongest, "status": line.status}
            plain |= {dim: line.problem.get(dim) for dim in (*DIMS, "dtype", "state_dtype")}
            plain |= {"us": line.us, "kind": line.kind, "published_us": line.published_us}
            plain |= {"error_over_bound": line.error_over_bound, "reason": line.reason}
            for place, ratio in enumerate(line.ratios, 1):
                plain[f"measure_{place}"] = contest.measures[place - 1]
                ends = (None,) * 3 if ratio is None else (ratio.value, ratio.low, ratio.high)
                names = ("", "_low", "_high")
                plain |= {f"ratio_{place}{n}": end for n, end in zip(names, ends, strict=True)}
            found.append(plain)
    return pd.DataFrame(found)


def drawings(contests: Sequence[Contest]) -> list[Drawing]:
    """Times of all contenders against each dim of the shared point that varies."""
    lines = pd.DataFrame(
        [
            {
                "device": contest.device,
                "phase": "decode" if line.op.endswith("decode") else "prefill",
                "who": f"{line.name}, {contest.made}" if contest.made else line.name,
                "us": line.us,
                "rank": rank_of(contest),
                "op": line.op,
                "backend": line.backend,
                **{name: contest.point[name] for name in ("B", "L", "N", "dtype", "state_dtype")},
            }
            for contest in contests
            for line in contest.lines
            if line.us is not None
        ]
    )
    found: list[Drawing] = []
    if lines.empty:
        return found
    keys = ["device", "phase", "dtype", "rank"]
    for (device, phase, dtype, rank), group in lines.groupby(keys):
        varied = [axis for axis in WORDS if group[axis].nunique() > 1]
        for axis in varied or ["L" if phase == "prefill" else "N"]:
            facets, held = facets_of(axis, group)
            for value, part in group.groupby(held):
                if varied and part[axis].nunique() < 2:
                    continue
                fixed = panel_title((held,), (value,))
                parts = (phase, rank, dtype, fixed, f"on {device}")
                what = ", ".join(str(one) for one in parts if one)
                found.append(_draw(f"{phase}-{len(found) + 1}", what, axis, facets, part))
    return found


def facets_of(axis: str, rows: pd.DataFrame) -> tuple[list[str], str]:
    """The two fields that panels differ in, and the one that is the same in a whole figure."""
    order = sorted(BESIDE[axis], key=lambda name: rows[name].nunique() < 2)
    return sorted(order[:2], key=BESIDE[axis].index), order[2]


def rank_of(contest: Contest) -> str:
    """The rank that all contenders have; empty if it differs: then their names tell."""
    ranks = {line.problem.get("R") for line in contest.lines}
    return f"R = {ranks.pop()}" if len(ranks) == 1 and ranks != {None} else ""


def _draw(name: str, what: str, axis: str, facets: list[str], rows: pd.DataFrame) -> Drawing:
    combinations = sorted(set(rows[facets].itertuples(index=False, name=None)))
    shown = choose(combinations)
    figure, axes = panels(len(shown))
    names = sorted(rows["who"].unique())
    ink = inks(names)
    with style():
        for axes_i, values in zip(axes, shown, strict=True):
            here = rows[(rows[facets] == list(values)).all(axis=1)]
            for who, mine in here.groupby("who"):
                best = mine.sort_values([axis, "us"]).drop_duplicates(axis)
                axes_i.plot(best[axis], best["us"], **ink[str(who)].style("cold"))
            axes_i.set_title(panel_title(facets, values))
            log_ticks(axes_i, "x", rows[axis], base=2)
            log_ticks(axes_i, "y")
        label_x(axes, f"{WORDS[axis]} {axis} ({UNITS[axis]})")
        figure.supylabel("median time per call (µs), lower is better")
    legend(figure, [Line2D([], [], label=one, **ink[one].style("cold")) for one in names])
    caption = "Families side by side, timed interleaved; the tables have ratios and intervals."
    if len(shown) < len(combinations):
        caption += f" {len(shown)} of {len(combinations)} panels are shown."
    drawn = Drawing("", "", "", figure, rows)
    return drawn.named(f"versus-{name}", f"Side by side: {what}", caption)
