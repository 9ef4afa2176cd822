"""Monte Carlo tree search: invariants of the tree, one tree on all levels, play against what is known exactly."""
import random
import numpy as np
import pytest

from llmwatch_course.cwm.contract import CHANCE, load, replay
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.mcts import Dice, Node, back_up, logs, readable
from llmwatch_course.cwm.search import MEMOS, Fast, Memo, memo_of, search

DICE = '''
"""Race to six: roll (1) as often as you like, a zero ends your turn and costs what the turn has brought; or hold (0). Unequal stakes."""
def initial_state(): return {"total": [0, 0], "player": 0, "turn": 0, "rolling": False}
def current_player(s): return -4 if max(s["total"]) >= 6 else -1 if s["rolling"] else s["player"]
def legal_actions(s): return [] if current_player(s) < 0 else [0, 1] if s["turn"] else [1]
def chance_outcomes(s): return [(0, 0.3), (2, 0.5), (3, 0.2)] if current_player(s) == -1 else []
def apply_action(s, a):
    total, player, turn = list(s["total"]), s["player"], s["turn"]
    if s["rolling"] and a == 0: return {"total": total, "player": 1 - player, "turn": 0, "rolling": False}
    if s["rolling"]:
        if total[player] + turn + a >= 6: total[player] += turn + a
        return {"total": total, "player": player, "turn": turn + a, "rolling": False}
    if a == 1: return {"total": total, "player": player, "turn": turn, "rolling": True}
    total[player] += turn
    return {"total": total, "player": 1 - player, "turn": 0, "rolling": False}
def returns(s): return [s["total"][0] - 0.5 * s["total"][1], s["total"][1] - 0.25 * s["total"][0]] if max(s["total"]) >= 6 else [0.0, 0.0]
def observation(s, player): return s
def value(s): return [0.1 * (s["total"][0] - s["total"][1] + s["turn"]), 0.3 * s["player"] - 0.1]
'''
SETTINGS = [{}, dict(solve=True), dict(rollouts=3, c=1.), dict(prior=True), dict(prior=True, solve=True), dict(use_value=True), dict(use_value=True, prior=True, solve=6.)]


def uneven(program):
    "A prior that prefers later actions."
    def prior(state):
        n = len(program.legal_actions(state))
        return [2 * (i + 1) / (n * (n + 1)) for i in range(n)]
    return prior


@pytest.fixture(scope="module")
def dice():
    program = load(DICE)
    program.prior = uneven(program)
    return program


@pytest.fixture(scope="module")
def ttt():
    program = load(game("tic_tac_toe").source)
    program.prior, program.value = uneven(program), lambda s: [0.01 * s["board"].count("x"), -0.02 * s["board"].count("o")]
    return program


def same(a, b):
    "Two trees, node for node."
    assert a.actions.tolist() == b.actions.tolist() and a.best == b.best and a.nodes.keys() == b.nodes.keys()
    for name in a.nodes: np.testing.assert_array_equal(a.nodes[name], b.nodes[name], err_msg=name)
    for name in ("visits", "values", "certain", "proven"): np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def check_tree(tree, simulations, most=1.):
    "What must hold in every tree without the solver."
    N, W, parent, mover = (tree.nodes[name] for name in ("N", "W", "parent", "mover"))
    assert tree.visits.sum() == N[0] == simulations and (N > 0).all() and (np.abs(W) <= most * N + 1e-9).all()
    below = np.bincount(parent[1:], N[1:], len(N))
    first = np.arange(len(N)) > 0
    assert (below[first & (mover >= 0)] <= N[first & (mover >= 0)] - 1).all() and (parent[1:] < np.arange(1, len(N))).all()
    assert (below[~first] == N[~first]).all()


def test_dice_have_a_law():
    d = Dice(1)
    counts = np.bincount([d.below(7) for _ in range(7000)], minlength=7)
    assert ((counts - 1000)**2 / 1000).sum() < 25                      # χ², 6 degrees of freedom: p < 0.001
    u = np.array([d.uniform() for _ in range(4000)])
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    for seed in (0, 1, 2**64 - 1, 12345678901234567890):
        a, b = Dice(seed), Fast(seed)
        assert [a.bits() for _ in range(2500)] == [b.bits() for _ in range(2500)]
    assert Dice(0).bits() == 0xE220A8397B1DCDAF                        # published first output of splitmix64


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_readable_and_memoised_grow_one_tree(dice, ttt, settings):
    for program, actions in ((dice, []), (dice, [1, 2]), (ttt, []), (ttt, [0, 4])):
        state = replay(program, actions)
        for seed in (0, 9):
            tree = readable(program, state, 400, seed=seed, **settings)
            same(tree, search(program, state, 400, seed=seed, **settings))
            if not settings.get("solve") and "prior" not in settings: check_tree(tree, 400, most=9)


def test_seeds(ttt):
    state = ttt.initial_state()
    same(search(ttt, state, 300, seed=5), search(ttt, state, 300, seed=5))
    assert (search(ttt, state, 300, seed=5).visits != search(ttt, state, 300, seed=6).visits).any()
    short, long = search(ttt, state, 100, seed=5).nodes, search(ttt, state, 300, seed=5).nodes      # a longer search goes on where the short one ended
    for name in ("parent", "action"): assert (long[name][:len(short[name])] == short[name]).all()


def test_the_program_is_not_touched(ttt):
    state = replay(ttt, [4, 0])
    before = str(state)
    search(ttt, state, 200); readable(ttt, state, 200)
    assert str(state) == before


def test_colours_can_be_flipped():
    program = game("connect_four").program()
    for actions in ([3, 3, 2], [0, 6, 1, 5]):
        state = replay(program, actions)
        other = {"columns": [["xo"[mark == "x"] for mark in column] for column in state["columns"]], "player": 1 - state["player"], "winner": None}
        a, b = search(program, state, 300, seed=3), search(program, other, 300, seed=3)
        assert (a.visits == b.visits).all() and (a.values == b.values).all()
        assert (a.nodes["mover"][a.nodes["mover"] >= 0] == 1 - b.nodes["mover"][b.nodes["mover"] >= 0]).all()


def test_back_up_gives_each_edge_to_who_chose_it(dice):
    root = Node(dice, dice.initial_state())
    rolling = Node(dice, dice.apply_action(root.state, 1), root, 1)
    again = Node(dice, dice.apply_action(rolling.state, 2), rolling, 2)      # after the dice: still his doing
    held = Node(dice, dice.apply_action(again.state, 0), again, 0)
    reply = Node(dice, dice.apply_action(held.state, 1), held, 1)
    assert [n.chooser for n in (root, rolling, again, held, reply)] == [0, 0, 0, 0, 1] and rolling.mover == CHANCE
    back_up(reply, [3., -5.]); back_up(again, [1., 10.])
    assert [(n.N, n.W) for n in (root, rolling, again, held, reply)] == [(2, 4.), (2, 4.), (2, 4.), (1, 3.), (1, -5.)]


def test_chance_comes_up_as_often_as_it_should(dice):
    tree = search(dice, dice.initial_state(), 3000, seed=1)
    N, parent, action = (tree.nodes[name] for name in ("N", "parent", "action"))
    roll = int(np.flatnonzero(parent == 0)[0])
    shares = {int(action[i]): N[i] / (N[roll] - 1) for i in np.flatnonzero(parent == roll)}
    assert shares == pytest.approx({0: 0.3, 2: 0.5, 3: 0.2}, abs=0.04)


def test_values_at_chance_nodes_wait_for_the_dice(dice):
    tree = search(dice, dice.initial_state(), 300, use_value=True)
    N, parent, mover = (tree.nodes[name] for name in ("N", "parent", "mover"))
    below = np.bincount(parent[1:], N[1:], len(N))
    assert (below[mover == CHANCE] == N[mover == CHANCE]).all()              # nobody stopped there


def wins(program, state):
    mover = program.current_player(state)
    return [a for a in program.legal_actions(state) if program.returns(program.apply_action(state, a))[mover] == 1]


@pytest.mark.parametrize("name,games", [("tic_tac_toe", 60), ("connect_four", 6)])
def test_wins_are_taken_and_losses_blocked(name, games):
    program, rng, seen = game(name).program(), random.Random(0), 0
    for seed in range(games):
        state = program.initial_state()
        while program.current_player(state) >= 0:
            legal = program.legal_actions(state)
            good = wins(program, state) or [a for a in legal if not (t := program.apply_action(state, a)) or program.current_player(t) < 0 or not wins(program, t)]
            if 0 < len(good) < len(legal):
                seen += 1
                assert search(program, state, 200, seed=seed, solve=True).best in good
            state = program.apply_action(state, rng.choice(legal))
    assert seen > 30


def test_the_solver_proves_what_is_certain(ttt):
    state = replay(ttt, [0, 3, 1, 4])                                        # x wins with 2
    tree = search(ttt, state, 500, solve=True)
    assert tree.best == 2 and tree.proven.tolist() == [1, -1] and tree.visits.sum() < 500
    lost = replay(ttt, [0, 1, 4])                                            # o cannot hold both 8 and a second threat
    tree = search(ttt, replay(ttt, [0, 1, 4, 2]), 500, solve=True)
    assert tree.best == 8 and search(ttt, lost, 3000, solve=True).proven.tolist() == [1, -1]


def test_certain_is_set_against_likely():
    from llmwatch_course.cwm.mcts import Tree
    a = np.array
    assert Tree(a([3, 5, 7]), a([10, 20, 20]), a([.9, .2, .3])).best == 7
    assert Tree(a([3, 5, 7]), a([10, 20, 5]), a([.9, .2, .3]), a([np.nan, np.nan, 0.])).best == 5
    assert Tree(a([3, 5, 7]), a([10, 20, 5]), a([.9, -.2, .3]), a([np.nan, np.nan, 0.])).best == 7
    assert Tree(a([3, 5, 7]), a([10, 20, 5]), a([.9, .2, .3]), a([1., -1., 0.])).best == 3
    assert Tree(a([3, 5]), a([1, 0]), a([-1., np.nan])).best == 3


def test_memos_are_kept_and_bounded():
    ttt = load(game("tic_tac_toe").source)
    state = ttt.initial_state()
    search(ttt, state, 50)
    memo = memo_of(ttt)
    assert memo_of(ttt) is memo and 0 < len(memo.states) < 60 * 9
    memo.limit = 10
    assert not memo_of(ttt).states and len(MEMOS) <= 8
    for _ in range(12): memo_of(load(DICE))
    assert len(MEMOS) == 8
    both = Memo(ttt)
    assert both.row(replay(ttt, [0, 4, 8])) == both.row(replay(ttt, [8, 4, 0]))


def test_ln_table():
    assert logs(5)[0] == 0 and logs(1000)[10] == pytest.approx(np.log(10))


ENDLESS = "def initial_state(): return {'n': 0}\ndef current_player(s): return 0\ndef legal_actions(s): return [0]\ndef chance_outcomes(s): return []\ndef apply_action(s, a): return {'n': 1 - s['n']}\ndef returns(s): return [0.0]\ndef observation(s, player): return s\n"


@pytest.mark.parametrize("grow", [readable, search])
def test_what_is_refused(ttt, dice, grow):
    over, state, plain = replay(ttt, [0, 3, 1, 4, 2]), ttt.initial_state(), game("tic_tac_toe").program()
    for said, call in {"the game is over": lambda: grow(ttt, over), "chance moves": lambda: grow(dice, replay(dice, [1])), "simulations is 0": lambda: grow(ttt, state, 0),
                       "rollouts is 1.5": lambda: grow(ttt, state, rollouts=1.5), "no value": lambda: grow(plain, state, use_value=True), "no prior": lambda: grow(plain, state, prior=True),
                       "does this program ever end": lambda: grow(load(ENDLESS), {"n": 0}, 1)}.items():
        with pytest.raises(ValueError, match=said): call()
