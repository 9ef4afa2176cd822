"""Chapter 6: recorded games, the tests made from them, and the faulty programs that they must refuse."""
import json, random, re, subprocess, sys
import pytest
from conftest import ROOT
from llmwatch_course.cwm.contract import load
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.reports import FAMILIES, Report, differences, equal
from llmwatch_course.cwm.spiel import Referee
from llmwatch_course.cwm.trajectories import closed, record, walk
from llmwatch_course.cwm.unit_tests import check, judge, questions
from llmwatch_course.cwm.verified import gate

FIXTURES = {p.parent.parent.name: sorted(p.parent.glob("*.py")) for p in sorted((ROOT/"data/fixtures/cwm").glob("*/faulty/*.py"))}
GAMES = sorted(FIXTURES)
KEYS = ["id", "parent", "provenance", "date", "faults", "answers", "undetectable"]
RIGHT = game("tic_tac_toe").source


def header(text): return dict(re.findall(r"^# (\w+): *(.*?) *$", text.split('"""')[0], re.M))
def words(text): return [] if text == "none" else re.split(r"[ ,]+", text)
def fixture(name, fault): return (game(name).folder/"faulty"/f"{fault}.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def films(): return record("tic_tac_toe", 5, 3)


# ---------- trajectories
def test_same_seed_same_games():
    assert [t.steps for t in record("leduc", 3, 5)] == [t.steps for t in record("leduc", 3, 5)] != [t.steps for t in record("leduc", 3, 6)]


def test_steps_are_plain_data_and_end_at_the_end():
    for name in GAMES:
        for t in record(name, 2, 1):
            assert json.loads(json.dumps(t.steps)) == t.steps
            assert t.steps[-1]["player"] == -4 and t.steps[-1]["action"] is None and all(s["action"] is not None for s in t.steps[:-1])
            assert len(t.steps) <= game(name).longest + 1


@pytest.mark.parametrize("name", ["kuhn", "minnow"])
def test_closed_deck_hides_the_truth_and_keeps_the_players_history(name):
    for t in record(name, 20, 2):
        for player in (0, 1):
            c = closed(t, player)
            assert c.history(len(t.steps) - 1, player) == t.history(len(t.steps) - 1, player)
            for step in c.steps:
                assert step["state"] is None and step["chance"] is None and step["observations"][1 - player] is None and step["returns"][1 - player] is None
                assert step["player"] in (player, None) and (step["action"] is None or step["player"] == player)
    assert [s["observations"] for t in record(name, 2, 9, "closed", 1) for s in t.steps] == [s["observations"] for t in record(name, 2, 9) for s in closed(t, 1).steps]


def test_a_wrong_deck_is_one_sentence():
    with pytest.raises(ValueError, match="open.*closed"): record("kuhn", deck="half")


@pytest.mark.parametrize("name", ["kuhn", "leduc"])
def test_own_histories_are_the_same_partition_as_open_spiels_information_states(name):
    pytest.importorskip("pyspiel")
    rng, key_of, history_of = random.Random(0), {}, {}
    for _ in range(300):
        seen = [[], []]
        for node, action in walk(Referee(name).start(), rng):
            for player in (0, 1):
                if node.player == player:
                    mine, spiel = (player, json.dumps([*seen[player], node.observations[player]])), (player, node.information[player])
                    assert key_of.setdefault(mine, spiel) == spiel and history_of.setdefault(spiel, mine) == mine
                seen[player].append([node.observations[player], action if node.player == player else None])


# ---------- comparing
def test_equal_is_the_equality_of_json_with_room_for_rounding():
    for a, b in [(1, 1.0), (0.0, -0.0), ([0.1 + 0.2], [0.3]), ({"a": None}, {"a": None})]: assert equal(a, b)
    for a, b in [(1, 1.001), ([1], [1, 1]), ({"a": 1}, {"a": 1, "b": 2}), ("1", 1), (None, 0), (0.0, float("nan")), ([], {})]: assert not equal(a, b)


def test_only_what_differs_is_reported():
    assert differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]}) == ["b: expected [1, 2], got [1, 3]"]
    assert differences({"board": list("......")}, {"board": list("...x..")}) == ['board[3]: expected ".", got "x"']
    assert differences({"a": 1}, {"a": 1.0}) == []


# ---------- references and fixtures
@pytest.mark.parametrize("name", GAMES)
def test_the_reference_passes_everything(name):
    report = check(game(name).source, record(name, 5, 11), 11)
    assert report.ok and report.rate == 1 and not report.failures
    hidden = {"T10", "T11"} if game(name).hidden else set()
    assert set(report.passed) == {"T0", "T1", "T2", "T3", "T4", "T5", "T7", "T8", "T9"} | hidden | ({"T6"} if game(name).chance else set())
    assert all(judge(game(name).program(), t).ok for t in record(name, 5, 12))


@pytest.mark.parametrize("name", GAMES)
def test_the_fixtures_form_a_graph(name):
    texts = {p.stem: p.read_text(encoding="utf-8") for p in FIXTURES[name]}
    heads = {id: header(text) for id, text in texts.items()}
    for id, head in heads.items():
        assert list(head) == KEYS and head["id"] == id and head["provenance"] == "hand-written"      # no pass rate is stored
        assert head["undetectable"] in ("no", "yes", "rate") and (head["parent"] in heads or head["parent"] == "none")
        assert set(words(head["answers"])) <= set(FAMILIES)
    assert [id for id, head in heads.items() if head["parent"] == "none"] == ["crash"]
    assert {"crash", "sign", "mutates", "correct"} <= set(heads)
    recorded = record(name, 5, 21)
    for id, head in heads.items():
        if not words(head["answers"]): continue
        assert {f.family for f in check(texts[head["parent"]], recorded, 21, seconds=0.5).failures} & set(words(head["answers"])), f"{id} answers what its parent does not fail"


@pytest.mark.parametrize("name", GAMES)
def test_the_gate_refuses_every_fault_that_can_be_seen(name):
    for path in FIXTURES[name]:
        text = path.read_text(encoding="utf-8")
        head = header(text)
        if head["undetectable"] == "no": assert gate(text, name, 5, 31, seconds=0.5).ok == (head["faults"] == "none"), f"{name} {path.stem}"
        if head["undetectable"] == "rate": assert not all(judge(load(text), t).ok for t in record(name, 150, 31)), f"{name} {path.stem}"


# ---------- bad programs
BAD = {"no Python": "def (", "an import": "import os\n" + RIGHT, "an error at once": "x = 1 / 0\n" + RIGHT, "nothing": "", "a missing function": RIGHT.replace("def returns", "def retruns"),
       "too few arguments": RIGHT.replace("def returns(state)", "def returns()"), "never ends": "while True:\n    pass\n", "a set": RIGHT.replace('return {"board": board', 'return {"board": set(board)'),
       "no number": RIGHT.replace("return [0.0, 0.0]", "return [float('nan'), 0.0]"), "no list": RIGHT.replace("def legal_actions(state):", "def legal_actions(state):\n    return None\ndef old(state):"),
       "much": RIGHT.replace("def returns(state):", "def returns(state):\n    return ['x' * 10**8]\ndef old(state):"), "memory": RIGHT.replace("def returns(state):", "def returns(state):\n    return len([0] * 10**10)\ndef old(state):"),
       "itself": RIGHT.replace("def returns(state):", "def returns(state):\n    return returns(state)\ndef old(state):")}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_program_gives_a_report(films, what):
    report = check(BAD[what], films, seconds=0.5)
    assert isinstance(report, Report) and not report.ok and 0 <= report.rate < 0.95 and report.failures
    assert all(len(f.text) <= 1500 and f.family in FAMILIES for f in report.failures)
    assert sum(total for _, total in report.passed.values()) >= len(questions(films[0])) and str(report.table())


def test_an_error_shows_where_it_happened(films):
    failures = check(fixture("tic_tac_toe", "crash"), films).failures
    assert failures and all("in winner: " in f.text and "IndexError" in f.text for f in failures if f.family != "T9")


def test_reports_stay_short_in_large_games():
    for name, fault in (("army5x5a", "not_mirrored"), ("connect_four", "no_wins"), ("leduc", "leak"), ("minnow", "blind_sampler")):
        failures = check(fixture(name, fault), record(name, 5, 3), 3).failures
        assert failures and all(len(f.text) <= 1500 for f in failures)


def test_equality_of_its_own_does_not_help():
    "A program that scribbles on its argument, and hides it behind an object that equals everything, fails T7 at the gate."
    evil = ("class Same:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n"
            + RIGHT.replace("def returns(state):\n", 'def returns(state):\n    state["player"] = Same()\n'))
    report = gate(evil, "tic_tac_toe", 5, 1)
    assert not report.ok and any(f.family == "T7" for f in report.failures)


def test_what_is_drawn_from_a_hash_is_seen_by_two_processes():
    text = RIGHT.replace("return [cell for cell in range(9)", "return [int(t) for t in {str(cell) for cell in range(9)}").replace('if state["board"][cell] == "."]', 'if state["board"][int(t)] == "."]')
    assert check(text, record("tic_tac_toe", 5, 2)).ok and {f.family for f in gate(text, "tic_tac_toe", 5, 2).failures} == {"T8"}


# ---------- check and judge, film
@pytest.mark.parametrize("name", ["tic_tac_toe", "kuhn", "ladder"])
def test_judge_says_what_check_says(name):
    recorded = record(name, 3, 8)
    for path in FIXTURES[name]:
        text = path.read_text(encoding="utf-8")
        if path.stem in ("loop", "forbidden_import", "stub"): continue
        if "def chance_outcomes" not in text: continue                                                # (it cannot be loaded)
        written_down = json.dumps([t.steps for t in recorded])
        inside, outside = [judge(load(text), t, i).outcomes for i, t in enumerate(recorded)], check(text, recorded).outcomes
        assert json.dumps([t.steps for t in recorded]) == written_down, "a program has changed the record"
        for number, outcomes in enumerate(inside):
            alike = [[(o.family, o.step, o.failure is None) for o in some if o.family != "T11"] for some in (outcomes, [o for o in outside if o.trajectory == number])]
            assert alike[0] == alike[1] or path.stem in ("random_order", "own_random")            # (a generator of the module is elsewhere each time)


def test_a_film_strip_carries_the_marks(films):
    import matplotlib.pyplot as plt
    from llmwatch_course.cwm.trajectories import film
    marks = check(fixture("tic_tac_toe", "no_wins"), films).marks(0)
    strip, bare = film(films[0], marks, FAMILIES), film(films[0])
    assert len(strip.axes) == len(films[0].steps) + 1 and len(bare.axes) == len(films[0].steps)
    hidden = film(closed(record("kuhn", 1, 0)[0], 1))
    assert len(hidden.axes) >= 5
    for figure in (strip, bare, hidden): plt.close(figure)


def test_the_tests_need_neither_torch_nor_open_spiel():
    code = ("import sys; sys.modules.update(dict.fromkeys(['torch', 'pyspiel', 'numba', 'joblib', 'openai', 'matplotlib']))\n"
            "from llmwatch_course.cwm.unit_tests import check\nfrom llmwatch_course.cwm import trajectories, verified\n"
            "from llmwatch_course.cwm.games import game\nassert check(game('ladder').source, trajectories.record('ladder', 2)).ok")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
