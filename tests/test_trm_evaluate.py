"""Halting inference gives what the long way gives; noise, votes and bins do what they say."""
import numpy as np
import pytest, torch
from torch import nn
from llmwatch_course.trm.evaluate import by_difficulty, calibration, evaluate, film, relabelled, restarts, solve_all, vote
from llmwatch_course.trm.network import Output, Size
from llmwatch_course.trm.recursion import TRM

TINY = Size(cells=16, vocab=6, width=16, prefix=2, heads=2, hidden=32, token_hidden=16)

class Scripted(nn.Module):
    "Right and sure of it after as many steps as token 0 says; the answer is the question plus 1. z counts, y is how far noise went."
    def __init__(self):
        super().__init__()
        self.calls, self.most, self.unused = [], 0, nn.Parameter(torch.zeros(()))
    def start(self, b): return torch.zeros(b, 1, 1), torch.zeros(b, 1, 1)
    def forward(self, tokens, y, z, rows=None):
        self.calls.append(len(tokens))
        z = z + 1
        done = z[:, 0, 0] >= tokens[:, 0] - 0.5
        guess = torch.where(done[:, None], tokens + 1, 1)
        halt = torch.where(done, 2.0, -3.0)
        return Output(y, z, nn.functional.one_hot(guess, 40).float(), halt[:, None], halt)

def script(*needs): return torch.tensor([[n, 5, i % 7 + 2] for i, n in enumerate(needs)])

# ---- fixed

def test_report_by_hand():
    tokens = script(1, 3, 9)
    labels = tokens + 1; labels[0, 1] = 0                                  # one cell is not asked
    report = evaluate(Scripted(), tokens, labels, steps=4, batch=2)
    assert report.right.tolist() == [[True]*4, [False, False, True, True], [False]*4]
    assert report.halted_at.tolist() == [1, 3, 4] and report.answers[:2].tolist() == (tokens + 1)[:2].tolist()
    torch.testing.assert_close(report.exact, torch.tensor([1, 1, 2, 2])/3)
    torch.testing.assert_close(report.cells, torch.tensor([1, 1, 2, 2])/3)

def test_report_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    model, tokens = TRM(TINY).double(), torch.randint(1, 6, (7, 16))
    a, b = (evaluate(model, tokens, tokens, 3, n) for n in (3, 100))
    assert torch.equal(a.answers, b.answers) and torch.equal(a.right, b.right)
    torch.testing.assert_close(a.halt, b.halt)
    assert torch.equal(film(model, tokens, 3)[-1], a.answers) and not a.halt.requires_grad

# ---- halting

@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_halting_inference_of_a_script(batch):
    model, tokens = Scripted(), script(3, 1, 9, 2, 2, 1, 4)
    answers, steps, calls = solve_all(model, tokens, limit=5, batch=batch)
    assert steps.tolist() == [3, 1, 5, 2, 2, 1, 4] and calls == sum(model.calls) == int(steps.sum()) and max(model.calls) <= batch
    want = tokens + 1; want[2] = 1
    assert torch.equal(answers, want)
    if batch == 3: assert model.calls[:3] == [3, 3, 3]                      # freed places are taken at once

def test_who_never_halts_gets_the_answer_of_the_long_way():
    torch.manual_seed(0)
    model, tokens = TRM(TINY).double(), torch.randint(1, 6, (9, 16))       # q = -5 at the start: nobody halts; float64, as rounding depends on the batch
    report = evaluate(model, tokens, tokens, 6)
    for batch in (1, 4, 64):
        answers, steps, calls = solve_all(model, tokens, 6, batch)
        assert torch.equal(answers, report.answers) and calls == 9*6 and (steps == 6).all()

def test_a_higher_bar_waits_longer():
    tokens = script(3, 1, 2)                                               # halting logit 2 when done
    assert solve_all(Scripted(), tokens, 5, sure=1.9)[1].tolist() == [3, 1, 2] and solve_all(Scripted(), tokens, 5, sure=2.0)[1].tolist() == [5, 5, 5]

def test_nothing_to_solve():
    answers, steps, calls = solve_all(Scripted(), script(1)[:0])
    assert answers.shape == (0, 3) and len(steps) == calls == 0

# ---- restarts

class Judge(Scripted):
    "Right when the noise on z happened to be large; its q knows."
    def forward(self, tokens, y, z, rows=None):
        y = y + z
        right = (y[:, 0, 0].abs() > 1) | (tokens[:, 0] == 1)
        return Output(y, torch.zeros_like(z), nn.functional.one_hot(torch.where(right[:, None], tokens + 1, 1), 40).float(), y[:, 0], torch.where(right, 1.0, -1.0))

def test_restarts_with_a_perfect_judge_never_lose():
    tokens = script(*[1, 2]*50)
    right = [(restarts(Judge(), tokens, k, 0.8, torch.Generator().manual_seed(0), limit=1)[0] == tokens + 1).all(1) for k in (1, 2, 4, 16)]
    for fewer, more in zip(right, right[1:]): assert not (fewer & ~more).any()
    assert right[0].sum() == 50 and right[-1].sum() > 80

def test_restarts_without_noise_are_the_plain_answer():
    torch.manual_seed(0)
    model, tokens = TRM(TINY), torch.randint(1, 6, (5, 16))
    answers, halt = restarts(model, tokens, 3, 0.0, torch.Generator(), limit=4)
    assert torch.equal(answers, evaluate(model, tokens, tokens, 4).answers) and torch.equal(halt[0], halt[2])

# ---- votes

def test_votes_by_hand():
    a, b, c = [2, 3], [2, 4], [5, 5]
    answers = torch.tensor([[a, c, a], [b, c, b], [b, a, c]])              # three ballots for three puzzles
    halt = torch.tensor([[9., 0, 0], [0, 0, 5], [0, 9, 1]])
    assert vote(answers, halt).tolist() == [b, c, b]                       # most ballots; then, among single ones, the surest

def test_relabelled_boards_come_back():
    tokens = torch.randint(1, 6, (3, 16))
    images, back = relabelled(tokens, 5, 6, torch.Generator().manual_seed(0))
    assert images.shape == (5, 3, 16) and torch.equal(images[0], tokens) and (images[1:] != tokens).any()
    assert torch.equal(back.gather(2, images), tokens.expand(5, 3, 16)) and torch.equal(images == 1, (tokens == 1).expand(5, 3, 16))

# ---- bins

def test_bins():
    report = evaluate(Scripted(), tokens := script(1, 3, 9, 2), tokens + 1, steps=4)
    rows = by_difficulty(report, np.array([0, 5, 200, 6]), edges=(0, 1, 4, 8))
    assert [(r.branches, r.puzzles, r.exact, r.steps) for r in rows] == [("0", 1, 1.0, 1.0), ("4 to 7", 2, 1.0, 2.5), ("8 or more", 1, 0.0, 4.0)]

def test_calibration_counts_every_answer():
    report = evaluate(Scripted(), tokens := script(1, 3, 9, 2), tokens + 1, steps=4)
    said, seen, count = calibration(report, bins=4)
    assert count.sum() == 16 and count.tolist() == [(~report.right).sum(), 0, 0, report.right.sum()] and seen[0] == 0 and seen[-1] == 1
    assert said[0] == pytest.approx(torch.tensor(-3.0).sigmoid().item())

# ---- what is shipped

def test_shipped_checkpoint_solves_new_puzzles():
    from llmwatch_course.foundations.settings import settings
    from llmwatch_course.foundations.training import load_weights
    from llmwatch_course.trm.sudoku import Box, from_tokens, generate, solved, to_tokens
    model = load_weights(TRM(Size.sudoku6(), n=3, cycles=2), settings().data_dir/"checkpoints"/"trm-sudoku6.safetensors")
    p = generate(60, Box(2, 3), 4321)
    answers, steps, calls = solve_all(model, to_tokens(p.puzzles), sure=3.0)
    assert solved(from_tokens(answers), p.puzzles, Box(2, 3)).mean() > 0.9 and calls < 60*16/4
