"""Memories behind transformers models: the base untouched, every way of generating exact, wrong files and caches refused."""
import copy, threading
import pytest, torch
from safetensors.torch import save_file
from torch.testing import assert_close

pytest.importorskip("transformers")
from transformers import DynamicCache, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM
from llmwatch_course.ahn.layer import RULES
from llmwatch_course.ahn.wrapping import GATES, attentions, load_memory, load_official, memories, new_cache, save_memory, unwrap, using, wrap
from llmwatch_course.foundations.decoder import Cache, NoMemory, from_transformers, left_pad

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=97, max_position_embeddings=256,
             initializer_range=0.3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, pad_token_id=0)
GREEDY = dict(max_new_tokens=16, do_sample=False)

def new(make=LlamaForCausalLM, config=LlamaConfig, seed=0, **changes):
    torch.manual_seed(seed)
    return make(config(**{**SIZES, **changes})).double().eval()

def qwen(): return new(Qwen2ForCausalLM, Qwen2Config)

def stirred(model, window=6, sinks=2, rule="gdn", seed=1):
    wrap(model, window, sinks, rule, torch.Generator().manual_seed(seed))
    g = torch.Generator().manual_seed(seed)
    for ahn in memories(model): ahn.out.data = torch.randn(ahn.out.shape, generator=g, dtype=torch.float64)
    return model

def prompt(lengths=(12, 5, 9), seed=0):
    g = torch.Generator().manual_seed(seed)
    ids, at = left_pad([torch.randint(3, 97, (n,), generator=g).tolist() for n in lengths])
    return dict(input_ids=ids, attention_mask=(at >= 0).long())

text = prompt((40, 40))["input_ids"]
@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad(): yield

# ---- the same as something independent

@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [new, qwen])
def test_a_text_that_fits_is_untouched_and_a_longer_one_is_not(make, rule):
    base = make()(text).logits
    model = stirred(make(), rule=rule)
    for use_cache in (True, False):
        got = model(text, use_cache=use_cache).logits
        assert torch.equal(got[:, :8], base[:, :8]) and (got[:, 8:] - base[:, 8:]).abs().amax(-1).min() > 1e-3

@pytest.mark.parametrize("window,sinks", [(6, 2), (1, 0), (9, 0), (3, 8)])
def test_silent_memories_are_the_masked_model(window, sinks):
    model = new()
    twin = from_transformers(model.config.to_dict(), model.state_dict())
    want = twin(text, Cache.of(twin, NoMemory, window, sinks))
    assert_close(wrap(model, window, sinks)(text).logits, want, rtol=0, atol=1e-5)

@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [new, qwen])
def test_cached_is_uncached(make, rule):
    model = stirred(make(), rule=rule)
    want = model(text, use_cache=False).logits
    for sizes in ([1] * 40, [40], [7, 1, 1, 1, 20, 10], [8] + [1] * 32, [39, 1]):
        cache, out = new_cache(model), []
        for piece in text.split(sizes, 1): out.append(model(piece, past_key_values=cache).logits)
        assert_close(torch.cat(out, 1), want, rtol=0, atol=1e-10)

def test_perturbing_a_forgotten_token_reaches_later_ones_through_the_memory_alone():
    other = text.clone(); other[:, 4] = (other[:, 4] + 1) % 90 + 3
    model = stirred(new(num_hidden_layers=1))
    moved = lambda: (model(text, use_cache=False).logits - model(other, use_cache=False).logits).abs().amax((0, 2))
    assert moved()[:4].max() == 0 and moved()[12:].min() > 0
    memories(model)[0].out.zero_()
    assert moved()[4:10].min() > 0 and moved()[10:].max() == 0              # inside the window of 6, and past it

# ---- ways of generating

@pytest.mark.parametrize("how", [{}, dict(num_beams=3), dict(num_beams=4, num_return_sequences=2), dict(prefill_chunk_size=5)])
@pytest.mark.parametrize("lengths", [(12,), (12, 5, 9)])
def test_generate_writes_the_same_with_and_without_cache(how, lengths):
    model, inputs = stirred(new()), prompt(lengths)
    want = model.generate(**inputs, **GREEDY, **{k: v for k, v in how.items() if k != "prefill_chunk_size"}, use_cache=False)
    for cache in (None, DynamicCache(), new_cache(model)):
        assert torch.equal(model.generate(**inputs, **GREEDY, **how, past_key_values=cache), want)

@pytest.mark.parametrize("seed", range(4))
def test_speculative_decoding_writes_the_same(seed):
    model, inputs = stirred(new()), prompt((12,), seed)
    want = model.generate(**inputs, **GREEDY)
    for how in (dict(prompt_lookup_num_tokens=3), dict(assistant_model=new(seed=9))):
        assert torch.equal(model.generate(**inputs, **GREEDY, **how, past_key_values=new_cache(model)), want)

def test_a_padded_row_says_what_it_says_alone():
    model, inputs = stirred(new()), prompt((12, 5, 9))
    many = model.generate(**inputs, **GREEDY)
    for row, n in enumerate((12, 5, 9)):
        assert torch.equal(model.generate(inputs["input_ids"][row:row + 1, 12 - n:], **GREEDY)[:, n:], many[row:row + 1, 12:])

def test_two_threads_on_one_model():
    model, inputs = stirred(new()), [prompt((12,), 1), prompt((9,), 2)]
    want, got = [model.generate(**i, **GREEDY) for i in inputs], [None, None]
    def work(n):
        for _ in range(3): got[n] = model.generate(**inputs[n], **GREEDY)
    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])

def test_a_prompt_is_read_once_and_continued_twice():
    model = stirred(new())
    cache = new_cache(model)
    model(text[:, :20], past_key_values=cache)
    twin = copy.deepcopy(cache)
    want = model(text, use_cache=False).logits[:, 20:]
    for c in (cache, twin): assert_close(model(text[:, 20:], past_key_values=c).logits, want, rtol=0, atol=1e-10)
    assert cache.nbytes() == 2 * 8 * 2 * (2 * 8 * 2 * 8 + 2 * 6 * 4 + 4 * 8 * 8)

# ---- the base

@pytest.mark.parametrize("make", [new, qwen])
def test_base_weights_are_bit_identical_after_training_and_unwrapping(make):
    model = make()
    before, logits, names = copy.deepcopy(model.state_dict()), model(text).logits, [n for n, p in model.named_parameters() if p.requires_grad]
    stirred(model)
    with torch.enable_grad():
        model(text, use_cache=False).logits.square().mean().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {n for n, _ in model.named_parameters() if ".ahn." in n}
        torch.optim.AdamW(memories(model).parameters(), lr=0.1).step()
    unwrap(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and list(model.state_dict()) == list(before)
    assert torch.equal(model(text).logits, logits) and [n for n, p in model.named_parameters() if p.requires_grad] == names
    assert model.config._attn_implementation == "sdpa"

def test_using_is_for_a_moment_and_comes_back_after_an_error():
    base, model = new()(text).logits, stirred(new())
    mine = model(text).logits
    with using(model, window=None): assert torch.equal(model(text).logits, base) and torch.equal(model(text, use_cache=False).logits, base)
    with using(model, window=30), using(model, sinks=4): assert torch.equal(model(text).logits[:, :34], base[:, :34])
    with pytest.raises(RuntimeError), using(model, window=3): raise RuntimeError
    assert torch.equal(model(text).logits, mine)
    with pytest.raises(ValueError, match="window of 0"), using(model, window=0): pass
    with using(model, mix=lambda a, q, k, v, x, positions: a.remember(q, k, v, x, positions)):
        assert torch.equal(model(text, use_cache=False).logits, mine)
        with pytest.raises(ValueError, match="use_cache=False"): model(text)

def test_a_copied_model_has_memories_of_its_own():
    model = stirred(new())
    twin = copy.deepcopy(model)
    for ahn in memories(twin): ahn.out.zero_()
    assert not torch.equal(model(text).logits, twin(text).logits) and attentions(twin)[0].budget == attentions(model)[0].budget
    assert torch.equal(unwrap(twin)(text).logits, new()(text).logits)

# ---- files

def test_memories_are_saved_and_loaded(tmp_path):
    for rule in RULES:
        model, path = stirred(new(), rule=rule), tmp_path/f"{rule}.safetensors"
        assert save_memory(model, path) == path.stat().st_size
        again = load_memory(wrap(new(), 6, 2, rule), path)
        assert_close(again(text).logits, model(text).logits, rtol=0, atol=0.1)
        for a, b in zip(memories(model).parameters(), memories(again).parameters(), strict=True): assert_close(a, b, rtol=1e-3, atol=1e-4)
        load_memory(wrap(new().bfloat16(), 6, 2, rule), path)

def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    path, model = tmp_path/"m.safetensors", stirred(new())
    save_memory(model, path)
    cases = [(wrap(new(seed=3), 6), "another base model"), (wrap(new(), 6, rule="dn"), "the model has"), (wrap(new(num_hidden_layers=3), 6), "the model has"),
             (wrap(new(hidden_size=64), 6), "the model has")]
    for other, message in cases:
        before = copy.deepcopy(memories(other).state_dict())
        with pytest.raises(ValueError, match=message): load_memory(other, path)
        assert all(torch.equal(v, before[k]) for k, v in memories(other).state_dict().items())
    with pytest.raises(ValueError, match="no file"): load_memory(model, tmp_path/"none")
    (tmp_path/"bad").write_bytes(b"no tensors"); save_file({"a": torch.ones(1)}, tmp_path/"plain")
    for name in ("bad", "plain"):
        with pytest.raises(ValueError, match="holds no memories"): load_memory(model, tmp_path/name)
    with pytest.raises(ValueError, match="wrap\\(\\) it first"): load_memory(new(), path)

def released(rule="gdn", layers=2, c=32, h=4, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {f"{n}.weight": (h, c) for n in GATES[rule]} | {"A_log": (h,), "dt_bias": (h,), "D": (h,), "o_proj.weight": (h, d, d)}
    shapes |= {"norm.weight": (h * d,)} if rule == "mamba2" else {"o_norm.weight": (d,)}
    if rule == "mamba2": shapes |= {f"{n}.bias": (h,) for n in GATES[rule]}
    return {f"model.layers.{i}.ahn.fn.{n}": torch.randn(s, generator=g).double() for i in range(layers) for n, s in shapes.items()}

def test_released_tensors_find_their_places():
    for rule in RULES:
        model, state = wrap(new(), 6, 2, rule), released(rule)
        load_official(model, state)
        for i, ahn in enumerate(memories(model)):
            own = lambda name: state[f"model.layers.{i}.ahn.fn.{name}"]  # noqa: B023
            assert torch.equal(ahn.out, own("o_proj.weight")) and torch.equal(ahn.norm.weight, own("norm.weight" if rule == "mamba2" else "o_norm.weight"))
            x = torch.randn(1, 3, 32, dtype=torch.float64)
            gates, at = ahn.gates(x), lambda name: (x @ own(f"{name}.weight").T + state.get(f"model.layers.{i}.ahn.fn.{name}.bias", 0)).mT  # noqa: B023
            assert_close(gates.read, at("g_proj"))
            if rule != "mamba2": assert_close(gates.write, at("b_proj").sigmoid())
            if rule == "gdn": assert_close(gates.log_decay, -own("A_log").exp()[:, None] * torch.nn.functional.softplus(at("a_proj") + own("dt_bias")[:, None]))
            if rule == "mamba2": assert_close(gates.write, torch.nn.functional.softplus(at("dt_proj") + own("dt_bias")[:, None]))
        assert not torch.equal(model(text).logits, wrap(new(), 6, 2, rule)(text).logits)

def test_released_tensors_that_do_not_fit_are_refused():
    model, state = wrap(new(), 6, 2), released()
    cases = [({k: v for k, v in state.items() if "1.ahn.fn.b_proj" not in k}, "no tensor 'b_proj.weight'"), (released(layers=3), "no tensor of a memory for 2 layers"),
             (released(c=16), "don't fit"), (released("mamba2"), "no tensor"), ({}, "no tensor"), ({"lm_head.weight": torch.ones(1)}, "no tensor of a memory")]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message): load_official(model, bad)

# ---- refused

def test_models_and_caches_that_do_not_fit_are_refused():
    mistral = MistralForCausalLM(MistralConfig(**SIZES))
    gemma = GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8))
    sliding = new(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    for model, message in ((mistral, "not 'mistral'"), (gemma, "not 'gemma'"), (sliding, "don't see all tokens"), (stirred(new()), "unwrap")):
        with pytest.raises(ValueError, match=message): wrap(model, 6)
    for window, sinks in ((0, 0), (4, -1)):
        model = new()
        with pytest.raises(ValueError, match="window"): wrap(model, window, sinks)
        model(text)                                                        # still as it was
    with pytest.raises(ValueError, match="unknown rule 'gnd'"): wrap(new(), 6, rule="gnd")
    for call in (unwrap, memories, new_cache):
        with pytest.raises(ValueError, match="wrap\\(\\) it first"): call(new())

def test_a_cache_of_somebody_else_is_refused():
    model, base = stirred(new()), new()
    used = base(text[:, :9]).past_key_values
    with pytest.raises(ValueError, match="empty DynamicCache"): model(text[:, 9:], past_key_values=used)
    with pytest.raises(ValueError, match="static cache"): model.generate(text, **GREEDY, cache_implementation="static")
    mine = new_cache(model)
    model(text[:, :9], past_key_values=mine)
    with pytest.raises(ValueError, match="another model"): stirred(new())(text[:, 9:], past_key_values=mine)
    with pytest.raises(ValueError, match="rows"): model(text[:1, 9:], past_key_values=mine)
    with pytest.raises(ValueError, match="full attention needs a new one"), using(model, window=None): model(text[:, 9:], past_key_values=mine)
    with pytest.raises(ValueError, match="without a gap"): model(text, attention_mask=(torch.arange(40) != 20).long().expand(2, -1))
    assert_close(model(text[:, 9:], past_key_values=mine).logits, model(text, use_cache=False).logits[:, 9:], rtol=0, atol=1e-10)
