"""Faults seeded in the library are noticed by the lessons alone; tests/mutants/mutants.toml says which, and by which notebook."""
import ast
import pytest
from conftest import ROOT
from mutants import copy_course, in_module, in_notebook, judged, load

MUTANTS = load()


@pytest.mark.parametrize("chapter", range(9))
def test_nine_in_ten_are_killed(chapter):
    outcomes = {m.id: m.outcome for m in MUTANTS if m.chapter == chapter}
    assert all(outcomes.values()), f"never run: {[i for i, o in outcomes.items() if not o]}; python -m tests.mutants {chapter}"
    killed = sum(o.startswith("killed by ") for o in outcomes.values())
    assert len(outcomes) >= 10 and killed >= 0.9*len(outcomes), f"{killed} of {len(outcomes)}"


@pytest.mark.parametrize("chapter", range(9))
def test_a_mutant_is_one_edit_of_the_code_of_today(chapter):
    for mutant in (m for m in MUTANTS if m.chapter == chapter):
        assert mutant.notebook.startswith(f"nbs/0{chapter}_") and in_notebook(mutant)
        before, after = ((ROOT/mutant.path).read_text("utf-8"), in_module(mutant))
        assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after)), f"{mutant.id} changes no code"


def test_a_mutant_is_killed_here_and_now(tmp_path):
    mutant = next(m for m in MUTANTS if m.id == "passage-end")
    assert judged(mutant, copy_course(tmp_path)) == mutant.outcome
