"""Tables and kernels: counts and values known exactly, the same trees as in Python, wrong kernels refused."""
import random, subprocess, sys
import numpy as np
import pytest

pytest.importorskip("numba")
from llmwatch_course.cwm import compiled, kernels
from llmwatch_course.cwm.contract import CHANCE, TERMINAL, load, random_game, replay
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.kernels import Mismatch, accept, compare, kernel, load_kernel
from llmwatch_course.cwm.mcts import Dice, readable
from llmwatch_course.cwm.search import search
from llmwatch_course.cwm.tables import compile_tables, exact
from tests.conftest import ROOT
from tests.test_cwm_search import DICE, SETTINGS, check_tree, same, uneven

KERNELS = sorted(p.parent.name for p in (ROOT/"data/fixtures/cwm").glob("*/kernel.py"))


@pytest.fixture(scope="module")
def ttt(): return compile_tables(game("tic_tac_toe").program())


def test_tic_tac_toe_as_a_table(ttt):
    ends = ttt.returns[ttt.mover == TERMINAL, 0]
    assert len(ttt.mover) == 5478 and len(ends) == 958
    assert [(ends == v).sum() for v in (1, -1, 0)] == [626, 316, 16]
    assert exact(ttt)[0].tolist() == [0, 0] and ttt.row(ttt.states[77]) == 77
    with pytest.raises(ValueError, match="cannot be reached"): ttt.row({"board": ["x"] * 9, "player": 0})


@pytest.mark.parametrize("constants,r", [(dict(TARGET=15, RUNGS=4), .039938), (dict(TARGET=12, RUNGS=3), .12834)], ids=str)
def test_ladder_race_as_a_table(constants, r):
    tables = compile_tables(game("ladder").program(**constants))
    best = exact(tables)[tables.next[0], 1]
    assert best.tolist() == [-1, 1, 1, 1]                                       # only CLIMB wins
    climbed = np.array([s["winner"] is not None and s["climbs"][s["winner"]] == constants["RUNGS"] for s in tables.states])
    chance = np.zeros(len(tables.mover))
    chance[climbed] = 1
    for _ in range(130): chance = np.where(tables.count > 0, chance[tables.next].mean(1), climbed)
    assert chance[0] == pytest.approx(r, rel=1e-4)


def test_sinkhole_is_a_first_player_win():
    tables = compile_tables(game("sinkhole").program())
    worth = exact(tables)
    assert worth[0, 0] == 1 and {int(a): worth[n, 0] for a, n in zip(tables.actions[0], tables.next[0]) if n >= 0} == {1: 1, 4: -1, 5: 1}


def test_chance_in_tables():
    tables = compile_tables(load(DICE))
    at = tables.mover == CHANCE
    assert tables.chance[at].sum(1) == pytest.approx(1) and tables.chance[~at].sum() == 0
    n = 40_000
    program, dice = tables.program, Dice(3)
    from llmwatch_course.cwm.mcts import rollout
    uniform, rows = tables.returns.copy(), tables.next
    for _ in range(200):                                                        # the value of random play, by iteration
        after = np.where(rows[:, :, None] >= 0, uniform[rows], 0)
        weight = np.where(at[:, None], tables.chance, (rows >= 0) / np.maximum(tables.count, 1)[:, None])
        uniform = np.where(tables.count[:, None] > 0, (weight[:, :, None] * after).sum(1), tables.returns)
    played = np.array([rollout(program, program.initial_state(), dice) for _ in range(n // 20)])
    assert np.abs(played.mean(0) - uniform[0]).max() < 5 * played.std(0).max() / len(played)**0.5
    program.prior, program.value = uneven(program), program.value
    tree = search(tables, program.initial_state(), n, c=1e9)                    # c so large that play is uniform at the root
    check_tree(tree, n, most=9)


def test_a_game_that_goes_round_is_not_solved():
    ring = "def initial_state(): return {'n': 0}\ndef current_player(s): return 0 if s['n'] < 3 else -4\ndef legal_actions(s): return [0, 1] if s['n'] < 3 else []\ndef chance_outcomes(s): return []\n" \
           "def apply_action(s, a): return {'n': (s['n'] + 1) % 3 if a == 0 else 3}\ndef returns(s): return [1.0]\ndef observation(s, player): return s\n"
    tables = compile_tables(load(ring))
    with pytest.raises(ValueError, match="return to a state"): exact(tables)
    with pytest.raises(ValueError, match="more than 2 states"): compile_tables(load(ring), limit=2)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tables_grow_the_same_tree(settings, ttt):
    for source, lines in ((DICE, ([], [1, 2])), (game("tic_tac_toe").source, ([], [0, 4])), (game("kuhn").source, ([0, 1], [2, 0, 1]))):
        program = load(source)
        program.prior = uneven(program)
        if not hasattr(program, "value"): program.value = lambda s: [0.1 * len(str(s)) % 1, -0.3]
        tables = compile_tables(program)
        for line in lines:
            state = replay(program, line)
            if program.current_player(state) < 0: continue
            same(readable(program, state, 600, seed=4, **settings), search(tables, state, 600, seed=4, **settings))


def test_memory_grows_with_the_tree(ttt):
    state = ttt.program.initial_state()
    for n in (9000, 20, 9000): same(search(ttt.program, state, n, seed=1), search(ttt, state, n, seed=1))
    kept = search(ttt, state, 100, seed=1)
    before = {k: v.copy() for k, v in kept.nodes.items()}
    search(ttt, state, 100, seed=2)
    for name in before: assert (kept.nodes[name] == before[name]).all()         # the next search uses the same memory


def test_the_solver_never_loses_against_perfect_play(ttt):
    worth, rng = exact(ttt), random.Random(0)
    for seed in range(10):
        row, us = 0, seed % 2
        while ttt.mover[row] >= 0:
            if ttt.mover[row] == us: place = ttt.actions[row].tolist().index(search(ttt, ttt.states[row], 5000, seed=seed, solve=True).best)
            else:
                after = worth[ttt.next[row, :ttt.count[row]], 1 - us]
                place = rng.choice(np.flatnonzero(after == after.max()).tolist())
            row = ttt.next[row, place]
        assert ttt.returns[row, us] >= 0


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_with_their_programs(name):
    program = game(name).program()
    assert accept(kernel(name), program, games=30, simulations=300) is kernel(name)
    rng = random.Random(1)
    for seed in range(3):
        line = random_game(program, rng)
        state = replay(program, line[:rng.randrange(len(line))])
        for settings in ({}, dict(solve=True), dict(rollouts=4, c=1.)) + ((dict(use_value=True),) if "value" in kernel(name).fast else ()):
            same(search(program, state, 300, seed=seed, **settings), search(kernel(name), state, 300, seed=seed, **settings))


WRONG = {"a diagonal": ("discs & discs >> 6", "discs & discs >> 5"), "the draw": ("(s[0] | s[1]) & TOP == TOP else", "s[0] == TOP else"), "the sign": ("1.0 - 2.0 * s[3]", "1.0"),
         "a column": ("range(7):\n        out", "range(6):\n        out"), "the mover": ("1 - player\n\ndef returns", "player\n\ndef returns"), "an index": ("out[n] = x", "out[n + 1] = x")}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_kernels_are_found(what):
    source = (game("connect_four").folder/"kernel.py").read_text()
    assert WRONG[what][0] in source
    wrong, program = load_kernel(source.replace(*WRONG[what])), game("connect_four").program()
    lines = [random_game(program, random.Random(i)) for i in range(200)] + [[int(x) for x in "010101232323454545101010323232545454666666"]]
    with pytest.raises((Mismatch, IndexError)): compare(wrong, program, lines, compiled=False)


def test_what_is_refused(ttt):
    source = (game("tic_tac_toe").folder/"kernel.py").read_text()
    for said, call in {"no function legal": lambda: load_kernel(source.replace("def legal", "def lawful")), "WIDTH": lambda: load_kernel(source.replace("WIDTH", "BREADTH")),
                       "import os": lambda: load_kernel("import os\n" + source), "no kernel for kuhn": lambda: kernel("kuhn"), "did you mean 'mnk'": lambda: kernel("mnkk"),
                       "prior inside": lambda: search(kernel("tic_tac_toe"), ttt.states[0], 10, prior=uneven(ttt.program)), "no value": lambda: search(ttt, ttt.states[0], 10, use_value=True)}.items():
        with pytest.raises(ValueError, match=said): call()


def test_without_numba_there_is_one_sentence():
    code = "import sys; sys.modules['numba'] = None\nfrom llmwatch_course.cwm.kernels import kernel\nfrom llmwatch_course.cwm.games import game\nfrom llmwatch_course.cwm.search import search\n" \
           "s = game('tic_tac_toe').program().initial_state()\nprint(search(game('tic_tac_toe').program(), s, 20).visits.sum())\ntry: search(kernel('tic_tac_toe'), s, 20)\nexcept ImportError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.startswith("20\n") and "llmwatch_course[games]" in out and out.count("\n") == 2


def test_names_of_machine_code_differ():
    "Two kernels in one process, one of them from the disk, must not share functions."
    a, b = kernel("tic_tac_toe"), kernel("connect_four")
    assert a.tag != b.tag and a.machine is not b.machine and kernels.bind is compiled.bind
    for k in (a, b): assert search(k, game(k.name).program().initial_state(), 100).actions.tolist() == list(range(k.most))
