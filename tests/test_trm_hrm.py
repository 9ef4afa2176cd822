"""HRM: the authors' loop, the targets of Q-learning by hand, the extra pass, and the sizes."""
import math
from dataclasses import replace
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from llmwatch_course.trm.hrm import HRM, continue_target
from llmwatch_course.trm.losses import correct, stablemax_cross_entropy
from llmwatch_course.trm.network import Network, Size
from llmwatch_course.trm.recursion import TRM, parameters_of

SMALL = Size(cells=6, vocab=5, width=8, prefix=2, heads=2, hidden=12, token_hidden=10)


def boards(n=4, seed=1): return torch.randint(1, 5, (2, n, 6), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = HRM(SMALL, layers=2).double()
    torch.nn.init.normal_(model.heads.halt.weight)                          # so that values differ
    torch.nn.init.normal_(model.heads.halt.bias)
    return model


@pytest.mark.parametrize("n, cycles", [(1, 1), (2, 2), (3, 2), (2, 3)])
def test_the_loop_as_its_authors_tell_it(n, cycles):
    torch.manual_seed(0)
    model = HRM(SMALL, n, cycles, layers=1).double()
    tokens, _ = boards()
    y, z = model.start(4)
    got = model(tokens, y, z)
    wanted = torch.autograd.grad(got.logits.square().sum(), list(model.parameters()), allow_unused=True, retain_graph=True)
    x = model.embedding(tokens)
    for i in range(cycles):
        for j in range(n):
            if (i, j) != (cycles - 1, n - 1): z = model.low(z + y + x).detach()
        if i < cycles - 1: y = model.high(y + z).detach()
    z = model.low(z + y + x)
    y = model.high(y + z)
    logits = y[:, SMALL.prefix:] @ model.heads.answer.weight.T
    assert_close(got.logits, logits)
    assert_close((got.y, got.z), (y.detach(), z.detach()))
    again = torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)
    for a, b in zip(wanted, again):
        assert (a is None) == (b is None)
        if a is not None: assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_targets_by_hand():
    "Rows: continuing is better there, halting is, a last step hides the better continuing, large values saturate."
    ahead = torch.tensor([[-2., 0.], [1., -3.], [-2., 5.], [60., 70.]])
    target = continue_target(ahead, torch.tensor([False, False, True, True]))
    assert_close(target, torch.tensor([0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)), 1.]))


def test_objective_by_hand(model):
    tokens, labels = boards()
    output = model(tokens, *model.start(4))
    labels = torch.where(torch.tensor([True, False, False, False])[:, None], output.logits.argmax(-1), labels)   # the first board is right
    last = torch.tensor([False, True, False, True])
    with torch.no_grad(): ahead = model(tokens, output.y, output.z).q
    bce = F.binary_cross_entropy_with_logits
    for i in range(4):
        aim = ahead[i, 0] if last[i] else ahead[i].max()
        wanted = stablemax_cross_entropy(output.logits, labels)[i] + 0.5 * bce(output.q[i, 0], correct(output.logits, labels)[i].double()) + 0.5 * bce(output.q[i, 1], aim.sigmoid())
        assert_close(model.objective(tokens, labels, output, last)[i], wanted)
    assert correct(output.logits, labels).tolist()[0] and (output.halt == output.q[:, 0] - output.q[:, 1]).all()


def test_the_target_gets_no_gradient_and_costs_a_pass(model):
    tokens, labels = boards()
    calls = []
    for net in (model.low, model.high): net.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    output = model(tokens, *model.start(4))
    assert calls == [False] * 4 + [True] * 2
    model.objective(tokens, labels, output, torch.zeros(4, dtype=torch.bool)).mean().backward()
    assert calls == [False] * 4 + [True] * 2 + [False] * 6
    assert all(p.grad is not None for p in model.parameters())


def test_padding_costs_nothing(model):
    tokens, labels = boards()
    output = model(tokens, *model.start(4))
    losses = model.objective(tokens, labels * torch.tensor([1, 1, 0, 1])[:, None], output, torch.zeros(4, dtype=torch.bool))
    assert losses[2] == 0 and (losses[[0, 1, 3]] > 0).all()


def test_size_of_the_paper():
    with torch.device("meta"): assert parameters_of(HRM(replace(Size.official("sudoku", "attention"), prefix=1))) == 27_275_266


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
@pytest.mark.parametrize("size", [Size.sudoku6(), Size(49, 6, width=64, hidden=160, token_hidden=80), Size(81, 11, width=96, prefix=3, hidden=256, token_hidden=128)])
def test_equal(size, mixer):
    trm = TRM(replace(size, mixer=mixer))
    hrm = HRM.equal(trm.size, parameters_of(trm), cycles=3)
    assert abs(parameters_of(hrm) / parameters_of(trm) - 1) < 0.02 and hrm.cycles == 3
    assert hrm.size.tokens == trm.size.tokens and hrm.size.width == trm.size.width
    assert sum(isinstance(m, Network) for m in hrm.modules()) == 2


def test_equal_says_when_it_cannot():
    with pytest.raises(ValueError, match="do not fit"): HRM.equal(Size.sudoku6(), 5_000)
