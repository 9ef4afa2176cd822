"""The measurement of chapter 5: every claim at the size of a smoke test, and the lines that a learner who learns nothing must not meet."""
import math
import pytest, torch
from llmwatch_course.ace import measure
from llmwatch_course.ace.baselines import none
from llmwatch_course.ace.measure import Config
from llmwatch_course.foundations.results import PLAYERS, holds, load_claims, read

CPU = torch.device("cpu")
CLAIMS = {name: claim for name, claim in load_claims().items() if claim.topic == "ace"}


@pytest.fixture(scope="module")
def found(): return {r.claim: r for r in measure.run(Config.smoke(), 0, CPU)}


def test_every_claim_of_this_scale_is_measured_and_finite(found):
    assert set(found) == {name for name, claim in CLAIMS.items() if "small" in claim.scales}
    for r in found.values(): assert all(math.isfinite(x) for x in (r.value, *r.baselines.values())) and r.table


def test_roles_say_who_played(found):
    for name, r in found.items():
        assert set(r.roles.values()) <= set(PLAYERS) and set(CLAIMS[name].deciding) <= set(r.roles), name
    assert found["ace-gain"].roles["generator"] == "model" and found["ace-gain"].roles["reflector"] == found["ace-online"].roles["generator"] == "program"


def test_learners_that_learn_nothing_meet_no_line(found):
    assert not holds(CLAIMS["ace-online"].accept, found["ace-online"].baselines["no notes"])
    assert not holds(CLAIMS["ace-nolabel"].accept, found["ace-nolabel"].baselines["nothing"])
    assert not holds(CLAIMS["ace-collapse"].accept, found["ace-collapse"].baselines["deltas"] - found["ace-collapse"].baselines["rewriting with all kept"])
    recorded = read("ace-gain", "small")
    if recorded: assert not holds(CLAIMS["ace-gain"].accept, recorded["baselines"]["shuffled"] - recorded["baselines"]["none"])
    assert not holds(CLAIMS["ace-brevity"].accept, 1.)


def test_both_methods_of_the_bill_know_the_same():
    cost = measure.measure_cost(Config(desks=2), 0)
    ours, theirs = cost.table
    assert ours["lessons"] == theirs["lessons"] > 55 and ours["notes"] == theirs["notes"] and holds(CLAIMS["ace-cost"].accept, cost.value)
    assert measure.step_cost(none(measure.team()), Config(), 0)["lessons"] == 0


def test_rewriting_follows_the_closed_form():
    r = measure.measure_collapse(Config(desks=8), 3)
    assert abs(r.baselines["rewriting"] - r.baselines["rewriting, closed form"]) < .03 and r.baselines["deltas"] == 1


def test_learning_follows_the_closed_form():
    r = measure.measure_online(Config(desks=6), 3)
    assert abs(r.value - r.baselines["closed form"]) < .08


def test_feedback_without_information_teaches_nothing(found):
    beside = found["ace-nolabel"].baselines
    assert beside["nothing"] == 0 and beside["0% of the messages name the call"] <= beside["100% of the messages name the call"] == 1


def test_derived_numbers_are_those_of_the_tables(found):
    assert found["ace-table"].value == pytest.approx(10.6, abs=.05) and found["ace-table"].baselines["finance"] == pytest.approx(8.6, abs=.08)
    assert found["ace-appworld"].value < 0 and found["ace-appworld"].baselines["without warm-up"] < found["ace-appworld"].value


def test_the_same_seed_gives_the_same_numbers(found):
    again = measure.measure_online(Config.smoke(), 0)
    assert again.value == found["ace-online"].value and again.table == found["ace-online"].table
