"""Quantised, paged and latent caches against independent truths."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.foundations.decoder import Cache, Config, Decoder, NoMemory, generate, left_pad
from llmwatch_course.kv_cache.growing import Growing
from llmwatch_course.kv_cache.mla import LatentAttention
from llmwatch_course.kv_cache.paged import Paged, Pool, fork
from llmwatch_course.kv_cache.quantised import Quantised, pack, quantise, restore, unpack


@pytest.fixture(scope="module")
def model():
    return Decoder(Config.tiny(layers=2)).initialise(torch.Generator().manual_seed(0)).double().requires_grad_(False)

def paged(model, blocks=400, block=16):
    return Cache.of(model, lambda: Paged(Pool(blocks, block)))

def check_holders(cache):
    "Every block has as many holders as tables mention it."
    for layer in cache.layers:
        used = layer.table[layer.table >= 0]
        assert torch.equal(torch.bincount(used, minlength=layer.pool.blocks), layer.pool.holders)
        assert torch.equal((layer.table >= 0).sum(1), -(-layer.lengths // layer.pool.block))  # waste is less than a block a row

def ragged(rng, seen, width):
    "New tokens with left padding, at least one a row, and their positions."
    n, at = torch.randint(1, width + 1, (len(seen),), generator=rng), torch.arange(width)
    positions = torch.where(at >= (width - n)[:, None], seen[:, None] + at - (width - n)[:, None], -1)
    return torch.randint(256, (len(seen), width), generator=rng), positions


# ---- a random life: what happens to the cache happens to a growing one as well

@pytest.mark.parametrize("seed", range(12))
def test_paged_lives_like_growing(model, seed):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda high, *size: torch.randint(high, size or (1,), generator=rng)
    truth, cache = Cache.of(model, Growing), paged(model, block=[1, 3, 4, 16][seed % 4])
    step = lambda tokens, positions=None: assert_close(*(torch.where((positions if positions is not None else tokens)[..., None] >= 0,
                                                        model(tokens, c, positions), 0) for c in (cache, truth)), atol=1e-10, rtol=0)
    step(*left_pad([draw(256, int(n) + 1).tolist() for n in draw(20, 3)]))
    for _ in range(12):
        what, rows = int(draw(5)), len(truth.seen)
        if what <= 1: step(draw(256, rows, int(draw(5)) + 1))
        elif what == 2: step(*ragged(rng, truth.seen, 5))
        elif what == 3:
            counts = torch.minimum(draw(7, rows), truth.seen - 1)
            for c in (truth, cache): c.crop(counts)
        else:
            index = draw(rows, int(draw(4)) + 1)
            for c in (truth, cache): c.reorder(index)
        check_holders(cache)
    cache.reset()
    assert all(layer.pool.free == layer.pool.blocks for layer in cache.layers) and cache.nbytes() == 0


@pytest.mark.parametrize("seed", range(12))
def test_quantised_rows_do_not_meet(seed):
    "In a batch with padding each row is what it is alone, to the bit: the same groups, the same codes."
    rng, residual = torch.Generator().manual_seed(seed), [0, 5, 8, 30][seed % 4]
    together, alone = Quantised(3, 8, residual), [Quantised(3, 8, residual) for _ in range(3)]
    seen = torch.zeros(3, dtype=torch.long)
    for what in torch.randint(5, (40,), generator=rng).tolist():
        if what == 4 and seen.any():
            counts = torch.minimum(torch.randint(40, (3,), generator=rng), seen)
            together.crop(counts)
            for r, cache in enumerate(alone): cache.crop(counts[r:r + 1])
            seen = seen - counts
            continue
        positions = (seen[:, None] + torch.arange(1) if what == 0 else ragged(rng, seen, [1, 9, 30][what % 3])[1])
        k, v = torch.randn(2, 3, 2, positions.shape[1], 16, generator=rng)
        seen = seen + (positions >= 0).sum(1)
        k_all, v_all, at = together.update(k, v, positions)
        for r, cache in enumerate(alone):
            new, used = positions[r] >= 0, at[r] >= 0
            k_one, v_one, at_one = cache.update(k[r:r + 1, :, new], v[r:r + 1, :, new], positions[r:r + 1, new])
            assert torch.equal(at_one[0], torch.arange(int(seen[r]))) and torch.equal(at[r][used], at_one[0])
            assert torch.equal(k_all[r][:, used], k_one[0]) and torch.equal(v_all[r][:, used], v_one[0])


def test_quantised_without_groups_is_exact(model):
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    cache = Cache.of(model, Quantised, residual=64)
    assert_close(torch.cat([model(tokens[:, :30], cache), model(tokens[:, 30:], cache)], 1), model(tokens), atol=1e-10, rtol=0)


def test_quantised_reorder_and_reset(model):
    tokens = torch.randint(256, (3, 60), generator=torch.Generator().manual_seed(2))
    cache, index = Cache.of(model, Quantised, bits=4, group=8, residual=8), torch.tensor([2, 2, 0])
    model(tokens, cache)
    one = model(tokens[:, :1], cache)[index]
    cache.crop(torch.ones(3, dtype=torch.long)); cache.reorder(index)
    assert_close(model(tokens[index][:, :1], cache), one, atol=1e-10, rtol=0)
    cache.reset()
    assert cache.nbytes() == 0
    assert_close(model(tokens[:1], cache), model(tokens[:1]), atol=1e-10, rtol=0)   # other rows than before


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_error_bound(bits, dtype):
    "Half a step, and what 16-bit scales and the result's own type round away."
    x = (4 * torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(bits)) + 2).to(dtype)
    groups = x.double().unflatten(-1, (-1, 32))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    error = (restore(quantise(x, bits, 32), bits, dtype).double() - x.double()).abs().unflatten(-1, (-1, 32)).amax(-1)
    sixteen = {torch.float32: torch.float16}.get(dtype, dtype)
    assert (error <= step / 2 + 4 * torch.finfo(sixteen).eps * x.abs().max()).all()
    if dtype == torch.float64: assert (error <= step / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_pack(bits):
    codes = torch.randint(2**bits, (2, 3, 24), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3, 24 * bits // 8) and torch.equal(unpack(packed, bits), codes)
    assert torch.equal(unpack(pack(codes[:, :0], bits), bits), codes[:, :0])


def test_constant_groups_and_extremes():
    for value in (0.0, -3.5, 1e-7, 6e4):
        x = torch.full((2, 32), value)
        assert_close(restore(quantise(x, 2, 32), 2, torch.float32), x, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes(dtype):
    g, kv, d, bits = 16, 2, 32, 3
    sixteen = 8 if dtype == torch.float64 else 2
    cache = Quantised(bits, g, residual=10)
    for n in (100, 1, 1, 50):
        cache.update(*torch.randn(2, 3, kv, n, d).to(dtype), torch.zeros(3, n, dtype=torch.long))
    groups = (152 - 10) // g
    old = groups * g * 2 * kv * d * bits // 8 + groups * g * 2 * kv * d // g * 2 * sixteen
    assert cache.nbytes() == 3 * (old + (152 - groups * g) * 2 * kv * d * dtype.itemsize)
    pages = Paged(Pool(40, 16))
    pages.update(*torch.randn(2, 3, kv, 100, d).to(dtype), torch.arange(100).expand(3, 100))
    assert pages.nbytes() == 3 * 7 * 16 * 2 * kv * d * dtype.itemsize


# ---- paging

def test_fork_shares_and_copies_only_what_is_written(model):
    prompt = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(3))
    cache = paged(model, block=16)
    model(prompt, cache)
    pool, one = cache[0].pool, cache.nbytes()
    branches = fork(cache, torch.zeros(4, dtype=torch.long))
    assert branches.nbytes() == one and pool.free == 400 - 3             # 40 tokens: three blocks, five holders
    before = pool.k.clone()
    new = torch.tensor([[1], [2], [3], [4]])
    assert_close(model(new, branches)[:, 0], torch.cat([model(torch.cat([prompt, n[None]], 1), last=1)[:, 0] for n in new]), atol=1e-10, rtol=0)
    assert pool.free == 400 - 3 - 4 and torch.equal(pool.k[:3], before[:3])   # each branch copied the last block, the first cache is untouched
    assert_close(model(new[:1], cache), model(torch.cat([prompt, new[:1]], 1), last=1), atol=1e-10, rtol=0)
    assert pool.free == 400 - 3 - 4                                       # its last block has no other holder any more: no copy
    branches.reset(); cache.reset()
    assert pool.free == 400


def test_last_holder_keeps_the_block(model):
    cache = paged(model, block=16)
    model(torch.zeros(1, 5, dtype=torch.long), cache)
    cache.reorder(torch.zeros(3, dtype=torch.long))
    model(torch.zeros(3, 1, dtype=torch.long), cache)
    assert cache[0].pool.free == 400 - 3


def test_crop_then_write_leaves_the_fork_alone(model):
    tokens = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(4))
    a = paged(model, block=8); model(tokens, a)
    b = fork(a, torch.tensor([0]))
    a.crop(torch.tensor([9])); model(tokens[:, :5], a)
    assert_close(model(tokens[:, :1], b), model(torch.cat([tokens, tokens[:, :1]], 1), last=1), atol=1e-10, rtol=0)


def test_full_pool_harms_nothing(model):
    tokens = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(5))
    cache = paged(model, blocks=5, block=8)
    model(tokens[:, :16], cache)
    held = [(layer.table.clone(), layer.pool.holders.clone(), layer.pool.k.clone()) for layer in cache.layers]
    with pytest.raises(ValueError, match="1 free blocks of 8 tokens, but 2 are needed"): model(tokens[:, 16:17], cache)
    for layer, (table, holders, k) in zip(cache.layers, held):
        assert torch.equal(layer.table, table) and torch.equal(layer.pool.holders, holders) and torch.equal(layer.pool.k, k)
    assert cache.seen.tolist() == [16, 16]
    cache.reorder(torch.tensor([1]))                                       # room again
    assert_close(model(tokens[1:, 16:], cache), model(tokens[1:])[:, 16:], atol=1e-10, rtol=0)


def test_two_caches_one_pool(model):
    pools = [Pool(30, 4) for _ in range(2)]
    a, b = (Cache([Paged(p) for p in pools]) for _ in "ab")
    x, y = torch.randint(256, (2, 1, 12), generator=torch.Generator().manual_seed(6))
    for i in range(0, 12, 3):
        u, v = model(x[:, i:i + 3], a), model(y[:, i:i + 3], b)
    assert_close(u, model(x)[:, -3:], atol=1e-10, rtol=0)
    assert_close(v, model(y)[:, -3:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [lambda: Paged(Pool(100, 8)), lambda: Quantised(8, 16, 64)])
def test_inside_and_outside_inference_mode(model, kind):
    cache = Cache.of(model, kind)
    tokens = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(7))
    new = generate(model, tokens, 20, cache)
    assert torch.equal(new, generate(model, tokens, 20))
    assert_close(model(new[:, -1:], cache), model(torch.cat([tokens, new], 1), last=1), atol=1e-10, rtol=0)
    cache.crop(torch.tensor([4])); cache.reorder(torch.tensor([0, 0]))
    with torch.inference_mode(): model(new[:, :2].expand(2, 2), cache)
    model(new[:, :2].expand(2, 2), cache)


# ---- bad input: one sentence, and nothing changed

@pytest.mark.parametrize("make", [lambda: Quantised(0), lambda: Quantised(9), lambda: Quantised(group=12), lambda: Quantised(group=0),
                                  lambda: Quantised(residual=-1), lambda: Pool(0), lambda: Pool(4, 0), lambda: LatentAttention(8, 2, 4, 5, 2),
                                  lambda: LatentAttention(8, 2, 4, 4, 3)])
def test_bad_arguments(make):
    with pytest.raises(ValueError): make()


@pytest.mark.parametrize("make", [lambda: Quantised(4, 8, 8), lambda: Paged(Pool(50, 4))])
def test_bad_updates(make):
    cache, at = make(), torch.arange(20).expand(2, 20)
    with pytest.raises(ValueError): cache.crop(torch.tensor([0, 0]))
    k, v = torch.randn(2, 2, 3, 20, 16)
    cache.update(k, v, at)
    one = torch.full((2, 1), 20)
    truth = [x.clone() for x in cache.update(k[:, :, :1], v[:, :, :1], one)]
    cache.crop(torch.tensor([1, 1]))
    bytes_held = cache.nbytes()
    for bad in (k.double(), k[:1], k[:, :2], k[..., :8], k.to("meta")):
        with pytest.raises(ValueError): cache.update(bad[:, :, :1], bad[:, :, :1], one)
    with pytest.raises(ValueError): cache.update(k[:, :, :1], v[:, :2, :1], one)
    for counts in ([21, 0], [-1, 0], [1]):
        with pytest.raises(ValueError): cache.crop(torch.tensor(counts))
    with pytest.raises(IndexError): cache.reorder(torch.tensor([2]))
    assert cache.nbytes() == bytes_held
    for a, b in zip(cache.update(k[:, :, :1], v[:, :, :1], one), truth): assert_close(a, b)


def test_group_must_divide_the_head():
    cache = Quantised(4, 32)
    with pytest.raises(ValueError, match="don't divide"): cache.update(*torch.randn(2, 1, 2, 3, 48), torch.arange(3)[None])
    assert cache.nbytes() == 0


# ---- latent attention

@pytest.fixture
def latent():
    torch.manual_seed(8)
    return LatentAttention(32, 4, 16, 24, 8).double().requires_grad_(False)


@pytest.mark.parametrize("cut", [1, 7, 19])
@pytest.mark.parametrize("kind", [Growing, lambda: Paged(Pool(20, 4)), lambda: Quantised(8, 16, 40)])
def test_latent_any_cache_any_split(latent, cut, kind):
    x, at = torch.randn(2, 20, 32, dtype=torch.float64), torch.arange(20).expand(2, 20)
    truth = latent(x, at, NoMemory(), absorb=False)
    for absorb in (True, False):
        cache = kind()
        parts = [latent(x[:, s], at[:, s], cache, absorb) for s in (slice(cut), slice(cut, None))]
        assert_close(torch.cat(parts, 1), truth, atol=1e-10, rtol=0)
    if kind is Growing: assert cache.nbytes() == 2 * 20 * (24 + 8) * 8


def test_latent_window_and_padding(latent):
    x, at = torch.randn(1, 12, 32, dtype=torch.float64), torch.arange(12)[None]
    a, b = (latent(x, at, NoMemory(5, 2), absorb) for absorb in (True, False))
    assert_close(a, b, atol=1e-10, rtol=0)
    padded, where = torch.cat([torch.zeros(1, 3, 32).double(), x], 1), torch.cat([torch.full((1, 3), -1), at], 1)
    assert_close(latent(padded, where, Growing())[:, 3:], latent(x, at, Growing()), atol=1e-10, rtol=0)
