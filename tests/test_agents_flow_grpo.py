"""Advantages, rows and loss against numbers worked out by hand, slow loops, and TRL's own loss."""
import math, time
import hypothesis.strategies as st
import pytest, torch
from hypothesis import given, settings
from torch.testing import assert_close
from llmwatch_course.agents.flow_grpo import (AGGS, CREDITS, TurnSample, flow_grpo_loss, flow_rows, group_advantage, informative, k3, row_advantage, spread,
                                              token_weights)
from llmwatch_course.foundations.blocks import attend, rotary_angles, rotate


def f64(*x): return torch.tensor(x, dtype=torch.float64)
def one(r, **options): return group_advantage(r, torch.zeros(len(r), dtype=torch.long), **options)


def random_rollouts(g, n, most=3, longest=4, truncated=0.):
    "n trajectories with turns, prompts and actions of different length."
    def number(high): return int(torch.randint(1, high + 1, (), generator=g))
    def turn(k): return TurnSample(torch.randint(1, 9, (number(6),), generator=g).tolist(), torch.randint(1, 9, (k,), generator=g).tolist(),
                                   (-torch.rand(k, generator=g)).tolist(), truncated=bool(torch.rand((), generator=g) < truncated))
    return [[turn(number(longest)) for _ in range(number(most))] for _ in range(n)]


def batch(seed, n=6, drift=0.3, truncated=0.2):
    "Rows, log-probs under a policy that has moved, and under a reference, float64."
    g = torch.Generator().manual_seed(seed)
    rows = flow_rows(random_rollouts(g, n, truncated=truncated), torch.randn(n, generator=g, dtype=torch.float64))
    logp, ref = (rows.logp_old + drift*torch.randn(rows.mask.shape, generator=g, dtype=torch.float64) for _ in range(2))
    return rows, logp.requires_grad_(), ref


def loss_of(rows, logp, ref=None, **options): return flow_grpo_loss(logp, rows.logp_old, ref, rows.mask, rows.adv, rows.traj_id, **options)
def grad_of(rows, logp, ref=None, **options): return torch.autograd.grad(loss_of(rows, logp, ref, **options)[0], logp)[0]


def slow_loss(rows, logp, ref, agg, level, eps_lo, eps_hi, beta, dual_clip, constant):
    "The loss with loops over trajectories, turns and tokens."
    total, rollouts, all_tokens = 0., rows.traj_id.unique().tolist(), max(1, int(rows.mask.sum()))
    for i in rollouts:
        mine = (rows.traj_id == i).nonzero()[:, 0].tolist()
        tokens_of_rollout = max(1, sum(int(rows.mask[r].sum()) for r in mine))
        for r in mine:
            places = rows.mask[r].nonzero()[:, 0].tolist()
            change = [logp[r, j] - rows.logp_old[r, j] for j in places]
            if level == "turn" and places: change = [sum(change)/len(change)]*len(change)
            for j, d in zip(places, change):
                a, rho = rows.adv[r], d.exp()
                gain = min(rho*a, min(max(rho, torch.tensor(1 - eps_lo).double()), torch.tensor(1 + eps_hi).double())*a)
                if dual_clip and a < 0: gain = max(gain, dual_clip*a)
                apart = ref[r, j] - logp[r, j]
                gain = gain - beta*(apart.exp() - apart - 1)
                total = total - gain/{"flow": len(rollouts)*len(mine)*len(places), "token": all_tokens, "rollout": len(rollouts)*tokens_of_rollout,
                                      "constant": len(rollouts)*constant, "turns": len(rollouts)}[agg]
    return total


# advantages

def test_bandit_by_hand():
    a = one(torch.tensor([1., 0, 0, 1]))
    assert_close(a, 0.865875*torch.tensor([1., -1, -1, 1]), atol=1e-6, rtol=0)
    x = torch.zeros(3, requires_grad=True)
    logp = x.log_softmax(-1)[torch.tensor([0, 1, 1, 2])][:, None]
    loss, _ = flow_grpo_loss(logp, logp.detach(), None, torch.ones(4, 1), a, torch.arange(4))
    assert_close(torch.autograd.grad(loss, x)[0], torch.tensor([-0.216469, 0.432938, -0.216469]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("agg, largest", [("flow", 0.353503), ("token", 0.314225), ("turns", 0.471338), ("rollout", 0.353503)])
def test_two_turn_weights_by_hand(agg, largest):
    a = one(torch.tensor([1., 0]))
    assert_close(a, 0.707007*torch.tensor([1., -1]), atol=1e-6, rtol=0)
    x = torch.zeros(3, requires_grad=True)
    logp = x.log_softmax(-1)[torch.tensor([0, 1, 2])][:, None]
    loss, _ = flow_grpo_loss(logp, logp.detach(), None, torch.ones(3, 1), a[[0, 0, 1]], torch.tensor([0, 0, 1]), agg=agg)
    assert_close(torch.autograd.grad(loss, x)[0], largest*torch.tensor([-0.5, -0.5, 1]), atol=1e-6, rtol=0)


def test_eight_by_hand():
    assert_close(one(torch.tensor([1.] + [0.]*7)), torch.tensor([2.4742] + [-0.35345]*7), atol=1e-4, rtol=0)
    assert_close(one(torch.tensor([1.]*4 + [0.]*4)), torch.tensor([0.93524]*4 + [-0.93524]*4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_group_mean_includes_yourself(size, p):
    "All 2^G outcomes: centring shortens the gradient by 1 - 1/G, leave-one-out is exact."
    r = (torch.arange(2**size)[:, None] >> torch.arange(size)) & 1
    chance = torch.where(r == 1, p, 1 - p).double().prod(1)
    for loo, factor in ((False, 1 - 1/size), (True, 1.)):
        a = group_advantage(r.double().flatten(), torch.arange(2**size).repeat_interleave(size), scale="none", loo=loo).view_as(r)
        assert_close((chance*(a*(r - p)).mean(1)).sum().item(), factor*p*(1 - p))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0., 0.25, 0.5, 1.])), min_size=1, max_size=24), st.floats(0.5, 20), st.floats(-5, 5))
def test_advantages_keep_their_promises(members, factor, shift):
    ids, r = torch.tensor([i for i, _ in members]), f64(*[x for _, x in members])
    a, centred = group_advantage(r, ids), group_advantage(r, ids, scale="none")
    assert a.isfinite().all()
    for i in ids.unique():
        mine = ids == i
        assert abs(a[mine].sum()) < 1e-9
        assert_close(centred[mine], r[mine] - r[mine].mean())
        if mine.sum() > 1:
            assert_close(a[mine], (r[mine] - r[mine].mean())/(r[mine].std() + 1e-4))
            n = mine.sum()
            assert_close(group_advantage(r, ids, scale="none", loo=True)[mine], r[mine] - (r[mine].sum() - r[mine])/(n - 1))
        if (r[mine] == r[mine][0]).all(): assert not a[mine].any()
    order = torch.randperm(len(r))
    assert_close(group_advantage(r[order], ids[order]), a[order])
    assert_close(group_advantage(torch.cat([r, r]), torch.cat([ids, ids + 9])), torch.cat([a, a]))
    assert_close(group_advantage(factor*r + shift, ids, eps=0.)[informative(r, ids)], group_advantage(r, ids, eps=0.)[informative(r, ids)])
    assert_close(group_advantage(r, ids, scale="batch"), centred/((r.std() if len(r) > 1 else 0.) + 1e-4))


def test_a_million_more_in_single_precision():
    r, ids = (torch.rand(960, generator=torch.Generator().manual_seed(0)) < 0.4).float(), torch.arange(960) // 96
    for options in ({}, {"scale": "none"}, {"loo": True}, {"scale": "batch"}): assert_close(group_advantage(r + 1e6, ids, **options), group_advantage(r, ids, **options))


def test_equal_rewards_and_lonely_members_are_exactly_zero():
    for r in ([0.7]*7, [0.1]*3, [1e6 + 0.3]*5, [1.], [-3.3]*11):
        for options in ({}, {"scale": "none"}, {"scale": "none", "loo": True}, {"ddof": 0}): assert not one(torch.tensor(r), **options).any()
    x = torch.zeros(4, 2, requires_grad=True)
    loss, seen = flow_grpo_loss(x, x.detach(), None, torch.ones(4, 2), one(torch.full((4,), 0.7)), torch.arange(4))
    assert not torch.autograd.grad(loss, x)[0].any() and all(map(math.isfinite, seen.values()))


def test_the_unit_of_grouping():
    "Rewards 1, 0, 1, 0 with 2, 1, 2, 1 turns; a row more must not change statistics over trajectories."
    r, t, ids = torch.tensor([1., 0, 1, 0]), torch.tensor([2, 1, 2, 1]), torch.zeros(4, dtype=torch.long)
    assert_close(group_advantage(r, ids).abs(), torch.full((4,), 0.866), atol=1e-3, rtol=0)
    assert_close(row_advantage(r, ids, t), torch.tensor([0.645, -1.291, 0.645, -1.291]), atol=1e-3, rtol=0)
    unfolded = r.repeat_interleave(t)
    assert_close(row_advantage(r, ids, t).repeat_interleave(t), (unfolded - unfolded.mean())/(unfolded.std() + 1e-6))
    assert_close(group_advantage(r, ids, turns=torch.tensor([9, 1, 1, 1])), group_advantage(r, ids))
    assert_close(group_advantage(r, ids, unit="row", turns=torch.ones(4, dtype=torch.long)), group_advantage(r, ids))
    assert row_advantage(torch.tensor([0.4, 1., 0.]), torch.tensor([0, 1, 1]), torch.tensor([1, 2, 1]))[0] == torch.tensor(0.4)      # verl's lone row


@pytest.mark.parametrize("options, sentence", [({"center": "mean"}, "unknown center"), ({"scale": "sdt"}, "did you mean 'std'"), ({"unit": "turn"}, "unknown unit"),
                                               ({"center": "none"}, "raw reward"), ({"unit": "row"}, "needs the turns")])
def test_advantage_options_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence): one(torch.ones(2), **options)


def test_raw_rewards_and_other_types():
    assert_close(one(torch.tensor([1, 0]), center="none", scale="none"), torch.tensor([1., 0]))
    assert_close(one(torch.tensor([True, False])), one(torch.tensor([1., 0])))
    assert one(f64(1, 0)).dtype == torch.float64
    assert informative(torch.tensor([True, True, False, True]), torch.tensor([7, 7, 3, 3])).tolist() == [False, False, True, True]


@pytest.mark.parametrize("p, silent", [(0.05, 0.663), (0.35, 0.032), (0.5, 0.0078)])
def test_silent_groups(p, silent):
    r = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    keep = informative(r.flatten(), torch.arange(256).repeat_interleave(8)).view_as(r)[:, 0]
    share = (torch.where(r == 1, p, 1 - p).double().prod(1)*~keep).sum().item()
    assert_close(share, p**8 + (1 - p)**8); assert abs(share - silent) < 5e-4


# rows

def test_rows_hold_what_was_sampled():
    rollouts = [[TurnSample([5, 6], [1, 2, 3], [-.1, -.2, -.3], version=4), TurnSample([5, 6, 1, 7], [4], [-.5], version=4, truncated=True)],
            [TurnSample(torch.tensor([8]), torch.tensor([2, 2]), torch.tensor([-.4, -.6]), version=5)]]
    rows = flow_rows(rollouts, torch.tensor([1., -1]), groups=torch.tensor([3, 3]), pad=9)
    assert rows.prompt_ids.tolist() == [[9, 9, 5, 6], [5, 6, 1, 7], [9, 9, 9, 8]] and rows.prompt_mask.sum(1).tolist() == [2, 4, 1]
    assert rows.action_ids.tolist() == [[1, 2, 3], [4, 9, 9], [2, 2, 9]] and rows.mask.tolist() == [[True]*3, [False]*3, [True, True, False]]
    assert_close(rows.logp_old, torch.tensor([[-.1, -.2, -.3], [-.5, 0, 0], [-.4, -.6, 0]]))
    assert rows.adv.tolist() == [1, 1, -1] and rows.traj_id.tolist() == [0, 0, 1] and rows.group_id.tolist() == [3]*3
    assert rows.turn.tolist() == [0, 1, 0] and rows.version.tolist() == [4, 4, 5]
    assert len(rows.take(rows.turn == 0)) == 2 and rows.to("cpu").take(torch.tensor([2])).version.tolist() == [5]
    with pytest.raises(ValueError, match="2 trajectories, but 1"): flow_rows(rollouts, torch.ones(1))
    with pytest.raises(ValueError, match="log-probability"): flow_rows([[TurnSample([1], [1, 2], [0.])]], torch.ones(1))
    assert len(flow_rows([], torch.zeros(0))) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_credit(turns):
    t = torch.tensor(turns)
    traj, turn, adv = torch.repeat_interleave(t), torch.cat([torch.arange(k) for k in turns]), torch.randn(len(turns), dtype=torch.float64)
    found = {credit: spread(adv, traj, turn, t, credit, gamma=0.5) for credit in CREDITS}
    for row, (i, k) in enumerate(zip(traj.tolist(), turn.tolist())):
        to_come = turns[i] - 1 - k
        assert found["broadcast"][row] == adv[i] and found["last"][row] == (adv[i] if to_come == 0 else 0) and found["discount"][row] == adv[i]*0.5**to_come
    with pytest.raises(ValueError, match="did you mean 'last'"): spread(adv, traj, turn, t, "lst")


def test_a_rollout_is_the_product_of_its_rows():
    "Turns laid end to end with block attention in one pass give the sum of the rows' log-probs, and so the same gradient of the weights."
    g = torch.Generator().manual_seed(3)
    embed, head, w = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((9, 16), (16, 9), (2, 4, 16, 16)))
    w = (w/4).requires_grad_()
    def log_probs(ids, positions, mask):
        x, (cos, sin) = embed[ids][None], rotary_angles(positions[None], 8)
        for layer in w:
            q, k, v = ((x @ m).view(1, -1, 2, 8).transpose(1, 2) for m in layer[:3])
            x = x + attend(rotate(q, cos.double(), sin.double()), rotate(k, cos.double(), sin.double()), v, mask[None]).transpose(1, 2).reshape(1, -1, 16) @ layer[3]
        return (x @ head).log_softmax(-1)[0]
    for rollout in random_rollouts(g, 5):
        parts = []
        for s in rollout:
            ids, p = torch.tensor([*s.prompt_ids, *s.action_ids]), len(s.prompt_ids)
            n = torch.arange(len(ids))
            parts.append(log_probs(ids, n, n[:, None] >= n)[p - 1:-1].gather(1, ids[p:, None]).sum())
        ids = torch.tensor([i for s in rollout for i in (*s.prompt_ids, *s.action_ids)])
        block = torch.tensor([k for k, s in enumerate(rollout) for _ in (*s.prompt_ids, *s.action_ids)])
        position = torch.cat([torch.arange(len(s.prompt_ids) + len(s.action_ids)) for s in rollout])
        action = torch.tensor([b for s in rollout for b in [False]*len(s.prompt_ids) + [True]*len(s.action_ids)])
        whole = log_probs(ids, position, (block[:, None] == block) & (position[:, None] >= position))[:-1].gather(1, ids[1:, None])[:, 0][action[1:]].sum()
        assert_close(sum(parts), whole)
        assert_close(torch.autograd.grad(sum(parts), w)[0], torch.autograd.grad(whole, w)[0])


# the loss

@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("agg", AGGS)
@pytest.mark.parametrize("level", ["token", "turn"])
def test_loss_equals_the_loops(seed, agg, level):
    rows, logp, ref = batch(seed, drift=0.6)
    options = {"agg": agg, "level": level, "eps_lo": 0.2, "eps_hi": 0.3, "beta": 0.1, "dual_clip": 1.5, "constant": 7.}
    slow, (fast, seen) = slow_loss(rows, logp, ref, **options), loss_of(rows, logp, ref, **options)
    assert_close(fast, slow); assert_close(torch.autograd.grad(fast, logp)[0], torch.autograd.grad(slow, logp)[0])
    assert_close(seen["loss"], fast.item()); assert seen["token_count"] == rows.mask.sum()


@pytest.mark.parametrize("agg", AGGS)
def test_layout_does_not_matter(agg):
    "Order, padding, parts of a batch, garbage under the mask."
    rows, logp, ref = batch(5)
    whole, order = grad_of(rows, logp, ref, agg=agg, beta=0.1), torch.randperm(len(rows))
    assert_close(grad_of(rows.take(order), logp[order].detach().requires_grad_(), ref[order], agg=agg, beta=0.1), whole[order])
    w, parts = token_weights(rows.mask.double(), rows.traj_id, agg), torch.zeros_like(logp)
    for some in order.chunk(4): parts[some] += grad_of(rows.take(some), logp[some].detach().requires_grad_(), ref[some], weights=w[some], beta=0.1)
    assert_close(parts, whole)
    wide = [torch.cat([x.detach(), torch.full_like(x.detach(), torch.nan)], 1) for x in (logp, rows.logp_old, ref)]
    wide[0].requires_grad_()
    loss, _ = flow_grpo_loss(*wide, torch.cat([rows.mask, ~rows.mask & False], 1), rows.adv, rows.traj_id, agg=agg, beta=0.1)
    assert_close(torch.autograd.grad(loss, wide[0])[0], torch.cat([whole, 0*whole], 1))
    messy = torch.where(rows.mask, logp.detach(), torch.tensor(-torch.inf).double()).requires_grad_()
    assert_close(grad_of(rows, messy, ref, agg=agg, beta=0.1), whole)


@pytest.mark.parametrize("agg", AGGS)
def test_truncated_rows_are_not_trained_on(agg):
    rows, logp, ref = batch(8, truncated=0.5)
    cut = ~rows.mask.any(1)
    assert cut.any() and not cut.all() and not grad_of(rows, logp, ref, agg=agg, beta=1.)[cut].any()


def test_only_action_tokens_are_targets():
    "Other ids in prompt and padding leave everything but the conditioning alone: the loss reads log-probs of actions only."
    rows, logp, _ = batch(9)
    rows.prompt_ids.random_(1, 9); rows.action_ids[~rows.mask] = 8
    first = loss_of(rows, logp)[0]
    rows.logp_old[~rows.mask] = -123.
    assert_close(loss_of(rows, logp)[0], first)


@pytest.mark.parametrize("agg", AGGS)
def test_the_first_epoch_is_reinforce(agg):
    "On-policy: ratios of 1, nothing clipped, the surrogate a weighted mean of advantages, the gradient REINFORCE's."
    rows, logp, _ = batch(2, drift=0.)
    loss, seen = loss_of(rows, logp, agg=agg)
    w = token_weights(rows.mask.double(), rows.traj_id, agg)
    assert seen["mean_ratio"] == seen["max_ratio"] == 1 and seen["clip_low_fraction"] == seen["clip_high_fraction"] == seen["kl_old_nats"] == 0
    assert_close(seen["surrogate"], (w*rows.adv[:, None]).sum().item())
    assert_close(torch.autograd.grad(loss, logp)[0], torch.autograd.grad(-(w*rows.adv[:, None]*logp).sum(), logp)[0])


def test_metrics_by_hand():
    logp, adv = torch.log(torch.tensor([[1.5, 0.5, 1.], [0.5, 4., 1.]])), torch.tensor([1., -1])
    _, seen = flow_grpo_loss(logp, 0*logp, 0*logp, torch.tensor([[1, 1, 0], [1, 1, 1]]), adv, torch.tensor([0, 1]), beta=1., dual_clip=3.)
    assert_close([seen[k] for k in ("clip_high_fraction", "clip_low_fraction", "dual_clip_fraction", "max_ratio", "mean_ratio", "token_count")], [.2, .2, .2, 4., 1.5, 5.])
    assert_close(seen["surprise_nats"], -(math.log(1.5) + math.log(.5)*2 + math.log(4))/5)
    assert_close(seen["kl_ref_nats"], sum(1/x + math.log(x) - 1 for x in (1.5, .5, .5, 4.))/5)
    assert_close(seen["surrogate"], ((1.3 + .5)/2 + (-.8 - 3 - 1)/3)/2)


def test_geometric_mean_of_a_turn():
    logs = torch.tensor([[.3, -.1, .1]])
    _, seen = flow_grpo_loss(logs, 0*logs, None, torch.ones(1, 3), torch.ones(1), torch.zeros(1).long(), level="turn")
    assert_close(seen["mean_ratio"], 1.105171, atol=1e-6, rtol=0); assert_close(math.exp(.3), 1.349859, atol=1e-6, rtol=0)


def test_k3():
    d = torch.tensor([-1., 0, .5, -8, 8], requires_grad=True)
    assert_close(k3(d)[:3].detach(), torch.tensor([.367879, 0, .148721]), atol=1e-6, rtol=0)
    assert (k3(d) >= 0).all() and torch.autograd.grad(k3(d).sum(), d)[0][1] == 0
    p, q = torch.tensor([.2, .5, .3]), torch.tensor([.4, .4, .2])
    assert_close((p*k3((q/p).log())).sum(), (p*(p/q).log()).sum())                     # unbiased


def test_nothing_explodes():
    logp = torch.tensor([[-1e4, 0., -300.]], requires_grad=True)
    loss, seen = flow_grpo_loss(logp, torch.tensor([[0., -1e4, -1e4]]), torch.zeros(1, 3), torch.ones(1, 3), -torch.ones(1), torch.zeros(1).long(), beta=.1)
    assert loss.isfinite() and torch.autograd.grad(loss, logp)[0].isfinite().all() and all(map(math.isfinite, seen.values()))


@pytest.mark.parametrize("options, sentence", [({"agg": "flwo"}, "did you mean 'flow'"), ({"level": "sequence"}, "unknown level"), ({"beta": .1}, "reference"), ({"dual_clip": .5}, "above 1")])
def test_loss_options_are_checked(options, sentence):
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=sentence): flow_grpo_loss(x, x, None, x + 1, torch.ones(1), torch.zeros(1).long(), **options)
    with pytest.raises(ValueError, match="no rows"): flow_grpo_loss(x[:0], x[:0], None, x[:0], torch.ones(0), torch.zeros(0).long())


def test_a_thousand_rows_in_a_millisecond():
    "The fastest of many tries, with room for a busy machine."
    g = torch.Generator().manual_seed(0)
    logp, old, traj = -torch.rand(1000, 3, generator=g), -torch.rand(1000, 3, generator=g), torch.arange(1000) // 4
    mask, r, ids = torch.ones(1000, 3, dtype=torch.bool), torch.randint(2, (250,), generator=g).float(), torch.arange(250) // 8
    def fastest(f):
        times = []
        for _ in range(60):
            start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
        return min(times)
    adv, turn, turns = group_advantage(r, ids), torch.arange(1000) % 4, torch.full((250,), 4)
    for f in (lambda: group_advantage(r, ids), lambda: spread(adv, traj, turn, turns), lambda: flow_grpo_loss(logp, old, None, mask, adv[traj], traj)):
        assert fastest(f) < 3e-3


# TRL's own loss on the same batch

@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    "Makes TRL trainers of a random two-layer Llama on the CPU; all share the model."
    trl, transformers, datasets = (pytest.importorskip(name) for name in ("trl", "transformers", "datasets"))
    from tokenizers import Tokenizer, models
    words = Tokenizer(models.WordLevel({str(i): i for i in range(11)}, unk_token="0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                                                   num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0)).float()
    data, folder = datasets.Dataset.from_list([{"prompt": "2 3"}]*4), str(tmp_path_factory.mktemp("trl"))
    def make(beta=0., **settings):
        args = trl.GRPOConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4, num_generations=2, disable_tqdm=True,
                              use_bias_correction_kl=False, epsilon=.2, epsilon_high=.3, **settings)
        trainer = trl.GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [0.]*len(completions), args=args, train_dataset=data, processing_class=tokenizer)
        trainer.current_gradient_accumulation_steps, trainer.beta = 1, beta            # set late, else TRL looks for a reference model to load
        return trainer
    return make


TRL = {"flow is grpo": ({"loss_type": "grpo"}, {"agg": "flow"}), "token is dapo": ({"loss_type": "dapo"}, {"agg": "token"}),
       "turn is sequence": ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"level": "turn"}),
       "dual clip is delta": ({"loss_type": "grpo", "delta": 1.5}, {"dual_clip": 1.5}), "the KL": ({"loss_type": "dapo", "beta": .1}, {"agg": "token", "beta": .1}),
       "temperature": ({"loss_type": "grpo", "temperature": .7}, {})}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", TRL)
def test_parity_with_trl(trl_trainer, name):
    "One turn per trajectory: the same loss and the same gradient of every weight."
    theirs, ours = TRL[name]
    trainer, g = trl_trainer(**theirs), torch.Generator().manual_seed(1)
    rows = flow_rows(random_rollouts(g, 8, most=1, longest=5, truncated=.2), one(torch.tensor([1., 0, 0, 1, 0, 0, 1, 0])))
    model = trainer.model.train()
    def logps():
        ids, seen = torch.cat([rows.prompt_ids, rows.action_ids], 1), torch.cat([rows.prompt_mask, rows.mask], 1).long()
        logits = model(input_ids=ids, attention_mask=seen).logits[:, rows.prompt_ids.shape[1] - 1:-1]/theirs.get("temperature", 1.)
        return logits.log_softmax(-1).gather(2, rows.action_ids[..., None])[..., 0]
    with torch.no_grad(): old, ref = (logps() + .3*torch.randn(rows.mask.shape, generator=g) for _ in range(2))
    model.zero_grad()
    loss, _ = flow_grpo_loss(logps(), old, ref, rows.mask, rows.adv, rows.traj_id, eps_lo=.2, eps_hi=.3, **ours)
    loss.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    given = {"prompt_ids": rows.prompt_ids, "prompt_mask": rows.prompt_mask.long(), "completion_ids": rows.action_ids, "completion_mask": rows.mask.long(),
             "advantages": rows.adv, "old_per_token_logps": old, "ref_per_token_logps": ref, "num_items_in_batch": rows.mask.sum()}
    expected = trainer._compute_loss(model, given)
    expected.backward()
    assert_close(loss, expected, atol=1e-6, rtol=0)
    assert max(grads[k].abs().max() for k in grads) > 1e-3
    for k, p in model.named_parameters(): assert_close(grads[k], p.grad, atol=1e-6, rtol=0)
