"""Chapter 2 beside its peers: the scan of the gated delta rule beside transformers, and beside fla's kernels on a GPU; a decoding step beside sinks and window alone. About a minute on two cores."""
import importlib.util
import torch
import torch.nn.functional as F
from transformers import logging
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule
from llmwatch_course.ahn.scan import chunked
from llmwatch_course.ahn.wrapping import new_cache, wrap
from llmwatch_course.foundations.corpus import documentation
from llmwatch_course.foundations.language_model import tokenizer, transformers_model
from llmwatch_course.kv_cache import Sinks, wrap as cache_of
from tests.benchmarks import side_by_side

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, HEADS, WIDTH, WINDOW, SINKS = (4096 if DEVICE.type == "cuda" else 2048), 9, 64, 508, 4


def rows() -> list[dict]:
    logging.set_verbosity_error()                                          # it would tell that its kernels for GPUs are missing
    return [*scan(), *decoding()]


def finished(call):
    "The same call, at whose end a GPU has done its work."
    def whole():
        call()
        if DEVICE.type == "cuda": torch.cuda.synchronize()
    return whole


def scan():
    "One layer of the shape of SmolLM2, a text of `TOKENS`. Each side gets its own order of axes, laid out as it likes it."
    g = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, 1, HEADS, TOKENS, WIDTH, generator=g), dim=-1)
    log_decay, write = torch.rand(2, 1, HEADS, TOKENS, generator=g)
    ours = [x.to(DEVICE) for x in (q, k, torch.randn(1, HEADS, TOKENS, WIDTH, generator=g), -0.1 * log_decay, write)]
    theirs = [x.transpose(1, 2).contiguous() for x in ours]
    what = f"gated delta rule, {TOKENS} tokens, {HEADS} heads of {WIDTH}"
    yield side_by_side(f"{what}: forward, beside torch_chunk", forward(chunked, ours), forward(torch_chunk_gated_delta_rule, theirs), ">= 1, better 1.5", 11)
    yield side_by_side(f"{what}: forward and backward, beside torch_chunk", backward(chunked, ours), backward(torch_chunk_gated_delta_rule, theirs), ">= 1, better 1.5", 7)
    aim = ">= 10" if DEVICE.type == "cuda" else ">= 1.5"
    yield side_by_side(f"{what}: forward, beside torch_recurrent", forward(chunked, ours), forward(torch_recurrent_gated_delta_rule, theirs), aim, 5)
    if DEVICE.type == "cuda" and importlib.util.find_spec("fla"):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        half = [x.bfloat16() for x in theirs]
        yield side_by_side(f"{what}: forward, beside fla's kernels", forward(chunked, ours), forward(chunk_gated_delta_rule, half), "", 11)


def forward(form, tokens):
    def call():
        with torch.inference_mode(): form(*tokens)
    return finished(call)


def backward(form, tokens):
    tokens = [x.clone().requires_grad_() for x in tokens]
    return finished(lambda: torch.autograd.grad(form(*tokens)[0].sum(), tokens))


@torch.inference_mode()
def decoding(steps=5):
    "A step of SmolLM2 past the edge of the window: with a memory behind sinks and window, and without."
    with_memory, without = wrap(transformers_model(device=DEVICE), WINDOW, SINKS), transformers_model(device=DEVICE)
    text = tokenizer()(documentation()[:6000], return_tensors="pt").input_ids[:, :WINDOW + SINKS + 64].to(DEVICE)
    models = (with_memory, new_cache(with_memory)), (without, cache_of(without, Sinks, WINDOW, SINKS))
    for model, cache in models: model(text, past_key_values=cache, logits_to_keep=1)
    def stepper(model, cache):
        def call():
            with torch.inference_mode():
                for _ in range(steps): model(text[:, :1], past_key_values=cache)
        return finished(call)
    yield side_by_side(f"window of {WINDOW}, {SINKS} sinks: a step with a memory, beside one without", *(stepper(*m) for m in models), ">= 0.87 (1.15 times the time)", 15, per=steps)
