"The desk: arbitrary, deterministic, the same rules for all splits, and learnable at the speed of the closed form."
import random
from dataclasses import FrozenInstanceError
import pytest
from llmwatch_course.ace.desk import BOOK, KINDS, NAMES, Desk, chance, complaint, known

def test_the_book_has_eight_different_wishes_an_app():
    lines = [line.split(" | ") for text in BOOK.values() for line in text.split("\n") if line]
    assert len(lines) == len(BOOK) * len(KINDS) == 48 and len({topic for topic, _ in lines}) == len({wish for _, wish in lines}) == 48
    nouns = [topic.split()[-1] for topic, _ in lines]
    assert len(set(nouns)) == 48 and all(noun in wish for noun, (_, wish) in zip(nouns, lines)), "the noun is all that both wordings share"
    assert len(set(NAMES)) == len(NAMES) >= 48 and not set(NAMES) & {word for line in lines for part in line for word in part.split()}

@pytest.mark.parametrize("seed", range(4))
def test_a_seed_is_a_desk(seed):
    a, b = Desk(seed), Desk(seed)
    assert a.rules == b.rules and a.tasks(20) == b.tasks(20) and a.tasks(20, seed=1) != a.tasks(20)
    assert a.calls == tuple(sorted({rule.call for rule in a.rules})) and len(a.calls) == 48
    assert sum(x.call == y.call for x, y in zip(a.rules, Desk(seed + 1).rules)) < 8
    assert [(x.app, x.topic) for x in a.rules] == [(y.app, y.topic) for y in Desk(seed + 1).rules]

def test_tasks_are_prefixes_of_longer_streams_and_splits_share_rules_only():
    desk = Desk(0)
    assert desk.tasks(10, "test", 3) == desk.tasks(500, "test", 3)[:10]
    by_split = {split: desk.tasks(600, split) for split in ("train", "validation", "test")}
    assert all({i for task in tasks for i in task.needs} == set(range(48)) for tasks in by_split.values())
    requests = [{task.request for task in tasks} | {task.reworded for task in tasks} for tasks in by_split.values()]
    assert not requests[0] & requests[1] and not requests[0] & requests[2] and not requests[1] & requests[2]
    assert len({task.id for tasks in by_split.values() for task in tasks}) == 1800

@pytest.mark.parametrize("needs", [1, 3, (1, 2, 3)])
def test_gold_passes_and_nothing_else_does(needs):
    desk, rng = Desk(2), random.Random(0)
    for task in desk.tasks(100, needs=needs):
        assert len(task.gold) == len(task.options) == len(task.request.split("\n")) == len(task.reworded.split("\n")) == len(set(task.needs))
        assert desk.run(task, task.gold) == (trace := desk.run(task, list(task.gold))) and trace.passed and not trace.errors
        assert all(gold in menu and len(menu) == 8 and set(menu) <= set(task.calls) for gold, menu in zip(task.gold, task.options))
        calls = list(task.gold)
        calls[rng.randrange(len(calls))] = "x"
        assert not desk.run(task, calls).passed and desk.run(task, calls).errors.count("\n") == 0
        assert not desk.run(task, ()).passed and len(desk.run(task, ()).errors.split("\n")) == len(task.gold) and not desk.run(task, [*task.gold, "x"]).passed

def test_messages_name_the_call_for_the_chosen_share_and_never_as_a_sentence():
    for share in (0, 0.25, 0.5, 1):
        desk = Desk(1, share_named=share)
        errors = [desk.run(desk.task(f"t-{rule.id}", (rule.id,), "Ana"), ["wrong"]).errors for rule in desk.rules]
        assert sum(f"'{rule.call}'" in text for rule, text in zip(desk.rules, errors)) == round(48 * share) == len(desk.named)
        assert not any(rule.sentence in text or f"{rule.topic} in" in text for rule, text in zip(desk.rules, errors))
    assert len({complaint(rule, "a", True).split("'")[0].split(": ", 1)[1] for rule in desk.rules}) == 6, "one message a kind"

def test_zipf_frequencies_sum_to_one_and_are_met():
    desk, even = Desk(3, zipf=1.), Desk(3)
    assert sum(desk.frequency) == pytest.approx(1) and max(desk.frequency) == pytest.approx(48 * min(desk.frequency))
    assert set(even.frequency) == {1 / 48} and even.floor == pytest.approx(1 / 8) and Desk(0, rules=12).floor == pytest.approx(1 / 2)
    tasks = desk.tasks(5000)
    most = max(range(48), key=lambda i: desk.frequency[i])
    assert abs(sum(task.needs == (most,) for task in tasks) / 5000 - desk.frequency[most]) < 5 * (0.25 * 0.75 / 5000)**0.5

def test_sizes_that_do_not_fit_are_refused():
    for wrong in ({"rules": 49}, {"rules": 47}, {"rules": 0}, {"apps": 0}, {"apps": 7}, {"rules": 48, "apps": 5}):
        with pytest.raises(ValueError): Desk(0, **wrong)
    assert len(Desk(0, rules=24, apps=3).menu) == 3 and len(Desk(0, rules=6).rules) == 6
    with pytest.raises(FrozenInstanceError): Desk(0).rules[0].call = "x"

def test_known_is_the_recursion_and_the_fixed_point_of_the_sheet():
    assert known(0) == [0.] and len(known(7)) == 8
    assert known(500)[-1] == pytest.approx(1 - (1 - 1 / 48)**500)
    for p in (0.99, 0.97, 0.9): assert known(9999, p=p)[-1] == pytest.approx((p / 48) / (1 - p + p / 48))
    assert sum(known(191)) / 192 == pytest.approx(.754, abs=5e-4) and sum(known(191, p=.97)) / 192 == pytest.approx(.361, abs=5e-4)

def test_the_die_is_even_and_named():
    rolls = [chance("a", i) for i in range(4000)]
    assert chance("a", 7) == rolls[7] != chance("b", 7) and chance("ab", "c") != chance("a", "bc") and 0 <= min(rolls) < max(rolls) < 1
    assert sum((sum(int(8 * roll) == k for roll in rolls) - 500)**2 / 500 for k in range(8)) < 7 + 5 * 14**0.5
