"""The enumerated flow: its gradient three ways, what a baseline does, PPO's clip, and the library's own gradient on it."""
import math, random
import pytest, torch
from torch.testing import assert_close
from llmwatch_course.agents.policy_gradient import (ACTIONS, FIRST, ROLLOUTS, WRITTEN, chances, clipped, draw, exact_gradient, expected_reward, logps, random_flow,
                                                    reinforce, scores)
from llmwatch_course.agents.small_print import as_turns, broadcast_error, mean_gradient, row_logps, sampler_weight
from llmwatch_course.agents.flow_grpo import flow_rows


def example(seed, queries=2):
    "A flow and a policy."
    g = torch.Generator().manual_seed(seed)
    return random_flow(queries, g), torch.randn(queries, 14, 2, generator=g, dtype=torch.float64), g


def slow_rollouts(flow, theta, q):
    "All rollouts of one query by walking through the flow in plain Python: {(a, e, b or None): (probability, P(right), log π)}."
    def write(state, action):
        p, table = 0., theta[q].log_softmax(-1).tolist()
        for j, token in enumerate(ACTIONS[action]): p += table[2*state + j][token]
        return p
    out = {}
    for a in range(3):
        for e in range(2):
            tool, stop, first = flow.tool[q, a, e].item(), flow.stop[q, a, e].item(), write(0, a)
            out[a, e, None] = math.exp(first)*tool*stop, flow.early[q, a, e].item(), first
            for b in range(3):
                both = first + write(1 + 2*a + e, b)
                out[a, e, b] = math.exp(both)*tool*(1 - stop), flow.late[q, a, e, b].item(), both
    return out


@pytest.mark.parametrize("seed", range(5))
def test_every_rollout_has_the_probability_of_its_factors(seed):
    flow, theta, _ = example(seed)
    assert_close(chances(flow, theta).sum(1), torch.ones(2).double())
    for q in range(2):
        slow = slow_rollouts(flow, theta, q)
        keys = [(a, e, None) for a, e in FIRST] + [(a, e, b) for a, e in FIRST for b in range(3)]
        assert len(keys) == len(ROLLOUTS) == 24
        assert_close(chances(flow, theta)[q].tolist(), [slow[k][0] for k in keys])
        assert_close(flow.win[q].tolist(), [slow[k][1] for k in keys])
        assert_close(logps(theta)[q].sum((1, 2)).tolist(), [slow[k][2] for k in keys])
    mean = sum(p*r for q in range(2) for p, r, _ in slow_rollouts(flow, theta, q).values())/2
    assert_close(expected_reward(flow, theta).item(), mean)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("baseline", [0., 0.7, -1.])
def test_broadcast_is_the_gradient_of_the_expected_reward(seed, baseline):
    "To 1e-12, whatever the baseline; also one that differs between queries."
    flow, theta, g = example(seed, 3)
    x = theta.clone().requires_grad_()
    (auto,) = torch.autograd.grad(expected_reward(flow, x), x)
    assert_close(exact_gradient(flow, theta, baseline), auto, atol=1e-12, rtol=0)
    assert_close(exact_gradient(flow, theta, torch.rand(3, 1, generator=g)), auto, atol=1e-12, rtol=0)


def test_scores_are_the_gradients_of_the_log_probabilities():
    _, theta, _ = example(0, 1)
    x = theta.clone().requires_grad_()
    logp = logps(x)[0].sum((1, 2))
    for i in range(24): assert_close(torch.autograd.grad(logp[i], x, retain_graph=True)[0][0], scores(theta)[0, i])
    assert_close((chances(example(0, 1)[0], theta)[..., None, None]*scores(theta)).sum(1), torch.zeros(1, 14, 2).double(), atol=1e-12, rtol=0)


def test_finite_differences_agree():
    flow, theta, _ = example(3, 1)
    exact, step = exact_gradient(flow, theta).flatten(), 1e-5
    for k in random.Random(0).sample(range(28), 8):
        d = torch.zeros(28).double(); d[k] = step
        assert_close((expected_reward(flow, theta + d.view_as(theta)) - expected_reward(flow, theta - d.view_as(theta)))/(2*step), exact[k], atol=1e-9, rtol=0)


def test_reinforce_from_samples_is_right_on_average():
    "A hundred thousand rollouts: within five standard errors in every parameter."
    flow, theta, g = example(1, 1)
    rollouts, reward = draw(flow, theta, 100_000, g)
    x = theta.clone().requires_grad_()
    logp = logps(x).sum((2, 3)).gather(1, rollouts)
    estimate = -torch.autograd.grad(reinforce(logp.flatten(), (reward - 0.5).flatten()), x)[0]
    each = scores(theta)[0][rollouts[0]]*(reward[0] - 0.5)[:, None, None]
    assert ((estimate[0] - exact_gradient(flow, theta)[0]).abs() <= 5*each.std(0)/100_000**0.5 + 1e-12).all()
    assert_close(estimate[0], each.mean(0))


def test_a_baseline_makes_less_noise_and_a_shift_makes_more():
    "Three levers: all six outcomes."
    pi, win = torch.full((3,), 1/3, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    score = torch.eye(3, dtype=torch.float64) - pi
    chance = pi[:, None]*torch.stack([1 - win, win], 1)
    def moments(b):
        arrows = (torch.tensor([0., 1.]) - b)[:, None]*score[:, None]
        mean = (chance[..., None]*arrows).sum((0, 1))
        return mean, (chance*(arrows - mean).square().sum(-1)).sum()
    (m0, v0), (m1, v1), (m2, v2) = moments(0.), moments(0.5), moments(-1.)
    for m in (m0, m1, m2): assert_close(m, pi*(win - pi @ win), atol=1e-12, rtol=0)
    assert v1 < v0 < v2


@pytest.mark.parametrize("ratio, adv, value, slope", [(1.5, 1, 1.3, 0), (1.5, -1, -1.5, -1), (0.5, 1, 0.5, 1), (0.5, -1, -0.8, 0), (1.25, 1, 1.25, 1)])
def test_clip_table(ratio, adv, value, slope):
    r = torch.tensor(ratio, requires_grad=True)
    out = clipped(r, torch.tensor(float(adv)), 0.2, 0.3)
    assert_close(out.item(), value, atol=1e-6, rtol=0)
    assert torch.autograd.grad(out, r)[0] == slope


# the library's own rows and loss on the enumerated flow

def test_recorded_turns_are_read_back():
    _, theta, _ = example(2, 3)
    table = logps(theta)
    rows = flow_rows([as_turns(table, q, i) for q in range(3) for i in range(24)], torch.zeros(72).double())
    assert len(rows) == 3*(6 + 2*18)
    assert_close(row_logps(theta, rows)*rows.mask, rows.logp_old)
    assert_close(torch.zeros(72).double().index_add(0, rows.traj_id, rows.logp_old.sum(1)), table.sum((2, 3)).flatten())


@pytest.mark.parametrize("seed", range(4))
def test_broadcast_error(seed):
    found = broadcast_error(seed)
    assert found["broadcast"] <= 1e-10 < 1e-4 < min(found["flow"], found["last"])
    assert found["broadcast cosine"] > 1 - 1e-9 and found["flow cosine"] < 0.9999 and found["last cosine"] < 0.9999


def test_any_baseline_of_the_query_will_do():
    flow, theta, g = example(5)
    assert_close(mean_gradient(flow, theta, baseline=torch.rand(2, generator=g).double()), exact_gradient(flow, theta), atol=1e-12, rtol=0)


def test_last_turn_credit_teaches_early_turns_nothing():
    "Where no rollout is stopped early, the first turn has no gradient at all."
    flow, theta, _ = example(6, 1)
    flow.stop.zero_()
    assert not mean_gradient(flow, theta, credit="last")[0, :2].any() and mean_gradient(flow, theta)[0, :2].any()


def test_sampler_weights():
    old, mask, traj = torch.log(torch.tensor([[0.5, 0.4], [0.3, 0.9]])), torch.tensor([[True, True], [True, False]]), torch.tensor([0, 0])
    assert_close(sampler_weight(old, old, mask, traj), torch.ones(2, 2))
    other = torch.log(torch.tensor([[0.25, 0.5], [0.1, 0.1]]))
    assert_close(sampler_weight(old, other, mask, traj), torch.tensor([[2., 0.8], [2., 1.]]))
    assert_close(sampler_weight(old, other, mask, traj, level="rollout", cap=torch.inf), torch.full((2, 2), 2*0.8*3))
    with pytest.raises(ValueError, match="unknown level 'word'"): sampler_weight(old, other, mask, traj, level="word")


def test_written_has_a_one_for_each_token():
    assert WRITTEN.sum((1, 2, 3, 4)).tolist() == [sum(len(ACTIONS[a]) for _, a in rollout) for rollout in ROLLOUTS]
