"The calculator against Python, the ranking against its formula and against bm25s, and hostile input for both."
import math, random, time
import numpy as np
import pytest
from collections import Counter
from hypothesis import given, settings as checks, strategies as st
from llmwatch_course.agents.calculator import BITS, calculate, calculator
from llmwatch_course.agents.search import BM25, KnowledgeBase, best, fast_bm25, search_tool, words
from llmwatch_course.agents.tools import Toolset, ToolError
from conftest import absent

SUMS = st.recursive(st.sampled_from(["0", "1", "7", "12.5", "1e3", "250"]), lambda x: st.tuples(x, st.sampled_from(["+", "-", "*", "/", "//", "%"]), x).map(lambda t: f"({t[0]}{t[1]}{t[2]})") | x.map(lambda t: f"-{t}") | x.map(lambda t: f"({t})**2"), max_leaves=6)


@checks(max_examples=150, deadline=None)
@given(SUMS)
def test_the_calculator_is_python_on_sums(text):
    try: expected = eval(text)
    except ArithmeticError: expected = None
    try: assert calculate(text) == expected and type(calculate(text)) is type(expected)
    except ToolError as e: assert expected is None or len(text) > 200 or e.kind == "too_large"


HOSTILE = ["9**9**9", "2**10000", "10**400", "(-2)**1001", "1e308*10", "(-8)**.5", "1/0", "0**-1", "0**-99999999", "__import__('os')", "().__class__", "[1]*9", "'a'*9", "'%d'%3", "f'{1}'", "lambda:1", "1 if 1 else 2", "True+1", "1<2", "1 and 2", "~1",
           "1<<99999999", "3j", "1,000", "2^10", "x", "x:=3", "2+", "", "   ", "٣+٤", "²", "nan", "inf", "1e999", "9" * 300, "1" + "+1" * 10**6, "(" * 5000, "\x00", "1\n2", "\ud800", "...", "None", "2**0.5**-99999"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_sums(text):
    start = time.process_time()
    r = Toolset(calculator).call("calculator", {"expression": text})
    assert not r.ok and r.error in ("bad_args", "too_large") and time.process_time() - start < 0.05 and len(r.text) < 120


def test_sums_at_the_edge():
    assert calculate(f"2**{BITS - 1}") == 2**(BITS - 1) and calculate("10**300 // 10**299") == 10 and calculate("1**99999999") == 1 and calculate("(-1)**100001") == -1 and calculate("0**0") == 1
    assert calculate("2**-3") == 0.125 and calculate("-2**2") == -4 and calculate("2**3**2") == 512 and calculate(" 7 // -2 ") == -4
    assert "**" in str(pytest.raises(ToolError, calculate, "2^10").value) and "1000" in str(pytest.raises(ToolError, calculate, "1,000").value)


DOCS = st.lists(st.lists(st.sampled_from("a b c the of x1 É 나무".split()), max_size=8).map(" ".join), max_size=8)


@checks(max_examples=80, deadline=None)
@given(DOCS, st.lists(st.sampled_from("a b the É 나무 zzz".split()), max_size=4).map(" ".join), st.sampled_from([0., 0.75, 1.]))
def test_the_ranking_is_its_formula(documents, query, b):
    counts = [Counter(d.lower().split()) for d in documents]
    mean, n = max(sum(c.total() for c in counts) / max(len(counts), 1), 1.), len(counts)
    def score(c):
        brake = 1.5 * (1 - b + b * c.total() / mean)
        having = {w: sum(w in x for x in counts) for w in query.lower().split()}
        return sum(math.log(1 + (n - having[w] + .5) / (having[w] + .5)) * c[w] / (c[w] + brake) for w in query.lower().split() if c[w])
    ranking = BM25(documents, b=b)
    assert np.allclose(ranking.scores(query), [score(c) for c in counts])
    top = ranking.top(query, 3)
    assert [s for _, s in top] == sorted((s for s in ranking.scores(query).tolist() if s > 0), reverse=True)[:3]


def test_rankings_equal_the_librarys():
    try: import bm25s  # noqa: F401
    except ImportError: absent("bm25s")
    dice = random.Random(0)
    vocabulary = [f"w{i}" for i in range(300)]
    documents = [" ".join(dice.choices(vocabulary, weights=[1 / (i + 1) for i in range(300)], k=dice.randrange(1, 40))) for _ in range(300)]
    ours, theirs = BM25(documents), fast_bm25(documents)
    for _ in range(50):
        query = " ".join(dice.choices(vocabulary + ["nowhere"], k=dice.randrange(1, 6)))
        a, b = ours.scores(query), theirs.scores(query)
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6)
        for (i, _), (j, _) in zip(ours.top(query, 10), theirs.top(query, 10)): assert i == j or np.isclose(a[i], a[j], rtol=1e-5)
    assert theirs.top("nowhere") == []


def test_best_breaks_ties_by_place():
    assert best(np.array([1., 0., 2., 1., 2.]), 3) == [(2, 2.), (4, 2.), (0, 1.)] and best(np.zeros(3), 2) == []
    assert words("It's A_1, naïve!") == ["it", "s", "a_1", "naïve"]


def test_search_as_a_tool():
    for ranking in (["the cat sat", "a dog ran", "the dog sat"], BM25(["the cat sat", "a dog ran", "the dog sat"])):
        with Toolset(search_tool(ranking, k=2, name="find")) as tools:
            r = tools.call("find", {"query": "Dog, sat?"})
            assert r.value == ["the dog sat", "a dog ran"] or r.value[0] == "the dog sat" and len(r.value) == 2
            assert r.text.startswith("[2] the dog sat\n[")
            assert tools.call("find", {"query": "zebra"}).value == [] and tools.call("find", {"query": ""}).ok
            start = time.process_time()
            assert tools.call("find", {"query": "dog " * 100_000}).ok and time.process_time() - start < 0.1


def test_search_is_quick_enough_for_a_world():
    lines = [f"the boss of person{i} is person{i * 7 % 1000}" for i in range(2000)]
    tools = Toolset(search_tool(lines, k=3))
    times = []
    for i in range(200):
        start = time.perf_counter(); r = tools.call("search", {"query": f"who is the boss of person{i}"}); times.append(time.perf_counter() - start)
        assert lines[i] in r.value
    assert sorted(times)[20] < 1e-3


def test_knowledge_base():
    base = KnowledgeBase([("Ada Byron", "born", "1815"), ("Ada Byron", "child", "Anne"), ("Ada Byron", "child", "Ralph"), ("Anne", "born", "1837")])
    assert base.get(" ada  BYRON", "Child") == ["Anne", "Ralph"]
    tools = Toolset(base.tool())
    for subject, relation, kind, hint in [("Ada Byrom", "born", "bad_args", "'Ada Byron'"), ("Ada Byron", "bron", "bad_args", "'born'"), ("Anne", "child", "bad_args", "nothing is known"), ("x" * 10**5, "born", "bad_args", "no subject"), ("", "", "bad_args", "no subject")]:
        r = tools.call("lookup", {"subject": subject, "relation": relation})
        assert r.error == kind and hint in r.text and len(r.text) <= 200
    assert "born, child" in tools.describe() and tools.call("lookup", {"subject": "Anne", "relation": "born"}).value == ["1837"]
