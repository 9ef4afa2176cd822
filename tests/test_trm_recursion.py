"""Recursion: the loop typed off, the reach of the gradient, and the scalar map whose answer is known."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.trm.network import Network, Size
from llmwatch_course.trm.recursion import TRM, deep_recursion, fixed_point, latent_recursion, parameters_of

SMALL = Size(cells=6, vocab=5, width=8, prefix=2, heads=2, hidden=12, token_hidden=10)


def parts(mixer="mlp", seed=0):
    "A float64 network of width 8, and a question and a state for three boards."
    torch.manual_seed(seed)
    size = Size(cells=6, vocab=5, width=8, prefix=2, heads=2, hidden=12, token_hidden=10, mixer=mixer)
    net = Network(size).double()
    return net, *torch.randn(3, 3, size.tokens, size.width, dtype=torch.float64)


def loss(y): return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def by_weights(net, y): return torch.autograd.grad(loss(y), list(net.parameters()))


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_one_update_and_one_answer(mixer):
    net, x, y, z = parts(mixer)
    new_z = net(z + (y + x))
    got = deep_recursion(net, x, y, z, 1, 1)
    assert torch.equal(got[1], new_z) and torch.equal(got[0], net(y + new_z))


@pytest.mark.parametrize("gradient", ["full", "one-step"])
@pytest.mark.parametrize("n, cycles", [(1, 1), (3, 1), (1, 3), (4, 3)])
def test_values_and_calls(gradient, n, cycles):
    "Values don't depend on the gradient; each call comes once, those with gradient last."
    net, x, y, z = parts()
    calls = []
    def spy(h): calls.append(torch.is_grad_enabled()); return net(h)
    got = deep_recursion(spy, x, y, z, n, cycles, gradient)
    kept = n + 1 if gradient == "full" else 2
    assert calls == [False] * (cycles * (n + 1) - kept) + [True] * kept
    for _ in range(cycles):
        for _ in range(n): z = net(z + y + x)
        y = net(y + z)
    assert_close(got, (y, z))


def test_gradient_is_that_of_one_recursion_from_where_the_others_ended():
    net, x, y, z = parts()
    free = [t.detach() for t in deep_recursion(net, x, y, z, 3, 2)]
    for a, b in zip(by_weights(net, deep_recursion(net, x, y, z, 3, 3)[0]), by_weights(net, deep_recursion(net, x, *free, 3, 1)[0])):
        assert torch.equal(a, b)


def test_one_step_is_all_but_the_last_two_calls_detached():
    net, x, y, z = parts()
    got = by_weights(net, deep_recursion(net, x, y, z, 3, 2, "one-step")[0])
    for _ in range(2):
        for _ in range(3): last, z = z, net(z.detach() + y.detach() + x)
        before, y = y, net(y.detach() + z)
    new = net(last.detach() + before.detach() + x)
    assert_close(got, by_weights(net, net(before.detach() + new)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", ["full", "one-step"])
def test_no_gradient_into_the_state(gradient):
    net, *leaves = parts()
    leaves = [t.requires_grad_() for t in leaves]
    to_x, to_y, to_z = torch.autograd.grad(loss(deep_recursion(net, *leaves, 3, 2, gradient)[0]), leaves, allow_unused=True)
    assert to_y is None and to_z is None and to_x.abs().max() > 0


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_finite_differences(mixer):
    "Along a random direction of all weights, from a fixed start of the last recursion."
    net, x, y, z = parts(mixer)
    start = [t.detach() for t in deep_recursion(net, x, y, z, 3, 2)]
    weights = list(net.parameters())
    direction = [torch.randn_like(w) for w in weights]
    slope = sum((g * d).sum() for g, d in zip(by_weights(net, deep_recursion(net, x, y, z, 3, 3)[0]), direction))
    ends = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for w, d in zip(weights, direction): w += step * d
            ends.append(loss(latent_recursion(net, x, *start, 3)[0]))
    assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_free_recursions_leave_nothing_on_the_tape():
    net, x, y, z = parts()
    def saved(cycles, gradient):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t): deep_recursion(net, x, y, z, 4, cycles, gradient)
        return sum(kept)
    assert saved(1, "full") == saved(4, "full") > 2 * saved(1, "one-step") and saved(1, "one-step") == saved(4, "one-step")


def test_an_unknown_gradient_says_what_there_is():
    net, x, y, z = parts()
    with pytest.raises(ValueError, match="one-step"): deep_recursion(net, x, y, z, 1, 1, "half")


@pytest.mark.parametrize("a", [-0.9, 0., 0.5, 0.99, 1.5])
def test_scalar_map(a):
    "z <- a z + theta: (1 - a^m) / (1 - a) through the last m steps; z itself after k steps from 0."
    theta = torch.tensor([0.7, -2.], dtype=torch.float64)
    for k, m in ((1, 1), (6, 6), (6, 2), (9, 1)):
        z, slope = fixed_point(lambda z, t: a * z + t, torch.zeros_like(theta), theta, k, m)
        assert_close(z, theta * (1 - a**k) / (1 - a))
        assert_close(slope, torch.full_like(theta, (1 - a**m) / (1 - a)))
    assert not theta.requires_grad


def test_implicit_function_theorem():
    theta = torch.linspace(-1, 1, 9, dtype=torch.float64)
    z, true = fixed_point(lambda z, t: torch.cos(0.8 * z + t), torch.zeros_like(theta), theta, 300, 300)
    outer = -torch.sin(0.8 * z + theta)
    assert_close(true, outer / (1 - 0.8 * outer))


@pytest.mark.parametrize("mixer, size", [("mlp", 5_028_866), ("attention", 6_828_034)])
def test_parameters_of_the_paper(mixer, size):
    with torch.device("meta"): model = TRM(Size.official("sudoku", mixer), n=6, cycles=3)
    assert parameters_of(model) == size


@pytest.mark.parametrize("task, mixer, size", [("arc", "attention", 6_829_058), ("maze", "attention", 6_822_914), ("arc", "mlp", 18_801_666)])
def test_parameters_of_the_large_boards(task, mixer, size):
    with torch.device("meta"): assert parameters_of(TRM(Size.official(task, mixer))) == size


def test_protocol():
    torch.manual_seed(0)
    model = TRM(SMALL, n=2, cycles=2)
    tokens, labels = torch.randint(1, 5, (2, 4, 6))
    y, z = model.start(4)
    assert y.shape == z.shape == (4, 8, 8) and y.is_contiguous() and (y == y[0, 0]).all() and not torch.equal(y, z)
    y.zero_(); assert model.start(1)[0].abs().max() > 0                    # a fresh tensor each time
    assert model.start(1)[0].data_ptr() != model.y0.data_ptr()
    output = model(tokens, *model.start(4))
    assert output.logits.shape == (4, 6, 5) and output.halt.shape == (4,) and (output.q == -5).all()
    assert not output.y.requires_grad and not output.z.requires_grad and output.logits.requires_grad
    losses = model.objective(tokens, labels, output, torch.zeros(4, dtype=torch.bool))
    losses.mean().backward()
    assert losses.shape == (4,) and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {"y0", "z0"} <= set(model.state_dict()) and not {"y0", "z0"} & {name for name, _ in model.named_parameters()}


def test_boards_do_not_see_each_other():
    torch.manual_seed(0)
    model = TRM(SMALL).double()
    tokens = torch.randint(1, 5, (4, 6))
    one, all_ = model(tokens[2:3], *model.start(1)), model(tokens, *model.start(4))
    assert_close(all_.logits[2:3], one.logits)
    assert_close(all_.y[2:3], one.y)
