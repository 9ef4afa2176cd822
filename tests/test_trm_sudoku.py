"""Boards, solver, generator, symmetries and disjointness, against enumeration and plain search."""
import itertools, subprocess, sys
from collections import Counter
import numpy as np
import pytest
import torch
from llmwatch_course.trm import sudoku
from llmwatch_course.trm.sudoku import (PARTS, Box, canonical, disjoint, from_tokens, generate, load_hard, only_solution, parse, reveal, show, solve, solved,
                                        symmetric, to_tokens, valid)

B4, B6, B9, FLAT = Box(2, 2), Box(2, 3), Box(3, 3), Box(1, 4)
# by Arto Inkala, 2010, as newspapers printed it; its solution by hand
INKALA = "..53.....8......2..7..1.5..4....53...1..7...6..32...8..6.5....9..4....3......97.."
INKALA_SOLVED = "145327698839654127672918543496185372218473956753296481367542819984761235521839764"


@pytest.fixture(scope="module")
def six(): return generate(150, B6, 3)


def brute(board, box):
    "All solutions of a list of digits by plain backtracking."
    if 0 not in board: return [tuple(board)]
    cell, n, found = board.index(0), box.size, []
    for d in range(1, n + 1):
        r, c = divmod(cell, n)
        clash = any(board[o] == d and (o // n == r or o % n == c or (o // n // box.rows, o % n // box.columns) == (r // box.rows, c // box.columns)) for o in range(n * n))
        if not clash: found += brute([*board[:cell], d, *board[cell + 1:]], box)
    return found


@pytest.fixture(scope="module")
def grids(): return brute([0] * 16, B4)


def test_units_of_a_box():
    assert B6.size == 6 and B6.cells == 36 and B6.units.shape == (18, 6)
    assert B6.units[12:14].tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert (np.bincount(B9.units.ravel()) == 3).all()
    for bad in ((0, 3), (1, 1), (5, 4)):
        with pytest.raises(ValueError, match="makes no board"): Box(*bad)


def test_validator(grids):
    assert len(grids) == 288 and valid(grids, B4).all() and solved(grids, np.zeros((288, 16)), B4).all()
    one = np.array(grids[0])
    swapped = one.copy(); swapped[[0, 1]] = swapped[[1, 0]]
    blank = one.copy(); blank[5] = 0
    assert valid([blank, swapped, one], B4).tolist() == [True, False, True]
    assert solved([blank, one, one], [blank, swapped, blank], B4).tolist() == [False, False, True]      # a blank; a given not kept
    with pytest.raises(ValueError, match="16 cells, not 15"): valid(one[:15], B4)
    with pytest.raises(ValueError, match="digit 1 to 4"): valid(one + 1, B4)


@pytest.mark.parametrize("text, box, sentence", [
    ("123", B4, "has 16 cells, but this text has 3"), ("a" + "." * 15, B4, "'a' is no cell"), ("5" + "." * 15, B4, "'5' is no cell of this board: write 1 to 4"),
    ("²" + "." * 15, B4, "no cell"), ("1..1" + "." * 12, B4, "digit 1 stands twice in row 1"), ("2" + "..." + "2" + "." * 11, B4, "twice in column 1"),
    ("3...." + "3" + "." * 10, B4, "twice in box 1"), ("", B4, "has 0")])
def test_a_typed_board_that_is_wrong_gets_one_sentence(text, box, sentence):
    with pytest.raises(ValueError, match=sentence) as e: parse(text, box)
    assert "\n" not in str(e.value)


def test_parse_and_show_are_inverse(six):
    for board in (*six.puzzles[:5], *six.answers[:2]): assert (parse(show(board, B6), B6) == board).all()
    assert parse("1_0.  ....\n....|....", B4).tolist() == [1] + [0] * 15


def test_solver_counts_all_boards(grids):
    assert solve(np.zeros(16), B4, limit=1000).counts[0] == 288 and solve(np.zeros(16), B4).counts[0] == 2
    assert solve(np.zeros(16), FLAT, limit=1000).counts[0] == 576                                       # Latin squares of order 4
    rng = np.random.default_rng(0)
    for _ in range(40):
        board = np.where(rng.random(16) < 0.25, grids[rng.integers(288)], 0)
        if rng.random() < 0.5: board[rng.integers(16)] = rng.integers(1, 5)                             # often a contradiction
        fits = [g for g in grids if all(b in (0, d) for b, d in zip(board, g))]
        got = solve(board, B4, limit=1000)
        assert got.counts[0] == len(fits) and (tuple(got.answers[0]) in fits if fits else not got.answers.any())


def test_solver_on_a_known_hard_board():
    found = solve(parse(INKALA, B9), B9)
    assert found.counts[0] == 1 and "".join(map(str, found.answers[0])) == INKALA_SOLVED and found.branches[0] > 20
    assert solve(found.answers, B9).branches[0] == 0


def test_no_solution_and_several_have_a_sentence():
    with pytest.raises(ValueError, match="more than one solution"): only_solution(np.zeros(36), B6)
    with pytest.raises(ValueError, match="no solution"): only_solution(parse("123. ...4 .... ....", B4), B4)
    assert solve(np.zeros((0, 36)), B6).answers.shape == (0, 36)


def test_puzzles_are_minimal_and_have_one_solution(six):
    assert solved(six.answers, six.puzzles, B6).all() and (solve(six.puzzles, B6).counts == 1).all()
    assert (solve(six.puzzles, B6).answers == six.answers).all() and (solve(six.puzzles, B6).branches == six.branches).all()
    for puzzle in six.puzzles[:10]:
        for cell in np.flatnonzero(puzzle): assert solve(np.where(np.arange(36) == cell, 0, puzzle), B6).counts[0] == 2
    assert brute(six.puzzles[0].tolist(), B6) == [tuple(six.answers[0])]


def test_generator_is_a_function_of_seed_and_index(six):
    again = generate(20, B6, 3)
    assert all((a[:20] == b).all() for a, b in zip(six, again)) and (generate(20, B6, 4).puzzles != again.puzzles).any()
    hard = generate(4, B9, 0, branches=10)
    assert hard.branches.min() >= 10 and (solve(hard.puzzles, B9).branches == hard.branches).all()
    easy = generate(5, B6, 0, clues=20)
    assert ((easy.puzzles > 0).sum(1) == 20).all() and (solve(easy.puzzles, B6).counts == 1).all()
    assert generate(0, B6, 0).puzzles.shape == (0, 36)
    with pytest.raises(ValueError, match="ask for fewer"): generate(1, B4, 0, branches=50)


def test_without_numba_the_same_boards(six):
    code = ("import sys; sys.modules['numba'] = None\nfrom llmwatch_course.trm.sudoku import *\nfrom llmwatch_course.trm.sudoku import _fast\n"
            "assert not _fast()\np = generate(20, Box(2, 3), 3)\nh = generate(1, Box(3, 3), 0, branches=6)\n"
            "print(p.puzzles.tolist(), p.branches.tolist(), h.puzzles.tolist())")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{six.puzzles[:20].tolist()} {six.branches[:20].tolist()} {generate(1, B9, 0, branches=6).puzzles.tolist()}"


def test_tokens():
    assert to_tokens([[0, 1, 6]]).tolist() == [[1, 2, 7]] and to_tokens([[0]]).dtype == torch.int64
    assert from_tokens(torch.tensor([[0, 1, 2, 10]])).tolist() == [[0, 0, 1, 9]]


def test_reveal_fills_blanks_from_the_answer(six):
    tokens, labels = to_tokens(six.puzzles), to_tokens(six.answers)
    easier, same = reveal(tokens, labels, 5, torch.Generator().manual_seed(0))
    changed = easier != tokens
    assert (changed.sum(1) == 5).all() and same is labels and (easier[changed] == labels[changed]).all() and (tokens[changed] == 1).all()
    assert torch.equal(reveal(tokens, labels, 36, torch.Generator())[0], labels)


@pytest.mark.parametrize("box", [B4, B6, B9, Box(3, 2), FLAT], ids=str)
def test_every_symmetry_keeps_the_puzzle(box):
    made, g = generate(40, box, 1), torch.Generator().manual_seed(0)
    tokens, labels = symmetric(to_tokens(made.puzzles), to_tokens(made.answers), box, g)
    again = solve(from_tokens(tokens), box)
    assert (again.counts == 1).all() and (again.answers == from_tokens(labels)).all()
    assert ((from_tokens(tokens) > 0).sum(1) == (made.puzzles > 0).sum(1)).all() and (from_tokens(tokens) != made.puzzles).any(1).sum() > 30


def test_symmetry_leaves_padding_and_ignored_labels_alone(six):
    labels = to_tokens(six.answers) * (torch.rand(150, 36, generator=torch.Generator().manual_seed(0)) < 0.5)
    tokens = to_tokens(six.puzzles)
    new, new_labels = symmetric(tokens, labels, B6, torch.Generator().manual_seed(1))
    assert ((new_labels == 0).sum(1) == (labels == 0).sum(1)).all() and (new_labels != 1).all() and ((new == 1).sum(1) == (tokens == 1).sum(1)).all()


def test_transpose_is_refused_where_boxes_are_not_square(six):
    tokens = to_tokens(six.answers)
    with pytest.raises(ValueError, match="cannot be transposed"): symmetric(tokens, tokens, B6, torch.Generator(), True)
    assert not valid(six.answers.reshape(-1, 6, 6).swapaxes(1, 2).reshape(-1, 36), B6).all()
    many = to_tokens([[1, 2, 3, 4] * 4]).expand(400, -1)                                                # rows all alike: only a transpose makes columns alike
    g = torch.Generator().manual_seed(0)
    images = [symmetric(many, many, B4, g, t)[0].view(-1, 4, 4) for t in (False, True)]
    share = [(x == x[:, :1]).flatten(1).all(1).float().mean().item() for x in images]
    assert share[0] == 1 and 0.4 < share[1] < 0.6


def test_two_orbits_of_four_by_four_boards(grids):
    g, left, orbits = torch.Generator().manual_seed(0), set(grids), []
    while left:
        one = to_tokens([min(left)]).expand(20_000, -1)
        images = Counter(map(tuple, from_tokens(symmetric(one, one, B4, g)[0]).tolist()))
        assert min(images.values()) > 0.5 * 20_000 / len(images) and max(images.values()) < 1.6 * 20_000 / len(images)
        orbits.append(set(images)); left -= set(images)
    assert sorted(map(len, orbits)) == [96, 192] and len(sudoku._orders(2, 2)) == 8
    assert len({x.tobytes() for x in canonical(grids, B4)}) == 2


def test_canonical_form_separates_exactly_the_orbits():
    puzzles = generate(30, B4, 0).puzzles
    names = np.array([(0, *p) for p in itertools.permutations(range(1, 5))])
    orders = [[2 * b + i for b, f in ((a, f0), (1 - a, f1)) for i in ((0, 1), (1, 0))[f]] for a in (0, 1) for f0 in (0, 1) for f1 in (0, 1)]
    least = []
    for p in puzzles.reshape(-1, 4, 4): least.append(min(tuple(y) for x in (p, p.T) for r in orders for c in orders for y in names[:, x[r][:, c].ravel()].tolist()))
    forms = [tuple(x) for x in canonical(puzzles, B4).tolist()]
    assert len(set(least)) == len(set(forms)) == len(set(zip(least, forms)))
    with pytest.raises(ValueError, match="exactly one solution"): canonical(np.zeros(16), B4)


@pytest.mark.parametrize("box, n", [(B6, 30), (B9, 4)], ids=["6x6", "9x9"])
def test_disguises_are_seen_through(box, n):
    made = generate(2 * n, box, 5)
    image = from_tokens(symmetric(to_tokens(made.puzzles[:n]), to_tokens(made.answers[:n]), box, torch.Generator().manual_seed(2))[0])
    assert (canonical(image, box) == canonical(made.puzzles[:n], box)).all()
    mixed = np.concatenate([made.puzzles[n:], image, made.puzzles[n:]])
    assert disjoint(made.puzzles[:n], mixed, box).tolist() == [True] * n + [False] * 2 * n
    assert disjoint([], mixed, box).sum() == 2 * n and (canonical(made.puzzles[:2], box)[0] != canonical(made.puzzles[:2], box)[1]).any()


def test_the_shipped_hard_boards():
    parts = {name: load_hard(name) for name in PARTS}
    for name, part in parts.items():
        assert len(part.puzzles) == PARTS[name] and solved(part.answers, part.puzzles, B9).all() and part.branches.min() >= 8
        some = solve(part.puzzles[::40], B9)
        assert (some.counts == 1).all() and (some.branches == part.branches[::40]).all() and (some.answers == part.answers[::40]).all()
    first = generate(2, B9, 8, 8)                                                                       # seed 0, level 8: puzzles 0 and 3 of the file
    assert (parts["train"].puzzles[[0, 3]] == first.puzzles).all()
    with pytest.raises(ValueError, match="known: train, validation, test"): load_hard("tset")


def test_the_parts_share_no_board():
    assert disjoint([], np.concatenate([load_hard(name).puzzles for name in PARTS]), B9).all()


def test_speed(): assert sudoku.puzzles_a_minute(20) > 20
