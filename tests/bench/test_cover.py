"""Covers: the fewest rules that stay near the best, and what they cost where nothing was tuned."""

import pytest

from mamba3_bench.bench.cover import WITHIN, cover
from mamba3_bench.bench.tune import in_words
from mamba3_bench.reports.tuning import cover_cells


def test_one_rule_where_one_will_do():
    """`a` is the best nowhere, and within 3 % everywhere."""
    found = cover(
        {
            (1, 512): {"default": 1.0, "a": 0.81, "b": 0.80, "c": 1.2},
            (8, 512): {"default": 1.0, "a": 0.71, "b": 0.90, "c": 0.70},
        }
    )
    assert found.rules == ("a",)
    assert found.regret[1, 512] == pytest.approx(0.81 / 0.80 - 1)
    assert all(regret <= WITHIN for regret in found.regret.values())


def test_the_default_is_kept_where_it_is_as_good():
    """Of equally small sets the one with the default is taken, though another has less regret."""
    found = cover({(1, 64): {"default": 1.0, "a": 0.99}, (2, 64): {"default": 1.0, "a": 0.98}})
    assert found.rules == ("default",)


def test_shapes_that_differ_need_two_rules():
    """Each shape takes its own; a shape left out is given its neighbour's, and that is told."""
    short = {"default": 1.0, "short": 0.5, "long": 1.4}
    long = {"default": 1.0, "short": 1.5, "long": 0.5}
    times = {(1, 256): short, (1, 512): short, (1, 8192): long, (1, 16384): long}
    found = cover(times)
    assert set(found.rules) == {"short", "long"}
    assert found.chosen == {shape: "short" if shape[1] < 1000 else "long" for shape in times}
    assert found.held_out == dict.fromkeys(times, 0.0)
    apart = cover({(1, 256): short, (1, 512): long})
    assert apart.held_out[1, 256] == pytest.approx(1.4 / 0.5 - 1)


def test_far_from_all_others_a_shape_left_out_has_the_default():
    """As the look-up has it: beyond twice the range that was tuned no rule holds."""
    far = cover({(1, 256): {"default": 1.0, "a": 0.5}, (1, 16384): {"default": 1.0, "a": 0.8}})
    assert far.rules == ("a",)
    assert far.held_out == {(1, 256): pytest.approx(1.0), (1, 16384): pytest.approx(0.25)}


def test_a_rule_that_a_shape_lacks_is_no_cover_of_it():
    """It is not legal there; left out, that shape falls back to the default."""
    found = cover({(1, 64): {"default": 1.0, "a": 0.5}, (4, 64): {"default": 1.0}})
    assert set(found.rules) == {"default", "a"}
    assert found.chosen[4, 64] == "default"
    assert found.held_out[4, 64] == 0.0


def test_a_rule_that_failed_somewhere_covers_nothing():
    """Not even where it was right; a shape at which no other rule ran has none."""
    times = {(1, 64): {"default": 1.0, "a": 0.5}, (4, 64): {"default": 1.0}, (8, 64): {"a": 1.0}}
    found = cover(times, failed={"a"})
    assert found.rules == ("default",)
    assert found.chosen == {(1, 64): "default", (4, 64): "default"}
    assert found.regret[1, 64] == pytest.approx(1.0)


def test_a_shape_between_two_has_the_larger_ones_rule():
    """In whatever order they were tuned."""
    short, long = {"default": 1.0, "short": 0.5}, {"default": 1.0, "long": 0.5}
    times = {(1, 128): short, (1, 512): long | {"short": 2.0}, (1, 2048): long}
    for order in (times, dict(reversed(times.items()))):
        assert cover(order).held_out[1, 512] == 0.0


def test_many_rules_are_found_one_by_one():
    """More than are tried exhaustively: every shape is still covered."""
    names = [f"r{i}" for i in range(6)]
    times = {
        (1, 64 << i): {name: 0.5 if name == names[i] else 1.0 for name in names} for i in range(6)
    }
    found = cover(times)
    assert set(found.rules) == set(names)
    assert max(found.regret.values()) == 0


def test_a_default_without_a_time_has_no_regret():
    """In print nothing is infinite: it is said where the look-up would run what is not right."""
    found = cover({(1, 512): {"default": 1.0, "a": 0.8}, (8, 512): {"a": 1.0}})
    assert in_words(found).endswith(
        "left out, B = 8, L = 512 would get the default, which has no time there"
    )
    assert cover_cells("some", found)[-2:] == ["", ""]
