"""Lanes say what the program says, and a batch of leaves is counted right."""
import random
import pytest
import torch
from llmwatch_course.cwm import batched as B
from llmwatch_course.cwm.contract import TERMINAL, random_game, replay
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.tables import compile_tables

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
connect = game("connect_four").program()


def lanes_of(name, device="cpu"):
    if name == "connect_four": return B.BoardLanes(6, 7, gravity=True, device=device)
    if name == "mnk": return B.BoardLanes(6, 6, device=device)
    return B.TableLanes(compile_tables(game(name).program()), device)


def test_odd_boards():
    for rows, columns, k in ((3, 4, 3), (5, 4, 4), (4, 7, 4)):
        for name, gravity in (("connect_four", True), ("mnk", False)):
            program, lanes = game(name).program(ROWS=rows, COLUMNS=columns, IN_A_ROW=k), B.BoardLanes(rows, columns, k, gravity)
            follow(lanes, program, 8)


def follow(lanes, program, games):
    "Each random game of the program, move for move in a lane."
    rng = random.Random(0)
    for _ in range(games):
        actions = random_game(program, rng)
        s = lanes.encode([program.initial_state()])
        for i in range(len(actions) + 1):
            state = replay(program, actions[:i])
            assert torch.equal(lanes.encode([state]), s) and lanes.mover(s).tolist() == [program.current_player(state)] and lanes.returns(s)[0].tolist() == program.returns(state)
            names = lanes.name(s)[0, lanes.legal(s)[0]].tolist()
            assert names == program.legal_actions(state)
            if i < len(actions): s = lanes.step(s, lanes.legal(s)[0].nonzero()[names.index(actions[i])])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["connect_four", "mnk", "tic_tac_toe", "ladder"])
def test_lanes_follow_the_program(name, device): follow(lanes_of(name, device), game(name).program(), 8)


def test_rollouts_end_as_random_games_do():
    g = torch.Generator().manual_seed(0)
    lanes = lanes_of("tic_tac_toe")
    ends = B.rollout(lanes, lanes.encode([game("tic_tac_toe").program().initial_state()]).repeat(4000, 1), g)
    for returns, p in ((1., 737 / 1260), (-1., 121 / 420), (0., 8 / 63)): assert abs((ends[:, 0] == returns).float().mean() - p) < 4.5 * (p * (1 - p) / 4000)**0.5
    assert (ends.sum(1) == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("leaves, virtual", [(1, 1.), (7, 1.), (64, 1.), (64, 0.), (16, 5.)])
def test_every_simulation_counts_once(leaves, virtual, device):
    lanes, states = lanes_of("connect_four", device), [replay(connect, [3] * n) for n in range(4)]
    trees, again = (B.search_many(lanes, states, 70, leaves, virtual=virtual, seed=3) for _ in range(2))
    for a, b in zip(trees, again):
        assert a.visits.sum() == 70 and a.actions.tolist() == list(range(7)) and (abs(a.values[a.visits > 0]) <= 1).all()
        assert (a.visits == b.visits).all() and a.best == b.best


def test_virtual_losses_are_taken_back():
    lanes = lanes_of("connect_four")
    forest = B.Forest(lanes, lanes.encode([connect.initial_state()] * 3), 40, 1.4, 2., torch.Generator().manual_seed(0))
    for i in range(3):
        paths = [forest.descend() for _ in range(10)]
        assert (forest.N[:, 0] == forest.N[:, 0].round()).all() and (forest.W[:, 0] == 10 * i - 20).all()
        for path in paths: forest.count(path, -2., 2.)
        for path in paths: forest.count(path, 1., torch.tensor([[1., -1.]] * 3))
    assert (forest.N[:, 0] == 30).all()
    for t in range(3):
        for node in range(1, int(forest.size[t])):
            sign = 1 if forest.chooser[t, node] == 0 else -1
            assert forest.W[t, node] == sign * forest.N[t, node]        # everybody always got 1 and -1
            inner = forest.child[t, node][forest.child[t, node] >= 0]
            assert forest.N[t, node] == 1 + forest.N[t, inner].sum()    # its own first visit, and those that went on


def test_leaves_in_flight_are_different_ones():
    lanes = lanes_of("connect_four")
    for virtual, least in ((1., 30), (0., 30)):
        forest = B.Forest(lanes, lanes.encode([connect.initial_state()]), 60, 1.4, virtual, torch.Generator().manual_seed(0))
        ends = [int(torch.stack(forest.descend()).amax()) for _ in range(30)]
        assert len(set(ends)) == least
        depth = max(len(forest.descend()) for _ in range(5))
        assert depth <= 5 if virtual else depth > 5                     # without losses one path gets longer and longer


@pytest.mark.parametrize("leaves", [4, 16])
def test_wins_are_taken_and_losses_blocked(leaves):
    states = [replay(connect, a) for a in ([3, 0, 3, 0, 3, 1], [0, 1, 0, 1, 2, 1], [0, 3, 1, 3, 0, 3])]
    assert [t.best for t in B.search_many(lanes_of("connect_four"), states, 300, leaves, seed=1)] == [3, 1, 3]


def test_a_value_replaces_random_games():
    lanes, asked = lanes_of("tic_tac_toe"), []
    def value(s):
        asked.append(len(s))
        return torch.tensor([[0.25, -0.25]]).expand(len(s), -1)
    tree, = B.search_many(lanes, [game("tic_tac_toe").program().initial_state()], 9, 4, value=value)
    assert asked == [4, 4, 1] and tree.values.tolist() == [0.25] * 9


def test_what_is_refused():
    over = replay(connect, [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="one of these games is over"): B.search_many(lanes_of("connect_four"), [connect.initial_state(), over], 5)
    with pytest.raises(ValueError, match="do not fit into one 64-bit word"): B.BoardLanes(9, 9)
    with pytest.raises(ValueError, match="no chance moves"): B.TableLanes(compile_tables(game("kuhn").program()))
    assert connect.current_player(over) == TERMINAL
