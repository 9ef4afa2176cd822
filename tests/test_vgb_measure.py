"""The measurement of chapter 8: exact claims whole, sampled ones at the size of a smoke test."""
import math
import pytest, torch
from llmwatch_course.foundations.results import holds, load_claims
from llmwatch_course.vgb import measure
from llmwatch_course.vgb.measure import Config

CPU = torch.device("cpu")

@pytest.fixture(scope="module")
def found(): return {r.claim: r for r in measure.run(Config.smoke(), 0, CPU)}

def test_every_claim_of_this_scale_is_measured_and_finite(found):
    assert set(found) == {c.id for c in load_claims().values() if c.topic == "vgb" and "small" in c.scales}
    for r in found.values(): assert all(math.isfinite(x) for x in (r.value, *r.baselines.values())) and r.table

def test_exact_claims_hold_and_their_baselines_fail():
    claims = load_claims()
    amplify, robust = measure.measure_errors(Config(heights=(12,)))
    assert abs(amplify.value - 0.4366) < 1e-4 and abs(robust.value - 0.0927) < 1e-4 and abs(robust.baselines["steps"] - 167.8) < 0.1
    assert holds(claims["vgb-amplify"].accept, amplify.value) and not holds(claims["vgb-amplify"].accept, amplify.baselines["first leaf"])
    assert holds(claims["vgb-robust"].accept, robust.value) and not holds(claims["vgb-robust"].accept, robust.baselines["action level"])

def test_the_law_of_the_leaves_holds_on_all_kinds_of_trees():
    law = measure.measure_law(Config(trees=200), torch.Generator().manual_seed(5))
    accept = load_claims()["vgb-law"].accept
    assert holds(accept, law.value) and not holds(accept, law.baselines["action level"]) and [r["trees"] for r in law.table] == [50] * 4

def test_smc_gets_at_least_the_expansions_of_the_walk(found):
    for row in found["vgb-frontier"].table: assert row["SMC, expansions"] >= 0.97 * row["walk, expansions"] and row["particles"] >= 2

def test_every_scale_has_a_configuration():
    for scale in ("smoke", "small", "gpu", "paper"): assert isinstance(getattr(Config, scale)(), Config)
