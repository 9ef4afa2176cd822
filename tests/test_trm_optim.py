"""AdamATan2 against the formula, sign-SGD on one and two processes, EMA."""
import math
from pathlib import Path
import pytest, torch
import torch.multiprocessing as mp
from torch import nn
from torch.testing import assert_close
from llmwatch_course.foundations.training import EMA, State, resume, save
from llmwatch_course.trm.optim import AdamATan2, sign_sgd

def run(gradients, lr=0.1, weight_decay=0.0, start=1.0, betas=(0.9, 0.95)):
    "A single weight's path."
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, path = AdamATan2([w], lr=lr, weight_decay=weight_decay, betas=betas), []
    for g in gradients:
        w.grad = torch.full_like(w, g); optimizer.step(); path.append(w.item())
    return path

def test_reference_sequence():
    assert_close(run([2, -1, 0.5], weight_decay=0.5), [0.8503313, 0.7810011, 0.7073843], atol=5e-8, rtol=0)

def test_formula_on_many_tensors():
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2, 2)]
    weights = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in shapes]
    want, m, v = [w.detach().clone() for w in weights], [0]*3, [0]*3
    optimizer = AdamATan2(weights, lr=0.01, weight_decay=0.3)
    for t in range(1, 8):
        for i, w in enumerate(weights):
            w.grad = torch.randn(w.shape, generator=g, dtype=torch.float64)
            m[i], v[i] = 0.9*m[i] + 0.1*w.grad, 0.95*v[i] + 0.05*w.grad**2
            want[i] = want[i]*(1 - 0.003) - 0.01/(1 - 0.9**t)*torch.atan2(m[i], v[i].sqrt()/(1 - 0.95**t)**0.5)
        optimizer.step()
        for w, x in zip(weights, want): assert_close(w.detach(), x)

@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_blind_to_the_scale_of_gradients(scale):
    gradients = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    assert_close(run([scale*g for g in gradients]), run(gradients), rtol=1e-10, atol=1e-12)

def test_size_of_steps():
    assert_close(1 - run([3.0], lr=0.01)[0], 0.01/0.1*math.atan(0.1), rtol=1e-9, atol=0)  # 0.997 of lr
    path = [1.0, *run([1.0]*200, lr=0.01)]
    assert max(a - b for a, b in zip(path, path[1:])) <= 0.01*math.pi/2

def test_zero_gradient_is_only_decay():
    assert_close(run([0.0, 0.0], weight_decay=0.5), [0.95, 0.95**2])
    assert run([0.0]) == [1.0]

def test_absent_gradients_and_groups():
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = AdamATan2([{"params": [a, b]}, {"params": [c], "lr": 0.5}], lr=0.1, weight_decay=1.0)
    a.grad = torch.ones(2); c.grad = torch.ones(2)
    optimizer.step()
    assert (b == 1).all() and optimizer.state[a]["step"] == 1 and b not in optimizer.state
    assert_close(c.detach(), torch.full((2,), 0.5 - 5*math.atan(0.1)))
    b.grad = torch.ones(2)  # its own count starts now
    optimizer.step()
    assert_close(b.detach(), torch.full((2,), 0.9 - math.atan(0.1)))

def make_state(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return State(model, AdamATan2(model.parameters(), lr=0.05, weight_decay=0.1), ema=EMA(model, 0.9))

def advance(state, steps):
    for _ in range(steps):
        state.update(state.model(torch.randn(4, 3, generator=state.generator)).square().mean()); state.step += 1
    return [p.detach().clone() for p in state.model.parameters()]

def test_resumed_run_is_the_same_run(tmp_path: Path):
    whole = advance(make_state(), 9)
    first = make_state(); advance(first, 4); save(first, tmp_path/"run.safetensors")
    second = make_state(1); resume(second, tmp_path/"run.safetensors")
    for a, b in zip(whole, advance(second, 5)): assert torch.equal(a, b)

def test_state_dict_round_trip():
    w = nn.Parameter(torch.ones(3)); optimizer = AdamATan2([w]); w.grad = torch.ones(3); optimizer.step()
    other = AdamATan2([nn.Parameter(torch.ones(3))]); other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    assert state["step"] == 1 and torch.equal(state["mean"], optimizer.state[w]["mean"])

def test_sign_sgd_rows():
    table = torch.arange(10.).view(5, 2).clone(); before = table.clone()
    grads = torch.tensor([[1., -3], [5, 0], [-4, 1], [-5, 0]])
    got = sign_sgd(table, torch.tensor([3, 1, 3, 1]), grads, lr=0.1, weight_decay=0.5)
    assert got is table and torch.equal(table[[0, 2, 4]], before[[0, 2, 4]])                   # absent: untouched, no decay either
    assert_close(table[3], before[3]*0.95 - 0.1*torch.tensor([-1., -1]))                        # summed before the sign
    assert_close(table[1], before[1]*0.95)                                                      # cancelled: decay only

def test_sign_sgd_against_a_loop():
    g = torch.Generator().manual_seed(0)
    table, ids, grads = torch.randn(20, 6, generator=g), torch.randint(0, 20, (64,), generator=g), torch.randn(64, 6, generator=g)
    want = table.clone()
    for i in ids.unique(): want[i] = table[i]*(1 - 0.02) - 0.2*grads[ids == i].sum(0).sign()
    assert_close(sign_sgd(table, ids, grads, 0.2, 0.1), want)

IDS, GRADS = torch.tensor([0, 2, 2, 0, 2, 4]), torch.tensor([[1., 2], [3, -1], [-1, -1], [-1, 1], [-3, 1], [0, 1]])

def one_of_two(rank, folder):
    "A process with its half of the rows."
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder/'store'}", rank=rank, world_size=2)
    table = sign_sgd(torch.ones(5, 2), IDS.chunk(2)[rank], GRADS.chunk(2)[rank], 0.1, 0.5)
    torch.save(table, folder/f"{rank}.pt")
    torch.distributed.destroy_process_group()

def test_two_processes_equal_one_on_the_union(tmp_path: Path):
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)
    want = sign_sgd(torch.ones(5, 2), IDS, GRADS, 0.1, 0.5)
    for rank in range(2): assert torch.equal(torch.load(tmp_path/f"{rank}.pt"), want)
    assert not torch.equal(sign_sgd(torch.ones(5, 2), IDS[:3], GRADS[:3], 0.1, 0.5), want)

def test_ema():
    model = nn.Linear(1, 1, bias=False); nn.init.ones_(model.weight); ema = EMA(model, 0.9)
    for w in (2., 3., 4.): nn.init.constant_(model.weight, w); ema.update(model)
    assert_close(ema.weights["weight"], torch.tensor([[1.561]]))
    nn.init.constant_(model.weight, 1.0); long = EMA(model, 0.999); nn.init.constant_(model.weight, 3.0)
    for _ in range(100): long.update(model)
    assert_close(long.weights["weight"].item(), 3 + 0.999**100*(1 - 3), rtol=1e-5, atol=0)
