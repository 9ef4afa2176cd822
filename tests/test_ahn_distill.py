"""The distillation loss against definitions, the run against a kill, the base against any change."""
import math
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

pytest.importorskip("transformers")
from transformers import LlamaConfig, LlamaForCausalLM
from llmwatch_course.ahn.cost import equal_bytes_tokens
from llmwatch_course.ahn.distill import (SINKS, TOTALS, adamw, answers, beyond, distil, distil_text, divergence, draw_budget, held_out, kl_beyond,
                                         measured_half_lives, memory_loss, split_text, state_tokens)
from llmwatch_course.ahn.wrapping import memories, unwrap, using, wrap
from llmwatch_course.foundations.decoder import Config

def model(rule="gdn", seed=0, **changes):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=61, initializer_range=0.3) | changes
    return wrap(LlamaForCausalLM(LlamaConfig(**sizes)).double().eval(), 6, 2, rule, torch.Generator().manual_seed(seed))

def awake(m, seed=0):
    "Memories with something to say."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in memories(m).parameters(): w.add_(0.2 * torch.randn(w.shape, generator=g, dtype=w.dtype))
    return m

def tokens(b=2, t=20, seed=1): return torch.randint(61, (b, t), generator=torch.Generator().manual_seed(seed))

# ---- the loss

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 7), st.integers(0, 12), st.booleans(), st.integers(0, 999))
def test_kl_beyond_is_its_definition(b, t, vocab, budget, masked, seed):
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, b, t, vocab, generator=g, dtype=torch.float64)
    mask = torch.rand(b, t, generator=g) < 0.6 if masked else None
    parts = [sum(p * (math.log(p) - math.log(q)) for p, q in zip(teacher[r, i].softmax(0).tolist(), student[r, i].softmax(0).tolist()))
             for r in range(b) for i in range(budget, t) if mask is None or mask[r, i]]
    want = sum(parts) / len(parts) if parts else 0.0
    assert abs(kl_beyond(teacher, student, budget, mask).item() - want) < 1e-12

def test_teacher_gets_no_say_in_the_gradient_and_extremes_are_finite():
    student = torch.zeros(1, 2, 3, requires_grad=True)
    teacher = torch.tensor([[[0., -300., 5.], [1e4, -1e4, 0.]]])
    loss = kl_beyond(teacher, student, 0)
    loss.backward()
    assert_close(student.grad, (F.softmax(student, -1) - teacher.softmax(-1)).detach() / 2)
    assert math.isfinite(kl_beyond(student.detach(), teacher, 0)) and kl_beyond(teacher, teacher, 0) == 0

def test_half_precision_is_compared_in_single():
    a, b = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0))
    assert divergence(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    assert_close(divergence(a.bfloat16(), b.bfloat16()), divergence(a.bfloat16().float(), b.bfloat16().float()))

@pytest.mark.parametrize("rule", ["gdn", "dn", "mamba2"])
def test_memory_loss_is_kl_beyond_without_the_waste(rule):
    m, x, mask = awake(model(rule)), tokens(), torch.arange(20) % 3 > 0
    for window, sinks in ((6, 2), (4, 0), (1, 1)):
        with using(m, window=None): teacher = m(x).logits
        with using(m, window=window, sinks=sinks): student = m(x).logits
        assert_close(memory_loss(m, x, window, sinks, mask.expand(2, 20)), kl_beyond(teacher, student, window + sinks, mask.expand(2, 20)))
    assert memory_loss(m, x, 30, 0) == 0                               # nothing has left: the teacher itself

def test_no_position_that_counts_is_no_nan():
    m = awake(model())
    loss = memory_loss(m, tokens(), 6, 2, torch.zeros(2, 20, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and all(w.grad is None or not w.grad.any() for w in memories(m).parameters())

def test_answers_are_the_logits():
    m, x = awake(model()), tokens()
    scored = beyond(tuple(x.shape), 8)
    assert scored.sum() == 2 * 12
    assert_close(answers(m, x, scored), m(x).logits[scored])

# ---- budgets

@settings(max_examples=60, deadline=None)
@given(st.integers(33, 60_000), st.integers(0, 99))
def test_budgets_of_the_paper(length, seed):
    window, sinks = draw_budget(length, torch.Generator().manual_seed(seed))
    assert window + sinks in TOTALS and sinks in SINKS and sinks <= window and length / 8 < window + sinks < length

@pytest.mark.parametrize("length", [8, 32, 65_536, 100_000])
def test_texts_without_a_budget_are_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens"): draw_budget(length, torch.Generator())

# ---- training

def draw(g): return torch.randint(61, (4, 24), generator=g), None
def small(length, g): return draw_budget(length, g, (8, 12, 16), (0, 2, 4))
def train(m, steps=6, draw=draw, **options): return distil(m, draw, steps, lr=1e-2, budget=small, **options)

def test_the_base_stays_bit_for_bit_and_comes_back():
    plain = unwrap(model())
    want = {k: v.clone() for k, v in plain.state_dict().items()}
    logits = plain(tokens()).logits
    m = model()
    before = [w.clone() for w in memories(m).parameters()]
    train(m)
    assert all(not torch.equal(a, b) for a, b in zip(before, memories(m).parameters()))
    got = unwrap(m).state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    assert torch.equal(m(tokens()).logits, logits)

@pytest.mark.parametrize("at", [1, 4, 5])
def test_killed_is_not_different(tmp_path, at):
    left = iter(range(at))
    def dies(g):
        if next(left, None) is None: raise SystemExit
        return draw(g)
    path = tmp_path / "run.safetensors"
    with pytest.raises(SystemExit): train(model(), draw=dies, checkpoint=path, save_every=2)
    a, b = model(), model()
    assert train(a, checkpoint=path, save_every=2) == train(b)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def test_it_learns_more_than_sinks_and_window():
    m, x = model(), tokens(8, 24)
    def fixed(g): return x, None
    rows = distil(m, fixed, 40, lr=3e-2, budget=lambda n, g: (6, 2))
    assert rows[0]["loss"] > 0 and rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    found = held_out(m, x, 6, 2)
    assert torch.equal(found["writes off"], found["sinks + window"]) and found["AHN"].mean() < found["sinks + window"].mean()

def test_weight_decay_spares_rates_norms_and_biases():
    for rule, spared in (("gdn", {"A_log", "dt_bias", "norm.weight"}), ("dn", {"norm.weight"}), ("mamba2", {"A_log", "dt_bias", "norm.weight", "in_proj.bias"})):
        memory = memories(model(rule))
        names = {id(w): name.split(".", 1)[1] for name, w in memory.named_parameters()}
        groups = adamw(memory, 1e-3).param_groups
        assert {g["weight_decay"]: {names[id(w)] for w in g["params"]} for g in groups} == {0.1: {"in_proj.weight", "out"}, 0.0: spared}

def test_text_is_split_and_read_in_passages():
    text = torch.randint(61, (500,), generator=torch.Generator().manual_seed(0))
    train_on, held = split_text(text)
    assert torch.equal(torch.cat([train_on, held]), text) and len(held) == 50
    rows = distil_text(model(), train_on, 2, length=24, batch=3, budget=small)
    assert [r["step"] for r in rows] == [1, 2] and all(math.isfinite(r["loss"]) for r in rows)

# ---- what is said about a memory

def test_state_tokens_are_the_cost_models():
    for heads, kv, width in ((4, 2, 32), (9, 3, 576), (16, 2, 2048), (6, 3, 36)):
        config = LlamaConfig(hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv)
        assert state_tokens(SimpleNamespace(config=config)) == equal_bytes_tokens(Config(channels=width, heads=heads, kv_heads=kv, head_dim=width // heads))

def test_half_lives_of_constant_decay():
    m = model()
    for memory in memories(m):
        with torch.no_grad():
            memory.in_proj.weight.zero_(); memory.A_log.fill_(0.0)
            memory.dt_bias.copy_(torch.tensor([1., 2., 10., 100.], dtype=torch.float64).reciprocal().mul(math.log(2)).expm1().log())
    assert_close(measured_half_lives(m, tokens()), torch.tensor([1., 2., 10., 100.], dtype=torch.float64).expand(2, 4))

def test_a_text_that_fits_is_refused():
    with pytest.raises(ValueError, match="learns nothing"): distil(model(), draw, 1, budget=lambda n, g: (24, 0))
