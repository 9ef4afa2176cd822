"The bill, the growing and the preallocated cache, and prefill, against the model that remembers nothing."
import random
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.foundations.decoder import Cache, Config, Decoder, NoMemory, generate, left_pad
from llmwatch_course.kv_cache.bill import MODELS, kv_bytes, parameters
from llmwatch_course.kv_cache.growing import Growing
from llmwatch_course.kv_cache.prefill import prefill
from llmwatch_course.kv_cache.preallocated import Preallocated

KINDS = {"growing": Growing, "preallocated": lambda: Preallocated(64)}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def model(): return Decoder(Config.tiny(layers=2)).initialise(torch.Generator().manual_seed(0)).double().requires_grad_(False)


@pytest.fixture
def tokens(): return torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(1))


def pieces(total: int, rng: random.Random) -> list[int]:
    "`total` cut at random places."
    cuts = sorted(rng.sample(range(1, total), rng.randint(0, min(8, total - 1))))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total])]


def ragged(rows, tokens):
    "What the model says about the last token of each row, one row at a time and without a cache."
    return torch.cat([rows(r, t) for r, t in enumerate(tokens)])


@both
@pytest.mark.parametrize("seed", range(8))
def test_every_split_gives_the_same_logits(model, tokens, kind, seed):
    want, cache, rng = model(tokens), Cache.of(model, kind), random.Random(seed)
    got = torch.cat([model(t, cache) for t in tokens.split(pieces(40, rng), 1)], 1)
    assert_close(got, want, atol=1e-10, rtol=0)
    assert cache.seen.tolist() == [40] * 3


@both
@pytest.mark.parametrize("seed", range(6))
def test_a_random_life_equals_a_fresh_start(model, kind, seed):
    "Rows of unequal length, fed, cropped and reordered at random: always what a model without memory says about the same texts."
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(256, (n,), generator=g).tolist()
    texts = [draw(rng.randint(1, 9)) for _ in range(3)]
    padded, positions = left_pad(texts)
    cache = Cache.of(model, kind)
    logits = prefill(model, padded, cache, chunk=rng.randint(1, 9), positions=positions)
    for _ in range(8):
        match rng.choice(["feed", "feed", "reorder", "crop"]):
            case "feed":                                                   # unequal numbers of new tokens, padded on the left
                new = [draw(rng.randint(1, 4)) for _ in texts]
                padded, at = left_pad(new)
                at = torch.where(at >= 0, at + cache.seen[:, None], -1)
                logits = model(padded, cache, at, last=1)
                texts = [a + b for a, b in zip(texts, new)]
                for r, text in enumerate(texts): assert_close(logits[r, -1], model(torch.tensor([text]), last=1)[0, -1], atol=1e-10, rtol=0)
            case "reorder":
                index = torch.tensor([rng.randrange(len(texts)) for _ in range(rng.randint(1, 4))])
                cache.reorder(index)
                texts = [texts[i] for i in index]
            case "crop":
                counts = [rng.randint(0, len(t)) for t in texts]
                cache.crop(torch.tensor(counts))
                texts = [t[:len(t) - c] for t, c in zip(texts, counts)]
        held = cache[0].positions
        assert [sorted(p for p in row if p >= 0) for row in held.tolist()] == [list(range(len(t))) for t in texts]


@both
def test_generate_after_left_padding(model, kind):
    padded, positions = left_pad([[5, 6, 7], list(range(10, 21))])
    assert torch.equal(generate(model, padded, 12, Cache.of(model, kind), positions), generate(model, padded, 12, None, positions))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_and_reset(kind, dtype):
    model = Decoder(Config.tiny(layers=2)).initialise(torch.Generator().manual_seed(0)).to(dtype).requires_grad_(False)
    cache, tokens = Cache.of(model, kind), torch.zeros(2, 7, dtype=torch.long)
    assert cache.nbytes() == 0
    model(tokens, cache)
    held = 7 if isinstance(cache[0], Growing) else 64
    assert cache.nbytes() == kv_bytes(model.config, held, dtype, batch=2)
    cache.reset()
    assert cache.nbytes() == 0
    assert_close(model(tokens[:1], cache), model(tokens[:1]))                # another number of rows is fine now


@both
@pytest.mark.parametrize("change", [
    lambda k, v, p: (k.float(), v.float(), p), lambda k, v, p: (k, v.float(), p), lambda k, v, p: (k[:1], v[:1], p[:1]), lambda k, v, p: (k[:, :1], v[:, :1], p),
    lambda k, v, p: (k[..., :4], v[..., :4], p), lambda k, v, p: (k, v[..., :4], p), lambda k, v, p: (k.to("meta"), v.to("meta"), p)],
    ids=["dtype", "values' dtype", "rows", "heads", "width", "values' width", "device"])
def test_a_refused_update_changes_nothing(kind, change):
    cache, k, p = kind(), torch.randn(2, 3, 4, 8, dtype=torch.float64), torch.arange(4).expand(2, 4)
    cache.update(k, 2 * k, p)
    before = [x.clone() for x in (cache.k, cache.v, cache.positions)]
    with pytest.raises(ValueError, match="the cache holds"): cache.update(*change(k, k, p + 4))
    for x, y in zip(before, (cache.k, cache.v, cache.positions)): assert torch.equal(x, y)


@both
def test_crop_refuses_what_is_not_there(model, tokens, kind):
    cache = kind()
    with pytest.raises(ValueError, match="empty"): cache.crop(torch.tensor([0]))
    whole = Cache.of(model, kind)
    model(tokens[:, :6], whole)
    for counts in ([7, 0, 0], [-1, 0, 0], [1, 1]):
        with pytest.raises(ValueError, match="can't forget"): whole[0].crop(torch.tensor(counts))
    assert_close(model(tokens[:, 6:9], whole), model(tokens[:, :9])[:, 6:], atol=1e-10, rtol=0)


def test_a_full_cache_says_so_and_goes_on(model, tokens):
    cache = Cache.of(model, Preallocated, 10)
    model(tokens[:, :8], cache)
    with pytest.raises(ValueError, match="room for 10 tokens"): model(tokens[:, 8:11], cache)
    with pytest.raises(ValueError, match="room for 10 tokens"): prefill(model, tokens[:, 8:12], cache, chunk=1)
    assert cache.seen.tolist() == [8] * 3
    assert_close(model(tokens[:, 8:10], cache), model(tokens[:, :10])[:, 8:], atol=1e-10, rtol=0)
    fresh = Cache.of(model, Preallocated, 10)
    with pytest.raises(ValueError, match="room for 10"): prefill(model, tokens[:, :11], fresh, chunk=4)
    assert fresh.seen is None and fresh.nbytes() == 0
    with pytest.raises(ValueError, match="at least 1"): Preallocated(0)


def test_crop_of_a_preallocated_cache_copies_nothing():
    cache, k, p = Preallocated(8), torch.randn(2, 1, 5, 4), torch.arange(5).expand(2, 5)
    cache.update(k, k, p)
    where = cache.k.data_ptr()
    cache.crop(torch.tensor([0, 3]))
    cache.update(k[:, :, :1], k[:, :, :1], torch.tensor([[5], [2]]))
    assert cache.k.data_ptr() == where and cache.lengths.tolist() == [6, 3]
    assert cache.positions[1].tolist() == [0, 1, 2] + [-1] * 5


@both
def test_a_cache_filled_in_inference_mode_serves_outside_it(model, tokens, kind):
    cache = Cache.of(model, kind)
    prefill(model, tokens[:, :8], cache, chunk=3)
    got = model(tokens[:, 8:12], cache)
    cache.reorder(torch.tensor([0, 1, 2]))
    cache.crop(torch.tensor([1, 1, 1]))
    assert_close(got, model(tokens[:, :12])[:, 8:], atol=1e-10, rtol=0)
    assert_close(model(tokens[:, 11:12], cache), model(tokens[:, :12])[:, 11:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("window, sinks", [(None, 0), (6, 2)])
@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 99])
def test_prefill_is_one_call(model, tokens, chunk, window, sinks):
    def seen(): layer = Growing(); layer.window, layer.sinks = window, sinks; return layer
    cache = Cache.of(model, seen)
    want = model(tokens, Cache.of(model, NoMemory, window, sinks), last=1)
    assert_close(prefill(model, tokens, cache, chunk), want, atol=1e-10, rtol=0)


def test_prefill_refuses_before_it_starts(model, tokens):
    cache = Cache.of(model, Growing)
    with pytest.raises(ValueError, match="at least 1"): prefill(model, tokens, cache, 0)
    with pytest.raises(ValueError, match="beyond the 512"): prefill(model, tokens.repeat(1, 13), cache, 64)
    assert cache.seen is None and cache.nbytes() == 0


def test_weights_of_the_five_models():
    "As Hugging Face counts them; ours of SmolLM2 is built."
    known = {"SmolLM2-135M": 134_515_008, "Qwen2.5-3B": 3_085_938_688, "Qwen2.5-7B": 7_615_616_512,
             "Qwen2.5-14B": 14_770_033_664, "Llama-3-70B": 70_553_706_496}
    assert {name: parameters(shape) for name, shape in MODELS.items()} == known
    with torch.device("meta"): built = Decoder(MODELS["SmolLM2-135M"])
    assert sum(p.numel() for p in built.parameters()) == known["SmolLM2-135M"]
