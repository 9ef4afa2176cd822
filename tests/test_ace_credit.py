"Credit: estimates against a simulator whose effects are known, the harmful Reflector, and answers in the notes."
from typing import NamedTuple
import numpy as np
import pytest
from llmwatch_course.ace.adapt import Ace, Frozen, evaluate, online
from llmwatch_course.ace.credit import Effect, Log, Played, effects, hold_out, leaked, leave_one_out, only, paired, player, quarantine
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.desk import Desk, chance
from llmwatch_course.ace.playbook import Bullet, Playbook
from llmwatch_course.ace.roles import ProgramCurator, ProgramGenerator, ProgramReflector

TRUE = {"good": .3, "fair": .1, "rider": 0., "bad": -.2}
BOOK = Playbook([Bullet(id, "others", id) for id in TRUE])

class Job(NamedTuple):
    id: int
    base: float

def jobs(n, seed): return [Job(i + 10_000 * seed, .25 + .4 * chance("base", seed, i)) for i in range(n)]
def play(job, playbook):
    ids = {bullet.id for bullet in playbook.active()}
    return Played(float(chance("luck", job.id) < job.base + sum(TRUE[id] for id in ids)), tuple(id for id in TRUE if id in ids))

def test_hold_out_is_unbiased():
    found = [[effect.effect for effect in effects(hold_out(BOOK, jobs(120, r), play, .4, seed=r)).values()] for r in range(150)]
    bias, se = np.mean(found, 0) - list(TRUE.values()), np.std(found, 0, ddof=1) / len(found)**.5
    assert np.all(np.abs(bias) < 2 * se), (bias, se)

def test_errors_are_the_right_size():
    runs = [effects(hold_out(BOOK, jobs(200, r), play, .4, seed=r)) for r in range(100)]
    for id in TRUE:
        spread, claimed = np.std([run[id].effect for run in runs]), np.mean([run[id].error for run in runs])
        assert .75 < claimed / spread < 1.35

def test_leave_one_out_is_exact_with_the_same_luck_and_keeps_its_budget():
    runs = []
    def counting(job, playbook):
        runs.append(len(playbook))
        return play(job, playbook)
    found = leave_one_out(BOOK, jobs(500, 1), counting, budget=1000)
    assert sum(effect.without for effect in found.values()) == 1000 and runs.count(3) == 1000
    assert max(effect.without for effect in found.values()) - min(effect.without for effect in found.values()) <= 1  # spread evenly
    for id, true in TRUE.items(): assert abs(found[id].effect - true) < 4 * found[id].error
    assert leave_one_out(BOOK, jobs(5, 1), play, budget=0) == {}

def test_hidden_bullets_are_not_rendered():
    seen = []
    log = hold_out(BOOK, jobs(50, 2), lambda job, playbook: Played(float(bool(seen.append(playbook.render()) or 1))), .5, seed=3)
    for text, row in zip(seen, log.shown): assert [f"[{id}]" in text for id in log.ids] == list(row)
    assert .3 < log.shown.mean() < .7 and log.eligible.all() and np.array_equal(hold_out(BOOK, jobs(50, 2), play, .5, seed=3).shown, log.shown)

def test_pinned_and_ineligible_bullets():
    book, _ = apply(BOOK, Delta([Op("PIN", id="good")]))
    log = hold_out(book, jobs(40, 0), play, .5, eligible=lambda job: ["good", "bad"])
    assert log.shown[:, 0].all() and not log.eligible[:, 1].any() and not log.shown[:, 1].any()
    found = effects(log)
    assert np.isnan(found["good"].effect) and np.isnan(found["fair"].effect) and found["bad"].with_it + found["bad"].without == 40
    for share in (0, 1, -.1):
        with pytest.raises(ValueError, match="share"): hold_out(BOOK, jobs(1, 0), play, share)
    assert effects(hold_out(BOOK, [], play))["good"].with_it == 0 and effects(hold_out(Playbook(), jobs(3, 0), play)) == {}

def test_effects_by_hand():
    shown = np.array([[1], [1], [1], [0], [0]], dtype=bool)
    found = effects(Log(["a"], np.ones((5, 1), dtype=bool), shown, np.array([1., 1., 0., 0., 1.])))["a"]
    assert found.effect == pytest.approx(2 / 3 - 1 / 2) and (found.with_it, found.without) == (3, 2)
    assert found.error == pytest.approx((3 / 5 * 2 / 5 / 5 + 2 / 4 * 2 / 4 / 4)**.5)

def test_certainty_needs_more_than_three_tasks():
    lucky = effects(Log(["a"], np.ones((6, 1), dtype=bool), np.array([[1]] * 3 + [[0]] * 3, dtype=bool), np.array([0., 0, 0, 1, 1, 1])))
    assert lucky["a"].effect == -1 and not quarantine(lucky).ops

def test_quarantine_takes_what_is_clearly_harmful():
    found = {"good": Effect(.3, .02, 50, 50), "rider": Effect(-.02, .02, 50, 50), "bad": Effect(-.2, .03, 50, 50), "fair": Effect(float("nan"), float("nan"), 0, 0)}
    cleaner, report = apply(BOOK, quarantine(found))
    assert report.touched == ("bad",) and [bullet.id for bullet in cleaner.active()] == ["good", "fair", "rider"]

def test_only_keeps_order_and_name():
    book = only(Playbook(list(BOOK.bullets), name="desk"), {"bad", "good"})
    assert [bullet.id for bullet in book.active()] == ["good", "bad"] and book.name == "desk"

def test_on_the_desk_without_peeking():
    desk = Desk(0)
    book = Playbook([Bullet(f"r-{rule.id}", "apis", f"To {rule.topic} in {rule.app}, call `{rule.call}`.") for rule in desk.rules])
    play = player(ProgramGenerator(seed=0), desk)
    assert all(play(task, book).passed == 1 for task in desk.tasks(20, "test"))
    found = leave_one_out(book, desk.tasks(60), play, 60)
    assert all(effect.effect > .4 for effect in found.values() if effect.without > 3)

def test_harmful_reflector():
    def done(x, seed):
        desk, generator = Desk(seed), ProgramGenerator(seed=seed)
        ace = Ace(generator, ProgramReflector(wrong_every=x, seed=seed), ProgramCurator(), "label")
        online(ace, desk, desk.tasks(144))
        test = desk.tasks(100, "test")
        return evaluate(ace.frozen(), desk, test).mean(), evaluate(Frozen(generator, Playbook()), desk, test).mean()
    sweep = [np.mean([done(x, seed) for seed in (3, 4)], axis=0) for x in (1, 5, 25, None)]
    with_it, floor = zip(*sweep)
    assert with_it[0] < floor[0] < with_it[1] and list(with_it) == sorted(with_it)

def test_paired_interval():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        base = rng.random(80) < .5
        other = base & (rng.random(80) < .8)  # true gap .1
        _, low, high = paired(base, other, 400, i)
        covered += low <= .1 <= high
    assert covered > 170
    mean, low, high = paired(np.ones((3, 10)), np.zeros((3, 10)))
    assert (mean, low, high) == (1, 1, 1)

class Question(NamedTuple):
    id: str
    gold: tuple[str, ...]

@pytest.mark.parametrize(("content", "found"), [("It is 42.", True), ("It is 420.", False), ("It is `42`", True), ("see a42", False), ("3.14 (pi)", True), ("C++ it is", True), ("Both know shared", False)])
def test_leaked(content, found):
    tasks = [Question("t1", ("42", "shared")), Question("t2", ("shared", "3.14")), Question("t3", ("c++", " "))]
    assert bool(leaked(Playbook([Bullet("a", "others", content)]), tasks)) == found

def test_leaks_of_the_dead_do_not_count():
    book = Playbook([Bullet("a", "others", "It is 42.", status="retired"), Bullet("b", "others", "It is 42.", status="quarantined")])
    assert leaked(book, [Question("t", ("42",)), Question("t2", ())]) == [("b", "42", "t")]
    assert leaked(book, [Question("t", ("42",)), Question("u", ("42",))]) == [] and leaked(book, [Question("t", ("42", "42"))]) == [("b", "42", "t")]
