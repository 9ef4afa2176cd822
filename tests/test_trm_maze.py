"""Mazes against a search that knows nothing of how they were made."""
import numpy as np
import pytest
import torch
from llmwatch_course.trm import maze
from llmwatch_course.trm.maze import FREE, GOAL, INVERSE, PATH, START, WALL, dihedral, generate_mazes, shortest, show_maze


def distances(tokens, size):
    "Steps from the start by relaxing all places until nothing changes."
    board = np.pad(tokens.reshape(size, size).numpy(), 1, constant_values=WALL)
    far = np.where(board == START, 0, 10**6)
    while True:
        near = np.minimum.reduce([np.roll(far, s, a) for s in (1, -1) for a in (0, 1)]) + 1
        new = np.where(board == WALL, 10**6, np.minimum(far, near))
        if (new == far).all(): return far[1:-1, 1:-1].ravel()
        far = new


@pytest.mark.parametrize("size, longest", [(7, False), (9, False), (9, True), (15, True)])
def test_one_path_and_the_label_is_it(size, longest):
    n = 6 if longest else 20
    questions, labels = generate_mazes(n, size, 0, longest)
    assert questions.dtype == labels.dtype == torch.int64 and questions.shape == (n, size**2)
    rooms = (size // 2)**2
    for q, y in zip(questions, labels):
        assert torch.equal(torch.where(y == PATH, FREE, y), q) and (q == START).sum() == (q == GOAL).sum() == 1 and (y > WALL).sum() == 2 * rooms - 1
        assert (q.view(size, size)[[0, -1]] == WALL).all() and (q.view(size, size)[:, [0, -1]] == WALL).all()
        far, way = distances(q, size), shortest(q, size)
        assert (far[(q > WALL).numpy()] < 10**6).all()                                                  # everything free can be reached: with its number, a tree
        goal = int((q == GOAL).nonzero())
        assert way.count == 1 and way.length == far[goal] == (y >= START).sum() - 1
        assert sorted(way.path) == (y >= START).nonzero().flatten().tolist() and (way.path[0], way.path[-1]) == (int((q == START).nonzero()), goal)
        assert all(abs(a - b) in (1, size) for a, b in zip(way.path, way.path[1:]))
        if longest:
            again = torch.where(q > WALL, FREE, q)
            for room in (again == FREE).nonzero().flatten()[::7].tolist():                              # nothing is farther apart
                again[room], again[goal] = START, GOAL
                if room != goal: assert distances(again, size)[(again > WALL).numpy()].max() <= way.length
                again[room] = again[goal] = FREE


def test_shortest_counts():
    def read(*rows): return torch.tensor([[maze.MARKS.index(mark) for mark in row] for row in rows]).flatten()
    assert shortest(read("S  ", "   ", "  G"), 3)[:2] == (4, 6)                                         # no wall at the rim needed
    assert shortest(read("S #", "###", " #G"), 3) == (-1, 0, [])
    assert shortest(read("SG", "##"), 2) == (1, 1, [0, 1])
    assert shortest(read("Soo", "##o", "  G"), 3).length == 4
    with pytest.raises(ValueError, match="exactly one start"): shortest(read("SS", " G"), 2)


def test_dihedral_group():
    images = maze._images(5)
    assert len({tuple(x) for x in images}) == 8 and INVERSE == (0, 3, 2, 1, 4, 5, 6, 7)
    for k in range(8): assert (images[k][images[INVERSE[k]]] == np.arange(25)).all()
    closed = {tuple(a[b]) for a in images for b in images}
    assert closed == {tuple(x) for x in images}


def test_images_keep_the_answer_and_are_equally_likely():
    questions, labels = generate_mazes(1, 9, 0)
    new, new_labels = dihedral(questions.expand(1600, -1), labels.expand(1600, -1), 9, torch.Generator().manual_seed(0))
    for q, y in zip(new[:20], new_labels[:20]): assert sorted(shortest(q, 9).path) == (y >= START).nonzero().flatten().tolist()
    kinds, counts = new.unique(dim=0, return_counts=True)
    assert len(kinds) == 8 and counts.min() > 140 and counts.max() < 260


def test_no_two_are_images_and_seeds_are_kept():
    questions, labels = generate_mazes(60, 7, 1)
    images = torch.as_tensor(maze._images(7))
    seen = [{tuple(x) for x in q[images].tolist()} for q in questions]
    assert not any(seen[i] & seen[j] for i in range(60) for j in range(i))
    again = generate_mazes(10, 7, 1)
    assert torch.equal(again[0], questions[:10]) and torch.equal(again[1], labels[:10]) and not torch.equal(generate_mazes(10, 7, 2)[0], again[0])


def test_bad_sizes_and_too_many():
    for size in (4, 8, 3):
        with pytest.raises(ValueError, match="odd and at least 5"): generate_mazes(1, size, 0)
    with pytest.raises(ValueError, match="ask for fewer or larger"): generate_mazes(60, 7, 0, longest=True)
    assert generate_mazes(0, 7, 0)[0].shape == (0, 49) and show_maze(generate_mazes(1, 5, 0)[0][0], 5).count("\n") == 4
