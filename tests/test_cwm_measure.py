"""The measurement of chapter 6: every claim at the size of a smoke test, and the lines that a player who knows nothing must not meet."""
import math
import pytest, torch
from llmwatch_course.cwm import measure
from llmwatch_course.cwm.measure import Config
from llmwatch_course.foundations.results import holds, load_claims

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(): return {r.claim: r for r in measure.run(Config.smoke(), 0, CPU)}


def test_every_claim_of_this_scale_is_measured_and_finite(found):
    assert set(found) == {c.id for c in load_claims().values() if c.topic == "cwm" and "small" in c.scales}
    for r in found.values(): assert all(math.isfinite(x) for x in (r.value, *r.baselines.values())) and r.table


def test_roles_say_who_wrote_the_programs(found):
    claims = load_claims()
    for name, r in found.items():
        for role in claims[name].deciding: assert r.roles[role] in ("hand-written", "program"), name


def test_the_program_is_legal_and_a_wrong_one_is_not(found):
    assert holds(load_claims()["cwm-legal"].accept, found["cwm-legal"].value)
    wide = measure.measure_legal(Config(games=("tic_tac_toe",), legal=2, faulty=10, legal_simulations=20, jobs=1), 1, [])
    assert wide.baselines["games lost to an illegal move with eight columns"] > 0


def test_players_and_samplers_that_know_nothing_meet_no_line(found):
    claims, depth, hidden = load_claims(), found["cwm-depth"].baselines, found["cwm-hidden"].baselines
    assert not holds(claims["cwm-depth"].accept, depth["random legal move"])
    assert not holds(claims["cwm-hidden"].accept, hidden["right support, wrong frequencies"])
    assert not holds(claims["cwm-tactics"].accept, 0.0)
    value = measure.measure_value(Config(tournament=8, others=2, simulations=(2, 4, 200)), 1)
    assert not holds(claims["cwm-value"].accept, 0.0) and value.baselines["wrong sign, share"] < 0.5


def test_the_paper_table_counts_forfeits(found):
    table = found["cwm-table"]
    assert table.value == table.baselines["claimed"] - table.baselines["decided by forfeit"]
    assert sum(row["decided by"] == "forfeit" for row in table.table) == table.baselines["decided by forfeit"]


def test_the_same_seed_gives_the_same_numbers(found):
    again = measure.measure_hidden(Config.smoke(), 0)
    assert again.value == found["cwm-hidden"].value and again.table == found["cwm-hidden"].table
