"""Chained forward training: the plain loss with one window, windows as the dictionary says, no gradient through predictions, and calls counted."""
from unittest import mock
import pytest, torch
from torch import nn
from llmwatch_course.memory_forcing import chained as M
from llmwatch_course.memory_forcing.diffusion import Condition, df_loss, sample_next
from llmwatch_course.memory_forcing.model import WorldDiT

B, WINDOW, TOKENS, CHANNELS = 2, 3, 4, 6

def dice(seed=0): return torch.Generator().manual_seed(seed)

def conditions(n): return [Condition(torch.zeros(B, WINDOW, dtype=torch.long)) for _ in range(n)]

def truth(windows): return torch.randn(B, windows + WINDOW - 1, TOKENS, CHANNELS, generator=dice(7))

def net():
    torch.manual_seed(0)
    return WorldDiT(TOKENS, CHANNELS, 16, 1, 2, WINDOW, memory=False)

class Fixed(nn.Module):
    "Predicts what it holds, and counts calls."
    def __init__(self): super().__init__(); self.said, self.calls = nn.Parameter(torch.zeros(B, WINDOW, TOKENS, CHANNELS)), {True: 0, False: 0}
    def forward(self, x, k, condition): self.calls[torch.is_grad_enabled()] += 1; return self.said + 0*x

def test_one_window_is_the_plain_loss():
    model, x, c = net(), truth(1), conditions(1)
    assert torch.equal(M.chained_loss(model, x, c, dice()), df_loss(model, x, c[0], dice()))

@pytest.mark.parametrize("windows,few", [(1, 2), (2, 1), (4, 3), (7, 2)])
def test_calls(windows, few):
    model = Fixed()
    with mock.patch.object(M, "sample_next", wraps=sample_next) as sampler: M.chained_loss(model, truth(windows), conditions(windows), dice(), few)
    assert sampler.call_count == windows - 1 and model.calls == {True: windows, False: few*(windows - 1)}

@pytest.mark.parametrize("windows", [2, 3, 6])
def test_windows_hold_what_the_dictionary_says(windows):
    x, seen, made, c = truth(windows), [], {}, conditions(windows)
    def loss(model, window, condition, generator, mask): seen.append((window.clone(), mask.clone(), condition)); return window.sum()*0
    def sample(model, window, condition, generator, few): made[len(made) + WINDOW - 1] = torch.full((B, TOKENS, CHANNELS), 100. + len(made)); return made[len(made) + WINDOW - 2]
    before = x.clone()
    with mock.patch.object(M, "df_loss", loss), mock.patch.object(M, "sample_next", sample): M.chained_loss(nn.Identity(), x, c, dice())
    assert torch.equal(x, before) and len(made) == windows - 1
    for j, (window, mask, condition) in enumerate(seen):
        assert condition is c[j]
        predicted = {i: window[:, i - j] for i in range(j, j + WINDOW) if i in made and i < j + WINDOW - 1}
        assert len(predicted) == min(j, WINDOW - 1)
        for i in range(j, j + WINDOW):
            assert torch.equal(window[:, i - j], made[i] if i in predicted else x[:, i])
            assert bool((mask[:, i - j] == (i not in predicted)).all())
        assert bool((mask[:, -1] == 1).all())

def test_the_sampler_gets_the_window_with_its_predictions():
    "The second prediction is made from the first one."
    got = []
    def sample(model, window, condition, generator, few): got.append(window.clone()); return torch.full((B, TOKENS, CHANNELS), float(len(got)))
    x = truth(3)
    with mock.patch.object(M, "sample_next", sample): M.chained_loss(net(), x, conditions(3), dice())
    assert torch.equal(got[0], x[:, :3]) and torch.equal(got[1][:, 1], torch.ones(B, TOKENS, CHANNELS)) and torch.equal(got[1][:, 2], x[:, 3])

def test_predicted_frames_carry_no_loss():
    model = Fixed()
    M.chained_loss(model, truth(3), conditions(3), dice()).backward()
    late = torch.autograd.grad(df_loss(model, truth(1), conditions(1)[0], dice(), torch.tensor([[0., 0., 1.]]*B)), model.said)[0]
    assert bool((late[:, :2] == 0).all()) and bool((late[:, 2] != 0).any())
    with mock.patch.object(M, "df_loss", lambda model, x, c, g, mask: (model.said.mean((-1, -2))*mask).sum()):
        model.said.grad = None
        M.chained_loss(model, truth(3), conditions(3), dice()).backward()
    per_frame = model.said.grad[0].sum((-1, -2))*3  # windows that count each place: place 0 in windows 0 and 1 and 2 where true
    torch.testing.assert_close(per_frame, torch.tensor([2., 1., 3.]))

def test_no_gradient_through_predictions():
    def gradient(change):
        model = net()
        with mock.patch.object(M, "sample_next", lambda *args: change(sample_next(*args))): M.chained_loss(model, truth(3), conditions(3), dice()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.equal(gradient(torch.detach), gradient(lambda x: x)) and not sample_next(net(), truth(1), conditions(1)[0], dice()).requires_grad

def test_the_loss_is_the_mean_of_its_windows():
    model, x, c, g = net(), truth(2), conditions(2), dice(5)
    first = df_loss(model, x[:, :3], c[0], g, torch.ones(B, WINDOW))
    made = sample_next(model, x[:, :3], c[0], g, 2)
    window = torch.stack([x[:, 1], made, x[:, 3]], 1)
    second = df_loss(model, window, c[1], g, torch.tensor([[1., 0., 1.]]*B))
    torch.testing.assert_close(M.chained_loss(model, x, c, dice(5)), (first + second)/2, rtol=0, atol=0)
