"""The zones of a layer: every token in exactly one place, and the same numbers in whatever pieces a text comes."""
import copy
from itertools import pairwise
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

pytest.importorskip("transformers")
from llmwatch_course.ahn.cache import Memory, Run, Zones, check_order, leave, remember
from llmwatch_course.ahn.layer import AHN, RULES, Gates
from llmwatch_course.foundations.blocks import attend, visible
from llmwatch_course.kv_cache.layers import Columns


def layer(rule="gdn", b=2, t=24, h=4, kv=2, d=4, c=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    ahn = AHN(c, h, d, rule, g).double().requires_grad_(False)
    ahn.out.copy_(draw(h, d, d))
    return ahn, draw(b, h, t, d), ahn.gates(draw(b, t, c)), draw(b, kv, t, d), draw(b, kv, t, d)

def part(x, a, b): return Gates(*(y[..., a:b] for y in x)) if isinstance(x, Gates) else x[:, :, a:b]

def published(ahn, q, gates, k, v, window, sinks):
    "One row, token by token, written from the equations: write who leaves, read, add to masked attention."
    t, h, d = q.shape[2], q.shape[1], q.shape[3]
    at = torch.arange(t)[None]
    unit = lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    share = lambda x: x.repeat_interleave(h // x.shape[1], 1)
    keys, values, queries = share(unit(k))[0], share(v)[0], unit(q)[0]
    y, state = attend(q, k, v, visible(at, at, window, sinks)), torch.zeros(h, d, d, dtype=q.dtype)
    for i in range(t):
        s = i - window
        if s >= sinks:
            a, w = gates.log_decay[0, :, s].exp()[:, None, None], gates.write[0, :, s][:, None, None]
            state = a * state
            old = (keys[:, s, None] @ state) if ahn.rule != "mamba2" else 0
            state = state + w * keys[:, s, :, None] * (values[:, s, None] - old)
        o = (queries[:, i, None] @ state)[:, 0]
        loud = nn.functional.silu(gates.read[0, :, i])[:, None]
        norm = lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
        o = norm((o * loud).flatten(), ahn.norm.weight, ahn.norm.eps).view(h, d) if ahn.rule == "mamba2" else norm(o, ahn.norm.weight, ahn.norm.eps) * loud
        y[0, :, i] += torch.einsum("hi,hio->ho", o, ahn.out)
    return y

def fed(zones, parts, cuts, positions):
    ahn, q, gates, k, v = parts
    edges = [0, *cuts, q.shape[2]]
    return torch.cat([remember(ahn, zones, part(q, a, b), part(gates, a, b), part(k, a, b), part(v, a, b), positions[:, a:b]) for a, b in pairwise(edges)], 2)

def plain(rows, t): return torch.arange(t).expand(rows, t)

# ---- the same numbers

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.integers(1, 9), st.integers(0, 7), st.sets(st.integers(1, 23), max_size=23))
def test_any_pieces_give_the_published_equations(rule, window, sinks, cuts):
    parts = layer(rule, b=1)
    assert_close(fed(Zones(window, sinks), parts, sorted(cuts), plain(1, 24)), published(*parts, window, sinks), rtol=0, atol=1e-11)

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 15), st.integers(0, 15), st.sets(st.integers(1, 23), max_size=23))
def test_padding_changes_nothing(window, sinks, first, second, cuts):
    parts = layer()
    positions = torch.stack([torch.arange(24) - pad for pad in (first, second)]).clamp(min=-1)
    got = fed(Zones(window, sinks), parts, sorted(cuts), positions)
    for row, pad in enumerate((first, second)):
        ahn, *rest = parts
        one = [Gates(*(y[row:row + 1, :, pad:] for y in x)) if isinstance(x, Gates) else x[row:row + 1, :, pad:] for x in rest]
        assert_close(got[row:row + 1, :, pad:], published(ahn, *one, window, sinks), rtol=0, atol=1e-11)

def test_padding_that_fills_whole_pieces():
    parts, positions = layer(), (torch.arange(24) - 13).clamp(min=-1).expand(2, -1)
    got, want = (fed(Zones(3, 2), parts, cuts, positions)[:, :, 13:] for cuts in ((4, 5, 6, 7, 8, 20), ()))
    assert_close(got, want, rtol=0, atol=1e-12)

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.sets(st.integers(1, 23), max_size=10))
def test_each_token_is_written_once_and_lies_in_one_place(window, sinks, cuts):
    zones, out = Zones(window, sinks), []
    for a, b in pairwise([0, *sorted(cuts), 24]):
        p = torch.arange(a, b)[None]
        label = p[:, None].double()
        *_, gone = zones.update(Run(label[..., None], label[..., None], -label, 1 + label, p))
        if gone is None: continue
        real = gone.write[:, 0] > 0
        assert torch.equal(gone.write[:, 0][real], 1.0 + gone.positions[real]) and torch.equal(gone.log_decay[:, 0][real], -1.0 * gone.positions[real])
        assert torch.equal(gone.k[:, 0, :, 0][real], gone.positions[real].double())
        out += gone.positions[real].tolist()
    held = zones.positions[zones.positions >= 0].tolist()
    assert out == list(range(sinks, 24 - window)) and sorted(out + held) == list(range(24))

# ---- bytes, rows, going back

def test_bytes_follow_the_formula_and_stop_growing():
    parts = layer()
    for window, sinks in ((5, 2), (1, 0)):
        zones = Zones(window, sinks)
        seen = []
        for t in range(24): fed(zones, [parts[0], *(part(x, t, t + 1) for x in parts[1:])], (), plain(2, 24)[:, t:t + 1]); seen.append(zones.nbytes())
        assert set(seen[window:]) == {8 * 2 * (2 * (sinks + window) * 2 * 4 + 2 * window * 4 + 4 * 4 * 4)}
        assert zones.state.dtype == torch.float64

def test_the_state_of_a_half_precision_model_is_float32():
    ahn, q, gates, k, v = layer()
    half = lambda x: x.bfloat16()
    zones = Zones(3)
    o = remember(ahn.float(), zones, half(q), Gates(*(x.float() for x in gates)), half(k), half(v), plain(2, 24))
    assert zones.state.dtype == torch.float32 and o.dtype == torch.bfloat16

@pytest.mark.parametrize("rows", [[1, 0], [0, 0, 1], [1]])
@pytest.mark.parametrize("cut", [3, 7, 15])
def test_reordered_rows_go_on_as_if_always_there(rows, cut):
    ahn, q, gates, k, v = parts = layer()
    zones = Zones(4, 2)
    fed(zones, [ahn, *(part(x, 0, cut) for x in parts[1:])], (), plain(2, 24)[:, :cut])
    zones.reorder(torch.tensor(rows))
    pick = lambda x: Gates(*(y[rows] for y in x)) if isinstance(x, Gates) else x[rows]
    chosen = [ahn, *(pick(x) for x in parts[1:])]
    got = fed(zones, [ahn, *(part(x, cut, 24) for x in chosen[1:])], (cut + 1 - cut, 5), plain(len(rows), 24)[:, cut:])
    assert_close(got, fed(Zones(4, 2), chosen, (), plain(len(rows), 24))[:, :, cut:], rtol=0, atol=1e-12)

class Bare(nn.Module):
    def __init__(self, ahn): super().__init__(); self.ahn = ahn

def ask(memory, module, parts, a, b):
    _, q, gates, k, v = parts
    at = plain(2, b)
    return memory.attend(module, part(q, a, b), part(gates, a, b), part(k, a, b), part(v, a, b), Columns(at[:, a:b], at))

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 12), st.integers(1, 8), st.data())
def test_going_back_is_as_if_the_tokens_had_never_come(window, sinks, first, t, data):
    parts, n = layer(), data.draw(st.integers(0, t))
    module = Bare(parts[0])
    memory = Memory(Zones(window, sinks), module)
    memory.activate_past_recording()
    if first: ask(memory, module, parts, 0, first)
    ask(memory, module, parts, first, first + t)
    memory.crop(-n)
    left = first + t - n
    assert memory.get_seq_length() == left
    assert_close(ask(memory, module, parts, left, 24), fed(Zones(window, sinks), parts, (), plain(2, 24))[:, :, left:], rtol=0, atol=1e-12)

def test_what_cannot_be_taken_back_is_refused_and_unharmed():
    parts = layer()
    module = Bare(parts[0])
    memory = Memory(Zones(3, 1), module)
    ask(memory, module, parts, 0, 10)
    with pytest.raises(ValueError, match="can't unwrite"): memory.crop(-2)
    memory.activate_past_recording()
    ask(memory, module, parts, 10, 14)
    with pytest.raises(ValueError, match="from -4 to 0, not -5"): memory.crop(-5)
    with pytest.raises(ValueError, match="from -4 to 0, not 2"): memory.crop(2)
    memory.crop(0); memory.crop(-1)
    with pytest.raises(ValueError, match="can't unwrite"): memory.crop(-1)
    assert_close(ask(memory, module, parts, 13, 24), fed(Zones(3, 1), parts, (), plain(2, 24))[:, :, 13:])

def test_copies_are_independent_and_reset_forgets():
    parts = layer()
    module = Bare(parts[0])
    memory = Memory(Zones(3, 1), module)
    ask(memory, module, parts, 0, 10)
    twin = copy.deepcopy(memory)
    a = ask(memory, module, parts, 10, 24)
    assert torch.equal(ask(twin, module, parts, 10, 24), a)
    memory.reset()
    assert memory.get_seq_length() == 0 and memory.held.nbytes() == 0
    assert_close(ask(memory, module, parts, 0, 24)[:, :, 10:], a)

# ---- refused

def test_impossible_sizes_and_orders_are_refused():
    for window, sinks in ((0, 0), (-3, 0), (4, -1)):
        with pytest.raises(ValueError, match="window"): Zones(window, sinks)
    for before, new in ((None, [[1, 2]]), (None, [[0, -1]]), ([[3]], [[5]]), ([[3]], [[-1]]), ([[-1]], [[1]])):
        with pytest.raises(ValueError, match="without a gap"): check_order(None if before is None else torch.tensor(before), torch.tensor(new))

def test_a_refused_update_leaves_the_zones_as_they_were():
    parts = layer()
    zones = Zones(3, 1)
    fed(zones, [parts[0], *(part(x, 0, 10) for x in parts[1:])], (), plain(2, 24)[:, :10])
    _, q, gates, k, v = (part(x, 10, 12) if i else x for i, x in enumerate(parts))
    for kk, at in ((k.float(), plain(2, 12)[:, 10:]), (k[:1], plain(1, 12)[:, 10:]), (k, plain(2, 13)[:, 11:])):
        with pytest.raises(ValueError): remember(parts[0], zones, q, gates, kk, v, at)
    assert_close(fed(zones, [parts[0], *(part(x, 10, 24) for x in parts[1:])], (), plain(2, 24)[:, 10:]), fed(Zones(3, 1), parts, (), plain(2, 24))[:, :, 10:], rtol=0, atol=1e-12)

def test_sinks_and_padding_are_never_written():
    run = Run(*(torch.ones(1, 1, 4, 2),) * 2, *(torch.full((1, 1, 4), x) for x in (-1.0, 1.0)), torch.tensor([[-1, 0, 1, 2]]))
    assert leave(run, 2).write[0, 0].tolist() == [0, 0, 0, 1] and leave(run, 2).log_decay[0, 0].tolist() == [0, 0, 0, -1]
