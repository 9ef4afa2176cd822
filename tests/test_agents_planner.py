"""The small planner: sampling and log-probabilities."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.agents.planner import SIZES, act, base, logps, planner
from llmwatch_course.agents.world import WORDS, dice, draw, question

@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)

def sample(n=24, seed=0, size="small", temperature=1.):
    model, state = planner(size, seed), question(draw(n, seed))
    rolls = dice(seed, torch.arange(n)[:, None], torch.arange(3))
    return model, state, rolls, *act(model, state, rolls, temperature)

def test_sizes():
    counts = {size: sum(p.numel() for p in planner(size).parameters()) for size in SIZES}
    assert counts["small"] < 4e4 < 9e4 < counts["medium"] < 1.3e5 < 4e5 < counts["large"] < 5e5
    with pytest.raises(ValueError, match="unknown size 'meduim'; did you mean 'medium'"): planner("meduim")

def test_same_seed_same_planner():
    a, b, c = planner("small", 0), planner("small", 0), planner("small", 1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters()))

def test_vocabulary_is_the_one_of_the_checkpoints():
    assert base().embed.weight.shape[0] == len(WORDS)
    assert question(draw(2, 0)).max() < len(WORDS)

@pytest.mark.parametrize("size,style", [(s, "modular") for s in SIZES] + [("medium", "monolithic")])
def test_bases_load_and_are_mediocre(size, style):
    from llmwatch_course.agents.rollouts import MODULAR, MONOLITHIC, rollout, sampled
    done = rollout(sampled(base(size, style)), draw(150, 11), 5, 0, loop=MODULAR if style == "modular" else MONOLITHIC)
    assert .1 < done.right.float().mean() < .6

def test_a_missing_base_is_a_sentence():
    with pytest.raises(ValueError, match="there is no checkpoint"): base(style="nowhere")

def test_actions_do_not_depend_on_the_batch():
    model, state, rolls, actions, found = sample()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    again, found_again = act(model, state[order], rolls[order])
    assert torch.equal(again, actions[order])
    assert_close(found_again, found[order], atol=1e-5, rtol=1e-5)
    for i in range(5): assert torch.equal(act(model, state[i:i + 1], rolls[i:i + 1])[0][0], actions[i])

@pytest.mark.parametrize("temperature", (.5, 1., 2.))
def test_logps_of_act_are_logps(temperature):
    model, state, _, actions, found = sample(temperature=temperature)
    assert_close(logps(model, state, actions, temperature), found, atol=1e-5, rtol=1e-5)
    if temperature != 1: assert (logps(model, state, actions) - found).abs().max() > 1e-3

def test_logps_are_those_of_a_pass_without_cache():
    model, state, _, actions, found = sample()
    for j in range(3):
        logp = model(torch.cat([state, actions[:, :j]], 1))[:, -1].log_softmax(-1)
        assert_close(logp.gather(1, actions[:, j:j + 1])[:, 0], found[:, j], atol=1e-5, rtol=1e-5)

def test_dice_pick_by_cumulative_probabilities():
    model, state = planner("small"), question(draw(1, 0))
    p = model(state)[0, -1].softmax(-1).double().cumsum(0).detach()
    for x in (0., .3, .77, .999999999, 1.):
        token = int(act(model, state, torch.tensor([[x, .5, .5]], dtype=torch.float64))[0][0, 0])
        assert token == min(int((p < x).sum()), len(WORDS) - 1)

def test_frequencies_follow_probabilities():
    model, state, n = planner("small"), question(draw(1, 0)), 6000
    first = act(model, state.expand(n, -1), dice(0, torch.arange(n)[:, None], torch.arange(3)))[0][:, 0]
    p = model(state)[0, -1].softmax(-1).detach()
    chi = ((torch.bincount(first, minlength=len(WORDS)) - n * p)**2 / (n * p)).sum()
    assert abs(chi - 46) < 6 * 92**.5

def test_gradient_only_through_logps():
    model, state, _, actions, found = sample(6)
    assert not found.requires_grad
    logps(model, state, actions).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

def test_text_of_tools_is_no_target():
    "What stands in the state has no loss of its own: with all later positions cut off nothing depends on the state's words as labels."
    model, state, _, actions, _ = sample(4)
    logits = model(torch.cat([state, actions[:, :-1]], 1))
    logits.retain_grad()
    logits[:, -3:].log_softmax(-1).gather(-1, actions[..., None]).sum().backward()
    assert logits.grad[:, :-3].abs().max() == 0 and logits.grad[:, -3:].abs().max() > 0
    assert_close(logits[:, -3:].log_softmax(-1).gather(-1, actions[..., None])[..., 0], logps(model, state, actions))
