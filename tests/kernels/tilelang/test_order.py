"""The order of columns and dims in the TileLang kernels: plain integer functions, tried on all."""

import itertools

import pytest

pytest.importorskip("tilelang", reason="needs tilelang")

from mamba3_bench.kernels.tilelang.order import (
    column_of,
    dim_of,
    place_of,
    rank_of,
    thread_of,
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


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("N", "share"), itertools.product((32, 64, 128, 256), (4, 2)))
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
