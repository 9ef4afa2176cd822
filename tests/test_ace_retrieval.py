"""Retrieval: the definition as oracle, playbooks that change, any embedder, ten thousand bullets."""
import sys, threading, time
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.desk import Desk
from llmwatch_course.ace.playbook import Bullet, Playbook
from llmwatch_course.ace.retrieval import Index, best, top
from llmwatch_course.ace.similarity import hashed

DESK = Desk(3)
BOOK = Playbook(Bullet(f"apis-{rule.id}", "apis", rule.sentence) for rule in DESK.rules)


def letters(texts):
    "A tiny embedder: counts of letters, rows of length one."
    rows = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32).reshape(-1, 26) + 0.01
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 50))
def test_best_is_a_stable_sort(scores, k):
    assert best(np.array(scores, float), k).tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ADD RETIRE QUARANTINE UPDATE PURGE back".split()), st.integers(0, 9)), max_size=15), st.text("abc xyz", max_size=8), st.integers(0, 6))
def test_top_is_its_definition_on_any_history(steps, text, k):
    index, books = Index(letters), [Playbook()]
    for i, (kind, n) in enumerate(steps):
        book, live = books[-1], books[-1].active()
        if kind == "back": books.append(books[n % len(books)]); continue
        if kind == "ADD": op = Op("ADD", section="apis", content=f"rule {n} {'abcxyz'[n % 6] * n}")
        elif not live: continue
        elif kind == "UPDATE": op = Op("UPDATE", id=live[n % len(live)].id, content=f"new {i}", expect=live[n % len(live)].rev)
        else: op = Op(kind, id=live[n % len(live)].id)
        books.append(apply(book, Delta([op], f"s{i}"))[0])
        found, bullets = index.top(books[-1], text, k), books[-1].active()
        scores = dict(zip([bullet.id for bullet in bullets], letters([bullet.content for bullet in bullets]) @ letters([text])[0]))
        np.testing.assert_allclose([scores[id] for id in found], sorted(scores.values(), reverse=True)[:k], atol=1e-5)
        assert len(set(found)) == len(found)


def test_the_right_bullet_is_among_three():
    tasks = [DESK.task(f"q{i}", (i,), "Zoe") for i in range(48)]
    assert all(f"apis-{t.needs[0]}" in top(BOOK, t.request, 3) for t in tasks)
    assert np.mean([f"apis-{t.needs[0]}" in top(BOOK, t.reworded, 3) for t in tasks]) > 0.8


def test_quarantined_and_retired_are_not_found():
    id = top(BOOK, "archive an invoice in Billing", 1)[0]
    for kind in ("QUARANTINE", "RETIRE", "PURGE"): assert id not in top(apply(BOOK, Delta([Op(kind, id=id)]))[0], "archive an invoice in Billing", 48)
    assert top(BOOK, "archive an invoice in Billing", 1) == [id]


def test_few_none_and_less_than_none():
    assert top(Playbook(), "x", 3) == top(BOOK, "x", 0) == [] and len(top(BOOK, "x", 100)) == 48 and len(top(BOOK, "", 3)) == 3
    with pytest.raises(ValueError, match="not -1"): top(BOOK, "x", -1)


def test_each_text_is_embedded_once():
    asked = []
    def spy(texts): asked.extend(texts); return hashed(texts)
    index, book = Index(spy), BOOK
    for i in range(5):
        book = apply(book, Delta([Op("ADD", section="apis", content=f"more {i}")]))[0]
        index.top(book, "query", 2)
    assert asked.count("query") == 5 and len(asked) - 5 == len({text for text in asked if text != "query"}) == 53


def test_texts_long_gone_are_forgotten():
    index = Index(letters)
    for i in range(5):
        index.top(Playbook(Bullet(f"a-{i}-{j}", "apis", f"text {i} {j}") for j in range(400)), "x", 1)
        assert len(index.rows.slots) <= 2000


def test_threads_get_the_answers_of_their_own_playbook():
    index, wrong = Index(letters), []
    def work(n):
        book = Playbook(Bullet(f"a-{n}-{j}", "apis", f"text {n} {'xyz'[j % 3]}") for j in range(30))
        for _ in range(50): wrong.extend(id for id in index.top(book, "x", 3) if not id.startswith(f"a-{n}-"))
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong


def test_ten_thousand_bullets():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((10_000, 512)).astype(np.float32)
    def embed(texts): return np.stack([rows[int(text.split()[-1]) % 10_000] for text in texts])
    index, book = Index(embed), Playbook(Bullet(f"a-{i}", "apis", f"case {i}") for i in range(10_000))
    index.top(book, "case 0", 3)
    times = []
    for i in range(20):
        start = time.perf_counter()
        assert index.top(book, f"case {i}", 3)[0] == f"a-{i}"
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_the_module_needs_numpy_alone():
    import subprocess
    code = "import sys, llmwatch_course.ace.retrieval; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
