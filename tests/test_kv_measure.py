"""The exact claim of chapter 1 is measured whole; the learned ones run at smoke, for their shape alone."""
import pytest, torch
from llmwatch_course.foundations.decoder import Config as Sizes, Decoder
from llmwatch_course.foundations.results import holds, load_claims
from llmwatch_course.kv_cache import measure
from llmwatch_course.kv_cache.preallocated import Preallocated
from llmwatch_course.kv_cache.sinks import Sinks

CPU = torch.device("cpu")


def test_kv_exact_holds_and_can_fail():
    accept = load_claims()["kv-exact"].accept
    result = measure.measure_exact(measure.Config.small(), torch.Generator().manual_seed(7), CPU)
    assert {r["cache"] for r in result.table} == {"growing", "preallocated", "chunks of 7", "paged", "ring 12", "sinks 4 + 8"}
    assert all(holds(accept, r["worst"]) for r in result.table) and holds(accept, result.value)
    assert not any(holds(accept, v) for v in result.baselines.values())


@pytest.fixture(scope="module")
def smoke(): return measure.run(measure.Config.smoke(), 3, CPU)


def test_every_claim_of_the_chapter_is_measured_once(smoke):
    assert [r.claim for r in smoke] == [c.id for c in load_claims().values() if c.topic == "kv_cache"]
    assert all(r.baselines and r.table for r in smoke)


def test_no_memory_is_lost_inside_the_window(smoke):
    forget = next(r for r in smoke if r.claim == "kv-forget")
    near = next(v for k, v in forget.baselines.items() if k.endswith("apart"))
    assert abs(near) < 1e-6                                     # true of any model: here both see the whole text


def test_reading_through_a_cache_scores_what_reading_at_once_scores():
    "`cross_entropy` reads in pieces, and scores the end of the text only."
    g = torch.Generator().manual_seed(0)
    model = Decoder(Sizes.tiny()).initialise(g).double().requires_grad_(False)
    tokens = torch.randint(256, (2, 50), generator=g)
    whole = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    for chunk in (1, 7, 49, 50, 99):
        for n in (49, 20, 1): torch.testing.assert_close(measure.cross_entropy(model, tokens, n, Preallocated, 50, chunk=chunk), whole[:, -n:])


def test_a_passage_comes_twice():
    config = measure.Config.smoke()
    text = measure.twice(torch.arange(5000), config, 40, torch.Generator().manual_seed(0))
    assert torch.equal(text[:, 32:32 + config.copy], text[:, 72:72 + config.copy]) and text.shape == (config.passages, 32 + 40 + config.copy)


def test_a_filled_cache_is_as_full_as_it_says():
    model = Decoder(Sizes.tiny()).initialise(torch.Generator().manual_seed(0))
    cache = measure.filled(model, Sinks, 12, 4, tokens=90, batch=3, generator=torch.Generator().manual_seed(1))
    model(torch.zeros(3, 1, dtype=torch.long), cache)
    assert cache.seen.tolist() == [91]*3
    assert sorted(cache[0].positions[0].tolist()) == [0, 1, 2, 3, *range(79, 91)]
