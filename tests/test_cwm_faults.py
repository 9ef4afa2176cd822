"""Faults: made by a list of their own, refused by the gate, judged again on transitions that no gate has seen."""
import ast, random
import pytest
from llmwatch_course.cwm import edits
from llmwatch_course.cwm.faults import OPERATORS, Replace, agrees, fresh, faults, gate_of, mutant, places, repair, repairs
from llmwatch_course.cwm.games import Game, game
from llmwatch_course.cwm.spiel import Referee
from llmwatch_course.foundations.sandbox import inspect_source

SIX = ("tic_tac_toe", "connect_four", "mnk", "kuhn", "ladder", "sinkhole")


def clean(name): return ast.unparse(ast.parse(game(name).source)) + "\n"


@pytest.fixture(scope="module")
def applied():
    "One mutant for each operator, from the first game that has a place for it."
    found = {}
    for name in SIX:
        for i, (operator, _, _) in enumerate(places(ast.parse(game(name).source))):
            if operator in found: continue
            tree = ast.parse(game(name).source)
            _, node, news = places(tree)[i]
            found[operator] = name, ast.unparse(ast.fix_missing_locations(Replace(node, news[0]).visit(tree))) + "\n"
    return found


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_changes_the_program_and_the_sandbox_still_admits_it(applied, operator):
    name, source = applied[operator]
    assert source != clean(name)
    inspect_source(source)


def test_a_seed_gives_the_same_mutants_and_the_same_faults():
    def draw(seed): return [mutant(game("ladder").source, rng) for rng in [random.Random(seed)] for _ in range(3)]
    assert draw(1) == draw(1) != draw(2)
    assert faults("ladder", 2, 1, 2) == faults("ladder", 2, 1, 2) != faults("ladder", 2, 2, 2)


@pytest.mark.parametrize("count", (1, 2))
def test_faults_are_refused_by_the_gate_and_say_what_was_done(count):
    gate = gate_of("ladder", 0)
    assert gate(clean("ladder")).ok
    for faulty in (found := faults("ladder", 3, 0, count)):
        assert faulty.source != clean("ladder") and not gate(faulty.source).ok
        assert len(faulty.operators) == count and set(faulty.operators) <= OPERATORS.keys()
    assert len({faulty.source for faulty in found}) == 3


@pytest.mark.parametrize("name", SIX)
def test_the_reference_agrees_on_fresh_transitions(name):
    parts = fresh(name, 240, 0)
    assert sum(len(parents) - 1 for parents, _, _ in parts) >= 240
    assert agrees(game(name).source, name, 240, 0)


@pytest.mark.parametrize("name, old, new", [("tic_tac_toe", ", (2, 4, 6))", ")"), ("ladder", "RUNGS = 15, 4", "RUNGS = 15, 5"), ("kuhn", "return ", "return None and ")])
def test_a_program_with_one_rule_wrong_does_not(name, old, new):
    assert old in game(name).source
    assert not agrees(game(name).source.replace(old, new, 1), name, 600, 0)


def test_a_program_that_raises_does_not_agree(): assert not agrees("def initial_state(): return 1 / 0\n", "ladder", 60, 0)


def test_repaired_implies_passed_and_every_method_has_a_row():
    rows = repairs(("ladder", "kuhn"), 2, 3, 0, 240, jobs=1, others=1)
    assert len(rows) == 8 and {row["method"] for row in rows} == {"REx", "greedy", "conversation", "random edits"}
    for row in rows:
        assert row["calls"] <= 3 and bool(row["source"]) == row["passed"]
        assert row["passed"] or not row["repaired"]


def test_baselines_may_see_fewer_programs():
    rows = repairs(("ladder",), 2, 1, 0, 60, jobs=1, others=2)
    assert [row["method"] for row in rows].count("REx") == 2 and [row["method"] for row in rows].count("greedy") == 1


def test_repair_never_reads_the_right_program_or_the_oracle(monkeypatch):
    "Once the gate has recorded its games, nobody opens the reference any more."
    faulty = faults("ladder", 1, 0)[0]
    gate_of("ladder", 0)(faulty.source)
    def forbidden(*_, **__): raise AssertionError("the proposer's side looked at the answer")
    monkeypatch.setattr(Game, "source", property(forbidden))
    monkeypatch.setattr(Game, "program", forbidden)
    monkeypatch.setattr(Referee, "start", forbidden)
    assert len(repair(faulty, 3, 0, ("REx", "random edits"))) == 2
    named = {a.name for n in ast.walk(ast.parse(open(edits.__file__, encoding="utf-8").read())) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert not named & {"game", "games", "GAMES", "Referee", "spiel", "faults", "OPERATORS"}
