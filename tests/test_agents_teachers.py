"""Hand-written teachers, and learning from them."""
from dataclasses import replace
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.agents import teachers as te
from llmwatch_course.agents.planner import base, logps, planner
from llmwatch_course.agents.rollouts import MODULAR, MONOLITHIC, rollout, sampled
from llmwatch_course.agents.world import ELSEWHERE, HERE, GUESS, NONE, WORDS, Rules, dice, draw

@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)

@pytest.mark.parametrize("loop", (MODULAR, MONOLITHIC))
def test_the_expert_needs_no_turn_too_many(loop):
    "With tools that always work: one call a hop, three for a sum; a monolith has one turn more, to answer."
    q, sure = draw(300, 0), Rules((1., 1.), (1., 1.), 1.)
    done = rollout(te.Teacher(loop=loop), q, 8, 0, sure, loop)
    needed = torch.where(q.kind == 4, 3, q.kind + 1) + (loop is MONOLITHIC)
    assert done.right.all() and torch.equal(done.length, needed)

@pytest.mark.parametrize("loop", (MODULAR, MONOLITHIC))
def test_the_expert_is_perfect_with_patience(loop):
    done = rollout(te.Teacher(loop=loop), draw(500, 1), 14, 0, loop=loop)
    assert done.right.float().mean() > .995
    assert rollout(te.Teacher(loop=loop), draw(500, 1), 8, 0, loop=loop).right.float().mean() > .97

def test_teachers_of_two_worlds_are_mirror_images():
    home = rollout(te.Teacher(), draw(300, 2), 5, 0, HERE)
    there = rollout(te.Teacher((0., 1.)), draw(300, 2), 5, 0, ELSEWHERE)
    abroad = rollout(te.Teacher((0., 1.)), draw(300, 2), 5, 0, HERE)
    assert torch.equal(home.right, there.right) and torch.equal(home.length, there.length)
    assert abroad.right.float().mean() < .5 < .9 < home.right.float().mean()

def test_a_transcript_can_be_read_back_into_rows():
    q = draw(200, 3)
    done = rollout(replace(te.CLUMSY, noise=.05, guesses=0., loop=MONOLITHIC), q, 6, 0, loop=MONOLITHIC)
    checked = 0
    for before, now in zip(done.turns, done.turns[1:]):
        place = {int(w): i for i, w in enumerate(before.who)}
        kept = torch.tensor([place[int(w)] for w in now.who])
        last = te.rows_of(now.state[:, :-4], MONOLITHIC)[:, -1]
        assert torch.equal(last[:, :3], before.action[kept]) and torch.equal(last[:, 3], before.result[kept])
        checked += len(kept)
    assert checked > 200

def test_rows_of_an_empty_memory():
    for loop in (MODULAR, MONOLITHIC): assert te.rows_of(torch.zeros(3, 0, dtype=torch.long), loop).shape == (3, 0, 4)

def test_progress_ignores_what_is_not_on_the_way():
    q = draw(1, 0, ("hop1",))
    me, boss = int(q.first), int(q.boss[0, q.first[0]])
    other = next(e for e in range(12) if e not in (me, boss))
    row = lambda tool, a, b, result: [te.SEARCH if tool == "search" else te.WIKI, a, b, result]
    know = lambda *rows: te.progress(q, torch.tensor([rows]).view(1, len(rows), 4))
    at, hops, values = know(row("search", te.BOSS, te.A + other, te.A + me), row("wiki", te.VALUE, te.A + me, 15 + 3))
    assert int(at) == te.A + me and int(hops) == 0 and (values < 0).all()
    at, hops, values = know(row("wiki", te.BOSS, te.A + me, te.A + boss), row("wiki", te.BOSS, te.A + boss, te.A + me))
    assert int(at) == te.A + boss and int(hops) == 1, "one hop, not two"

def test_noise_and_guesses_have_their_share():
    q, n = draw(4000, 0), 4000
    state, rolls = te_state(q), dice(0, q.key[:, None], torch.arange(3))
    plain = te.Teacher()(q, state, rolls)[0]
    noisy = te.Teacher(noise=.3)(q, state, rolls)[0]
    changed = (noisy != plain).float().mean(0)
    assert ((changed > .2) & (changed < .3 + 5 * (.21 / n)**.5)).all() and noisy.max() < len(WORDS) and (noisy[:, 0] <= GUESS).all()
    guessed = te.Teacher(guesses=.25)(q, state, rolls)[0]
    assert abs(float((guessed == torch.tensor([GUESS, NONE, NONE])).all(1).float().mean()) - .25) < 5 * (.19 / n)**.5
    assert torch.equal(te.Teacher(noise=.3)(q, state, rolls)[0], noisy), "noise has dice too"

def te_state(q):
    from llmwatch_course.agents.world import question
    return question(q)

def test_nll_is_the_mean_over_tokens():
    model, done = planner("small"), rollout(te.Teacher(), draw(20, 0), 3, 0)
    own = [t.action for t in done.turns]
    flat = torch.cat([logps(model, t.state, t.action).flatten() for t in done.turns])
    assert_close(te.nll(model, done.turns, own), -flat.mean())

def test_imitation_learns_and_can_be_repeated():
    show = lambda i: [rollout(te.Teacher(), draw(24, 50 + i, ("hop0", "hop1")), 3, 0)]
    twins = [planner("small"), planner("small")]
    for m in twins: te.imitate(m, show, 12, lr=3e-3)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in twins)))
    turns = show(99)[0].turns
    assert te.nll(twins[0], turns, [t.action for t in turns]) < te.nll(planner("small"), turns, [t.action for t in turns]) - .5

def test_dagger_labels_the_learners_states():
    teacher, seen = te.Teacher(), []
    class Watch(te.Teacher):
        def __call__(self, queries, state, rolls):
            seen.append((state.shape, float(rolls.unique())))
            return te.Teacher.__call__(self, queries, state, rolls)
    model = base("small")
    te.imitate(model, lambda i: [rollout(sampled(model), draw(8, i), 3, 0)], 1, teacher=Watch())
    assert seen and all(rolls == .5 for _, rolls in seen) and [shape[1] for shape, _ in seen] == [4 * t + 4 for t in range(len(seen))]
    assert teacher.noise == 0

def test_warm_start_is_a_function_of_its_seed():
    a, b, c = (te.warm_start("small", updates=2, seed=s, batch=8) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters())) and not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters()))
