"""The lab: its texts, its zones, and readers that can do exactly what they should be able to do."""
import copy
import pytest, torch
from dataclasses import replace
from hypothesis import given, settings, strategies as st

pytest.importorskip("transformers")
from llmwatch_course.ahn.distill import state_tokens
from llmwatch_course.ahn.recall import ZONES, Sizes, Task, arms, by_zone, curve, host, lab_texts, right, student, teacher, train_memory, zone
from llmwatch_course.ahn.wrapping import wrap

SIZES = Sizes.smoke()
def generator(seed=0): return torch.Generator().manual_seed(seed)

@pytest.fixture(scope="module")
def skilled(): return teacher(Task(), replace(SIZES, teacher_steps=120, batch=32), generator(100))

@settings(max_examples=20, deadline=None)
@given(st.integers(2, 64), st.integers(0, 40), st.integers(1, 8), st.integers(0, 99))
def test_every_query_has_one_pair_with_its_key_and_the_right_value(pairs, filler, queries, seed):
    queries = min(queries, pairs)
    task = Task(pairs, pairs + filler + queries, queries)
    tokens, values, places = task.draw(3, generator(seed))
    keys, held = tokens // 17, tokens % 17
    assert tokens.shape == (3, task.length) and values.shape == places.shape == (3, queries)
    for r in range(3):
        assert len(set(keys[r, :pairs].tolist())) == pairs and keys[r, :pairs].max() < 64 and held[r, :pairs].max() < 16
        assert (tokens[r, pairs:pairs + filler] == 64 * 17 + 16).all()
        assert len(set(places[r].tolist())) == queries
        for i, (p, v) in enumerate(zip(places[r].tolist(), values[r].tolist())):
            query = tokens[r, task.length - queries + i]
            assert query % 17 == 16 and query // 17 == keys[r, p] and held[r, p] == v

def test_same_seed_same_texts():
    assert all(torch.equal(a, b) for a, b in zip(Task().draw(4, generator(3)), Task().draw(4, generator(3))))

@pytest.mark.parametrize("wrong", [dict(pairs=65), dict(pairs=4), dict(pairs=64, length=70), dict(pairs=8, queries=9)])
def test_impossible_tasks_are_refused(wrong):
    with pytest.raises(ValueError): Task(**wrong)

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 12), st.integers(0, 99))
def test_zones_by_brute_force(window, sinks, seed):
    texts = Task(12, 30, 6).draw(2, generator(seed))
    found = zone(texts, window, sinks)
    for r in range(2):
        for i in range(6):
            query, place = 24 + i, int(texts.places[r, i])
            want = "sink" if place < sinks else "window" if place > query - window else "memory"
            assert ZONES[found[r, i]] == want

def test_no_rival_sees_the_pairs():
    "Pairs first, filler, queries last: even with equal bytes the window must not reach back to the last pair."
    model = wrap(host(Task(), Sizes(), generator()), 28, 4)
    assert state_tokens(model) == 16
    for pairs in Sizes().pairs:
        texts = Task(pairs).draw(64, generator())
        assert not (zone(texts, 28 + 16, 4) == 2).any() and not (zone(texts, 32, 0) == 2).any()

def test_training_texts_are_scored_at_queries_whose_pairs_exist():
    draw, g = lab_texts(Task(), Sizes()), generator()
    for _ in range(20):
        tokens, mask = draw(g)
        queries = mask[0].nonzero().flatten()
        assert (mask == mask[0]).all() and queries[-1] == tokens.shape[1] - 1 and len(queries) in (8, 16)
        assert (tokens[mask] % 17 == 16).all() and tokens.shape[1] <= 128 and queries[0] >= 16

def test_readers_know_what_they_see(skilled):
    "The trained teacher recalls everything; a window nothing but by guessing; sinks their own pairs."
    texts = Task(12, 70).draw(256, generator(1))
    assert right(skilled, texts).mean() > 0.99
    model = student(skilled, Task(), replace(SIZES, memory_steps=1), generator(2))
    found, where = arms(model, texts, 20, 4), zone(texts, 20, 4)
    assert found["full"].equal(right(skilled, texts))
    assert found["window"].mean() < 0.15 and found["equal bytes"][where == 1].mean() < 0.15
    assert by_zone(found["sinks + window"], where)["sink"] > 0.99
    assert found["equal bytes, first pairs kept"].mean() > 0.99            # 4 + 16 sinks hold all 12 pairs
    assert torch.equal(found["writes off"], found["sinks + window"])
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".ahn." not in n) and all(p.requires_grad for p in skilled.parameters())

@pytest.mark.parametrize("rule", ["dn", "gdn"])
def test_a_memory_learns(skilled, rule):
    sizes = replace(Sizes(), memory_steps=60, longest=64, pairs=(8, 16))
    model = wrap(copy.deepcopy(skilled), 12, 4, rule, generator(5))
    rows = train_memory(model, Task(), sizes, generator(5))
    assert sum(r["loss"] for r in rows[-10:]) < 0.7 * sum(r["loss"] for r in rows[:10])
    texts = Task(8, 48).draw(256, generator(6))
    found = arms(model, texts, 12, 4)
    assert found["AHN"].mean() > found["equal bytes"].mean() + 0.1

def test_curve_has_a_row_for_each_count(skilled):
    model = student(skilled, Task(), replace(SIZES, memory_steps=1), generator(2))
    rows = curve(model, Task(length=80), (8, 16), generator(3), n=16)
    assert [r["pairs"] for r in rows] == [8, 16] and all(0 <= v <= 1 for r in rows for k, v in r.items() if k != "pairs")
    assert rows[0].keys() >= {"full", "AHN", "AHN, evicted", "writes off"}
