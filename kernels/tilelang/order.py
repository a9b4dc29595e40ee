"""In which order the kernels keep (token, rank) columns and the dims of b, c, k and h.

Every function takes plain integers or TileLang expressions.

Columns. A chunk has C tokens of R ranks: C R columns of the matrix products. A thread of a warp
group holds columns 2 l, 2 l + 1 of each eight of an accumulator, l its lane mod 4. The columns are
numbered so that these are the ranks of one token: sums over ranks, and factors that depend on the
token alone, need no other thread.

Positions. Eight neighbouring positions of b, c, k and h (16 bytes) begin with pairs that are
rotated, (u, v, u, v, ...), and end with dims that pass: half and half for S = N/4, pairs only for
S = N/2. So every thread that loads 16 bytes has the same work and both halves of its pairs.
"""

from typing import Any

Index = Any  # an int, or a TileLang expression


def token_of(column: Index, R: int) -> Index:
    """The token of a column."""
    return column if R == 1 else column // (4 * R) * 4 + column % 8 // 2


def rank_of(column: Index, R: int) -> Index:
    """The rank of a column."""
    return column * 0 if R == 1 else column % (4 * R) // 8 * 2 + column % 2


def column_of(token: Index, rank: Index, R: int) -> Index:
    """The column of a token and rank."""
    return token if R == 1 else token // 4 * (4 * R) + rank // 2 * 8 + token % 4 * 2 + rank % 2


def dim_of(position: Index, N: int, S: int, half: bool) -> Index:
    """The dim at a position. half: pairs are (i, i + N/2), else (2i, 2i + 1)."""
    group, place, pairs = position // 8, position % 8, 8 * S // N  # pairs of each eight positions
    i, second = group * pairs + place // 2, place % 2
    rotated = i + second * (N // 2) if half else 2 * i + second
    if 2 * S == N:
        return rotated
    i = group * (8 - 2 * pairs) + place - 2 * pairs  # of the dims that pass
    passing = S + i + i // (N // 2 - S) * S if half else 2 * S + i
    return rotated + place // (2 * pairs) * (passing - rotated)


def runs_of(N: int, S: int, half: bool) -> list[list[int]]:
    """The places of eight positions in runs of neighbouring dims: 2, 4 or 8, the first of them a
    multiple of so many."""
    dims = [dim_of(place, N, S, half) for place in range(8)]
    runs: list[list[int]] = []
    for place in sorted(range(8), key=dims.__getitem__):
        if runs and dims[place] == dims[runs[-1][-1]] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def thread_of(p: Index, token: Index, R: int) -> Index:
    """The thread that holds row p of a token's columns in an accumulator of 64 rows a group."""
    return p // 16 * 32 + p % 8 * 4 + (token % 8 // 2 if R == 1 else token % 4)


def place_of(p: Index, token: Index, R: int) -> Index:
    """Where that thread keeps the token, if it keeps one number for each."""
    if R == 1:
        return token // 8 * 4 + p % 16 // 8 * 2 + token % 2
    return token // 4 * 2 + p % 16 // 8


def token_in(row: Index, R: int) -> Index:
    """Eight tokens as rows of a matrix: the two of one thread side by side."""
    return row if R == 1 else row % 2 * 4 + row // 2


def pair_place(p: Index, token: Index, R: int) -> Index:
    """Where that thread keeps the token if it comes by matrices of eight tokens and eight rows."""
    return token // 8 * 4 + p % 16 // 8 * 2 + (token % 2 if R == 1 else token % 8 // 4)


def rate_of(pair: Index, token: Index, C: int) -> Index:
    """Where a pair's row of C angle rates keeps a token's.

    Four tokens are 16 bytes; they change places from pair to pair, so that eight lanes that load
    the same tokens of neighbouring pairs find them in distinct banks.
    """
    fours = C // 4  # 16 bytes each
    return (token // 4 ^ pair // max(8 // fours, 1) % fours) * 4 + token % 4
