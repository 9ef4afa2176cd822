"""ISMCTS, readable and compiled, and what its policy is worth."""
import numpy as np
import pytest

from llmwatch_course.cwm.contract import history_of, load
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.ismcts import Exact, ismcts
from llmwatch_course.cwm.posterior import posterior

pytest.importorskip("numba")
from llmwatch_course.cwm.infosets import best_response, compile_infosets, exploitability, policy_of  # noqa: E402

NAMES = ("kuhn", "leduc", "lantern", "minnow")
SETS = {}


def sets_of(name):
    "Compiled once for all tests."
    if name not in SETS: SETS[name] = compile_infosets(game(name).program())
    return SETS[name]


def path_to(tables, row):
    "The actions from the start to a row."
    if row == 0: return ()
    (parent, j), = np.argwhere(tables.next == row)
    return (*path_to(tables, parent), int(tables.actions[parent, j]))


def sampled(sets, n, seed):
    "Some information sets: number, mover, and the history of one of its worlds."
    for i in np.random.default_rng(seed).choice(len(sets.rows), n, replace=False):
        who = int(sets.tables.mover[sets.rows[i][0]])
        yield int(i), who, history_of(sets.program, path_to(sets.tables, sets.rows[i][0]), who)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_one_tree(name):
    "Python with exact worlds and machine code, to the last bit."
    sets = sets_of(name)
    exact = Exact(sets.program)
    for i, who, history in sampled(sets, 6, 1):
        slow, fast = (ismcts(model, history, who, 120, c=3., rollouts=3, seed=i, sample=sample) for model, sample in ((sets.program, exact), (sets, None)))
        assert (slow.actions == fast.actions).all() and (slow.visits == fast.visits).all() and slow.sets == fast.sets
        assert np.array_equal(slow.values, fast.values, equal_nan=True)
        assert fast.visits.sum() == 120 and not fast.aborted and fast.best in fast.actions and np.isclose(fast.policy.sum(), 1)
        again, other = (ismcts(sets, history, who, 120, c=3., rollouts=3, seed=s) for s in (i, i + 1))
        assert (again.visits == fast.visits).all() and other.visits.sum() == 120


@pytest.mark.parametrize("name", NAMES)
def test_reach_is_the_posterior(name):
    sets = sets_of(name)
    for i, who, history in sampled(sets, 6, 2):
        law, weights = posterior(sets.program, history, who), sets.reach[sets.rows[i], who]
        assert law == {path_to(sets.tables, row): pytest.approx(w / weights.sum()) for row, w in zip(sets.rows[i], weights)}


def test_values_are_bounded_and_dominated_moves_found():
    sets = sets_of("kuhn")
    assert all(abs(v) <= 2 for i, who, h in sampled(sets, 12, 3) for v in ismcts(sets, h, who, 200).values)
    kuhn = sets.program
    for actions, who, best in (([2, 0, 1], 1, 0), ([0, 2, 1], 1, 1), ([0, 1, 0, 1], 0, 0), ([2, 1, 0, 1], 0, 1)):  # fold the lowest card, call with the highest
        for availability in (False, True): assert ismcts(kuhn, history_of(kuhn, actions, who), who, 300, availability=availability).best == best


def test_a_single_world_is_plain_search():
    "Who has peeked faces a game of open cards on their own move: calls with the better card, folds the worse."
    lantern = game("lantern").program()
    for cards in ((4, 2), (1, 2)):
        history = history_of(lantern, [*cards, 2, 0, 1], 0)                        # peek, pass, and the other bets
        assert ismcts(lantern, history, 0, 200, c=6.).best == (1 if cards[0] > cards[1] else 0)


def test_broken_samplers_abort():
    def stub(body): return load(game("kuhn").source.split("def resample_history")[0] + "def resample_history(history, player, rng):\n" + body, "stub")
    view, counts = history_of(game("kuhn").program(), [2, 1], 0), np.zeros(2, int)
    for seed in range(40):
        guess = ismcts(stub("    return [0, 1]\n"), view, 0, 50, seed=seed)
        assert guess.aborted and guess.visits.sum() == 1
        counts += guess.visits
    assert counts.min() >= 8                                                       # uniformly random
    with pytest.raises(ValueError, match="no legal action is known"): ismcts(stub("    return 1 / 0\n"), view, 0, 50)
    lucky = stub("    return [rng.randrange(3), rng.randrange(3)]\n")               # nine of ten worlds don't fit or can't be, yet some do
    assert ismcts(lucky, history_of(game("kuhn").program(), [1, 2], 0), 0, 1, seed=1).visits.sum() == 1


def test_wrong_arguments_are_refused():
    kuhn = game("kuhn").program()
    view = history_of(kuhn, [2, 1], 0)
    with pytest.raises(ValueError, match="view"): ismcts(kuhn, view, 0, view="god")
    with pytest.raises(ValueError, match="at least one"): ismcts(kuhn, view, 0, 0)
    for other in (dict(view="root"), dict(use_value=True), dict(sample=Exact(kuhn))):
        with pytest.raises(ValueError, match="search the program"): ismcts(sets_of("kuhn"), view, 0, **other)
    with pytest.raises(ValueError, match="forget"): compile_infosets(game("tic_tac_toe").program())


def test_availability_counts():
    "Honest Kuhn seen by player 0: player 1's bet is legal in half of the worlds only. With the mover's eyes nothing changes."
    rule = "    return [PASS, BET] if current_player(state) >= 0 else []"
    other = "    player = current_player(state)\n    if player < 0:\n        return []\n    return [PASS] if state['cards'][player] == 0 else [PASS, BET]"
    honest = load(game("kuhn").source.replace(rule, other), "honest")
    view = history_of(honest, [1, 0], 0)
    mover = [ismcts(honest, view, 0, 2_000, c=6., seed=3, availability=a).visits.tolist() for a in (False, True)]
    root = [ismcts(honest, view, 0, 2_000, c=6., seed=3, availability=a, view="root").visits.tolist() for a in (False, True)]
    assert mover[0] == mover[1] and root[0] != root[1] and all(sum(v) == 2_000 for v in mover + root)


def test_information_is_worth_something():
    "High stakes, card 3: the search peeks. Filed under the root's knowledge, a bet looks better than it can be."
    rich, usual = game("lantern").program(BET_SIZE=8), game("lantern").program()
    assert ismcts(rich, history_of(rich, [3, 1], 0), 0, 2_500, c=18.).best == 2
    view = history_of(usual, [4, 3, 0], 1)
    values = {eyes: ismcts(usual, view, 1, 2_000, c=6., view=eyes).values[1] for eyes in ("mover", "root")}
    assert values["root"] > 0.6 > 0.2 > values["mover"]


def test_uniform_exploitability():
    for name, known in {"kuhn": 0.458333, "leduc": 2.373611, "lantern": 0.652778, "minnow": 0.5}.items():
        assert exploitability(sets_of(name), sets_of(name).uniform) == pytest.approx(known, abs=1e-6)
    assert best_response(sets_of("lantern"), sets_of("lantern").uniform, 0) == pytest.approx(0.597222, abs=1e-6)
    assert best_response(sets_of("lantern"), sets_of("lantern").uniform, 1) == pytest.approx(0.708333, abs=1e-6)


def test_kuhn_equilibrium_cannot_be_exploited():
    sets, bet = sets_of("kuhn"), {(0, "card 0 moves []"): 1 / 3, (0, "card 1 moves []"): 0, (0, "card 2 moves []"): 1, (0, "card 0 moves [0, 1]"): 0,
                                  (0, "card 1 moves [0, 1]"): 2 / 3, (0, "card 2 moves [0, 1]"): 1, (1, "card 0 moves [0]"): 1 / 3, (1, "card 1 moves [0]"): 0,
                                  (1, "card 2 moves [0]"): 1, (1, "card 0 moves [1]"): 0, (1, "card 1 moves [1]"): 1 / 3, (1, "card 2 moves [1]"): 1}
    policy = np.zeros(sets.uniform.shape)
    for key, i in sets.keys.items(): policy[i, :2] = 1 - bet[key], bet[key]
    assert exploitability(sets, policy) == pytest.approx(0, abs=1e-12) and best_response(sets, policy, 0) == pytest.approx(-1 / 18)


@pytest.mark.parametrize("name", ["kuhn", "lantern"])
def test_openspiel_judges_the_same(name):
    "Exploitability of a random policy and of a search, by OpenSpiel on the program as a Python game."
    pytest.importorskip("pyspiel")
    from open_spiel.python import policy as policies
    from open_spiel.python.algorithms import exploitability as judge
    from llmwatch_course.cwm.spiel import as_open_spiel
    sets = sets_of(name)
    truth = as_open_spiel(sets.program, name)
    for policy in (sets.uniform * np.random.default_rng(0).random(sets.uniform.shape), policy_of(sets, 60, 3.)):
        policy = policy / policy.sum(1, keepdims=True)
        def told(state, policy=policy):
            row = 0
            for a in state.history(): row = sets.tables.next[row, list(sets.tables.actions[row]).index(a)]
            return {a: policy[sets.ids[row], j] for j, a in enumerate(state.legal_actions())}
        assert judge.exploitability(truth, policies.tabular_policy_from_callable(truth, told)) == pytest.approx(exploitability(sets, policy), abs=1e-9)


def test_exploitability_of_the_search():
    "The numbers of the lesson, and that more search is no cure."
    kuhn = {n: np.mean([exploitability(sets_of("kuhn"), policy_of(sets_of("kuhn"), n, 2., seed=s)) for s in range(3)]) for n in (100, 1_000, 10_000)}
    assert all(abs(kuhn[n] - known) < 0.03 for n, known in {100: 0.12, 1_000: 0.16, 10_000: 0.166}.items())
    leduc = {n: exploitability(sets_of("leduc"), policy_of(sets_of("leduc"), n, 13.)) for n in (100, 1_000)}
    assert all(abs(leduc[n] - known) < 0.15 for n, known in {100: 1.21, 1_000: 0.75}.items())


def test_openspiels_bot_spreads_its_visits_alike():
    pyspiel, kuhn = pytest.importorskip("pyspiel"), sets_of("kuhn")
    truth = pyspiel.load_game("kuhn_poker")
    for actions, who in (([0, 1], 0), ([2, 1, 1], 1), ([1, 2, 0], 1)):
        state = truth.new_initial_state()
        for a in actions: state.apply_action(a)
        bots = [pyspiel.ISMCTSBot(s, pyspiel.RandomRolloutEvaluator(1, s), 2., 300, -1, pyspiel.ISMCTSFinalPolicyType.NORMALIZED_VISIT_COUNT, False, False) for s in range(100)]
        theirs = np.mean([[p for _, p in sorted(bot.get_policy(state))] for bot in bots], 0)
        ours = np.mean([ismcts(kuhn, history_of(kuhn.program, actions, who), who, 300, seed=s).policy for s in range(100)], 0)
        assert abs(ours - theirs).max() < 0.03
