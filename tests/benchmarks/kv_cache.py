"""Chapter 1 beside transformers: writing text with a cache, a step of a ring, and bytes beside the formula. About three minutes on two cores."""
import itertools
import torch
from transformers import Cache as TheirCache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from llmwatch_course.foundations.blocks import attend, visible
from llmwatch_course.foundations.corpus import documentation
from llmwatch_course.foundations.decoder import Cache, generate, load_smollm2
from llmwatch_course.foundations.language_model import tokenizer, transformers_model
from llmwatch_course.kv_cache.bill import kv_bytes, paged_bytes
from llmwatch_course.kv_cache.growing import Growing
from llmwatch_course.kv_cache.layers import wrap
from llmwatch_course.kv_cache.paged import Paged, Pool
from llmwatch_course.kv_cache.preallocated import Preallocated
from llmwatch_course.kv_cache.ring import Ring
from llmwatch_course.kv_cache.sinks import Sinks
from tests.benchmarks import side_by_side

PROMPT, NEW, WINDOW = 32, 32, 512


def rows() -> list[dict]:
    ours, theirs = load_smollm2(), transformers_model()
    ids = tokenizer()(documentation()[:40_000], return_tensors="pt").input_ids[0]
    timed = [row for batch in (1, 8) for part in (writing, ring_layers, ring_models) for row in part(ours, theirs, ids, batch)]
    return [*timed, *memory(ours, theirs, ids)]


def writing(ours, theirs, ids, batch):
    "`NEW` tokens after a prompt of `PROMPT`: our decoder and generate, beside transformers' model and generate."
    prompt, size, aim = ids[:batch * PROMPT].view(batch, PROMPT), PROMPT + NEW, ">= 1.3" if batch == 1 else ""
    options = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    def our(): return generate(ours, prompt, NEW, Cache.of(ours, Preallocated, size))
    def their(cache): return theirs.generate(prompt, **options, past_key_values=cache)
    what = f"{NEW} tokens, batch {batch} (ms a token)"
    yield side_by_side(f"{what}: beside DynamicCache", our, lambda: their(DynamicCache()), aim, repeats=5, per=NEW)
    yield side_by_side(f"{what}: beside StaticCache", our, lambda: their(StaticCache(config=theirs.config, max_cache_len=size)), aim, repeats=5, per=NEW)
    yield side_by_side(f"{what}: our cache in their model, beside DynamicCache", lambda: their(wrap(theirs, Preallocated, size)), lambda: their(DynamicCache()), repeats=5, per=NEW)


@torch.inference_mode()
def ring_layers(ours, theirs, ids, batch, steps=20):
    "A step of caches and attention alone, in 30 layers, past the edge of the window. Theirs get no mask to build or apply: their best case."
    config, attention = ours.config, theirs.model.layers[0].self_attn
    q = torch.randn(batch, config.heads, 1, config.head_dim)
    k, v, past = (torch.randn(batch, config.kv_heads, t, config.head_dim) for t in (1, 1, 2 * WINDOW))
    rings, slides = [Ring(WINDOW) for _ in range(config.layers)], [DynamicSlidingWindowLayer(WINDOW) for _ in range(config.layers)]
    for one in rings: one.update(past, past, torch.arange(2 * WINDOW).expand(batch, -1))
    for one in slides: one.update(past, past)
    places = itertools.count(2 * WINDOW)
    def our():
        for _ in range(steps):
            now = torch.full((batch, 1), next(places))
            for one in rings:
                keys, values, at = one.update(k, v, now)
                attend(q, keys, values, visible(now, at, one.window, one.sinks))
    def their():
        for _ in range(steps):
            for one in slides: sdpa_attention_forward(attention, q, *one.update(k, v), None)
    yield side_by_side(f"ring of {WINDOW}, batch {batch} (ms a step): caches and attention, beside the sliding layer", our, their, ">= 1", per=steps)


@torch.inference_mode()
def ring_models(ours, theirs, ids, batch, steps=10):
    "A step of the whole model, past the edge of the window."
    text, token = ids[:WINDOW + 64].expand(batch, -1), ids[:1].expand(batch, 1)
    ring = Cache.of(ours, Ring, WINDOW)
    slide = TheirCache(layers=[DynamicSlidingWindowLayer(WINDOW) for _ in range(ours.config.layers)])
    ours(text, ring, last=1); theirs(text, past_key_values=slide, logits_to_keep=1)
    def our():
        for _ in range(steps): ours(token, ring, last=1)
    def their():
        for _ in range(steps): theirs(token, past_key_values=slide, logits_to_keep=1)
    yield side_by_side(f"ring of {WINDOW}, batch {batch} (ms a step): whole model, beside the sliding layer", our, their, ">= 1", per=steps)


@torch.inference_mode()
def memory(ours, theirs, ids, batch=2, tokens=300):
    "Bytes held after a text, beside the formula; the peer's own bytes last."
    config, text, f32 = ours.config, ids[:batch * tokens].view(batch, tokens), torch.float32
    for name, make, formula in (
            ("growing", (Growing,), kv_bytes(config, tokens, f32, batch=batch)),
            ("preallocated for 512", (Preallocated, 512), kv_bytes(config, 512, f32, batch=batch)),
            ("ring of 128", (Ring, 128), kv_bytes(config, tokens, f32, 128, batch=batch)),
            ("window 124, 4 sinks", (Sinks, 124, 4), kv_bytes(config, tokens, f32, 124, 4, batch)),
            ("paged", (lambda: Paged(Pool(64, 16)),), paged_bytes(config, [tokens] * batch, 16, f32))):
        cache = Cache.of(ours, *make); ours(text, cache, last=1)
        yield dict(what=f"memory, {name}, beside the formula", ours=cache.nbytes(), peer=formula, ratio=cache.nbytes() / formula, spread="exact", unit="bytes", aim="= 1")
    their = DynamicCache(); theirs(text, past_key_values=their, logits_to_keep=1)
    held, full = sum(one.keys.nbytes + one.values.nbytes for one in their.layers), Cache.of(ours, Growing)
    ours(text, full, last=1)
    yield dict(what="memory, growing, beside DynamicCache", ours=full.nbytes(), peer=held, ratio=held / full.nbytes(), spread="exact", unit="bytes", aim="= 1")
