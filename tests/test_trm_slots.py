"""The slot scheduler: tables by hand, the stream of examples, isolation from the graph, no wait for the device, two processes."""
from collections import Counter
from types import SimpleNamespace as Record
import pytest, torch
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from llmwatch_course.trm.slots import Data, Slots, advance, empty_slots, refill, scramble

L, D = 3, 2

class Fake:
    "Just enough of a model: fresh states are -1 and -2."
    size = Record(cells=4)
    def start(self, b): return torch.full((b, L, D), -1.), torch.full((b, L, D), -2.)

def numbers(m, **more):
    "m puzzles that carry their own number."
    n = torch.arange(m)
    return Data(n[:, None].expand(m, 4).contiguous(), n[:, None].expand(m, 4) + 1000, n + 5000, **more)

def step(slots, halt, limit=16, explore=0.0, seed=0):
    "A supervision step whose halting logits are given; y and z grow by 1."
    output = Record(y=slots.y + 1, z=slots.z + 1, halt=torch.as_tensor(halt, dtype=torch.float))
    return advance(slots, output, limit, torch.Generator().manual_seed(seed), explore)

def play(rows, limit, m=50):
    "Feed a table of halting logits; give steps, halted and puzzles (in order of the stream) after each step."
    data, slots, g = numbers(m), empty_slots(Fake(), len(rows[0])), torch.Generator().manual_seed(0)
    place = {x: i for i, x in enumerate(data.which(torch.arange(m)).tolist())}
    steps, halted, puzzle = [], [], []
    for halt in rows:
        slots = step(refill(slots, data, Fake(), g), halt, limit)
        steps.append(slots.steps.tolist()); halted.append(slots.halted.int().tolist()); puzzle.append([place[x] for x in slots.tokens[:, 0].tolist()])
    return steps, halted, puzzle

def test_table_without_exploration():
    q = [[-1, 1, -1], [1, -1, -1], [-1, -1, 0], [1, 1, -1], [-1, -1, -1]]
    steps, halted, puzzle = play(q, limit=4)
    assert steps == [[1, 1, 1], [2, 1, 2], [1, 2, 3], [2, 3, 4], [1, 1, 1]]
    assert halted == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]  # q = 0 does not halt
    assert puzzle == [[0, 1, 2], [0, 3, 2], [4, 3, 2], [4, 3, 2], [5, 6, 7]]

@pytest.mark.parametrize("limit", [1, 2, 16])
def test_the_limit_always_halts(limit):
    slots = empty_slots(Fake(), 64); slots.steps += limit - 1
    for seed in range(20): assert step(slots, [-9]*64, limit, explore=1.0, seed=seed).halted.all()

def test_seeded_exploration():
    slots = empty_slots(Fake(), 8)
    g = torch.Generator().manual_seed(3)
    least = (torch.rand(8, generator=g) < 0.5)*torch.randint(2, 7, (8,), generator=g)
    for before in range(6):
        slots.steps = torch.full((8,), before)
        got = step(slots, [1]*8, limit=6, explore=0.5, seed=3)
        assert torch.equal(got.halted, (before + 1 >= least) | (before + 1 >= 6))
    assert (least > 0).any() and (least == 0).any()

def test_exploration_statistics():
    n = 40_000
    slots = empty_slots(Fake(), n)
    for before, held in ((0, 0.1), (7, 0.1*8/15), (14, 0.1/15), (15, 0)):
        slots.steps = torch.full((n,), before)
        share = 1 - step(slots, [1]*n, limit=16, explore=0.1).halted.float().mean().item()
        assert abs(share - held) < 4*(0.1*0.9/n)**0.5 and (held or share == 0)

def test_reset_and_untouched_slots():
    data, g = numbers(50), torch.Generator().manual_seed(0)
    slots = step(refill(empty_slots(Fake(), 4), data, Fake(), g), [1, -1, 1, -1])
    new = refill(slots, data, Fake(), g)
    assert new.steps.tolist() == [0, 1, 0, 1] and not new.halted.any() and new.example == 6
    for name in ("y", "z", "tokens", "labels", "ids", "steps"):
        assert torch.equal(getattr(new, name)[[1, 3]], getattr(slots, name)[[1, 3]]), name
    assert (new.y[[0, 2]] == -1).all() and (new.z[[0, 2]] == -2).all()
    assert torch.equal(new.labels, new.tokens + 1000) and torch.equal(new.ids, new.tokens[:, 0] + 5000)

def test_a_refill_leaves_the_graph_alone():
    data, g = numbers(50), torch.Generator().manual_seed(0)
    slots = refill(empty_slots(Fake(), 4), data, Fake(), g)
    weight = torch.ones(D, requires_grad=True)
    y = slots.y*weight
    loss = (y*y).sum()                                               # saves y for the backward pass
    versions = {k: v._version for k, v in vars(slots).items()}
    after = advance(slots, Record(y=y.detach(), z=slots.z, halt=torch.ones(4)), 16, g)
    kept = after.y.clone()
    new = refill(after, data, Fake(), g)
    assert {k: v._version for k, v in vars(slots).items()} == versions and torch.equal(after.y, kept)
    assert new.y.data_ptr() != after.y.data_ptr() and not new.y.requires_grad
    loss.backward()
    assert torch.equal(weight.grad, torch.full((D,), 2.*4*L))

def test_nothing_is_thrown_away():
    data, slots, g, seen = numbers(10), empty_slots(Fake(), 4), torch.Generator().manual_seed(0), []
    for i in range(60):
        before = slots.halted
        slots = refill(slots, data, Fake(), g)
        seen += slots.tokens[before, 0].tolist()
        slots = step(slots, torch.randn(4, generator=g), limit=5, seed=i)
    assert len(seen) == slots.example.item()
    assert seen == data.which(torch.arange(len(seen))[:8]).tolist() + seen[8:]
    for turn in range(len(seen)//10): assert sorted(seen[10*turn:10*turn + 10]) == list(range(10))

@pytest.mark.parametrize("m, b", [(1, 5), (3, 8), (10, 10), (100, 7)])
def test_orders(m, b):
    data = numbers(m, seed=4)
    stream = torch.cat([data.which(torch.arange(i, i + b)) for i in range(0, 6*m*b, b)])[:6*m*b]
    assert torch.equal(stream[:b], data.which(torch.arange(b)))
    passes = stream.view(-1, m)
    assert (passes.sort(1).values == torch.arange(m)).all()
    if m == 10: assert len(set(map(tuple, passes.tolist()))) > 50
    if m == 100: assert not torch.equal(passes[0], numbers(m, seed=5).which(torch.arange(100)))

def test_first_places_are_uniform():
    first = torch.stack([numbers(8, seed=s).which(torch.arange(8))[:2] for s in range(800)])
    for column in first.unbind(1): assert max(abs(n - 100) for n in Counter(column.tolist()).values()) < 45
    assert len(set(map(tuple, first.tolist()))) == 56

def test_scramble_is_one_to_one():
    x = torch.arange(-50_000, 50_000)
    assert len(scramble(x).unique()) == len(x)
    assert abs((scramble(x) & 1).float().mean() - 0.5) < 0.01

def test_change_and_errors():
    data = numbers(6, change=lambda t, y, g: (t + 1, y + 1))
    tokens, labels, ids = data.draw(torch.arange(6), torch.Generator())
    assert torch.equal(ids - 5000, tokens[:, 0] - 1) and torch.equal(labels, tokens + 1000)
    with pytest.raises(ValueError, match="make no data"): Data(torch.zeros(2, 4), torch.zeros(3, 4))
    plain = Data(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)).to("cpu")
    assert plain.ids.tolist() == [0, 0]

def test_saved_slots_come_back():
    data, g = numbers(20), torch.Generator().manual_seed(0)
    slots = step(refill(empty_slots(Fake(), 4), data, Fake(), g), [1, -1, 1, -1])
    back = Slots(**{k: v.clone() for k, v in vars(slots).items()})
    for (k, a), b in zip(vars(refill(slots, data, Fake(), g)).items(), vars(refill(back, data, Fake(), g)).values()): assert torch.equal(a, b), k

class NoWaiting(TorchDispatchMode):
    "Refuses every operation whose result the host would have to wait for."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] or ())
        if masked or name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive", "masked_select"):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))

def test_no_wait_for_the_device():
    data, slots, g = numbers(10), empty_slots(Fake(), 4), torch.Generator().manual_seed(0)
    with NoWaiting():
        with pytest.raises(AssertionError, match="waits"): slots.example.item()
        with pytest.raises(AssertionError, match="waits"): slots.y[slots.halted]
        for i in range(5): slots = step(refill(slots, data, Fake(), g), slots.steps.float() - 1, seed=i)
    assert slots.steps.shape == (4,)

def run(slots, limit=6):
    "Thirty steps whose halting depends on puzzle and depth; the whole history."
    data, g, history = numbers(30, change=lambda t, y, g: (t + (d := torch.randint(0, 9, (len(t), 1), generator=g)), y + d)), torch.Generator().manual_seed(0), []
    for _ in range(30):
        slots = refill(slots, data, Fake(), g)
        slots = advance(slots, Record(y=slots.y + 1, z=slots.z, halt=(slots.ids + slots.steps) % 5 - 3.), limit, g, 0.3)
        history.append(torch.stack([slots.tokens[:, 0], slots.labels[:, 0], slots.ids, slots.steps, slots.halted, slots.example.expand_as(slots.steps)]))
    return torch.stack(history)

def one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder/'store'}", rank=rank, world_size=2)
    torch.save(run(empty_slots(Fake(), 3)), folder/f"{rank}.pt")
    torch.distributed.destroy_process_group()

def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)
    both = torch.cat([torch.load(tmp_path/f"{rank}.pt") for rank in range(2)], -1)
    assert torch.equal(both, run(empty_slots(Fake(), 6)))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_wait_for_a_gpu():
    class OnGPU(Fake):
        def start(self, b): return torch.zeros(b, L, D, device="cuda"), torch.zeros(b, L, D, device="cuda")
    data, slots, g = numbers(10).to("cuda"), empty_slots(OnGPU(), 4, "cuda"), torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            slots = refill(slots, data, OnGPU(), g)
            slots = advance(slots, Record(y=slots.y + 1, z=slots.z, halt=slots.steps - 1.), 16, g)
    finally: torch.cuda.set_sync_debug_mode("default")
    assert (slots.steps > 0).all()
