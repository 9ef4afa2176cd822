"""Games of hidden information: the four programs, their exact posteriors, and the samplers against them."""
import json, math, random
from collections import Counter, defaultdict
from fractions import Fraction
import pytest

from llmwatch_course.cwm.contract import CHANCE, TERMINAL, freeze, history_of, legal_moves, load, random_game, replay
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.inference import (chi2_tail, decisions, distance, frequencies, inference_accuracy, information_sets, reconstructs, sampler_distances,
                                           total_variation)
from llmwatch_course.cwm.posterior import bags, evidence, posterior

NAMES = ("kuhn", "leduc", "lantern", "minnow")
COUNTS = {"kuhn": (58, 30, 12), "leduc": (9_457, 5_520, 936), "lantern": (341, 192, 88), "minnow": (9_913, 3_996, 5_333)}  # histories, ends, information sets


def histories(program, state=None, actions=()):
    "Every history of the game: (actions, state)."
    state = program.initial_state() if state is None else state
    yield actions, state
    for action, _ in legal_moves(program, state): yield from histories(program, program.apply_action(state, action), (*actions, action))


def honest():
    "Kuhn poker in which the lowest card must not bet."
    rule = "    return [PASS, BET] if current_player(state) >= 0 else []"
    other = "    player = current_player(state)\n    if player < 0:\n        return []\n    return [PASS] if state['cards'][player] == 0 else [PASS, BET]"
    assert rule in game("kuhn").source
    return load(game("kuhn").source.replace(rule, other), "honest")


def with_sampler(name, body):
    "The program of a game with another sampler."
    return load(game(name).source.split("def resample_history")[0] + "def resample_history(history, player, rng):\n" + body, name)


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_plain_states(name):
    program, keys, ends, n = game(name).program(), set(), 0, 0
    for actions, state in histories(program):
        n += 1
        mover = program.current_player(state)
        before = json.dumps(state)
        if mover >= 0: keys.add((mover, program.information_state(state, mover)))
        if mover == CHANCE: assert math.isclose(sum(p for _, p in program.chance_outcomes(state)), 1)
        else: assert program.chance_outcomes(state) == []
        assert json.loads(before) == state and json.dumps(state) == before
        assert sum(program.returns(state)) == 0 and (mover == TERMINAL or program.returns(state) == [0., 0.])
        if mover == TERMINAL: ends += 1; assert program.legal_actions(state) == []
        assert len(actions) <= game(name).longest
    assert (n, ends, len(keys)) == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_information_state_is_what_was_seen_and_done(name):
    "Two histories share a mover's key exactly when that player saw and did the same: nothing forgotten, nothing leaked."
    program, seen = game(name).program(), {}
    for actions, state in histories(program):
        if (mover := program.current_player(state)) < 0: continue
        if name == "minnow" and len(actions) > 5: continue
        key, view = (mover, program.information_state(state, mover)), freeze(history_of(program, actions, mover))
        assert seen.setdefault(key, view) == view
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("name", ["kuhn", "leduc"])
def test_openspiel_agrees_everywhere(name):
    pyspiel, program, keys = pytest.importorskip("pyspiel"), game(name).program(), {}
    def walk(state, truth):
        mover = program.current_player(state)
        assert mover == truth.current_player() and program.returns(state) == truth.returns()
        if truth.is_terminal(): return
        moves = legal_moves(program, state)
        assert [a for a, _ in moves] == truth.legal_actions()
        if mover == CHANCE: assert all(a == b and math.isclose(p, q) for (a, p), (b, q) in zip(moves, truth.chance_outcomes(), strict=True))
        for player in (0, 1):
            key, text = (player, program.information_state(state, player)), truth.information_state_string(player)
            assert keys.setdefault(key, text) == text
        for a, _ in moves: walk(program.apply_action(state, a), truth.child(a))
    walk(program.initial_state(), pyspiel.load_game(game(name).spiel).new_initial_state())
    assert len({(player, text) for (player, _), text in keys.items()}) == len(keys)


def test_lantern_by_hand():
    lantern = game("lantern").program()
    def ends(*actions): return lantern.returns(replay(lantern, actions))
    assert ends(1, 2, 0, 0) == [-1, 1] and ends(4, 2, 1, 1) == [3, -3] and ends(4, 2, 1, 0) == [1, -1]
    assert ends(1, 2, 2, 1, 0) == [1, -1] and ends(1, 2, 2, 1, 1) == [-4, 4] and ends(4, 2, 2, 0, 2, 1, 0) == [-2, 2]
    state = replay(lantern, [3, 1, 2])
    assert lantern.legal_actions(state) == [0, 1] and lantern.observation(state, 0)["seen"] == 1 and lantern.observation(state, 1)["seen"] is None
    assert lantern.legal_actions(replay(lantern, [3, 1])) == [0, 1, 2] == lantern.legal_actions(replay(lantern, [3, 1, 0]))
    assert lantern.legal_actions(replay(lantern, [3, 1, 1])) == [0, 1] == lantern.legal_actions(replay(lantern, [3, 1, 0, 1]))


def test_minnow_by_hand():
    minnow = game("minnow").program()
    first, reply, draw = [0, 2, 2, 3, 3], [0, 2, 2, 3, 3, 0], [0, 2, 2, 0, 3, 1]
    assert minnow.current_player(replay(minnow, first)) == 1                     # the first player has sunk; one more shot
    assert minnow.returns(replay(minnow, reply)) == [1, -1] and minnow.returns(replay(minnow, draw)) == [0, 0]
    assert minnow.returns(replay(minnow, [0, 2, 0, 0, 1, 1])) == [-1, 1]
    assert minnow.observation(replay(minnow, draw), 0) == {"boat": 0, "shots": [[2, True], [0, True], [3, True], [1, True]]}


def test_posterior_by_hand():
    kuhn, leduc, lantern = (game(name).program() for name in ("kuhn", "leduc", "lantern"))
    assert posterior(kuhn, history_of(kuhn, [0, 1, 1], 1), 1) == {(0, 1, 1): 1 / 2, (2, 1, 1): 1 / 2}
    assert math.isclose(evidence(kuhn, history_of(kuhn, [0, 1, 1], 1), 1), 1 / 6)
    worlds = posterior(leduc, history_of(leduc, [4, 0, 1, 1, 5], 0), 0)
    assert worlds == {(4, c, 1, 1, 5): pytest.approx(1 / 4) for c in range(4)}
    assert posterior(lantern, history_of(lantern, [3, 2, 0, 2], 1), 1) == {(3, 2, 0, 2): 1}
    assert posterior(lantern, history_of(lantern, [3], 1), 1) == {(c,): pytest.approx(1 / 4) for c in (1, 2, 3, 4)}
    program = honest()
    assert posterior(program, history_of(program, [0, 1, 0], 1), 1) == {(0, 1, 0): pytest.approx(2 / 3), (2, 1, 0): pytest.approx(1 / 3)}
    others = lambda program, state: [(0, 3 / 4), (1, 1 / 4)] if state["cards"][0] == 0 else [(0, 1 / 4), (1, 3 / 4)]
    assert posterior(kuhn, history_of(kuhn, [0, 1, 1], 1), 1, others)[0, 1, 1] == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="no world agrees"): posterior(kuhn, [[{"card": 7, "moves": []}, None]], 0)


@pytest.mark.parametrize("name", ["kuhn", "lantern", "honest"])
def test_posterior_is_bayes_over_all_histories(name):
    "Against the definition in fractions, at every decision of the whole game: no filtering move by move."
    program = honest() if name == "honest" else game(name).program()
    weight, groups = {(): (Fraction(1), Fraction(1))}, defaultdict(dict)
    for actions, state in histories(program):
        mover, moves = program.current_player(state), legal_moves(program, state)
        for a, p in moves:
            odds = Fraction(1, len(moves))                                       # these deals are uniform as well
            assert p is None or math.isclose(p, odds)
            weight[*actions, a] = tuple(w * (1 if mover == who else odds) for who, w in enumerate(weight[actions]))
        if mover >= 0: groups[mover, freeze(history_of(program, actions, mover))][actions] = weight[actions][mover]
    for (player, _), bag in groups.items():
        history = history_of(program, next(iter(bag)), player)
        assert posterior(program, history, player) == {world: pytest.approx(float(w / sum(bag.values()))) for world, w in bag.items()}
        assert evidence(program, history, player) == pytest.approx(float(sum(bag.values())))


def test_posterior_is_what_random_play_finds():
    program, rng, seen = honest(), random.Random(3), defaultdict(Counter)
    for _ in range(20_000):
        actions = random_game(program, rng)
        for t, who in decisions(program, actions): seen[who, program.information_state(replay(program, actions[:t]), who)][tuple(actions[:t])] += 1
    for (who, _), counts in seen.items():
        law, n = posterior(program, history_of(program, next(iter(counts)), who), who), counts.total()
        assert set(counts) == set(law)
        for world, p in law.items(): assert abs(counts[world] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9


def test_bags_shrink_to_the_truth():
    minnow = game("minnow").program(CELLS=12)
    view = history_of(minnow, [4, 6, 2, 0, 9, 11, 5, 2, 7, 3, 6], 0)
    film = bags(minnow, view, 0)
    assert [len(bag) for bag in film] == [1, 1, 11, 9, 9, 7, 7, 5, 5, 2, 2, 1] and list(film[-1])[0][1] == 6


@pytest.mark.parametrize("name", NAMES)
def test_reference_samplers_reconstruct_everything(name):
    program, rng = game(name).program(), random.Random(1)
    assert inference_accuracy(program, [random_game(program, rng) for _ in range(150)], seed=2) == 1
    for actions in (random_game(program, rng) for _ in range(20)):               # at every state, not only at decisions
        for t in range(len(actions) + 1):
            for player in (0, 1):
                view = history_of(program, actions[:t], player)
                assert reconstructs(program, view, player, program.resample_history(view, player, rng))


def test_reconstruction_refuses():
    kuhn = game("kuhn").program()
    view = history_of(kuhn, [2, 1, 0, 1], 0)
    assert reconstructs(kuhn, view, 0, [2, 1, 0, 1]) and reconstructs(kuhn, view, 0, [2, 0, 0, 1])
    for wrong in ([2, 1, 0], [2, 1, 0, 1, 0], [1, 2, 0, 1], [2, 2, 0, 1], [2, 1, 1, 1], [2, 1, 0, 0], []): assert not reconstructs(kuhn, view, 0, wrong)
    crash = with_sampler("kuhn", "    return 1 / 0\n")
    assert inference_accuracy(crash, [[0, 1, 0, 0]]) == 0


def test_distances_of_right_and_wrong_samplers():
    lantern, view = game("lantern").program(), history_of(game("lantern").program(), [4, 3, 1], 1)
    right = distance(lantern, view, 1, seed=4)
    assert right.tv < 0.02 and right.exact < 0.02 and right.p > 1e-4 and right.worlds == 3 and right.impossible == 0
    pessimist = with_sampler("lantern", '    seen = history[-1][0]\n    rest = [c for c in CARDS if c != seen["card"]]\n    other = max(rng.choice(rest) for _ in range(3))\n'
                             '    cards = [seen["card"], other] if player == 0 else [other, seen["card"]]\n    return cards[:len(history) - 1] + seen["moves"]\n')
    wrong = distance(pessimist, view, 1, seed=4)                                   # exactly 1/27, 7/27, 19/27 instead of thirds
    assert wrong.tv == pytest.approx(19 / 27 - 1 / 3, abs=0.02) and wrong.p < 1e-6 and wrong.impossible == 0
    lost = distance(with_sampler("lantern", "    return [4, 3, 0]\n"), view, 1, draws=100)
    assert lost.tv == pytest.approx(1) and lost.impossible == 100 and lost.p == 0
    assert frequencies(lantern, view, 1, 50, seed=1) == frequencies(lantern, view, 1, 50, seed=1)


def test_total_variation_and_chi2():
    assert total_variation({1: 0.5, 2: 0.5}, {2: 0.5, 3: 0.5}) == 0.5 and total_variation({1: 1.}, {1: 1.}) == 0
    stats = pytest.importorskip("scipy.stats")
    for k in (1, 3, 11):
        for x in (0.3, 1, 2.5): assert abs(chi2_tail(x * k, k) - stats.chi2.sf(x * k, k)) < 0.02
    assert chi2_tail(0, 0) == 1 and chi2_tail(math.inf, 3) == 0


def test_sampler_distances_of_the_ledger():
    rows = sampler_distances({name: game(name).program() for name in ("kuhn", "leduc", "lantern")}, per_game=6, draws=3_000, seed=5)
    assert len(rows) == 18 and max(row["distance"] for row in rows) < 0.06 and rows == sampler_distances({name: game(name).program() for name in ("kuhn", "leduc", "lantern")}, 6, 3_000, 5)
    kuhn = game("kuhn").program()
    assert len(information_sets(kuhn, 20, random.Random(0))) == 12                 # Kuhn poker has no more
    assert sampler_distances({"honest": honest()}, 12, 3_000)[0].keys() == rows[0].keys()
    assert max(row["distance"] for row in sampler_distances({"honest": honest()}, 12, 3_000)) > 0.15


def test_evidence_bounds_from_above():
    "One reconstructing history is a lower bound of the likelihood, at every decision."
    leduc, rng = game("leduc").program(), random.Random(8)
    for actions in (random_game(leduc, rng) for _ in range(10)):
        for t, who in decisions(leduc, actions):
            bag = bags(leduc, view := history_of(leduc, actions[:t], who), who)[-1]
            drawn = tuple(leduc.resample_history(view, who, rng))
            assert bag[drawn] <= evidence(leduc, view, who) + 1e-15
