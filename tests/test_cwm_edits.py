"""Repair by edits: the list of edits, the rehearsal, what a proposer may know, seeded faults and the second judge."""
import ast
import inspect
import random

import pytest

from llmwatch_course.cwm import edits, faults, grammar, rehearsal
from llmwatch_course.cwm.edits import EditProposer, clues, weights
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.grammar import parsed, reach
from llmwatch_course.cwm.refine import Candidate, rex
from llmwatch_course.cwm.rehearsal import at, expected, rehearsed, reported, score
from llmwatch_course.cwm.trajectories import record
from llmwatch_course.cwm.unit_tests import Failure, Report, check
from llmwatch_course.foundations.sandbox import Reply

LADDER = game("ladder").source
GAMES = record("ladder", 5, 0)


def clean(source): return ast.unparse(ast.parse(source)) + "\n"
def judged(source): return check(source, GAMES, seconds=1.0)


@pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four", "ladder", "sinkhole", "kuhn", "mnk"])
def test_every_edit_parses_and_leaves_no_trace(name):
    program = parsed(game(name).source)
    text = ast.unparse(program.tree)
    for edit in random.Random(0).sample(program.edits, 150): ast.parse(edit.apply(program.tree))
    assert ast.unparse(program.tree) == text


@pytest.mark.parametrize("old, new", [("TARGET, RUNGS = 15", "TARGET, RUNGS = 16"), (">=", ">"), (" or climbs", " and climbs"), ("1 - player", "1 + player"), ("== CLIMB", "!= CLIMB"),
                                      ('list(state["scores"])', 'state["scores"]'), ("climbs[player] += 1", "climbs[player] -= 1"), ("state[\"player\"]", "state[\"winner\"]")])
def test_the_list_can_undo_small_faults(old, new):
    assert old in LADDER
    program, right = parsed(LADDER.replace(old, new, 1)), clean(LADDER)
    assert any(ast.unparse(ast.parse(edit.apply(program.tree))) == ast.unparse(ast.parse(right)) for edit in program.edits)


def test_no_program_no_edits():
    for text in ("def f(:", "", "x = (" * 500, "\0"): assert not (parsed(text) and parsed(text).edits)
    assert EditProposer().propose(Candidate("def f(:", -1, Report([])), Failure("T0", "load()"), random.Random(0)) == "def f(:"


def test_reach_follows_calls_and_constants():
    near = reach(parsed(game("sinkhole").source), "legal_actions")
    assert near["legal_actions"] == 1 > near["moves"] > near["NEIGHBOURS"] > near["neighbours"] and "returns" not in near
    assert {"neighbours", "NEIGHBOURS", "SIZE"} <= parsed(game("sinkhole").source).fixed


def test_the_report_is_all_that_is_read():
    failure = Failure("T1", 'T1 transition · ladder\napply_action({"scores": [3, 3]}, 0)\nclimbs: expected [1, 0], got [2, 0]\nwinner: expected null, got 1')
    case = reported(failure)
    assert (case.name, case.arguments, case.wanted) == ("apply_action", [{"scores": [3, 3]}, 0], [("climbs", [1, 0]), ("winner", None)])
    assert clues(failure).fields == {"climbs", "winner"} and clues(failure).called == "apply_action"
    assert reported(Failure("T8", failure.text)) is None and reported(Failure("T1", "f({…)\nexpected 1, got 2")) is None
    whole = Failure("T4", "T4 returns · ladder\nreturns({})\nexpected [0.0, 0.0], got null")
    assert expected(whole) == "[0.0, 0.0]" and expected(failure) == "None" == expected(None)


def test_places_and_scores():
    assert at({"a": [1, {"b": 2}]}, "a[1].b") == 2 and at(3, "") == 3
    case = reported(Failure("T1", "x\nf(1)\na: expected 1, got 2\nb: expected 1, got 2"))
    assert [score(case, Reply({"a": a, "b": b}, None, False)) for a, b in ((1, 1), (1, 2), (2, 2))] == [1, 0.75, 0.5]
    assert score(case, Reply(None, "boom", False)) == 0 and score(case, Reply(7, None, False)) == 0.5
    pure = reported(Failure("T7", "T7 purity\nf(1)\nexpected: the arguments stay"))
    assert score(pure, Reply(7, None, True)) < score(pure, Reply(7, None, False)) == 1


def test_rehearsal_agrees_with_running_each_edit():
    faulty = LADDER.replace("climbs[player] += 1", "climbs[player] += 2")
    program = parsed(faulty)
    failure = next(f for f in judged(faulty).failures if f.family == "T1")
    case, sample = reported(failure), [e for e in program.edits if e.site.function == "apply_action" and e.kind in ("step", "comparison", "exchange", "sign")]
    kept = {id(edit) for edit, _ in rehearsed(program, sample, case, [])}
    truth = rehearsal.Worker
    for edit in sample[::3]:
        with truth(edit.apply(program.tree)) as worker: reply = worker.call(case.name, *case.arguments)
        assert (score(case, reply) == 1) == (id(edit) in kept), edit.kind


def test_endless_edits_do_not_stop_the_others():
    source = game("connect_four").source
    program = parsed(source.replace("y + dy", "y - dy", 1))
    loops = [e for e in program.edits if e.site.function == "run"]
    failure = check(ast.unparse(program.tree), record("connect_four", 3, 0), seconds=1.0).failures[0]
    assert rehearsed(program, loops, reported(failure), [])


def test_weights_follow_the_clues():
    program = parsed(LADDER)
    w = weights(program, Failure("T1", "T1 transition · ladder\napply_action({}, 0)\nwinner: expected 1, got null"))
    def mean(where): return sum(v for e, v in zip(program.edits, w) if where(e.site)) / sum(1 for e in program.edits if where(e.site))
    assert mean(lambda s: s.function == "apply_action") > 5 * mean(lambda s: s.function == "observation")
    assert mean(lambda s: s.function == "apply_action" and "winner" in s.words) > mean(lambda s: s.function == "apply_action" and "winner" not in s.words)


def test_the_proposer_never_repeats_itself_and_keeps_to_its_seed():
    faulty = LADDER.replace("climbs[player] += 1", "climbs[player] += 2")
    failure = next(f for f in judged(faulty).failures if f.family == "T1")
    def said(seed, n=12):
        proposer, rng = EditProposer(informed=False), random.Random(seed)
        return [proposer.propose(Candidate(faulty, -1, judged(faulty)), failure, rng) for _ in range(n)]
    assert len(set(said(1))) == 12 and said(1) == said(1) != said(2)


def test_the_proposer_cannot_look_elsewhere():
    for module in (edits, grammar, rehearsal):
        text = inspect.getsource(module)
        assert not any(word in text for word in ("cwm.games", "cwm.spiel", "cwm.trajectories", "cwm.faults", "reference", "pyspiel", "open("))


def test_repairs_end_to_end():
    faulty = LADDER.replace("climbs[player] == RUNGS", "climbs[player] != RUNGS")
    tree = rex(faulty, EditProposer(), judged, budget=60, seed=1)
    assert tree.solved and tree.calls <= 60 and judged(tree.nodes[-1].source).ok


# faults

def test_faults_are_refused_by_the_gate_and_follow_the_seed():
    found = faults.faults("tic_tac_toe", 4, 3, 1) + faults.faults("tic_tac_toe", 2, 3, 2)
    gate = faults.gate_of("tic_tac_toe", 3)
    assert all(not gate(f.source).ok for f in found) and [len(f.operators) for f in found] == [1] * 4 + [2] * 2
    assert len({f.source for f in found}) == 6 and all(o in faults.OPERATORS for f in found for o in f.operators)
    assert [f.source for f in faults.faults("tic_tac_toe", 4, 3, 1)] == [f.source for f in found[:4]]


def test_the_two_lists_are_independent():
    text = inspect.getsource(faults)
    assert "grammar" not in text.split("OPERATORS:")[0].replace("edits import EditProposer", "") and "faults" not in inspect.getsource(grammar)


@pytest.mark.parametrize("operator", list(faults.OPERATORS))
def test_every_operator_applies_somewhere_and_parses(operator):
    places = [(ast.unparse(node), news) for name in ("tic_tac_toe", "ladder", "kuhn", "sinkhole") for kind, node, news in faults.places(ast.parse(game(name).source)) if kind == operator]
    assert places


def test_the_second_judge():
    for name in ("tic_tac_toe", "kuhn"):
        source = game(name).source
        assert faults.agrees(source, name, 900, 1)
    wrong = game("tic_tac_toe").source.replace(", (2, 4, 6)", "")
    assert wrong != game("tic_tac_toe").source and not faults.agrees(wrong, "tic_tac_toe", 900, 1)
    assert sum(len(parents) - 1 for parents, _, _ in faults.fresh("tic_tac_toe", 900, 1)) >= 900


def test_repairs_give_a_row_for_each_program_and_method():
    rows = faults.repairs(("tic_tac_toe",), programs=2, budget=3, seed=1, transitions=120, jobs=1)
    assert {row["method"] for row in rows} == set(faults.METHODS) and all(row["calls"] <= 3 for row in rows)
    assert all(row["passed"] or not row["repaired"] for row in rows) and isinstance(judged(LADDER), Report)
