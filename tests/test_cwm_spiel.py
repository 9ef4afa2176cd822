"""Lock-step against OpenSpiel, and the way back: our programs as OpenSpiel's games."""
import json, random
from types import SimpleNamespace
import numpy as np
import pytest

from llmwatch_course.cwm import spiel
from llmwatch_course.cwm.contract import TERMINAL, history_of, load, perft, random_game, replay
from llmwatch_course.cwm.games import GAMES, game

pyspiel = pytest.importorskip("pyspiel")
OWN = [name for name in GAMES if (GAMES[name].folder / "reference.py").exists()]
KNOWN = [name for name in OWN if GAMES[name].spiel]
ADAPTED = [name for name in GAMES if name not in OWN]


def broken(name, *edits):
    source = game(name).source
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    return load(source, name)


@pytest.mark.parametrize("name", KNOWN)
def test_a_hundred_games_move_for_move(name):
    wrong = spiel.lockstep(game(name).program(), name, games=100, seed=5)
    assert wrong is None, str(wrong)


@pytest.mark.parametrize("name", KNOWN)
def test_encoders_are_independent_of_the_programs(name):
    "They read OpenSpiel's state and give plain data; the program is never asked."
    node, rng = spiel.Referee(name).start(), random.Random(0)
    node.referee.game = None
    while not node.done:
        assert json.loads(json.dumps([node.state, node.observations])) == [node.state, node.observations]
        node = node.apply(rng.choice(node.legal or [a for a, _ in node.chance]))


def test_perft_agrees_with_openspiel():
    for name, depth in {"connect_four": 4, "mnk": 2, "kuhn": 5, "leduc": 5}.items():
        def count(state, depth):
            if depth == 0: return 1
            return 0 if state.is_terminal() else sum(count(state.child(a), depth - 1) for a in state.legal_actions())
        assert perft(game(name).program(), depth) == count(pyspiel.load_game(game(name).spiel).new_initial_state(), depth), name


def test_facts_of_the_table_are_openspiels():
    for g in GAMES.values():
        if not g.spiel: continue
        theirs = pyspiel.load_game(g.spiel)
        kind = theirs.get_type()
        assert g.actions == theirs.num_distinct_actions() and g.outcomes <= theirs.max_chance_outcomes() and g.most == theirs.max_utility(), g.name
        assert g.hidden == (kind.information.name == "IMPERFECT_INFORMATION") and g.chance == (kind.chance_mode.name == "EXPLICIT_STOCHASTIC")
        assert g.zero_sum == (kind.utility.name == "ZERO_SUM")


# what lock-step finds

FAULTS = [
    ("tic_tac_toe", ("(2, 4, 6)", "(2, 4, 7)"), {"mover", "legal actions"}),
    ("tic_tac_toe", ("[1.0, -1.0] if won == 0 else [-1.0, 1.0]", "[1.0, -1.0]"), {"returns"}),
    ("tic_tac_toe", ("board = list(state[\"board\"])", "board = state[\"board\"]"), {"input changed"}),
    ("connect_four", ("columns[action] = columns[action] + [\"xo\"[player]]", "columns[action].append(\"xo\"[player])"), {"input changed"}),
    ("connect_four", ("(1, 1), (1, -1)", "(1, 1)"), {"mover"}),
    ("connect_four", ("< ROWS]", "<= ROWS]"), {"legal actions"}),
    ("mnk", ("IN_A_ROW = 6, 6, 4", "IN_A_ROW = 6, 6, 5"), {"mover"}),
    ("kuhn", ("[(card, 1 / len(left)) for card in left]", "[(card, (card + 1) / sum(c + 1 for c in left)) for card in left]"), {"chance outcomes"}),
    ("kuhn", ("{\"card\": mine,", "{\"card\": state[\"cards\"][-1] if state[\"cards\"] else None,"), {"observation of player 0", "observation of player 1"}),
    ("kuhn", ("return f\"card {seen['card']} moves", "return f\"card {seen['card'] == 2} moves"), {"information state of player 0", "information state of player 1"}),
    ("leduc", ("RAISES = 2", "RAISES = 3"), {"legal actions"}),
    ("ladder", (" or climbs[player] == RUNGS", ""), {"mover", "state"})]


@pytest.mark.parametrize("name, edit, kinds", [f for f in FAULTS if f[2]])
def test_faults_are_found(name, edit, kinds):
    wrong = spiel.lockstep(broken(name, edit), name, games=300, seed=1)
    assert wrong is not None and wrong.what in kinds, str(wrong)


def test_a_crash_is_a_mismatch():
    wrong = spiel.lockstep(broken("ladder", ("scores[player] += action", "scores[player] += actio")), "ladder")
    assert wrong.what == "an error" and "NameError" in wrong.got and len(wrong.actions) == 1
    wrong = spiel.lockstep(broken("ladder", ("\"player\": 0, \"winner\"", "\"winner\"")), "ladder")
    assert wrong.actions == [] and wrong.what == "an error"


def test_the_game_that_shows_a_fault_is_made_short():
    program = broken("tic_tac_toe", ("(2, 4, 6)", "(2, 4, 7)"))
    for seed in range(5):
        wrong = spiel.lockstep(program, "tic_tac_toe", games=300, seed=seed)
        assert len(wrong.actions) == 5, str(wrong)                        # no win takes fewer moves
        again = spiel.follow(program, spiel.Referee("tic_tac_toe"), wrong.actions)
        assert again == wrong
        assert spiel.follow(program, spiel.Referee("tic_tac_toe"), wrong.actions[:-1]) is None


def test_a_planners_games_can_be_compared_too():
    centre = lambda node, rng: 4 if 4 in node.legal else rng.choice(node.legal)
    program = broken("tic_tac_toe", ("(0, 4, 8)", "(0, 4, 7)"))
    assert spiel.lockstep(program, "tic_tac_toe", games=50, choose=centre).actions[0] == 4


# nodes

def test_nodes_never_change():
    start = spiel.Referee("leduc").start()
    one, other = start.apply(0), start.apply(5)
    assert start.history == [] and one.history == [0] and start.state["cards"] == [] and (one.state["cards"], other.state["cards"]) == ([0], [5])
    assert start.player == -1 and start.legal == [] and len(start.chance) == 6 and one.apply(1).chance == []


# adapters

@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_keep_the_contract(name):
    program, rng = game(name).program(), random.Random(3)
    actions = random_game(program, rng, game(name).longest)
    state = replay(program, actions)
    assert program.current_player(state) == TERMINAL and program.legal_actions(state) == [] == program.chance_outcomes(state)
    theirs = pyspiel.load_game(game(name).spiel).new_initial_state()
    for action in actions: theirs.apply_action(action)
    assert program.returns(state) == theirs.returns() and program.returns(program.initial_state()) == [0, 0]
    assert json.loads(json.dumps(program.observation(state, 1))) == {"text": theirs.observation_string(1)}


@pytest.mark.parametrize("name", ["bargaining", "leduc_poker"])
def test_adapters_resample_what_a_player_cannot_see(name):
    program, rng, drawn = spiel.Adapter(name), random.Random(0), set()
    for _ in range(10):
        actions = random_game(program, rng)
        for n in range(len(actions)):
            player = program.current_player(replay(program, actions[:n]))
            if player < 0: continue
            history = history_of(program, actions[:n], player)
            sample = program.resample_history(history, player, rng)
            assert history_of(program, sample, player) == history
            drawn.add(tuple(sample) == tuple(actions[:n]))
    assert drawn == {True, False}
    with pytest.raises(LookupError, match="only what it has seen"): spiel.Adapter(name).resample_history(history, player, rng)


# our programs as OpenSpiel's games

def test_our_games_are_games_of_openspiel():
    from open_spiel.python.algorithms import expected_game_score, exploitability
    from open_spiel.python import policy
    kuhn, lantern = (spiel.as_open_spiel(game(name).program(), name) for name in ("kuhn", "lantern"))
    assert exploitability.exploitability(lantern, policy.UniformRandomPolicy(lantern)) == pytest.approx(.652778, abs=1e-6)
    assert exploitability.exploitability(kuhn, policy.UniformRandomPolicy(kuhn)) == pytest.approx(.458333, abs=1e-6)
    optimal = policy.TabularPolicy(kuhn)
    third = 1 / 3
    bet = {"0: card 0 moves []": 0, "0: card 1 moves []": 0, "0: card 2 moves []": 0, "0: card 0 moves [0, 1]": 0, "0: card 1 moves [0, 1]": third,
           "0: card 2 moves [0, 1]": 1, "1: card 0 moves [0]": third, "1: card 1 moves [0]": 0, "1: card 2 moves [0]": 1,
           "1: card 0 moves [1]": 0, "1: card 1 moves [1]": third, "1: card 2 moves [1]": 1}
    assert set(bet) == set(optimal.state_lookup)                          # twelve information states
    for key, p in bet.items(): optimal.action_probability_array[optimal.state_lookup[key]] = [1 - p, p]
    assert expected_game_score.policy_value(kuhn.new_initial_state(), [optimal] * 2) == pytest.approx([-1 / 18, 1 / 18])
    assert exploitability.exploitability(kuhn, optimal) == pytest.approx(0, abs=1e-12)


def test_openspiels_search_plays_our_program():
    from open_spiel.python.algorithms import mcts
    theirs = spiel.as_open_spiel(game("tic_tac_toe").program(), "tic_tac_toe")
    state = theirs.new_initial_state()
    for action in (0, 3, 1, 4): state.apply_action(action)
    bot = mcts.MCTSBot(theirs, 1.4, 200, mcts.RandomRolloutEvaluator(1, np.random.RandomState(0)), random_state=np.random.RandomState(3))
    assert bot.step(state) == 2 and state.clone().legal_actions() == [2, 5, 6, 7, 8] and str(state) == json.dumps(replay(game("tic_tac_toe").program(), [0, 3, 1, 4]))
    assert theirs.get_type().short_name != spiel.as_open_spiel(game("tic_tac_toe").program(), "tic_tac_toe").get_type().short_name


def test_our_players_are_bots():
    arena = pytest.importorskip("llmwatch_course.cwm.arena")
    seen = []
    def act(turn, rng): seen.append(turn); return 1
    player = SimpleNamespace(name="always 1", act=act)
    bots = [spiel.PlayerBot(player, "kuhn", seat) for seat in (0, 1)]
    kuhn = pyspiel.load_game("kuhn_poker")
    state = kuhn.new_initial_state()
    for action in (2, 0): state.apply_action(action)
    returns = pyspiel.evaluate_bots(state, bots, 0)
    assert returns == [2, -2] and all(isinstance(turn, arena.Turn) for turn in seen)
    assert seen[1].player == 1 and seen[1].actions is None and seen[1].history[-1] == [{"card": 0, "moves": [1]}, None]
