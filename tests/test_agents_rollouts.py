"""Loops in step: equal to loops played alone."""
from dataclasses import replace
import pytest
import torch
from llmwatch_course.agents import rollouts as r
from llmwatch_course.agents.planner import planner
from llmwatch_course.agents.teachers import CLUMSY, Teacher
from llmwatch_course.agents.world import (A, ANSWER, BAD, BOSS, CALC, FAILED, GUESS, KINDS, NONE, SEARCH, VALUE, WIKI, ZERO, call, dice, draw, question)

TEACHER = replace(CLUMSY, noise=.1)

@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)

def equal(a, b):
    return torch.equal(a.answer, b.answer) and torch.equal(a.length, b.length) and len(a.turns) == len(b.turns) and all(torch.equal(x, y) for s, t in zip(a.turns, b.turns) for x, y in zip(s[:-1], t[:-1]))

def alone(policy, query, member, turns, seed, loop):
    memory, answer = torch.zeros(1, 0, dtype=torch.long), torch.tensor([-1])
    for t in range(turns):
        luck = dice(seed, query.key[:, None], member, t, torch.arange(8))
        state = torch.cat([memory, question(query)], 1)
        action, _ = policy(query, state, luck[:, :3])
        result = call(query, action, luck[:, 3], luck[:, 4])
        answer = loop.write(query, action, result, answer)
        if loop.verify(query, action, result, answer): break
        memory = torch.cat([memory, loop.remember(query, action, result, luck[:, 5:])], 1)
    return int(answer), t + 1, state[0].tolist()

@pytest.mark.parametrize("loop", (r.MODULAR, r.MONOLITHIC, r.MODULAR._replace(verify=r.never)))
def test_a_batch_is_its_loops_played_alone(loop):
    q, policy = draw(12, 4).repeat(2), replace(TEACHER, loop=loop)
    done = r.rollout(policy, q, 6, 9, loop=loop)
    last = {int(w): t.state[i].tolist() for t in done.turns for i, w in enumerate(t.who)}
    for i in range(24): assert alone(policy, q.take(torch.tensor([i])), i % 2, 6, 9, loop) == (int(done.answer[i]), int(done.length[i]), last[i])

def test_a_model_plays_the_same_in_any_batch_and_order():
    policy, q = r.sampled(planner("small")), draw(10, 1).repeat(4)
    whole = r.rollout(policy, q, 4, 0)
    assert equal(whole, r.rollout(policy, q, 4, 0)) and not torch.equal(whole.turns[0].action, r.rollout(policy, q, 4, 1).turns[0].action)
    part = r.rollout(policy, q.take(torch.arange(8)), 4, 0)
    assert torch.equal(whole.answer[:8], part.answer) and torch.equal(whole.length[:8], part.length)
    woven = torch.arange(40).view(10, 4).T.flatten()  # members of a group far apart, in order
    mixed = r.rollout(policy, q.take(woven), 4, 0, version=7)
    assert {t.version for t in whole.turns} == {0} and {t.version for t in mixed.turns} == {7}
    assert torch.equal(whole.answer[woven], mixed.answer) and torch.equal(whole.length[woven], mixed.length)

def test_members():
    assert r.members(torch.tensor([7, 3, 7, 7, 3, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert r.members(draw(3, 0).repeat(5).key).tolist() == [*range(5)] * 3
    assert r.members(torch.zeros(0, dtype=torch.long)).tolist() == []

def test_members_of_a_group_have_dice_of_their_own():
    done = r.rollout(TEACHER, draw(4, 0).repeat(16), 5, 0)
    assert all(len(set(map(tuple, a.tolist()))) > 1 for a in done.turns[0].action.view(4, 16, 3))

def test_states_are_the_history():
    done = r.rollout(TEACHER, draw(30, 2), 6, 3)
    past = {i: [] for i in range(30)}
    for n, t in enumerate(done.turns):
        for row, who in enumerate(t.who.tolist()):
            assert t.state[row].tolist() == past[who] + question(done.queries)[who].tolist() and t.state.shape[1] == 4 * n + 4
            past[who] += [*t.action[row].tolist(), int(t.result[row])]
    assert [len(past[i]) // 4 for i in range(30)] == done.length.tolist()
    assert all((a.who[:, None] == b.who).any(0).all() for a, b in zip(done.turns, done.turns[1:]))

def verdicts(kind, action, result, answer=-1):
    q = draw(40, 0, (kind,)).take(torch.tensor([0]))
    return {name: bool(f(q, torch.tensor([action]), torch.tensor([result]), torch.tensor([answer]))) for name, f in r.VERIFIERS.items()}, q

def test_the_rule_sees_types_only():
    for action, result, kind, stop in (([WIKI, VALUE, A], ZERO + 3, "hop1", True), ([SEARCH, BOSS, A], A + 2, "hop1", False), ([WIKI, VALUE, A], FAILED, "hop0", False),
                                       ([WIKI, VALUE, A], ZERO + 3, "sum", False), ([CALC, ZERO + 1, ZERO + 2], ZERO + 3, "sum", True), ([GUESS, NONE, NONE], ZERO + 9, "sum", True),
                                       ([GUESS, NONE, NONE], ZERO + 9, "hop3", True), ([9, 9, 9], BAD, "hop0", False)):
        seen, _ = verdicts(kind, action, result)
        assert seen["rule"] is stop and seen["always"] and not seen["never"]

def test_the_oracle_knows():
    _, q = verdicts("hop0", [WIKI, VALUE, A], ZERO)
    truth = int(q.truth)
    assert verdicts("hop0", [WIKI, VALUE, A], ZERO, truth)[0]["oracle"] and not verdicts("hop0", [WIKI, VALUE, A], ZERO, truth + 1)[0]["oracle"]

def test_the_generator_keeps_the_newest_number_of_the_right_type():
    q = draw(1, 0, ("sum",))
    write = lambda action, result, answer: int(r.last_value(q, torch.tensor([action]), torch.tensor([result]), torch.tensor([answer])))
    assert write([WIKI, VALUE, A], ZERO + 3, -1) == 3 and write([WIKI, VALUE, A], ZERO + 3, 5) == 5
    assert write([CALC, ZERO, ZERO + 4], ZERO + 4, 5) == 4 and write([SEARCH, BOSS, A], A, 5) == 5 and write([SEARCH, BOSS, A], FAILED, -1) == -1

def test_verifier_arms():
    q = draw(300, 5)
    arms = {name: r.rollout(TEACHER, q, 8, 0, loop=r.MODULAR._replace(verify=f)) for name, f in r.VERIFIERS.items()}
    right = {name: int(done.right.sum()) for name, done in arms.items()}
    assert (arms["always"].length == 1).all() and (arms["never"].length == 8).all() and right["oracle"] == max(right.values())
    assert right["always"] < right["rule"] and (arms["oracle"].answer == q.truth)[arms["oracle"].length < 8].all()

def test_a_transcript_holds_true_lines():
    q = draw(200, 1)
    action = torch.stack([torch.full_like(q.kind, SEARCH), torch.full_like(q.kind, BOSS), A + q.first], 1)
    lines = r.transcript(q, action, A + q.boss[torch.arange(200), q.first], dice(0, q.key[:, None], torch.arange(2)))
    assert torch.equal(lines[:, :3], action)
    for i, three in enumerate(lines[:, 3:].view(200, 3, 3).tolist()):
        assert all(rel == BOSS and int(q.boss[i, e - A]) == x - A for rel, e, x in three) and three[0][1] == int(A + q.first[i])
    failed = r.transcript(q, action, torch.full_like(q.kind, FAILED), torch.zeros(200, 2))
    assert (failed[:, 5] == FAILED).all() and (failed[:, [3, 4, 6, 7, 8, 9, 10, 11]] == NONE).all()

def test_counts():
    done = r.rollout(TEACHER, draw(200, 3), 5, 0)
    action, result = torch.cat([t.action for t in done.turns]), torch.cat([t.result for t in done.turns])
    seen, real = done.calls(), (action[:, 0] != GUESS) & (action[:, 0] != ANSWER)
    assert abs(seen["error"] - float(((result == FAILED) | (result == BAD))[real].float().mean())) < 1e-6 and abs(seen["guess"] - float((action[:, 0] == GUESS).float().mean())) < 1e-6
    kinds = done.by_kind()
    weight = {k: int((done.queries.kind == i).sum()) for i, k in enumerate(KINDS)}
    assert abs(sum(kinds[k] * weight[k] for k in kinds) / 200 - float(done.right.float().mean())) < 1e-6
    assert set(r.rollout(Teacher(), draw(20, 0, ("hop1",)), 5, 0).by_kind()) == {"hop1"}

def test_more_turns_change_nothing_that_was_over():
    a, b = (r.rollout(TEACHER, draw(100, 6), t, 0) for t in (4, 8))
    over = a.length < 4
    assert torch.equal(a.answer[over], b.answer[over]) and torch.equal(a.length[over], b.length[over])
    assert all(torch.equal(s.action, t.action) for s, t in zip(a.turns, b.turns))
