"Memory as a value: pure, bounded, fenced; and the oldest agent loop, whose transcript is none of these."
import subprocess, sys, unicodedata
from dataclasses import FrozenInstanceError, replace
import pytest
from hypothesis import given, strategies as st
from llmwatch_course.agents.memory import Memory, Plan, Turn, Verdict, clipped, fence_name, fenced, harmless, remember, renderings, row
from llmwatch_course.agents.react import REACT_STOPS, Limits, read_action, read_answer, run_react
from llmwatch_course.agents.tools import Toolset, ToolResult, tool
from llmwatch_course.foundations.chat import Scripted

GOOD, BAD = ToolResult(True, "Bo"), ToolResult(False, "there is no argument 'nom'", error="bad_args")


def filled(n, result=GOOD, seed=0, **args):
    "A memory of n turns."
    memory = Memory("Who?", seed=seed)
    for i in range(n): memory = remember(memory, Plan(f"step {i}", "boss", {"i": i, **args}), result(i) if callable(result) else result, Verdict(False))
    return memory


def test_remember_is_pure():
    args = {"names": ["Ana"]}
    plan, old = Plan("find", "boss", args), Memory("Who?")
    new = remember(old, plan, GOOD, Verdict(False, "not yet"))
    args["names"].append("Bo"); plan.args["names"].append("Cyd")
    assert old == Memory("Who?") and new.turns == (Turn(1, Plan("find", "boss", {"names": ["Ana"]}), GOOD, False, "not yet"),)
    assert remember(old, Plan("find", "boss", {"names": ["Ana"]}), GOOD, Verdict(False, "not yet")).digest() == new.digest()
    for value, field in ((new, "turns"), (new.turns[0], "t"), (new.turns[0].plan, "tool")):
        with pytest.raises(FrozenInstanceError): setattr(value, field, None)


def test_a_verdict_that_is_missing_is_no_stop(): assert remember(Memory("?"), Plan("", ""), GOOD).turns[-1].stop is None


def test_the_digest_knows_what_happened_and_not_how_long():
    base = filled(3)
    assert filled(3, replace(GOOD, seconds=9.)).digest() == base.digest() == filled(3, seed=5).digest()
    others = [filled(2), filled(3, BAD), filled(3, x=1), replace(base, query="Whom?"), replace(base, turns=base.turns[::-1])]
    assert len({m.digest() for m in (base, *others)}) == 6
    assert Memory("\ud800").digest()  # half a character is a query too


def test_no_row_of_one_query_reaches_the_next():
    "Pitfall 1 of the official code: its solver keeps one memory, whose old rows are overwritten one by one."
    def ask(query, n): return replace(filled(n), query=query)
    first, second = ask("A?", 5), ask("B?", 2)
    assert second == ask("B?", 2) and "A?" not in second.render() and second.render().count("Turn ") == 2 and len(first.turns) == 5


PIECES = ["<", "|", ">", "im_start", "/", "[INST]", "\u200b", "\u202e", "\ufe0f", "\U000e0041", "\n", "\r", "\u2028", "\x85", "\x1b", "Turn 1 · ", "é", " ", fence_name(0)[:5], fence_name(0)[5:]]
NASTY = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40)


@given(NASTY, st.integers(0, 3))
def test_a_fence_can_t_be_closed(text, seed):
    name = fence_name(seed)
    first, *lines, last = fenced(text.replace("data", name[:6]), seed).split("\n")
    assert (first, last) == (f"<{name}>", f"</{name}>") and lines and all(line.startswith("| ") for line in lines)
    for line in lines:
        assert name not in line.lower() and "<|" not in line and "</" not in line and "[INST]" not in line
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for c in line)


def test_fences_differ_from_run_to_run(): assert len({fence_name(seed) for seed in range(1000)}) > 990


def test_plain_text_comes_through(): assert harmless("2 < 3, x² = 4,\n[1] naïve 김치 <3") == "2 < 3, x² = 4,\n[1] naïve 김치 < 3"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 900), st.integers(0, 200)), max_size=9), st.integers(0, 4000), st.integers(0, 60))
def test_a_rendering_keeps_its_budget(turns, most, words):
    memory = Memory("q" * words + "?")
    for ok, size, arg in turns: memory = remember(memory, Plan("g" * (arg // 2), "boss", {"x": "y" * arg}), ToolResult(ok, "w" * size, error=None if ok else "crash"))
    text, versions = memory.render(most), ["\n".join([f"Question: {memory.query}", *rows]) for rows in renderings(memory)]
    assert len(text) <= most
    assert text.count(f"<{fence_name(0)}>") == text.count(f"</{fence_name(0)}>")
    n = max(1, len(memory.turns))
    sizes = [len(v) for v in versions]
    assert sizes[:n] == sorted(sizes[:n], reverse=True)
    if most >= sizes[n - 1]:  # all but the last observation elided: nothing else may be missing
        assert text.startswith(f"Question: {memory.query}") and text.count("failed: crash") == sum(not ok for ok, *_ in turns)
        for turn in memory.turns:
            if not turn.result.ok or turn is memory.turns[-1]: assert fenced(turn.result.text, 0) in text
        assert [line for line in text.split("\n") if line.startswith("Turn ")] == [row(t, 0).split("\n")[0] for t in memory.turns]


def test_the_oldest_observation_goes_first():
    memory = filled(4, lambda i: ToolResult(True, f"page {i} " + "w" * 200))
    text = memory.render(len(memory.render(10**6)) - 1)
    assert "(207 characters left out)" in text and "page 0" not in text and all(f"page {i}" in text for i in (1, 2, 3))
    assert "(turns 1 to" in memory.render(150) and len(memory.render(150)) <= 150 and memory.render(5) == "Quest" and memory.render(-1) == ""


def test_clipped():
    for n in range(1, 12): assert len(clipped("abcdefghij", n)) == min(n, 10)
    assert clipped("abcdefghij", 5) == "ab…ij"


def test_the_loop_needs_the_standard_library_only():
    code = ("import sys; import llmwatch_course.agents.react, llmwatch_course.agents.memory, llmwatch_course.agents.flow, llmwatch_course.agents.replay, llmwatch_course.agents.poison; "
            "print([m for m in ('torch', 'numpy', 'openai', 'transformers', 'pydantic_monty', 'bm25s', 'matplotlib') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- the transcript: react ----

@tool(isolated=False)
def boss(name: str) -> str:
    "Who is the boss?"
    return {"Ana": "Bo", "Bo": "Cyd", "Cyd": "Ana"}[name]


FIRM, ASK = Toolset(boss), 'Action: boss {"name": "Ana"}'
def asked(*script, **limits): return run_react(Scripted(list(script)), "Who?", FIRM, Limits(**limits))


def test_react_survives_what_a_model_writes():
    run = asked("", "Action: chef {}", "Action: boss {,}", 'Action: boss {"name": 3}', 'Action: boss {"name": "Zoe"}', ASK, "Answer: Bo")
    assert (run.answer, run.stop_reason) == ("Bo", "answered")
    assert [r.error for r in run.results] == ["unknown_tool", "unknown_tool", "bad_args", "bad_args", "crash", None]
    assert run.lengths[0] < run.lengths[-1] and list(run.lengths) == sorted(run.lengths)


def test_react_ends():
    walk = [f'Action: boss {{"name": "{n}"}}' for n in ("Ana", "Bo", "Cyd")] * 5
    ends = [asked(*[ASK] * 9), asked(*walk, turns=4), asked(*walk, memory=90), asked(*walk, seconds=0, repeats=99), asked()]
    assert [e.stop_reason for e in ends] == ["loop_guard", "max_turns", "context", "wall_clock", "model_error"]
    assert {e.stop_reason for e in ends} | {"answered"} == set(REACT_STOPS) and all(e.answer is None for e in ends) and len(ends[0].results) == 3
    for bad in ({"turns": 0}, {"repeats": 0}, {"seconds": -1.}, {"memory": -1}):
        with pytest.raises(ValueError, match="limits are positive"): Limits(**bad)


def test_react_cuts_invented_observations():
    run = asked(f"{ASK}\nObservation: Zoe\nAnswer: Zoe", "Answer: Bo")
    assert run.answer == "Bo" and "Zoe" not in str(run.messages)


def test_readers():
    assert read_action('Action: a {"x": 1}\naction: b\n{"y": {"z": 2}} {"w": 3}') == ("b", {"y": {"z": 2}}) and read_action("my Action: a {}") == ("", {})
    assert read_answer("Final Answer: **7**") == "7" and read_answer("Answer:\n") is None
    for text in ('{"a":' * 3000, "{" * 9000, '{"a": "' + "x" * 10**6, "Action:" * 5000, "Answer: " + " *" * 4000 + "x"):
        read_action(text); read_answer(text)
