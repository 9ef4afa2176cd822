"""What the library does is what the exercises of chapter 4 ask for."""
from types import SimpleNamespace
import torch
import torch.nn.functional as F
from llmwatch_course.trm import checks, evaluate, losses, recursion, slots, sudoku


class Model:
    "Two functions of an exercise as the library has them: a model whose answers are logits."
    def __init__(self, step, start): self.step, self.start = step, start
    def __call__(self, tokens, y, z):
        y, z, answers, q = self.step(tokens, y, z)
        return SimpleNamespace(y=y, z=z, logits=F.one_hot(answers, 9980).float(), halt=q)


def test_recursions():
    checks.check_latent_recursion(recursion.latent_recursion)
    checks.check_deep_recursion(recursion.deep_recursion)


def test_loss(): checks.check_stablemax(losses.stablemax_cross_entropy)


def test_refill():
    def answer(y, z, example, steps, halted, y0, z0, drawn):
        model = SimpleNamespace(start=lambda b: (y0.expand_as(y), z0.expand_as(z)))
        stream = SimpleNamespace(draw=lambda place, g: (place[:, None], place[:, None], place))
        old = slots.Slots(y, z, example[:, None], example[:, None], example, steps, halted, drawn)
        new = slots.refill(old, stream, model, torch.Generator())
        assert not new.halted.is_cpu or not new.halted.any()
        return new.y, new.z, new.ids, new.steps, new.example
    checks.check_refill(answer)


def test_halting():
    def answer(q, steps, limit, explore, generator):
        y = torch.zeros(len(q), 1, 1)
        old = slots.Slots(y, y, y, y, steps, steps - 1, steps < 0, torch.tensor(0))
        return slots.advance(old, SimpleNamespace(y=y, z=y, halt=q), limit, generator, explore).halted
    checks.check_halt(answer)


def test_symmetries():
    "The library draws a symmetry for each pair of boards; here each draw of it is repeated for one board after another."
    def answer(boards, rows, columns, generator):
        state, out = generator.get_state(), []
        for board in boards.flatten(1)[:, None]:
            generator.set_state(state)
            tokens, labels = sudoku.symmetric(board + 1, board + 1, sudoku.Box(rows, columns), generator)
            assert torch.equal(tokens, labels)
            out.append(tokens - 1)
        return torch.cat(out).view_as(boards)
    checks.check_symmetric(answer)


def test_inference_that_stops():
    def answer(step, start, questions, limit, batch):
        answers, steps, calls = evaluate.solve_all(Model(step, start), questions, limit, batch)
        assert calls == steps.sum()
        return answers, steps
    checks.check_solve_all(answer)


def test_restarts():
    checks.check_restarts(lambda step, start, questions, k, sigma, limit, g: evaluate.restarts(Model(step, start), questions, k, sigma, g, limit)[0])
