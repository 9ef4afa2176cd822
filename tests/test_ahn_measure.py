"""The measurement of chapter 2 at the size of a smoke test: every claim, what must hold at any size, and that its lines can fail."""
import math
import pytest, torch

pytest.importorskip("transformers")
from llmwatch_course.ahn import measure
from llmwatch_course.ahn.measure import Config, filled, filled_full, held_bytes, planted, read_exactly, run, vocabulary
from llmwatch_course.ahn.wrapping import new_cache, wrap
from llmwatch_course.foundations.results import holds, load_claims

CPU = torch.device("cpu")

@pytest.fixture(scope="module")
def found(): return {r.claim: r for r in run(Config.smoke(), 0, CPU)}

def test_each_claim_is_measured_and_finite(found):
    assert set(found) == {c.id for c in load_claims().values() if c.topic == "ahn"}
    for r in found.values(): assert all(math.isfinite(x) for x in (r.value, *r.baselines.values())) and r.table

def test_arithmetic_agrees_with_the_paper(found):
    assert round(100 - found["ahn-flops"].value, 1) == 59.4 and round(100 - found["ahn-cache"].value, 1) == 26.0
    assert found["ahn-flops"].baselines["sinks + window"] > found["ahn-flops"].value and found["ahn-cache"].baselines["sinks + window"] > found["ahn-cache"].value
    assert abs(found["ahn-table"].value - (4.59 - 4.41) / (5.88 - 4.41)) < 1e-9
    assert [round(x, 2) for x in found["ahn-table"].baselines.values()] == [1.29, 1.2, 0.82]

def test_the_cost_does_not_grow_and_full_attention_fails_the_same_line(found):
    flat = found["ahn-flat"]
    assert flat.table[0]["bytes ratio"] == 1 and flat.table[1]["bytes ratio"] > 1.8
    assert not holds(load_claims()["ahn-flat"].accept, flat.baselines["full attention"])

def test_without_writing_there_is_no_gain_and_no_line_is_met(found):
    claims = load_claims()
    for name, lost in (("ahn-swa", lambda b: b["writes off"] - b["equal bytes"]), ("ahn-full", lambda b: b["writes off"]), ("ahn-recall", lambda b: b["writes off"])):
        baselines = found[name].baselines
        assert baselines["writes off"] == baselines["sinks + window"] and not holds(claims[name].accept, lost(baselines))

def test_real_text_has_its_rows(found):
    assert [r["reader"] for r in found["ahn-swa"].table if "nats beyond the budget" in r] == ["sinks + window", "equal bytes", "AHN", "writes off"]
    facts = [r["reader"] for r in found["ahn-recall"].table if "planted facts" in r]
    assert {"full", "window", "equal bytes", "AHN", "writes off"} <= set(facts) and not any("planted facts" in r for r in found["ahn-full"].table)

def test_filled_caches_go_on_like_any_other():
    g = torch.Generator().manual_seed(0)
    model = wrap(measure.base_model(False, CPU), 12, 4, generator=g)
    with torch.inference_mode():
        cache = filled(model, 50, g)
        assert cache.get_seq_length() == 50 and held_bytes(cache) == held_bytes(filled(model, 99, g))
        model(torch.ones(1, 3, dtype=torch.long), past_key_values=cache)
        assert cache.get_seq_length() == 53
        read = new_cache(model)
        model(torch.randint(1, 9, (1, 50), generator=g), past_key_values=read)
    assert held_bytes(read) == held_bytes(cache)
    assert held_bytes(filled_full(model, 100, g)) == 2 * held_bytes(filled_full(model, 50, g))

class Letters:
    "A tokenizer with a token for each character."
    def __call__(self, text): return {"input_ids": [ord(c) for c in text]}

def test_planted_facts_can_be_found_by_reading():
    g = torch.Generator().manual_seed(1)
    tokens, answer = planted(Letters(), torch.full((6, 200), ord("x")), 3, ["harbour", "window", "ladder", "stone"], g)
    assert tokens.shape == (6, 200) and answer == 4
    for row in tokens.tolist():
        text = "".join(map(chr, row))
        question = text[text.rindex("\n") + 1:-4]
        assert text.count("The code of") == 4 and f"{question}{text[-4:]}.\n" in text and "xxx" in text

def test_train_and_test_words_are_different():
    train, new = vocabulary(0)
    assert not set(train) & set(new) and min(len(train), len(new)) > 100 and vocabulary(0) == (train, new)

def test_an_answer_counts_only_as_a_whole():
    class Echo:
        "Says the token that comes next, except in the last column of the second row."
        def __call__(self, rows, use_cache, logits_to_keep):
            logits = torch.nn.functional.one_hot(rows.roll(-1, 1), 300).float()
            logits[1::2, -2] = 0
            return type("Out", (), {"logits": logits[:, -logits_to_keep:]})
    tokens = torch.randint(1, 300, (4, 20), generator=torch.Generator().manual_seed(0))
    assert read_exactly(Echo(), tokens, 3).flatten().tolist() == [1, 0, 1, 0]

def test_every_scale_has_a_configuration():
    for scale in ("smoke", "small", "gpu", "paper"): assert isinstance(getattr(Config, scale)(), Config)
    assert Config.small().text is None and Config.gpu().text
