"""Our caches behind a transformers model: the same text as transformers, whatever way of generating, and nothing silently wrong."""
import copy, gc, threading
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

pytest.importorskip("transformers")
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, StaticCache
from llmwatch_course.foundations.decoder import Cache, NoMemory, from_transformers, generate, left_pad
from llmwatch_course.kv_cache.eviction import HeavyHitters, SnapKV
from llmwatch_course.kv_cache.growing import Growing
from llmwatch_course.kv_cache.layers import NAME, wrap
from llmwatch_course.kv_cache.paged import Paged, Pool
from llmwatch_course.kv_cache.preallocated import Preallocated
from llmwatch_course.kv_cache.quantised import Quantised
from llmwatch_course.kv_cache.ring import Ring
from llmwatch_course.kv_cache.sinks import Sinks

SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=97, max_position_embeddings=256,
             initializer_range=0.2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, pad_token_id=0)
def new(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).double().eval().requires_grad_(False)

model = new()
twin = from_transformers(model.config.to_dict(), model.state_dict()).requires_grad_(False)
GREEDY = dict(max_new_tokens=16, do_sample=False)
def paged(): return Paged(Pool(64, 4))
LOSSLESS = {"growing": (Growing,), "preallocated": (Preallocated, 96), "paged": (paged,)}
BOUNDED = {"ring": (Ring, 9), "ring of one": (Ring, 1), "sinks": (Sinks, 6, 3)}
LOSSY = {"re-indexed": (Sinks, 6, 3, True, 1e4), "heavy hitters": (HeavyHitters, 10, 4), "snapkv": (SnapKV, 8, 4, 3), "quantised": (Quantised, 8, 8, 8)}
WAYS = {"greedy": {}, "chunked": dict(prefill_chunk_size=5), "beams": dict(num_beams=3), "returned beams": dict(num_beams=4, num_return_sequences=2)}

def prompt(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids, at = left_pad([torch.randint(3, 97, (n,), generator=g).tolist() for n in lengths])
    return dict(input_ids=ids, attention_mask=(at >= 0).long()), at

def write(inputs, cache, model=model, **options): return model.generate(**inputs, **{**GREEDY, **options}, past_key_values=cache)
def ask(cache, ids, mask=None, model=model): return model(ids, past_key_values=cache, attention_mask=mask).logits

# ---- the same text

@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_caches_write_what_transformers_writes(kind, way):
    for lengths in ((11,), (4, 11, 7)):
        inputs, _ = prompt(lengths)
        assert torch.equal(write(inputs, wrap(model, *LOSSLESS[kind]), **WAYS[way]), write(inputs, DynamicCache(), **WAYS[way]))

@pytest.mark.parametrize("kind", BOUNDED)
def test_windows_are_the_masked_model(kind):
    inputs, at = prompt((4, 14, 7))
    make, *sizes = BOUNDED[kind]
    truth = masked(inputs["input_ids"], at, *sizes)
    for way in ("greedy", "chunked"): assert torch.equal(write(inputs, wrap(model, make, *sizes), **WAYS[way])[:, 14:], truth)

def masked(ids, at, window, sinks=0, n=16):
    for _ in range(n):
        new = twin(ids, Cache.of(twin, NoMemory, window, sinks), at, last=1).argmax(-1)
        ids, at = torch.cat([ids, new], 1), torch.cat([at, at[:, -1:] + 1], 1)
    return ids[:, -n:]

@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_caches_do_what_they_do_in_our_decoder(kind):
    inputs, at = prompt((4, 14, 7))
    assert torch.equal(write(inputs, wrap(model, *LOSSY[kind]))[:, 14:], generate(twin, inputs["input_ids"], 16, Cache.of(twin, *LOSSY[kind]), at))

@pytest.mark.parametrize("kind", [*BOUNDED, *LOSSY])
def test_beams_with_every_cache(kind):
    "No independent truth for these, but rows must survive being reordered at every step."
    make = {**BOUNDED, **LOSSY}[kind]
    inputs, _ = prompt((4, 14))
    out = write(inputs, wrap(model, *make), num_beams=3, return_dict_in_generate=True, output_scores=True)
    assert out.sequences.shape == (2, 30) and torch.isfinite(out.sequences_scores).all()

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.lists(st.integers(1, 20), min_size=1, max_size=3), st.sampled_from([*LOSSLESS, *BOUNDED]), st.integers(0, 99))
def test_any_split_any_padding(splits, lengths, kind, seed):
    "Logits of padded rows, given piece by piece, are those of each row alone under the masked model."
    inputs, at = prompt(lengths, seed)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ends = [e for e in torch.tensor([0, *splits]).cumsum(0).tolist() if e < ids.shape[1]] + [ids.shape[1]]
    make, *sizes = {**LOSSLESS, **BOUNDED}[kind]
    cache = wrap(model, make, *sizes)
    place = at.clamp(min=0)
    got = torch.cat([model(ids[:, a:b], attention_mask=mask[:, :b], position_ids=place[:, a:b], past_key_values=cache).logits for a, b in zip(ends, ends[1:])], 1)
    for r, n in enumerate(lengths):
        want = twin(ids[r:r + 1, -n:], Cache.of(twin, NoMemory, *(sizes if kind in BOUNDED else ())))
        assert_close(got[r, -n:], want[0], atol=2e-4, rtol=1e-4)              # transformers turns and norms in float32

def test_assisted_decoding_crops():
    ids = prompt((9,))[0]["input_ids"].repeat(1, 3)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    for make in LOSSLESS.values():
        assert torch.equal(write(inputs, wrap(model, *make), prompt_lookup_num_tokens=4, max_new_tokens=24), write(inputs, None, max_new_tokens=24))
    assistant = new(1, num_hidden_layers=1)
    assert torch.equal(write(inputs, wrap(model, Preallocated, 96), assistant_model=assistant), write(inputs, None))

def test_a_second_turn_goes_on_with_the_cache():
    inputs, _ = prompt((4, 11))
    cache, theirs = wrap(model, Growing), DynamicCache()
    for _ in range(3):
        out = write(inputs, cache)
        assert torch.equal(out, write(inputs, theirs))
        inputs = dict(input_ids=torch.cat([out, torch.tensor([[5, 6], [7, 8]])], 1), attention_mask=torch.cat([inputs["attention_mask"], torch.ones(2, 18)], 1).long())

# ---- the cache's own methods

@pytest.mark.parametrize("kind", {**LOSSLESS, **BOUNDED, **LOSSY})
def test_reset_is_as_new(kind):
    make = {**LOSSLESS, **BOUNDED, **LOSSY}[kind]
    cache, (inputs, _) = wrap(model, *make), prompt((4, 14))
    first = write(inputs, cache); cache.reset()
    assert cache.get_seq_length() == cache.nbytes() == 0
    assert torch.equal(write(inputs, cache), first)
    cache.reset()
    assert write(prompt((3,))[0], cache).shape == (1, 19)                      # and the number of rows is free again

@pytest.mark.parametrize("kind", LOSSLESS)
def test_crop_counts_columns_and_short_rows_lose_what_they_have(kind):
    inputs, _ = prompt((4, 11)); ids, mask = inputs.values()
    for n in (1, 3, 7, 10):
        ours, theirs = wrap(model, *LOSSLESS[kind]), DynamicCache()
        for cache in (ours, theirs): ask(cache, ids, mask); cache.crop(0); cache.crop(-n)
        assert ours.get_seq_length() == theirs.get_seq_length() == 11 - n
        assert_close(ask(ours, ids[:, 11 - n:], mask)[:, -1], ask(theirs, ids[:, 11 - n:], mask)[:, -1], atol=1e-5, rtol=1e-5)
    ours.crop(-11)
    assert ours.get_seq_length() == 0

def test_crop_of_what_is_gone_is_refused_and_harms_nothing():
    inputs, _ = prompt((14,)); cache = wrap(model, Ring, 6); write(inputs, cache)
    n, before = cache.get_seq_length(), copy.deepcopy(cache)
    for wrong in (-3, 1, -n - 1):
        with pytest.raises(ValueError, match="forget"): cache.crop(wrong)
    assert cache.get_seq_length() == n
    token = torch.tensor([[5]])
    assert torch.equal(ask(cache, token), ask(before, token))

@pytest.mark.parametrize("kind", {**LOSSLESS, **BOUNDED, **LOSSY})
def test_rows_repeat_move_and_go(kind):
    inputs, _ = prompt((4, 14)); ids, mask = inputs.values()
    make = {**LOSSLESS, **BOUNDED, **LOSSY}[kind]
    token, one = torch.tensor([[5], [6]]), torch.ones(2, 1).long()
    def after(change, rows):
        cache = wrap(model, *make); ask(cache, ids, mask); change(cache)
        return ask(cache, token[rows], torch.cat([mask, one], 1)[rows])
    plain = after(lambda c: None, [0, 1])
    for change, rows in ((lambda c: c.reorder_cache(torch.tensor([1, 0, 1])), [1, 0, 1]), (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
                         (lambda c: c.batch_select_indices(torch.tensor([1])), [1]), (lambda c: c.batch_select_indices(torch.tensor([False, True])), [1])):
        assert_close(after(change, rows), plain[rows], atol=1e-5, rtol=1e-5)

def test_bytes_are_those_of_the_layers():
    inputs, _ = prompt((8,)); cache, theirs = wrap(model, Growing), DynamicCache()
    write(inputs, cache); write(inputs, theirs)
    assert cache.nbytes() == sum(one.keys.nbytes + one.values.nbytes for one in theirs.layers) == 2 * 2 * 2 * 16 * 8 * 23

# ---- the model is borrowed

def test_the_model_gets_back_what_it_had():
    for had in ("sdpa", "eager"):
        one = new(); one.set_attn_implementation(had)
        a, b = wrap(one, Growing), wrap(one, Ring, 4)
        assert one.config._attn_implementation == NAME
        del a; assert one.config._attn_implementation == NAME
        c = copy.deepcopy(b); del b; assert one.config._attn_implementation == NAME
        del c; assert one.config._attn_implementation == had
    a = wrap(one, Growing); one.set_attn_implementation("sdpa"); del a
    assert one.config._attn_implementation == "sdpa"                           # the user's later word counts

def test_a_constructor_that_refuses_takes_no_loan():
    one = new()
    with pytest.raises(ValueError): wrap(one, Ring, 0)
    assert one.config._attn_implementation == "sdpa"

def test_models_that_share_a_config_share_the_loan():
    one = new(); two = LlamaForCausalLM(one.config).double().eval()
    a, b = wrap(one, Growing), wrap(two, Growing)
    del a; assert two.config._attn_implementation == NAME
    del b; assert two.config._attn_implementation == "sdpa"

@pytest.mark.parametrize("make", [lambda: None, DynamicCache, lambda: StaticCache(config=model.config, max_cache_len=64)])
def test_other_calls_are_as_before(make):
    inputs, _ = prompt((4, 11)); ids, mask = inputs.values()
    plain, logits = write(inputs, make()), model(ids, attention_mask=mask).logits
    cache = wrap(model, Growing)
    assert torch.equal(write(inputs, make()), plain) and torch.equal(model(ids, attention_mask=mask).logits, logits)
    del cache

def test_two_threads_on_one_model():
    one, texts = new(), [prompt((n,), n)[0] for n in (5, 9, 13, 17)]
    makes = [(Growing,), (Ring, 6), (Sinks, 6, 2), (Preallocated, 64)]
    alone, together, errors = [write(t, wrap(one, *m), one) for t, m in zip(texts, makes)], [None] * 4, []
    def work(i):
        try:
            for _ in range(3): together[i] = write(texts[i], wrap(one, *makes[i]), one)
        except Exception as e: errors.append(e)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    gc.collect()
    assert not errors and all(map(torch.equal, alone, together)) and one.config._attn_implementation == "sdpa"

# ---- what is refused

@pytest.mark.parametrize("attention", ["sdpa", "eager", NAME])
@pytest.mark.parametrize("kind", {**LOSSLESS, **BOUNDED, **LOSSY})
def test_a_second_model_is_refused_and_the_cache_unharmed(kind, attention):
    make = {**LOSSLESS, **BOUNDED, **LOSSY}[kind]
    inputs, _ = prompt((4, 11)); ids, mask = inputs.values()
    cache = wrap(model, *make); ask(cache, ids, mask)
    before, other = copy.deepcopy(cache), new(1)
    other.set_attn_implementation(attention)
    token, longer = torch.tensor([[5], [6]]), torch.cat([mask, torch.ones(2, 1).long()], 1)
    for wrong in (token, token.repeat(1, 3)):
        with pytest.raises(ValueError, match="own model|another model"): ask(cache, wrong, torch.cat([mask, torch.ones_like(wrong)], 1), other)
    assert torch.equal(ask(cache, token, longer), ask(before, token, longer))

def test_bad_calls_are_one_sentence_and_harm_nothing():
    inputs, _ = prompt((4, 11)); ids, mask = inputs.values()
    cache = wrap(model, Preallocated, 13); ask(cache, ids, mask)
    token, longer = torch.tensor([[5], [6]]), torch.cat([mask, torch.ones(2, 1).long()], 1)
    before = copy.deepcopy(cache)
    changed = longer.clone(); changed[0, 0] = 1
    for wrong, m, why in ((token[:1], longer[:1], "rows"), (token, mask, "padding mask"), (token, None, "padding mask"), (token, changed, "padding mask"),
                          (token, torch.ones(2, 1, 1, 12), "padding mask"), (token.repeat(1, 3), torch.cat([mask, torch.ones(2, 3).long()], 1), "room for 13")):
        with pytest.raises(ValueError, match=why): ask(cache, wrong, m)
    with pytest.raises(ValueError, match="type"): ask(cache, token, longer, model.float())
    model.double()
    assert torch.equal(ask(cache, token, longer), ask(before, token, longer))

def test_models_with_rules_of_their_own_are_refused():
    qwen = Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)).eval()
    with pytest.raises(ValueError, match="full attention"): wrap(qwen, Growing)
    whole = Qwen2ForCausalLM(Qwen2Config(**SIZES)).double().eval()                # biases, but the same attention
    inputs, _ = prompt((4, 11))
    assert torch.equal(write(inputs, wrap(whole, Growing), whole), write(inputs, None, whole))
    odd = new()
    for layer in odd.model.layers: layer.self_attn.scaling = 0.5
    with pytest.raises(ValueError, match="another rule"): write(inputs, wrap(odd, Growing), odd)
