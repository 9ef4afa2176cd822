"""Chapter 6: what the gate cannot see. Exact exposures, the danger law, T12, and the race that the blind program loses."""
import random
from fractions import Fraction
import pytest
from llmwatch_course.cwm.contract import load
from llmwatch_course.cwm.games import game, variant
from llmwatch_course.cwm.inference import total_variation
from llmwatch_course.cwm.spiel import Referee
from llmwatch_course.cwm.trajectories import record, walk
from llmwatch_course.cwm.unit_tests import judge
from llmwatch_course.cwm.verified import allowance, danger, duel, exposure, gate, guided, planner, posterior_of, racers, verdicts

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
RIGHT = game("tic_tac_toe").source


@pytest.mark.parametrize("drop, chance", [((2, 4, 6), Fraction(2, 15)), ((0, 4, 8), Fraction(2, 15)), ((1, 4, 7), Fraction(2, 21))])
def test_exposure_of_a_forgotten_line_is_a_known_fraction(drop, chance):
    mutant = load(variant(RIGHT, LINES=tuple(line for line in LINES if line != drop)))
    assert abs(exposure(game("tic_tac_toe").program(), mutant) - chance) < 1e-12


def test_exposure_of_other_mutants():
    truth = game("tic_tac_toe").program()
    no_draw = load(RIGHT.replace(' or "." not in state["board"]', ""))
    assert abs(exposure(truth, no_draw) - Fraction(8, 63)) < 1e-12 and exposure(truth, truth) == 0
    assert exposure(truth, load(RIGHT.replace("[0.0, 0.0]", "[1, 0]"))) == 1 == exposure(truth, load(RIGHT.replace("return state[", "return 1 / 0 + state[")))


@pytest.mark.parametrize("target, rungs, r", [(12, 3, .12834), (15, 4, .039938), (18, 5, .011698), (21, 6, .0033234)])
def test_exposure_of_the_ladder(target, rungs, r):
    assert exposure(*racers(TARGET=target, RUNGS=rungs)) == pytest.approx(r, rel=1e-4)


def test_one_verdict_is_whether_the_game_ended_on_the_ladder():
    silent, rng = verdicts(300, 4), random.Random(4)
    referee, endings = Referee("ladder"), []
    for _ in range(300):
        *_, (last, _) = walk(referee.start(), rng)
        endings.append(max(last.state["climbs"]) == 4)
    assert silent == [not ladder for ladder in endings] and 1 < sum(endings) < 40


def test_danger_counts_disjoint_gates():
    rows, silent = danger(400, 9, (5, 40)), verdicts(400, 9)
    assert [row["gates"] for row in rows] == [80, 10]
    for row in rows:
        n = row["N"]
        assert row["passed"] == sum(all(silent[i * n:(i + 1) * n]) for i in range(row["gates"])) / row["gates"]
        assert row["expected"] == pytest.approx((1 - .039938)**n, rel=1e-3)
        assert row["sigma"] == pytest.approx((row["expected"] * (1 - row["expected"]) / row["gates"])**.5) and row["deviation"] * row["sigma"] == pytest.approx(abs(row["passed"] - row["expected"]))
    assert danger(400, 9, (5, 40)) == rows and rows[0]["deviation"] < 4.5


def test_gates_that_must_or_cannot_pass():
    truth, blind = racers()
    assert all(judge(truth, t).ok for t in record("ladder", 50, 3))
    assert not guided(planner(blind, 10)) and guided(planner(truth, 10))


@pytest.mark.parametrize("size", [dict(TARGET=12, RUNGS=3), {}])
def test_the_blind_planner_loses_from_both_seats(size): assert duel(**size) == [-1., -1.]


def test_planner_finds_the_only_winning_first_move():
    truth, blind = racers()
    assert planner(truth, 10)(truth.initial_state()) == 0 and planner(blind, 10)(blind.initial_state()) == 3


# ---------- T12
def test_posteriors_by_hand():
    start = Referee("kuhn").start()
    first = [[start.observations[0], None], [{"card": 1, "moves": []}, None], [{"card": 1, "moves": []}, None]]
    assert posterior_of(start, first, 0) == {(1, 0): .5, (1, 2): .5}
    minnow = Referee("minnow").start()
    placed = minnow.apply(1)
    assert posterior_of(minnow, [[minnow.observations[1], None], [placed.observations[1], None]], 1) == pytest.approx({(left,): 1 / 3 for left in range(3)})


def test_allowance_is_kept_by_a_right_sampler_and_broken_by_a_wrong_one():
    rng, exact = random.Random(0), {i: 1 / 5 for i in range(5)}
    for draws in (100, 4000):
        far = []
        for _ in range(100):
            counts = [rng.randrange(5) for _ in range(draws)]
            far.append(total_variation({i: counts.count(i) / draws for i in range(5)}, exact))
        assert max(far) < allowance(5, draws) < 10 * sum(far) / len(far)
    assert total_variation({0: 1.}, {1: 1.}) == 1 and total_variation(exact, exact) == 0


@pytest.mark.parametrize("name", ["kuhn", "leduc", "lantern", "minnow"])
def test_the_gate_weighs_the_sampler(name):
    assert gate(game(name).source, name, 3, 5).passed["T12"] == (3, 3)
    report = gate((game(name).folder/"faulty/skewed.py").read_text(encoding="utf-8"), name, 3, 5)
    assert {f.family for f in report.failures} == {"T12"} and all(len(f.text) <= 1500 for f in report.failures)
