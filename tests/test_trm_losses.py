"""The two losses of a supervision step: stable-max against its definition in float64, the halting classifier, padding."""
import math
import pytest, torch
from torch.testing import assert_close
from llmwatch_course.trm.losses import correct, halting_loss, stablemax_cross_entropy, supervision_loss, symlog

def stablemax(a):
    "The definition, in float64."
    a = a.double()
    s = torch.where(a >= 0, a + 1, 1/(1 - a.clamp(max=0)))
    return s/s.sum(-1, keepdim=True)

def official(logits, labels):
    "Mean over asked cells of -log p, in float64."
    p = stablemax(logits).gather(-1, labels[..., None])[..., 0]
    asked = (labels != 0).double()
    return -(p.log()*asked).sum(1)/asked.sum(1).clamp(min=1)

@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 11, (6, 81), generator=g)
    labels[5] = 0
    return 5*torch.randn(6, 81, 11, generator=g), labels

def test_known_values():
    logits = torch.tensor([[[2., 0, -1]]]*3)
    shifted = torch.cat([torch.full((3, 1, 1), -1e30), logits], -1)  # label 0 asks nothing, so the three are classes 1 to 3
    assert_close(symlog(torch.tensor([2., 0, -1])).exp(), torch.tensor([3, 1, 0.5]))
    got = stablemax_cross_entropy(shifted, torch.tensor([[1], [2], [3]]))
    assert_close(got, torch.tensor([0.405465, 1.504077, 2.197225]), atol=1e-6, rtol=0)

def test_value_and_gradient_equal_float64(batch):
    logits, labels = batch
    ours, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    a, b = stablemax_cross_entropy(ours, labels), official(wide, labels)
    assert_close(a.double(), b, atol=2e-6, rtol=1e-6)
    a.sum().backward(); b.sum().backward()
    assert_close(ours.grad.double(), wide.grad, atol=2e-7, rtol=1e-5)
    assert a[5] == 0 and (ours.grad[5] == 0).all()

def test_gradcheck():
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stablemax_cross_entropy(x, torch.tensor([[1, 2, 0, 3, 3], [0, 1, 1, 2, 0]])), logits)

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_where_others_fail(dtype):
    special = torch.tensor([0., -0., 1, -1, 1 - 2**-24, 1e4, -1e4, 6e4, -6e4]).to(dtype)
    logits = special.repeat(9, 1)[None].clone().requires_grad_()
    loss = stablemax_cross_entropy(logits, torch.arange(9)[None])
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all() and logits.grad.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    a = special.clone().requires_grad_()
    grad, = torch.autograd.grad(symlog(a).sum(), a)
    assert_close(grad, 1/(1 + special.abs()))

def test_stablemax_moves_under_a_shift():
    logits, labels = torch.tensor([[[0., 2, 0, -1]]]), torch.tensor([[1]])
    assert abs(stablemax_cross_entropy(logits + 1, labels) - stablemax_cross_entropy(logits, labels)) > 0.1

def test_ignored_cells_do_not_count(batch):
    logits, labels = batch
    other = torch.where((labels == 0)[..., None], 100*torch.randn_like(logits), logits)
    assert_close(stablemax_cross_entropy(other, labels), stablemax_cross_entropy(logits, labels))
    half = stablemax_cross_entropy(logits[:1], labels[:1])
    both = stablemax_cross_entropy(torch.cat([logits[:1], logits[:1]], 1), torch.cat([labels[:1], 0*labels[:1]], 1))
    assert_close(half, both)

def test_correct_looks_at_asked_cells_only():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [0, 0, 0]]), 4).float()
    labels = torch.tensor([[1, 2, 3], [1, 2, 1], [1, 0, 0], [0, 0, 0]])
    assert correct(logits, labels).tolist() == [True, False, True, False]
    assert not correct(logits, labels).requires_grad

def test_halting_loss_at_the_start():
    q = torch.tensor([-5., -5], requires_grad=True)
    loss = halting_loss(q, torch.tensor([False, True]))
    assert_close(loss, torch.tensor([math.log1p(math.exp(-5)), math.log1p(math.exp(5))]))
    assert_close(loss, torch.tensor([0.006715, 5.006715]), atol=1e-6, rtol=0)
    grad, = torch.autograd.grad(loss.sum(), q)
    assert_close(grad, torch.sigmoid(q.detach()) - torch.tensor([0., 1]))

def test_supervision_loss_is_the_sum_and_padding_is_free(batch):
    logits, labels = batch
    q = torch.linspace(-2, 2, 6, requires_grad=True)
    loss = supervision_loss(logits, q, labels)
    assert_close(loss[:5], (stablemax_cross_entropy(logits, labels) + halting_loss(q, correct(logits, labels))/2)[:5])
    grad, = torch.autograd.grad(loss.sum(), q)
    assert loss[5] == 0 and grad[5] == 0 and (grad[:5] != 0).all()
