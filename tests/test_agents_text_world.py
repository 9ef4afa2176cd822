"""The company in documents: what search finds, dice that depend on seed and calls alone, questions, and planners against the exact law."""
import random
import subprocess
import sys
import time
from collections import Counter
import numpy as np
import pytest
from llmwatch_course.agents.memory import Memory, Plan, remember
from llmwatch_course.agents.text_world import FIRST, KINDS, LAST, NAME, RELATIONS, RELIABLE, TextWorld, attempt, enough, known
from llmwatch_course.agents.tools import ToolResult


@pytest.fixture(scope="module")
def world(): return TextWorld()


def test_the_company(world):
    assert len(world.people) == len(set(world.people)) == 1000 and len(world.documents) == len(set(world.documents)) == 2000
    assert all(NAME.fullmatch(name) for name in world.people) and not set(FIRST) & set(LAST) and len(set(FIRST)) * len(set(LAST)) == 2000
    assert sum(m is None for m in world.manager.values()) == 1 and all("\n" not in d and len(d) < 90 for d in world.documents)
    for name in world.people[::17]:                                          # every chain ends at the founder
        steps = 0
        while name: name, steps = world.manager[name], steps + 1
        assert steps < 40
    assert TextWorld().documents == world.documents != TextWorld(seed=1).documents and len(TextWorld(2000).documents) == 4000
    for entities in (9, 2001):
        with pytest.raises(ValueError, match="10 to 2000"): TextWorld(entities)


@pytest.mark.parametrize("wording", ["{r} of {n}", "{n} {r}", "What is the {r} of {n}?", "{n}'s {r}", "please look up the {r} of {n} for me"])
def test_search_finds_the_page_of_everybody(world, wording):
    for i, name in enumerate(world.people):
        for j, relation in enumerate(RELATIONS): assert world.find(wording.format(r=relation, n=name)) == 2 * i + j


def test_a_query_that_fits_nothing(world):
    assert world.find("qwzx") is None and world.find("") is None
    result = world.tools(0).call("search", {"query": "qwzx"})
    assert not result.ok and result.error == "bad_args"


def calls(world, n):
    rng = random.Random(5)
    return [("search", {"query": f"{rng.choice(RELATIONS)} of {rng.choice(world.people)}"}) if rng.random() < 0.8 else ("guess", {}) for _ in range(n)]


def test_dice_belong_to_the_toolset(world):
    todo = calls(world, 60)
    def texts(tools): return [tools.call(*c).text for c in todo]
    alone, again, other = (texts(world.tools(seed)) for seed in (3, 3, 4))
    a, b = world.tools(3), world.tools(3)                                    # two at once, one in step with the other
    mixed = [(a.call(*c).text, b.call(*c).text) for c in todo]
    assert alone == again == [x for x, _ in mixed] == [y for _, y in mixed] != other


def test_runs_do_not_depend_on_order_or_process(world):
    queries = world.queries(12, 7)
    forward = {q: attempt(world, q, world.rule_planner(), 1).digest for q in queries}
    other = TextWorld()
    backward = {q: attempt(other, q, other.rule_planner(), 1).digest for q in reversed(queries)}
    assert forward == backward
    code = "from llmwatch_course.agents.text_world import TextWorld, attempt; w = TextWorld(); print(*(attempt(w, q, w.random_planner(), 1).digest for q in w.queries(3, 7)), 'torch' in __import__('sys').modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77", "PATH": ""}).stdout.split()
    assert said == [*(attempt(world, q, world.random_planner(), 1).digest for q in queries[:3]), "False"]


@pytest.mark.parametrize("tool", ["search", "wiki"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_reliability(world, tool, relation):
    tools, n, p = world.tools("reliability"), 1500, RELIABLE[tool][relation]
    results = [tools.call(tool, {"query": f"{relation} of {world.people[1 + i % 999]}"}) for i in range(n)]
    assert abs(sum(r.ok for r in results) / n - p) < 4.5 * (p * (1 - p) / n)**0.5
    for i, r in enumerate(results):
        if r.ok: assert r.value == getattr(world, relation)[world.people[1 + i % 999]] and r.text == world.documents[2 * (1 + i % 999) + RELATIONS.index(relation)]
        else: assert r.error == "crash" and r.text == f"ConnectionError: {tool} did not answer"


def test_calc_and_guess(world):
    tools, n = world.tools(1), 1500
    sums = [tools.call("calc", {"expression": "3 + 4"}) for _ in range(n)]
    assert {r.value for r in sums if r.ok} == {7} and abs(sum(r.ok for r in sums) / n - 0.95) < 4.5 * (0.95 * 0.05 / n)**0.5
    guesses = Counter(tools.call("guess", {}).value for _ in range(n))
    assert set(guesses) == set(range(10)) and max(guesses.values()) < 220
    assert tools.names == ("search", "wiki", "calc", "guess") and not any(str(p) in tools.describe() for p in (0.9, 0.2, 0.95))
    assert tools.call("calc", {"expression": "__import__('os')"}).error in ("bad_args", "crash")


def truth(world, q):
    names = NAME.findall(q.text)
    for _ in range(q.text.count("manager")): names = [world.manager[n] for n in names]
    return sum(world.number[n] for n in names)


def test_questions(world):
    queries = world.queries(500, 2)
    assert queries[:9] == world.queries(9, 2) != world.queries(9, 3) and Counter(q.kind for q in queries) == dict.fromkeys(KINDS, 100)
    assert all(q.answer == truth(world, q) and q.text.count("manager") == (0 if q.kind == "sum" else int(q.kind[-1])) for q in queries)
    assert {q.kind for q in world.queries(4, 0, ("hop2", "sum"))} == {"hop2", "sum"}
    for kind in KINDS: assert len({q.answer for q in queries if q.kind == kind}) >= 8 and len({q.text for q in queries if q.kind == kind}) > 90
    with pytest.raises(ValueError, match="the kinds are"): world.queries(1, 0, ("hop9",))


def after(query, tool, result): return remember(Memory(query), Plan("", tool), result)


def test_enough():
    one, two = "What is the number of Ann Lee?", "What is the number of Ann Lee plus the number of Tom Bay?"
    seven, boss, bad = ToolResult(True, "7", 7), ToolResult(True, "Tom Bay", "Tom Bay"), ToolResult(False, "7", 7, "crash")
    assert not enough(Memory(one)) and not enough(after(one, "wiki", boss)) and not enough(after(one, "wiki", bad))
    assert all(enough(after(one, tool, seven)) for tool in ("search", "wiki", "calc", "guess"))
    assert [enough(after(two, tool, seven)) for tool in ("search", "wiki", "calc", "guess")] == [False, False, True, True]


def through(chances, turns):
    "The chance of all these successes in a row of tries: the transition matrix to the power of turns."
    step = np.diag([*(1 - chances), 1.]) + np.diag(chances, 1)
    return np.linalg.matrix_power(step, turns)[0, -1]


def test_rule_planner_follows_the_exact_law(world):
    chains = {"hop0": [.9], "hop1": [.9] * 2, "hop2": [.9] * 3, "hop3": [.9] * 4, "sum": [.9, .9, .95]}
    runs = [(q, attempt(world, q, world.rule_planner(), 11)) for q in world.queries(750, 11)]
    assert {r.stop_reason for _, r in runs} <= {"verified", "max_turns"} and all(r.reward == 1 for _, r in runs if r.stop_reason == "verified")
    for kind, chances in chains.items():
        turns = np.array([len(r.turns) if r.stop_reason == "verified" else 99 for q, r in runs if q.kind == kind])
        for T in range(1, 11):
            p = through(np.array(chances), T)
            assert abs((turns <= T).mean() - p) < 4.5 * (p * (1 - p) / len(turns))**0.5 + 0.007, (kind, T)


def test_bounds_hold(world):
    queries = world.queries(150, 4)
    upper, lower = ([attempt(world, q, planner, 4).reward for q in queries] for planner in (world.rule_planner(), world.random_planner(4)))
    assert np.mean(upper) > 0.97 and 0.03 < np.mean(lower) < 0.3
    swapped = RELIABLE | {"search": RELIABLE["wiki"], "wiki": RELIABLE["search"]}
    assert np.mean([attempt(world, q, world.rule_planner(), 4, 10, swapped).reward for q in queries]) < 0.6


def test_planner_reads_what_it_found(world):
    q = world.queries(4, 0)[3]
    memory, planner = Memory(q.text), world.rule_planner()
    name, tools = NAME.findall(q.text)[0], world.tools(0)
    assert planner.plan(memory, tools).args["query"] == f"manager of {name}"
    failed = remember(memory, planner.plan(memory, tools), ToolResult(False, "no", error="crash"))
    assert planner.plan(failed, tools).args["query"] == f"{name} manager" and known(failed) == {}
    page = ToolResult(True, world.documents[world.find(f"manager of {name}")], world.manager[name])
    found = remember(failed, planner.plan(failed, tools), page)
    assert known(found) == {("manager", name): world.manager[name]} and world.manager[name] in planner.plan(found, tools).args["query"]


def test_a_name_nobody_has_finds_somebody_else(world):
    nobody = next(f"{a} {b}" for a in FIRST for b in LAST if f"{a} {b}" not in world.manager)
    place = world.find(f"manager of {nobody}")
    assert place is not None and nobody not in world.documents[place]


def test_calls_are_cheap():
    world = TextWorld(seed=9)
    def rate(wording):
        tools, start = world.tools(), time.perf_counter()
        for name in world.people: tools.call("search", {"query": wording.format(name)})
        return len(world.people) / (time.perf_counter() - start)
    assert max(rate(wording) for wording in ("manager of {}", "the manager of {}", "{} manager")) > 2000       # new words each time; 5,000 and more on a quiet core
    assert max(rate("manager of {}") for _ in range(3)) > 5000


def test_the_text_world_has_the_laws_of_the_token_world():
    from llmwatch_course.agents import text_world, world
    here = {"search": dict(zip(text_world.RELATIONS, world.HERE.search)), "wiki": dict(zip(text_world.RELATIONS, world.HERE.wiki)), "calc": world.HERE.calc}
    assert here == text_world.RELIABLE and text_world.KINDS == world.KINDS
