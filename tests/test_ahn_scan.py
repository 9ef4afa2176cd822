"The rules of the memory: the loop, its chunked form and transformers' give the same numbers; capacity and overwriting."
import subprocess, sys
import pytest, torch
import torch.nn.functional as F
from functools import partial
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from llmwatch_course.ahn.memory_rules import FOUR_RULES, capacity, overwriting, recurrent, written
from llmwatch_course.ahn.scan import chunked, fading, untangle

calm = settings(max_examples=60, deadline=None, derandomize=True)
lengths, chunks, seeds = st.one_of(st.sampled_from([0, 1, 2, 63, 64, 65, 200]), st.integers(0, 90)), st.integers(1, 100), st.integers(0, 10**6)
kinds = st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-10)])
fades = st.sampled_from([0., 0.1, 3., 30., "mixed", "all"])


def stream(t, seed=0, low=0.1, kind=torch.float64, b=2, h=2, d=8, e=5):
    "q and k of length 1, v, log-decays, writes, and a memory to start from."
    g = torch.Generator().manual_seed(seed)
    q, k = F.normalize(torch.randn(2, b, h, t, d, generator=g, dtype=kind), dim=-1)
    a, write = torch.rand(2, b, h, t, generator=g, dtype=kind)
    if low == "mixed": a = torch.where(a < 0.5, -30., -0.1 * a)           # some tokens forget nearly all
    elif low == "all": a = torch.where(a < 0.1, -torch.inf, -0.1 * a)     # some forget all
    else: a = -low * a
    write = torch.where(write < 0.2, 0., write).where(write < 0.8, 1.)
    return q, k, torch.randn(b, h, t, e, generator=g, dtype=kind), a, write, torch.randn(b, h, d, e, generator=g, dtype=kind)


def parts(tokens, *sizes): return zip(*(x.split(sizes, 2) for x in tokens))


@calm
@given(lengths, chunks, fades, st.booleans(), st.booleans(), kinds, seeds)
def test_chunked_is_the_loop(t, chunk, low, erase, started, kind, seed):
    kind, tolerance = kind
    *tokens, state = stream(t, seed, low, kind)
    state = state if started else None
    o, end = recurrent(*tokens, state, erase)
    assert o.shape == (2, 2, t, 5) and end.shape == (2, 2, 8, 5) and o.dtype == end.dtype == kind
    assert_close(chunked(*tokens, state, erase, chunk), (o, end), atol=tolerance, rtol=0)


@calm
@given(st.integers(1, 40), seeds, st.booleans())
def test_the_loop_is_the_equation(t, seed, erase):
    q, k, v, a, write, S = stream(t, seed)
    o, end = recurrent(q, k, v, a, write, S, erase)
    for i in range(t):
        keep, b, row, value = a[:, :, i].exp(), write[:, :, i], k[:, :, i], v[:, :, i]
        S = keep[..., None, None] * S
        missing = value - torch.einsum("bhd,bhde->bhe", row, S) * erase
        S = S + torch.einsum("bh,bhd,bhe->bhde", b, row, missing)
        assert_close(o[:, :, i], torch.einsum("bhd,bhde->bhe", q[:, :, i], S), atol=1e-10, rtol=0)
    assert_close(end, S, atol=1e-10, rtol=0)


@pytest.mark.parametrize("t", [1, 7, 63, 64, 65, 200, 513])
def test_transformers_agrees(t):
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    tokens = stream(t, low=1., kind=torch.float32, d=32, e=16)
    q, k, v, a, write, state = tokens
    swapped = [x.transpose(1, 2) for x in (q * 32**0.5, k, v, a, write)]
    for form in (qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule):
        o, end = form(*swapped, initial_state=state, output_final_state=True)
        for ours in (recurrent, chunked): assert_close(ours(*tokens), (o.transpose(1, 2), end), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t", [1, 64, 150])
def test_state_space_duality_agrees(t):
    mamba = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    q, k, v, a, write, _ = stream(t, low=30.)
    want = (mamba.segment_sum(a).exp() * (q @ k.mT)) @ (write[..., None] * v)
    assert_close(chunked(q, k, v, a, write, erase=False)[0], want, atol=1e-10, rtol=0)
    assert_close(fading(a.cumsum(-1), torch.float64), mamba.segment_sum(a).exp(), atol=1e-10, rtol=0)


@calm
@given(st.lists(st.integers(0, 70), min_size=2, max_size=4), chunks, st.booleans(), seeds)
def test_one_may_stop_and_go_on(sizes, chunk, erase, seed):
    *tokens, state = stream(sum(sizes), seed)
    want, outs = chunked(*tokens, state, erase, 64), []
    for part in parts(tokens, *sizes):
        o, state = chunked(*part, state, erase, chunk)
        outs.append(o)
    assert_close((torch.cat(outs, 2), state), want, atol=1e-10, rtol=0)


@calm
@given(st.integers(1, 80), st.integers(0, 80), st.sampled_from([0., 1., 1e15]), st.booleans(), seeds)
def test_padding_does_nothing(t, more, size, erase, seed):
    q, k, v, a, write, state = stream(t + more, seed, kind=torch.float32)
    real = torch.rand(t + more, generator=torch.Generator().manual_seed(seed)).argsort() < t   # holes anywhere, with anything in them
    k, v = (torch.where(real[:, None], x, size * x) for x in (k, v))
    for form in (recurrent, partial(chunked, chunk=16)):
        o, end = form(q, k, v, a * real, write * real, state, erase)
        kept_o, kept_end = form(*(x[:, :, real] for x in (q, k, v, a, write)), state, erase)
        assert_close((o[:, :, real], end), (kept_o, kept_end), atol=1e-5, rtol=0)
        still = form(q, size * k, size * v, 0 * a, 0 * write, state, erase)[1]
        assert torch.equal(still, state)


@pytest.mark.parametrize("erase", [True, False])
def test_gradients(erase):
    small = [x.requires_grad_() for x in stream(5, d=3, e=2, b=1, h=1)]
    for form in (recurrent, partial(chunked, chunk=2)): assert torch.autograd.gradcheck(partial(form, erase=erase), small)
    for low in (0., 30., "mixed", "all"):
        found = []
        for form in (recurrent, chunked):
            tokens = [x.requires_grad_() for x in stream(100, low=low)]
            o, end = form(*tokens, erase=erase)
            found.append(torch.autograd.grad(o.square().sum() + end.sum(), tokens))
        assert all(x.isfinite().all() for x in found[1])
        finite = [torch.where(tokens[3].isinf(), 0., x) if i == 3 else x for x, i in zip(found[0], range(6))]
        assert_close(list(found[1]), finite, atol=1e-8, rtol=1e-8)


def test_repeated_keys_stay_exact():
    *tokens, state = stream(256, kind=torch.float32, low=0.)
    tokens[1], tokens[4] = tokens[1][:, :, :1].expand_as(tokens[1]), torch.ones_like(tokens[4])
    for chunk in (32, 64): assert_close(chunked(*tokens, state, chunk=chunk), recurrent(*tokens, state), atol=1e-5, rtol=0)
    ones = torch.ones(32, 32)
    assert_close(untangle(ones) @ (ones.tril(-1) + torch.eye(32)), torch.eye(32))


def test_the_meaning_of_the_words():
    q, k, v, a, write, state = stream(8)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    for form in (recurrent, chunked):
        keys = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=v.dtype)).Q.expand_as(k)
        for erase in (True, False):                                     # keys at right angles: exact
            assert_close(keys @ form(keys, keys, v, zero, one, erase=erase)[1], v)
        same = k[:, :, :1].expand_as(k)
        assert_close(form(same, same, v, a, one, state)[0], v)          # the last write of a key is its answer
        assert_close(form(same, same, v, zero, one, erase=False)[0], v.cumsum(2))   # adding gives the sum of all
        gone = form(q, k, v, zero - torch.inf, one, state)[0]
        assert_close(gone, (q * k).sum(-1, keepdim=True) * v)           # nothing of the past
        assert torch.equal(form(q, k, v, zero, zero, state)[1], state)


def test_one_gradient_step():
    q, k, v, a, write, state = stream(1)
    state.requires_grad_()
    loss = 0.5 * (write[..., None] * (k @ state - v).square()).sum()
    want = state - torch.autograd.grad(loss, state)[0]
    assert_close(recurrent(q, k, v, 0 * a, write, state)[1], want)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind):
    *tokens, _ = stream(40, kind=torch.float32)
    half = [x.to(kind) for x in tokens]
    for form in (recurrent, chunked):
        o, end = form(*half)
        assert o.dtype == end.dtype == torch.float32
        assert_close((o, end), form(*(x.float() for x in half)), atol=0, rtol=0)
        assert form(*half, state=torch.zeros(2, 2, 8, 5, dtype=torch.float64))[0].dtype == torch.float64


def test_layouts_and_refusals():
    *tokens, state = stream(70)
    strange = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tokens]
    assert_close(chunked(*strange, state), chunked(*tokens, state))
    before = [x.clone() for x in (*tokens, state)]
    chunked(*tokens, state); recurrent(*tokens, state)
    assert all(torch.equal(x, y) for x, y in zip(before, (*tokens, state)))   # what is given stays as it is
    with pytest.raises(ValueError, match="at least 1 token"): chunked(*tokens, chunk=0)


def test_capacity_and_overwriting():
    share = {name: capacity(rule, 128, 8).float().mean().item() for name, rule in FOUR_RULES.items()}
    assert share["additive"] > 0.9 and share["additive"] - share["delta"] > 0.25
    for shuffled in (False, True):
        last = {name: overwriting(rule, 32, 4, shuffled, 8).float().mean().item() for name, rule in FOUR_RULES.items()}
        assert last["additive"] < 0.4 and last["delta"] > 0.9
    assert last["delta"] - last["decayed"] > 0.08
    assert torch.equal(capacity(FOUR_RULES["delta"], 20, seed=3), overwriting(FOUR_RULES["delta"], 20, 1, seed=3))
    k, v = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    assert_close(written(k, v, FOUR_RULES["additive"]), k.mT @ v)


def test_no_transformers():
    code = "import sys, llmwatch_course.ahn.memory_rules, llmwatch_course.ahn.scan; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
