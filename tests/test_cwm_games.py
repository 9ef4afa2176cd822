"""The contract and the games: counts, solved values, exact probabilities, purity."""
import json, random
from fractions import Fraction
import pytest

from llmwatch_course.cwm.contract import (CHANCE, FUNCTIONS, TERMINAL, draw, freeze, history_of, legal_moves, load, perft, players, random_game, replay)
from llmwatch_course.cwm.games import GAMES, cells_of, draw_board, game, variant

OWN = [name for name in GAMES if (GAMES[name].folder / "reference.py").exists()]
PERFT = {
    "tic_tac_toe": [9, 72, 504, 3_024, 15_120, 54_720, 148_176, 200_448, 127_872],
    "connect_four": [7, 49, 343, 2_401, 16_807, 117_649],
    "army5x5a": [13, 169, 2_263, 29_742, 401_169],
    "sinkhole": [3, 13, 50, 182, 691, 2_234]}


def graph(program):
    "Every state: what is frozen, the state, and its children, in the order of a search in breadth."
    start = program.initial_state()
    known, queue = {freeze(start): (start, [])}, [start]
    for state in queue:
        for action, p in legal_moves(program, state):
            child = program.apply_action(state, action)
            known[freeze(state)][1].append((action, p, freeze(child)))
            if freeze(child) not in known:
                known[freeze(child)] = child, []
                queue.append(child)
    return known


def fold(program, end, inner):
    "A value for every state, from the ends to the start, each different state once; `inner(state, values of the children)`."
    known = {}
    def value(state):
        key = freeze(state)
        if key not in known:
            done = program.current_player(state) == TERMINAL
            known[key] = end(state) if done else inner(state, [value(program.apply_action(state, a)) for a, _ in legal_moves(program, state)])
        return known[key]
    value(program.initial_state())
    return value


def solve(program):
    "Value for player 0 and the best first moves, by minimax."
    value = fold(program, lambda s: program.returns(s)[0], lambda s, values: (max, min)[program.current_player(s)](values))
    start = program.initial_state()
    return value(start), [a for a in program.legal_actions(start) if value(program.apply_action(start, a)) == value(start)]


def share(program, label, one=Fraction(1)):
    "Exact probability that a uniformly random game ends in a state with this label."
    return fold(program, lambda s: one * label(s), lambda s, values: sum(values) / len(values))(program.initial_state())


def mean_length(program): return fold(program, lambda s: 0., lambda s, values: 1 + sum(values) / len(values))(program.initial_state())


# the contract

@pytest.mark.parametrize("name", OWN)
def test_programs_keep_the_contract_in_every_state_of_random_games(name):
    program, rng = game(name).program(), random.Random(1)
    for _ in range(20):
        actions = random_game(program, rng, game(name).longest)
        state = program.initial_state()
        for action in [*actions, None]:
            text, mover = json.dumps(state), program.current_player(state)
            legal, chance, returns = program.legal_actions(state), program.chance_outcomes(state), program.returns(state)
            assert json.loads(text) == state and mover in (TERMINAL, CHANCE, 0, 1)
            assert legal == sorted(set(legal)) and bool(legal) == (mover >= 0)
            assert all(type(a) is int and 0 <= a < game(name).actions for a in legal)
            if mover == CHANCE:
                assert sum(p for _, p in chance) == pytest.approx(1, abs=1e-12) and len(chance) <= game(name).outcomes
            assert returns == [0, 0] if mover != TERMINAL else max(returns) <= game(name).most
            if game(name).zero_sum: assert sum(returns) == 0
            for player in range(players(program)): json.dumps(program.observation(state, player))
            after = None if action is None else program.apply_action(state, action)
            assert json.dumps(state) == text, "the program changed its input"
            if after is None: assert mover == TERMINAL
            state = after


@pytest.mark.parametrize("name", [name for name in OWN if not GAMES[name].hidden])
def test_observations_are_copies(name):
    "Whoever spoils an observation, in every place, has not spoiled the state."
    program, rng = game(name).program(), random.Random(2)
    actions = random_game(program, rng, game(name).longest)
    state = replay(program, actions[:len(actions) // 2])
    text, view = json.dumps(state), program.observation(state, 0)
    for value in view.values():
        if isinstance(value, list):
            for item in value:
                if isinstance(item, list): item.append("spoiled")
            value.append("spoiled")
    assert json.dumps(state) == text


def test_a_program_that_lacks_a_function_is_refused_in_one_sentence():
    source = game("ladder").source.replace("def returns", "def rewards")
    with pytest.raises(ValueError, match="ladder has no function returns"): load(source, "ladder")
    with pytest.raises(ValueError, match="no function initial_state and no current_player"): load("x = 1")
    assert set(FUNCTIONS) <= set(vars(load(game("ladder").source)))


def test_equal_states_have_equal_keys_and_others_do_not():
    pairs = [({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}), ([1, [2, (3,)]], (1, (2, [3]))), ({"a": {"x": [None]}}, {"a": {"x": [None]}})]
    for one, other in pairs: assert freeze(one) == freeze(other) and hash(freeze(one)) == hash(freeze(other))
    different = [{"a": [1, 2]}, {"a": [2, 1]}, {"a": [[1], 2]}, {"a": [[1, 2]]}, {"a": "12"}, {"b": [1, 2]}, [["a", [1, 2]]], [1, 2], [[1], [2]], None, "", [], {}]
    assert len({freeze(x) for x in different}) == len(different)


def test_draw_follows_the_probabilities():
    rng = random.Random(0)
    got = [draw([(7, 0.5), (8, 0.25), (9, 0.25), (10, 0.)], rng) for _ in range(8_000)]
    assert [got.count(a) / 8_000 for a in (7, 8, 9, 10)] == pytest.approx([.5, .25, .25, 0], abs=.025)


def test_a_game_without_end_is_stopped():
    with pytest.raises(ValueError, match="not over after 10 moves"): random_game(game("connect_four").program(), random.Random(0), limit=6 + 4)


def test_a_history_has_one_pair_for_every_state():
    program = game("kuhn").program()
    assert history_of(program, [2, 0, 0, 1, 1], 0) == [
        [{"card": None, "moves": []}, None], [{"card": 2, "moves": []}, None], [{"card": 2, "moves": []}, 0],
        [{"card": 2, "moves": [0]}, None], [{"card": 2, "moves": [0, 1]}, 1], [{"card": 2, "moves": [0, 1, 1]}, None]]
    assert replay(program, [2, 0, 0, 1, 1])["moves"] == [0, 1, 1]


# counts

@pytest.mark.parametrize("name", PERFT)
def test_perft(name):
    program = game(name).program()
    assert [perft(program, depth + 1) for depth in range(len(PERFT[name]))] == PERFT[name]


def test_perft_of_the_other_start_of_sinkhole():
    other = game("sinkhole").program(START=(0, 15))
    assert [perft(other, depth) for depth in range(1, 7)] == [3, 9, 44, 200, 828, 3_030]


def test_perft_counts_sequences_as_a_plain_recursion_does():
    def count(program, state, depth):
        return 1 if depth == 0 else sum(count(program, program.apply_action(state, a), depth - 1) for a, _ in legal_moves(program, state))
    for name, depth in {"mnk": 2, "kuhn": 4, "lantern": 5, "ladder": 6, "army5x5a": 3}.items():
        assert perft(game(name).program(), depth) == count(game(name).program(), game(name).program().initial_state(), depth), name


def test_tic_tac_toe_as_a_whole():
    program = game("tic_tac_toe").program()
    known = graph(program)
    ends = [program.returns(state)[0] for state, moves in known.values() if not moves]
    assert len(known) == 5_478 and len(ends) == 958 and [ends.count(v) for v in (1, -1, 0)] == [626, 316, 16]
    law = [share(program, lambda s, v=v: program.returns(s)[0] == v) for v in (1, -1, 0)]
    assert law == [Fraction(737, 1260), Fraction(121, 420), Fraction(8, 63)]
    finished = {key: program.returns(state)[0] for key, (state, moves) in known.items() if not moves}
    level, games = {next(iter(known)): 1}, {1: 0, -1: 0, 0: 0}
    while level:
        following = {}
        for key, ways in level.items():
            if key in finished: games[finished[key]] += ways
            for _, _, child in known[key][1]: following[child] = following.get(child, 0) + ways
        level = following
    assert games == {1: 131_184, -1: 77_904, 0: 46_080}


def test_general_captures_of_army5x5a():
    program = game("army5x5a").program()
    level, wins = [program.initial_state()], []
    for _ in range(4):
        level = [program.apply_action(s, a) for s in level for a in program.legal_actions(s)]
        wins.append(sum(s["winner"] is not None for s in level))
    assert wins == [0, 0, 37, 488]


@pytest.mark.parametrize("name", ["tic_tac_toe", "ladder", "kuhn", "leduc", "lantern", "minnow"])
def test_the_longest_game(name):
    program = game(name).program()
    assert fold(program, lambda s: 0, lambda s, values: 1 + max(values))(program.initial_state()) == game(name).longest


# solved

def test_first_moves():
    assert solve(game("tic_tac_toe").program()) == (0, list(range(9)))
    assert solve(game("ladder").program(TARGET=12, RUNGS=3)) == (1, [0])
    assert solve(game("ladder").program()) == (1, [0])


def test_sinkhole_needs_its_wells():
    assert solve(game("sinkhole").program()) == (1, [1, 5])
    assert solve(game("sinkhole").program(WELLS=())) == (-1, [1, 4, 5])
    assert solve(game("sinkhole").program(START=(0, 15)))[0] == -1


@pytest.mark.parametrize("target, rungs, r", [(12, 3, .12834), (15, 4, .039938), (18, 5, .011698), (21, 6, .0033234)])
def test_how_often_the_ladder_decides_a_random_game(target, rungs, r):
    program = game("ladder").program(TARGET=target, RUNGS=rungs)
    assert share(program, lambda s: max(s["climbs"]) == rungs, 1.) == pytest.approx(r, rel=1e-4)
    if target == 15: assert mean_length(program) == pytest.approx(17.36, abs=.005)


# the table of games

def test_variants_change_constants_and_nothing_else():
    source = "A, B = 1, (2,\n 3)\nC = [1]\ndef f(A=5):\n    B = 7\n    return A\n"
    assert variant(source, B=(9,), A=-4) == "A, B = -4, (9,)\nC = [1]\ndef f(A=5):\n    B = 7\n    return A\n"
    assert variant(source, C="x") == source.replace("[1]", "'x'") and variant(source) == source
    with pytest.raises(ValueError, match="no constant TARGT; did you mean 'TARGET'"): game("ladder").program(TARGT=3)
    assert game("ladder").program() is game("ladder").program() and game("ladder").program(TARGET=3) is not game("ladder").program()


def test_names():
    assert all(name == g.name for name, g in GAMES.items()) and len(GAMES) == 13
    with pytest.raises(ValueError, match="unknown game 'connect4'; did you mean 'connect_four'"): game("connect4")
    with pytest.raises(ValueError, match="Backgammon has no program of its own"): str(game("backgammon").source)
    for g in GAMES.values():
        assert "State: {" in g.rules and "Observation of" in g.rules and max(map(len, g.rules.splitlines())) < 320
        if g.name in OWN: assert "provenance: hand-written" in g.source.splitlines()[0]


def test_pictures():
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    state = replay(game("connect_four").program(), [3, 3, 2])
    assert cells_of(state) == (["."] * 31 + ["o"] + ["."] * 3 + [".", ".", "x", "x", ".", ".", "."], 7)
    assert [t.get_text() for t in draw_board(ax, state, last=2).texts] == ["○", "×", "×"]
    plt.close(fig)
