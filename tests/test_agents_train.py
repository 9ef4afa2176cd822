"""Training in the flow."""
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.agents.planner import base, logps, planner
from llmwatch_course.agents.rollouts import MONOLITHIC, rollout, sampled
from llmwatch_course.agents.train import Recipe, advantages, evaluate, flow_loss, train, watch
from llmwatch_course.agents.world import KINDS, draw

TINY = Recipe(queries=3, group=4, turns=3)

@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)

@pytest.fixture(scope="module")
def batch(): return rollout(sampled(base("small")), draw(6, 3, ("hop0", "hop1")).repeat(6), 4, 0)

def gradient(done, recipe, reference=None):
    model = base("small")
    loss, seen = flow_loss(model, done, recipe, reference)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), seen

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def test_the_loss_is_three_nested_means(batch):
    model, a, total = base("small"), advantages(batch, Recipe()), 0.
    for i in range(len(a)):
        mine = [(t, (t.who == i).nonzero()[0]) for t in batch.turns if (t.who == i).any()]
        for t, row in mine: total = total - a[i] * (logps(model, t.state[row], t.action[row]) - t.logp[row]).exp().mean() / len(mine) / len(a)
    total.backward()
    assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient(batch, Recipe())[0], atol=1e-6, rtol=1e-4)

def test_on_policy_the_loss_is_zero_and_its_gradient_is_not(batch):
    grad, seen = gradient(batch, replace(Recipe(), scale="none"))
    assert abs(seen["loss"]) < 1e-5 and abs(seen["mean_ratio"] - 1) < 1e-5 and seen["clip_high_fraction"] == seen["clip_low_fraction"] == 0 and grad.norm() > 1e-3

def test_a_shift_of_all_rewards_changes_nothing_that_is_centred(batch):
    for shift in (1., -3., 100.):
        assert_close(advantages(batch, Recipe(shift=shift)), advantages(batch, Recipe()), atol=1e-4, rtol=1e-4)
        assert_close(gradient(batch, Recipe(shift=shift))[0], gradient(batch, Recipe())[0], atol=1e-5, rtol=1e-3)
    raw, shifted = (gradient(batch, Recipe(center="none", shift=s))[0] for s in (0., 1.))
    assert (raw - shifted).norm() > .1 * raw.norm()

def test_advantages_are_the_groups(batch):
    a = advantages(batch, Recipe(scale="none")).view(6, 6)
    r = batch.right.float().view(6, 6)
    assert_close(a, r - r.mean(1, keepdim=True))
    assert torch.equal(advantages(batch, Recipe(center="none")), batch.right.float())

def test_credit_for_the_last_turn_only(batch):
    recipe = Recipe(credit="last")
    model, a, total = base("small"), advantages(batch, Recipe()), 0.
    for n, t in enumerate(batch.turns):
        last = (batch.length[t.who] == n + 1).float()
        ratio = (logps(model, t.state, t.action) - t.logp).exp()
        total = total - (last * a[t.who] * ratio.mean(1) / batch.length[t.who] / len(a)).sum()
    total.backward()
    assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient(batch, recipe)[0], atol=1e-6, rtol=1e-4)

def test_silent_groups_have_no_gradient():
    done = rollout(sampled(planner("small")), draw(4, 0, ("hop3",)).repeat(4), 2, 0)
    assert not done.right.any() and gradient(done, Recipe())[0].abs().max() == 0 and watch(done)["zero_std"] == 1

def test_the_penalty_is_zero_at_the_reference(batch):
    grad, seen = gradient(batch, Recipe(beta=.5), base("small"))
    assert seen["kl_ref_nats"] < 1e-6
    assert_close(grad, gradient(batch, Recipe())[0], atol=1e-5, rtol=1e-3)
    assert gradient(batch, Recipe(beta=.5), planner("small", 3))[1]["kl_ref_nats"] > .1

def test_watch_counts(batch):
    seen = watch(batch)
    groups = batch.right.view(6, 6).float().mean(1)
    assert seen["success"] == pytest.approx(float(batch.right.float().mean())) and seen["zero_std"] == pytest.approx(float(((groups == 0) | (groups == 1)).float().mean()))
    assert seen["turns"] == pytest.approx(float(batch.length.float().mean())) and 0 <= seen["error"] <= 1 and 0 <= seen["guess"] <= 1

def test_two_runs_of_one_seed_are_equal_and_of_two_are_not():
    runs = [train(base("small"), TINY, 3, seed) for seed in (0, 0, 1)]
    assert torch.equal(*(weights(r.model) for r in runs[:2])) and runs[0].history == runs[1].history
    assert not torch.equal(weights(runs[0].model), weights(runs[2].model))

def test_exact_resume(tmp_path):
    whole = train(base("small"), TINY, 5, 2)
    path = tmp_path / "run.safetensors"
    train(base("small"), TINY, 2, 2, checkpoint=path)
    resumed = train(planner("small", 9), TINY, 5, 2, checkpoint=path)
    assert torch.equal(weights(whole.model), weights(resumed.model)) and whole.history == resumed.history

def test_more_updates_leave_the_sampling_policy():
    one, three = (train(base("small"), replace(TINY, updates=n, lr=3e-3, queries=6), 2, 0).history for n in (1, 3))
    assert all(h["max_ratio"] == pytest.approx(1, abs=1e-3) for h in one) and any(h["max_ratio"] > 1.01 for h in three)

def test_the_transcript_can_be_trained_too():
    state = train(base("medium", "monolithic"), replace(TINY, queries=2, turns=2), 1, 0, loop=MONOLITHIC)
    assert state.step == 1 and len(state.history) == 1

def test_evaluation_does_not_depend_on_its_size():
    model = base("small")
    few, many = evaluate(model, 20), evaluate(model, 60)
    assert torch.equal(few.answer, many.answer[:20]) and torch.equal(few.length, many.length[:20])
    assert set(evaluate(model, 10, kinds=("sum",)).by_kind()) == {"sum"} and not many.turns[0].logp.requires_grad
    assert not torch.equal(evaluate(model, 20, seed=1).queries.truth, few.queries.truth)

def test_the_shipped_run_is_better_for_every_kind():
    before, after = (evaluate(base(style=style), 400).by_kind() for style in ("modular", "trained"))
    assert all(after[k] > before[k] for k in KINDS) and sum(after.values()) / 5 > sum(before.values()) / 5 + .3

def test_bad_words_are_sentences():
    with pytest.raises(ValueError, match="unknown kind of query 'hop5'"): train(base("small"), replace(TINY, kinds=("hop5",)), 1)
    with pytest.raises(ValueError, match="unknown credit 'first'"): train(base("small"), replace(TINY, credit="first"), 1)
    with pytest.raises(ValueError, match="unknown agg 'mean'"): train(base("small"), replace(TINY, agg="mean"), 1)

def test_no_other_chapter_is_needed():
    "The agents import foundations and agents, and none of the optional packages."
    code = ("import sys, llmwatch_course.agents.train as t; import llmwatch_course.agents.teachers; "
            "mine = {m.split('.')[1] for m in sys.modules if m.startswith('llmwatch_course.')}; assert mine <= {'foundations', 'agents', '_modidx'}, mine; "
            "assert not {'transformers', 'trl', 'openai', 'bm25s', 'pydantic_monty'} & set(sys.modules)")
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
