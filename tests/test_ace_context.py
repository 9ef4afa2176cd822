"""Ranking answers by a frozen model: one pass over what prompts share, whatever their lengths, on CPU without the real model."""
import sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.ranking import common, forked, rank, tokenised
from llmwatch_course.foundations.chat import Growing
from llmwatch_course.foundations.decoder import Cache, Config, Decoder
from llmwatch_course.foundations.language_model import NoModel
from tests.conftest import absent

TINY = Decoder(Config.tiny(channels=32, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=64, vocab=64, context=128)).initialise(torch.Generator().manual_seed(3)).eval()
ROWS = st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=7), min_size=1, max_size=5)


@torch.inference_mode()
def plain(prompts, calls):
    "A pass for each pair, no cache."
    def score(prompt, call):
        logs = TINY(torch.tensor([[*prompt, *call]]))[0].log_softmax(-1)
        return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(call))
    return np.array([[score(prompt, call) for call in calls] for prompt in prompts])


@settings(max_examples=40, deadline=None)
@given(head=st.lists(st.integers(0, 63), max_size=6), prompts=ROWS, calls=ROWS, batch=st.integers(1, 4))
def test_rank_is_a_pass_for_each_pair(head, prompts, calls, batch):
    prompts = [head + row for row in prompts]
    np.testing.assert_allclose(rank(TINY, prompts, calls, batch), plain(prompts, calls), atol=2e-4)


@given(ROWS)
def test_common_is_the_longest_shared_beginning_that_leaves_every_row_a_token(rows):
    n = common(rows)
    assert all(row[:n] == rows[0][:n] and len(row) > n for row in rows)
    assert min(map(len, rows)) == n + 1 or len({row[n] for row in rows}) > 1


def test_likelihoods_of_all_single_tokens_sum_to_one():
    scores = rank(TINY, [[1, 2, 3], [4]], [[i] for i in range(64)])
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)


def test_a_longer_call_is_never_likelier_than_its_beginning():
    scores = rank(TINY, [[5, 6]], [[1], [1, 2], [1, 2, 3]])[0]
    assert scores[0] > scores[1] > scores[2]


def test_a_fork_leaves_the_cache_as_it_was():
    cache = Cache.of(TINY, Growing)
    with torch.inference_mode():
        TINY(torch.tensor([[1, 2, 3]]), cache)
        fork = forked(cache, [0, 0])
        both = TINY(torch.tensor([[4], [5]]), fork)
        assert cache.seen.tolist() == [3] and fork.seen.tolist() == [4, 4] and cache[0].held[0].shape[2] == 3
        torch.testing.assert_close(both[0, -1], TINY(torch.tensor([[1, 2, 3, 4]]))[0, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts, calls", [([], [[1]]), ([[1]], []), ([[]], [[1]]), ([[1]], [[]])])
def test_nothing_to_rank_is_a_sentence(prompts, calls):
    with pytest.raises(ValueError, match="at least one prompt and one call"): rank(TINY, prompts, calls)


def test_a_text_too_long_is_refused():
    with pytest.raises(ValueError, match="beyond the 128"): rank(TINY, [[1] * 127], [[1, 2, 3]])


def test_the_module_needs_no_torch():
    import subprocess
    code = "import sys, llmwatch_course.ace.ranking; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_one_sentence_turns_smollm2():
    try: from llmwatch_course.ace.ranking import smollm2; model = smollm2()[0]
    except (NoModel, ImportError): absent("SmolLM2")
    calls = ("maple", "cobalt", "tiger", "piano")
    prompts = ["- Archive an invoice. Call:", *(f"- To archive an invoice, call {call}.\n- Archive an invoice. Call:" for call in calls)]
    scores = rank(model, tokenised(prompts), tokenised([f" {call}" for call in calls]))
    assert scores[1:].argmax(1).tolist() == [0, 1, 2, 3]
