"A pool of candidates: who may be a parent, what is accepted, and that every rollout is counted."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from llmwatch_course.ace.adapt import evaluate, online
from llmwatch_course.ace.baselines import Team
from llmwatch_course.ace.collapse import appending, extractive
from llmwatch_course.ace.desk import Desk
from llmwatch_course.ace.pareto import front, gepa_like
from llmwatch_course.ace.playbook import tokens
from llmwatch_course.ace.roles import ProgramCurator, ProgramGenerator, ProgramReflector, Usage


class Counting:
    "A desk that counts its rollouts."
    def __init__(self, desk): self.desk, self.runs = desk, 0
    def run(self, task, calls):
        self.runs += 1
        return self.desk.run(task, calls)


def made(seed=0, wrong=None, rewriter=None, n=8, **more):
    desk = Desk(seed)
    world = Counting(desk)
    return desk, world, gepa_like(Team(ProgramGenerator(seed=seed), ProgramReflector(wrong), ProgramCurator()), rewriter or appending(), world, desk.tasks(n, "validation", seed), seed=seed, **more)


@given(arrays(int, st.tuples(st.integers(1, 7), st.integers(1, 6)), elements=st.integers(0, 3)))
@settings(max_examples=200, deadline=None)
def test_the_front_covers_and_spares_nobody(scores):
    counts, on = front(scores), scores == scores.max(0)
    assert counts and on[list(counts)].any(0).all() and counts == {i: int(on[i].sum()) for i in counts}
    assert all(not on[[k for k in counts if k != i]].any(0).all() for i in counts if len(counts) > 1)


def test_the_only_one_who_can_stays():
    assert set(front(np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]))) == {0, 1} and front(np.zeros((3, 2))) in ({i: 2} for i in range(3))


@pytest.mark.parametrize("rewriter", [appending(), extractive(0.8)])
def test_every_rollout_is_counted(rewriter):
    desk, world, learner = made(rewriter=rewriter)
    online(learner, world, desk.tasks(90))
    assert world.runs == 90 + learner.rollouts and (learner.rollouts - 8*len(learner.pool)) % 3 == 0
    assert len(learner.pool) > 5 and learner.rollouts - 8*len(learner.pool) <= 90


def test_it_learns_and_a_frozen_copy_reads_the_best():
    desk, world, learner = made()
    history = online(learner, world, desk.tasks(240))
    test, frozen = desk.tasks(80, "test"), learner.frozen()
    accuracy = evaluate(frozen, desk, test).mean()
    assert accuracy > desk.floor + 0.2 and history.quarters()[-1] > history.quarters()[0]
    assert frozen.playbook == learner.best and max(c.scores.mean() for c in learner.pool) == evaluate(frozen, desk, learner.validation).mean()
    before = world.runs, len(learner.pool)
    for task in desk.tasks(6, seed=9): frozen.learn(task, attempt := frozen.predict(task), desk.run(task, attempt.calls))
    assert (world.runs, len(learner.pool)) == before and frozen.playbook == learner.best, "it never learns"
    assert learner.frozen(0).playbook == learner.pool[0].playbook


def test_wrong_advice_is_never_accepted():
    desk, world, learner = made(wrong=1)
    online(learner, world, desk.tasks(60))
    assert len(learner.pool) == 1 and not learner.playbook.active()


def test_better_means_strictly():
    desk, world, learner = made(rewriter=lambda notes, new: notes)
    online(learner, world, desk.tasks(60))
    assert len(learner.pool) == 1, "a child that is its parent is no better"


def test_the_budget_holds_and_the_costs_are_those_of_the_texts():
    desk, world, learner = made(budget=80)
    history = online(learner, world, desk.tasks(90))
    assert all(tokens(candidate.playbook.render()) <= 80 for candidate in learner.pool) and max(step.tokens for step in history.steps) <= 80
    total = sum((step.learning for step in history.steps), Usage())
    assert total.generated > 0 and total.read > total.cached >= 0 and learner.spent.read > 0


def test_same_seed_same_run():
    runs = [made(rewriter=extractive(0.8)) for _ in range(2)]
    for desk, world, learner in runs: online(learner, world, desk.tasks(60))
    assert [c.playbook.digest() for c in runs[0][2].pool] == [c.playbook.digest() for c in runs[1][2].pool]
