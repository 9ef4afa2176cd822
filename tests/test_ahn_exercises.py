"""What the library does is what the exercises of chapter 2 ask for."""
from types import SimpleNamespace
import torch
from llmwatch_course.ahn import checks
from llmwatch_course.ahn.cost import equal_bytes_tokens
from llmwatch_course.ahn.distill import kl_beyond
from llmwatch_course.ahn.memory_rules import recurrent
from llmwatch_course.ahn.scan import chunked
from llmwatch_course.kv_cache.bill import MODELS


def batched(*xs): return [x[None, None] for x in xs]


def alone(scan):
    "A scan of the library as the exercise has it: one head, no batch."
    def f(q, k, v, log_decay, write, state, chunk):
        o, state = scan(*batched(q, k, v, log_decay, write, state), chunk)
        return o[0, 0], state[0, 0]
    return f


def test_the_rule_passes_the_check_of_one_step():
    def step(state, q, k, v, log_decay, write):
        o, state = recurrent(*batched(q[None], k[None], v[None], log_decay[None], write[None], state))
        return o[0, 0, 0], state[0, 0]
    checks.check_step(step)


def test_the_scan_passes_the_check_of_chunks():
    checks.check_chunked(alone(lambda q, k, v, a, b, state, chunk: chunked(q, k, v, a, b, state=state, chunk=chunk)))


def test_the_loss_passes_its_check(): checks.check_kl_beyond(kl_beyond)


def test_the_fair_window_is_the_bill_of_the_lesson():
    fair = checks.RIGHT["check_fair_window"][0]
    for shape in (*MODELS.values(), SimpleNamespace(layers=1, heads=2, kv_heads=2, head_dim=32)):
        for dtype in (torch.float32, torch.bfloat16):
            assert fair(shape, 512, dtype, False) - 512 == equal_bytes_tokens(shape, dtype=dtype)
            assert fair(shape, 512, dtype) - 512 == equal_bytes_tokens(shape, pending=512, dtype=dtype)
