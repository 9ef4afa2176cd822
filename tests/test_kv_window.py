"The ring, sinks and eviction caches against brute force: every split, unequal rows, reorder, crop, reset, types, refusals."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from llmwatch_course.foundations.blocks import attend, attention_weights, rotary_angles, rotate, visible
from llmwatch_course.foundations.decoder import Cache, Config, Decoder, NoMemory, generate, left_pad
from llmwatch_course.kv_cache.eviction import HeavyHitters, SnapKV
from llmwatch_course.kv_cache.ring import Ring, span
from llmwatch_course.kv_cache.sinks import Sinks

EXACT = dict(atol=1e-10, rtol=0)
g = torch.Generator().manual_seed(0)
MODEL = Decoder(Config.tiny(layers=2)).initialise(g).double().requires_grad_(False)
TEXT = torch.randint(256, (3, 120), generator=g)
calm = settings(max_examples=25, deadline=None, derandomize=True)
LOSSY = [lambda: Ring(6), lambda: Sinks(6, 2), lambda: Sinks(6, 2, reindexed=True), lambda: HeavyHitters(8, 3), lambda: SnapKV(8, observe=3, kernel=3)]
IDS = ["ring", "sinks", "reindexed", "h2o", "snapkv"]
new = lambda kind, model=MODEL: Cache([kind() for _ in range(model.config.layers)])
masked = lambda row, window, sinks: MODEL(torch.tensor([list(row)]), Cache.of(MODEL, NoMemory, window, sinks))[0]
parts = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def split(n: int, lengths: list[int]) -> list[int]:
    "`lengths`, then single tokens, `n` in all."
    out = []
    for t in lengths:
        if sum(out) + t <= n: out.append(t)
    return out + [1] * (n - sum(out))


@calm
@given(st.integers(1, 30), st.integers(0, 6), parts)
def test_every_split_equals_the_masked_model(window, sinks, lengths):
    sinks = min(sinks, window - 1)
    cache = Cache.of(MODEL, Sinks, window, sinks) if sinks else Cache.of(MODEL, Ring, window)
    got = torch.cat([MODEL(x, cache) for x in TEXT.split(split(120, lengths), 1)], 1)
    assert_close(got, MODEL(TEXT, Cache.of(MODEL, NoMemory, window, sinks)), **EXACT)
    assert cache.nbytes() == MODEL.config.layers * 2 * 3 * 2 * (window + sinks) * 32 * 8


@calm
@given(st.integers(1, 12), st.integers(0, 3), st.lists(st.integers(1, 60), min_size=3, max_size=3), parts, st.permutations([0, 1, 2]))
def test_unequal_rows_then_reorder(window, sinks, lengths, later, order):
    sinks = min(sinks, window - 1)
    rows = [TEXT[i, :n].tolist() for i, n in enumerate(lengths)]
    cache = Cache.of(MODEL, Sinks, window, sinks)
    tokens, positions = left_pad(rows)
    for at in torch.arange(tokens.shape[1]).split(split(tokens.shape[1], later)): got = MODEL(tokens[:, at], cache, positions[:, at])
    for i, row in enumerate(rows): assert_close(got[i, -1], masked(row, window, sinks)[-1], **EXACT)
    index = torch.tensor([*order, 1])
    cache.reorder(index)
    rows = [rows[i] + [7, 9] for i in index.tolist()]
    for t in (7, 9): got = MODEL(torch.full((4, 1), t), cache)
    for i, row in enumerate(rows): assert_close(got[i, -1], masked(row, window, sinks)[-1], **EXACT)


@calm
@given(st.integers(1, 9), st.integers(0, 3), st.integers(1, 25), st.integers(0, 25))
def test_crop_is_exact_or_refused(window, sinks, n, count):
    sinks, count = min(sinks, window - 1), min(count, n)
    cache, counts = Cache.of(MODEL, Sinks, window, sinks), torch.tensor([count, 0, 0])
    MODEL(TEXT[:, :n], cache)
    possible = n <= window + sinks or count <= 1 or count == n or (window == 1 and sinks == 0)
    if not possible:
        before = [x.clone() for x in (cache[0].k, cache[0].v, cache[0].positions)]
        with pytest.raises(ValueError, match="can't forget"): cache.crop(counts)
        for a, b in zip((cache[0].k, cache[0].v, cache[0].positions), before): assert torch.equal(a, b)
        return
    cache.crop(counts)
    got = MODEL(torch.full((3, 2), 5), cache)
    for i, c in enumerate(counts.tolist()): assert_close(got[i], masked(TEXT[i, :n - c].tolist() + [5, 5], window, sinks)[-2:], **EXACT)


@calm
@given(st.integers(1, 12), st.integers(0, 4), st.integers(20, 40))
def test_reindexed_sinks_are_streaming_llm(window, sinks, n):
    sinks = min(sinks, window - 1)
    q, k = torch.randn(2, 2, 2, n, 8, dtype=torch.float64)
    turn = lambda x, p: rotate(x, *rotary_angles(p.expand(len(x), -1), 8, 1e5, torch.float64))
    cache = Sinks(window, sinks, reindexed=True)
    for p in range(n):
        at = torch.tensor([[p]]).expand(2, 1)
        keys, values, held = cache.update(turn(k[:, :, p:p+1], at), k[:, :, p:p+1], at)
        want = torch.tensor([j for j in range(p + 1) if j < sinks or j > p - window])
        place = torch.arange(len(want))[None]
        book = attend(turn(q[:, :, p:p+1], place[:, -1:]), turn(k[:, :, want], place), k[:, :, want])
        assert_close(attend(turn(q[:, :, p:p+1], at), keys, values, visible(at, held, cache.window, cache.sinks)), book, **EXACT)


def test_reindexed_rows_move_alone():
    rows = [TEXT[0, :40].tolist(), TEXT[1, :5].tolist()]
    cache, alone = Cache.of(MODEL, Sinks, 6, 2, reindexed=True), [Cache.of(MODEL, Sinks, 6, 2, reindexed=True) for _ in rows]
    tokens, positions = left_pad(rows)
    MODEL(tokens, cache, positions)
    for c, row in zip(alone, rows): MODEL(torch.tensor([row]), c)
    for t in range(10):
        got = MODEL(TEXT[:2, t:t+1], cache)
        for i, c in enumerate(alone): assert_close(got[i], MODEL(TEXT[i:i+1, t:t+1], c)[0], **EXACT)
    cache.reorder(torch.tensor([1, 1])); MODEL(TEXT[:2, :1], cache)
    assert cache.nbytes() == 2 * (2 * 2 * 2 * 8 + 2 * 2 * 2) * 32 * 8      # the sinks' keys are held twice


def h2o_by_hand(q, k, prompt, budget, recent):
    "Sets of positions held after each step, one row, from the definition."
    votes, held, out = {}, [], []
    for at in [range(prompt), *[[p] for p in range(prompt, q.shape[2])]]:
        at = list(at)
        if len(at) == 1 and len(held) == budget: held.remove(min((j for j in held if j <= at[0] - recent), key=votes.get))
        held = held + at
        mask = torch.tensor([[j <= p for j in held] for p in at])[None]
        for j, mass in zip(held, attention_weights(q[:, :, at], k[:, :, held], mask).sum((0, 1, 2)).tolist()): votes[j] = votes.get(j, 0) + mass
        old = sorted((j for j in held if j <= at[-1] - recent), key=votes.get)
        for j in old[:max(0, len(held) - budget)]: held.remove(j)
        out.append(set(held))
    return out


@calm
@given(st.integers(1, 20), st.integers(2, 9), st.integers(1, 8))
def test_heavy_hitters_by_hand(prompt, budget, recent):
    recent = min(recent, budget - 1)
    q, k = 3 * torch.randn(2, 3, 4, 30, 8, dtype=torch.float64)
    k = k[:, :2]
    cache = HeavyHitters(budget, recent)
    got = []
    for at in torch.arange(30)[None].expand(3, -1).split([prompt] + [1] * (30 - prompt), 1):
        cache.update(k[:, :, at[0]], k[:, :, at[0]], at)
        cache.observe(q[:, :, at[0]], at)
        got.append(cache.positions.clone())
    for row in range(3):
        for positions, want in zip(got, h2o_by_hand(q[row:row+1], k[row:row+1], prompt, budget, recent)): assert set(positions[row].tolist()) - {-1} == want
    assert cache.nbytes() <= 2 * 3 * 2 * budget * 8 * 8


@calm
@given(st.integers(1, 30), st.integers(4, 9), st.integers(1, 4), st.sampled_from([1, 3, 5]))
def test_snapkv_by_hand(prompt, budget, voters, kernel):
    voters = min(voters, budget - 1)
    q, k = 3 * torch.randn(2, 1, 4, 33, 8, dtype=torch.float64)
    k, at = k[:, :2], torch.arange(33)[None]
    cache = SnapKV(budget, voters, kernel)
    cache.update(k[:, :, :prompt], k[:, :, :prompt], at[:, :prompt]); cache.observe(q[:, :, :prompt], at[:, :prompt])
    w = attention_weights(q[:, :, :prompt], k[:, :, :prompt], visible(at[:, :prompt], at[:, :prompt]))[0, :, -voters:].sum((0, 1))
    pooled = [w[max(0, i - kernel // 2):i + kernel // 2 + 1].sum() for i in range(prompt)]
    last = set(range(max(0, prompt - voters), prompt))
    best = sorted(set(range(prompt)) - last, key=lambda i: -pooled[i])[:budget - len(last)]
    assert set(cache.positions[0].tolist()) == (last | set(best) if prompt > budget else set(range(prompt)))
    for p in range(prompt, 33): cache.update(k[:, :, p:p+1], k[:, :, p:p+1], at[:, p:p+1]); cache.observe(q[:, :, p:p+1], at[:, p:p+1])
    assert cache.positions.shape[1] == min(prompt, budget) + 33 - prompt   # what is written is all kept


@pytest.mark.parametrize("kind", LOSSY[3:], ids=IDS[3:])
def test_scored_rows_of_unequal_length(kind):
    rows = [TEXT[0, :30].tolist(), TEXT[1, :5].tolist(), TEXT[2, :17].tolist()]
    cache, alone = new(kind), [new(kind) for _ in rows]
    tokens, positions = left_pad(rows)
    MODEL(tokens, cache, positions)
    for c, row in zip(alone, rows): MODEL(torch.tensor([row]), c)
    for t in range(12):
        got = MODEL(TEXT[:, t:t+1], cache)
        for i, c in enumerate(alone): assert_close(got[i], MODEL(TEXT[i:i+1, t:t+1], c)[0], **EXACT)
    cache.reorder(torch.tensor([2, 2, 0]))
    got = MODEL(TEXT[:, :1], cache)
    assert_close(got[1], MODEL(TEXT[1:2, :1], alone[2])[0], **EXACT)


@pytest.mark.parametrize("kind", LOSSY[3:], ids=IDS[3:])
def test_scored_within_the_budget_is_exact_and_crop_goes_back_to_the_last_eviction(kind):
    cache = new(kind)
    MODEL(TEXT[:, :7], cache); cache.crop(torch.tensor([3, 0, 7]))
    got = MODEL(TEXT[:, :1], cache)
    for i, n in enumerate((4, 7, 0)): assert_close(got[i, -1], MODEL(torch.cat([TEXT[i:i+1, :n], TEXT[i:i+1, :1]], 1))[0, -1], **EXACT)
    MODEL(TEXT[:, :20], cache)
    with pytest.raises(ValueError, match="or all"): cache.crop(torch.tensor([2, 0, 0]))
    cache.crop(cache.seen)
    assert_close(MODEL(TEXT[:, :5], cache), MODEL(TEXT[:, :5]), **EXACT)


def test_snapkv_takes_back_what_was_written_after_the_prompt():
    cache = new(LOSSY[4])
    MODEL(TEXT[:, :20], cache)
    first = MODEL(TEXT[:, 20:21], cache)
    for t in (3, 4): MODEL(TEXT[:, t:t+1], cache)
    cache.crop(torch.tensor([3, 3, 3]))
    assert_close(MODEL(TEXT[:, 20:21], cache), first, **EXACT)


@pytest.mark.parametrize("kind", LOSSY, ids=IDS)
def test_reset_and_refusals_leave_it_unharmed(kind):
    cache = new(kind)
    steps = lambda: [MODEL(x, cache) for x in TEXT.split([20] + [1] * 20 + [3] * 5 + [1] * 65, 1)]
    first = steps()
    k = torch.zeros(3, 2, 1, 32, dtype=torch.float64)
    before = cache[0].k.clone(), cache[0].positions.clone()
    for bad in (k.float(), k[:2], k[:, :1], k[..., :16], k.to("meta")):
        with pytest.raises(ValueError): cache[0].update(bad, bad, torch.full((len(bad), 1), 120))
        with pytest.raises(ValueError): cache[0].update(k, bad, torch.full((3, 1), 120))
    assert torch.equal(before[0], cache[0].k) and torch.equal(before[1], cache[0].positions)
    cache.reset()
    assert cache.nbytes() == 0
    cache[0].reorder(torch.tensor([0]))                                    # nothing there yet, nothing to do
    with pytest.raises(ValueError): cache[0].crop(torch.tensor([1]))
    for a, b in zip(first, steps()): assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", LOSSY, ids=IDS)
def test_types_and_inference_mode_in_and_out(kind, dtype):
    model = Decoder(Config.tiny(layers=2)).initialise(g).to(dtype)         # with gradients on: nothing may pile up
    cache = new(kind, model)
    generate(model, TEXT[:, :20], 5, cache)
    model(TEXT[:, 20:21], cache); cache.reorder(torch.tensor([1, 0])); model(TEXT[:2, 20:24], cache)
    generate(model, TEXT[:2, 20:21], 3, cache)
    assert cache[0].k.dtype == dtype and not cache[0].k.requires_grad and not cache[0].k.is_inference()


@pytest.mark.parametrize("kind", LOSSY, ids=IDS)
def test_a_row_that_does_not_advance(kind):
    "A row whose only new token is padding stays as it was."
    cache, other = new(kind), new(kind)
    for c in (cache, other): MODEL(TEXT[:, :15], c)
    MODEL(TEXT[:, 15:16], cache, torch.tensor([[15], [-1], [15]]))
    got = MODEL(TEXT[:, 16:17], cache)
    assert_close(got[1], MODEL(TEXT[:, 16:17], other)[1], **EXACT)


@pytest.mark.parametrize("make", [lambda: Ring(0), lambda: Ring(-3), lambda: Sinks(4, 4), lambda: Sinks(4, -1), lambda: Sinks(0, 0), lambda: HeavyHitters(4, 4),
                                  lambda: HeavyHitters(4, 0), lambda: SnapKV(8, 8), lambda: SnapKV(8, 0), lambda: SnapKV(8, 2, 4)])
def test_impossible_sizes(make):
    with pytest.raises(ValueError): make()


def test_a_decoding_step_copies_nothing():
    ring = Ring(8)
    for p in range(20): k, v, positions = ring.update(*torch.randn(2, 1, 2, 1, 4), torch.tensor([[p]]))
    assert k.data_ptr() == ring.k.data_ptr() and k.shape[2] == 8 and k.is_contiguous()
    assert sorted(positions[0].tolist()) == list(range(12, 20))
    assert span(torch.tensor([[-1]])) == (None, 0)
