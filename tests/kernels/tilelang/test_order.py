"""The order of columns and dims in the TileLang kernels: plain integer functions, tried on all."""

import itertools

import pytest

pytest.importorskip("tilelang", reason="needs tilelang")

from mamba3_bench.kernels.tilelang.order import (
    column_of,
    dim_of,
    pair_place,
    place_of,
    rank_of,
    rate_of,
    runs_of,
    thread_of,
    token_in,
    token_of,
)

RANKS = [1, 2, 4, 8]


def holder(row: int, column: int) -> int:
    """The thread that holds an element of an m64nNk16 wgmma accumulator, by the PTX manual."""
    return row // 16 * 32 + row % 8 * 4 + column % 8 // 2


@pytest.mark.parametrize("R", RANKS)
def test_columns_number_tokens_and_ranks(R: int) -> None:
    """Each of the 64 columns is one token's rank, and `column_of` finds it."""
    columns = [column_of(t, r, R) for t in range(64 // R) for r in range(R)]
    assert sorted(columns) == list(range(64))
    for column in columns:
        assert column_of(token_of(column, R), rank_of(column, R), R) == column


@pytest.mark.parametrize("R", RANKS)
def test_a_thread_holds_all_ranks_of_its_tokens(R: int) -> None:
    """Sums over ranks need no other thread, and no two numbers share a thread's place."""
    seen = set()
    for p, t in itertools.product(range(128), range(64 // R)):
        threads = {holder(p, column_of(t, r, R)) for r in range(R)}
        assert threads == {thread_of(p, t, R)}
        seen.add((thread_of(p, t, R), place_of(p, t, R)))
    assert len(seen) == 128 * (64 // R)
    assert {place for _, place in seen} == set(range(2 * (64 // R) // 4))


@pytest.mark.parametrize("R", RANKS)
def test_matrices_bring_a_thread_its_tokens(R: int) -> None:
    """ldmatrix with .trans, by the PTX manual: a lane gets column lane / 4 of rows 2 (lane % 4) and
    2 (lane % 4) + 1, which are tokens here."""
    for warp, lane, part, half, e in itertools.product(
        range(4), range(32), range(8 // R), range(2), range(2)
    ):
        p = warp * 16 + half * 8 + lane // 4
        token = part * 8 + token_in(2 * (lane % 4) + e, R)
        assert thread_of(p, token, R) == warp * 32 + lane
        assert pair_place(p, token, R) == part * 4 + half * 2 + e


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("N", "share"), list(itertools.product((32, 64, 128, 256), (4, 2))))
def test_positions_hold_pairs_together(N: int, share: int, half: bool) -> None:
    """Positions are a permutation of dims; of each eight, the first hold whole rotated pairs."""
    S = N // share
    dims = [dim_of(position, N, S, half) for position in range(N)]
    assert sorted(dims) == list(range(N))
    pairs = 8 // share
    for eight in range(N // 8):
        for i in range(pairs):
            u, v = dims[8 * eight + 2 * i : 8 * eight + 2 * i + 2]
            pair = eight * pairs + i
            assert (u, v) == ((pair, pair + N // 2) if half else (2 * pair, 2 * pair + 1))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("N", "share"), list(itertools.product((32, 64, 128, 256), (4, 2))))
def test_runs_are_neighbours_in_memory(N: int, share: int, half: bool) -> None:
    """In every eight positions a run is 2, 4 or 8 dims, one load that starts on its own size."""
    S = N // share
    runs = runs_of(N, S, half)
    assert sorted(itertools.chain(*runs)) == list(range(8))
    for run, eight in itertools.product(runs, range(N // 8)):
        first = dim_of(8 * eight + run[0], N, S, half)
        assert len(run) in (2, 4, 8)
        assert first % len(run) == 0
        dims = [dim_of(8 * eight + place, N, S, half) for place in run]
        assert dims == list(range(first, first + len(run)))


@pytest.mark.parametrize("R", RANKS)
def test_rates_of_neighbouring_pairs_lie_in_distinct_banks(R: int) -> None:
    """A row keeps each token once, four side by side; eight pairs' are in eight times 16 bytes."""
    C = 64 // R
    for pair in range(128):
        assert sorted(rate_of(pair, t, C) for t in range(C)) == list(range(C))
        for t in range(0, C, 4):
            first = rate_of(pair, t, C)
            assert [rate_of(pair, t + e, C) for e in range(4)] == list(range(first, first + 4))
    for pair, t in itertools.product(range(0, 128, 8), range(0, C, 4)):
        places = {((pair + i) * C + rate_of(pair + i, t, C)) // 4 % 8 for i in range(8)}
        assert places == set(range(8))
