"""WorldDiT: patches, ray features, every part of the network against plain formulas, who sees whom, the paper's size."""
import math
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from llmwatch_course.memory_forcing.diffusion import Condition
from llmwatch_course.memory_forcing.model import MATCH, RayFourier, WorldDiT, attention_map, looped, paper_config, patch, read_memory, to_tokens, unpatch


def random_condition(b=3, t=4, n=8, m=5, c=96, seed=1, full=True):
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(b, m, dtype=torch.bool) if full else torch.rand(b, m, generator=g) < 0.6
    rays = torch.randn(b, t, n, 6, generator=g), torch.randn(b, t, m, n, 6, generator=g)
    return Condition(torch.randint(9, (b, t), generator=g), rays[0], torch.randn(b, m, n, c, generator=g), rays[1], mask)


def given(b=3, t=4, n=8, c=96, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, t, n, c, generator=g), torch.rand(b, t, generator=g)


def network(opened=True, **sizes):
    torch.manual_seed(0)
    model = WorldDiT(**sizes)
    if opened:
        with torch.no_grad():
            for p in model.parameters(): p.add_(0.05 * torch.randn(p.shape))
    return model.eval()


@pytest.mark.parametrize("picture, size", [((8, 32), (8, 4)), ((32, 32), (8, 8)), ((8, 16), (2, 2)), ((4, 6), (4, 3))])
def test_patches(picture, size):
    x = torch.rand(2, 3, 5, *picture)
    tokens = patch(x, size)
    columns = picture[1] // size[1]
    for i in range(tokens.shape[-2]):
        y, z = i // columns * size[0], i % columns * size[1]
        assert torch.equal(tokens[1, 2, i], x[1, 2, :, y:y + size[0], z:z + size[1]].flatten())
    assert torch.equal(unpatch(tokens, picture, size), x)
    assert_close(to_tokens(x, size), 2 * tokens - 1)


def test_patches_must_tile():
    with pytest.raises(ValueError, match="do not tile 8 x 30"): patch(torch.zeros(3, 8, 30))


def test_ray_features_are_a_kernel():
    features, g = RayFourier(2**15), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20, 6, generator=g) * 0.3
    scale = torch.tensor([0.5, 0.5, 0.5, 4, 4, 4])
    assert_close((features(a) * features(b)).sum(-1), torch.exp(-((a - b) * scale).square().sum(-1) / 2), atol=0.03, rtol=0)
    assert_close(RayFourier(64)(a).norm(dim=-1), torch.ones(20))
    assert torch.equal(RayFourier(64).w, RayFourier(64).w) and not torch.equal(RayFourier(64).w, RayFourier(64, seed=1).w)


def plain(model, x, k, c):
    "The whole network again, a head and a query at a time, without sharing anything."
    def norm(o): return F.layer_norm(o, (64,))
    b, t, n, _ = x.shape
    wave = k[..., None] * torch.exp(torch.linspace(0, math.log(1000), 32))
    cond = F.silu(model.level(torch.cat([wave.sin(), wave.cos()], -1)) + model.act(c.actions))
    h = model.inp(x) + model.pos + model.time[:t, None]
    context = norm(model.ctx(c.context) + model.pos)
    for block in model.blocks:
        s1, b1, g1, s2, b2, g2 = block.ada(cond)[:, :, None].chunk(6, -1)
        q, key, v = block.qkv(norm(h) * (1 + s1) + b1).chunk(3, -1)
        seen = torch.empty_like(h)
        for i in range(t):
            for head in range(4):
                part = slice(16 * head, 16 * head + 16)
                weights = (q[:, i, :, part] @ key[:, :i + 1].flatten(1, 2)[..., part].mT / 4).softmax(-1)
                seen[:, i, :, part] = weights @ v[:, :i + 1].flatten(1, 2)[..., part]
        h = h + (1 + g1) * block.o(seen)
        memory = block.memory
        read = torch.zeros_like(h)
        for w in range(b):
            there = c.context_mask[w]
            for i in range(t if there.any() else 0):
                q = memory.q(norm(h[w, i])) + memory.gain * model.rays(c.rays[w, i])
                key, v = memory.kv(context[w, there]).flatten(0, 1).chunk(2, -1)
                key = key + memory.gain * model.rays(c.context_rays[w, i, there]).flatten(0, 1)
                for head in range(4):
                    part = slice(16 * head, 16 * head + 16)
                    read[w, i, :, part] = (q[:, part] @ key[:, part].T / 4).softmax(-1) @ v[:, part]
        h = h + memory.gate * memory.o(read)
        h = h + (1 + g2) * block.mlp(norm(h) * (1 + s2) + b2)
    return model.out(norm(h))


@pytest.mark.parametrize("full", [True, False])
@torch.no_grad()
def test_the_network_written_plainly(full):
    model, (x, k), c = network(), given(), random_condition(full=full)
    if not full: c.context_mask[0] = False
    assert_close(model(x, k, c), plain(model, x, k, c), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_who_sees_whom():
    model, (x, k), c = network(), given(), random_condition()
    out = model(x, k, c)
    for t in range(4):
        other, level = x.clone(), k.clone()
        other[:, t] += 1; level[:, t] = 0.9
        changed = (model(other, level, c) != out).flatten(2).any(-1).all(0).tolist()
        assert changed == [i >= t for i in range(4)]
    actions = c.actions.clone(); actions[:, 2] = (actions[:, 2] + 1) % 9
    assert torch.equal(model(x, k, c._replace(actions=actions))[:, :2], out[:, :2])


@torch.no_grad()
def test_slots():
    model, (x, k), c = network(), given(), random_condition()
    out, order = model(x, k, c), torch.tensor([3, 0, 4, 2, 1])
    assert_close(model(x, k, c._replace(context=c.context[:, order], context_rays=c.context_rays[:, :, order])), out, atol=1e-4, rtol=1e-4)
    some = c._replace(context_mask=torch.tensor([True, False, True, True, False]).expand(3, 5))
    left = c._replace(context=c.context[:, [0, 2, 3]], context_rays=c.context_rays[:, :, [0, 2, 3]], context_mask=torch.ones(3, 3, dtype=torch.bool))
    assert_close(model(x, k, some), model(x, k, left), atol=1e-4, rtol=1e-4)
    spoilt = some._replace(context=torch.where(some.context_mask[..., None, None], some.context, 99.0))
    assert_close(model(x, k, spoilt), model(x, k, some), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_closed_gates_and_no_memory():
    fresh, (x, k), c = network(opened=False), given(), random_condition()
    assert torch.equal(fresh(x, k, c), fresh(x, k, c._replace(context=None)))
    model = network(memory=False)
    assert torch.equal(model(x, k, c), model(x, k, Condition(c.actions)))
    assert not torch.equal(network()(x, k, c), network()(x, k, c._replace(context=None)))


@torch.no_grad()
def test_map_and_loop():
    model, (x, k), c = network(), given(), random_condition(full=False)
    h = torch.randn(3, 4, 8, 64)
    assert_close(read_memory(model, h, c), looped(model, h, c), atol=1e-5, rtol=1e-4)
    weights = attention_map(model, x, k, c, layer=0)
    assert weights.shape == (3, 4, 4, 8, 5, 8)
    some = c.context_mask.any(1)
    assert_close(weights[some].sum((-1, -2)), torch.ones(int(some.sum()), 4, 4, 8))
    assert weights.movedim(4, 1)[~c.context_mask & some[:, None]].max() < 1e-6
    assert not model.blocks[0].memory._forward_pre_hooks


@pytest.mark.parametrize("d, heads", [(64, 4), (128, 4), (256, 8)])
def test_first_logit_of_a_match(d, heads):
    model = WorldDiT(d=d, heads=heads, layers=1)
    phi = model.rays(torch.randn(6)).view(heads, -1)
    assert_close((model.blocks[0].memory.gain**2 * phi.square().sum(-1) / (d // heads)**0.5), torch.full((heads,), MATCH), atol=1e-3, rtol=1e-3)


def test_gradients_reach_everything():
    model, (x, k), c = network(), given(), random_condition(full=False)
    model(x, k, c).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_heads_must_fit():
    with pytest.raises(ValueError, match="3 heads of even width"): WorldDiT(heads=3)


def test_half_precision_keeps_the_phase():
    rays = torch.randn(50, 6)
    features = RayFourier(64)
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(features(rays), RayFourier(64)(rays))
    model, (x, k), c = network(), given(), random_condition()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16): half = model(x, k, c)
    assert (half - model(x, k, c)).abs().max() < 0.2


def test_paper_size():
    with torch.device("meta"):
        model = WorldDiT(**paper_config())
        x = torch.empty(1, 8, 336, 16)
        c = Condition(torch.zeros(1, 8, dtype=torch.long), torch.empty(1, 8, 336, 6), x, torch.empty(1, 8, 8, 336, 6), torch.ones(1, 8, dtype=torch.bool))
        assert model(x, torch.empty(1, 8), c).shape == x.shape
        assert 295e6 < sum(p.numel() for p in WorldDiT(**paper_config() | {"memory": False}).parameters()) < 325e6
    assert sum(p.numel() for p in WorldDiT().parameters()) == 302_499
