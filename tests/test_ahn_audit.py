"The audit of a memory: rivals against brute force, controls to the last bit, intervals, and constructed scores of either wrong sign."
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from llmwatch_course.ahn.audit import (ABLATIONS, ARMS, GROUP, RIVALS, STRANGER, UNLEARNED, ZONES, Audit, Case, as_arm, audit_memory, bare, longer,
                                       pooled, reservoir, sampled, strata)
from llmwatch_course.ahn.cost import equal_bytes_tokens
from llmwatch_course.ahn.wrapping import attentions, memories, using, wrap
from llmwatch_course.foundations.blocks import attend, visible
from llmwatch_course.foundations.decoder import Config

calm = settings(max_examples=20, deadline=None, derandomize=True)
rng = lambda seed=0: torch.Generator().manual_seed(seed)
cases = st.builds(Case, st.integers(1, 8), st.integers(0, 4), st.integers(0, 6), st.integers(0, 99).map(rng))
TOKENS = torch.randint(64, (4, 40), generator=rng())


def tiny(window=8, sinks=2, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    return wrap(LlamaForCausalLM(config).eval().to(dtype), window, sinks, generator=rng())


def loud(model):
    "With a memory that says something."
    for memory in memories(model): torch.nn.init.normal_(memory.out, generator=rng(1))
    return model


MODEL = loud(tiny())


def nats(): return MODEL(TOKENS, use_cache=False).logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]


def text(n, pad=0, seed=0):
    "Keys and positions of a text, `pad` empty columns to its left."
    k = torch.randn(1, 2, n, 4, generator=rng(seed))
    return torch.cat([torch.full((1, 2, pad, 4), 9.), k], 2), torch.cat([torch.full((pad,), -1), torch.arange(n)])[None]


# ---- what the bytes buy

@calm
@given(st.integers(0, 40), st.integers(0, 12), st.integers(0, 999))
def test_reservoir_is_a_set_that_only_shrinks(length, slots, seed):
    held = reservoir(length, slots, rng(seed))
    assert held.shape == (length, length) and not held.triu(1).any()
    assert (held.sum(-1) == torch.arange(1, length + 1).clamp(max=slots)).all()
    assert not (held[1:] & ~held[:-1]).tril(0).any()
    assert torch.equal(held, reservoir(length, slots, rng(seed)))


def test_reservoir_is_fair():
    g = rng(3)
    share = torch.stack([reservoir(20, 5, g) for _ in range(2000)]).double().mean(0)
    for t in (4, 5, 9, 19): assert_close(share[t, :t + 1], torch.full((t + 1,), min(1, 5 / (t + 1)), dtype=torch.float64), atol=0.05, rtol=0)


@calm
@given(st.integers(1, 40), st.integers(0, 5), cases, st.sampled_from(["max", "mean"]))
def test_pooled_is_the_queue(n, pad, case, how):
    k, positions = text(n, pad)
    q = torch.randn(1, 2, n + pad, 4, generator=rng(5))
    keys, values, mask = pooled(k, 2 * k, positions, case, how)
    got = attend(q, keys, values, mask)[:, :, pad:]
    exact = k[:, :, pad:]
    for p in range(n):
        old = list(range(case.sinks, p + 1 - case.window))
        groups = [exact[:, :, old[i:i + GROUP]] for i in range(0, len(old), GROUP)][len(old):] if not case.slots else \
                 [exact[:, :, old[i:i + GROUP]] for i in range(0, len(old), GROUP)][-case.slots:]
        squeezed = [x.amax(2) if how == "max" else x.mean(2) for x in groups]
        plain = exact[:, :, [j for j in range(p + 1) if j < case.sinks or j > p - case.window]]
        seen = torch.cat([plain, *(x[:, :, None] for x in squeezed)], 2)
        doubled = torch.cat([2 * plain, *((2 * g).amax(2)[:, :, None] if how == "max" else 2 * g.mean(2)[:, :, None] for g in groups)], 2)
        assert_close(got[:, :, p:p + 1], attend(q[:, :, pad + p:pad + p + 1], seen, doubled))


@calm
@given(st.integers(1, 40), st.integers(0, 5), cases)
def test_sampled_holds_as_many_as_are_paid_for(n, pad, case):
    k, positions = text(n, pad)
    state = case.generator.get_state()
    _, _, mask = sampled(k, k, positions, case)
    seen, plain = mask[0, pad:, pad:], visible(positions, positions, case.window, case.sinks)[0, pad:, pad:]
    gone = (torch.arange(n) + 1 - case.window - case.sinks).clamp(min=0)
    assert (plain & ~seen).sum() == 0 and not seen.triu(1).any() and not mask[0, pad:, :pad].any()
    assert ((seen & ~plain).sum(-1) == gone.clamp(max=case.slots)).all()
    case.generator.set_state(state)
    assert torch.equal(sampled(*text(n)[:1] * 2, text(n)[1], case)[2][0], seen)     # padding changes nothing


def test_sampled_rows_differ():
    k, positions = text(60)
    _, _, mask = sampled(k.expand(2, -1, -1, -1), k, positions.expand(2, -1), Case(6, 2, 5, rng()))
    assert not torch.equal(mask[0], mask[1])


# ---- the audit on a model

def test_controls_to_the_last_bit():
    audit = audit_memory(MODEL, nats, 8, 2)
    assert list(audit.scores) == list(ARMS)
    for control in ("writes off", "zero output"): assert torch.equal(audit.scores[control], audit.scores["window"])
    assert not torch.equal(audit.scores["AHN"], audit.scores["window"])
    with torch.no_grad(), using(MODEL, window=8, sinks=2): assert torch.equal(nats().double(), audit.scores["AHN"])
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, initializer_range=0.3)).eval()
    with torch.no_grad(): want = plain(TOKENS).logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]
    assert_close(audit.scores["full"], want.double(), atol=1e-5, rtol=1e-5)
    early = [name for name in ARMS if torch.equal(audit.scores[name][:, :9], audit.scores["window"][:, :9])]
    assert set(early) >= {"AHN", "reservoir", STRANGER, "writes off"}                # nothing has left yet


def test_an_untrained_memory_is_worth_nothing():
    model = tiny()
    def score(): return model(TOKENS, use_cache=False).logits.log_softmax(-1).amax(-1)
    audit = audit_memory(model, score, 8, 2, arms=("window", "AHN", "writes off"))
    assert torch.equal(audit.scores["AHN"], audit.scores["window"]) and audit.gain() == (0, 0, 0) and "could be chance" in audit.verdict()


def test_equal_bytes_is_a_longer_window():
    with torch.no_grad(), using(MODEL, window=8, sinks=2, mix=lambda a, q, k, v, x, p: attend(q, *bare(k, v, p, Case(8 + 8, 2, 0)))): want = nats()
    assert equal_bytes_tokens(Config(heads=4, kv_heads=2, head_dim=8)) == 8
    assert torch.equal(audit_memory(MODEL, nats, 8, 2, arms=["equal bytes"]).scores["equal bytes"], want.double())


def test_gates_and_types_raise_the_price():
    seen = []
    def spy(k, v, positions, case): seen.append(case.slots); return longer(k, v, positions, case)
    old, UNLEARNED["equal bytes"] = UNLEARNED["equal bytes"], spy
    try:
        audit_memory(MODEL, nats, 8, 2, arms=["equal bytes"], gates=True)
        small = tiny(dtype=torch.bfloat16)
        audit_memory(small, lambda: small(TOKENS, use_cache=False).logits.amax(-1), 8, 2, arms=["equal bytes"])
    finally: UNLEARNED["equal bytes"] = old
    assert seen == [10, 10, 16, 16]                                                   # two layers each


def test_the_seed_decides_the_reservoir():
    a, b, c = (audit_memory(MODEL, nats, 8, 2, arms=["reservoir"], seed=s).scores["reservoir"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_model_is_left_as_it_was():
    def fail(): raise KeyError("score")
    for name in ARMS:
        with pytest.raises(KeyError, match="score"): audit_memory(MODEL, fail, 5, 1, arms=[name])
    budget = attentions(MODEL)[0].budget
    assert (budget.window, budget.sinks, budget.mix) == (8, 2, None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in memories(MODEL))


def test_anothers_memory_is_the_neighbours():
    same = TOKENS[:1].expand(3, -1)
    def score(): return MODEL(same, use_cache=False).logits.amax(-1)
    audit = audit_memory(MODEL, score, 8, 2, arms=("AHN", STRANGER))
    assert_close(audit.scores[STRANGER], audit.scores["AHN"])                         # a neighbour with the same text
    own, other = (audit_memory(MODEL, nats, 8, 2, arms=[name]).scores[name] for name in ("AHN", STRANGER))
    assert not torch.allclose(own[:, 20:], other[:, 20:])
    with pytest.raises(ValueError, match="two texts"): audit_memory(MODEL, lambda: MODEL(TOKENS[:1], use_cache=False).logits.amax(-1), 8, 2, arms=[STRANGER])


def test_refusals():
    with pytest.raises(ValueError, match="did you mean 'reservoir'"), as_arm("resevoir", MODEL, 8, 2): pass
    with pytest.raises(ValueError, match="use_cache=False"): audit_memory(MODEL, lambda: MODEL(TOKENS, use_cache=True).logits.amax(-1), 8, 2, arms=["window"])
    with pytest.raises(ValueError, match="one number a text and query"): audit_memory(MODEL, lambda: torch.zeros(4), 8, 2, arms=["window"])
    with pytest.raises(ValueError, match="one number a text and query"):
        audit_memory(MODEL, lambda: torch.zeros(4, 3), 8, 2, needed=torch.zeros(4, 2).long(), asked=torch.ones(4, 2).long(), arms=["window"])
    with pytest.raises(RuntimeError, match="'writes off' differs"): audit_memory(MODEL, lambda: torch.rand(4, 3), 8, 2, arms=["window", "writes off"])
    for needed, asked in [(-1, 3), (5, 4)]:
        with pytest.raises(ValueError, match="needed token"): strata(torch.tensor([[needed]]), torch.tensor([[asked]]), 4)


# ---- scores

@calm
@given(st.integers(1, 12), st.integers(0, 6), st.integers(0, 30), st.integers(0, 30))
def test_strata_agree_with_what_is_visible(window, sinks, a, b):
    needed, asked = min(a, b), max(a, b)
    zone = ZONES[strata(torch.tensor([[needed]]), torch.tensor([[asked]]), window, sinks)]
    seen = visible(torch.tensor([[asked]]), torch.tensor([[needed]]), window, sinks).item()
    assert (zone == "memory") == (not seen) and (zone == "sink") == (needed < sinks)


def test_a_gain_is_drawn_by_text_and_skips_what_does_not_count():
    def over(x): return Audit({"AHN": x, "writes off": torch.zeros_like(x)}).over("writes off")
    x = torch.randn(200, 5, generator=rng()) + 1
    gain = over(x)
    assert gain.low < gain.value < gain.high and abs(gain.high - gain.low - 2 * 1.96 / math.sqrt(1000)) < 0.03
    assert all(map(math.isnan, over(torch.randn(1, 50))[1:]))
    y = x.clone(); y[150:] = math.nan; y[:150, 3] = math.nan
    torch.testing.assert_close(torch.tensor(over(y)), torch.tensor(over(x[:150, [0, 1, 2, 4]])))
    together = over(torch.randn(40, 1, generator=rng()).expand(40, 25))
    assert together.high - together.low > 0.4  # 1.96 * 2 / sqrt(40) = 0.62; drawn query by query it would be 0.12


def made(chances, zone=None):
    luck = torch.rand(80, 6, generator=rng())
    return Audit({arm: (luck < chance).double() for arm, chance in chances.items()}, zone)


def test_both_wrong_signs():
    broken = made({"full": 0.05, "window": 0.3, "equal bytes": 0.45, "writes off": 0.3, "AHN": 0.35})
    assert broken.over("full").low > 0 and broken.gain().high < 0 and broken.rival() == "equal bytes" and "the rival is better" in broken.verdict()
    healthy = made({"full": 1.0, "window": 0.1, "equal bytes": 0.12, "writes off": 0.1, "AHN": 0.6, STRANGER: 0.1})
    assert healthy.over("full").high < 0 and healthy.gain().low > 0 and "rival is better" not in healthy.verdict() and "this text and no other" in healthy.verdict()


def test_zones_part_the_scores():
    zone = torch.arange(6).expand(80, 6) % 2 + 1                                     # memory, window
    audit = made({"writes off": 0.2, "AHN": 0.7}, zone)
    assert audit.zones() == ["memory", "window"]
    assert_close((audit.mean("AHN", "memory") + audit.mean("AHN", "window")) / 2, audit.mean("AHN"))
    assert_close(audit.gain("memory").value, (audit.scores["AHN"] - audit.scores["writes off"])[zone == 1].mean().item())
    shown = str(audit.table())
    assert "memory (240)" in shown and "sink" not in shown and "in memory" in audit.verdict()


def test_rivals_and_arms_are_consistent():
    assert set(RIVALS) <= set(ARMS) and set(ARMS) == {"full", *UNLEARNED, *ABLATIONS} and "AHN" not in RIVALS and STRANGER not in RIVALS


def test_picture():
    import matplotlib; matplotlib.use("agg")
    import matplotlib.pyplot as plt
    for zone in (None, torch.arange(6).expand(80, 6) % 3):
        fig, ax = plt.subplots()
        made({"full": 0.9, "writes off": 0.2, "AHN": 0.7}, zone).picture(ax)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["full", "writes off"]
        assert (ax.get_legend() is None) == (zone is None)
        plt.close(fig)
