"""Cover: few rules that stay near the best at every shape, and what that costs on shapes unseen.

A rule is a config by a name that means the same in every shape. The times of all rules at all
shapes of a group of problems are known from the races. The cover is the smallest set of rules of
which one is within WITHIN of the best at each shape. A rule that failed at one shape, by a wrong
result or in its run, is none for any: between the tuned shapes nobody looked. A shape that was not
tuned gets what the look-up finds (`kernels/lookup.py`): the rule of the nearest that was, or the
default far from all. How well that does is measured by leaving out each shape in turn: its regret
is the time of what the others would give it, over the best one's, less 1.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..kernels import lookup
from ..kernels.lookup import Shape
from ..kernels.registry import DEFAULT
from .fields import Candidate, Decision

WITHIN = 0.03
FAULTS = ("correctness", "runtime", "timeout")  # outcomes that say that a rule may not be trusted
EXHAUSTIVE = 3  # rules: sets up to this size are all tried, then rules are added one by one

Times = Mapping[Shape, Mapping[str, float]]  # of each rule, over the default's


@dataclass(frozen=True, slots=True)
class Cover:
    """The rules of a group of problems."""

    rules: tuple[str, ...]
    chosen: dict[Shape, str]  # of the rules, the best at each shape
    regret: dict[Shape, float]  # of the rule chosen, over the best there is
    held_out: dict[Shape, float]  # the same where the shape had no part in the choice

    @property
    def unseen(self) -> tuple[float, float] | None:
        """Mean and largest regret of shapes left out; None of one shape alone, or where one would
        get what has no time there."""
        regrets = list(self.held_out.values())
        if not regrets or math.isinf(max(regrets)):
            return None
        return statistics.fmean(regrets), max(regrets)


def cover(times: Times, failed: Collection[str] = ()) -> Cover:
    """The cover of some shapes, of which each has a time of some rule.

    failed: rules that may not be in it; a shape with times of those alone is not covered.
    """
    fit: dict[Shape, dict[str, float]] = {}
    for shape, known in times.items():
        allowed = {rule: time for rule, time in known.items() if rule not in failed}
        if allowed:
            fit[shape] = allowed
    rules = _rules(fit)
    chosen = {shape: min(rules, key=lambda r: _at(known, r)) for shape, known in fit.items()}
    regret = {shape: _regret(times[shape], rule) for shape, rule in chosen.items()}
    held_out = {}
    for shape in fit if len(fit) > 1 else ():
        others = {other: known for other, known in fit.items() if other != shape}
        theirs = _rules(others)
        near = others[lookup.nearest(others, *shape)]
        rule = min(theirs, key=lambda r: _at(near, r))
        if lookup.outside(others, *shape) is not None or rule not in times[shape]:
            rule = DEFAULT
        held_out[shape] = _regret(times[shape], rule)
    return Cover(rules, chosen, regret, held_out)


def _rules(times: Times) -> tuple[str, ...]:
    """The smallest set within WITHIN everywhere; of equals first one with the default, then the one
    with the least regret.
    """
    names = sorted({name for known in times.values() for name in known})
    near = {
        name: {s for s, known in times.items() if _regret(known, name) <= WITHIN} for name in names
    }
    for size in range(1, EXHAUSTIVE + 1):
        found = [
            rules
            for rules in combinations([name for name in names if near[name]], size)
            if len(set().union(*(near[name] for name in rules))) == len(times)
        ]
        if found:
            return min(found, key=lambda rules: (DEFAULT not in rules, _total(times, rules)))
    rules, left = [], set(times)
    while left:
        rules.append(max(names, key=lambda name: len(near[name] & left)))
        left -= near[rules[-1]]
    return tuple(rules)


def _total(times: Times, rules: Sequence[str]) -> float:
    return math.fsum(min(_regret(known, rule) for rule in rules) for known in times.values())


def _at(known: Mapping[str, float], rule: str) -> float:
    return known.get(rule, math.inf)


def _regret(known: Mapping[str, float], rule: str) -> float:
    return _at(known, rule) / min(known.values()) - 1


def failed_of(decision: Decision) -> list[str]:
    """The rules that failed at this shape: a wrong result, or a run that did not end well."""
    bad = [one for one in decision.field.candidates if one.outcome in FAULTS]
    return sorted({name for one in bad for name in one.names})


def times_of(decision: Decision) -> dict[str, float]:
    """The time of each right candidate over the default's, or without one the fastest's, by rule.

    Confirmed ones by their confirmed times, the others by the medians of the race.
    """
    field = decision.field
    right = [one for one in field.candidates if one.race]
    if not right:
        return {}
    base = next((one for one in right if one.index == 0), None)
    base = base or min(right, key=_race_us)
    found: dict[str, float] = {}
    for one in right:
        margin = decision.over_default(one) if one in field.confirmed() else None
        ratio = margin.ratio if margin else _race_us(one, base) / _race_us(base, one)
        found |= dict.fromkeys(one.names, ratio)
    return found


def _race_us(one: Candidate, beside: Candidate | None = None) -> float:
    """Median of a candidate's race, over the turns that it shares with another, if they ran in the
    same one: a race that was cut off goes on as another."""
    mine = one.samples()
    theirs = beside.samples() if beside is not None and one.beside(beside) else None
    assert mine is not None
    if theirs is None:
        return mine.median
    shared = min(len(mine.values), len(theirs.values))
    return statistics.median(mine.values[:shared]) if shared else mine.median
