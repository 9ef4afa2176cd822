"""Each baseline in the loop: closed forms, budgets, what it may see, what it costs, and a frozen copy that learns nothing."""
import numpy as np
import pytest
from llmwatch_course.ace.adapt import Ace, evaluate, online
from llmwatch_course.ace.baselines import Team, book, dc_cu, dc_rs, full_rewrite, icl, none, oracle, plain, random_evict, solution, window
from llmwatch_course.ace.collapse import appending, extractive, leaky, learned
from llmwatch_course.ace.desk import Desk
from llmwatch_course.ace.feedback import Execution, Label, Nothing, Verdict
from llmwatch_course.ace.playbook import tokens
from llmwatch_course.ace.refine import Policy
from llmwatch_course.ace.roles import Advice, ProgramCurator, ProgramGenerator, ProgramReflector, Usage, sentence, wishes


def team(seed=0): return Team(ProgramGenerator(seed=seed), ProgramReflector(), ProgramCurator())
def truth(desk): return [("apis", rule.sentence) for rule in desk.rules]
def advice(task, calls): return [("apis", sentence(Advice(wish, call, True))) for wish, call in zip(wishes(task.request), calls)]
def share(learner, desk): return len({rule.sentence for rule in desk.rules} & {b.content for b in learner.playbook.active()}) / len(desk.rules)


BUDGETED = {"icl": lambda budget, level="execution": icl(team(), 99, advice, level, budget), "window": lambda budget, level="execution": window(team(), 99, level, budget),
            "random": lambda budget, level="execution": random_evict(team(), budget, level), "rewrite": lambda budget, level="execution": full_rewrite(team(), appending(), level, budget),
            "dc_cu": lambda budget, level="execution": dc_cu(team(), appending(), level, budget), "dc_rs": lambda budget, level="execution": dc_rs(team(), 9, level=level, budget=budget)}


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [5, 60, 300])
def test_the_budget_holds_after_every_step(name, budget):
    desk = Desk(1)
    learner = BUDGETED[name](budget)
    steps = online(learner, desk, desk.tasks(50, needs=(1, 2))).steps
    assert max(step.tokens for step in steps) <= budget and tokens(learner.playbook.render()) <= budget
    if budget == 300: assert len(learner.playbook) > 1


@pytest.mark.parametrize("name", BUDGETED)
def test_a_frozen_copy_predicts_and_never_learns(name):
    desk = Desk(2)
    tasks = desk.tasks(60)
    learner = BUDGETED[name](10**6, "label")
    online(learner, desk, tasks)
    twin, early = learner.frozen(), learner.frozen(0)
    before = learner.playbook.digest()
    first = [twin.predict(task).calls for task in tasks]
    assert sum(call == task.gold for call, task in zip(first, tasks)) == 60
    for task in tasks: assert twin.learn(task, twin.predict(task), desk.run(task, task.gold)) == Usage()
    assert [twin.predict(task).calls for task in tasks] == first and learner.playbook.digest() == before
    early.predict(tasks[0])
    assert len(early.playbook) == 0


@pytest.mark.parametrize("name", BUDGETED)
def test_nothing_is_learned_from_nothing(name):
    desk = Desk(3)
    learner = BUDGETED[name](10**6, "none")
    online(learner, desk, desk.tasks(40))
    assert len(learner.playbook) == 0


def test_floor_and_ceiling():
    desk = Desk(4)
    tasks = desk.tasks(400)
    assert evaluate(oracle(team(), truth(desk)), desk, tasks).all()
    assert abs(evaluate(none(team()), desk, tasks).mean() - desk.floor) < 4 * (desk.floor / 400)**0.5
    half = oracle(team(), truth(desk), budget=300)
    assert 0 < len(half.playbook) < 48 and tokens(half.playbook.render()) <= 300


@pytest.mark.parametrize("p", [1., 0.97, 0.9])
def test_rewriting_follows_the_closed_form(p):
    found = []
    for seed in range(10):
        desk = Desk(seed)
        online(learner := full_rewrite(team(seed), leaky(p, seed)), desk, desk.tasks(96, seed=seed))
        found.append(share(learner, desk))
    assert abs(np.mean(found) - learned(48, p, 96)) < 4 * np.std(found, ddof=1) / 10**0.5


def test_without_loss_rewriting_knows_what_deltas_know():
    "And is told as much; only the bill differs."
    desk = Desk(5)
    tasks = desk.tasks(96)
    whole, deltas = full_rewrite(team(), leaky(1.)), Ace(*team())
    a, b = online(whole, desk, tasks), online(deltas, desk, tasks)
    assert [s.passed for s in a.steps] == [s.passed for s in b.steps] and {x.content for x in whole.playbook.active()} == {x.content for x in deltas.playbook.active()}
    late = slice(72, 96)
    cost = [np.mean([step.learning.generated for step in history.steps[late]]) for history in (a, b)]
    assert cost[1] < 0.2 * cost[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_window_is_a_queue(seed):
    "The rules in it are those of the last n lessons that were new when they came."
    desk, queue = Desk(seed), window(team(), 12)
    want: list[int] = []
    for task in desk.tasks(150, seed=seed):
        attempt = queue.predict(task)
        queue.learn(task, attempt, desk.run(task, attempt.calls))
        if task.needs[0] not in want: want = [*want, task.needs[0]][-12:]
        assert [b.content for b in queue.playbook.active()] == [desk.rules[i].sentence for i in want]


def test_dynamic_cheatsheet_keeps_the_old_text_if_there_is_no_new_one():
    desk = Desk(0)
    learner = dc_cu(team(), lambda notes, new: "" if notes else new)
    online(learner, desk, desk.tasks(30))
    assert len(learner.playbook) == 1
    full = full_rewrite(team(), lambda notes, new: "" if notes else new)
    assert min(step.bullets for step in online(full, desk, desk.tasks(30)).steps[1:]) == 0


def test_retrieval_finds_the_pair_of_a_seen_request():
    desk = Desk(6)
    learner, tasks = dc_rs(team(), 3), desk.tasks(150)
    history = online(learner, desk, tasks)
    seen: set[int] = set()
    for task, step in zip(tasks, history.steps):
        if task.needs[0] in seen: assert step.passed
        seen.add(task.needs[0])
    assert max(step.bullets for step in history.steps) <= 3


def test_random_eviction_is_seeded():
    desk = Desk(7)
    books = [online(random_evict(team(), 200, seed=s), desk, desk.tasks(80)).last.digest() for s in (1, 1, 2)]
    assert books[0] == books[1] != books[2]


def test_usage_counts_reflection_and_writing():
    desk = Desk(8)
    rewriting, cumulative = (online(make(team(), leaky(1.)), desk, desk.tasks(60)).steps[-1].learning for make in (full_rewrite, dc_cu))
    deltas = online(window(team(), 99), desk, desk.tasks(60)).steps[-1].learning
    assert rewriting.generated > 5 * deltas.generated and cumulative.generated > 5 * deltas.generated and cumulative.read < rewriting.read
    assert all(u.cached <= u.read for u in (rewriting, cumulative, deltas))
    assert online(none(team()), desk, desk.tasks(5)).steps[-1].learning == Usage()


def test_refined_ace_is_no_worse_than_chance():
    "Budget for about half of the rules, Zipf frequencies."
    score = {"ace": [], "random": []}
    for seed in range(6):
        desk = Desk(seed, zipf=1.)
        tasks, budget = desk.tasks(192, seed=seed), tokens(book(truth(desk)[:24]).render())
        score["ace"].append(online(Ace(*team(seed), policy=Policy(budget)), desk, tasks).accuracy(slice(96, None)))
        score["random"].append(online(random_evict(team(seed), budget, seed=seed), desk, tasks).accuracy(slice(96, None)))
    assert np.mean(score["ace"]) > np.mean(score["random"]) - 0.02


def test_demonstrations():
    desk = Desk(9)
    task = desk.tasks(1)[0]
    assert list(plain(task, ("a", "b"))) == [("snippets", f"Request: {task.request}\nCalls: a, b")]
    assert [solution(f, ("x",)) for f in (Label(("g",), False), Verdict(True), Verdict(False), Execution(""), Execution("no"), Nothing())] == [("g",), ("x",), None, ("x",), None, None]
    learner = icl(team(), 3, advice, "label")
    online(learner, desk, desk.tasks(40))
    assert len(learner.playbook) == 3
    many = icl(team(), 0)
    online(many, desk, desk.tasks(10))
    assert len(many.playbook) == 0


def test_a_book_drops_what_does_not_fit():
    lines = [("apis", "a b c"), ("apis", "a b  c"), ("checks", "d"), ("apis", " ")]
    assert [b.content for b in book(lines).active()] == ["a b c", "d"]
    small = tokens(book(lines[:1]).render())
    assert [b.content for b in book(lines, small).active()] == ["a b c"] and [b.content for b in book(lines, small, newest=True).active()] == ["d"]
    assert len(book(lines, 0)) == 0 and extractive(1.)("", "") == ""
