"""Which program is refined next: the picker against exact chances, the methods on made-up proposers, replay and chat."""
import itertools
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from llmwatch_course.cwm import refine
from llmwatch_course.cwm.prompts import ChatProposer, brief, first_prompt, read_program, repair_prompt, sampler_prompt, value_prompt
from llmwatch_course.cwm.refine import Candidate, FixtureProposer, Refinement, belief, conversation, fixture_header, gif_mcts, greedy, pick, rex
from llmwatch_course.cwm.trajectories import record
from llmwatch_course.cwm.unit_tests import Failure, check
from llmwatch_course.foundations.chat import Scripted

METHODS = (rex, greedy, conversation, gif_mcts)


def report(rate, text="wrong"): return SimpleNamespace(rate=rate, ok=rate == 1, failures=[Failure("T1", text)] if rate < 1 else [])
def made(rate, refined=0): return Candidate("", -1, report(rate), refined)


def chances(candidates, C, n=20_000):
    "The chance of each to draw the largest, by integration."
    x = (np.arange(n) + 0.5) / n
    def pdf(a, b): return np.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-x))
    p = np.array([pdf(*belief(c, C)) for c in candidates])
    return np.array([(p[i] * np.delete(p.cumsum(1) / n, i, 0).prod(0)).mean() for i in range(len(p))])


@pytest.mark.parametrize("C", [0.0, 1.0, 5.0, 30.0])
def test_pick_is_thompson_sampling(C):
    candidates, rng, n = [made(0.9, 6), made(0.6, 1), made(0.2)], random.Random(1), 20_000
    seen = np.bincount([pick(candidates, C, rng) for _ in range(n)], minlength=3) / n
    assert np.abs(seen - chances(candidates, C)).max() < 5 * 0.5 / n**0.5


def test_belief_is_the_paper_s():
    assert belief(made(0.8, 3), 5.0) == pytest.approx((1 + 5 * 0.8, 1 + 5 * 0.2 + 3))
    a, b = belief(made(0.3), 7.0)
    assert a / (a + b) == pytest.approx((1 + 7 * 0.3) / (2 + 7))


class Steps:
    "Programs are numbers; each call is one better, up to `top`."
    def __init__(self, top): self.top, self.asked = top, []
    def propose(self, candidate, failure, rng):
        self.asked.append((candidate.source, failure and failure.family))
        return min(candidate.source + 1, self.top) if failure else candidate.source     # asked to begin afresh, it has nothing new


@pytest.mark.parametrize("method", METHODS)
def test_all_stop_at_success_and_at_the_budget(method):
    done = method(0, Steps(10), lambda p: report(p / 10), budget=200, seed=3)
    assert done.solved and done.nodes[-1].source == 10 and done.best == len(done.nodes) - 1
    assert [done.nodes[i].source for i in done.path(done.best)] == list(range(11))
    stuck = method(0, Steps(4), lambda p: report(p / 10), budget=17, seed=3)
    assert not stuck.solved and stuck.calls == 17 == sum(n.refined for n in stuck.nodes)
    assert len(stuck.nodes) == 1 + stuck.calls - stuck.wasted


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_do_when_the_first_program_passes(method):
    done = method(10, Steps(10), lambda p: report(p / 10))
    assert done.solved and done.calls == 0 and len(done.nodes) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_everything(method):
    class Random:
        def propose(self, candidate, failure, rng): return rng.randrange(100)
    def run(seed): return [(n.source, n.parent, n.refined) for n in method(0, Random(), lambda p: report(p / 101), budget=40, seed=seed).nodes]
    assert run(5) == run(5) != run(6)


def test_which_program_is_asked():
    scores = {0: 0.5, 1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3}
    class Next:
        def __init__(self): self.count, self.asked = itertools.count(1), []
        def propose(self, candidate, failure, rng): self.asked.append(candidate.source); return next(self.count)
    chain, best = Next(), Next()
    conversation(0, chain, lambda p: report(scores[p]), budget=4)
    greedy(0, best, lambda p: report(scores[p]), budget=4)
    assert chain.asked == [0, 1, 2, 3] and best.asked == [0, 1, 1, 1]


def test_greedy_breaks_ties_by_seed():
    class Same:
        def __init__(self): self.count = itertools.count(1)
        def propose(self, candidate, failure, rng): return next(self.count)
    parents = {tuple(n.parent for n in greedy(0, Same(), lambda p: report(0.5), budget=6, seed=s).nodes) for s in range(10)}
    assert len(parents) > 3


def test_one_failing_test_a_family_first():
    failures = [Failure("T1", str(i)) for i in range(99)] + [Failure("T7", "x")]
    rng = random.Random(0)
    drawn = [refine.one_failure(failures, rng).family for _ in range(400)]
    assert 140 < drawn.count("T7") < 260


def test_gif_mcts_leaves_a_kind_of_call_that_only_wastes():
    done = gif_mcts(0, Steps(10), lambda p: report(p / 10), budget=200, seed=3)
    assert done.solved and 0 < done.wasted < 100


def test_gif_mcts_fixes_crashes_three_times_and_gives_up():
    class Crash:
        def __init__(self): self.count, self.kinds = itertools.count(1), []
        def propose(self, candidate, failure, rng): self.kinds.append(failure is None); return next(self.count)
    proposer = Crash()
    tree = gif_mcts(0, proposer, lambda p: report(0.0, "ValueError: no"), budget=12)
    chain = [n for n in tree.nodes if n.kind == "fix"]
    assert proposer.kinds[:3] == [False] * 3 and proposer.kinds[3]         # three fixes, then a fresh attempt
    assert len(chain) <= 9 and refine.worth(tree.nodes, 0) == 0
    promise = [refine.worth([Candidate(0, -1, report(0.0, "TypeError: x"), n)], 0) for n in range(5)]
    assert promise == [0.99, 0.66, 0.33, 0, 0]


def test_a_fix_that_runs_pays_its_parent():
    nodes = [Candidate(0, -1, report(0.0, "KeyError: x"), 1), Candidate(1, 0, report(0.7), kind="fix")]
    assert refine.worth(nodes, 0) == 0.7


def test_toy_ordering():
    "Twelve bugs and dead ends (fact of the method, not of the digits): REx and greedy far above the conversation."
    serial = itertools.count()
    def check(p): return report(1 - p[0] / 12)
    class Tinker:
        def propose(self, candidate, failure, rng):
            bugs, dead, _ = candidate.source
            if not dead and rng.random() < 0.35: bugs -= 1
            if rng.random() < 0.25: bugs = min(12, bugs + 1)
            return max(bugs, 0), dead or rng.random() < 0.06, next(serial)
    def solved(method): return sum(method((12, random.Random(i).random() < 0.3, -1), Tinker(), check, budget=300, seed=i).solved for i in range(40)) / 40
    share = {method: solved(method) for method in (rex, greedy, conversation)}
    assert share[rex] > share[greedy] > share[conversation] + 0.1


# replay

def test_fixtures_say_where_they_come_from():
    for name in ("tic_tac_toe", "connect_four", "kuhn"):
        graph = FixtureProposer(name)
        assert graph.roots() and {h["provenance"] for h in graph.headers.values()} == {"hand-written"}
        assert all(h["parent"] == "none" or h["parent"] in graph.texts for h in graph.headers.values())
        assert not any("rate" in key for h in graph.headers.values() for key in h)      # nothing about pass rates is stored


def test_replay_gives_each_child_once():
    graph = FixtureProposer("tic_tac_toe")
    root, rng = graph.roots()[0], random.Random(0)
    candidate = Candidate(root, -1, report(0.0))
    family = next(h["answers"].split(",")[0].strip() for h in graph.headers.values() if h["parent"] == graph.id_of(root))
    answers = [graph.propose(candidate, Failure(family, ""), rng) for _ in range(len(graph.texts) + 1)]
    given = [a for a in answers if a != root]
    assert given and len(set(given)) == len(given) and answers[-1] == root
    assert all(fixture_header(a)["parent"] == graph.id_of(root) and family in fixture_header(a)["answers"] for a in given)
    assert graph.propose(Candidate("x = 1\n", -1, report(0.0)), Failure("T1", ""), rng) == "x = 1\n"     # a reader's own text


def test_rex_replays_the_graph_and_seeds_take_different_ways():
    films, seen, ways = record("tic_tac_toe", 8, 3), {}, set()
    def judge(source):
        if source not in seen: seen[source] = check(source, films, seconds=1)
        return seen[source]
    for seed in range(8):
        graph = FixtureProposer("tic_tac_toe")
        tree = rex(graph.roots()[0], graph, judge, budget=200, seed=seed)
        assert tree.solved and len({n.source for n in tree.nodes}) == len(tree.nodes) == 1 + tree.calls - tree.wasted
        for node in tree.nodes[1:]:
            header, parent = fixture_header(node.source), tree.nodes[node.parent]
            assert header["parent"] == graph.id_of(parent.source)
            assert {f.family for f in parent.report.failures} & set(header["answers"].split(", "))
        ways.add(tuple(graph.id_of(n.source) for n in tree.nodes))
    assert len(ways) > 1


def test_rex_leaves_a_stubborn_program_and_greed_does_not():
    rates = {"start": 0.5, "trap": 0.95, "other": 0.6, "right": 1.0}
    class Folder:
        def __init__(self): self.ways = {"start": ["trap", "other"], "other": ["right"]}
        def propose(self, candidate, failure, rng): return (self.ways.get(candidate.source) or [candidate.source]).pop(0)
    def solved(method, seed): return method("start", Folder(), lambda source: report(rates[source]), seed=seed).solved
    assert all(solved(rex, seed) for seed in range(20)) and not any(solved(greedy, seed) for seed in range(20))


# a language model

PROGRAM = "def initial_state():\n    return {}\n"


@pytest.mark.parametrize("text, wanted", [
    (f"Sure!\n```python\n{PROGRAM}```\nDone.", PROGRAM), (f"```\n{PROGRAM}```", PROGRAM), (f"~~~py\n{PROGRAM}~~~", PROGRAM), (PROGRAM, PROGRAM),
    (f"```python\n{PROGRAM}", PROGRAM), (f"```python\nx\n```\nand\n```python\n{PROGRAM}```", PROGRAM), (PROGRAM.replace("\n", "\r\n"), PROGRAM),
    ("I cannot help with that.", ""), ("", ""), ("```python\n```", ""), ("```\ndef f(:\n```", "def f(:\n"), ("\0" * 50, "")])
def test_programs_are_read_out_of_answers(text, wanted): assert read_program(text).strip("\n") == wanted.strip("\n")


def test_hostile_answers_are_only_read():
    for text in ("(" * 100_000, "```python\n" + "[" * 90_000 + "\n```", "`" * 10_000, "```python\n" * 2_000, "def " * 50_000): assert isinstance(read_program(text), str)


def test_prompts_hold_what_they_must():
    failure = Failure("T2", "expected [1], got [2]")
    prompt = repair_prompt("kuhn", PROGRAM, failure)
    assert PROGRAM.strip() in prompt and failure.text in prompt and "information_state" in prompt and brief("kuhn") in prompt
    assert "information_state" not in brief("tic_tac_toe") and "apply_action" in brief("tic_tac_toe")
    trajectory = SimpleNamespace(steps=[{"state": {"i": i}} for i in range(30)])
    first = first_prompt("tic_tac_toe", [trajectory], steps=3)
    assert json.dumps({"state": {"i": 29}}) in first and '"i": 2}' not in first
    assert "resample_history" in sampler_prompt("kuhn", PROGRAM) and "value(state)" in value_prompt("kuhn", PROGRAM)


def test_chat_proposer_drives_the_tree():
    better = PROGRAM + "\n\ndef value(state):\n    return 1\n"
    def check(source): return report(1.0 if source.strip() == better.strip() else 0.5, "expected 1, got 2")
    chat = Scripted(["No idea.", f"```python\n{better}```"])
    tree = rex(PROGRAM, ChatProposer(chat, "tic_tac_toe"), check, budget=5)
    assert tree.solved and tree.calls == 2 and tree.wasted == 1
    assert [len(r["messages"]) for r in chat.requests] == [1, 1] and "expected 1, got 2" in chat.requests[0]["messages"][0]["content"]


def test_a_conversation_remembers():
    chat = Scripted([f"```python\n{PROGRAM}# {i}\n```" for i in range(3)])
    proposer = ChatProposer(chat, "tic_tac_toe", remember=True)
    tree = conversation(PROGRAM, proposer, lambda s: report(0.5, "expected 1, got 2"), budget=3)
    assert tree.calls == 3 and [len(r["messages"]) for r in chat.requests] == [1, 3, 5] and proposer.tokens > 0


def test_refinement_is_a_tree():
    tree = Refinement([made(0.1), Candidate("a", 0, report(0.4)), Candidate("b", 1, report(0.2))])
    assert tree.path(2) == [0, 1, 2] and tree.best == 1 and not tree.solved
