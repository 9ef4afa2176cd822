"""What the library does is what the exercises of chapter 6 ask for."""
import random
from types import SimpleNamespace
import numpy as np, pytest
from llmwatch_course.cwm import checks, ismcts, mcts, refine, tables, verified
from llmwatch_course.cwm.contract import load, random_game
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.mistakes import RIGHT


def test_thompson_picker():
    def answer(rates, refined, C, rng):
        return refine.pick([refine.Candidate("", -1, SimpleNamespace(rate=h), n) for h, n in zip(rates, refined, strict=True)], C, rng)
    checks.check_pick(answer)


def test_back_up():
    program = SimpleNamespace(current_player=lambda mover: mover, legal_actions=lambda mover: [], chance_outcomes=lambda mover: [])
    def answer(path, returns):
        nodes = [None]
        for node in path:
            nodes.append(mcts.Node(program, node.mover, nodes[-1]))
            nodes[-1].N, nodes[-1].W = node.N, node.W
        mcts.back_up(nodes[-1], returns)
        for node, mine in zip(path, nodes[1:], strict=True): node.N, node.W = mine.N, mine.W
    checks.check_backup(answer)


def test_tables():
    "The library keeps the j-th legal action in column j; here column a holds action a."
    def answer(program):
        t = tables.compile_tables(program)
        following = np.full((len(t.mover), t.actions.max() + 1), -1)
        chance = np.zeros(following.shape)
        for s, n in enumerate(t.count):
            following[s, t.actions[s, :n]] = t.next[s, :n]
            if t.mover[s] == -1: chance[s, t.actions[s, :n]] = t.chance[s, :n]
        return {"next": following, "chance": chance, "player": t.mover, "returns": t.returns}
    checks.check_tables(answer)


@pytest.mark.parametrize("name", ["lantern", "minnow"])
def test_samplers_of_the_reference_programs(name): getattr(checks, f"check_{name}")(game(name).program().resample_history)


def chosen(visits, total, available, legal, c, counts):
    "The library's choice; where actions are untried it draws one, and here that is the first."
    info = ismcts.Info()
    info.visits, info.N, info.W, info.legal = sum(visits.values()), {a: n for a, n in visits.items() if n}, total, available
    return ismcts.choose(info, legal, mcts.logs(1000), c, counts, SimpleNamespace(below=lambda n: 0))


def test_availability():
    def answer(visits, total, available, legal, c):
        available.update(legal)
        return chosen(visits, total, available, legal, c, True)
    checks.check_availability(answer)
    with pytest.raises(AssertionError, match="fixed legal sets"): checks.check_availability(lambda *books: chosen(*books, False))


def test_the_exam_of_a_lie_knows_ladder_race():
    blind = (game("ladder").folder/"faulty/blind.py").read_text()
    r, *lost, _ = checks._examined(blind)
    assert abs(r - .039938) < 1e-6 and lost == [1, 1]
    assert checks._examined(game("ladder").source)[:3] == [0, 0, 1]
    true, mine = game("ladder").program(), {"scores": [3, 14], "climbs": [3, 0], "player": 0, "winner": None}
    for action in range(4): assert checks.truth(mine, action) == true.apply_action(mine, action)


def test_the_exam_agrees_with_games_that_are_played():
    "The share of random games that show a lie, counted, beside the exact one; with a lie that is not rare."
    truth, source = game("ladder").program(), checks.WRONG["check_lie"][1][0](game("ladder").source)
    lie, rng, shown, n = load(source), random.Random(0), 0, 4000
    for _ in range(n):
        state = truth.initial_state()
        for action in random_game(truth, rng):
            after = truth.apply_action(state, action)
            if lie.apply_action(state, action) != after: shown += 1; break
            state = after
    r = checks._examined(source)[0]
    assert abs(shown / n - r) < 4*(r*(1 - r) / n)**.5


def test_right_lies_do_lie():
    for lie in RIGHT["check_lie"]:
        r, *lost, _ = checks._examined(lie(game("ladder").source))
        assert 0 < r < .0027 and sum(lost) / 2 >= .6
        assert abs(r - verified.exposure(game("ladder").program(), load(lie(game("ladder").source)))) < 1e-12


def test_a_bad_text_is_one_sentence():
    with pytest.raises(AssertionError, match="stops with an error: .*no attribute"): checks.check_lie(lambda rules: "")
    with pytest.raises(AssertionError, match="the sandbox refuses your program: line 1"): checks.check_lie(lambda rules: "open('x')")


def test_a_state_that_claims_to_equal_anything_is_seen():
    liar = "\n\nclass Same(dict):\n    def __eq__(self, other):\n        return True\n\n\ntrue_move = apply_action\n\n\ndef apply_action(state, action):\n    return Same(true_move(state, action))\n"
    assert checks._examined(game("ladder").source + liar)[0] == 1
