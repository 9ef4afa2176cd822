"""Diffusion forcing: the line, the three predictions, the loss by hand, the sampler on a network that knows, bookkeeping of rollouts."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.memory_forcing.diffusion import PREDICT, Condition, convert, df_loss, q_sample, rollout, sample_next


def generator(seed=0): return torch.Generator().manual_seed(seed)


@pytest.fixture
def clip():
    g = generator()
    return torch.randn(3, 5, 2, 4, generator=g), torch.rand(3, 5, generator=g), torch.randn(3, 5, 2, 4, generator=g)


NOTHING = Condition(torch.zeros(3, 5, dtype=torch.long))


def test_ends_of_the_line(clip):
    x, _, eps = clip
    assert torch.equal(q_sample(x, torch.zeros(3, 5), eps), x) and torch.equal(q_sample(x, torch.ones(3, 5), eps), eps)
    assert torch.equal(q_sample(x, 0.25, eps), q_sample(x, torch.full((3, 5), 0.25), eps))


@pytest.mark.parametrize("source", PREDICT)
@pytest.mark.parametrize("target", PREDICT)
def test_conversions(clip, source, target):
    x, k, eps = (o.double() for o in clip)
    k = 0.02 + 0.96 * k
    truth = {"x0": x, "eps": eps, "v": eps - x}
    assert_close(convert(truth[source], q_sample(x, k, eps), k, source, target), truth[target], atol=1e-6, rtol=0)


@pytest.mark.parametrize("source", PREDICT)
@pytest.mark.parametrize("target", PREDICT)
@pytest.mark.parametrize("k", [0.0, 1.0])
def test_conversions_are_finite_at_the_ends(clip, source, target, k):
    assert convert(clip[0], clip[2], k, source, target).isfinite().all()


def test_unknown_prediction(clip):
    with pytest.raises(ValueError, match="x0, eps, v, not 'x'"): convert(clip[0], clip[0], 0.5, "x0", "x")


@pytest.mark.parametrize("predict", PREDICT)
def test_loss_by_hand(clip, predict):
    x, _, _ = clip
    g = generator(4)
    k, eps = torch.rand(3, 5, generator=g), torch.randn(x.shape, generator=g)
    seen = []
    def model(x_k, level, condition): seen.append((x_k, level, condition)); return 0.3 * x_k
    mask = (torch.arange(15).view(3, 5) % 3 > 0).float()
    losses = df_loss(model, x, NOTHING, generator(4), predict=predict), df_loss(model, x, NOTHING, generator(4), mask, predict)
    each = torch.empty(3, 5)
    for b in range(3):
        for t in range(5):
            noised = x[b, t] + k[b, t] * (eps[b, t] - x[b, t])
            each[b, t] = (0.3 * noised - {"x0": x, "eps": eps, "v": eps - x}[predict][b, t]).square().mean()
    assert_close(losses[0], each.mean()); assert_close(losses[1], each[mask > 0].mean())
    assert torch.equal(seen[0][1], k) and seen[0][2] is NOTHING


@pytest.mark.parametrize("predict", PREDICT)
@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_sampler_finds_what_the_network_knows(clip, predict, steps):
    x, _, _ = clip
    if predict == "eps" and steps == 1: pytest.skip("at level 1 the noise says nothing about the frame")
    def knows(x_k, k, condition): return convert(x, x_k, k, "x0", predict)
    assert_close(sample_next(knows, x, NOTHING, generator(), steps, predict=predict), x[:, -1], atol=2e-3, rtol=1e-3)


def test_what_the_sampler_shows_the_network(clip):
    x, kept, calls = clip[0], clip[0].clone(), []
    def model(x_k, k, condition): calls.append((x_k.clone(), k.clone())); return torch.zeros_like(x_k)
    sample_next(model, x, NOTHING, generator(3), 4, label=0.1)
    assert torch.equal(x, kept) and len(calls) == 4
    for i, (x_k, k) in enumerate(calls):
        assert torch.equal(x_k[:, :-1], x[:, :-1]) and (k[:, :-1] == 0.1).all() and (k[:, -1] == 1 - i / 4).all()
    assert_close(calls[0][0][:, -1], torch.randn(x[:, -1].shape, generator=generator(3)))
    assert_close(calls[2][0][:, -1], calls[0][0][:, -1] / 2)   # a network that says 0: noise fades along the line


def test_sampler_gives_no_gradient(clip):
    layer = torch.nn.Linear(4, 4)
    assert not sample_next(lambda x, k, c: layer(x), clip[0], NOTHING, generator()).requires_grad


def test_rollout_order():
    def counts(x, k, condition): return torch.cat([x[:, 1:-1], x[:, -2:-1] + 1, x[:, -2:-1] + 1], 1)
    asked = []
    def condition_of(frames, t):
        asked.append((frames.shape[1], t))
        return torch.cat([frames[:, -2:], torch.zeros_like(frames[:, :1])], 1), Condition(torch.zeros(2, 3, dtype=torch.long))
    history = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 1, 3)
    made = rollout(counts, history, condition_of, 5, 3, generator())
    assert_close(made, torch.arange(4.0, 9).view(1, 5, 1, 1).expand(2, 5, 1, 3), atol=1e-4, rtol=0)
    assert asked == [(4 + i, 4 + i) for i in range(5)]
    assert torch.equal(made, rollout(counts, history, condition_of, 5, 3, generator()))


def test_rollout_says_what_is_wrong():
    history = torch.zeros(1, 2, 1, 1)
    with pytest.raises(ValueError, match="needs 3 frames of history, not 2"): rollout(None, history, None, 1, 4, generator())
    with pytest.raises(ValueError, match="window for frame 2 has 2 frames, not 3"):
        rollout(None, history, lambda frames, t: (frames, Condition(torch.zeros(1, 2))), 1, 3, generator())
