"""Solve connect four and write data/fixtures/connect_four_positions.csv, the exam of chapter 6.

    python tools/connect_four_positions.py data/fixtures/connect_four_positions.csv --positions 600 --seed 2026

A position is reached by uniformly random moves, is 8 to 20 plies old, offers its mover no win at once, and its columns differ in value. Beside the moves
from the empty board (column digits) stands the exact value of each column for the side to move: 1 wins, 0 draws, -1 loses, empty where the column is full.
The solver is negamax with alpha-beta, a transposition table and bitboards: six rows and an empty seventh in seven columns, bit 7*column + row, as in
J. Tromp's and P. Pons's solvers. A board is two words: the stones of the side to move (`own`) and all stones (`mask`).
"""
import argparse, csv, random
from functools import cache
from pathlib import Path
import numpy as np
from numba import njit, uint64

BOTTOM = sum(1 << 7 * c for c in range(7))
BOARD = BOTTOM * 63
ORDER = np.array([3, 2, 4, 1, 5, 0, 6])  # the centre first
COLUMNS = np.array([63 << 7 * c for c in range(7)], np.uint64)
BITS = 23  # of the slots of the table


@njit(uint64(uint64, uint64), cache=True)
def winning_cells(own, mask):
    "The empty cells, reachable now or later, that complete four of `own`."
    r = (own << 1) & (own << 2) & (own << 3)
    for d in (6, 7, 8):
        up = (own << d) & (own << 2 * d)
        r |= up & (own << 3 * d)
        r |= up & (own >> d)
        down = (own >> d) & (own >> 2 * d)
        r |= down & (own << d)
        r |= down & (own >> 3 * d)
    return r & (uint64(BOARD) ^ mask)


@njit(uint64(uint64, uint64), cache=True)
def safe_moves(own, mask):
    "The cells to play now after which the other side cannot win at once; 0 when there are none. Own wins are not looked for."
    possible = (mask + uint64(BOTTOM)) & uint64(BOARD)
    threat = winning_cells(own ^ mask, mask)
    forced = possible & threat
    if forced:
        if forced & (forced - uint64(1)): return uint64(0)  # two at once
        possible = forced
    return possible & ~(threat >> 1)  # never below a cell the other side waits for


@njit(cache=True)
def count(x):
    "Bits set."
    n = 0
    while x:
        x &= x - uint64(1)
        n += 1
    return n


@njit("int64(uint64, uint64, int64, int64, int64, uint64[:], int8[:], int64[:])", cache=True)
def negamax(own, mask, plies, alpha, beta, keys, bounds, nodes):
    "The value for the side to move, which has no win at once, in the window alpha..beta out of -1, 0, 1."
    nodes[0] += 1
    moves = safe_moves(own, mask)
    if moves == 0: return 0 if plies == 42 else -1
    if plies >= 40: return 0
    key, low, high = own + mask, -1, 1
    slot = (key * uint64(0x9E3779B97F4A7C15)) >> uint64(64 - BITS)
    if keys[slot] == key: low, high = bounds[slot] // 3 - 1, bounds[slot] % 3 - 1
    alpha, beta = max(alpha, low), min(beta, high)
    if alpha >= beta: return alpha
    first = alpha
    cells, scores, n = np.empty(7, np.uint64), np.empty(7, np.int64), 0
    for c in ORDER:
        cell = moves & COLUMNS[c]
        if cell:
            score, k = count(winning_cells(own | cell, mask)), n
            while k > 0 and scores[k - 1] < score:
                scores[k], cells[k] = scores[k - 1], cells[k - 1]
                k -= 1
            scores[k], cells[k] = score, cell
            n += 1
    for k in range(n):
        value = -negamax(own ^ mask, mask | cells[k], plies + 1, -beta, -alpha, keys, bounds, nodes)
        if value > alpha: alpha = value
        if alpha >= beta: break
    if alpha < beta: high = alpha  # nothing better was there
    if alpha > first: low = alpha  # and this one is
    keys[slot], bounds[slot] = key, 3 * (low + 1) + high + 1
    return alpha


@cache
def table():
    "The transposition table: keys, bounds, and how many nodes were visited so far."
    return np.zeros(1 << BITS, np.uint64), np.zeros(1 << BITS, np.int8), np.zeros(1, np.int64)


def board(moves):
    "The bitboards (own, mask) after these columns, or None where one is full or somebody has already won."
    own = mask = 0
    for c in moves:
        cell = (mask + (1 << 7 * c)) & (63 << 7 * c)
        if not cell or won(own ^ mask): return None
        own, mask = own ^ mask, mask | cell
    return None if won(own ^ mask) else (own, mask)


def won(stones):
    "Whether these stones hold four in a row."
    return any(pair & pair >> 2 * d for d in (1, 6, 7, 8) for pair in [stones & stones >> d])


def column_values(moves):
    "Exact value of each column for the side to move, None where it is full. `moves`: columns from the empty board, nobody has won."
    own, mask = board(moves)
    values = []
    for c in range(7):
        cell = (mask + (1 << 7 * c)) & (63 << 7 * c)
        if not cell: values.append(None)
        elif won(own | cell): values.append(1)
        elif immediate(own ^ mask, mask | cell): values.append(-1)
        else: values.append(-negamax(own ^ mask, mask | cell, len(moves) + 1, -1, 1, *table()))
    return values


def immediate(own, mask):
    "Whether the side to move wins with its next stone."
    return any(cell and won(own | cell) for c in range(7) for cell in [(mask + (1 << 7 * c)) & (63 << 7 * c)])


def positions(n, seed, shortest=8, longest=20):
    "Random positions with unequal columns, each with its values, no board twice."
    rng, seen = random.Random(seed), set()
    while len(seen) < n:
        moves = []
        for _ in range(rng.randint(shortest, longest)): moves.append(rng.choice([c for c in range(7) if moves.count(c) < 6]))
        at = board(moves)
        if at is None or at in seen or immediate(*at): continue
        values = column_values(moves)
        if len({v for v in values if v is not None}) < 2: continue
        seen.add(at)
        yield moves, values


def main():
    "Write the fixture."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--positions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    with args.out.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["moves", *range(7)])
        for moves, values in positions(args.positions, args.seed): rows.writerow(["".join(map(str, moves)), *("" if v is None else v for v in values)])


if __name__ == "__main__": main()
