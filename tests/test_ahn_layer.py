"""The memory of one layer: equal to the equations token by token, silent until something was written, and as large as the model cards say."""
import math, subprocess, sys
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from llmwatch_course.ahn.layer import AHN, RULES, Gates, Leaving, added_parameters, half_lives, initial_decay, unit
from llmwatch_course.foundations.blocks import rotary_angles, rotate
from llmwatch_course.kv_cache.bill import MODELS

C, H, KV, D = 24, 6, 2, 8


def shaken(rule, seed=0, dtype=torch.float64, heads=H):
    "A memory in which no weight is zero or one."
    g = torch.Generator().manual_seed(seed)
    m = AHN(C, heads, D, rule, g).to(dtype)
    with torch.no_grad():
        for p in m.parameters(): p.add_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype))
    return m


def inputs(b=1, t=30, seed=1, dtype=torch.float64, kv=KV):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    return 3 * draw(b, H, t, D), 5 * draw(b, kv, t, D), draw(b, kv, t, D), draw(b, t, C)


def leaving(k, v, gates, window, sinks=0):
    "Who leaves as each query enters."
    j = torch.arange(k.shape[2]) - window
    gone, at = j >= sinks, j.clamp(min=0)
    return Leaving(k[:, :, at], v[:, :, at], gates.log_decay[..., at] * gone, gates.write[..., at] * gone, torch.where(gone, j, -1).expand(len(k), -1))


def part(leaving, which): return Leaving(*(x[:, which] if x.ndim == 2 else x[:, :, which] for x in leaving))


def by_hand(m, q, k, v, x, window, sinks):
    "Eq. 3, 5, 6, 9, 10 of arXiv 2510.07318 with the conventions of its code, one row, one head, one token at a time; sums written out."
    h, t, d = q.shape
    raw = (x @ m.in_proj.weight.T + (0 if m.in_proj.bias is None else m.in_proj.bias)).view(t, -1, h)
    heads = []
    for i in range(h):
        key, value, S, o = k[i // (h // len(k))], v[i // (h // len(k))], torch.zeros(d, d, dtype=q.dtype), []
        for now in range(t):
            j = now - window
            if j >= sinks:
                delta = 0 if m.rule == "dn" else torch.log1p((raw[j, 0, i] + m.dt_bias[i]).exp())
                S = S if m.rule == "dn" else S * torch.exp(-m.A_log[i].exp() * delta)
                b = delta if m.rule == "mamba2" else 1 / (1 + (-raw[j, 1 if m.rule == "gdn" else 0, i]).exp())
                n = key[j] / (key[j] @ key[j] + 1e-6).sqrt()
                S = S + b * n[:, None] * (value[j] - (0 if m.rule == "mamba2" else n @ S))[None]
            o.append(q[i, now] / (q[i, now] @ q[i, now] + 1e-6).sqrt() @ S)
        heads.append(torch.stack(o))
    o, loud = torch.stack(heads), (raw[:, -1] * raw[:, -1].sigmoid()).T[..., None]            # (h, t, d), (h, t, 1)
    if m.rule == "mamba2":
        o = o * loud
        o = o / (o.square().mean((0, 2), keepdim=True) + 1e-5).sqrt() * m.norm.weight.view(h, 1, d)
    else:
        o = o / math.sqrt(d)
        o = o / (o.square().mean(2, keepdim=True) + 1e-5).sqrt() * m.norm.weight * loud
    return torch.stack([o[i] @ m.out[i] for i in range(h)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window, sinks", [(1, 0), (4, 0), (4, 3), (7, 10), (29, 0), (40, 2)])
def test_equals_the_equations(rule, window, sinks):
    m, (q, k, v, x) = shaken(rule), inputs()
    gates = m.gates(x)
    y, state = m(q, gates.read, leaving(k, v, gates, window, sinks))
    assert_close(y[0], by_hand(m, q[0], k[0], v[0], x[0], window, sinks), atol=1e-10, rtol=1e-8)
    assert y.dtype == state.dtype == torch.float64 and state.shape == (1, H, D, D)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("t", [65, 130])
def test_long_texts_and_rows(rule, t):
    "Several rows at once, past the size of a chunk."
    m, (q, k, v, x) = shaken(rule, seed=3), inputs(b=2, t=t, seed=4)
    gates = m.gates(x)
    y, _ = m(q, gates.read, leaving(k, v, gates, 5, 2))
    for row in range(2): assert_close(y[row], by_hand(m, q[row], k[row], v[row], x[row], 5, 2), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_any_split_gives_the_same(rule):
    m, (q, k, v, x) = shaken(rule), inputs(b=2)
    gates = m.gates(x)
    gone = leaving(k, v, gates, 4, 2)
    whole, last = m(q, gates.read, gone)
    for parts in ([30], [1] * 30, [5, 0, 1, 24], [29, 1]):
        state, out, start = None, [], 0
        for n in parts:
            now = slice(start, start + n)
            y, new = m(q[:, :, now], gates.read[..., now], part(gone, now), state)
            if state is not None: assert_close(m.write(part(gone, now), state), new, atol=1e-12, rtol=0)
            state, start = new, start + n
            out.append(y)
        assert_close(torch.cat(out, 2), whole, atol=1e-10, rtol=1e-8)
        assert_close(state, last, atol=1e-10, rtol=1e-8)
    assert_close(m.write(gone), last, atol=1e-12, rtol=0)


def test_equals_the_kernel_of_transformers():
    "GDN as the release composes it: the reference kernel with its own norm and scale, then a gated norm and the grouped output."
    pytest.importorskip("transformers")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule
    m, (q, k, v, x) = shaken("gdn", dtype=torch.float32), inputs(t=50, dtype=torch.float32)
    gates = m.gates(x)
    gone = leaving(k, v, gates, 6)
    first = lambda z: z.transpose(1, 2)
    wide = lambda z: first(z.repeat_interleave(H // KV, 1))
    o, state = torch_recurrent_gated_delta_rule(first(q), wide(gone.k), wide(gone.v), first(gone.log_decay), first(gone.write), initial_state=None,
                                                output_final_state=True, use_qk_l2norm_in_kernel=True)
    o = F.rms_norm(o, (D,), m.norm.weight, 1e-5) * F.silu(first(gates.read))[..., None]
    y, mine = m(q, gates.read, gone)
    assert_close(first(y), torch.einsum("bthi,hio->btho", o, m.out), atol=1e-5, rtol=1e-5)
    assert_close(mine, state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_silent_until_something_was_written(rule):
    m, (q, k, v, x) = shaken(rule), inputs()
    gates = m.gates(x)
    y, state = m(q, gates.read, leaving(k, v, gates, 12, 4))
    assert not y[:, :, :16].any() and (y[:, :, 16:] != 0).any(3).any(1).all()
    y, state = m(q, gates.read, leaving(k, v, gates, 40))
    assert not y.any() and not state.any()


@pytest.mark.parametrize("rule", RULES)
def test_nobody_leaves_nothing_changes(rule):
    "Whatever garbage lies in k and v of a padding column."
    m, (q, k, v, x) = shaken(rule, dtype=torch.float32), inputs(t=3, dtype=torch.float32)
    state, none = torch.randn(1, H, D, D), torch.zeros(1, H, 3)
    for garbage in (0., 1e30, -1e-30):
        gone = Leaving(torch.full_like(k, garbage), torch.full_like(v, garbage), none, none, torch.full((1, 3), -1))
        y, after = m(q, m.gates(x).read, gone, state)
        assert torch.equal(after, state) and torch.equal(m.write(gone, state), state) and y.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_gates(rule):
    m, (_, _, _, x) = shaken(rule), inputs(b=2, t=5)
    gates = m.gates(x)
    assert isinstance(gates, Gates) and all(g.shape == (2, H, 5) for g in gates)
    assert (gates.log_decay <= 0).all() and (gates.write > 0).all() and (gates.read < 0).any()
    assert not gates.log_decay.any() if rule == "dn" else (gates.log_decay < 0).all()
    if rule != "mamba2": assert (gates.write < 1).all()
    else: assert_close(gates.log_decay, -m.A_log.exp()[:, None] * gates.write)
    assert_close(m.gates(x[:1, 2:3]).read, gates.read[:1, :, 2:3])                    # each token for itself


@pytest.mark.parametrize("rule", RULES)
def test_a_fresh_memory_adds_nothing_and_can_learn(rule):
    m, (q, k, v, x) = AHN(C, H, D, rule, torch.Generator().manual_seed(0)).double(), inputs()
    target = torch.randn(1, H, 30, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    learner = torch.optim.SGD(m.parameters(), lr=1.)
    for step in range(2):
        gates = m.gates(x)
        y, state = m(q, gates.read, leaving(k, v, gates, 4))
        assert y.any() == (step > 0) and state.any()
        learner.zero_grad(); (y - target).square().mean().backward(); learner.step()
        assert all(bool(p.grad.any()) == (step > 0 or name == "out") for name, p in m.named_parameters())


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_right(rule):
    m, (q, k, v, x) = shaken(rule), inputs(t=7)
    names = [name for name, _ in m.named_parameters()]
    def y(q, k, v, x, *weights):
        call = lambda method, *a: torch.func.functional_call(Bound(m, method), {f"m.{n}": w for n, w in zip(names, weights)}, a)
        gates = call("gates", x)
        return call("forward", q, gates.read, leaving(k, v, gates, 2))[0]
    free = [z.requires_grad_() for z in (q, k, v, x)] + list(m.parameters())
    assert torch.autograd.gradcheck(y, free, fast_mode=True)


class Bound(torch.nn.Module):
    "One method of a module as a module."
    def __init__(self, m, method): super().__init__(); self.m, self.method = m, method
    def forward(self, *args): return getattr(self.m, self.method)(*args)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_keep_a_wide_state(rule, dtype):
    "Also when the memory's own weights stay in float32."
    for kind in (dtype, torch.float32):
        m, (q, k, v, x) = shaken(rule, dtype=kind), inputs(dtype=dtype)
        gates = m.gates(x)
        y, state = m(q, gates.read, leaving(k, v, gates, 4))
        assert y.dtype == dtype and state.dtype == gates.write.dtype == gates.log_decay.dtype == torch.float32
        exact = m.double()
        want, _ = exact(q.double(), exact.gates(x.double()).read, leaving(k.double(), v.double(), exact.gates(x.double()), 4))
        assert (y - want).norm() < 0.03 * want.norm()


def test_unit_commutes_with_rotation():
    k = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    angles = rotary_angles(torch.arange(5).expand(2, 5) + 7, 16, 1e4, torch.float64)
    assert_close(unit(rotate(k, *angles)), rotate(unit(k), *angles))
    assert not unit(torch.zeros(3)).any() and unit(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_initial_decay():
    A_log, bias = initial_decay(4000, "gdn", torch.Generator().manual_seed(0))
    A, step = A_log.exp(), F.softplus(bias)
    assert 0 < A.min() and A.max() <= 16 and abs(A.mean() - 8) < 0.3 and abs(A.std() - 16 / 12**0.5) < 0.2
    assert 1e-3 * 0.999 < step.min() < 1.1e-3 and 0.09 < step.max() < 1e-1 * 1.001 and abs(step.log().mean() - math.log(1e-2)) < 0.1
    assert_close(half_lives(A_log, bias), math.log(2) / (A * step))
    A_log, bias = initial_decay(5, "mamba2")
    assert_close(A_log.exp(), torch.arange(1., 6)), assert_close(bias, torch.ones(5))
    one, same, other = (AHN(C, H, D, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True)) and not torch.equal(one.A_log, other.A_log)


CARD = {"gdn": (12.976, 21.275, 60.948), "dn": (11.796, 18.465, 51.118), "mamba2": (11.873, 18.568, 51.372)}  # millions, counted as the fact sheet of the paper does


@pytest.mark.parametrize("rule", RULES)
def test_added_parameters(rule):
    for name, millions in zip(("Qwen2.5-3B", "Qwen2.5-7B", "Qwen2.5-14B"), CARD[rule], strict=True):
        assert round(added_parameters(MODELS[name], rule, small=rule == "mamba2") / 1e6, 3) == millions
    assert round(added_parameters(MODELS["SmolLM2-135M"], small=False) / 1e6, 3) == 1.572
    for shape in MODELS.values():
        if shape.channels > 1000: continue
        made = AHN(shape.channels, shape.heads, shape.head_dim, rule)
        assert added_parameters(shape, rule) == shape.layers * sum(p.numel() for p in made.parameters())


def test_unknown_rules_are_one_sentence():
    with pytest.raises(ValueError, match="unknown rule 'gdm'; did you mean 'gdn'"): AHN(C, H, D, "gdm")
    with pytest.raises(ValueError, match="unknown rule"): added_parameters(MODELS["SmolLM2-135M"], "lstm")


def test_stays_light():
    "Neither the layer nor the cost model needs transformers."
    code = "import sys; import llmwatch_course.ahn.layer, llmwatch_course.ahn.cost; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
