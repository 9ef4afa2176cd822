"""The measurement of chapter 4: counting whole, trained arms at the size of a smoke test."""
import math
from dataclasses import replace
import numpy as np
import pytest, torch
from llmwatch_course.foundations.results import holds, load_claims
from llmwatch_course.trm import measure
from llmwatch_course.trm.measure import Arm, Config, Hard
from llmwatch_course.trm.recursion import parameters_of
from llmwatch_course.trm.train import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(): return {r.claim: r for r in measure.run(Config.smoke(), 0, CPU)}


def test_every_claim_of_this_scale_is_measured_and_finite(found):
    assert set(found) == {c.id for c in load_claims().values() if c.topic == "trm" and "small" in c.scales}
    for r in found.values(): assert all(math.isfinite(x) for x in (r.value, *r.baselines.values())) and r.table


def test_models_that_learnt_nothing_meet_no_line(found):
    claims = load_claims()
    for name in ("trm-vs-plain", "trm-vs-size", "trm-vs-hrm", "trm-llm", "trm-maze"): assert not holds(claims[name].accept, found[name].value), name


def test_sizes_are_those_of_the_papers(found):
    count = {row["model"]: row["parameters"] for row in found["trm-size"].table}
    assert count["TRM, attention"] == 6_828_034 and count["TRM, attention-free"] == 5_028_866 and count["HRM"] == 27_275_266 and count["TRM for ARC"] == 6_829_058
    assert holds(load_claims()["trm-size"].accept, found["trm-size"].value)


def test_arms_have_the_parameters_that_the_claims_speak_of():
    of = lambda name, maze=False: parameters_of(measure.model_of(Arm(name, maze, 1), Config()))
    assert of("plain") == of("TRM") and of("plain", True) == of("TRM", True)
    assert abs(of("HRM") / of("TRM") - 1) < 0.02 and of("wide") >= 20 * of("TRM")


def test_no_test_board_is_an_image_of_a_learnt_one():
    from llmwatch_course.trm.sudoku import Box, disjoint, from_tokens
    data, tokens, _ = measure.puzzles_of(Arm("TRM", False, 1), replace(Config(), puzzles=(60, 20)), 3)
    assert disjoint(from_tokens(data.questions), from_tokens(tokens), Box(2, 3)).all()


def test_processes_change_nothing():
    calls = [(measure.learn, Arm(name, False, 2), Config.smoke(), 0, CPU) for name in ("TRM", "plain")]
    alone, pooled = measure.side_by_side(calls, 1), measure.side_by_side(calls, 2)
    for a, b in zip(alone, pooled, strict=True): assert {k: v for k, v in a.items() if k != "CPU seconds"} == {k: v for k, v in b.items() if k != "CPU seconds"}


def test_the_language_model_keeps_the_givens_and_answers_digits():
    from llmwatch_course.trm.sudoku import Box, generate
    p = generate(3, Box(2, 3), 5)
    full = measure.ask_llm(p.answers[:2], p.answers[:2], (p.puzzles[2], p.answers[2]), CPU)
    assert full["exact"] == full["cells"] == 1.0  # nothing blank: only givens
    asked = measure.ask_llm(p.puzzles[:2], p.answers[:2], (p.puzzles[2], p.answers[2]), CPU)
    assert asked["cells"] >= (p.puzzles[:2] > 0).mean() and 0 <= asked["blanks"] <= 1


def test_hard_boards_go_on_command_by_command(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "home", lambda: tmp_path)
    hard = Hard(width=16, recipe=Recipe(batch=4), minutes=0.0005, chunk=1, chosen=2, tests=3, restarts=2)
    first = measure.measure_hard(hard, 0, CPU)
    assert [r.claim for r in first] == ["trm-sudoku"]
    second = measure.measure_hard(hard, 0, CPU)
    assert [r.claim for r in second] == ["trm-sudoku", "trm-vs-hrm"]
    third = measure.measure_hard(hard, 0, CPU)[0]
    assert [row["arm"] for row in third.table] == ["TRM", "HRM", "TRM"] and third.table[2]["minutes"] > third.table[0]["minutes"]
    assert third.value == third.table[0]["after 16"]  # the line is about the first training


def test_every_scale_has_a_configuration():
    for scale in ("smoke", "small", "gpu", "paper"): assert isinstance(getattr(Config, scale)(), Config)
    assert Config.gpu().hard and np.isclose(Config.gpu().hard.minutes, 6)
